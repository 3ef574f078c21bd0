"""Tasks: placed, and how they end.

All is done by ranges: what happens to five hundred tasks of one placement at once costs about what one costs.
"""

from collections.abc import Callable, Iterator
from zlib import crc32

from msgspec.structs import replace

from tiflow.sched.commands import Place, PlaceTasks, TaskEvent, TaskEvents
from tiflow.sched.draft import Draft
from tiflow.sched.model import (
    AMOUNT_MAX,
    CHUNK_TASKS,
    ERROR_CHARS_LATER,
    ERROR_CHARS_MAX,
    ERRORS_WHOLE_MAX,
    LOST_MAX,
    LOST_RESET_MS,
    PLACEMENT_TASKS_MAX,
    Ended,
    Executor,
    Group,
    GroupSpec,
    Millis,
    Placement,
    ResultRow,
    Retry,
    RetryPolicy,
    group_spec,
)
from tiflow.sched.room import Room, room_max
from tiflow.sched.state import ChunkKey, GroupKey, State

ERRORS_FORMAT = 4  #: of the cluster, from which on a group keeps ERRORS_WHOLE_MAX errors whole
WITHDRAWN_FORMAT = 3  #: of the cluster, from which on tasks that were withdrawn end as that in closed jobs, too


def place_tasks(draft: Draft, command: PlaceTasks) -> tuple[Placement, ...]:
    """Returns: the placements that came of it; parts of the plan that are stale by now are left out."""
    state = draft.state
    out: dict[str, int] = {}
    of_project: dict[str, int] = {}
    limits = _Limits(state)
    accepted = []
    for place in command.places:
        executor = state.executors.get(place.executor)
        group = draft.group((place.uid, place.group))
        if executor is None or group is None or group.held or not group.waiting or not _takes(state, executor, place):
            continue
        taken = out.get(executor.uid, state.out(executor.uid)) + place.stop - place.start
        if taken > room_max(executor):
            continue
        constrained = (place.uid, place.group) in state.constrained
        if constrained and not limits.allow(executor, group, place.stop - place.start):
            continue
        project = state.project(state.jobs[state.job_ids[place.uid]].spec.project)
        has = of_project.get(project.name, state.usage_of(project.name).out) + place.stop - place.start
        if 0 < project.slots_max < has:
            continue
        placement = _place(draft, group, place)
        if placement is not None:
            out[executor.uid] = taken
            of_project[project.name] = has
            if constrained:
                limits.take(executor, group, place.stop - place.start)
            accepted.append(placement)
    return tuple(accepted)


class _Limits:
    """What is left on executors, while the parts of a plan are accepted one by one, beside the number of tasks."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rooms: dict[str, Room] = {}
        self._held: dict[GroupKey, dict[str, int]] = {}  #: by group and executor: tasks that are out

    def allow(self, executor: Executor, group: Group, count: int) -> bool:
        spec, room = self._state.spec_of(group), self._room(executor)
        if room.addable(tuple(spec.resources.items())) < count:
            return False
        most = spec.placement.max_per_executor
        return not most or self._held_by(group).get(executor.uid, 0) + count <= most

    def take(self, executor: Executor, group: Group, count: int) -> None:
        spec = self._state.spec_of(group)
        self._room(executor).take(count, tuple(spec.resources.items()))
        if spec.placement.max_per_executor:
            held = self._held_by(group)
            held[executor.uid] = held.get(executor.uid, 0) + count

    def _room(self, executor: Executor) -> Room:
        if executor.uid not in self._rooms:
            self._rooms[executor.uid] = Room.of(self._state, executor, room_max(executor))
        return self._rooms[executor.uid]

    def _held_by(self, group: Group) -> dict[str, int]:
        key = (group.uid, group.name)
        if key not in self._held:
            self._held[key] = self._state.held(*key)
        return self._held[key]


def task_events(draft: Draft, command: TaskEvents) -> int:
    """Returns: how many of the events were void: doubled, late, or of a placement that is over."""
    void = 0
    for event in command.events:
        placement = draft.placement(event.placement)
        if (
            placement is None
            or placement.executor != command.executor
            or placement.incarnation != command.incarnation
            or not placement.start <= event.start < event.stop <= placement.stop
        ):
            void += 1
            continue
        named = ((1 << (event.stop - event.start)) - 1) << (event.start - placement.start)
        bits = named & placement.left
        whole = bits == named
        end = _ENDS.get(event.kind)
        if event.kind == "started" and bits & ~placement.started:
            draft.placements[placement.id] = replace(placement, started=placement.started | bits)
        elif end is None or not bits or (event.results and not whole):
            void += 1
        else:
            end(draft, placement, bits, event)
            _count_used(draft, placement, event)
    return void


def _count_used(draft: Draft, placement: Placement, event: TaskEvent) -> None:
    key = (placement.uid, placement.group)
    group = draft.groups.get(key)
    if group is not None and (event.cpu_us or event.memory_bytes):
        most = max(group.memory_bytes, event.memory_bytes)
        cpu_us = min(group.cpu_us + event.cpu_us, AMOUNT_MAX)  # what has no end cannot be kept in a snapshot
        draft.groups[key] = replace(group, cpu_us=cpu_us, memory_bytes=most)


def lose(draft: Draft, placement: Placement, executor: Executor) -> None:
    """A placement ends since its executor is gone. That is nobody's failure, but a task that saw it LOST_MAX
    times may be what kills executors, so it fails. Members of framework jobs may run for a year: theirs are counted
    from 1 again after LOST_RESET_MS."""
    ran_ms = draft.state.wall_ms - placement.placed_at_ms
    healthy = placement.uid in draft.state.framework and ran_ms >= LOST_RESET_MS
    bits, losses = placement.left, 1 if healthy else placement.losses + 1
    group, bits = _take_out(draft, placement, bits)
    if group.closed or not bits:
        return
    if losses < LOST_MAX:
        _wait(draft, placement, bits, draft.state.now_ms, placement.failures, losses)
    else:
        error = f"lost {losses} times with its executor; the last was {executor.name}"
        _fail(draft, placement, bits, error)


def restore_bits(draft: Draft, key: GroupKey, index: int) -> None:
    """A task that had succeeded has not."""
    chunk, bit = (*key, index // CHUNK_TASKS), 1 << (index % CHUNK_TASKS)
    ended = draft.chunk(chunk)
    assert ended.succeeded & bit, f"task {key}/{index} is to run again, but has not succeeded"
    draft.ended[chunk] = replace(ended, succeeded=ended.succeeded & ~bit)


def withdrawn_bits(chunk: Callable[[ChunkKey], Ended], key: GroupKey, start: int, stop: int) -> int:
    """Which of the tasks [start, stop) of a group were withdrawn: bit 0 is task `start`."""
    bits = 0
    for number in range(start // CHUNK_TASKS, (stop - 1) // CHUNK_TASKS + 1):
        shift = number * CHUNK_TASKS - start
        found = chunk((*key, number)).withdrawn
        bits |= found << shift if shift >= 0 else found >> -shift
    return bits & ((1 << (stop - start)) - 1)


def fresh_runs(state: State, group: Group) -> Iterator[tuple[int, int]]:
    """The ranges [from, to) of a group's tasks that were never placed, nor withdrawn."""
    if not group.withdrawn:
        yield group.cursor, group.count
        return
    key = (group.uid, group.name)
    for start in range(group.cursor, group.count, CHUNK_TASKS):
        stop = min(group.count, start + CHUNK_TASKS)
        gone = withdrawn_bits(lambda chunk: state.ended.get(chunk, Ended()), key, start, stop)
        yield from runs(((1 << (stop - start)) - 1) & ~gone, start)


def runs(bits: int, start: int) -> Iterator[tuple[int, int]]:
    """The ranges [from, to) of tasks in a bit set whose bit 0 is task `start`, in order."""
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        start += skip
        length = (~bits & (bits + 1)).bit_length() - 1
        yield start, start + length
        bits >>= length
        start += length


def lowest(bits: int, count: int) -> int:
    """The `count` lowest of the bits that are set."""
    if bits.bit_count() <= count:
        return bits
    kept = 0
    for _ in range(count):
        kept |= bits & -bits
        bits &= bits - 1
    return kept


def backoff_ms(policy: RetryPolicy, uid: int, index: int, attempt: int, failures: int) -> Millis:
    """How long a task waits for its next attempt.

    It grows by the policy's multiplier with each failure. One tenth more or less, by a hash and without dice,
    keeps tasks that failed together from coming back together.
    """
    most = policy.backoff_ms_max * 1_000
    micros = policy.backoff_ms * 1_000
    for _ in range(failures - 1):
        if micros >= most:
            break
        micros = micros * policy.multiplier_milli // 1_000
    jitter = crc32(b"%d/%d/%d" % (uid, index, attempt)) % 2_001 - 1_000
    return min(micros, most) * (10_000 + jitter) // 10_000_000


# Placing.


def _takes(state: State, executor: Executor, place: Place) -> bool:
    return (
        executor.alive
        and executor.name not in state.drains
        and executor.incarnation == place.incarnation
        and 0 < place.stop - place.start <= PLACEMENT_TASKS_MAX
    )


def _place(draft: Draft, group: Group, place: Place) -> Placement | None:
    key = (place.uid, place.group)
    job = draft.job(place.uid)
    assert job is not None, f"group {key} has no job"
    if job.paused:
        return None
    failures = losses = 0
    cursor = group.cursor
    left = (1 << (place.stop - place.start)) - 1
    if place.attempt == 1:
        if place.start < cursor or place.stop > group.count:
            return None
        gone = withdrawn_bits(draft.chunk, key, cursor, place.stop) if group.withdrawn else 0
        skipped = (1 << (place.start - cursor)) - 1
        left &= ~(gone >> (place.start - cursor))
        if gone & skipped != skipped or not left:
            return None
        cursor = place.stop
    else:
        first = _take_retries(draft, key, place)
        if first is None:
            return None
        failures, losses = first.failures, first.losses
    if not job.started_at_ms:
        draft.jobs[job.id] = replace(job, started_at_ms=draft.state.wall_ms, queue_deadline_at_ms=0)
    placement = Placement(
        id=draft.next_placement,
        uid=place.uid,
        job_id=job.id,
        group=place.group,
        start=place.start,
        stop=place.stop,
        attempt=place.attempt,
        executor=place.executor,
        incarnation=place.incarnation,
        left=left,
        failures=failures,
        losses=losses,
        placed_at_ms=draft.state.wall_ms,
    )
    draft.next_placement += 1
    draft.placements[placement.id] = placement
    draft.groups[key] = replace(group, cursor=cursor, out=group.out + left.bit_count())
    return placement


def _take_retries(draft: Draft, key: GroupKey, place: Place) -> Retry | None:
    """Take the tasks of `place` from those that wait. They must be due, in the same attempt, with the same
    past.

    Returns: the first row, or None, and nothing is taken, if they do not match.
    """
    taken: list[Retry] = []
    position = place.start
    while position < place.stop:
        retry = draft.retry(key, position)
        if retry is None or retry.attempt != place.attempt or retry.due_at_ms > draft.state.now_ms:
            return None
        taken.append(retry)
        if (retry.failures, retry.losses) != (taken[0].failures, taken[0].losses):
            return None
        position = retry.stop
    for retry in taken:
        draft.retries[(*key, retry.index)] = None
    if position > place.stop:
        draft.retries[(*key, place.stop)] = replace(taken[-1], index=place.stop)
    return taken[0]


# Ending. Each takes the tasks whose bits are set out of the placement, which holds them all.


def _take_out(draft: Draft, placement: Placement, bits: int, *, succeeded: bool = False) -> tuple[Group, int]:
    """Returns: the group, and the tasks whose end is to be told from how they ended: those that were withdrawn have
    ended with that, unless they have succeeded."""
    left = placement.left & ~bits
    draft.placements[placement.id] = (
        replace(placement, left=left, started=placement.started & left, withdrawn=placement.withdrawn & left)
        if left
        else None
    )
    key = (placement.uid, placement.group)
    group = draft.group(key)
    assert group is not None, f"placement {placement.id} has no group"
    over = group.closed and draft.state.format < WITHDRAWN_FORMAT
    gone = 0 if succeeded or over else bits & placement.withdrawn
    group = replace(group, out=group.out - bits.bit_count(), withdrawn=group.withdrawn + gone.bit_count())
    draft.groups[key] = group
    for chunk, mask in _chunks(placement, gone):
        ended = draft.chunk((*key, chunk))
        draft.ended[(*key, chunk)] = replace(ended, withdrawn=ended.withdrawn | mask)
    draft.touched[placement.uid] = None
    return group, bits & ~gone


def _succeeded(draft: Draft, placement: Placement, bits: int, event: TaskEvent) -> None:
    group, _ = _take_out(draft, placement, bits, succeeded=True)
    key = (placement.uid, placement.group)
    draft.groups[key] = replace(group, succeeded=group.succeeded + bits.bit_count())
    for chunk, mask in _chunks(placement, bits):
        ended = draft.chunk((*key, chunk))
        draft.ended[(*key, chunk)] = replace(ended, succeeded=ended.succeeded | mask)
    if event.results:
        _add_row(draft, placement, event.start, event.stop, outcome="succeeded", results=event.results, event=event)


def _failed(draft: Draft, placement: Placement, bits: int, event: TaskEvent) -> None:
    group, bits = _take_out(draft, placement, bits)
    job = draft.job(placement.uid)
    assert job is not None, f"placement {placement.id} has no job"
    spec = group_spec(job, group)
    healthy = 0 < spec.retry.reset_ms <= event.run_ms
    failures = 1 if healthy else placement.failures + 1
    again = bits
    if group.closed or failures >= spec.retry.attempts_max or _is_final(spec, event):
        again = 0
    elif job.spec.retries_max is not None:
        again = lowest(bits, job.spec.retries_max - job.retries)
        draft.jobs[job.id] = replace(job, retries=job.retries + again.bit_count())
    if again:
        wait_ms = backoff_ms(spec.retry, placement.uid, event.start, placement.attempt, failures)
        _wait(draft, placement, again, draft.state.now_ms + wait_ms, failures, placement.losses)
    if again != bits:
        _fail(draft, placement, bits & ~again, event.error or f"exit code {event.exit_code}", event)


def _is_final(spec: GroupSpec, event: TaskEvent) -> bool:
    """Whether another try cannot help, as the executor or the job says."""
    if event.final or (event.exit_code and event.exit_code in spec.retry.final_exit_codes):
        return True
    return bool(spec.retry.final_errors) and event.error.partition(":")[0] in spec.retry.final_errors


def _handed_back(draft: Draft, placement: Placement, bits: int, _event: TaskEvent) -> None:
    """Nothing is counted against them. Of a job that was canceled they are canceled by that."""
    group, bits = _take_out(draft, placement, bits)
    if not group.closed:
        _wait(draft, placement, bits, draft.state.now_ms, placement.failures, placement.losses)


_ENDS = {"succeeded": _succeeded, "failed": _failed, "released": _handed_back, "canceled": _handed_back}


def _wait(draft: Draft, placement: Placement, bits: int, due_at_ms: Millis, failures: int, losses: int) -> None:
    for start, stop in runs(bits, placement.start):
        draft.retries[placement.uid, placement.group, start] = Retry(
            start, placement.attempt + 1, due_at_ms, failures, losses, stop
        )


def _fail(draft: Draft, placement: Placement, bits: int, error: str, event: TaskEvent | None = None) -> None:
    key = (placement.uid, placement.group)
    group = draft.groups[key]
    many = group.failed >= ERRORS_WHOLE_MAX and draft.state.format >= ERRORS_FORMAT
    error = error[: ERROR_CHARS_LATER if many else ERROR_CHARS_MAX]
    draft.groups[key] = replace(group, failed=group.failed + bits.bit_count())
    for chunk, mask in _chunks(placement, bits):
        ended = draft.chunk((*key, chunk))
        draft.ended[(*key, chunk)] = replace(ended, failed=ended.failed | mask)
    for start, stop in runs(bits, placement.start):
        _add_row(draft, placement, start, stop, outcome="failed", error=error, event=event)


def _chunks(placement: Placement, bits: int) -> Iterator[tuple[int, int]]:
    """The bit set of a placement's tasks as bit sets of its group's chunks; a placement meets two at most."""
    chunk, offset = divmod(placement.start, CHUNK_TASKS)
    bits <<= offset
    low, high = bits & _CHUNK_MASK, bits >> CHUNK_TASKS
    if low:
        yield chunk, low
    if high:
        yield chunk + 1, high


_CHUNK_MASK = (1 << CHUNK_TASKS) - 1


def _add_row(
    draft: Draft,
    placement: Placement,
    start: int,
    stop: int,
    *,
    outcome: str,
    results: bytes = b"",
    error: str = "",
    event: TaskEvent | None = None,
) -> None:
    job = draft.job(placement.uid)
    assert job is not None, f"placement {placement.id} has no job"
    draft.results[job.uid, job.result_rows] = ResultRow(
        placement.group,
        start,
        stop,
        placement.attempt,
        placement.executor,
        placement.incarnation,
        outcome,
        results,
        error,
        draft.state.wall_ms,
        cpu_us=event.cpu_us if event else 0,
        memory_bytes=event.memory_bytes if event else 0,
    )
    draft.jobs[job.id] = replace(job, result_rows=job.result_rows + 1)
