"""Open jobs: groups are added to them as they run, until they are sealed. A client's pool is one."""

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from tiflow.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tiflow.sched.commands import AddGroup, CancelTasks, CloseGroups
from tiflow.sched.draft import Draft
from tiflow.sched.jobs import check_specs, close_job
from tiflow.sched.model import (
    CHUNK_TASKS,
    JOB_TERMINAL,
    POOL_BYTES_MAX,
    POOL_GROUPS_MAX,
    TASKS_PER_JOB_MAX,
    Framework,
    Group,
    GroupSpec,
    Job,
    job_state,
)
from tiflow.sched.projects import check_tasks_quota
from tiflow.sched.state import GroupKey
from tiflow.sched.tasks import runs
from tiflow.sched.validate import check_size, validate_group


def add_group(draft: Draft, command: AddGroup) -> Job:
    """Returns: the job. Groups that are to be dropped and have not ended stay."""
    state = draft.state
    job = state.job_of(command.uid)
    if job is None:
        raise NotFound(f"no job with uid {command.uid}")
    _check_client_decides(job)
    if command.number <= job.added:
        return job
    if not job.takes_groups:
        stands = job_state(job, state.groups_of(job))
        raise FailedPrecondition(
            f"job {job.id} takes no more groups: it is {stands}" + f" ({job.failure})" * bool(job.failure)
        )
    if command.number != job.added + 1:
        raise FailedPrecondition(
            f"number: {command.number} does not follow {job.added}, the last group of job {job.id}"
        )
    check_added(command.group)
    job = drop_groups(draft, job, command.drop)
    if (job.uid, command.group.name) in state.groups:
        raise FailedPrecondition(f"groups: job {job.id} has one with the name {command.group.name}")
    return insert_group(draft, job, command.group)


def insert_group(draft: Draft, job: Job, spec: GroupSpec) -> Job:
    """The next group of an open job, under a name that it does not have. Returns: the job.

    Raises:
        ResourceExhausted: there would be too many groups, tasks or bytes at one time, in the job or in all, or it is
            beyond a quota.
        InvalidArgument: it is too large.
    """
    state = draft.state
    check_tasks_quota(state, job.spec.project, spec.count, "the group")
    bytes_ = check_size("group", spec)
    living = [group for group in state.groups_of(job) if (job.uid, group.name) not in draft.dropped]
    if len(living) >= POOL_GROUPS_MAX:
        raise ResourceExhausted(
            f"{POOL_GROUPS_MAX} groups of job {job.id} exist; take results, and drop what has ended"
        )
    if sum(group.count for group in living) + spec.count > TASKS_PER_JOB_MAX:
        raise ResourceExhausted(f"job {job.id} would have more than {TASKS_PER_JOB_MAX} tasks at one time")
    if job.added_bytes + bytes_ > POOL_BYTES_MAX:
        raise ResourceExhausted(f"the groups of job {job.id} would have more than {POOL_BYTES_MAX} bytes at one time")
    dropped_bytes = state.jobs[job.id].added_bytes - job.added_bytes
    check_specs(state, f"group {spec.name} of job {job.id}", bytes_ - dropped_bytes)
    position = len(job.spec.groups) + job.added
    draft.groups[job.uid, spec.name] = Group(job.uid, spec.name, position, spec.count, spec=spec)
    job = replace(job, added=job.added + 1, added_bytes=job.added_bytes + bytes_)
    draft.jobs[job.id] = job
    return job


def check_added(group: GroupSpec) -> None:
    """Raise InvalidArgument, which names field and remedy, unless such a group can be added to an open job."""
    validate_group(group)
    if isinstance(group.work, Framework):
        raise InvalidArgument(f"groups.{group.name}.work: only the job master of a framework job starts workers")
    check_after_none(group)


def check_after_none(group: GroupSpec) -> None:
    """Raise InvalidArgument if it comes after others."""
    if group.after:
        raise InvalidArgument(
            f"groups.{group.name}.after: a group that is added to an open job comes after no other; add it when they "
            "have ended"
        )


def close_groups(draft: Draft, command: CloseGroups) -> bool:
    """Returns: whether the job fails by it."""
    job = draft.state.job_of(command.uid)
    if job is None or job.closed or job_state(job, draft.state.groups_of(job)) in JOB_TERMINAL:
        return False
    _check_client_decides(job)
    if command.failure:
        close_job(draft, replace(job, failure=command.failure))
        return True
    if job.takes_groups:
        draft.jobs[job.id] = replace(job, sealed=True)
        draft.touched[job.uid] = None
    return False


def cancel_tasks(draft: Draft, command: CancelTasks) -> tuple[tuple[int, int], ...]:
    """Returns: the ranges of tasks that have not run, and now will not."""
    if (job := draft.state.job_of(command.uid)) is not None:
        _check_client_decides(job)
    return withdraw(draft, (command.uid, command.group), command.start, command.stop, force=command.force)


def withdraw(draft: Draft, key: GroupKey, start: int, stop: int, *, force: bool) -> tuple[tuple[int, int], ...]:
    """Cancel tasks [start, stop) of a group that wait, and with `force` those that are out, too. Returns: the ranges
    of those that waited."""
    group = draft.group(key)
    start, stop = max(0, start), min(stop, group.count if group else 0)
    if group is None or group.closed or start >= stop:
        return ()
    if force:
        _withdraw_out(draft, key, start, stop)
    waiting = _waiting(draft, group, start, stop)
    if not waiting:
        return ()
    for chunk, bits in waiting.items():
        ended = draft.chunk((*key, chunk))
        draft.ended[(*key, chunk)] = replace(ended, withdrawn=ended.withdrawn | bits)
    count = sum(bits.bit_count() for bits in waiting.values())
    draft.groups[key] = replace(group, withdrawn=group.withdrawn + count)
    draft.touched[group.uid] = None
    return tuple(_joined(waiting))


def _waiting(draft: Draft, group: Group, start: int, stop: int) -> dict[int, int]:
    """Those of tasks [start, stop) that wait, by chunk, in order; they no longer wait for a retry. In chunks, since a
    bit set of a million tasks is dear to touch for each of its retries."""
    key = (group.uid, group.name)
    found: dict[int, int] = {}
    if group.fresh:
        for chunk, bits in _by_chunk(max(start, group.cursor), stop):
            found[chunk] = bits & ~draft.chunk((*key, chunk)).withdrawn
    for retry in draft.state.retries.get(key, {}).values():
        if retry.stop <= start or stop <= retry.index:
            continue
        first, last = max(start, retry.index), min(stop, retry.stop)
        for chunk, bits in _by_chunk(first, last):
            found[chunk] = found.get(chunk, 0) | bits
        draft.retries[(*key, retry.index)] = None
        for left, right in ((retry.index, first), (last, retry.stop)):
            if left < right:
                draft.retries[(*key, left)] = replace(retry, index=left, stop=right)
    return {chunk: found[chunk] for chunk in sorted(found) if found[chunk]}


def _by_chunk(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The tasks [start, stop) as bit sets of their chunks."""
    while start < stop:
        chunk, first = divmod(start, CHUNK_TASKS)
        count = min(stop - start, CHUNK_TASKS - first)
        yield chunk, ((1 << count) - 1) << first
        start += count


def _joined(waiting: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """The ranges of tasks in bit sets of chunks, in order."""
    held = (0, 0)
    for chunk, bits in waiting.items():
        for start, stop in runs(bits, chunk * CHUNK_TASKS):
            if start == held[1]:
                held = (held[0], stop)
            else:
                if held[1]:
                    yield held
                held = (start, stop)
    yield held


def _withdraw_out(draft: Draft, key: GroupKey, start: int, stop: int) -> None:
    for placement in draft.state.placements_of(key[0]):
        first, last = max(start, placement.start), min(stop, placement.stop)
        if placement.group == key[1] and first < last:
            named = ((1 << (last - first)) - 1) << (first - placement.start)
            bits = named & placement.left & ~placement.withdrawn
            if bits:
                draft.placements[placement.id] = replace(placement, withdrawn=placement.withdrawn | bits)


def drop_groups(draft: Draft, job: Job, names: tuple[str, ...]) -> Job:
    """Forget those of the named groups that were added and have ended. Returns: the job; it is not drafted."""
    for name in names:
        group = draft.group((job.uid, name))
        if group is None or group.spec is None or group.out or group.waiting:
            continue
        draft.dropped.append((job.uid, name))
        job = replace(
            job,
            dropped=job.dropped + group.count,
            dropped_failed=job.dropped_failed + group.failed,
            dropped_canceled=job.dropped_canceled + group.canceled,
            added_bytes=job.added_bytes - check_size("group", group.spec),
        )
    return job


def _check_client_decides(job: Job) -> None:
    if job.spec.framework:
        raise FailedPrecondition(f"job {job.id} has a job master, which alone decides on its workers")
