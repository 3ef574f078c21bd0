"""Schedules told by hand, for planted bugs that chance meets too rarely. Each is sound without the bug."""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final

from tests.sim.raft.disk import Died
from tests.sim.raft.member import Member
from tests.sim.raft.schedule import virtual
from tests.sim.raft.weather import draw
from tests.sim.raft.world import SETTLE_S, World
from tiflow.raft.library import Limits


def _tell(members: int, seed: int, plot: Callable[[World], None]) -> None:
    rng = Random(seed)
    weather = draw(rng).replace(members=members, limits=Limits(), drop=0.0, double=0.0, shuffle=0.0, late=0.0)
    with virtual() as clock:
        world = World(weather, rng, clock)
        world.run_until(world._settled, SETTLE_S, "agree")
        plot(world)
        world.settle()


def _wait(world: World, seconds: float) -> None:
    end = world.clock.now + seconds
    world.run_until(lambda: world.clock.now >= end, SETTLE_S, "wait")


def _leader(world: World) -> Member:
    return next(member for member in world.members.values() if member.leads)


def _append(world: World, member: Member, count: int) -> None:
    for _ in range(count):
        world.clients.append(member, "a")


def stale_acknowledgement() -> None:
    """An acknowledgement is on its way to A while A is deposed, both logs are cut, and A is elected again."""

    def plot(world: World) -> None:
        a = _leader(world)
        b, *others = (member for member in world.members.values() if member is not a)
        for other in others:
            world.cut(a.name, other.name)
            world.cut(b.name, other.name)
        world.network.stalls[b.name, a.name] = float("inf")
        _append(world, a, 9)
        world.run_until(lambda: any(other.leads for other in others), SETTLE_S, "elect another")
        c = next(other for other in others if other.leads)
        world.network.cuts.clear()
        _append(world, c, 1)
        _wait(world, 0.5)
        world.clients.transfer(c, a.name)
        world.run_until(lambda: a.leads, SETTLE_S, "elect the first again")
        world.network.stalls.clear()
        _wait(world, 0.2)

    _tell(5, 1, plot)


def power_cut_after_kill() -> None:
    """A member is killed between write and sync, acknowledges after its restart what it read, and loses power."""

    def plot(world: World) -> None:
        leader = _leader(world)
        member = next(member for member in world.members.values() if member is not leader)
        assert member.node is not None
        _wait(world, 1.5)  # so that the second's hint of what is committed is out of the way
        _append(world, leader, 3)
        world.turn(leader)
        member.slow_until = float("inf")  # so that its loop does not wait for the write
        while not member.writer.queue:
            world.deliver((leader.name, member.name))
        member.disk.calls_left = 1
        with suppress(Died):
            member.work()
        member.slow_until = 0.0
        world.crash(member, power=False)
        world.start(member)
        _wait(world, 0.15)
        world.crash(member, power=True)
        world.start(member)

    for seed in range(4):  # the power cut may keep what was not synced
        _tell(3, seed, plot)


#: by planted bug
STORIES: Final[dict[str, Callable[[], None]]] = {
    "stale-acknowledgement": stale_acknowledgement,
    "no-fsync-at-start": power_cut_after_kill,
}
