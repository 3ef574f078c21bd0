"""A job's progress on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from tiflow.client import JobInfo

LINE_EVERY_S = 5.0
RATE_OVER_S = 3.0


def follow(updates: "Iterable[JobInfo]") -> "JobInfo":
    """Show each update until there are no more; returns the last one."""
    return _bar(updates) if sys.stderr.isatty() else _lines(updates)


class Rate:
    """Tasks that ended per second, over the last few seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, ended: int) -> float:
        self._points.append((now_s, ended))
        while now_s - self._points[0][0] > RATE_OVER_S and len(self._points) > 2:
            self._points.popleft()
        first_s, first = self._points[0]
        return (ended - first) / (now_s - first_s) if now_s > first_s else 0.0


def counts(info: "JobInfo") -> str:
    """`120 ok, 3 failed, 8 running, 69 waiting`, without what is zero."""
    waiting = info.total - _ended(info) - info.running
    named = {
        "ok": info.succeeded,
        "failed": info.failed,
        "canceled": info.canceled,
        "skipped": info.skipped,
        "running": info.running,
        "waiting": waiting,
    }
    return ", ".join(f"{number} {name}" for name, number in named.items() if number) or "nothing yet"


def _ended(info: "JobInfo") -> int:
    return info.succeeded + info.failed + info.canceled + info.skipped


def _lines(updates: "Iterable[JobInfo]") -> "JobInfo":
    said_s, info = time.monotonic(), None
    for info in updates:
        if time.monotonic() - said_s >= LINE_EVERY_S:
            said_s = time.monotonic()
            click.echo(f"{info.state}: {counts(info)}", err=True)
    assert info is not None, "a watch begins with the job as it is"
    return info


def _bar(updates: "Iterable[JobInfo]") -> "JobInfo":
    rate, info = Rate(), None
    with _progress() as progress:
        bar = progress.add_task("", total=None, state="", counts="", rate="")
        for info in updates:
            speed = rate.add(time.monotonic(), _ended(info))
            progress.update(
                bar,
                total=info.total,
                completed=_ended(info),
                state=info.state,
                counts=counts(info),
                rate=f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s",
            )
    assert info is not None, "a watch begins with the job as it is"
    return info


def _progress() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.fields[state]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[counts]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
