"""A `fake` job on a cluster, and the source outside of it that says what its workers must have counted."""

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.harness import SLOWDOWN, Cluster, eventually
from tiflow.jobs.fake.judge import behind
from tiflow.jobs.fake.source import Source, SourceServer
from tiflow.views import MemberInfo

WORKERS = 4
EXACT_S = 60.0


class FakeJob:
    """Its source serves from `with` to its end; then the job is ended and deleted, unless the test has failed."""

    def __init__(self, cluster: Cluster, **config: Any) -> None:
        self.cluster = cluster
        self.config = {"worker-count": WORKERS, "tick-interval": "100ms", **config}
        self.workers: int = self.config["worker-count"]
        self.changes = 0

    def __enter__(self) -> Self:
        self._server = SourceServer(("127.0.0.1", 0)).__enter__()
        try:
            config = {"source-url": self._server.url, **self.config}
            self.handle = self.cluster.client().run_job("fake", config)
        except BaseException:
            self._server.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.handle.cancel()
                self.handle.wait(timeout_s=30 * SLOWDOWN)
                self.handle.delete()
        finally:
            self._server.__exit__(kind, error, trace)

    # ---- what happens to it

    def change(self, times: int = 5) -> None:
        """Each key, so often."""
        for _ in range(times):
            self.changes += 1
            for number in range(self.workers):
                self._server.source.put(f"key-{number}", f"value {self.changes}")

    def start_source_anew(self) -> None:
        """At the same address, without its history."""
        self._server.source = Source()

    def kill_process(self, group: str) -> None:
        """SIGKILL to the processes of a member, and nothing else."""
        marks = {f"TIFLOW_JOB_UID={self.handle.uid}".encode(), f"TIFLOW_GROUP={group}".encode()}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is somebody else's
                if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                    os.kill(int(entry.name), signal.SIGKILL)

    # ---- how it stands

    def members(self) -> dict[str, MemberInfo]:
        return {member.name: member for member in self.handle.info().members}

    def attempts(self) -> dict[str, int]:
        return {name: member.attempt for name, member in self.members().items()}

    def executor_of(self, name: str) -> str:
        return self.members()[name].executor

    def all_run(self) -> bool:
        members = self.members()
        return len(members) == self.workers + 1 and all(one.state == "running" for one in members.values())

    def is_in_charge(self) -> bool:
        """The newest attempt of the job master runs, knows all workers, and has said so."""
        master = self.members()["master"]
        said = (master.status.get("attempt"), master.status.get("workers"))
        return master.state == "running" and said == (master.attempt, self.workers)

    def wait_running(self, within_s: float = 20.0) -> None:
        eventually(self.all_run, within_s)

    def assert_exact(self, within_s: float = EXACT_S) -> None:
        """The source changes once more, and all workers come to know it, and have it in their checkpoints. The source
        forgets it then: who loses a checkpoint from now on cannot begin from nothing."""
        self.change()
        eventually(self.is_exact, within_s, retry=(AssertionError, KeyError))
        for key, one in self._server.source.counts().items():
            self._server.source.forget(key, one["revision"])

    def is_exact(self) -> bool:
        """Raises Miscounted, after which waiting is in vain."""
        late = behind(self._statuses(), self._server.source.counts())
        assert not late, late
        return True

    def counts_are_right(self, but: Collection[str] = ()) -> bool:
        """As `is_exact`, but not in checkpoints. `but`: names of workers that may be late."""
        late = behind(self._statuses(), self._server.source.counts(), kept=False)
        names = {f"key-{number}": f"worker/{number}" for number in range(self.workers)}
        assert not {key for key in late if names[key] not in but}, late
        return True

    def _statuses(self) -> dict[str, dict[str, Any]]:
        return {one.status["key"]: one.status for one in self.members().values() if "key" in one.status}
