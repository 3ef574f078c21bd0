"""Framework jobs: how soon a new job master is in charge, and how soon all counts are exact, after each fault.

    .venv/bin/python -m tests.bench.bench_framework [--trials 20] [--only executor] [--outage 60]

Three masters and three executors, as real processes on this machine, and for each trial a `fake` job of four workers
whose source changes after the fault. Exit code 1 if a promise was broken.
"""

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.cluster.fake_job import FakeJob
from tests.cluster.harness import Cluster, eventually
from tests.mysql import new_server

TTL_S = 3.0
CONFIG = {"keepalive-ttl": "3s", "keepalive-interval": "300ms"}
EXACT_S = 60.0
IN_CHARGE_S = 2.0

console = Console(width=118, highlight=False)


@dataclass
class Outcome:
    """Of one kind of fault."""

    what: str
    promise: str
    in_charge_s: list[float] = field(default_factory=list)  #: from the fault until a new job master has reported
    exact_s: list[float] = field(default_factory=list)  #: … until all counts are exact
    broken: list[str] = field(default_factory=list)


class Trial:
    """One job, from before the fault to its end."""

    def __init__(self, outcome: Outcome, cluster: Cluster, job: FakeJob) -> None:
        self.cluster = cluster
        self.job = job
        self.before = job.members()
        self._outcome = outcome
        self._began_s = time.monotonic()

    def begin(self) -> None:
        self._began_s = time.monotonic()

    @property
    def host(self) -> str:
        """The executor of the job master."""
        return self.before["master"].executor

    def wait_in_charge(self, within_s: float) -> None:
        """Until a later attempt of the job master has reported."""
        earlier = self.before["master"].attempt

        def is_new() -> bool:
            return self.job.is_in_charge() and self.job.attempts()["master"] > earlier

        eventually(is_new, within_s=EXACT_S, every_s=0.02, retry=(AssertionError, KeyError))
        took_s = time.monotonic() - self._began_s
        self._outcome.in_charge_s.append(took_s)
        if took_s > within_s:
            self._outcome.broken.append(f"a new job master after {took_s:.2f} s, not {within_s:g} s")

    def wait_exact(self) -> None:
        try:
            self.job.assert_exact(EXACT_S)
        except (AssertionError, RuntimeError) as error:
            self._outcome.broken.append(str(error))
            return
        self._outcome.exact_s.append(time.monotonic() - self._began_s)

    def check_attempts(self, *, but: str = "") -> None:
        """Nobody was restarted, unless it was on the executor `but`, or is the job master and that is not empty."""
        for name, member in self.job.members().items():
            was = self.before[name]
            if member.attempt != was.attempt and (not but or (was.executor != but and name != "master")):
                self._outcome.broken.append(f"{name} was restarted (attempt {member.attempt}), on {was.executor}")


def process_dies(trial: Trial) -> None:
    trial.job.kill_process("master")
    trial.wait_in_charge(EXACT_S)
    trial.wait_exact()
    trial.check_attempts(but="no executor")


def executor_dies(trial: Trial) -> None:
    trial.cluster.kill(trial.host)
    trial.wait_in_charge(IN_CHARGE_S)
    trial.wait_exact()
    trial.check_attempts(but=trial.host)
    trial.cluster.restart(trial.host)


def host_dies(trial: Trial) -> None:
    trial.cluster.kill_host(trial.host)
    trial.begin()
    trial.wait_in_charge(TTL_S + IN_CHARGE_S)
    trial.wait_exact()
    trial.check_attempts(but=trial.host)
    trial.cluster.restart(trial.host)


def leader_dies(trial: Trial) -> None:
    leader = trial.cluster.wait_leader()
    trial.begin()
    trial.cluster.kill(leader)
    trial.wait_exact()
    trial.check_attempts()
    trial.cluster.restart(leader)


def leader_gives_way(trial: Trial) -> None:
    trial.cluster.cli("raft", "transfer", check=True)
    trial.wait_exact()
    trial.check_attempts()


def masters_are_restarted(trial: Trial) -> None:
    for name in trial.cluster.masters:
        trial.cluster.kill(name, signal.SIGTERM)
        trial.cluster.restart(name)
        wait_masters(trial.cluster)
    trial.begin()
    trial.wait_exact()
    trial.check_attempts()


def executor_is_restarted(trial: Trial) -> None:
    trial.cluster.kill(trial.host, signal.SIGTERM)
    trial.begin()
    trial.cluster.restart(trial.host)
    trial.wait_exact()
    trial.check_attempts(but=trial.host)


def everything_is_restarted(trial: Trial) -> None:
    cluster = trial.cluster
    for name in (*cluster.executors, *cluster.masters):
        cluster.kill(name)
    trial.begin()
    for name in (*cluster.masters, *cluster.executors):
        cluster.restart(name)
    trial.wait_exact()


FAULTS: dict[str, tuple[Callable[[Trial], None], str, str]] = {
    "process": (process_dies, "the job master's process is killed", "exact, no worker restarted"),
    "executor": (executor_dies, "its executor's agent is killed", f"in charge < {IN_CHARGE_S:g} s, exact"),
    "host": (host_dies, "its whole executor is killed", f"in charge < TTL + {IN_CHARGE_S:g} s, exact"),
    "leader": (leader_dies, "the leader is killed", "exact, nobody restarted"),
    "transfer": (leader_gives_way, "the leadership is transferred", "exact, nobody restarted"),
    "masters": (masters_are_restarted, "each master was restarted", "exact, nobody restarted"),
    "restart": (executor_is_restarted, "its executor is restarted in order", "exact, nobody elsewhere restarted"),
    "everything": (everything_is_restarted, "all processes are killed, and started", "exact"),
}


def wait_masters(cluster: Cluster) -> None:
    """Until all are up: two that are away at a time would cost the quorum, and with it the leases."""
    eventually(lambda: len(cluster.status()) == len(cluster.masters), within_s=30)
    cluster.wait_leader()


@contextmanager
def a_cluster(url: str) -> Iterator[Cluster]:
    with Cluster(masters=3, executors=3, slots=3, master_config=CONFIG, metadata_url=url) as cluster:
        yield cluster


def measure(cluster: Cluster, fault: str, trials: int) -> Outcome:
    work, what, promise = FAULTS[fault]
    outcome = Outcome(what, promise)
    for _ in range(trials):
        with FakeJob(cluster) as job:
            job.wait_running()
            job.assert_exact()
            work(Trial(outcome, cluster, job))
        wait_masters(cluster)
        cluster.wait_executors(len(cluster.executors), within_s=30)
    return outcome


def database_away(outage_s: float, trials: int) -> Outcome:
    """From its return."""
    outcome = Outcome(f"the database was away for {outage_s:g} s", "exact, nobody restarted")
    server = new_server()
    try:
        server.start()
        with a_cluster(server.create_database("tiflow")) as cluster:
            for _ in range(trials):
                with FakeJob(cluster) as job:
                    job.wait_running()
                    job.assert_exact()
                    trial = Trial(outcome, cluster, job)
                    server.kill()
                    away_s = time.monotonic()
                    while time.monotonic() - away_s < outage_s:
                        job.change(1)
                        eventually(job.counts_are_right, within_s=EXACT_S)
                        time.sleep(0.5)
                    server.start()
                    trial.begin()
                    trial.wait_exact()
                    trial.check_attempts()
    finally:
        server.remove()
    return outcome


def figures(values_s: list[float]) -> tuple[str, str]:
    return (f"{statistics.median(values_s):.2f}", f"{max(values_s):.2f}") if values_s else ("", "")


@click.command()
@click.option("--trials", default=20, show_default=True)
@click.option("--outage", default=60.0, show_default=True, help="How long the database is away, in seconds.")
@click.option("--outages", default=2, show_default=True, help="How often.")
@click.option("--only", type=click.Choice([*FAULTS, "database"]), multiple=True)
def main(trials: int, outage: float, outages: int, only: tuple[str, ...]) -> None:
    wanted = only or (*FAULTS, "database")
    outcomes: list[Outcome] = []
    if faults := [fault for fault in FAULTS if fault in wanted]:
        file = Path(tempfile.mkdtemp(prefix="tiflow-bench-")) / "metadata.db"
        with a_cluster(f"sqlite:///{file}") as cluster:
            for fault in faults:
                outcomes.append(measure(cluster, fault, trials))
                console.print(outcomes[-1].what, *figures(outcomes[-1].exact_s), *outcomes[-1].broken)
    if "database" in wanted:
        outcomes.append(database_away(outage, outages))
    table = Table(
        "fault", "in charge: median", "max s", "exact: median", "max s", "trials", "promise", "kept",
        title="4 fake workers on 3 masters and 3 executors",
    )  # fmt: skip
    for one in outcomes:
        kept = "yes" if not one.broken else f"no: {one.broken[0]} ({len(one.broken)})"
        count = max(len(one.exact_s), len(one.in_charge_s))
        table.add_row(
            one.what, *figures(one.in_charge_s), *figures(one.exact_s), str(count), one.promise, kept
        )  # fmt: skip
    console.print(table)
    sys.exit(any(one.broken for one in outcomes))


if __name__ == "__main__":
    main()
