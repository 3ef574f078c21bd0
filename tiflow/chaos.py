"""Runs `fake` jobs while somebody else hurts the cluster, and fails loudly when one of them counts wrong.

    python -m tiflow.chaos --master-addrs ip0:10240,ip1:10240,ip2:10240 --duration 20m

Each job watches a source that this program serves, which executors must reach. In some workers fail now and then. A
job is right when all its workers have counted every change exactly, in time after the last one, and it ends Finished
with exactly that. Exit code 1 if one is not: the job is left as it is, for whoever looks into it.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from tiflow.client import Client, JobInfo
from tiflow.errors import AlreadyExists, InvalidArgument, NotFound, OutcomeUnknown, TiflowError, Unavailable
from tiflow.jobs.fake.judge import Miscounted, behind
from tiflow.jobs.fake.source import Source, SourceServer
from tiflow.sched.model import TYPE_LABEL
from tiflow.values import format_address, is_wildcard, parse_address, parse_duration_ms

READY_S = 600.0  #: for the cluster to be there, when the program starts
POLL_S = 0.2
TICK, TICKS_MAX = "100ms", 100
ERRORS = ("0s", "0s", "2s", "10s")  #: of what intervals one is drawn for a job
CHANGES = (5, 60)  #: of each key between two looks at the counts
LOOKS = (2, 4)

T = TypeVar("T")


class Wrong(Exception):
    """A promise was broken. It says which, and of which job."""


class Stopped(Exception):
    """Another job was wrong."""


@dataclass
class Tally:
    """Of what was right."""

    jobs: int = 0
    changes: int = 0
    attempts: int = 0
    slowest_s: float = 0.0  #: from a change until all was counted and in checkpoints


class Chaos:
    """Several jobs at a time, of up to `workers` workers."""

    def __init__(
        self,
        client: Client,
        source: Source,
        source_url: str,
        *,
        workers: int,
        within_s: float,
        pause_s: float,
        seed: int,
    ) -> None:
        """`within_s`: how soon after its last change a job must be exact; and how long masters may be silent.
        `pause_s`: between two changes, at most."""
        self.tally = Tally()
        self._client = client
        self._source = source
        self._source_url = source_url
        self._workers = workers
        self._within_s = within_s
        self._pause_s = pause_s
        self._seed = seed
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def wait_ready(self, jobs: int) -> None:
        """Until there are slots enough. Raises Wrong."""
        needed = jobs * (self._workers + 1)
        deadline = time.monotonic() + READY_S
        while True:
            executors = self._patiently(self._client.executors, READY_S)
            able = [one for one in executors if one.state == "alive" and f"{TYPE_LABEL}fake" in one.labels]
            if (slots := sum(one.slots for one in able)) >= needed:
                return
            if time.monotonic() >= deadline:
                raise Wrong(
                    f"{jobs} jobs of {self._workers} workers need {needed} slots, and {len(able)} executors have "
                    f"{slots}: give them more, or ask for fewer"
                )
            self._pause(POLL_S)

    def run(self, jobs: int, duration_s: float) -> None:
        """One job after the other, `jobs` at a time, each of these at least once. Raises Wrong."""
        deadline = time.monotonic() + duration_s
        with ThreadPoolExecutor(jobs) as threads:
            lanes = [threads.submit(self._lane, lane, deadline) for lane in range(jobs)]
            try:
                wait(lanes, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
        for lane in lanes:
            error = lane.exception()
            if error is not None and not isinstance(error, Stopped):
                raise error

    def _lane(self, lane: int, deadline: float) -> None:
        rng = random.Random(f"{self._seed}/{lane}")
        number = 0
        while not number or (time.monotonic() < deadline and not self._stop.is_set()):
            self.play(f"chaos-{self._seed:08x}-{lane}-{number}", rng)
            number += 1

    def play(self, id: str, rng: random.Random) -> None:
        """One job, from its submission to its deletion. Raises Wrong, Stopped."""
        looks = [rng.randint(*CHANGES) for _ in range(rng.randint(*LOOKS))]
        keys = [f"{id}-{number}" for number in range(rng.randint(1, self._workers))]
        target = {"tick": rng.randint(1, TICKS_MAX), "count": sum(looks)}
        config = {
            "worker-count": len(keys),
            "target-tick": target["tick"],
            "target-count": target["count"],
            "tick-interval": TICK,
            "source-url": self._source_url,
            "key-prefix": f"{id}-",
            "inject-error-interval": rng.choice(ERRORS),
        }
        self._submit(id, config)
        slowest_s = 0.0
        for number, changes in enumerate(looks, start=1):
            for _ in range(changes):
                for key in keys:
                    self._source.put(key, f"value {rng.getrandbits(64):x}")
                self._pause(rng.uniform(0, self._pause_s))
            if number < len(looks):
                began_s = time.monotonic()
                self._wait_exact(id, keys)
                slowest_s = max(slowest_s, time.monotonic() - began_s)
        info = self._wait_ended(id, keys)
        self._judge_results(id, keys, target)
        attempts = sum(one.status.get("attempt", 0) for one in info.members)
        self._forget(id, keys)
        with self._lock:
            self.tally.jobs += 1
            self.tally.changes += len(keys) * target["count"]
            self.tally.attempts += attempts
            self.tally.slowest_s = max(self.tally.slowest_s, slowest_s)
        print(
            f"{id}: {len(keys)} workers counted {target['count']} changes each, exactly; {attempts} attempts, "
            f"{slowest_s:.1f} s behind at most",
            flush=True,
        )

    # ---- steps of a job

    def _submit(self, id: str, config: dict[str, Any]) -> None:
        def submit() -> None:
            with suppress(AlreadyExists):  # of an answer that was lost: nobody else draws that id
                self._client.run_job("fake", config, id=id)

        self._patiently(submit, self._within_s)

    def _wait_exact(self, id: str, keys: list[str]) -> None:
        """Then what was counted is forgotten: who loses its checkpoint from now on is found out."""
        deadline = time.monotonic() + self._within_s
        while True:
            info = self._get(id)
            late = self._behind(info, keys)
            if not late:
                for key in keys:
                    self._source.forget(key, self._source.counts()[key]["revision"])
                return
            if info.ended:
                raise Wrong(self._told(info, "it ended before all was counted"))
            if time.monotonic() >= deadline:
                raise Wrong(self._told(info, f"not exact within {self._within_s:g} s: {late}"))
            self._pause(POLL_S)

    def _wait_ended(self, id: str, keys: list[str]) -> JobInfo:
        deadline = time.monotonic() + self._within_s
        while True:
            info = self._get(id)
            self._behind(info, keys)
            if info.ended:
                if info.state != "Finished":
                    raise Wrong(self._told(info, f"it is {info.state}"))
                return info
            if time.monotonic() >= deadline:
                raise Wrong(self._told(info, f"not at its end within {self._within_s:g} s after the last change"))
            self._pause(POLL_S)

    def _judge_results(self, id: str, keys: list[str], target: dict[str, int]) -> None:
        results = self._patiently(lambda: list(self._client.results(id)), self._within_s)
        got = {(one.group, one.index): one.value for one in results}
        truth = self._source.counts()
        wanted: dict[tuple[str, int], Any] = {
            ("worker", number): {**target, "revision": truth[key]["revision"]} for number, key in enumerate(keys)
        }
        sums = {name: len(keys) * value for name, value in target.items()}
        wanted["master", 0] = {"workers": len(keys), "ended": len(keys), **sums}
        if got != wanted:
            raise Wrong(self._told(self._get(id), f"its results are {got}, not {wanted}"))

    def _forget(self, id: str, keys: list[str]) -> None:
        def delete() -> None:
            with suppress(NotFound):  # of an answer that was lost
                self._client.delete(id)

        self._patiently(delete, self._within_s)
        self._source.drop(keys)

    # ---- helpers

    def _get(self, id: str) -> JobInfo:
        return self._patiently(lambda: self._client.get(id), self._within_s)

    def _behind(self, info: JobInfo, keys: list[str]) -> dict[str, str]:
        """Raises Wrong for what can never be right."""
        truth = self._source.counts()
        statuses = {one.status["key"]: one.status for one in info.members if "key" in one.status}
        try:
            return behind(statuses, {key: truth[key] for key in keys})
        except Miscounted as error:
            raise Wrong(self._told(info, str(error))) from None

    def _told(self, info: JobInfo, what: str) -> str:
        """With all that is known of the job."""
        lines = [f"job {info.id}: {what}", f"  {info.state} {info.error}".rstrip()]
        for one in info.members:
            lines.append(f"  {one.name}: {one.state}, attempt {one.attempt}, on {one.executor or 'no executor'}")
            lines.append(f"    {one.status} {one.error}".rstrip())
        with suppress(TiflowError):
            lines += [f"  {one.summary}" for one in self._client.explain(info.id)]
        return "\n".join(lines)

    def _patiently(self, ask: Callable[[], T], within_s: float) -> T:
        """Ask until there is an answer. Raises Wrong after `within_s`, or for a refusal."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return ask()
            except (Unavailable, OutcomeUnknown) as error:
                if time.monotonic() >= deadline:
                    raise Wrong(f"no answer of the cluster within {within_s:g} s: {error}") from None
            except TiflowError as error:
                raise Wrong(f"refused: {error}") from error
            self._pause(POLL_S)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--master-addrs", envvar="TIFLOW_MASTER_ADDRS", default="127.0.0.1:10240", show_default=True)
@click.option("--ca-path", envvar="TIFLOW_CA_PATH", default="", help="PEM: the CA of a cluster with TLS.")
@click.option("--cert-path", envvar="TIFLOW_CERT_PATH", default="", help="PEM: your certificate.")
@click.option("--key-path", envvar="TIFLOW_KEY_PATH", default="", help="PEM: its key.")
@click.option("--duration", default="20m", show_default=True, help="Jobs are begun for so long.")
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1, 64), help="At a time.")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1, 100), help="Of a job, at most.")
@click.option("--within", default="60s", show_default=True, help="A job is exact so soon after its last change.")
@click.option("--pause", default="200ms", show_default=True, help="Between two changes of a key, at most.")
@click.option("--addr", default="127.0.0.1:10260", show_default=True, help="Where the source listens.")
@click.option("--advertise-host", default="", help="By which executors reach it. Default: that of --addr.")
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), help="Draws the jobs. Default: another each time.")
def cli(
    master_addrs: str,
    ca_path: str,
    cert_path: str,
    key_path: str,
    duration: str,
    jobs: int,
    workers: int,
    within: str,
    pause: str,
    addr: str,
    advertise_host: str,
    seed: int | None,
) -> int:
    """Run fake jobs for a while, and check that each of their workers counts exactly, whatever happens to the cluster
    meanwhile. It hurts nothing itself."""
    duration_s = parse_duration_ms(duration, "--duration", 1, 30 * 86_400_000) / 1_000
    within_s = parse_duration_ms(within, "--within", 1_000) / 1_000
    pause_s = parse_duration_ms(pause, "--pause", 0) / 1_000
    host, port = parse_address(addr, "--addr")
    if is_wildcard(advertise_host or host):
        raise InvalidArgument(f"--advertise-host: must be given with --addr {addr}: a host that executors reach")
    url = f"http://{format_address(advertise_host or host, port)}"
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    client = Client(master_addrs, ca_path=ca_path, cert_path=cert_path, key_path=key_path)
    with client, SourceServer((host, port)) as server:
        print(f"{jobs} jobs at a time for {duration}, seed {seed}, source {url}", flush=True)
        chaos = Chaos(client, server.source, url, workers=workers, within_s=within_s, pause_s=pause_s, seed=seed)
        chaos.wait_ready(jobs)
        chaos.run(jobs, duration_s)
    tally = chaos.tally
    print(
        f"all exact: {tally.jobs} jobs, {tally.changes} changes, {tally.attempts} attempts, "
        f"{tally.slowest_s:.1f} s behind at most"
    )
    return 0


def main(args: Iterable[str] | None = None) -> int:
    """Returns: the exit code."""
    try:
        cli.main(None if args is None else list(args), prog_name="python -m tiflow.chaos", standalone_mode=False)
    except Wrong as error:
        print(f"WRONG: {error}", file=sys.stderr)
        return 1
    except TiflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError as error:
        print(f"error: --addr: {error.strerror or error}; give another one", file=sys.stderr)
        return 5
    except (KeyboardInterrupt, click.Abort):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
