"""Whole lives of tasks in the core: submitted, placed, started, ended; some fail, and end in any order."""

import random
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.table import Table

from tiflow.sched.commands import (
    AnyCommand,
    Entry,
    PlaceTasks,
    RegisterExecutor,
    SubmitJob,
    TaskEvent,
    TaskEvents,
    encode_entry,
)
from tiflow.sched.machine import Machine
from tiflow.sched.model import Command, GroupSpec, JobSpec, Placement, RetryPolicy
from tiflow.sched.plan import plan

EXECUTORS, SLOTS = 100, 8
BATCH = 100  #: jobs in one entry, and reports of one executor in one command
PLAN_BUDGET = 10_000
RETRY = RetryPolicy(attempts_max=20, backoff_ms=0, multiplier_milli=1_000, backoff_ms_max=0, reset_ms=0)


class Lives:
    """A machine, and how long each kind of work took."""

    def __init__(self, jobs: int, tasks: int, failing: float) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._machine = Machine()
        self._rng = random.Random(1)
        self._failing = failing
        self._jobs, self._tasks = jobs, tasks
        self._now_ms = 1_000_000

    def run(self) -> float:
        """Returns: tasks that came to an end a second, all work counted."""
        uids = [f"uid-{number:03}" for number in range(EXECUTORS)]
        for uid in uids:
            self._apply("register", [RegisterExecutor(uid, "b", uid, "h:1", SLOTS)])
        began_s = time.process_time()
        waiting = iter(range(self._jobs))
        submitted = 0
        while True:
            batch = [self._job(number) for number in islice(waiting, BATCH)]
            if batch:
                submitted += len(batch)
                self._apply("submit", batch)
            started_s = time.process_time()
            places = plan(self._machine.state, self._now_ms, dict.fromkeys(uids, 2 * SLOTS), PLAN_BUDGET)
            self._count("plan, per task", time.process_time() - started_s, sum(p.stop - p.start for p in places))
            if places:
                self._apply("place, per range", [PlaceTasks(tuple(places))], len(places))
                self._end_all()
            elif submitted == self._jobs:
                break
        rate = self._jobs * self._tasks / (time.process_time() - began_s)
        assert all(job.ended_at_ms for job in self._machine.state.jobs.values())
        return rate

    def _job(self, number: int) -> SubmitJob:
        group = GroupSpec("g", Command(("true",)), self._tasks, retry=RETRY)
        return SubmitJob(JobSpec(f"job-{number}", (group,)), f"token-{number}", self._now_ms)

    def _end_all(self) -> None:
        """All that is out starts, and ends in random order."""
        by_executor: dict[tuple[str, int], list[TaskEvent]] = {}
        for placement in self._machine.state.placements.values():
            by_executor.setdefault((placement.executor, placement.incarnation), []).extend(self._ends(placement))
        for (uid, incarnation), events in by_executor.items():
            started = [TaskEvent(event.placement, event.start, event.stop, "started") for event in events]
            self._rng.shuffle(events)
            for some in (*_parts(started), *_parts(events)):
                self._apply("event", [TaskEvents(uid, incarnation, some)], len(some))

    def _ends(self, placement: Placement) -> Iterator[TaskEvent]:
        for index in range(placement.start, placement.stop):
            kind = "failed" if self._rng.random() < self._failing else "succeeded"
            yield TaskEvent(placement.id, index, index + 1, kind)

    def _apply(self, kind: str, commands: list[AnyCommand], count: int = 0) -> None:
        entry = encode_entry(Entry(self._now_ms, self._now_ms, tuple(commands)))
        self._now_ms += 1
        started_s = time.process_time()
        replies: list[Any] = self._machine.apply(entry)
        self._count(kind, time.process_time() - started_s, count or len(commands))
        assert all(reply.error is None for reply in replies), replies

    def _count(self, kind: str, seconds: float, count: int) -> None:
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        self.counts[kind] = self.counts.get(kind, 0) + count


def _parts(events: list[TaskEvent]) -> Iterator[tuple[TaskEvent, ...]]:
    for start in range(0, len(events), BATCH):
        yield tuple(events[start : start + BATCH])


def lives() -> Table:
    """µs for each part of a task's life, and tasks a second through all of them, the encoding of entries included."""
    kinds = ("submit", "plan, per task", "place, per range", "event")
    table = Table("jobs", *(f"{kind}, µs" for kind in kinds), "tasks/s", title="Whole lives, each task by itself")
    for name, jobs, tasks, failing in (
        ("1,000 of 100", 1_000, 100, 0.0),
        ("100,000 of 1", 100_000, 1, 0.0),
        ("1,000 of 100, 30 % of tries fail", 1_000, 100, 0.3),
        ("100,000 of 1, 30 % of tries fail", 100_000, 1, 0.3),
    ):
        run = Lives(jobs, tasks, failing)
        rate = run.run()
        costs = (1e6 * run.seconds[kind] / max(1, run.counts[kind]) for kind in kinds)
        table.add_row(name, *(f"{cost:.1f}" for cost in costs), f"{rate:,.0f}")
    return table
