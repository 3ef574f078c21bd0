"""Which task goes where.

The plan is policy and stays out of the log: only its outcome, `PlaceTasks`, is replicated, and `apply` checks
each part of it again. So the policy can change from one release to the next, or differ between masters.

First all slots are filled, then backlogs. The order of both: jobs of higher priority first. At equal priority, the
projects get slots by their weights, counting what they have; within a project its jobs share evenly, so that a job of
a million tasks does not keep a job of one waiting. Within a job: group by group, retries before tasks that were never
placed. Each range goes to the executors that fit, an even share to each, the one with most free slots first.

A task that may not lie in a backlog (it is long, or was never measured) needs a slot that is really free. Backlogs of
short tasks, topped up in each plan, would leave it none for ever. So as long as a job with such tasks has less than
its share of slots, executors with as many slots as it lacks get no backlog from jobs that are not more urgent; they
are worked off in about 100 ms. Nor may anything lie behind such a task: the slot that it holds gets no backlog.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import accumulate, islice
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from tiflow.sched.candidates import Constraint, Demand, Depth, Floor, hold_slots, no_members, rooms
from tiflow.sched.commands import Place
from tiflow.sched.looks import STEPS_MAX, Looks, Walk
from tiflow.sched.model import (
    BACKLOG_PER_SLOT_MAX,
    PLACEMENT_TASKS_MAX,
    Executor,
    Group,
    GroupSpec,
    Job,
    Millis,
    Retry,
    Selector,
    group_spec,
)
from tiflow.sched.room import NO_BOUND, Needs
from tiflow.sched.shares import fair_shares
from tiflow.sched.state import GroupKey, State
from tiflow.sched.tasks import fresh_runs

PLACES_MAX = 1_000  #: of one plan, about: it bounds the time that planning and applying take, about 10 ms each
SOME_JOBS = 100  #: of a project, which a plan looks at though they have nothing out
SOME_JOBS_IN_ALL = 500


def plan(
    state: State,
    now_ms: Millis,
    targets: Mapping[str, int],
    budget: int = 10_000,
    depth: Depth = lambda uid, group: BACKLOG_PER_SLOT_MAX,
    looks: Looks | None = None,
) -> list[Place]:
    """Place what can be placed now.

    Pure but for `looks`: the same arguments give the same plan. It costs O(executors + jobs with tasks that wait or
    are out + places), and ends when it has PLACES_MAX places, so plan again once it is applied, until nothing comes.

    Args:
        state: read, not written.
        now_ms: log time at which the plan will be applied, or earlier; retries that are due later are passed
            over.
        targets: by executor uid: how many tasks should be out on it in all, slots and backlog. An executor
            that is not named gets nothing.
        budget: most tasks in one plan, which bounds the size of its log entry.
        depth: (job uid, group name) -> how many tasks an executor may hold per slot, beyond the one that runs,
            when a task of this group comes on top. Groups of slow tasks, or never measured ones, get 0, as members of
            framework jobs do without being asked for.
        looks: kept from plan to plan, it bounds what is looked at in vain by one of them; then O(jobs with waiting
            tasks) is out of the costs above. Plan again as long as it is `cut`.
    """
    planner = _Planner(state, now_ms, targets, budget, no_members(state, depth), looks)
    planner.fill_slots()
    planner.fill_backlogs()
    planner.end()
    return planner.places()


class _Planner:
    """A plan in the making."""

    def __init__(
        self,
        state: State,
        now_ms: Millis,
        targets: Mapping[str, int],
        budget: int,
        depth: Callable[[int, str], int],
        looks: Looks | None,
    ) -> None:
        self._state = state
        self._now_ms = now_ms
        self._depth = depth
        self._rooms = rooms(state, targets)
        self._looks = looks or Looks(cost_max=NO_BOUND)
        self._floor = Floor(self._rooms, NO_BOUND if looks is None else STEPS_MAX)
        self._wary = False  #: something was looked at in vain
        self._vain: set[_Kind] = set()  #: what there is no slot for any more; only asked, never iterated
        self._left = budget
        self._slots = sum(state.executors[uid].slots for uid in targets if uid in state.executors)
        self._size = _Size()
        self._supplies: dict[int, _Supply] = {}  #: by job uid, those that were looked at
        self._taken: dict[str, int] = {}  #: by project: tasks in this plan

    def places(self) -> list[Place]:
        return [place for supply in self._supplies.values() for place in supply.places()]

    def fill_slots(self) -> None:
        slots = sum(room.slots for room in self._rooms)
        queues = self._state.queues
        used = self._used() if any(len(projects) > 1 for projects in queues.values()) else {}
        cost_max = self._looks.begin(sum(map(len, queues.values())))
        walks = []
        for priority in sorted(queues, reverse=True):
            if slots <= 0:
                break
            lines = {}
            for name, queue in queues[priority].items():
                at = self._looks.at((priority, name))
                uids = _turn(self._state, queue, slots) if at is None else _from(queue, bisect_left(queue, at))
                walk = Walk((priority, name), uids, cost_max)
                walks.append(walk)
                lines[name] = _Line(self._supply, self._worth_a_look(walk), len(uids))
            slots -= self._share(lines, used, slots, deep=False)
        for walk in walks:
            self._looks.end(walk)

    def end(self) -> None:
        self._looks.end_plan(finished=self._floor.finished)

    def fill_backlogs(self) -> None:
        """Of jobs that have something out, and of some others: mostly those were not measured yet."""
        if all(room.free <= room.slots for room in self._rooms):
            return  # what fits has got its slot
        queues: dict[int, dict[str, list[int]]] = {}
        levels = self._state.queues.values()
        others = [uid for projects in levels for queue in projects.values() for uid in self._some(queue)]
        waiting = self._state.waiting
        for uid in sorted({**self._state.of_job, **self._supplies, **dict.fromkeys(others)}):
            if any(self._depth(uid, name) for name in waiting.get(uid, ())):
                spec = self._supply(uid).job.spec
                queues.setdefault(spec.priority, {}).setdefault(spec.project, []).append(uid)
        if queues:
            hold_slots(self._state, self._rooms, self._depth)
        for priority in sorted(queues, reverse=True):
            self._reserve(priority)
            room = sum(room.free for room in self._rooms)
            lines = {name: _Line(self._supply, queue, len(queue)) for name, queue in queues[priority].items()}
            self._share(lines, {}, room, deep=True)

    def _worth_a_look(self, walk: Walk) -> Iterator[int]:
        """The jobs of a queue for which there may be a slot."""
        for uid in walk.uids:
            if walk.too_far:
                return
            walk.seen += 1
            if self._wary and self._is_vain(uid):
                walk.passed()
                continue
            tested = self._floor.tested
            yield uid
            supply = self._supply(uid)
            if not supply.allotted:
                self._wary = True
                walk.looked_in_vain(self._floor.tested - tested)
                self._vain.update(_kind(wanted.spec) for wanted in supply.misfits(self._floor))

    def _is_vain(self, uid: int) -> bool:
        """Whether it is certain that no task of the job gets a slot in this plan."""
        state = self._state
        for name in state.waiting[uid]:
            key = (uid, name)
            group = state.groups[key]
            due = state.due.get(key)
            if (group.fresh or (due and due[0][0] <= self._now_ms)) and _kind(state.spec_of(group)) not in self._vain:
                return False
        return True

    def _share(self, lines: "dict[str, _Line]", used: dict[str, float], count: int, *, deep: bool) -> int:
        """Share `count` tasks between projects. What one cannot use goes to the others. Returns: tasks placed."""
        placed = 0
        while lines and (left := min(self._left, count - placed)) > 0 and not self._size.full:
            names = self._drawn(sorted(lines)) if len(lines) > 1 else list(lines)
            weights = [self._state.project(name).weight for name in names]
            shares = fair_shares([used.get(name, 0) for name in names], weights, left)
            for name, share in zip(names, shares, strict=True):
                quota = min(share, self._quota(name))
                got = lines[name].place(self._floor, quota, self._size, deep=deep) if quota else 0
                self._taken[name] = self._taken.get(name, 0) + got
                used[name] = used.get(name, 0) + got
                self._left -= got
                placed += got
                if got < share:
                    del lines[name]
        return placed

    def _drawn(self, names: list[str]) -> list[str]:
        """Begin with one that is drawn by weight: when there are fewer slots than projects, equals take turns, by
        their weights. See `_turn` for the draw."""
        weights = list(accumulate(self._state.project(name).weight for name in names))
        first = bisect_right(weights, _golden(self._state, weights[-1]))
        return names[first:] + names[:first]

    def _quota(self, project: str) -> int:
        slots_max = self._state.project(project).slots_max
        taken = self._state.usage_of(project).out + self._taken.get(project, 0)
        return max(0, slots_max - taken) if slots_max else NO_BOUND

    def _some(self, queue: list[int]) -> Sequence[int]:
        queues = sum(map(len, self._state.queues.values()))
        count = max(1, min(SOME_JOBS, SOME_JOBS_IN_ALL // queues))
        return _turn(self._state, queue, count)[:count]

    def _supply(self, uid: int) -> "_Supply":
        supply = self._supplies.get(uid)
        if supply is None:
            job = self._state.job_of(uid)
            assert job is not None, f"job {uid} is queued"
            supply = self._supplies[uid] = _Supply(self._state, job, self._now_ms, self._depth, self._size)
        return supply

    def _used(self) -> dict[str, float]:
        """By project: slots that its tasks take, about: of a group with a backlog, several that are out share one."""
        used: dict[str, float] = {}
        for uid in self._state.of_job:
            job = self._state.job_of(uid)
            assert job is not None, f"job {uid} has tasks out"
            for group in self._state.groups_of(job):
                if group.out:
                    slots = group.out / (1 + self._depth(uid, group.name))
                    used[job.spec.project] = used.get(job.spec.project, 0) + slots
        return used

    def _reserve(self, priority: int) -> None:
        """Keep executors from a backlog for jobs of that priority, or a higher one, that lack slots."""
        wanted: dict[Constraint, tuple[Demand, int]] = {}
        levels = [projects for at, projects in self._state.queues.items() if at >= priority]
        queues = [queue for projects in levels for name, queue in projects.items() if self._quota(name) > 0]
        jobs = sum(len(queue) for queue in queues)
        for queue in queues:
            for uid in self._some(queue):
                supply = self._supply(uid)
                lacks = max(1, self._slots // jobs) - supply.out
                for demand, waiting in supply.shallow() if lacks > 0 else ():
                    known = wanted.get(demand.constraint, (demand, 0))[1]
                    wanted[demand.constraint] = (demand, known + min(lacks, waiting))
        for demand, count in wanted.values():
            self._floor.reserve(demand, count)


#: what decides whether there is a slot for a task at all
_Kind: TypeAlias = tuple[tuple[Selector, ...], Needs, str]


def _kind(spec: GroupSpec) -> _Kind:
    return spec.selectors, tuple(spec.resources.items()), spec.placement.strategy


# What waits.


class _Size(Struct):
    """How large a plan is."""

    pieces: int = 0  #: places that will come of it, about

    @property
    def full(self) -> bool:
        return self.pieces >= PLACES_MAX


class _Wanted:
    """The waiting tasks of a group, and who gets how many of them."""

    def __init__(self, state: State, job: Job, group: Group, now_ms: Millis, depth: int, size: _Size) -> None:
        self.group = group
        self.spec = group_spec(job, group)
        self._size = size
        self.depth = depth
        self.runs = _Runs(_waiting_runs(state, group, now_ms))
        self.shares: dict[str, tuple[Executor, int]] = {}  #: by uid
        self.allotted = 0
        self.demand = Demand(state, job, group, 0, lasting=not depth)  #: for a slot

    def place(self, floor: Floor, quota: int, *, deep: bool) -> int:
        """Find places for up to `quota` tasks more. Returns: for how many."""
        if deep and not self.depth:
            return 0
        if deep and self.demand.constraint.depth != self.depth:
            self.demand.constraint = replace(self.demand.constraint, depth=self.depth)
        if not floor.fits(self.demand):
            return 0
        before, pieces = self.allotted, len(self.shares) + self.runs.read
        available = self.runs.available(before + quota) - before
        for executor, share in floor.allot(self.demand, available) if available > 0 else ():
            _, known = self.shares.get(executor.uid, (executor, 0))
            self.shares[executor.uid] = (executor, known + share)
            self.allotted += share
        self._size.pieces += len(self.shares) + self.runs.read - pieces
        return self.allotted - before


class _Supply:
    """The waiting tasks of a job, in the order in which they are to be placed."""

    def __init__(self, state: State, job: Job, now_ms: Millis, depth: Callable[[int, str], int], size: _Size) -> None:
        self.job = job
        groups = sorted((state.groups[job.uid, name] for name in state.waiting[job.uid]), key=_position)
        self._wanted = [_Wanted(state, job, group, now_ms, depth(group.uid, group.name), size) for group in groups]
        self._out = sum(group.out for group in state.groups_of(job))
        self.depth = max(wanted.depth for wanted in self._wanted)

    @property
    def out(self) -> int:
        return self._out + self.allotted

    @property
    def allotted(self) -> int:
        return sum(wanted.allotted for wanted in self._wanted)

    def misfits(self, floor: Floor) -> "list[_Wanted]":
        """Groups for which there is no slot."""
        return [wanted for wanted in self._wanted if not floor.fits(wanted.demand)]

    def place(self, floor: Floor, quota: int, *, deep: bool) -> int:
        """Find places for up to `quota` tasks. Returns: for how many; fewer means that there are no more."""
        placed = 0
        for wanted in self._wanted:
            if placed == quota:
                break
            placed += wanted.place(floor, quota - placed, deep=deep)
        return placed

    def shallow(self) -> Iterator[tuple[Demand, int]]:
        """Groups with tasks that wait for a slot and may not lie in a backlog, and how many these are."""
        for wanted in self._wanted:
            if not wanted.depth and (left := wanted.runs.available(wanted.allotted + 1) - wanted.allotted):
                yield wanted.demand, max(left, wanted.group.fresh - wanted.allotted)

    def places(self) -> Iterator[Place]:
        for wanted in self._wanted:
            for executor, share in wanted.shares.values():
                yield from _places(wanted.group, executor, wanted.runs, share)


def _places(group: Group, executor: Executor, runs: "_Runs", count: int) -> Iterator[Place]:
    while count:
        start, stop, attempt = runs.take(min(count, PLACEMENT_TASKS_MAX))
        yield Place(group.uid, group.name, start, stop, attempt, executor.uid, executor.incarnation)
        count -= stop - start


class _Runs:
    """Ranges of waiting tasks (start, stop, attempt), read as far as they are needed."""

    def __init__(self, source: Iterator[tuple[int, int, int]]) -> None:
        self._source = source
        self._read: list[tuple[int, int, int]] = []  #: the next one last
        self._count = 0
        self.read = 0  #: ranges so far

    def available(self, wanted: int) -> int:
        """How many tasks there are, up to `wanted`, in at most PLACES_MAX more ranges."""
        if self._count < wanted:
            more = []
            for run in islice(self._source, PLACES_MAX):
                more.append(run)
                self._count += run[1] - run[0]
                if self._count >= wanted:
                    break
            self._read = more[::-1] + self._read
            self.read += len(more)
        return min(self._count, wanted)

    def take(self, count: int) -> tuple[int, int, int]:
        """The next run, or its first `count` tasks."""
        start, stop, attempt = self._read.pop()
        if stop - start > count:
            self._read.append((start + count, stop, attempt))
            stop = start + count
        self._count -= stop - start
        return start, stop, attempt


def _waiting_runs(state: State, group: Group, now_ms: Millis) -> Iterator[tuple[int, int, int]]:
    """Retries that are due, and then what was never placed."""
    held: Retry | None = None
    stop = 0
    for retry in _due(state, (group.uid, group.name), now_ms):
        if held is not None:
            if stop == retry.index and _alike(held, retry):
                stop = retry.stop
                continue
            yield held.index, stop, held.attempt
        held, stop = retry, retry.stop
    if held is not None:
        yield held.index, stop, held.attempt
    if group.fresh:
        for start, stop in fresh_runs(state, group):
            yield start, stop, 1


def _due(state: State, key: GroupKey, now_ms: Millis) -> Iterator[Retry]:
    """The retries of a group that are due, the longest due first: a walk down its heap, which stays as it
    is."""
    heap, rows = state.due.get(key), state.retries.get(key)
    if not heap or not rows:
        return
    frontier = [(heap[0], 0)]
    seen: set[int] = set()  # only asked, never iterated
    while frontier:
        (due_at_ms, index), i = heappop(frontier)
        if due_at_ms > now_ms:
            return
        for child in (2 * i + 1, 2 * i + 2):
            if child < len(heap):
                heappush(frontier, (heap[child], child))
        row = rows.get(index)
        if row is not None and row.due_at_ms == due_at_ms and index not in seen:
            seen.add(index)
            yield row


def _alike(one: Retry, other: Retry) -> bool:
    return (one.attempt, one.failures, one.losses) == (other.attempt, other.failures, other.losses)


def _position(group: Group) -> int:
    return group.position


# Shares.


def _turn(state: State, queue: list[int], budget: int) -> list[int]:
    """The jobs in the order in which they get their share.

    It is that of submission, unless there are too many for each to get something in this plan: then the plan starts
    somewhere else each time, or those in front would take every slot that becomes free. Multiples of the golden
    ratio spread evenly, whatever the step from one plan's number to the next.
    """
    if len(queue) <= min(budget, PLACES_MAX):
        return queue
    return _from(queue, _golden(state, len(queue)))


def _from(queue: list[int], start: int) -> list[int]:
    return queue[start:] + queue[:start]


def _golden(state: State, count: int) -> int:
    """A number below `count` that is another one in each plan."""
    return (state.next_placement * 2_654_435_761 % 2**32) * count >> 32


class _Line:
    """The jobs of a project, which share evenly what it gets."""

    def __init__(self, supply: "Callable[[int], _Supply]", uids: Iterable[int], count: int) -> None:
        """`count`: how many there are at most."""
        self._supply = supply
        self._count = count
        self._fresh = iter(uids)  #: not looked at yet
        self._active: list[_Supply] = []  #: that may have more

    def place(self, floor: Floor, quota: int, size: _Size, *, deep: bool) -> int:
        """Find places for up to `quota` tasks. Returns: for how many; fewer means that there are no more, or that the
        plan is full."""
        left = quota
        share = max(1, left // self._count)
        while left > 0 and not size.full and (uid := next(self._fresh, None)) is not None:
            left -= self._take(self._supply(uid), floor, min(share, left), self._active, deep=deep)
        while self._active and left > 0 and not size.full:
            share = max(1, left // len(self._active))
            active, self._active = self._active, []
            for at, supply in enumerate(active):
                if left <= 0 or size.full:
                    self._active += active[at:]
                    break
                left -= self._take(supply, floor, min(share, left), self._active, deep=deep)
        return quota - left

    @staticmethod
    def _take(supply: "_Supply", floor: Floor, quota: int, active: "list[_Supply]", *, deep: bool) -> int:
        placed = supply.place(floor, quota, deep=deep)
        if placed == quota:
            active.append(supply)
        return placed
