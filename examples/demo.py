"""The main job, end to end: word counts over Python's standard library, while a leader and an executor are killed.

Starts `tiflow dev` (three masters, two executors), submits one task per .py file, kills the leader and then an
executor with SIGKILL in the middle, and compares the merged result with a plain count in this process. Exits with 0
only if the result is right and the log has each task's finish exactly once.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from wordcount import count_words

import tiflow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
START_S_MAX = 30.0
TOP = 20

console = Console(highlight=False, width=110)


class Story:
    """What happened, with the seconds since the beginning."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()

    def tell(self, text: str) -> None:
        console.print(f"[dim]{time.monotonic() - self.began_s:6.2f} s[/dim]  {text}")


def main() -> int:
    story = Story()
    paths = stdlib_files()
    expected, plain_s = plain_count(paths)
    story.tell(f"counted the words of {len(paths):,} files in one plain process: {plain_s:.2f} s")
    with tempfile.TemporaryDirectory(prefix="tiflow-demo-") as directory:
        process, cluster = start_cluster(Path(directory))
        try:
            story.tell("three masters and two executors are up")
            return run(story, cluster, paths, expected)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def run(story: Story, cluster: dict[str, Any], paths: list[str], expected: Counter[str]) -> int:
    with tiflow.Client(cluster["master_addrs"]) as client:
        job = client.run_python("wordcount:count_words", paths, id="wordcount", path=[str(HERE)])
        story.tell(f"submitted job {job.id}: one task per file")
        began_s = time.monotonic()
        merged: Counter[str] = Counter()
        kills = iter(((0.25, kill_leader), (0.50, kill_executor), (2.0, None)))
        at, kill = next(kills)
        received = 0
        for result in client.results(job.id, ordered=False):
            if result.error:
                story.tell(f"[red]task {result.index} failed: {result.error}[/red]")
                continue
            received += 1
            merged.update(result.value)
            if kill is not None and received >= at * len(paths):
                story.tell(kill(client, cluster) + f", with {received:,} of {len(paths):,} results here")
                at, kill = next(kills)
        took_s = time.monotonic() - began_s
        story.tell(f"job {job.id} is {client.get(job.id).state}: {len(paths) / took_s:,.0f} files/s, {took_s:.2f} s")
        return judge(client, job.id, merged, expected, len(paths))


def judge(client: "tiflow.Client", job_id: str, merged: Counter[str], expected: Counter[str], total: int) -> int:
    finishes, later, again = finish_counts(client, job_id)
    checks = {
        f"the {len(expected):,} words and their counts are those of the plain count": merged == expected,
        f"each of the {total:,} tasks has a finish in the log": set(finishes) == set(range(total)),
        "and exactly one": all(count == 1 for count in finishes.values()),
        "the job is Finished": client.get(job_id).state == "Finished",
    }
    console.print(frequent(merged))
    for text, holds in checks.items():
        console.print(f"  {'[green]ok[/green]' if holds else '[red]WRONG[/red]'}  {text}")
    console.print(f"      {later} tasks were on the killed executor and finished as a later attempt")
    console.print(f"      {again} of them had finished there before, but their results died with it")
    return 0 if all(checks.values()) else 1


def finish_counts(client: "tiflow.Client", job_id: str) -> tuple[Counter[int], int, int]:
    """How often each task finished, how many did so in a later attempt than the first, and how many finishes are not
    counted because their result was lost: with an executor that is gone, before it could be fetched."""
    gone = {executor.uid for executor in client.executors() if executor.state == "gone"}
    finishes: dict[int, dict[int, list[str]]] = {}
    for ended in client.history(job_id):
        if ended.outcome == "succeeded":
            for index in range(ended.start, ended.stop):
                finishes.setdefault(index, {}).setdefault(ended.attempt, []).append(ended.executor)
    counts: Counter[int] = Counter()
    later = again = 0
    for index, attempts in finishes.items():
        last = max(attempts)
        later += last > 1
        for attempt, executors in attempts.items():
            lost = attempt < last and set(executors) <= gone
            again += lost
            counts[index] += 0 if lost else len(executors)
    return counts, later, again


def kill_leader(client: "tiflow.Client", cluster: dict[str, Any]) -> str:
    leader = next(master for master in client.raft_status() if master.role == "leader")
    os.kill(leader.pid, signal.SIGKILL)
    return f"[bold]killed the leader {leader.name}[/bold] (kill -9 {leader.pid})"


def kill_executor(client: "tiflow.Client", cluster: dict[str, Any]) -> str:
    executor = cluster["executors"][0]
    os.kill(executor["pid"], signal.SIGKILL)
    return f"[bold]killed executor {executor['name']}[/bold] (kill -9 {executor['pid']})"


def stdlib_files() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages"}
    return sorted(str(path) for path in root.rglob("*.py") if skipped.isdisjoint(path.parts))


def plain_count(paths: Iterable[str]) -> tuple[Counter[str], float]:
    began_s = time.monotonic()
    words: Counter[str] = Counter()
    for path in paths:
        words.update(count_words(path))
    return words, time.monotonic() - began_s


def start_cluster(directory: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Returns: the `tiflow dev` process, and what its dev.json says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tiflow", "dev", "--data-dir", str(directory), "--port-base", "0"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    description = directory / "dev.json"
    deadline_s = time.monotonic() + START_S_MAX
    while not description.exists():
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            raise SystemExit(f"tiflow dev did not start within {START_S_MAX:.0f} s; its logs are in {directory}")
        time.sleep(0.05)
    cluster: dict[str, Any] = json.loads(description.read_text())
    return process, cluster


def frequent(words: Counter[str]) -> Table:
    table = Table(title=f"The {TOP} most frequent words of the standard library")
    for _ in range(4):
        table.add_column("word")
        table.add_column("count", justify="right")
    # equal counts in the order of the alphabet, so that two runs print the same table
    top = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    rows = TOP // 4
    for row in range(rows):
        table.add_row(*(cell for word, count in top[row::rows] for cell in (word, f"{count:,}")))
    return table


if __name__ == "__main__":
    sys.exit(main())
