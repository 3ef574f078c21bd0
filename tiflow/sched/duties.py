"""What the leader must propose now, besides the plan, and when to look again."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from tiflow.sched.commands import AnyCommand, CloseGroups, ExpireExecutor, ExpireJob
from tiflow.sched.model import Job, Millis
from tiflow.sched.state import State

T = TypeVar("T", Millis, tuple[Millis, int])


def due(state: State, lost: Iterable[tuple[str, int]], now_ms: Millis, gone: Iterable[int] = ()) -> list[AnyCommand]:
    """The commands that the state calls for.

    Args:
        state: read, not written.
        lost: (uid, incarnation) of executors whose lease is over; those that the state has ended already need
            none.
        now_ms: log time at which they will be applied, or earlier.
        gone: uids of jobs whose client was not heard of for its TTL.
    """
    reached, _ = _split(state.deadlines, (now_ms + 1, 0))
    late = {uid: None for at_ms, uid in reached if state.is_deadline(at_ms, uid)}
    expire_jobs: list[AnyCommand] = [ExpireJob(uid) for uid in sorted(late)]
    clients_gone: list[AnyCommand] = [
        CloseGroups(uid, f"its client is gone: not heard of for {job.spec.client_ttl_ms} ms")
        for uid in sorted(gone)
        if (job := state.job_of(uid)) is not None and needs_client(job)
    ]
    return [*expire_jobs, *clients_gone] + [
        ExpireExecutor(uid, incarnation, "its lease ran out")
        for uid, incarnation in sorted(lost)
        if (executor := state.executors.get(uid)) is not None
        and executor.alive
        and executor.incarnation == incarnation
    ]


def recalled(state: State, now_ms: Millis) -> dict[str, tuple[int, ...]]:
    """What is to be stopped and placed elsewhere since its executor is drained: by the uids of executors, the ids of
    placements, ascending; none is empty. Of framework jobs at once, for their members do not end by themselves; of
    others once the deadline of the drain has passed. O(drains + what is out on these executors)."""
    found: dict[str, tuple[int, ...]] = {}
    for name, drain in state.drains.items():
        uid = state.names.get(name, "")
        if not state.out(uid):
            continue
        late = 0 < drain.deadline_at_ms <= now_ms
        if ids := tuple(row.id for row in state.placements_on(uid) if late or row.uid in state.framework):
            found[uid] = ids
    return found


def needs_client(job: Job) -> bool:
    """Whether the job fails if its client is gone."""
    return bool(job.spec.client_ttl_ms) and not job.closed and not job.ended_at_ms


def next_due_ms(state: State, now_ms: Millis) -> Millis | None:
    """When to look again, in log time, unless something happens before: the next retry or deadline (of a job, of a
    drain) after `now_ms`, or None. A retry's time is rounded up to ALARM_STEP_MS; a deadline may be one that its job
    no longer has.

    What is due already is not told: it waits for room, and whoever makes room is heard of. O(what has fallen due
    since the state was last written).
    """
    _, alarms = _split(state.alarms, now_ms + 1)
    _, deadlines = _split(state.deadlines, (now_ms + 1, 0))
    drains = (drain.deadline_at_ms for drain in state.drains.values() if drain.deadline_at_ms > now_ms)
    return min([*alarms, *(at_ms for at_ms, _ in deadlines), *drains], default=None)


def _split(heap: Sequence[T], limit: T) -> tuple[list[T], list[T]]:
    """The entries of a heap that are less than `limit`, and those that come next, the least of the others among
    them."""
    below: list[T] = []
    beyond: list[T] = []
    ahead = [0] if heap else []
    while ahead:
        i = ahead.pop()
        if heap[i] < limit:
            below.append(heap[i])
            ahead += [child for child in (2 * i + 1, 2 * i + 2) if child < len(heap)]
        else:
            beyond.append(heap[i])
    return below, beyond
