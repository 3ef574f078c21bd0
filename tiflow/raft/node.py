"""One master's part in the group: bytes are proposed here, and applied to a state machine when a majority has
them.

`RaftNode` is what the rest of tiflow talks to: proposals, reads, status, transfers. What moves it is in driver.py,
and Raft itself in core.py.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final

import structlog
from msgspec import Struct

from tiflow.errors import (
    InvalidArgument,
    NoSpace,
    NotLeader,
    OutcomeUnknown,
    ResourceExhausted,
    TiflowError,
    Unavailable,
)
from tiflow.raft.api import Member, NodeStatus, PeerStatus, Security, StateMachine
from tiflow.raft.config import RaftConfig
from tiflow.raft.core import Lost
from tiflow.raft.driver import Driver
from tiflow.raft.journal import ENTRY_BYTES_MAX
from tiflow.raft.library import CANDIDATE, LEADER, Peer, now_s

__all__ = ["RaftConfig", "RaftNode"]

log = structlog.get_logger()

PROPOSALS_MAX: Final = 10_000
PROPOSALS_BYTES_MAX: Final = 64 << 20
TRANSFER_TIMEOUT_S: Final = 3.0
HAND_OVER_EVERY_S: Final = 5.0  # tries of a leader whose disk is nearly full


class _Round(Struct):
    """A read round on its way, with those who wait for it."""

    number: int
    term: int
    read_index: int
    waiters: list[asyncio.Future[int]]


class RaftNode(Driver):
    """A member of the group. Use it from one event loop only; `stop` ends what `start` began, and `fatal` tells when
    it had to stop by itself."""

    def __init__(
        self,
        config: RaftConfig,
        machine: StateMachine,
        *,
        rng: random.Random | None = None,
        security: Security | None = None,
    ) -> None:
        super().__init__(config, machine, rng=rng, security=security)
        self._on_role: list[Callable[[str, int], None]] = []
        self._on_applied: list[Callable[[], None]] = []
        self._published: tuple[str, int] = ("forming", 0)
        self._applied_seen = 0
        self._proposed_bytes = 0
        self._transferring = False
        self._handing_over: asyncio.Task[None] | None = None
        self._barrier_waiting: list[asyncio.Future[int]] = []
        self._round: _Round | None = None
        self._snapshot_waiting: list[asyncio.Future[int]] = []

    # --- what others ask

    @property
    def is_leader(self) -> bool:
        """This master leads, and all that was decided before is in the state machine."""
        return self._running and self._core.leading

    @property
    def term(self) -> int:
        return int(self._core.raftCurrentTerm)

    @property
    def leader(self) -> Member | None:
        """Who leads, as far as this master knows."""
        name = self._core.leader_name
        return None if name is None else self._members[name]

    @property
    def format_of_all(self) -> int | None:
        """The highest format that every configured member understands; None unless all are connected."""
        greetings = self._transport.greetings()
        if len(greetings) < len(self._members) - 1:
            return None
        return min([self._config.format, *(max(1, hello.format) for hello in greetings.values())])

    def on_role(self, callback: Callable[[str, int], None]) -> None:
        """Call with (role, term) at each change. 'leader' comes after the state is complete."""
        self._on_role.append(callback)

    def on_applied(self, callback: Callable[[], None]) -> None:
        """Call after each tick that applied something."""
        self._on_applied.append(callback)

    async def propose(self, entry: bytes) -> Any:
        """The state machine's reply to `entry`, after a majority has it on disk and this leader has applied
        it.

        Raises NotLeader (it did not happen), OutcomeUnknown (leadership was lost meanwhile),
        NoSpace (the disk is nearly full; nothing happened), ResourceExhausted (too large, or too many are
        waiting).
        """
        if len(entry) > ENTRY_BYTES_MAX:
            raise ResourceExhausted(f"an entry of {len(entry)} bytes exceeds the limit of {ENTRY_BYTES_MAX}")
        leads = self.is_leader
        if leads and self._journal.space.short:
            raise NoSpace(self._journal.space.refusal(self._directory))
        if not leads or self._transferring:
            raise NotLeader(None if self._transferring else self._leader_address())
        if self._core.outstanding >= PROPOSALS_MAX or self._proposed_bytes + len(entry) > PROPOSALS_BYTES_MAX:
            raise ResourceExhausted(
                f"{self._core.outstanding} proposals ({self._proposed_bytes} bytes) wait for a majority; try later"
            )
        future: asyncio.Future[Any] = self._loop.create_future()

        def answer(reply: Any, lost: Lost | None) -> None:
            self._proposed_bytes -= len(entry)
            if future.done():
                return  # who asked has gone
            if lost is None:
                future.set_result(reply)
            elif lost.outcome_unknown:
                future.set_exception(OutcomeUnknown("this master lost its leadership before the entry was committed"))
            else:
                future.set_exception(NotLeader(self._leader_address()))

        self._proposed_bytes += len(entry)
        self._core.propose(entry, answer)
        self._request_tick()
        return await future

    async def barrier(self) -> int:
        """Make a linearizable read possible: return the applied index when the state has everything that was
        committed before this call, and a majority has confirmed that this master still led after it. Raises
        NotLeader."""
        self._check_leader()  # also while the lead is being given away: executors' leases hang on it
        future: asyncio.Future[int] = self._loop.create_future()
        self._barrier_waiting.append(future)
        self._request_tick()
        return await future

    def status(self) -> NodeStatus:
        """What this master knows about itself; with its followers, if it leads."""
        core, journal = self._core, self._journal
        leader = self.leader
        return NodeStatus(
            name=self._config.name,
            address=self._members[self._config.name].address,
            cluster_id=self.cluster_id,
            role=self._role(),
            term=self.term,
            leader=leader.name if leader is not None else None,
            commit_index=int(core.raftCommitIndex),
            applied_index=int(core.raftLastApplied),
            last_index=journal.last_index,
            first_index=journal.first_index,
            durable_index=journal.durable_index,
            log_bytes=journal.log_bytes,
            snapshot_index=self._snapshots.index,
            snapshot_age_s=self._snapshots.age_s(),
            learner=not core.may_vote,
            disk=self._guard.space,
            peers=tuple(self._peer_status(peer) for _, peer in sorted(core.peers.items())) if self.is_leader else (),
        )

    async def transfer(self, to: str | None = None) -> Member:
        """Let another member lead: `to`, or the connected one that has most of the log. Proposals wait
        outside. Returns: who leads now.

        Raises NotLeader, InvalidArgument (no such peer), Unavailable (it did not take over in time).
        """
        self._check_leader()
        core = self._core
        if to is not None and to not in core.peers:
            raise InvalidArgument(f"{to} is no peer of {self._config.name}; there are: {', '.join(core.peers)}")
        candidates = [peer for name, peer in core.peers.items() if to in (None, name) and core.isNodeConnected(peer)]
        if not candidates:
            raise Unavailable("no peer is connected" if to is None else f"{to} is not connected")
        target = max(candidates, key=lambda peer: (core.match_index(peer), str(peer.id)))
        deadline = self._loop.time() + TRANSFER_TIMEOUT_S
        self._transferring = True
        asked = False
        try:
            # this member follows as soon as it hears of the new term, and who won it a moment later
            while (leader := self.leader) is None or leader.name == self._config.name:
                if self._loop.time() > deadline:
                    raise Unavailable(f"{target.id} did not take over within {TRANSFER_TIMEOUT_S:.0f} s")
                if core.state == LEADER and not asked:
                    asked = core.hand_over(target)
                await asyncio.sleep(0.005)
        finally:
            self._transferring = False
        log.info("raft_transferred", to=leader.name)
        return leader

    async def snapshot(self) -> int:
        """Take a snapshot now and return the index that the newest one covers, which may be an earlier
        one's."""
        if not self._running:
            raise Unavailable("this master is not running")
        if not self._core.force_snapshot():
            return self._snapshots.index
        future: asyncio.Future[int] = self._loop.create_future()
        self._snapshot_waiting.append(future)
        self._request_tick()
        return await future

    def _check_leader(self) -> None:
        if not self.is_leader:
            raise NotLeader(self._leader_address())

    def _leader_address(self) -> str | None:
        leader = self.leader
        return leader.address if leader is not None and leader.name != self._config.name else None

    def _peer_status(self, peer: Peer) -> PeerStatus:
        match = self._core.match_index(peer)
        contact = self._core.last_contact(peer)
        return PeerStatus(
            name=str(peer.id),
            match_index=match,
            lag=self._journal.last_index - match,
            connected=bool(self._core.isNodeConnected(peer)),
            last_contact_ms=None if contact is None or not match else round((now_s() - contact) * 1000),
        )

    # --- what follows from a tick

    def _tick_begins(self) -> None:
        was, now = self._journal.space, self._guard.space
        self._journal.space = now
        if now.state != was.state:
            tell = log.error if now.short else log.info
            tell(
                f"raft_disk_{now.state}",
                directory=str(self._directory),
                free=now.free_bytes,
                needed=now.reserve_bytes,
            )
        idle = self._handing_over is None or self._handing_over.done()
        if now.short and idle and self.is_leader and self._core.peers:
            self._handing_over = self._loop.create_task(self._give_leadership_away())

    async def _give_leadership_away(self) -> None:
        """To a follower that has room; who has none refuses it."""
        for name in sorted(self._core.peers, key=lambda name: -self._core.match_index(self._core.peers[name])):
            with contextlib.suppress(TiflowError):
                await self.transfer(name)
                return
        await asyncio.sleep(HAND_OVER_EVERY_S)

    def _tick_ends(self) -> None:
        core = self._core
        if core.applied_count != self._applied_seen:
            self._applied_seen = core.applied_count
            for callback in self._on_applied:
                self._call(callback)
        self._publish(self._role(), self.term)
        if self._snapshot_waiting and not self._snapshots.saving:
            waiting, self._snapshot_waiting = self._snapshot_waiting, []
            for future in waiting:
                if core.snapshot_error is not None:
                    _refuse(future, Unavailable(f"there was no room for the snapshot: {core.snapshot_error}"))
                elif not future.done():
                    future.set_result(self._snapshots.index)

    def _halted(self) -> None:
        if self._handing_over is not None:
            self._handing_over.cancel()
        self._fail_barriers()
        for future in self._snapshot_waiting:
            _refuse(future, Unavailable("this master is stopping"))
        self._snapshot_waiting = []
        self._publish("follower", self.term)

    def _role(self) -> str:
        if self._identity is None:
            return "forming"
        if self._core.leading:
            return "leader"
        # who was elected, but has not applied its first entry, does not lead yet
        return "candidate" if self._core.state in (CANDIDATE, LEADER) else "follower"

    def _publish(self, role: str, term: int) -> None:
        if (role, term) == self._published:
            return
        if role == "leader" and self._published[0] == "leader":
            self._publish("follower", term)  # lost and won again within one tick
        was, self._published = self._published, (role, term)
        if role != was[0]:
            log.info("raft_role", name=self._config.name, role=role, term=term)
        for callback in self._on_role:
            self._call(callback, role, term)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # a listener's bug is not the log's
            log.exception("raft_callback_failed", callback=repr(callback))

    # --- read rounds: one on its way, and one gathering those who came later

    def _core_has_ticked(self) -> None:
        if self._round is None and not self._barrier_waiting:
            return
        core = self._core
        if not core.leading or (self._round is not None and self._round.term != self.term):
            self._fail_barriers()
            return
        if self._round is not None and self._round_is_over(self._round):
            for future in self._round.waiters:
                if not future.done():
                    future.set_result(int(core.raftLastApplied))
            self._round = None
        if self._round is None and self._barrier_waiting:
            waiters, self._barrier_waiting = self._barrier_waiting, []
            self._round = _Round(core.send_round(), self.term, int(core.raftCommitIndex), waiters)
            if not core.peers:
                self._request_tick()

    def _round_is_over(self, current: _Round) -> bool:
        answered = sum(number >= current.number for number in self._core.rounds_answered.values())
        return self._core.has_majority(1 + answered) and self._core.raftLastApplied >= current.read_index

    def _fail_barriers(self) -> None:
        waiters = self._barrier_waiting + (self._round.waiters if self._round is not None else [])
        self._barrier_waiting, self._round = [], None
        for future in waiters:
            _refuse(future, NotLeader(self._leader_address()))


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
