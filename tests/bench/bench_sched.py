"""What the state machine costs. Run by hand: `python tests/bench/bench_sched.py`."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.sched_lives import lives
from tiflow.sched.commands import (
    AnyCommand,
    Entry,
    ExpireExecutor,
    Place,
    PlaceTasks,
    RegisterExecutor,
    SubmitJob,
    TaskEvent,
    TaskEvents,
    encode_entry,
)
from tiflow.sched.looks import Looks
from tiflow.sched.machine import Machine
from tiflow.sched.model import Command, Executor, GroupSpec, Job, JobSpec, PlacementPolicy, Selector
from tiflow.sched.plan import plan

TASKS = 1_000_000
EVENTS_PER_COMMAND = 50


def main() -> None:
    console = Console()
    console.print(_commands(), _cycles(), _plans(), _misfits(), lives(), _sizes())


class Bench:
    """A machine that is told things as fast as possible."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now_ms = 1_000_000

    def apply(self, *commands: AnyCommand):
        (*_, reply) = self.machine.apply(encode_entry(Entry(self.now_ms, self.now_ms, commands)))
        assert reply.error is None, reply.error
        return reply.value

    def submit(self, id: str, count: int, **fields: Any) -> Job:
        group = GroupSpec("g", Command(("true",)), count, **fields)
        return self.apply(SubmitJob(JobSpec(id, (group,)), id, self.now_ms))

    def register(self, number: int, slots: int) -> Executor:
        labels = {"zone": "abc"[number % 3], "node": f"e{number}"}
        capacity = {"cpu": 1_000 * slots, "gpu": 2}
        return self.apply(
            RegisterExecutor(f"uid-{number:04}", "b", f"e{number}", "h:1", slots, labels, capacity=capacity)
        )


def _timed(entries: list[bytes], apply: Callable[[bytes], object]) -> float:
    """CPU seconds for all entries, without garbage collection, which a master freezes as well."""
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for entry in entries:
            apply(entry)
        return time.process_time() - started
    finally:
        gc.enable()


def _commands() -> Table:
    table = Table(
        "range", "place µs", "place tasks/s", "end µs", "end tasks/s", "round tasks/s", title="Apply, by range"
    )
    for size in (1, 10, 100, 500):
        placing, ending, tasks = _round(size)
        ranges = tasks // size
        table.add_row(
            str(size),
            f"{placing / ranges * 1e6:.1f}",
            f"{tasks / placing:,.0f}",
            f"{ending / ranges * 1e6:.1f}",
            f"{tasks / ending:,.0f}",
            f"{tasks / (placing + ending):,.0f}",
        )
    return table


def _round(size: int) -> tuple[float, float, int]:
    """Place ranges of `size` tasks and end them: seconds for each, and the number of tasks."""
    tasks = min(TASKS, 40_000 * size)
    bench = Bench()
    job, executor = bench.submit("j", tasks), bench.register(0, 10_000)
    placing = ending = 0.0
    step = size * EVENTS_PER_COMMAND
    for first in range(0, tasks, step):
        starts = range(first, min(first + step, tasks), size)
        places = tuple(
            Place(job.uid, "g", start, min(start + size, tasks), 1, executor.uid, executor.incarnation)
            for start in starts
        )
        id = bench.machine.state.next_placement
        placing += _timed([_entry(bench, PlaceTasks(places))], bench.machine.apply)
        events = tuple(TaskEvent(id + i, p.start, p.stop, "succeeded") for i, p in enumerate(places))
        command = TaskEvents(executor.uid, executor.incarnation, events)
        ending += _timed([_entry(bench, command)], bench.machine.apply)
    assert bench.machine.state.groups[job.uid, "g"].succeeded == tasks
    return placing, ending, tasks


def _entry(bench: Bench, command: AnyCommand) -> bytes:
    return encode_entry(Entry(bench.now_ms, bench.now_ms, (command,)))


def _cycles() -> Table:
    """Plan and apply until all slots are taken: 1,000 jobs of 1,000 waiting tasks each."""
    table = Table(
        "jobs want", "executors", "placed", "plan ms", "apply ms", "µs per task", title="Filling all slots, 8 each"
    )
    for name, fields in _WANTS.items():
        for executors in (10, 100, 1_000):
            planning, applying, placed = min(_fill(executors, fields) for _ in range(3))
            each = (planning + applying) / placed * 1e6
            row = (f"{planning * 1e3:.1f}", f"{applying * 1e3:.1f}", f"{each:.1f}")
            table.add_row(name, f"{executors:,}", f"{placed:,}", *row)
    return table


_WANTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cpu, a zone": {"resources": {"cpu": 500}, "selectors": (Selector("zone", "neq", ("c",)),)},
    "cpu, each its own": {"resources": "its own"},
    "cpu and gpu": {"resources": {"cpu": 1_000, "gpu": 1}},
    "a regex": {"selectors": (Selector("node", "regex", ("e[0-9]*[02468]",)),)},
    "binpack": {"placement": PlacementPolicy("binpack")},
    "zones, 2 at most": {"placement": PlacementPolicy("spread", "zone", 2)},
}


def _fill(executors: int, fields: dict[str, Any]) -> tuple[float, float, int]:
    """CPU seconds of plan and of apply, and how many tasks were placed."""
    bench = Bench()
    for number in range(executors):
        bench.register(number, 8)
    for number in range(1_000):
        own = {"resources": {"cpu": 500 + number}} if fields.get("resources") == "its own" else {}
        bench.submit(f"j{number}", 1_000, **(fields | own))
    state, targets = bench.machine.state, dict.fromkeys(bench.machine.state.executors, 8)
    planning = applying = 0.0
    gc.collect()
    gc.disable()
    while True:
        started = time.process_time()
        places = plan(state, bench.now_ms, targets)
        planning += time.process_time() - started
        if not places:
            break
        entry = _entry(bench, PlaceTasks(tuple(places)))
        started = time.process_time()
        bench.machine.apply(entry)
        applying += time.process_time() - started
    gc.enable()
    return planning, applying, sum(state.tasks_out.values())


def _plans() -> Table:
    table = Table("what waits", "places", "plan ms", "apply ms", title="One cycle on 1,000 executors of 4 slots")
    for name, bench in _waiting():
        targets = dict.fromkeys(bench.machine.state.executors, 44)
        started = time.process_time()
        places = plan(bench.machine.state, bench.now_ms, targets)
        planned = time.process_time()
        entry = _entry(bench, PlaceTasks(tuple(places)))
        applied = _timed([entry], bench.machine.apply)
        table.add_row(name, str(len(places)), f"{(planned - started) * 1e3:.1f}", f"{applied * 1e3:.1f}")
    return table


def _misfits() -> Table:
    """Jobs of one task that no executor may run, and slots are free: what all of them cost, and a single plan."""
    table = Table(
        "what lacks", "jobs", "plans", "ms in all", "longest ms", title="What fits nowhere, 1,000 executors"
    )
    for name, jobs, fields in _MISFITS:
        bench = Bench()
        for number in range(1_000):
            bench.register(number, 4)
        for number in range(jobs):
            bench.submit(f"j{number}", 1, **fields(number))
        state, targets = bench.machine.state, dict.fromkeys(bench.machine.state.executors, 4)
        looks, took_s = Looks(), []
        gc.collect()
        gc.disable()
        while not took_s or looks.cut:
            started = time.process_time()
            assert not plan(state, bench.now_ms, targets, looks=looks)
            took_s.append(time.process_time() - started)
        gc.enable()
        longest = f"{max(took_s) * 1e3:.1f}"
        table.add_row(name, f"{jobs:,}", str(len(took_s)), f"{sum(took_s) * 1e3:.0f}", longest)
    return table


_MISFITS: tuple[tuple[str, int, Callable[[int], dict[str, Any]]], ...] = (
    ("a resource that nobody has", 10_000, lambda number: {"resources": {"tpu": 1}}),
    ("the same", 100_000, lambda number: {"resources": {"tpu": 1}}),
    ("a host of its own", 10_000, lambda number: {"selectors": (Selector("node", "eq", (f"x{number}",)),)}),
    (
        "what a regex of its own wants",
        100,
        lambda number: {"selectors": (Selector("node", "regex", (f"x{number}.*",)),)},
    ),
)


def _waiting() -> Iterator[tuple[str, Bench]]:
    for name, jobs, tasks in (
        ("1 job of 1,000,000", 1, TASKS),
        ("1,000 of 1,000", 1_000, 1_000),
        ("50,000 of 20", 50_000, 20),
    ):
        bench = Bench()
        for number in range(1_000):
            bench.register(number, 4)
        for number in range(jobs):
            bench.submit(f"j{number}", tasks)
        yield name, bench
    bench = Bench()
    executor = bench.register(0, 10_000)
    job = bench.submit("j", TASKS)
    _fail_all(bench, job, executor)
    for number in range(1, 1_000):
        bench.register(number, 4)
    bench.now_ms += 3_600_000
    yield "1,000,000 retries of 1", bench


def _fail_all(bench: Bench, job: Job, executor: Executor) -> None:
    for first in range(0, TASKS, 500):
        (row,) = bench.apply(
            PlaceTasks((Place(job.uid, "g", first, first + 500, 1, executor.uid, executor.incarnation),))
        )
        events = tuple(TaskEvent(row.id, i, i + 1, "failed", error="x") for i in range(first, first + 500))
        bench.apply(TaskEvents(executor.uid, executor.incarnation, events))


def _sizes() -> Table:
    table = Table(
        "state",
        "memory MB",
        "snapshot MB",
        "freeze ms",
        "longest slice ms",
        "snapshot ms",
        "restore ms",
        title="Size",
    )
    for name, build in _STATES.items():
        memory = _memory_bytes(build)
        bench = build()  # anew, for tracing slows what was allocated under it
        gc.collect()
        gc.disable()
        started = time.process_time()
        frames = bench.machine.snapshot()
        frozen = time.process_time()
        slices, longest = [], 0.0
        before = frozen
        for frame in frames:
            slices.append(frame)
            now = time.process_time()
            longest, before = max(longest, now - before), now
        encoded = time.process_time()
        data = b"".join(slices)
        joined = time.process_time()
        Machine().restore(data)
        restored = time.process_time()
        gc.enable()
        table.add_row(
            name,
            f"{memory / 1e6:.1f}",
            f"{len(data) / 1e6:.1f}",
            *(
                f"{seconds * 1e3:.1f}"
                for seconds in (frozen - started, longest, encoded - started, restored - joined)
            ),
        )
    return table


def _memory_bytes(build: Callable[[], Bench]) -> int:
    gc.collect()
    tracemalloc.start()
    bench = build()
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del bench
    return memory


def _half_done() -> Bench:
    bench = Bench()
    job, executor = bench.submit("j", TASKS), bench.register(0, 10_000)
    for first in range(0, TASKS // 2, 500):
        place = Place(job.uid, "g", first, first + 500, 1, executor.uid, executor.incarnation)
        (row,) = bench.apply(PlaceTasks((place,)))
        if first % 5_000:
            event = TaskEvent(row.id, first, first + 500, "succeeded")
            bench.apply(TaskEvents(executor.uid, executor.incarnation, (event,)))
    return bench


def _thousands() -> Bench:
    bench = Bench()
    for number in range(1_000):
        bench.submit(f"j{number}", 1_000)
    return bench


def _many_jobs() -> Bench:
    bench = Bench()
    for number in range(100_000):
        bench.submit(f"j{number}", 10)
    return bench


def _all_retry() -> Bench:
    bench = Bench()
    job, executor = bench.submit("j", TASKS), bench.register(0, 10_000)
    _fail_all(bench, job, executor)
    return bench


def _all_lost() -> Bench:
    bench = _half_done()
    executor = bench.machine.state.executors["uid-0000"]
    bench.apply(ExpireExecutor(executor.uid, executor.incarnation))
    return bench


_STATES: dict[str, Callable[[], Bench]] = {
    "1,000 jobs of 1,000 tasks that wait": _thousands,
    "1 job, half of 1,000,000 tasks ended": _half_done,
    "the same, its executor lost": _all_lost,
    "100,000 jobs of 10 tasks": _many_jobs,
    "1,000,000 tasks failed one by one and wait": _all_retry,
}

if __name__ == "__main__":
    main()
