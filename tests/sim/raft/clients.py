"""Who uses the group: clients that append to lists and read them, and executors that ask for their leases."""

import itertools
from collections.abc import Iterable
from random import Random

from tests.linearizability import Operation
from tests.sim.raft.ledger import Ledger, Violation
from tests.sim.raft.member import Member
from tiflow.errors import NotLeader, OutcomeUnknown, ResourceExhausted, Unavailable
from tiflow.raft.node import RaftNode

KEYS = "abcdef"


class Clients:
    """`history` is what the clients saw, on one clock."""

    def __init__(self, ledger: Ledger, rng: Random) -> None:
        self.history: list[Operation] = []
        self.acknowledged = 0
        self.reads = 0
        self.renewals = 0
        self._all_seen = False
        self._asked: RaftNode | None = None
        self._ledger = ledger
        self._rng = rng
        self._moment = itertools.count()
        self._numbers = itertools.count(1)

    def call(self, member: Member) -> str:
        """Somebody asks `member` for something."""
        key, dice = self._rng.choice(KEYS), self._rng.random()
        if dice < 0.65:
            return self.append(member, key)
        if dice < 0.85:
            member.loop.begin(self._read(member, key))
            return f"read {key}"
        member.loop.begin(self._renew(member))
        return "renew"

    def look_at_all(self, members: Iterable[Member]) -> bool:
        """A last look at all lists: what is not in them now is lost. False: ask again, it was not answered yet."""
        leader = next((member for member in members if member.node is not None and member.node.is_leader), None)
        if leader is not None and leader.node is not self._asked and not self._all_seen:
            self._asked = leader.node
            leader.loop.begin(self._look(leader))
        return self._all_seen

    async def _look(self, member: Member) -> None:
        called = next(self._moment)
        assert member.node is not None
        try:
            await member.node.barrier()
        except NotLeader:
            self._asked = None
            return
        self._all_seen = True
        for key in KEYS:
            values = member.machine.lists.get(key, ())
            self.history.append(Operation(key, called, ("read",), next(self._moment), values))

    def transfer(self, member: Member, to: str | None) -> None:
        async def ask() -> None:
            assert member.node is not None
            try:
                await member.node.transfer(to)
            except (NotLeader, Unavailable):
                return

        member.loop.begin(ask())

    def snapshot(self, member: Member) -> None:
        async def ask() -> None:
            assert member.node is not None
            try:
                await member.node.snapshot()
            except Unavailable:
                return

        member.loop.begin(ask())

    def append(self, member: Member, key: str) -> str:
        number = next(self._numbers)
        command = f"{key} {number}"

        async def ask() -> None:
            node = member.node
            assert node is not None
            one = Operation(key, next(self._moment), ("append", number))
            self.history.append(one)
            try:
                length = await node.propose(command.encode())
            except (NotLeader, ResourceExhausted):
                self.history.remove(one)
                self._ledger.denied.add(command)
                if command in self._ledger.applied:
                    raise Violation(
                        f"{command} is applied, and now its client is told that it did not happen"
                    ) from None
            except OutcomeUnknown:
                return
            else:
                one.returned, one.output = next(self._moment), length
                self.acknowledged += 1

        member.loop.begin(ask())
        return f"append {command}"

    async def _read(self, member: Member, key: str) -> None:
        node = member.node
        assert node is not None
        one = Operation(key, next(self._moment), ("read",))
        try:
            await node.barrier()
        except NotLeader:
            return
        one.output = member.machine.lists.get(key, ())
        one.returned = next(self._moment)
        self.history.append(one)
        self.reads += 1

    async def _renew(self, member: Member) -> None:
        """An executor's heartbeat has come: its lease is renewed when the leader knows that it still led then."""
        node = member.node
        assert node is not None
        asked = self._ledger.step
        try:
            await node.barrier()
        except NotLeader:
            return
        self._ledger.confirmed(member.name, node.term, asked)
        self.renewals += 1
