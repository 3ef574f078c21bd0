"""Real faults on real processes, for a while: `python -m tests.chaos --seconds 120 [--seed 7]` (root, iproute2).

Three masters and two executors, each on a host of its own (a network namespace), and each master on a small disk of
its own. While jobs are submitted all the time, one fault after the other is injected: kill -9, SIGSTOP, a host cut
off, a one-way cut, a leader that reaches executors and no master, lost packets, a slow link, a disk that is nearly or
quite full, a power cut under all masters. At the end everything is healed and judged:

- every submission that was answered ends Finished, with the right results;
- the log has each task's finish once;
- no two attempts of a task were alive at one instant (the tasks themselves write when they live);
- no term had two leaders;
- what clients were told of jobs that they submit, read, pause and cancel is linearizable.
"""

import random
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.history import Histories
from tests.cluster.harness import Cluster, eventually
from tests.cluster.network import Network, can_lose, enter_own_network
from tests.cluster.volumes import MIB, PowerCut
from tests.cluster.work import marks
from tiflow.errors import TiflowError

WORK = [str(Path(marks.__file__).parent)]
MASTERS, EXECUTORS = ["m1", "m2", "m3"], ["e1", "e2"]
HOSTS = MASTERS + EXECUTORS
CONFIG = {"keepalive-ttl": "3s", "keepalive-interval": "300ms", "raft": {"disk-reserve-bytes": 16 * MIB}}
DISK_BYTES = 160 * MIB
SETTLE_S = 90.0

console = Console(highlight=False, width=118)


class Load(threading.Thread):
    """Submits jobs of both kinds until told to stop: quick tasks, and tasks that write that they live."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        super().__init__(name="load")
        self._client = cluster.client(timeout_s=60.0)
        self._directory = cluster.directory
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self.quick: dict[str, int] = {}  #: job id → tasks
        self.holding: dict[str, Path] = {}  #: job id → file of marks
        self.unanswered = 0

    def run(self) -> None:
        number = 0
        while not self._stopping.wait(self._random.uniform(0.2, 0.8)):
            number += 1
            try:
                if number % 3:
                    count = self._random.randrange(1, 400)
                    self.quick[self._client.run_python("marks:echo", range(count), path=WORK).id] = count
                else:
                    file = self._directory / f"marks-{number}"
                    item = [str(file), self._random.uniform(0.1, 3.0)]
                    self.holding[self._client.run_python("marks:hold", [item], path=WORK).id] = file
            except TiflowError as error:
                self.unanswered += 1
                console.print(f"          [dim]a submission was not answered: {error}[/dim]")

    def stop(self) -> None:
        self._stopping.set()
        self.join()


class Nemesis:
    """One fault at a time, healed before the next."""

    def __init__(self, cluster: Cluster, network: Network, power: PowerCut, seed: int) -> None:
        self._cluster = cluster
        self._network = network
        self._power = power
        self._untried: list[Callable[[], str]] = []
        self._random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        self._faults: list[Callable[[], str]] = [
            self._kill,
            self._kill_leader,
            self._pause,
            self._isolate,
            self._one_way,
            self._leader_without_followers,
            self._slow,
            self._disk_low,
            self._disk_full,
            self._power_cut,
            *([self._lossy] if can_lose() else []),
        ]
        if not can_lose():
            console.print("iptables is not installed: no packets are lost by chance")

    def step(self) -> None:
        if not self._untried:  # each of them, before one is tried again
            self._untried = self._random.sample(self._faults, len(self._faults))
        fault = self._untried.pop()
        what = fault()
        self.injected[fault.__name__.removeprefix("_")] += 1
        console.print(f"{time.strftime('%H:%M:%S')}  {what}")
        time.sleep(self._random.uniform(0.5, 6.0))
        self.heal()
        time.sleep(self._random.uniform(0.5, 3.0))

    def heal(self) -> None:
        self._network.heal()
        for name in MASTERS:
            self._power.ballast(name).remove()
        for name in HOSTS:
            if self._cluster.running(name):
                self._cluster.resume(name)
            else:
                self._cluster.restart(name)

    def _leader(self) -> str:
        return self._cluster.leader() or self._random.choice(MASTERS)

    def _kill(self) -> str:
        name = self._random.choice(HOSTS)
        self._cluster.kill(name)
        return f"killed {name}"

    def _kill_leader(self) -> str:
        name = self._leader()
        self._cluster.kill(name)
        return f"killed the leader, {name}"

    def _pause(self) -> str:
        name = self._random.choice([self._leader(), *HOSTS])
        self._cluster.pause(name)
        return f"paused {name}"

    def _isolate(self) -> str:
        name = self._random.choice([self._leader(), *HOSTS])
        self._network.isolate(name, HOSTS)
        return f"cut {name} off"

    def _one_way(self) -> str:
        source, target = self._random.sample(HOSTS, 2)
        self._network.cut(source, target)
        return f"what {source} sends to {target} is lost"

    def _leader_without_followers(self) -> str:
        name = self._leader()
        self._network.isolate(name, MASTERS)
        return f"cut the leader, {name}, off from the masters, not from the executors"

    def _lossy(self) -> str:
        name = self._random.choice([self._leader(), *HOSTS])
        share = self._random.uniform(0.02, 0.3)
        self._network.lose(name, share)
        return f"{share:.0%} of what is sent to {name} is lost"

    def _slow(self) -> str:
        name = self._random.choice([self._leader(), *HOSTS])
        self._network.slow(name)
        return f"{name} has a slow link"

    def _disk_low(self) -> str:
        name = self._leader()
        self._power.ballast(name).leave(8 * MIB)
        return f"the disk of the leader, {name}, is nearly full"

    def _disk_full(self) -> str:
        name = self._random.choice([self._leader(), *MASTERS])
        self._power.ballast(name).leave(0)
        return f"the disk of {name} is full"

    def _power_cut(self) -> str:
        for name in MASTERS:
            self._cluster.pause(name)
        self._power.cut()
        for name in MASTERS:
            self._cluster.kill(name)
        self._power.restore()
        return "all masters lost power"


def judge(cluster: Cluster, load: Load) -> list[str]:
    problems: list[str] = []
    client = cluster.client(timeout_s=60.0)
    for id in (*load.quick, *load.holding):
        state = client.wait(id, timeout_s=SETTLE_S).state
        if state != "Finished":
            problems.append(f"job {id} is {state}")
    for id, count in load.quick.items():
        if [result.value for result in client.results(id)] != list(range(count)):
            problems.append(f"job {id}: wrong results")
        finishes = Counter(i for ended in client.history(id) for i in range(ended.start, ended.stop))
        if finishes != Counter(range(count)):
            problems.append(f"job {id}: finishes were recorded {dict(finishes)}")
    for id, file in load.holding.items():
        problems += [f"job {id}: {text}" for text in overlaps(file)]
    return problems + two_leaders(cluster)


def overlaps(file: Path) -> list[str]:
    spans: dict[int, tuple[float, float]] = {}
    for line in marks.read(file):
        first, _ = spans.get(line["attempt"], (line["at"], 0.0))
        spans[line["attempt"]] = (first, line["at"])
    return [
        f"attempt {one} was alive {end - begin:.3f} s into attempt {two}"
        for (one, (_, end)), (two, (begin, _)) in pairwise(sorted(spans.items()))
        if end >= begin
    ]


def two_leaders(cluster: Cluster) -> list[str]:
    leaders: dict[int, set[str]] = {}
    for name in MASTERS:
        for term in re.findall(r"raft_role .*role=leader term=(\d+)", cluster.log(name)):
            leaders.setdefault(int(term), set()).add(name)
    return [f"term {term} had the leaders {names}" for term, names in leaders.items() if len(names) > 1]


@click.command()
@click.option("--seconds", default=120.0, show_default=True)
@click.option("--seed", default=0, help="Of the choice of faults; 0: draw one.")
def main(seconds: float, seed: int) -> None:
    enter_own_network()
    seed = seed or random.SystemRandom().randrange(1, 1_000_000)
    console.print(f"seed {seed}")
    network = Network(HOSTS)
    directory = Path(tempfile.mkdtemp(prefix="tiflow-chaos-"))
    with ExitStack() as stack:
        power = PowerCut(directory, MASTERS, DISK_BYTES)
        stack.callback(power.close)
        cluster = stack.enter_context(
            Cluster(masters=3, executors=2, slots=2, data_dir=directory, master_config=CONFIG, network=network)
        )
        load, nemesis = Load(cluster, seed), Nemesis(cluster, network, power, seed)
        load.start()
        histories = Histories(cluster, seed)
        try:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                nemesis.step()
        finally:
            histories.stop()
            load.stop()
            nemesis.heal()
        eventually(lambda: len(cluster.status()) == len(MASTERS), within_s=SETTLE_S)
        cluster.wait_leader(within_s=SETTLE_S)
        problems = judge(cluster, load)
        if anomaly := histories.anomaly():
            problems.append(anomaly)
    if problems:
        console.print(f"logs are in {directory}")
    else:
        shutil.rmtree(directory)
    jobs, tasks = len(load.quick) + len(load.holding), sum(load.quick.values()) + len(load.holding)
    console.print(f"{sum(nemesis.injected.values())} faults: {dict(nemesis.injected)}")
    console.print(f"{jobs} jobs, {tasks:,} tasks, {load.unanswered} submissions without an answer")
    console.print(f"{len(histories.operations)} operations in the history, {histories.unknown} without an answer")
    for problem in problems:
        console.print(f"[red]{problem}[/red]")
    console.print("all promises were kept" if not problems else f"{len(problems)} promises were broken; seed {seed}")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
