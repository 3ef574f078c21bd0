"""The faults of a schedule: one method for each name in weather.RATES, and `heal`, which ends some of them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.sim.raft.member import Member

if TYPE_CHECKING:
    from tests.sim.raft.world import World


class Nemesis:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = world.rng

    # --- whom it meets

    def _anyone(self) -> Member:
        return self._rng.choice(list(self._world.members.values()))

    def _victim(self) -> Member | None:
        """Somebody alive, often the leader."""
        alive = [member for member in self._world.members.values() if member.node is not None]
        leaders = [member for member in alive if member.leads]
        if leaders and self._rng.random() < 0.4:
            return self._rng.choice(leaders)
        return self._rng.choice(alive) if alive else None

    # --- links

    def cut(self) -> None:
        a, b = self._rng.sample(self._world.names, 2)
        self._world.note("cut", a, f"from {b}")
        self._world.cut(a, b)

    def isolate(self) -> None:
        victim = self._victim() or self._anyone()
        self._world.note("isolate", victim.name)
        for other in self._world.names:
            if other != victim.name:
                self._world.cut(victim.name, other)

    def split(self) -> None:
        """The leader goes to the smaller group in most cases, and takes somebody along if it can."""
        names = self._world.names
        leader = (self._victim() or self._anyone()).name
        rest = [name for name in names if name != leader]
        few = [leader, *self._rng.sample(rest, (len(names) - 1) // 2 - self._rng.randrange(2))]
        self._world.note("split", leader, ",".join(few))
        for name in few:
            for other in names:
                if other not in few:
                    self._world.cut(name, other)

    def stall(self) -> None:
        src, dst = self._rng.sample(self._world.names, 2)
        seconds = self._rng.choice((0.05, 0.2, 0.5, 1.0, 2.5))
        self._world.note("stall", src, f"to {dst}, {seconds} s")
        self._world.network.stalls[src, dst] = self._world.clock.now + seconds

    # --- processes

    def kill(self) -> None:
        victim = self._victim()
        if victim is not None:
            self._world.crash(victim, power=False)

    def power(self) -> None:
        victim = self._victim()
        if victim is not None:
            self._world.crash(victim, power=True, told=self._rng.random() < 0.5)

    def blackout(self) -> None:
        for member in self._world.members.values():
            if member.node is not None:
                self._world.crash(member, power=True)

    def pause(self) -> None:
        victim = self._victim()
        if victim is not None:
            seconds = self._rng.choice((0.1, 0.5, 1.0, 3.0))
            self._world.note("pause", victim.name, f"{seconds} s")
            victim.paused_until = self._world.clock.now + seconds
            if self._rng.random() < 0.5:
                victim.loop.shift -= seconds  # a virtual machine whose clock stopped, too

    def jump(self) -> None:
        victim = self._victim()
        if victim is not None:
            victim.loop.shift += self._rng.choice((0.1, 0.5, 1.0, 5.0))

    def transfer(self) -> None:
        victim = self._victim()
        if victim is not None and victim.leads:
            to = self._rng.choice([None, *(name for name in self._world.names if name != victim.name)])
            self._world.note("transfer", victim.name, f"to {to}")
            self._world.clients.transfer(victim, to)

    def snapshot(self) -> None:
        victim = self._victim()
        if victim is not None:
            self._world.note("snapshot", victim.name)
            self._world.clients.snapshot(victim)

    # --- disks

    def wipe(self) -> None:
        """One at a time: as long as a member has not caught up, the others must not forget."""
        member = self._anyone()
        if self._world.impaired:
            return
        if member.node is not None:
            self._world.crash(member, power=True)
        self._world.wipe(member)
        if self._rng.random() < 0.7:
            self._world.start(member)

    def flip(self) -> None:
        member = self._anyone()
        if self._world.impaired:
            return
        name = member.disk.flip_bit(self._rng.choice(("journal-", "snapshot")))
        if name is not None:
            self._world.note("flip", member.name, name)
            member.damaged = True

    def full(self) -> None:
        member = self._anyone()
        self._world.note("full", member.name)
        member.disk.free = self._rng.randrange(200)
        member.spoilt = True

    def broken(self) -> None:
        member = self._anyone()
        self._world.note("broken", member.name)
        member.disk.broken = True
        member.spoilt = True

    def slow(self) -> None:
        member = self._anyone()
        seconds = self._rng.choice((0.2, 0.5, 1.0, 3.0))
        self._world.note("slow", member.name, f"{seconds} s")
        member.slow_until = self._world.clock.now + seconds

    # --- and an end of it

    def heal(self) -> None:
        """End one thing, chosen by chance: a cut, a death, a spoilt disk."""
        world = self._world
        cuts = sorted(tuple(sorted(cut)) for cut in world.network.cuts)
        remedies: list[Callable[[], None]] = [partial(world.network.cuts.discard, frozenset(cut)) for cut in cuts]
        for member in world.members.values():
            if member.node is None and member.paused_until <= world.clock.now:
                remedies.append(partial(world.start, member))
            if member.spoilt:
                remedies.append(member.disk.repair)
        if remedies:
            self._rng.choice(remedies)()
