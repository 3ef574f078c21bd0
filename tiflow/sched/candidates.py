"""Which executors can take a task, and which of them is the best: filter and score.

Candidates are kept by constraint: a plan looks at each executor once for each set of constraints, and at each value
of a label once for each selector, however many jobs share them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from tiflow.sched.model import Executor, Group, Job, PlacementPolicy, Selector, group_spec
from tiflow.sched.room import NO_BOUND, Needs, Room, capacity_of
from tiflow.sched.selectors import Steps, matching, selects
from tiflow.sched.state import State

ZONES_MAX = 100  #: values of a label over which tasks are spread; one with more, as a host name, is no zone
EXHAUSTED_MAX = 20  #: sets of needs that are known to fit nowhere
#: (job uid, group name) -> how many tasks an executor may hold per slot, beyond the one that runs
Depth: TypeAlias = Callable[[int, str], int]
_Entry: TypeAlias = tuple[int, int, int]  #: two numbers that are less the better the room is, and its position


class Constraint(Struct, frozen=True):
    """What decides which executors fit, and which is better. Jobs with equal ones share their candidates."""

    selectors: tuple[Selector, ...]
    needs: Needs
    depth: int  #: backlog per slot
    pack: bool  #: fill those up first that have the fewest slots free


class Demand:
    """What a group wants of the executors: its constraint, and how its tasks are to be spread."""

    def __init__(self, state: State, job: Job, group: Group, depth: int, *, lasting: bool = False) -> None:
        spec = group_spec(job, group)
        self.lasting = lasting  #: its tasks may lie in no backlog, and none may lie behind them
        self.policy: PlacementPolicy = spec.placement
        self.constraint = Constraint(
            spec.selectors, tuple(spec.resources.items()), depth, spec.placement.strategy == "binpack"
        )
        #: whether it matters how many tasks of the group an executor has; and then by its uid: how many
        self.counts = bool(spec.placement.max_per_executor or spec.placement.spread_over)
        self.held = state.held(group.uid, group.name) if self.counts else {}
        self.in_zone: dict[str | None, int] = {}  #: the same by the value of the label over which they are spread
        for uid, count in self.held.items():
            self._add_to_zone(state.executors[uid], count)

    def still(self, executor: Executor) -> int:
        """How many tasks more of the group it may get, whatever its room."""
        return (self.policy.max_per_executor or NO_BOUND) - self.held.get(executor.uid, 0)

    def took(self, executor: Executor, count: int) -> None:
        if self.counts:
            self.held[executor.uid] = self.held.get(executor.uid, 0) + count
            self._add_to_zone(executor, count)

    def _add_to_zone(self, executor: Executor, count: int) -> None:
        if key := self.policy.spread_over:
            zone = executor.labels.get(key)
            self.in_zone[zone] = self.in_zone.get(zone, 0) + count


def rooms(state: State, targets: Mapping[str, int]) -> list[Room]:
    """The executors that can get something, and how much."""
    found = []
    for uid in sorted(targets):
        executor = state.executors.get(uid)
        if executor is None or not executor.alive or executor.name in state.drains:
            continue
        room = Room.of(state, executor, targets[uid])
        if room.free > 0:
            found.append(room)
    return found


def no_members(state: State, depth: Depth) -> Depth:
    """`depth`, but none for framework jobs: their members run for long."""
    if not state.framework:
        return depth
    return lambda uid, group: 0 if uid in state.framework else depth(uid, group)


def hold_slots(state: State, rooms: Iterable[Room], depth: Depth) -> None:
    """Let the tasks that are out and may lie in no backlog hold their slots. O(jobs with tasks out + their groups +
    placements of such tasks)."""
    by_uid = {room.executor.uid: room for room in rooms}
    groups = state.groups
    for uid, ids in state.of_job.items():
        lasting = [name for name in state.group_names[uid] if groups[uid, name].out and not depth(uid, name)]
        for placement in (state.placements[id] for id in ids) if lasting else ():
            if placement.group in lasting and (room := by_uid.get(placement.executor)) is not None:
                room.hold(placement.left.bit_count())


class Floor:
    """All rooms, and the candidates for each constraint.

    Attributes:
        tested: labels that were held against selectors so far.
    """

    def __init__(self, rooms: list[Room], steps: int = NO_BOUND) -> None:
        """`steps`: what may be spent on regular expressions whose verdicts are not known yet. Of a constraint for
        which that does not suffice nothing is a candidate; what was found out helps the next floor."""
        self.tested = 0
        self._steps = Steps(steps)
        self._rooms = rooms
        self._candidates: dict[Constraint, _Candidates] = {}
        self._zones: dict[tuple[Constraint, str], dict[str | None, _Candidates]] = {}
        self._by_label: dict[str, dict[str | None, list[int]]] = {}
        self._matched: dict[tuple[Selector, ...], list[int]] = {}

    @property
    def finished(self) -> bool:
        """Whether `steps` sufficed so far."""
        return self._steps.left > 0

    def fits(self, demand: Demand) -> bool:
        """Whether there may be room for more: False is certain."""
        if zones := self._zones_of(demand):
            return any(zone.heap for zone in zones.values())
        return bool(self._all(demand.constraint).heap)

    def allot(self, demand: Demand, count: int) -> list[tuple[Executor, int]]:
        """Take room for `count` tasks, or for as many as there is room for.

        Returns: executors, each once, and how many tasks they get.
        """
        shares: dict[int, int] = {}
        if zones := self._zones_of(demand):
            _spread(demand, count, zones, shares)
        else:
            self._all(demand.constraint).allot(demand, count, shares)
        return [(self._rooms[i].executor, share) for i, share in shares.items()]

    def reserve(self, demand: Demand, count: int) -> None:
        """Let executors with `count` slots that match, and are not held for long, get no backlog, so that slots of
        theirs become free: those that have least to work off."""
        rooms = [self._rooms[i] for i in self._matching(demand.constraint)]
        found = [room for room in rooms if _could_have(room, demand)]
        found.sort(key=lambda room: (room.out - room.executor.slots, room.executor.uid))
        for room in found:
            if count <= 0:
                return
            room.free = min(room.free, room.slots)
            count -= room.brief

    def _all(self, constraint: Constraint) -> "_Candidates":
        found = self._candidates.get(constraint)
        if found is None:
            if constraint.needs:
                found = self._all(replace(constraint, needs=())).narrowed(constraint)
            else:
                found = _Candidates.among(self._rooms, self._matching(constraint), constraint)
            self._candidates[constraint] = found
        return found

    def _zones_of(self, demand: Demand) -> "dict[str | None, _Candidates]":
        """The candidates by the label over which they are to be spread; none if there is no such, or of too many
        values."""
        key = demand.policy.spread_over
        if not key or len(self._values(key)) > ZONES_MAX:
            return {}
        return self._zones_by(demand.constraint, key)

    def _zones_by(self, constraint: Constraint, key: str) -> "dict[str | None, _Candidates]":
        found = self._zones.get((constraint, key))
        if found is None:
            if constraint.needs:
                bare = self._zones_by(replace(constraint, needs=()), key)
                found = {zone: candidates.narrowed(constraint) for zone, candidates in bare.items()}
            else:
                by_zone: dict[str | None, list[int]] = {}
                for i in sorted(self._matching(constraint)):
                    by_zone.setdefault(self._rooms[i].executor.labels.get(key), []).append(i)
                found = {
                    zone: _Candidates.among(self._rooms, positions, constraint) for zone, positions in by_zone.items()
                }
            self._zones[constraint, key] = found
        return found

    def _matching(self, constraint: Constraint) -> Iterable[int]:
        """The rooms whose labels are as the selectors want."""
        if not constraint.selectors:
            return range(len(self._rooms))
        known = self._matched.get(constraint.selectors)
        if known is None:
            known = self._matched[constraint.selectors] = self._match(constraint.selectors)
        return known

    def _match(self, selectors: tuple[Selector, ...]) -> list[int]:
        found: list[int] | None = None
        for selector in sorted(selectors, key=lambda selector: selector.op not in ("eq", "in")):
            by_value = self._values(selector.key)
            values = self._selected(selector, by_value)
            if found is None:
                found = [i for value in values for i in by_value[value]]
            else:
                found = [i for i in found if self._rooms[i].executor.labels.get(selector.key) in values]
        return found or []

    def _selected(self, selector: Selector, by_value: Mapping[str | None, list[int]]) -> Mapping[str | None, None]:
        """Those of the values that it wants."""
        if selector.op in ("eq", "in"):
            return {value: None for value in selector.values if value in by_value}
        self.tested += len(by_value)
        if selector.op == "regex":
            return dict.fromkeys(matching(selector.values[0], by_value, self._steps) or ())
        return {value: None for value in by_value if selects(selector, value)}

    def _values(self, key: str) -> dict[str | None, list[int]]:
        """The rooms by their value of a label, None where it is missing."""
        found = self._by_label.get(key)
        if found is None:
            found = self._by_label[key] = {}
            for i, room in enumerate(self._rooms):
                found.setdefault(room.executor.labels.get(key), []).append(i)
        return found


def _could_have(room: Room, demand: Demand) -> bool:
    capable = all(capacity_of(room.executor, name) >= need for name, need in demand.constraint.needs)
    return capable and demand.still(room.executor) > 0


class _Candidates:
    """The rooms that fit a constraint, as a heap with the best one on top.

    Several of these hold the same room, so an entry may be out of date; it is corrected, or dropped, when it comes to
    the top. Rooms only get less, so one that is dropped never fits again in this plan.
    """

    def __init__(
        self, rooms: list[Room], heap: list[_Entry], constraint: Constraint, exhausted: list[dict[str, int]]
    ) -> None:
        self._rooms = rooms
        self.heap = heap
        self._constraint = constraint
        self._needs = dict(constraint.needs)
        self._depth, self._pack = constraint.depth, constraint.pack
        self._exhausted = exhausted  #: needs for which there is no room any more; shared with those narrowed from it

    @classmethod
    def among(cls, rooms: list[Room], positions: Iterable[int], constraint: Constraint) -> "_Candidates":
        candidates = cls(rooms, [], constraint, [])
        candidates.heap = [entry for i in positions if (entry := candidates._entry(i)) is not None]
        heapify(candidates.heap)
        return candidates

    def narrowed(self, constraint: Constraint) -> "_Candidates":
        """The same for tasks that need something. Nothing is looked at before it comes to the top, so that a thousand
        jobs with needs of their own do not look at all rooms each."""
        while self.heap and self._correct(self.heap[0]):
            pass
        return _Candidates(self._rooms, self.heap.copy(), constraint, self._exhausted)

    def allot(self, demand: Demand, count: int, shares: dict[int, int]) -> int:
        """Add to `shares`, by position, up to `count` tasks. Returns: how many."""
        if self._exhausted and any(_covers(self._needs, less) for less in self._exhausted):
            self.heap.clear()
        heap, needs, pack = self.heap, self._constraint.needs, self._pack
        left, share_max, picks = count, 0, 0
        aside: list[_Entry] = []  #: those that may have no more of this group
        while left and heap:
            if picks <= 0:  # a new round, in which each can get an even share
                share_max, picks = left if pack else -(-left // len(heap)), len(heap)
            top = heap[0]
            if self._correct(top):
                picks = min(picks, len(heap))
                continue
            room = self._rooms[top[2]]
            share = min(_slots_or_backlog(top, pack), share_max, left)
            if needs:
                share = min(share, room.addable(needs))
            if demand.counts and (share := min(share, demand.still(room.executor))) <= 0:
                aside.append(heappop(heap))
                picks = min(picks, len(heap))
                continue
            room.take(share, needs)
            if demand.lasting:
                room.hold(share)
            demand.took(room.executor, share)
            shares[top[2]] = shares.get(top[2], 0) + share
            left -= share
            picks -= 1
            self._correct(top)
        for entry in aside:
            heappush(heap, entry)
        if not heap and needs and len(self._exhausted) < EXHAUSTED_MAX:
            self._exhausted.append(self._needs)
        return count - left

    def _correct(self, top: _Entry) -> bool:
        """Bring the top entry up to date. Returns: whether it was not."""
        entry = self._entry(top[2])
        if entry == top:
            return False
        if entry is None:
            heappop(self.heap)
        else:
            heapreplace(self.heap, entry)
        return True

    def _entry(self, i: int) -> _Entry | None:
        room = self._rooms[i]
        free = room.free_for(self._depth)
        if free <= 0 or (self._needs and not room.takes(self._constraint.needs)):
            return None
        slots = room.slots if room.slots < free else free
        if self._pack:  # a backlog comes after all slots
            return (slots or _LAST, free, i)
        return (-slots, -free, i)


def _slots_or_backlog(entry: _Entry, pack: bool) -> int:
    """What a room can get at once: its free slots, or its backlog when it has none."""
    if pack:
        return entry[1] if entry[0] == _LAST else entry[0]
    return -(entry[0] or entry[1])


def _covers(needs: Mapping[str, int], less: Mapping[str, int]) -> bool:
    """Whether one who needs this needs at least so much of each."""
    return all(needs.get(resource, 0) >= need for resource, need in less.items())


_LAST = 1 << 30


def _spread(demand: Demand, count: int, zones: "Mapping[str | None, _Candidates]", shares: dict[int, int]) -> None:
    """Give to the zones, the values of the label, so that they get even; a zone that is full drops out."""
    totals = {zone: demand.in_zone.get(zone, 0) for zone, candidates in zones.items() if candidates.heap}
    while count and totals:
        for zone, wanted in zip(list(totals), even(list(totals.values()), count), strict=True):
            got = zones[zone].allot(demand, wanted, shares) if wanted else 0
            count -= got
            totals[zone] += got
            if got < wanted:
                del totals[zone]


def even(totals: Sequence[int], count: int) -> list[int]:
    """How many of `count` more each gets, so that the totals get as even as they can: water that is poured in."""
    order = sorted(range(len(totals)), key=lambda i: (totals[i], i))
    added = [0] * len(totals)
    below = 0
    for filled, i in enumerate(order, start=1):
        below += totals[i]
        level, rest = divmod(below + count, filled)
        if filled == len(order) or level <= totals[order[filled]]:
            for rank, j in enumerate(order[:filled]):
                added[j] = level - totals[j] + (rank < rest)
            break
    return added
