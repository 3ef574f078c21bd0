"""What consensus costs and gives: three of our nodes beside three of etcd's, with fsync.

Ours runs with mutual TLS unless --plain; what is proposed is proposed in the leader's process, as a master does it.
etcd runs without TLS and with its defaults, and is asked at its leader by its own Go client, a process of its own.
Both keep 10,000 keys; a record is a key of 8 and a value of 92 bytes. Rates are medians of rounds that alternate
between the two, so that what else the machine does hits both.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from tests.bench.raft.etcd import Etcd, prepare
from tests.bench.raft.group import NAMES, NEVER, Group

OUTSTANDING = (1, 64, 256)
BATCHES = ((100, 4), (1000, 4))  # records in one entry or transaction, and how many outstanding
IDLE_S = 10.0
STATE_MB = 64
BEHIND = 100_000


class Row(Struct):
    """One line of the table: what was measured, ours, etcd's, and the goal."""

    what: str
    ours: dict[str, float]
    show: Callable[[dict[str, float]], str]
    goal: Callable[[dict[str, float], dict[str, float] | None], tuple[str, bool | None]] = lambda _ours, _theirs: (
        "",
        None,
    )
    etcd: dict[str, float] | None = None


def rate(figures: dict[str, float]) -> str:
    return f"{figures['per_s']:,.0f}/s  p50 {figures['p50_ms']:.2f}  p99 {figures['p99_ms']:.2f} ms"


def spread(figures: dict[str, float]) -> str:
    return f"median {figures['median'] * 1000:,.0f}  max {figures['max'] * 1000:,.0f} ms"


def seconds(figures: dict[str, float]) -> str:
    return f"{figures['secs']:.2f} s"


def at_least(factor: float, key: str = "per_s") -> Any:
    def judge(ours: dict[str, float], etcd: dict[str, float] | None) -> tuple[str, bool | None]:
        if etcd is None:
            return f"≥ {factor}x etcd", None
        ratio = ours[key] / etcd[key]
        return f"{ratio:.1f}x etcd (≥ {factor})", ratio >= factor

    return judge


def at_most_times(factor: float, key: str) -> Any:
    def judge(ours: dict[str, float], etcd: dict[str, float] | None) -> tuple[str, bool | None]:
        if etcd is None:
            return f"≤ {factor}x etcd", None
        ratio = ours[key] / etcd[key]
        return f"{ratio:.2f}x etcd's {key.split('_')[0]} (≤ {factor})", ratio <= factor

    return judge


def below(**limits: float) -> Any:
    def judge(ours: dict[str, float], _: dict[str, float] | None) -> tuple[str, bool | None]:
        words = ", ".join(f"{key} < {limit:g}" for key, limit in limits.items())
        return words, all(ours[key] < limit for key, limit in limits.items())

    return judge


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def of(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "max": max(times)}


# --- ours


async def idle(group: Group) -> Row:
    await asyncio.sleep(2)
    before = {name: child.cpu_s for name, child in group.children.items()}
    await asyncio.sleep(IDLE_S)
    busiest = max(child.cpu_s - before[name] for name, child in group.children.items()) / IDLE_S * 100
    largest = max(child.rss_mib for child in group.children.values())
    return Row(
        "idle, busiest member",
        {"cpu": busiest, "mib": largest},
        lambda figures: f"{figures['cpu']:.1f} % of a core, {figures['mib']:.0f} MiB",
        below(cpu=2, mib=60),
    )


async def ours_at(group: Group, leader: str, records: int, outstanding: int, secs: float) -> dict[str, float]:
    work = f"propose {outstanding} {secs}" if records == 1 else f"batch {records} {outstanding} {secs}"
    figures = await group.ask(leader, work, "per_s")
    return figures | {"per_s": figures["per_s"] * records}


async def speed(group: Group, leader: str, etcd: Etcd | None, arguments: argparse.Namespace) -> list[Row]:
    """Rates of both, in turns."""
    rows = []
    for records, outstanding in (*((1, outstanding) for outstanding in OUTSTANDING), *BATCHES):
        mine, theirs = [], []
        for _ in range(arguments.rounds):
            mine.append(await ours_at(group, leader, records, outstanding, arguments.secs))
            if etcd is not None:
                figures = await etcd.load(records=records, outstanding=outstanding, secs=arguments.secs)
                theirs.append(figures | {"per_s": figures["per_s"] * records})
        what = "commits" if records == 1 else f"records, {records:,} a batch"
        goal = at_most_times(1.3, "p50_ms") if outstanding == 1 else at_least(3 if records != 100 else 1)
        etcd_median = median_of(theirs) if theirs else None
        rows.append(Row(f"{what}, {outstanding} outstanding", median_of(mine), rate, goal, etcd_median))
    for outstanding in (1, 64):
        figures = await group.ask(leader, f"barrier {outstanding} {arguments.secs}", "per_s")
        rows.append(Row(f"read barriers, {outstanding} outstanding", figures, rate))
    return rows


async def failover(group: Group, leader: str, trials: int) -> tuple[str, Row]:
    times = []
    for _ in range(trials):
        await asyncio.sleep(1.5)
        old = leader
        killed_at = group.children[old].kill()
        leader, event = await group.expect("event", "committed")
        times.append(event["at"] - killed_at)
        group.start(old)
    goal = below(median=0.8, max=1.5)
    return leader, Row(f"leader killed: next commit, {trials} trials", of(times), spread, goal)


async def transfers(group: Group, leader: str, trials: int) -> Row:
    times = []
    await asyncio.sleep(1)
    for _ in range(trials):
        await asyncio.sleep(0.3)
        group.children[leader].send("transfer")
        began = at = 0.0
        while not (began and at):
            name, event = await group.expect_any("transfer", "event")
            began = event.get("transfer", began)
            if event.get("event") == "committed":
                leader, at = name, event["at"]
        times.append(at - began)
    return Row(f"leader handed over: next commit, {trials} trials", of(times), spread, below(median=0.1))


async def at_size(directory: Path, secs: float, *, plain: bool) -> list[Row]:
    """A state of 64 MB: snapshots taken, restored and sent."""
    group = Group(directory, plain=plain, snapshot_entries=NEVER)
    try:
        leader = await group.start_all()
        follower = next(name for name in NAMES if name != leader)
        await group.ask(leader, f"fill {STATE_MB} 0", "entries")
        group.children[leader].send(f"propose 1 {max(secs, 5.0)}")
        await asyncio.sleep(1)
        for child in group.children.values():
            child.send("snapshot")
        while_taken = await group.ask(leader, "reach 0", "per_s")
        await asyncio.sleep(1)

        count = (await group.ask(leader, f"fill 0 {BEHIND}", "entries", timeout_s=300))["entries"]
        await group.ask(follower, f"reach {count}", "reached")
        group.children[follower].kill()
        restarted_at = group.start(follower)
        back = await group.ask(follower, f"reach {count}", "reached")

        await group.ask(leader, "snapshot", "snapshot")  # so that the log does not have it all
        await asyncio.sleep(2)
        group.children[follower].kill()
        group.wipe(follower)
        empty_at = group.start(follower)
        filled = await group.ask(follower, f"reach {count}", "reached")
    finally:
        group.stop()
    size = f"{STATE_MB} MB"
    return [
        Row(
            f"commits, 1 outstanding, while {size} are saved",
            while_taken,
            lambda figures: (
                f"p50 {figures['p50_ms']:.2f}  p99 {figures['p99_ms']:.1f}  max {figures['max_ms']:.0f} ms"
            ),
            below(p99_ms=50, max_ms=200),
        ),
        Row(f"restart: {size} and {BEHIND:,} entries", {"secs": back["at"] - restarted_at}, seconds, below(secs=3)),
        Row(f"an empty follower has {size}", {"secs": filled["at"] - empty_at}, seconds, below(secs=2)),
    ]


async def ours_and_etcd(directory: Path, etcd: Etcd | None, arguments: argparse.Namespace) -> list[Row]:
    group = Group(directory / "group", plain=arguments.plain)
    try:
        leader = await group.start_all()
        rows = [await idle(group), *await speed(group, leader, etcd, arguments)]
        leader, killed = await failover(group, leader, arguments.trials)
        rows += [killed, await transfers(group, leader, arguments.trials)]
    finally:
        group.stop()
    if etcd is not None:
        cpu, mib = await etcd.idle(IDLE_S)
        rows[0].etcd = {"cpu": cpu, "mib": mib}
        rows[-2].etcd, rows[-1].etcd = await etcd_changes(etcd, arguments.trials)
        etcd.stop()
    return rows + await at_size(directory / "size", arguments.secs, plain=arguments.plain)


async def etcd_changes(etcd: Etcd, trials: int) -> tuple[dict[str, float], dict[str, float]]:
    """Its leader killed, and handed over."""
    killed, handed = [], []
    for _ in range(trials):
        await asyncio.sleep(1.5)
        killed.append(await etcd.kill_leader())
    await asyncio.sleep(1)
    for _ in range(trials):
        await asyncio.sleep(0.3)
        handed.append(await etcd.transfer())
    return of(killed), of(handed)


def report(console: Console, rows: list[Row], title: str) -> None:
    table = Table("what", "ours", "etcd", "goal", "", title=title)
    for row in rows:
        goal, met = row.goal(row.ours, row.etcd)
        mark = "" if met is None else "[green]met[/]" if met else "[red]missed[/]"
        table.add_row(row.what, row.show(row.ours), row.show(row.etcd) if row.etcd else "", goal, mark)
    console.print(table)


async def bench(directory: Path, arguments: argparse.Namespace) -> None:
    console = Console(width=arguments.width)
    missing = "left out" if arguments.no_etcd else prepare(directory)
    if missing is not None:
        console.print(f"etcd: {missing}")
    etcd = await Etcd.started(directory) if missing is None else None
    try:
        rows = await ours_and_etcd(directory, etcd, arguments)
    finally:
        if etcd is not None:
            etcd.stop()
    tls = "plain" if arguments.plain else "mutual TLS"
    report(console, rows, f"three nodes, fsync; ours {tls}, etcd plain; {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.raft", description=__doc__)
    parser.add_argument("--secs", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each rate")
    parser.add_argument("--trials", type=int, default=20, help="leaders killed, and handed over")
    parser.add_argument("--plain", action="store_true", help="ours without TLS")
    parser.add_argument("--no-etcd", action="store_true")
    parser.add_argument("--width", type=int, default=150, help="of the table")
    parser.add_argument("--dir", help="on the disk that is to be measured")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-raft-", dir=arguments.dir))
    try:
        asyncio.run(bench(directory, arguments))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
