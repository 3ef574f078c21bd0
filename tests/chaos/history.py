"""What clients asked of a few jobs and were told, and whether one order of all of it explains the answers.

The jobs wait for ever (no executor fits), so that only clients change them. All that is done to them can be done
twice (a client that gets no answer asks again): a job is submitted, paused, canceled, and never goes back.
"""

import random
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tiflow
from tests.cluster.harness import Cluster
from tests.linearizability import Operation, Step, find_anomaly, picture
from tiflow.errors import AlreadyExists, NotFound, TiflowError
from tiflow.sched.model import Command, GroupSpec, JobSpec, Selector

CLIENTS = 3
KEY_S = 2.5  #: all clients work on one job for so long, then on the next: a key stays below a hundred operations
NOWHERE = (Selector("chaos", "eq", ("no executor has this",)),)
MISSING = "missing"


class Histories:
    """Clients, each in a thread of its own, until told to stop."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self.operations: list[Operation] = []
        self._threads = [
            threading.Thread(
                target=self._run, args=(f"c{number}", cluster.client(timeout_s=20.0), random.Random(seed + number))
            )
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def unknown(self) -> int:
        return sum(operation.returned == Operation(0, 0, 0).returned for operation in self.operations)

    def anomaly(self) -> str:
        """The answers about one job that no order explains; empty: there are none."""
        found = find_anomaly(self.operations, a_job)
        return "" if found is None else f"no order explains what was told of {found[0].key}:\n{picture(found)}"

    def _run(self, name: str, client: tiflow.Client, rng: random.Random) -> None:
        submitted = ""
        while not self._stopping.wait(rng.uniform(0.02, 0.15)):
            key = f"history-{int((time.monotonic() - self._began) / KEY_S)}"
            if key != submitted and rng.random() < 0.3:
                submitted = key
                self._do(key, ("submit", name), lambda key=key: _submit(client, key, name))  # type: ignore[misc]
            elif rng.random() < 0.15:
                self._do(key, ("pause",), lambda key=key: _change(client.pause, key))  # type: ignore[misc]
            elif rng.random() < 0.05:
                self._do(key, ("cancel",), lambda key=key: _change(client.cancel, key))  # type: ignore[misc]
            else:
                self._do(key, ("read",), lambda key=key: _read(client, key))  # type: ignore[misc]

    def _do(self, key: str, asked: tuple[str, ...], ask: Callable[[], Any]) -> None:
        operation = Operation(key, time.monotonic(), asked)
        self.operations.append(operation)
        try:
            operation.output = ask()
        except TiflowError:
            return  # perhaps it happened, perhaps not
        operation.returned = time.monotonic()


def a_job(_: Sequence[Operation]) -> tuple[Hashable, Step]:
    """("submit", who) → "done" or "exists"; ("pause",), ("cancel",) → "done" or MISSING; ("read",) → the state: who
    submitted it and where it stands, or MISSING."""

    def step(state: Any, asked: Any, answer: Any) -> Hashable | None:
        there = state != MISSING
        if asked[0] == "read":
            return state if answer == state else None
        if asked[0] == "submit":
            expected, after = ("exists", state) if there else ("done", (asked[1], "Created"))
        elif not there:
            expected, after = MISSING, state
        else:
            stays = state[1] == "Canceled" or asked[0] == "cancel"
            expected, after = "done", (state[0], "Canceled" if stays else "Paused")
        return after if answer in (None, expected) else None

    return MISSING, step


def _submit(client: tiflow.Client, key: str, name: str) -> str:
    group = GroupSpec(name=name, work=Command(("true",)), selectors=NOWHERE)
    try:
        client.submit(JobSpec(id=key, groups=(group,)))
    except AlreadyExists:
        return "exists"
    return "done"


def _change(change: Callable[[str], Any], key: str) -> str:
    try:
        change(key)
    except NotFound:
        return MISSING
    return "done"


def _read(client: tiflow.Client, key: str) -> Any:
    try:
        job = client.get(key)
    except NotFound:
        return MISSING
    return job.groups[0].name, job.state
