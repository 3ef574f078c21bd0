"""One master's part in the group: bytes are proposed here, and applied to a state machine when a majority has
them.

`RaftNode` gives the core what it must not have itself: the event loop, threads for the disk, and gRPC. The
loop's thread owns all state. A tick follows whatever brought something (a message, a proposal, a finished
write), once per turn of the loop; without any there is one at the next deadline, after 50 ms at most.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import msgspec
import pysyncobj.syncobj
import structlog
from msgspec import Struct

from tiflow.errors import (
    FailedPrecondition,
    InvalidArgument,
    NoSpace,
    NotLeader,
    OutcomeUnknown,
    ResourceExhausted,
    TiflowError,
    Unavailable,
)
from tiflow.raft import raft_pb2_grpc
from tiflow.raft.api import Member, NodeStatus, PeerStatus, Security, StateMachine
from tiflow.raft.core import Core, Lost
from tiflow.raft.disk import DiskGuard
from tiflow.raft.identity import DirectoryLock, Identity, draw_cluster_id, form, load_identity, save_identity
from tiflow.raft.journal import ENTRY_BYTES_MAX, Journal, JournalFile, JournalWriter
from tiflow.raft.library import CANDIDATE, LEADER, Fatal, Limits, Peer, Timing
from tiflow.raft.snapshot import SnapshotStore
from tiflow.raft.transport import Greeting, GrpcTransport, RaftServicer

log = structlog.get_logger()
T = TypeVar("T")

TICK_S: Final = 0.05
PROPOSALS_MAX: Final = 10_000
PROPOSALS_BYTES_MAX: Final = 64 << 20
TRANSFER_TIMEOUT_S: Final = 3.0
HAND_OVER_EVERY_S: Final = 5.0  # tries of a leader whose disk is nearly full


class RaftConfig(Struct, frozen=True, kw_only=True):
    """`members` are all, this one included; a single one is a lone master."""

    name: str
    members: tuple[Member, ...]
    data_dir: str
    heartbeat_ms: int = 100
    election_timeout_ms: tuple[int, int] = (500, 1000)
    leader_fallback_ms: int = 1000
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 16 << 20
    format: int = 1  #: of the commands in the entries: the highest that we understand; peers are told
    disk_reserve_bytes: int = 0  #: below so much free space this master takes no proposals and does not want to lead
    fsync: bool = True  #: tests only

    def check(self) -> None:
        """Raises InvalidArgument naming the setting and the remedy."""
        names = [member.name for member in self.members]
        shortest, longest = self.election_timeout_ms
        if self.name not in names:
            raise InvalidArgument(f"master {self.name} is not among its own members {', '.join(names)}")
        if len(set(names)) != len(names):
            raise InvalidArgument(f"two members have one name: {', '.join(sorted(names))}")
        if self.heartbeat_ms < 1 or shortest <= 3 * self.heartbeat_ms or longest <= shortest:
            raise InvalidArgument(
                f"election-timeout {shortest}-{longest} ms must rise, and exceed three heartbeats of "
                f"{self.heartbeat_ms} ms"
            )
        if self.leader_fallback_ms <= self.heartbeat_ms:
            raise InvalidArgument(f"leader-fallback {self.leader_fallback_ms} ms must exceed a heartbeat")


class _Round(Struct):
    """A read round on its way, with those who wait for it."""

    number: int
    term: int
    read_index: int
    waiters: list[asyncio.Future[int]]


class RaftNode:
    """A member of the group. Use it from one event loop only; `stop` ends what `start` began.

    `fatal` is set to an exception when the node had to stop by itself: a disk error, a damaged log, a state
    machine that raised. The process must end then, and may be started again.
    """

    def __init__(
        self,
        config: RaftConfig,
        machine: StateMachine,
        *,
        rng: random.Random | None = None,
        security: Security | None = None,
    ) -> None:
        config.check()
        self._config = config
        self._machine = machine
        self._rng = rng or random.Random()
        self._security = security
        self._directory = Path(config.data_dir)
        self._members = {member.name: member for member in config.members}
        self._names = tuple(sorted(self._members))
        self._servicer = RaftServicer()
        self._identity: Identity | None = None
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
        self._tick_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self.fatal: asyncio.Future[None]
        self._loop: asyncio.AbstractEventLoop
        self._core: Core
        self._journal: Journal
        self._file: JournalFile
        self._writer: JournalWriter
        self._snapshots: SnapshotStore
        self._transport: GrpcTransport
        self._disk: ThreadPoolExecutor
        self._guard: DiskGuard
        self._lock: DirectoryLock

    # --- life

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Serve the peers' streams on `server`. Call before `server.start()`; make it with
        `transport.SERVER_OPTIONS`, or snapshots and large entries will not pass."""
        raft_pb2_grpc.add_RaftServicer_to_server(self._servicer, server)  # type: ignore[no-untyped-call]

    async def start(self) -> None:
        """Recover from disk and take part. Returns before a leader is elected.

        Raises FailedPrecondition (the directory is in use, another member's, or damaged) and OSError.
        """
        self._loop = asyncio.get_running_loop()
        self.fatal = self._loop.create_future()
        self.fatal.add_done_callback(lambda future: future.cancelled() or future.exception())  # may go unread
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = DirectoryLock(self._directory)
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        self._running = True
        self._servicer.attach(self._transport)
        if self._identity is None and len(self._names) == 1:
            identity = Identity(cluster_id=draw_cluster_id(self._rng), name=self._config.name, members=self._names)
            log.warning("raft_lone_master", cluster_id=identity.cluster_id, directory=str(self._directory))
            self._take_identity(identity)
        self._transport.start()
        self._request_tick()

    def _open(self) -> None:
        config = self._config
        self._identity = load_identity(self._directory, name=config.name, members=self._names)
        self._file = JournalFile(self._directory, fsync=config.fsync)
        if self._identity is not None and not self._file.existed:
            self._file.close()
            raise FailedPrecondition(
                f"{self._directory} is of cluster {self._identity.cluster_id}, but its journal is gone, and with it "
                f"the votes of this master: remove the directory to join again, empty"
            )
        self._guard = DiskGuard(self._directory, config.disk_reserve_bytes)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="raft-disk")
        self._journal = Journal(self._file.recovered, lambda ops, position: self._writer.submit(ops, position))
        self._snapshots = SnapshotStore(self._directory, run=self._run_on_disk, fsync=config.fsync)
        shortest, longest = config.election_timeout_ms
        try:
            peers = {name: Peer(name) for name in self._names if name != config.name}
            self._transport = GrpcTransport(
                name=config.name,
                members=config.members,
                peers=peers,
                journal=self._journal,
                greet=self._greeting,
                greeted=self._try_to_form,
                received=self._after_messages,
                failed=self._fail,
                security=self._security,
            )
            self._core = Core(
                config.name,
                peers.values(),
                journal=self._journal,
                snapshots=self._snapshots,
                machine=self._machine,
                transport=self._transport,
                rng=self._rng,
                timing=Timing(
                    heartbeat_s=config.heartbeat_ms / 1000,
                    election_min_s=shortest / 1000,
                    election_max_s=longest / 1000,
                    leader_fallback_s=config.leader_fallback_ms / 1000,
                ),
                limits=Limits(snapshot_entries=config.snapshot_entries, snapshot_bytes=config.snapshot_bytes),
                wake=self._request_tick,
            )
        except Fatal as error:
            self._file.close()
            self._disk.shutdown()
            raise FailedPrecondition(f"{self._directory}: {error}") from error
        except BaseException:
            self._file.close()
            self._disk.shutdown()
            raise
        if self._identity is not None:
            self._core.join(may_vote=self._identity.may_vote, term_floor=self._identity.term_floor)
        self._writer = JournalWriter(
            self._file,
            lambda position: self._from_thread(self._landed, position),
            lambda error: self._from_thread(self._fail, error),
            self._guard,
        )

    async def stop(self) -> None:
        """Leave: streams are closed, the journal is flushed. What waits for an answer gets OutcomeUnknown."""
        if not hasattr(self, "_writer"):
            return
        self._servicer.attach(None)
        self._halt()
        await self._transport.close()
        if not self._failed:
            self._journal.flush()
        await asyncio.to_thread(self._writer.stop)
        await asyncio.to_thread(self._disk.shutdown)
        self._snapshots.close()
        self._file.close()
        self._lock.close()
        del self._writer
        log.info("raft_stopped", name=self._config.name)

    @property
    def _failed(self) -> bool:
        return self.fatal.done()

    def _fail(self, error: BaseException) -> None:
        if self.fatal.done():
            return
        log.critical("raft_fatal", name=self._config.name, directory=str(self._directory), error=repr(error))
        self.fatal.set_exception(error)
        self._servicer.attach(None)
        self._halt()
        self._transport.hang_up()

    def _halt(self) -> None:
        """Take part no more, and let nobody wait."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        if self._handing_over is not None:
            self._handing_over.cancel()
        self._core.forget_proposals()
        self._fail_barriers()
        for future in self._snapshot_waiting:
            _refuse(future, Unavailable("this master is stopping"))
        self._snapshot_waiting = []
        self._publish("follower", self.term)

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
    def cluster_id(self) -> str:
        """Empty while this master belongs to no cluster."""
        return self._identity.cluster_id if self._identity is not None else ""

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
        if self.is_leader and self._journal.space.short:
            raise NoSpace(self._journal.space.refusal(self._directory))
        if self._transferring:
            raise NotLeader(None)
        self._check_leader()
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
            last_contact_ms=None if contact is None or not match else round((_now() - contact) * 1000),
        )

    # --- forming

    def _greeting(self) -> Greeting:
        members = tuple(f"{name}={self._members[name].address}" for name in self._names)
        journal = self._journal
        return Greeting(
            cluster_id=self.cluster_id,
            name=self._config.name,
            members=members,
            fresh=journal.fresh,
            term=journal.term,
            origin=self._identity.origin if self._identity is not None else "",
            format=self._config.format,
        )

    def _try_to_form(self) -> None:
        if self._identity is not None or not self._running:
            return
        identity = form(self._config.name, self._names, self._transport.greetings(), self._rng)
        if identity is not None:
            self._take_identity(identity)

    def _take_identity(self, identity: Identity) -> None:
        try:
            save_identity(self._directory, identity, fsync=self._config.fsync)
        except OSError as error:
            self._fail(error)
            return
        self._identity = identity
        self._core.join(may_vote=identity.may_vote, term_floor=identity.term_floor)
        log.info("raft_joined", cluster_id=identity.cluster_id, name=identity.name, may_vote=identity.may_vote)
        self._transport.greet_again()
        self._request_tick()

    # --- the tick

    def _request_tick(self) -> None:
        if self._running and not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    def _after_messages(self) -> None:
        if self._running:
            self._journal.flush()  # now, not after the tick: the leader waits for the answer
            self._request_tick()

    def _landed(self, position: int) -> None:
        if self._running:
            self._journal.landed(position)
            self._transport.release()
            self._request_tick()

    def _tick(self) -> None:
        self._tick_due = False
        if not self._running:
            return
        try:
            self._watch_disk()
            if self._identity is not None:
                self._core._onTick()
            self._journal.flush()
            self._advance_barrier()
        except Exception as error:  # noqa: BLE001 - what it was in the middle of is unknown
            self._fail(error)
            return
        self._after_tick()
        self._arm_timer()
        if self._core.busy and self._identity is not None:
            self._request_tick()

    def _watch_disk(self) -> None:
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

    def _after_tick(self) -> None:
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
        if core.may_vote and self._identity is not None and not self._identity.may_vote:
            self._take_identity(msgspec.structs.replace(self._identity, may_vote=True))

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        pause = (
            min(TICK_S, max(0.001, self._core.election_deadline - _now())) if self._identity is not None else TICK_S
        )
        self._timer = self._loop.call_later(pause, self._request_tick)

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

    def _advance_barrier(self) -> None:
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

    # --- threads

    def _from_thread(self, callback: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _run_on_disk(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        def finished(result: T | BaseException) -> None:
            if not self._running:
                return
            try:
                done(result)
                self._journal.flush()
            except Exception as error:  # noqa: BLE001 - as in a tick
                self._fail(error)

        def run() -> None:
            try:
                result: T | BaseException = work()
            except BaseException as error:  # noqa: BLE001 - handed to the loop
                result = error
            self._from_thread(finished, result)

        self._disk.submit(run)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _now() -> float:
    return float(pysyncobj.syncobj.monotonicTime())
