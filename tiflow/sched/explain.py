"""Why tasks wait: which executors each filter of the placement removes.

The filters ask what `candidates` asks, in words. So an executor that none of them removes is a candidate of the plan,
and the plan places something as long as there is one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

from msgspec import Struct

from tiflow.sched.candidates import Demand, Depth, hold_slots, no_members
from tiflow.sched.dependencies import why_not
from tiflow.sched.model import BACKLOG_PER_SLOT_MAX, Executor, Group, Job, Millis, Selector
from tiflow.sched.room import Room, capacity_of, show_amount
from tiflow.sched.selectors import selects, show
from tiflow.sched.state import State


class Filter(Struct, frozen=True):
    """A condition on executors."""

    name: str  #: alive, connected, drain, selector, capacity, slots, resource or max-per-executor
    wants: str  #: in the words of the job file, as "gpu=1"
    removes: int  #: executors that it alone removes
    leaves: int  #: executors that it and those before it leave


class Explanation(Struct, frozen=True):
    """Why the waiting tasks of a group wait."""

    group: str
    waiting: int
    total: int
    held: str  #: what keeps them back, wherever there is room; empty: nothing
    executors: int  #: alive
    filters: tuple[Filter, ...]
    candidates: int  #: executors that could take a task now
    summary: str  #: one sentence


def explain(
    state: State,
    uid: int,
    now_ms: Millis,
    targets: Mapping[str, int],
    depth: Depth = lambda uid, group: BACKLOG_PER_SLOT_MAX,
) -> Iterator[Explanation]:
    """One for each group of a job with waiting tasks; of an unknown job nothing waits. Each costs O(executors), the
    first one also O(what is out): the caller may do something else between two of them.

    Args:
        state: read, not written.
        uid: of the job.
        now_ms, targets, depth: as `plan` is given them.
    """
    job = state.job_of(uid)
    groups = [group for group in state.groups_of(job) if group.waiting] if job else []
    alive = [executor for executor in state.executors.values() if executor.alive]
    rooms = {executor.uid: Room.of(state, executor, targets.get(executor.uid, _ALL)) for executor in alive}
    depth = no_members(state, depth)
    if any(depth(uid, group.name) for group in groups):
        hold_slots(state, rooms.values(), depth)
    for group in groups:
        assert job is not None
        filters = _filters(state, Demand(state, job, group, depth(uid, group.name)), targets, rooms)
        yield _explain(state, job, group, now_ms, alive, filters)


def _explain(
    state: State,
    job: Job,
    group: Group,
    now_ms: Millis,
    alive: list[Executor],
    asked: "Iterable[_Asked]",
) -> Explanation:
    filters, candidates = [], alive
    for name, wants, keeps in asked:
        removed = {executor.uid: None for executor in alive if not keeps(executor)}
        candidates = [executor for executor in candidates if executor.uid not in removed] if removed else candidates
        filters.append(Filter(name, wants, len(removed), len(candidates)))
    held = _held(state, job, group, now_ms)
    summary = f"{group.name}: {group.waiting} of {group.count} tasks wait: " + (
        held or _summary(filters, len(alive), len(candidates))
    )
    return Explanation(
        group.name, group.waiting, group.count, held, len(alive), tuple(filters), len(candidates), summary
    )


_ALL = 1 << 30  #: more than any executor takes
#: a filter's name, what it wants, and whether it keeps an executor
_Asked: TypeAlias = tuple[str, str, Callable[[Executor], bool]]


def _filters(state: State, demand: Demand, targets: Mapping[str, int], rooms: Mapping[str, Room]) -> Iterator[_Asked]:
    constraint, most = demand.constraint, demand.policy.max_per_executor
    yield "connected", "a session with the leader", lambda executor: executor.uid in targets
    yield "drain", "not drained", lambda executor: executor.name not in state.drains
    for selector in constraint.selectors:
        yield "selector", show(selector), partial(_selected, selector)
    for name, need in constraint.needs:
        yield "capacity", f"{name}={show_amount(name, need)}", partial(_has, name, need)
    yield "slots", "a free slot", lambda executor: rooms[executor.uid].free_for(constraint.depth) > 0
    for name, need in constraint.needs:
        yield "resource", f"{name}={show_amount(name, need)} free", partial(_has_free, rooms, name, need)
    if most:
        wants = f"fewer than {most} tasks of the group"
        yield "max-per-executor", wants, lambda executor: demand.still(executor) > 0


def _selected(selector: Selector, executor: Executor) -> bool:
    return selects(selector, executor.labels.get(selector.key))


def _has(resource: str, need: int, executor: Executor) -> bool:
    return capacity_of(executor, resource) >= need


def _has_free(rooms: Mapping[str, Room], resource: str, need: int, executor: Executor) -> bool:
    """Or it never has: that is what `_has` tells."""
    return not _has(resource, need, executor) or rooms[executor.uid].takes(((resource, need),))


def _held(state: State, job: Job, group: Group, now_ms: Millis) -> str:
    """What keeps all of its waiting tasks back; empty: nothing does."""
    if job.paused:
        return "the job is paused"
    if group.held:
        return why_not(job, group, state.groups_of(job))
    project = state.project(job.spec.project)
    if 0 < project.slots_max <= state.usage_of(project.name).out:
        return f"project {project.name} has its quota of {project.slots_max} slots"
    if not group.fresh:
        retries = state.retries.get((group.uid, group.name), {})
        wait_ms = min((row.due_at_ms for row in retries.values()), default=0) - now_ms
        if wait_ms > 0:
            return f"they failed before; the next retry is due in {wait_ms} ms"
    return ""


def _summary(filters: list[Filter], alive: int, candidates: int) -> str:
    if not alive:
        return "no executor is alive"
    if candidates:
        return f"{candidates} of {alive} executors have room; they are about to be placed"
    return "; ".join(_sentence(one, alive) for one in filters if one.removes)


def _sentence(one: Filter, alive: int) -> str:
    """As "needs gpu=1: 0 of 12 executors have it"."""
    match one.name:
        case "connected":
            return f"{one.removes} of {alive} have no session with the leader, or are stopping"
        case "drain":
            return f"{one.removes} of {alive} are draining"
        case "slots":
            return f"{one.removes} of {alive} have no free slot"
        case "max-per-executor":
            return f"{alive - one.removes} of {alive} have {one.wants}"
        case "resource":
            return f"{one.removes} of {alive} have no {one.wants}"
        case _:
            return f"needs {one.wants}: {alive - one.removes} of {alive} executors have it"
