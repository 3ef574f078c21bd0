"""How much room an executor has: slots, backlog, and what its tasks need while they run.

At most `slots` of the tasks that are out on an executor run at once; the others are its backlog. So what the tasks
may need together is the sum over the `slots` largest needs, and that never exceeds the capacity: a backlog of tasks
of which `slots` fit together costs nothing, and of tasks of which two fit no third is placed.
"""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from tiflow.sched.model import BACKLOG_PER_SLOT_MAX, Executor
from tiflow.sched.state import State

Load: TypeAlias = Mapping[int, int]  #: need of one task -> how many tasks have it
Needs: TypeAlias = tuple[tuple[str, int], ...]  #: of one task: resource, amount

NO_BOUND = 1 << 62
UNLIMITED_UNLESS_GIVEN = ("cpu", "memory")


def room_max(executor: Executor) -> int:
    """How many tasks may be out on an executor: its slots, and the largest backlog."""
    return executor.slots * (1 + BACKLOG_PER_SLOT_MAX)


def capacity_of(executor: Executor, resource: str) -> int:
    """What an executor has of a resource; of cpu and memory, no end unless it says."""
    unless_given = NO_BOUND if resource in UNLIMITED_UNLESS_GIVEN else 0
    return executor.capacity.get(resource, unless_given)


def needed_at_once(load: Load, slots: int) -> int:
    """The most that `slots` of the tasks need together."""
    needed = 0
    for need in sorted(load, reverse=True):
        count = min(load[need], slots)
        needed += count * need
        slots -= count
    return needed


def addable(load: Load, slots: int, capacity: int, need: int) -> int:
    """How many tasks with that need can be added so that `slots` of all need at most `capacity` together; NO_BOUND if
    any number. The load as it is does.

    Those with larger needs take their slots first. If the rest of the slots can all be taken by new ones, so can the
    backlog; else the smaller ones make up for the slots that the new ones leave.
    """
    if need > capacity:
        return 0
    smaller: dict[int, int] = {}
    for other, count in sorted(load.items(), reverse=True):
        if other >= need:
            running = min(count, slots)
            slots -= running
            capacity -= running * other
        else:
            smaller[other] = count
    if slots * need <= capacity:
        return NO_BOUND
    low, high = 0, capacity // need
    while low < high:  # the largest number that fits: what is needed grows with it
        count = (low + high + 1) // 2
        if count * need + needed_at_once(smaller, slots - count) <= capacity:
            low = count
        else:
            high = count - 1
    return low


def show_amount(resource: str, amount: int) -> str:
    """As people write it: cpu in cores, memory with the largest unit that is exact, others as they are."""
    if resource == "cpu":
        return f"{amount / 1_000:g}"
    if resource == "memory":
        for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if amount % size == 0:
                return f"{amount // size}{unit}"
    return str(amount)


class Room(Struct):
    """What an executor can still get, as it is filled."""

    executor: Executor
    slots: int  #: free slots
    free: int  #: free slots and backlog
    out: int  #: tasks that it has
    brief: int  #: slots that may have a backlog: no task holds them for long
    loads: dict[str, dict[int, int]]  #: by resource
    own: bool = False  #: whether `loads` is a copy
    largest: dict[str, int] = {}  #: by resource, once asked: the largest need of which one task more fits

    @classmethod
    def of(cls, state: State, executor: Executor, target: int) -> "Room":
        """`target`: how many tasks should be out on it in all; more than `room_max` never are."""
        out = state.tasks_out.get(executor.uid, 0)
        free = min(target, room_max(executor)) - out
        slots = executor.slots
        return cls(executor, max(0, min(free, slots - out)), free, out, slots, state.loads.get(executor.uid, {}))

    def free_for(self, depth: int) -> int:
        """How many tasks it can get, if its backlog may be `depth` per slot that is not held for long."""
        free = self.executor.slots + self.brief * depth - self.out
        return free if free < self.free else self.free

    def takes(self, needs: Needs) -> bool:
        """Whether one task with those needs fits, if there is a place for it."""
        for resource, need in needs:
            largest = self.largest.get(resource)
            if largest is None:
                load, capacity = self.loads.get(resource, _NONE), capacity_of(self.executor, resource)
                largest = self.largest[resource] = capacity - needed_at_once(load, self.executor.slots - 1)
            if need > largest:
                return False
        return True

    def addable(self, needs: Needs) -> int:
        """How many tasks with those needs the resources are enough for."""
        most = NO_BOUND
        for resource, need in needs:
            load, capacity = self.loads.get(resource, _NONE), capacity_of(self.executor, resource)
            most = min(most, addable(load, self.executor.slots, capacity, need))
        return most

    def hold(self, count: int) -> None:
        """So many of its tasks hold a slot each for long: what is sent ahead of its turn would wait for hours."""
        self.brief = self.brief - count if self.brief > count else 0

    def take(self, count: int, needs: Needs) -> None:
        """Let it have `count` tasks more."""
        self.free -= count
        self.out += count
        self.slots = self.slots - count if self.slots > count else 0
        if not needs:
            return
        if not self.own:  # it is the state's
            self.loads = {resource: dict(load) for resource, load in self.loads.items()}
            self.own = True
        for resource, need in needs:
            load = self.loads.setdefault(resource, {})
            load[need] = load.get(need, 0) + count
            self.largest.pop(resource, None)


_NONE: Load = {}
