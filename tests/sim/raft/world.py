"""A group of real RaftNodes in one thread, and what may happen to them: virtual clock, network and disks."""

from collections.abc import Callable
from random import Random

from tests.linearizability import find_anomaly, growing_list, picture
from tests.sim.raft.clients import Clients
from tests.sim.raft.ledger import Ledger, Violation
from tests.sim.raft.loop import Clock
from tests.sim.raft.member import Member
from tests.sim.raft.nemesis import Nemesis
from tests.sim.raft.network import END, Network, Wire
from tests.sim.raft.weather import Weather
from tiflow.errors import FailedPrecondition
from tiflow.raft.transport import SILENCE_S

EVENT_S = 1e-4  # between two events
SETTLE_S = 60.0
RETURN_S = 3.0  # how long the one that returns was away

#: (what happened, to whom, details); None: nobody listens
Trace = Callable[[str, str, str], None] | None


class World:
    def __init__(self, weather: Weather, rng: Random, clock: Clock, trace: Trace = None) -> None:
        self.weather = weather
        self.rng = rng
        self.clock = clock
        self.trace = trace
        self.ledger = Ledger()
        self.network = Network(rng, clock, self.ledger, weather)
        self.names = [*"ABCDE"[: weather.members]]
        self.members = {
            name: Member(name, self.names, self.ledger, self.network, Random(rng.random())) for name in self.names
        }
        self.clients = Clients(self.ledger, rng)
        self.pairs = [
            (a, b, frozenset((a, b))) for place, a in enumerate(self.names) for b in self.names[place + 1 :]
        ]
        nemesis = Nemesis(self)
        self._faults = [(rate, getattr(nemesis, name)) for name, rate in weather.rates]
        self._heal = nemesis.heal
        for member in self.members.values():
            self.start(member)

    # --- one thing happens

    def step(self) -> None:
        """Let one thing happen, chosen by chance."""
        rng, weather = self.rng, self.weather
        self.ledger.step += 1
        self.clock.now += EVENT_S
        dice = rng.random()
        for rate, fault in self._faults:
            dice -= rate
            if dice < 0:
                fault()
                return
        dice = rng.random()
        if dice < weather.clients:
            member = rng.choice([m for m in self.members.values() if m.leads] or list(self.members.values()))
            if member.node is not None:
                self.note("client", member.name, self.clients.call(member))
        elif dice < weather.clients + weather.healing:
            self._heal()
        elif dice < weather.clients + weather.healing + 0.017:
            self.clock.now += rng.uniform(0.0, 2 * weather.pace_s)
        else:
            self._progress()

    def _progress(self) -> None:
        """What would happen by itself: a message arrives, a thread writes, a loop turns, a stream opens."""
        rng, now = self.rng, self.clock.now
        running = [m for m in self.members.values() if m.node is not None and m.paused_until <= now]
        due = [m for m in running if m.loop.next_due() <= now]
        wires = self._deliverable()
        disks = [m for m in running if (m.writer.queue or m.executor.queue) and m.slow_until <= now]
        links = self._connectable()
        choices = [choice for choice in ((30, due), (34, wires), (22, disks), (4, links)) if choice[1]]
        dice = rng.random() * sum([weight for weight, _ in choices])
        for weight, items in choices:  # noqa: B007 - what it ends at is used below
            dice -= weight
            if dice < 0:
                break
        else:
            self.clock.now = max(now, min(min((m.loop.next_due() for m in running), default=now), now + 0.1))
            return
        if items is due:
            self.turn(rng.choice(due))
        elif items is wires:
            self.deliver(rng.choice(wires))
        elif items is disks:
            self.work(rng.choice(disks))
        else:
            self.connect(*rng.choice(links))

    def _deliverable(self) -> list[Wire]:
        now, members = self.clock.now, self.members
        return [wire for wire in self.network.deliverable() if members[wire[1]].paused_until <= now]

    def _connectable(self) -> list[Wire]:
        apart = [
            pair for pair in self.pairs if not self.network.connected(pair[2]) and pair[2] not in self.network.cuts
        ]
        if not apart:
            return []
        now = self.clock.now
        up = {name for name, m in self.members.items() if m.node is not None and m.paused_until <= now}
        return [(a, b) for a, b, _ in apart if a in up and b in up]

    def turn(self, member: Member) -> None:
        member.turn()
        self.after(member)

    def work(self, member: Member) -> None:
        member.work()
        self.after(member)

    def deliver(self, wire: Wire) -> None:
        src, dst = wire
        member = self.members[dst]
        item = self.network.receive(wire)
        self.note("deliver", dst, f"from {src}", item)
        member.loop.enter()
        if item is END:
            member.transport.close_session(src)
        else:
            member.transport.take(src, item)
        self.after(member)

    def connect(self, a: str, b: str) -> None:
        self.note("connect", a, f"to {b}")
        session = self.network.connect(a, b)
        for name, peer in ((a, b), (b, a)):
            member = self.members[name]
            member.loop.enter()
            member.transport.open(peer, session)
            self.after(member)

    # --- life and death

    def start(self, member: Member) -> None:
        """Start who is dead. Whose disk is damaged must refuse; then it is replaced by an empty one."""
        try:
            weather = self.weather
            member.start(self.clock, weather.limits, weather.chunk_bytes, weather.ahead_bytes)
        except FailedPrecondition as error:
            self.note("refuses", member.name, str(error))
            if not member.damaged:
                raise Violation(f"{member.name} refuses its disk, which nothing has damaged: {error}") from error
            self.wipe(member)
        except OSError as error:
            self.note("fails", member.name, str(error))
            if not member.spoilt:
                raise
        else:
            self.note("start", member.name, "")
            member.damaged = False
            self.after(member)

    def crash(self, member: Member, *, power: bool, told: bool = True) -> None:
        """End a process. With `told` its peers see their streams end, else they hear nothing for a while."""
        self.note("power" if power else "kill", member.name, "")
        keep = self.rng.random() < 0.5
        for peer in self.names:
            if peer != member.name:
                self.network.break_session(member.name, peer, keep=keep, told=(peer,))
                if not told:
                    self.network.stalls[member.name, peer] = self.clock.now + SILENCE_S
        self.network.forget(member.name)
        member.die(power=power)

    def wipe(self, member: Member) -> None:
        """A dead member loses its disk."""
        self.note("wipe", member.name, "")
        member.disk.wipe()
        member.spoilt = member.damaged = False
        member.learning = True
        self.ledger.wiped(member.name)

    @property
    def impaired(self) -> bool:
        """Somebody has lost what it knew, or may have: the others must remember until it has caught up."""
        return any(member.learning or member.damaged for member in self.members.values())

    # --- what must hold

    def after(self, member: Member) -> None:
        """Judge what `member` has just done."""
        failure = member.failure
        if failure is not None:
            self.note("fatal", member.name, repr(failure))
            if isinstance(failure.__cause__, Violation):
                raise failure.__cause__
            if not member.spoilt or not isinstance(failure.__cause__ or failure, OSError):
                raise Violation(f"{member.name} stops itself: {failure!r}") from failure
            self.crash(member, power=False)
            return
        self._check_progress(member)
        for leader in self.members.values():
            if leader.leads:
                for name, match in leader.matches(None if member is leader else member.name):
                    self._check_match(leader, self.members[name], match)

    def _check_progress(self, member: Member) -> None:
        node = member.node
        assert node is not None
        core, journal = node._core, node._journal
        applied, term = core.raftLastApplied, core.raftCurrentTerm
        if applied != member.applied_seen:
            if applied > max(1, journal.durable_index):
                raise Violation(f"{member.name} applied {applied}, on its disk is {journal.durable_index}")
            if applied < member.applied_seen:
                raise Violation(f"{member.name} goes back from entry {member.applied_seen} to {applied}")
            for index in range(member.applied_seen + 1, applied + 1):
                entry_term = journal.term_of(index)
                if entry_term is not None:
                    self.ledger.committed(member.name, index, entry_term, term)
            member.applied_seen = applied
        if member.leads:
            known = core._commit_known
            if member.commit_seen[0] == term and known != member.commit_seen[1] and journal.term_of(known) != term:
                raise Violation(f"{member.name} commits entry {known} in term {term}; it is of another one")
            member.commit_seen = (term, known)
        if member.leads and self.ledger.leaders.get(term, ("",))[0] != member.name:
            self.note("leads", member.name, f"term {term}")
            self.ledger.leads(member.name, journal, term)
        if member.learning and node._identity is not None and node._identity.may_vote:
            self.note("caught up", member.name, "")
            self.ledger.may_vote_again(member.name, journal)
            member.learning = False

    def _check_match(self, leader: Member, peer: Member, match: int) -> None:
        """What a leader believes to be on another disk is there: commits are counted by that."""
        if leader.node is None or peer.node is None:
            return
        session = leader.transport.session_of(peer.name)
        ours, theirs = leader.node._journal, peer.node._journal
        if session is None or session is not peer.transport.session_of(leader.name) or theirs.term > ours.term:
            return
        if match >= theirs.first_index and (
            match > theirs.durable_index
            or (match >= ours.first_index and ours.term_of(match) != theirs.term_of(match))
        ):
            raise Violation(
                f"{leader.name} counts {peer.name} up to entry {match} of term {ours.term_of(match)}; its disk has "
                f"{theirs.durable_index} entries, and that one is of term {theirs.term_of(match)}"
            )

    # --- the end

    def settle(self) -> None:
        """Heal everything: then all must agree soon, and the clients' history must have an explanation."""
        self.note("settle", "", "")
        self.network.calm()
        for member in self.members.values():
            member.disk.repair()
            member.paused_until = member.slow_until = 0.0
            if member.damaged and member.node is not None:
                self.crash(member, power=False)  # or it would not notice
        self.run_until(self._settled, SETTLE_S, "agree")
        self.run_until(lambda: self.clients.look_at_all(self.members.values()), SETTLE_S, "answer reads")
        anomaly = find_anomaly(self.clients.history, growing_list)
        if anomaly is not None:
            raise Violation(f"no order explains what clients saw of {anomaly[0].key}:\n{picture(anomaly)}")

    def let_one_return(self) -> None:
        """Who does not hear the leader, and who comes back from a partition, deposes nobody."""
        self.run_until(lambda: not self._handing_over() and self._settled(), SETTLE_S, "end their transfers")
        leader = next(member for member in self.members.values() if member.leads)
        assert leader.node is not None
        term = leader.node.term
        away = self.rng.choice([name for name in self.names if name != leader.name])
        for other in [leader.name] if self.rng.random() < 0.5 else [name for name in self.names if name != away]:
            self.cut(away, other)
        end = self.clock.now + RETURN_S
        self.run_until(lambda: self.clock.now > end, SETTLE_S, "")
        self.network.calm()
        self.run_until(lambda: self.clock.now > end + RETURN_S / 2, SETTLE_S, "")
        if not leader.leads or leader.node.term != term:
            raise Violation(f"{away}, which was cut off, has deposed {leader.name}, a healthy leader")

    def cut(self, a: str, b: str) -> None:
        self.network.cuts.add(frozenset((a, b)))
        self.network.break_session(
            a, b, keep=False, told=tuple(n for n in (a, b) if self.members[n].node is not None)
        )

    def run_until(self, done: Callable[[], bool], within_s: float, what: str) -> None:
        """Let everything happen that can, as fast as it can."""
        end = self.clock.now + within_s
        while not done():
            if self.clock.now > end:
                states = {
                    m.name: m.node and (m.node._role(), m.node.term, m.applied_seen) for m in self.members.values()
                }
                raise Violation(f"the members do not {what} within {within_s:g} s: {states}")
            self.clock.now += 0.05
            self.ledger.step += 1
            for member in self.members.values():
                if member.node is None:
                    self.start(member)
            moved = True
            while moved:
                moved = self._move_all()

    def _move_all(self) -> bool:
        moved = False
        for pair in self._connectable():
            self.connect(*pair)
        for member in self.members.values():
            while member.node is not None and member.loop.next_due() <= self.clock.now:
                self.turn(member)
                moved = True
            while member.node is not None and member.busy:
                self.work(member)
                moved = True
        for wire in self._deliverable():
            while self.network.wires.get(wire):
                self.deliver(wire)
                moved = True
        return moved

    def _settled(self) -> bool:
        nodes = [member.node for member in self.members.values()]
        return (
            sum(node is not None and node.is_leader for node in nodes) == 1
            and not self.impaired
            and all(len(member.machine.commands) == len(self.ledger.applied) for member in self.members.values())
            and len({node.term for node in nodes if node is not None}) == 1
        )

    def _handing_over(self) -> bool:
        return any(member.node is not None and member.node._transferring for member in self.members.values())

    def note(self, what: str, who: str, *details: object) -> None:
        if self.trace is not None:
            self.trace(what, who, " ".join(str(detail) for detail in details))
