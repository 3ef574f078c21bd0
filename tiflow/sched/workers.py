"""How the workers of a framework job stand, for its job master and for people. Read-only."""

from collections.abc import Iterator

from msgspec import Struct, msgpack

from tiflow.sched.model import CHUNK_TASKS, Ended, Framework, Group, Job, Placement, ResultRow, TaskState
from tiflow.sched.state import State
from tiflow.sched.tasks import runs


class WorkerTask(Struct, frozen=True):
    """One worker, or the job master."""

    group: str
    index: int
    count: int  #: of the group
    kind: str  #: empty: it is the job master
    state: TaskState
    attempt: int  #: that is under way, or comes next; of one that has ended: 0
    failures: int = 0
    losses: int = 0
    executor: str = ""  #: uid of the one that it is on
    error: str = ""  #: why it has failed for good
    result: bytes = b""  #: what it returned, msgpack, if that was small enough for the log


def members(state: State, job: Job) -> Iterator[WorkerTask]:
    """All of a living framework job, its job master first. O(their number)."""
    out: dict[str, list[Placement]] = {}
    for placement in state.placements_of(job.uid):
        out.setdefault(placement.group, []).append(placement)
    for group in state.groups_of(job):
        yield from _of_group(state, group, out.get(group.name, ()))


def _of_group(state: State, group: Group, out: "list[Placement] | tuple[()]") -> Iterator[WorkerTask]:
    work = state.spec_of(group).work
    kind = work.kind if isinstance(work, Framework) else ""

    def task(index: int, stands: TaskState, attempt: int = 0, **more: object) -> WorkerTask:
        return WorkerTask(group.name, index, group.count, kind, stands, attempt, **more)  # type: ignore[arg-type]

    found: dict[int, WorkerTask] = {}
    for placement in out:
        for bits, stands in (
            (placement.left & placement.started, TaskState.RUNNING),
            (placement.left & ~placement.started, TaskState.PLACED),
        ):
            for index in _indexes(bits, placement.start):
                found[index] = task(
                    index,
                    stands,
                    placement.attempt,
                    failures=placement.failures,
                    losses=placement.losses,
                    executor=placement.executor,
                )
    for retry in state.retries.get((group.uid, group.name), {}).values():
        for index in range(retry.index, retry.stop):
            found[index] = task(index, TaskState.WAITING, retry.attempt, failures=retry.failures, losses=retry.losses)
    rows = _rows(state, group)
    for chunk in range((group.count - 1) // CHUNK_TASKS + 1):
        ended = state.ended.get((group.uid, group.name, chunk), Ended())
        for bits, stands in (
            (ended.succeeded, TaskState.SUCCEEDED),
            (ended.failed, TaskState.FAILED),
            (ended.withdrawn, TaskState.CANCELED),
        ):
            for index in _indexes(bits, chunk * CHUNK_TASKS):
                row = rows.get(index)
                result = _small(row, index) if row is not None and stands is TaskState.SUCCEEDED else b""
                error = row.error if row is not None and stands is TaskState.FAILED else ""
                found[index] = task(index, stands, error=error, result=result)
    rest = TaskState.CANCELED if group.closed else TaskState.WAITING
    for index in range(group.count):
        yield found.get(index) or task(index, rest, 0 if group.closed else 1)


def _indexes(bits: int, start: int) -> Iterator[int]:
    for first, stop in runs(bits, start):
        yield from range(first, stop)


def _rows(state: State, group: Group) -> dict[int, ResultRow]:
    """The newest row of each task."""
    found: dict[int, ResultRow] = {}
    for number in state.rows_of.get((group.uid, group.name), ()):
        row = state.results[group.uid, number]
        found |= dict.fromkeys(range(row.start, row.stop), row)
    return found


def _small(row: ResultRow, index: int) -> bytes:
    """A result that is in the row itself."""
    result = msgpack.decode(row.results)[index - row.start] if row.results else b""
    return result if isinstance(result, bytes) else b""
