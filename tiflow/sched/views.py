"""What can be seen of a job: for the API, the dashboard and the command line. Read-only."""

from collections.abc import Iterator, Mapping
from itertools import islice

from msgspec import Struct

from tiflow.sched import model
from tiflow.sched.model import (
    CHUNK_TASKS,
    Command,
    Ended,
    Framework,
    Group,
    Job,
    JobState,
    Millis,
    Progress,
    ResultRow,
    Retry,
    TaskState,
)
from tiflow.sched.state import State
from tiflow.sched.tasks import fresh_runs, runs

ROWS_SEARCHED_MAX = 10_000  #: by one question for some tasks: some milliseconds


class Tasks(Struct, frozen=True):
    """Tasks [start, stop) of a group, which stand alike."""

    group: str
    start: int
    stop: int
    state: TaskState
    attempt: int = 0  #: of the try that is under way, or that comes next; 0: not kept (they have ended)
    executor: str | None = None  #: uid of the one they are out on
    due_at_ms: Millis = 0  #: of those that wait for a retry: in log time


def job_state(state: State, job: Job) -> JobState:
    """Where a living job stands."""
    return model.job_state(job, state.groups_of(job))


def progress(state: State, job: Job) -> Progress:
    """How many tasks of a living job stand where."""
    return model.progress(state.groups_of(job))


def job_type(job: Job) -> str:
    """Of a framework job its type; else pool, or what its first group does: command or python."""
    work = job.spec.groups[0].work if job.spec.groups else None
    if isinstance(work, Framework):
        return work.type
    if job.spec.open:
        return "pool"
    return "command" if isinstance(work, Command) else "python"


def task_state(state: State, job: Job, group: str, index: int) -> tuple[TaskState, int, str | None]:
    """Where one task stands: (state, attempt, executor uid), as in `Tasks`. O(placements and retries of the
    job).

    Raises:
        KeyError: the job has no such group.
        IndexError: the group has no such task.
    """
    row = state.groups[job.uid, group]
    if not 0 <= index < row.count:
        raise IndexError(f"group {group} of job {job.id} has tasks 0 to {row.count - 1}, not {index}")
    chunk, bit = index // CHUNK_TASKS, 1 << (index % CHUNK_TASKS)
    ended = state.ended.get((job.uid, group, chunk), Ended())
    if ended.succeeded & bit:
        return TaskState.SUCCEEDED, 0, None
    if ended.failed & bit:
        return TaskState.FAILED, 0, None
    if ended.withdrawn & bit:
        return TaskState.CANCELED, 0, None
    for tasks in (*_out(state, row), *_retries(state, row)):
        if tasks.start <= index < tasks.stop:
            return tasks.state, tasks.attempt, tasks.executor
    if row.was_skipped:
        return TaskState.SKIPPED, 0, None
    return (TaskState.CANCELED, 0, None) if row.closed else (TaskState.WAITING, 1, None)


def tasks(state: State, job: Job, limit: int) -> list[Tasks]:
    """The tasks of a job as at most `limit` ranges: those that are out, those that wait for a retry, those
    that failed, succeeded, were canceled or skipped, and those that were never placed; group by group."""
    return list(islice((row for group in state.groups_of(job) for row in _rows(state, group)), limit))


def results(state: State, uid: int, from_row: int, limit: int) -> list[tuple[int, ResultRow]]:
    """Result rows from number `from_row` on of the job with that uid, at most `limit`, each with its number; none if
    it is unknown."""
    job = state.job_of(uid)
    if job is None:
        return []
    found = ((row, state.results.get((uid, row))) for row in range(max(0, from_row), job.result_rows))
    return list(islice(((row, result) for row, result in found if result is not None), limit))


def newest_rows(state: State, job: Job, wanted: Mapping[tuple[str, int], None]) -> dict[tuple[str, int], ResultRow]:
    """The newest rows of tasks (group, index), as far as they are among the job's last ROWS_SEARCHED_MAX. Commands
    that succeeded have none."""
    found: dict[tuple[str, int], ResultRow] = {}
    spans: dict[str, tuple[int, int]] = {}
    for group, index in wanted:
        low, high = spans.get(group, (index, index))
        spans[group] = (min(low, index), max(high, index))
    for number in range(job.result_rows - 1, max(-1, job.result_rows - 1 - ROWS_SEARCHED_MAX), -1):
        if len(found) == len(wanted):
            break
        row = state.results.get((job.uid, number))
        if row is None or row.group not in spans:
            continue
        low, high = spans[row.group]
        for index in range(max(low, row.start), min(high + 1, row.stop)):
            key = (row.group, index)
            if key in wanted and key not in found:
                found[key] = row
    return found


def _rows(state: State, group: Group) -> Iterator[Tasks]:
    yield from _out(state, group)
    yield from _retries(state, group)
    yield from _ended(state, group, TaskState.FAILED)
    yield from _ended(state, group, TaskState.SUCCEEDED)
    if group.closed and not group.was_skipped:
        yield from _canceled(state, group)
        return
    yield from _ended(state, group, TaskState.CANCELED)
    stands, attempt = (TaskState.SKIPPED, 0) if group.was_skipped else (TaskState.WAITING, 1)
    for start, stop in fresh_runs(state, group) if group.fresh or group.skipped else ():
        yield Tasks(group.name, start, stop, stands, attempt)


def _out(state: State, group: Group) -> Iterator[Tasks]:
    for placement in state.placements_of(group.uid):
        if placement.group != group.name:
            continue
        waits = placement.left & ~placement.started
        for bits, stands in ((placement.started, TaskState.RUNNING), (waits, TaskState.PLACED)):
            for start, stop in runs(bits, placement.start):
                yield Tasks(group.name, start, stop, stands, placement.attempt, placement.executor)


def _retries(state: State, group: Group) -> Iterator[Tasks]:
    rows: dict[int, Retry] = state.retries.get((group.uid, group.name), {})
    for row in rows.values():
        yield Tasks(group.name, row.index, row.stop, TaskState.WAITING, row.attempt, None, row.due_at_ms)


def _ended(state: State, group: Group, stands: TaskState) -> Iterator[Tasks]:
    for chunk, ended in _chunks(state, group):
        bits = {TaskState.FAILED: ended.failed, TaskState.CANCELED: ended.withdrawn}.get(stands, ended.succeeded)
        for start, stop in runs(bits, chunk * CHUNK_TASKS):
            yield Tasks(group.name, start, stop, stands)


def _canceled(state: State, group: Group) -> Iterator[Tasks]:
    """All that is neither out nor ended."""
    out: dict[int, int] = {}
    for tasks in _out(state, group):
        for index in range(tasks.start, tasks.stop):
            out[index // CHUNK_TASKS] = out.get(index // CHUNK_TASKS, 0) | 1 << (index % CHUNK_TASKS)
    for chunk, ended in _chunks(state, group):
        size = min(CHUNK_TASKS, group.count - chunk * CHUNK_TASKS)
        bits = ((1 << size) - 1) & ~(ended.succeeded | ended.failed | out.get(chunk, 0))
        for start, stop in runs(bits, chunk * CHUNK_TASKS):
            yield Tasks(group.name, start, stop, TaskState.CANCELED)


def _chunks(state: State, group: Group) -> Iterator[tuple[int, Ended]]:
    for chunk in range((group.count - 1) // CHUNK_TASKS + 1):
        yield chunk, state.ended.get((group.uid, group.name, chunk), Ended())
