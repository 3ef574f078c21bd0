"""What moves one member: its directory, the loop that ticks the core, the threads that write, and its end.

The loop's thread owns all state. A tick follows whatever brought something (a message, a proposal, a finished write),
once per turn of the loop; without any there is one at the next deadline, after 50 ms at most.
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
import structlog

from tiflow.errors import FailedPrecondition
from tiflow.raft import raft_pb2_grpc
from tiflow.raft.api import Security, StateMachine
from tiflow.raft.config import RaftConfig
from tiflow.raft.core import Core
from tiflow.raft.disk import DiskGuard
from tiflow.raft.identity import (
    FILE_NAME,
    DirectoryLock,
    Identity,
    draw_cluster_id,
    form,
    load_identity,
    save_identity,
)
from tiflow.raft.journal import Journal, JournalFile
from tiflow.raft.library import Fatal, Limits, Peer, Timing, now_s
from tiflow.raft.snapshot import SnapshotStore
from tiflow.raft.transport import Greeting, GrpcTransport, RaftServicer
from tiflow.raft.writer import JournalWriter

log = structlog.get_logger()
T = TypeVar("T")

TICK_S: Final = 0.05


class Driver:
    """A member that takes part, and tells nobody: RaftNode answers for it.

    `fatal` is set to an exception when it had to stop by itself: a disk error, a damaged log, a state machine that
    raised. The process must end then, and may be started again.
    """

    def __init__(
        self, config: RaftConfig, machine: StateMachine, *, rng: random.Random | None, security: Security | None
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
        self._tick_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0  # by the loop's clock
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

    @property
    def cluster_id(self) -> str:
        """Empty while this master belongs to no cluster."""
        return self._identity.cluster_id if self._identity is not None else ""

    # --- what follows from a tick, said by RaftNode

    def _tick_begins(self) -> None:
        raise NotImplementedError

    def _core_has_ticked(self) -> None:
        """What it raises is fatal, as what the core raises."""
        raise NotImplementedError

    def _tick_ends(self) -> None:
        raise NotImplementedError

    def _halted(self) -> None:
        """Nobody is to wait any more."""
        raise NotImplementedError

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
        if self._identity is None and not self._untouched():
            self._file.close()
            raise FailedPrecondition(
                f"{self._directory} has the log of a member of some cluster, but not its {FILE_NAME}, and so nobody "
                "knows of which: put that file back, or remove the directory to join again, empty"
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

    def _untouched(self) -> bool:
        """Nothing was ever voted on or logged here."""
        recovered = self._file.recovered
        return recovered.term == 0 and len(recovered.entries) <= 1 and not (self._directory / "snapshot").exists()

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
        """Take part no more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        self._core.forget_proposals()
        self._halted()

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

    def _note_vote(self) -> None:
        """Who has caught up may vote, also after a restart."""
        if self._core.may_vote and self._identity is not None and not self._identity.may_vote:
            self._take_identity(msgspec.structs.replace(self._identity, may_vote=True))

    # --- the tick

    def _request_tick(self) -> None:
        if self._running and not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    def _after_messages(self) -> None:
        if not self._running:
            return
        idle = self._journal.on_disk
        self._journal.flush()  # now, not after the tick: the leader waits for the answer
        position = self._journal.position
        if idle and not self._journal.on_disk and self._writer.quick and self._writer.wait(position):
            self._landed(position)
        self._request_tick()

    def _landed(self, position: int) -> None:
        if self._running:
            self._journal.landed(position)
            self._transport.release()
            if self._core.busy:  # what is committed has waited for this
                self._request_tick()

    def _tick(self) -> None:
        self._tick_due = False
        if not self._running:
            return
        try:
            self._tick_begins()
            if self._identity is not None:
                self._core._onTick()
            self._journal.flush()
            self._core_has_ticked()
        except Exception as error:  # noqa: BLE001 - what it was in the middle of is unknown
            self._fail(error)
            return
        self._tick_ends()
        self._note_vote()
        self._arm_timer()
        if self._core.busy and self._identity is not None:
            self._request_tick()

    def _arm_timer(self) -> None:
        pause = TICK_S
        if self._identity is not None:
            pause = min(TICK_S, max(0.001, self._core.election_deadline - now_s()))
        due = self._loop.time() + pause
        if self._timer is not None:
            if self._timer_due <= due:
                return  # it will look again; a new one for each tick would cost more
            self._timer.cancel()
        self._timer, self._timer_due = self._loop.call_later(pause, self._time_is_up), due

    def _time_is_up(self) -> None:
        self._timer = None
        self._request_tick()

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
