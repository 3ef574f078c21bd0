"""The whole, measured: three masters and two executors of one slot each, as real processes on this machine.

    .venv/bin/python -m tests.bench.bench_cluster [--tasks 10000] [--trials 10] [--only throughput]

Every placement and every end is committed by a majority and fsynced. What is printed is the median, or all trials: on
a shared machine single figures mean little.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.cluster.harness import Cluster, eventually

WORK = [str(Path(__file__).resolve().parents[1] / "cluster" / "work")]
ROUNDS = 3
IDLE_S = 10.0
TICKS = os.sysconf("SC_CLK_TCK")

console = Console(width=118, highlight=False)


def throughput(cluster: Cluster, tasks: int) -> Table:
    """No-op `python` tasks from submit to the last result."""
    table = Table("round", "seconds", "tasks/s", "CPU ms per task, all processes", title=f"{tasks:,} no-op tasks")
    client = cluster.client()
    list(client.run_python("marks:echo", range(100), path=WORK).results())  # warm workers
    rates = []
    for number in range(ROUNDS):
        cpu_s, began_s = cpu(family(cluster)), time.monotonic()
        job = client.run_python("marks:echo", range(tasks), path=WORK)
        values = [result.value for result in job.results()]
        took_s = time.monotonic() - began_s
        assert values == list(range(tasks))
        used_ms = (cpu(family(cluster)) - cpu_s) * 1_000 / tasks
        rates.append(tasks / took_s)
        table.add_row(str(number + 1), f"{took_s:.2f}", f"{tasks / took_s:,.0f}", f"{used_ms:.3f}")
    table.add_row("median", "", f"[bold]{statistics.median(rates):,.0f}", "")
    return table


def latency(cluster: Cluster, tasks: int) -> Table:
    """One task at a time, on an idle cluster."""
    client = cluster.client()
    table = Table("what", "p50 ms", "p99 ms", "max ms", title="One task: submit to result")
    for what, submit in (
        ("no-op python task", lambda: client.run_python("marks:echo", [0], path=WORK)),
        ("command true", lambda: client.run_command(["true"])),
    ):
        took_ms = []
        for _ in range(200):
            began_s = time.monotonic()
            list(submit().results())
            took_ms.append((time.monotonic() - began_s) * 1_000)
        took_ms.sort()
        table.add_row(what, f"{statistics.median(took_ms):.1f}", f"{took_ms[197]:.1f}", f"{took_ms[-1]:.1f}")
    return table


def idle(cluster: Cluster, tasks: int) -> Table:
    """Memory and CPU of a cluster that does nothing. An executor counts with its guardian and its worker; what they
    share is counted once (PSS)."""
    table = Table("process", "resident MB", "CPU % of a core", title=f"Idle for {IDLE_S:.0f} s")
    names = [*cluster.masters, *cluster.executors]
    before = {name: cpu(descendants(cluster.pid(name))) for name in names}
    time.sleep(IDLE_S)
    leader = cluster.leader()
    for name in names:
        pids = descendants(cluster.pid(name))
        percent = (cpu(pids) - before[name]) / IDLE_S * 100
        memory = rss_mb(cluster.pid(name)) if name in cluster.masters else sum(map(pss_mb, pids))
        table.add_row(f"{name} (leader)" if name == leader else name, f"{memory:.0f}", f"{percent:.1f}")
    return table


def leader_killed(trials: int) -> Table:
    """From kill -9 of the leader until a job that is submitted then has run, while two tasks run on."""
    table = Table("trial", "new leader after s", "next dispatch after s", "tasks restarted", title="Leader killed")
    dispatches = []
    with Cluster(masters=3, executors=2, slots=2) as cluster:
        client = cluster.client()
        for trial in range(trials):
            job = client.run_python("marks:slow", [4.0] * 2, path=WORK)
            eventually(lambda job=job: job.info().running == 2)
            leader = cluster.wait_leader()
            cluster.kill(leader)
            killed_s = time.monotonic()
            after = client.run_command(["true"], id=f"after-{trial}")
            elected_s = time.monotonic() - killed_s
            after.wait()
            dispatched_s = time.monotonic() - killed_s
            restarts = sum(result.attempt - 1 for result in job.results())
            dispatches.append(dispatched_s)
            table.add_row(str(trial + 1), f"{elected_s:.2f}", f"{dispatched_s:.2f}", str(restarts))
            cluster.restart(leader)
            eventually(lambda: len(cluster.status()) == 3)
            cluster.wait_leader()
            cluster.wait_executors(2)
    table.add_row("median", "", f"[bold]{statistics.median(dispatches):.2f}", f"max {max(dispatches):.2f} s")
    return table


def executor_killed(trials: int) -> Table:
    """From kill -9 of an executor (agent) until its task has started elsewhere, with the default TTL of 5 s."""
    table = Table("trial", "seconds", title="Executor killed: its task runs elsewhere after")
    with Cluster(masters=3, executors=2, slots=2) as cluster:
        client = cluster.client()
        for trial in range(trials):
            job = client.run_python("marks:slow", [2.0, 2.0], path=WORK)
            eventually(lambda job=job: {task.executor for task in job.tasks()} == {"e1", "e2"})
            cluster.kill("e1")
            killed_s = time.monotonic()
            eventually(lambda job=job: any(task.attempt == 2 and task.executor for task in job.tasks()), every_s=0.01)
            table.add_row(str(trial + 1), f"{time.monotonic() - killed_s:.2f}")
            job.wait()
            cluster.restart("e1")
            cluster.wait_executors(2)
    return table


# ---- what /proc says


def descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def family(cluster: Cluster) -> list[int]:
    return [pid for name in (*cluster.masters, *cluster.executors) for pid in descendants(cluster.pid(name))]


def cpu(pids: list[int]) -> float:
    """Seconds, user and system."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1_024


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1_024


SHARED: dict[str, Callable[[Cluster, int], Table]] = {"idle": idle, "throughput": throughput, "latency": latency}
OWN: dict[str, Callable[[int], Table]] = {"leader": leader_killed, "executor": executor_killed}


@click.command()
@click.option("--tasks", default=10_000, show_default=True)
@click.option("--trials", default=10, show_default=True, help="Of a killed leader; a third of it for executors.")
@click.option("--only", type=click.Choice([*SHARED, *OWN]), multiple=True)
def main(tasks: int, trials: int, only: tuple[str, ...]) -> None:
    wanted = only or (*SHARED, *OWN)
    if shared := [name for name in wanted if name in SHARED]:
        with Cluster(masters=3, executors=2) as cluster:
            for name in shared:
                console.print(SHARED[name](cluster, tasks))
    for name in wanted:
        if name in OWN:
            console.print(OWN[name](trials if name == "leader" else max(1, trials // 3)))


if __name__ == "__main__":
    main()
