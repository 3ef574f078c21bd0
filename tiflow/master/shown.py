"""What is shown of jobs, tasks and executors: records of the state as messages. Read-only."""

from collections.abc import Iterable

from msgspec.structs import replace

from tiflow.errors import FailedPrecondition, NotFound
from tiflow.master.session import Session
from tiflow.meta.records import JobRow
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.model import Executor, Group, Job, JobState, Millis, ResultRow, job_state
from tiflow.sched.state import State
from tiflow.sched.views import Tasks, job_type, results, task_state, tasks

UPDATE_BYTES = 4 << 20  #: of results in one update; a row has 128 KiB at most


def job_info(state: State, job: Job) -> pb.JobInfo:
    job = state.jobs.get(job.id, job)
    stands = job_state(job, state.groups_of(job))
    info = pb.JobInfo(
        id=job.id,
        uid=job.uid,
        state=stands,
        submitted_at_ms=job.submitted_at_ms,
        started_at_ms=job.started_at_ms,
        ended_at_ms=job.ended_at_ms,
        revision=state.job_revision(job),
        result_rows=job.result_rows,
        project=job.spec.project,
        type=job_type(job),
        # every task may have succeeded in spite of it
        error="" if stands is JobState.FINISHED else job.failure,
    )
    if job.dropped:
        succeeded = job.dropped - job.dropped_failed - job.dropped_canceled
        info.dropped.MergeFrom(
            pb.GroupProgress(
                total=job.dropped,
                succeeded=succeeded,
                failed=job.dropped_failed,
                canceled=job.dropped_canceled,
            )
        )
    for group in state.groups_of(job):
        info.groups.add(
            name=group.name,
            total=group.count,
            succeeded=group.succeeded,
            failed=group.failed,
            canceled=group.canceled,
            running=group.out,
            waiting=group.waiting,
            skipped=group.skipped,
            cpu_us=group.cpu_us,
            memory_bytes=group.memory_bytes,
        )
    return info


def archived_info(row: JobRow) -> pb.JobInfo:
    """Of a job that the database alone has: all its tasks as one group."""
    info = pb.JobInfo(
        id=row.id,
        uid=row.uid,
        state=row.state,
        type=row.type,
        submitted_at_ms=row.submitted_at_ms,
        started_at_ms=row.started_at_ms,
        ended_at_ms=row.ended_at_ms,
        revision=row.mod_revision,
    )
    skipped = row.total - row.succeeded - row.failed - row.canceled  # for it has ended
    info.groups.add(
        total=row.total, succeeded=row.succeeded, failed=row.failed, canceled=row.canceled, skipped=skipped
    )
    return info


def add_placed(update: pb.JobUpdate, groups: Iterable[Group], placed: dict[str, int]) -> None:
    """The cursors that differ from what was sent before (`placed`)."""
    for group in groups:
        if group.cursor and placed.get(group.name) != group.cursor:
            placed[group.name] = group.cursor
            update.placed.add(group=group.name, cursor=group.cursor)


def fitting(rows: list[tuple[int, ResultRow]]) -> list[tuple[int, ResultRow]]:
    """As many as one message should hold, and at least one."""
    size = 0
    for count, (_, row) in enumerate(rows):
        size += len(row.results)
        if size > UPDATE_BYTES and count:
            return rows[:count]
    return rows


def check_kept(job: Job, row: int) -> None:
    """Raise FailedPrecondition if a job that has left the masters had rows from that one on."""
    if row < job.result_rows:
        raise FailedPrecondition(
            f"job {job.id} has left the masters, and of its {job.result_rows} result rows the database keeps the "
            f"first {row}"
        )


def first_error(state: State, job: Job) -> str:
    """Of the first task that failed for good, if any did."""
    if not any(group.failed for group in state.groups_of(job)):
        return ""
    rows = results(state, job.uid, 0, job.result_rows)
    return next((row.error for _, row in rows if row.outcome == "failed"), "")


def add_row(update: pb.JobUpdate, state: State, number: int, result: ResultRow) -> None:
    """A row of results, and where what is not in it is kept."""
    executor = state.executors.get(result.executor)
    # another incarnation of the same executor has the same directory, and so the results
    alive = executor is not None and executor.alive
    update.rows.add(
        row=number,
        group=result.group,
        start=result.start,
        stop=result.stop,
        attempt=result.attempt,
        executor=result.executor,
        address=executor.address if executor is not None and alive else "",
        executor_alive=alive,
        outcome=result.outcome,
        results=result.results,
        error=result.error,
        ended_at_ms=result.ended_at_ms,
        cpu_us=result.cpu_us,
        memory_bytes=result.memory_bytes,
    )


def task_ranges(state: State, job: Job, group: str, start: int, limit: int) -> list[Tasks]:
    """Of one group: its tasks from `start` on, in order. Of the job: its tasks that are out or wait for a retry
    first, group by group."""
    if not group:
        found: list[Tasks] = []
        for item in tasks(state, job, limit):
            stop = min(item.stop, item.start + limit)
            found.append(replace(item, stop=stop))
            limit -= stop - item.start
            if limit <= 0:
                break
        return found
    if (job.uid, group) not in state.groups:
        names = ", ".join(group.name for group in state.groups_of(job)[:20])
        raise NotFound(f"job {job.id} has no group {group}; it has {names}")
    count = state.groups[job.uid, group].count
    if start >= count:
        raise NotFound(f"group {group} of job {job.id} has tasks 0 to {count - 1}, not {start}")
    indexes = range(start, min(count, start + limit))
    return [Tasks(group, i, i + 1, *task_state(state, job, group, i)) for i in indexes]


def executor_info(state: State, executor: Executor, session: Session | None, now_ms: Millis) -> pb.ExecutorInfo:
    """`now_ms`: in log time."""
    drain = state.drains.get(executor.name)
    running = state.out(executor.uid)
    info = pb.ExecutorInfo(
        uid=executor.uid,
        name=executor.name,
        address=executor.address,
        slots=executor.slots,
        incarnation=executor.incarnation,
        labels=executor.labels,
        state=executor_state(state, executor, session),
        running=running,
        registered_at_ms=executor.registered_at_ms,
        version=executor.version,
        connected=session is not None,
        capacity=executor.capacity,
        drain=drain is not None,
        unhealthy=session.unhealthy if session is not None else "",
    )
    if drain is not None and drain.deadline_at_ms:
        info.drain_left_ms = max(0, drain.deadline_at_ms - now_ms)
    return info


def executor_state(state: State, executor: Executor, session: Session | None) -> str:
    if not executor.alive:
        return "gone"
    drained = executor.name in state.drains
    if drained and not state.out(executor.uid):
        return "drained"
    return "draining" if drained or (session is not None and session.draining) else "alive"
