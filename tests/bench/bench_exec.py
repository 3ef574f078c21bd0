"""Executors that die, hang, freeze or are cut off: how fast their tasks go on elsewhere, and that none runs twice.

    .venv/bin/python -m tests.bench.bench_exec [--trials 20] [--only killed] [--only memory]

Real processes on this machine; those that are cut off are on hosts of their own (network namespaces: root, iproute2).
Tasks write down when they are alive, every 20 ms and in their first moment: an attempt that began before the one
before it was seen for the last time has overlapped it. Exit code 1 if a promise was broken.
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import tiflow
from tests.bench.bench_cluster import WORK, descendants, rss_mb
from tests.cluster.harness import Cluster, eventually
from tests.cluster.network import Network, enter_own_network
from tests.cluster.work import marks

TTL_S = 3.0
LEASES = {"keepalive-ttl": "3s", "keepalive-interval": "300ms"}
TASKS = 8  #: on the executor that something happens to

console = Console(width=118, highlight=False)


@dataclass
class Outcome:
    """Of one kind of trial: what was measured (s), and what went wrong."""

    what: str
    promise: str
    measured_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Attempts:
    """What the tasks of a job wrote of themselves."""

    def __init__(self, file: Path) -> None:
        self.spans: dict[tuple[int, int], tuple[float, float]] = {}
        for line in marks.read(file):
            key = (line["index"], line["attempt"])
            first, _ = self.spans.get(key, (line["at"], 0.0))
            self.spans[key] = (first, line["at"])

    def began(self, attempt: int) -> dict[int, float]:
        return {index: first for (index, number), (first, _) in self.spans.items() if number == attempt}

    def gaps(self) -> list[float]:
        """Seconds between the last moment of one attempt and the first of the next; negative: they overlapped."""
        by_task: dict[int, list[tuple[int, float, float]]] = {}
        for (index, attempt), (first, last) in self.spans.items():
            by_task.setdefault(index, []).append((attempt, first, last))
        return [two[1] - one[2] for attempts in by_task.values() for one, two in pairwise(sorted(attempts))]


def running_on(cluster: Cluster, client: tiflow.Client, seconds: float) -> tuple[tiflow.JobHandle, Path, set[int]]:
    """A job of which TASKS tasks run on e1; and these."""
    for _ in range(5):
        file = Path(tempfile.mkdtemp(dir=cluster.directory)) / "marks"
        job = client.run_python("marks:hold", [[str(file), seconds]] * (2 * TASKS + 1), path=WORK)
        eventually(lambda file=file: len(Attempts(file).spans) == 2 * TASKS + 1, within_s=30)
        mine = {task.index for task in job.tasks(limit=1_000) if task.executor == "e1"}
        if len(mine) == TASKS:
            return job, file, mine
        job.cancel()  # on a loaded machine e1 may have been without a session for a moment
        job.wait(timeout_s=60)
        cluster.wait_executors(2, within_s=30)
    raise AssertionError(f"{len(mine)} tasks on e1, not {TASKS}")


@contextmanager
def two_executors(network: Network | None = None) -> Iterator[Cluster]:
    """Of 2 TASKS + 1 tasks e2 gets TASKS + 1, as it has most room; e1 gets the others, for which e2 has room left."""
    with Cluster(masters=3, executors=1, slots=TASKS + 1, master_config=LEASES, network=network) as cluster:
        cluster.add_executor("e2", slots=2 * TASKS + 1)
        cluster.wait_executors(2)
        yield cluster


def elsewhere(
    what: str, promise: str, trials: int, harm: Callable[[Cluster], None], heal: Callable[[Cluster], None],
    network: Network | None = None, seconds: float = 60.0,
) -> Outcome:  # fmt: skip
    """Harm e1 while it has TASKS tasks; measure until all of them run elsewhere."""
    outcome = Outcome(what, promise)
    with two_executors(network) as cluster:
        client = cluster.client()
        for _ in range(trials):
            job, file, mine = running_on(cluster, client, seconds)
            began_s = time.clock_gettime(time.CLOCK_MONOTONIC)
            harm(cluster)
            eventually(lambda file=file, mine=mine: Attempts(file).began(2).keys() >= mine, within_s=60)
            outcome.measured_s.append(max(Attempts(file).began(2)[index] for index in mine) - began_s)
            heal(cluster)
            job.cancel()
            job.wait(timeout_s=60)
            cluster.wait_executors(2, within_s=30)
            gaps = Attempts(file).gaps()
            outcome.broken += [f"two attempts overlapped by {-gap * 1_000:.0f} ms" for gap in gaps if gap <= 0]
            outcome.broken += [f"{len(gaps)} attempts came after another one, not {TASKS}"] * (len(gaps) != TASKS)
    return outcome


def killed(trials: int, network: Network) -> Outcome:
    return elsewhere(
        "agent killed: its 8 tasks run elsewhere", "median < 1 s, no overlap", trials,
        lambda cluster: cluster.kill("e1") and None, lambda cluster: cluster.restart("e1"),
    )  # fmt: skip


def host_killed(trials: int, network: Network) -> Outcome:
    return elsewhere(
        "agent, guardian and tasks killed", f"TTL and margin ({TTL_S * 1.1 + 0.5:.1f} s), no overlap", trials,
        lambda cluster: cluster.kill_host("e1"), lambda cluster: cluster.restart("e1"),
    )  # fmt: skip


def stopped(trials: int, network: Network) -> Outcome:
    return elsewhere(
        "agent stopped (SIGSTOP) beyond the TTL", "no overlap", trials,
        lambda cluster: cluster.pause("e1"), lambda cluster: cluster.resume("e1"),
    )  # fmt: skip


def cut_off(trials: int, network: Network) -> Outcome:
    return elsewhere(
        "executor cut off from all masters", "no overlap", trials,
        lambda cluster: network.isolate("e1", cluster.masters), lambda cluster: network.heal(), network,
    )  # fmt: skip


def frozen(trials: int, network: Network) -> Outcome:
    """All processes of e1 are stopped, and continued when its tasks run elsewhere: how long do the old ones live?"""
    outcome = Outcome("whole executor frozen and continued: old attempts dead", "median <= 0.1 s, max 0.5 s")
    with two_executors() as cluster:
        client = cluster.client()
        for _ in range(trials):
            job, file, mine = running_on(cluster, client, 8.0)
            pids = descendants(cluster.pid("e1"))
            old = {line["pid"] for line in marks.read(file) if line["index"] in mine}
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            eventually(lambda file=file, mine=mine: Attempts(file).began(2).keys() >= mine, within_s=60)
            began_s = time.monotonic()
            for pid in pids:
                with suppress(ProcessLookupError):  # the guardian was faster
                    os.kill(pid, signal.SIGCONT)
            eventually(lambda old=old: not any(map(alive, old)), within_s=10, every_s=0.001)
            outcome.measured_s.append(time.monotonic() - began_s)
            values = {result.index: result.value for result in job.results()}
            late = [index for index, value in values.items() if value != 1 + (index in mine)]
            outcome.broken += [f"task {index} ended as attempt {values[index]}" for index in late]
            cluster.wait_executors(2, within_s=30)
    if max(outcome.measured_s) > 0.5 or statistics.median(outcome.measured_s) > 0.1:
        outcome.broken.append("an old attempt lived too long")
    return outcome


def leader_killed(trials: int, network: Network) -> Outcome:
    """The leader is killed while 200 tasks run and end: each runs once, and no end is lost."""
    outcome = Outcome("leader killed while 200 tasks run: a new one leads", "no restart, no event lost")
    script = "echo >$0/$TIFLOW_INDEX.$TIFLOW_ATTEMPT; exec sleep {item}"
    with Cluster(masters=3, executors=2, slots=100) as cluster:
        client = cluster.client()
        for _ in range(trials):
            directory = tempfile.mkdtemp(dir=cluster.directory)
            seconds = [f"{random.uniform(0.5, 4):.2f}" for _ in range(200)]
            job = client.run_command(["sh", "-c", script, directory], items=seconds)
            eventually(lambda directory=directory: len(os.listdir(directory)) == 200, within_s=30)
            leader = cluster.wait_leader()
            cluster.kill(leader)
            began_s = time.monotonic()
            cluster.wait_leader()
            outcome.measured_s.append(time.monotonic() - began_s)
            info = job.wait(timeout_s=60)
            names = sorted(os.listdir(directory))
            if info.succeeded != 200 or names != sorted(f"{index}.1" for index in range(200)):
                outcome.broken.append(f"{info.succeeded} of 200 succeeded, {len(names)} attempts")
            cluster.restart(leader)
            eventually(lambda: len(cluster.status()) == 3)
            cluster.wait_leader()
    return outcome


def memory(tasks: int) -> Table:
    """Resident memory after the same number of no-op tasks again. The first round is not counted: what a worker
    shares with its guardian becomes its own as it is touched."""
    table = Table("process", "MB before", "MB after", "growth", title=f"{tasks:,} no-op tasks, run again")
    config = {"worker": {"tasks-max": 0}}
    with Cluster(masters=3, executors=2, executor_config=config) as cluster:
        client = cluster.client()
        seen: list[dict[str, float]] = []
        for _ in range(3):
            job = client.run_python("marks:echo", range(tasks), path=WORK)
            assert job.wait(timeout_s=600).succeeded == tasks
            client.delete(job.id)
            time.sleep(2)  # the projector and the journal come to rest
            found = {f"{name} (leader)" if name == cluster.leader() else name: rss_mb(cluster.pid(name))
                     for name in cluster.masters}  # fmt: skip
            for name in cluster.executors:
                agent, _reaper, guardian, *workers = descendants(cluster.pid(name))
                found |= {f"{name} agent": rss_mb(agent), f"{name} guardian": rss_mb(guardian)}
                found |= {f"{name} worker": rss_mb(worker) for worker in workers}
            seen.append(found)
    for name, before in seen[1].items():
        after = seen[2].get(name, 0.0)
        table.add_row(name, f"{before:.1f}", f"{after:.1f}", f"{(after / before - 1) * 100:+.1f} %")
    return table


def round_trip() -> Table:
    """One no-op task on an idle cluster, beside two commits that reach the disk one after the other."""
    table = Table("what", "p50 ms", "p99 ms", title="Submit to result, one at a time")
    with Cluster(masters=3, executors=2) as cluster:
        client = cluster.client()

        def task() -> None:
            list(client.run_python("marks:echo", [0], path=WORK).results())

        fd = os.open(cluster.directory / "fsync", os.O_WRONLY | os.O_CREAT)

        def commits() -> None:
            for _ in range(2):
                os.write(fd, bytes(200))
                os.fdatasync(fd)

        for what, work in (("no-op task", task), ("two fdatasync of 200 bytes", commits)):
            took_ms = []
            for _ in range(300):
                began_s = time.monotonic()
                work()
                took_ms.append((time.monotonic() - began_s) * 1_000)
            took_ms.sort()
            table.add_row(what, f"{statistics.median(took_ms):.2f}", f"{took_ms[297]:.2f}")
        os.close(fd)
    return table


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


TRIALS: dict[str, Callable[[int, Network], Outcome]] = {
    "killed": killed, "host": host_killed, "stopped": stopped, "cut": cut_off, "frozen": frozen,
    "leader": leader_killed,
}  # fmt: skip
OTHERS = ("memory", "round-trip")


@click.command()
@click.option("--trials", default=20, show_default=True)
@click.option("--tasks", default=100_000, show_default=True, help="For the growth of memory.")
@click.option("--only", type=click.Choice([*TRIALS, *OTHERS]), multiple=True)
def main(trials: int, tasks: int, only: tuple[str, ...]) -> None:
    enter_own_network()
    network = Network(["m1", "m2", "m3", "e1", "e2"])
    wanted = only or (*TRIALS, *OTHERS)
    outcomes = [TRIALS[name](trials, network) for name in TRIALS if name in wanted]
    if outcomes:
        table = Table(
            "what", "median s", "max s", "trials", "promise", "kept", title=f"{TASKS} tasks on the executor"
        )
        for one in outcomes:
            kept = "yes" if not one.broken else f"no: {one.broken[0]} ({len(one.broken)})"
            table.add_row(
                one.what, f"{statistics.median(one.measured_s):.2f}", f"{max(one.measured_s):.2f}",
                str(len(one.measured_s)), one.promise, kept,
            )  # fmt: skip
        console.print(table)
    if "memory" in wanted:
        console.print(memory(tasks))
    if "round-trip" in wanted:
        console.print(round_trip())
    sys.exit(any(one.broken for one in outcomes))


if __name__ == "__main__":
    main()
