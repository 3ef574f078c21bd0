"""A master process: wiring, in the order in which things start, and stop in reverse."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import structlog

from tiflow import log as logging_setup
from tiflow.clock import SystemClock
from tiflow.config import MasterConfig, metadata_warning, parse_address, parse_duration_ms, prepare_data_dir
from tiflow.errors import FailedPrecondition, InvalidArgument, OutcomeUnknown, TiflowError, Unavailable
from tiflow.master import eventloop
from tiflow.master.archive import Archive
from tiflow.master.leader import Leader
from tiflow.master.metadata import metadata_url
from tiflow.master.proposer import Proposer
from tiflow.master.server import SERVER_OPTIONS, ApiServer, SessionServer
from tiflow.master.service import Service
from tiflow.master.takeover import take_over
from tiflow.meta.tables import open_engine
from tiflow.raft.api import Member
from tiflow.raft.library import Fatal
from tiflow.raft.node import RaftConfig, RaftNode
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.tls import Tls, add_port
from tiflow.sched.commands import FORMAT
from tiflow.sched.machine import Machine
from tiflow.web.app import WebServer, build
from tiflow.web.members import MemberRoutes

STOP_GRACE_S = 2.0
LEAD_AGAIN_S = 0.05  #: leading ended, and yet Raft has not deposed this master
LAG_EVERY_S = 0.25

log = structlog.get_logger()


def run(config: MasterConfig, *, restore: bool = False) -> int:
    """Run a master until SIGTERM or SIGINT. Returns the exit code. `restore`: a new cluster takes over the jobs that
    the metadata database knows.

    Raises:
        TiflowError: it cannot start (a port in use, a directory that is not writable or not ours), or it had to
            stop (a disk error).
    """
    logging_setup.configure(config.log.level, config.log.file)
    try:
        return eventloop.run(_Master(config, restore=restore).run())
    except Fatal as error:
        raise FailedPrecondition(f"data-dir {config.data_dir}: {error}") from error
    except OSError as error:
        raise FailedPrecondition(
            f"data-dir {config.data_dir}: {error.strerror or error}; see that the disk has room and is healthy, "
            "then start this master again: what was acknowledged is on it, or with the other masters"
        ) from error


class _Master:
    def __init__(self, config: MasterConfig, *, restore: bool) -> None:
        self.config = config
        self.restore = restore
        self.machine = Machine()
        self.members = _members(config)
        self.tls = _tls(config)
        self.raft = RaftNode(_raft_config(config, self.members), self.machine, security=self.tls)
        self.clock = SystemClock()
        self.proposer = Proposer(self.raft, self.machine, self.clock)
        self.name = _raft_config(config, self.members).name
        self.service = Service(self.name, self.raft, self.machine, self.proposer)
        self.lag = _LoopLag()
        self.archive: Archive | None = None
        self._terms: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.raft.on_applied(self._on_applied)

    async def run(self) -> int:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        prepare_data_dir(self.config.data_dir)
        open_engine(metadata_url(self.config)).dispose()  # says now what is wrong with the URL; connects to nothing
        if (warning := metadata_warning(self.config)) is not None:
            log.warning("metadata_on_one_disk", reason=warning)
        if self.restore and not self.config.metadata.url:
            raise InvalidArgument("--restore-from-metadata: from which database? Set [metadata] url")
        if self.config.security.insecure:
            log.warning("insecure", reason="connections are neither encrypted nor authenticated")
        async with contextlib.AsyncExitStack() as stack:
            # the ports first: what is wrong with them must be found before the log is opened and an election begun
            listener = (
                stack.enter_context(_listen(self.config.http_addr, "--http-addr")) if self.config.http_addr else None
            )
            _check_port_free(self.config.addr, "--addr")
            server = self._grpc()
            await self.raft.start()
            stack.push_async_callback(self.raft.stop)
            await stack.enter_async_context(self._serve_grpc(server))
            web = await stack.enter_async_context(self._serve_web(listener))
            stack.push_async_callback(self._hand_over)
            background = [asyncio.create_task(self._follow_roles()), asyncio.create_task(self.lag.measure())]
            stack.push_async_callback(_cancel, *background)
            # what start-up has made stays: keep it out of every later collection
            gc.collect()
            gc.freeze()
            log.info(
                "master_started",
                name=self.config.name,
                addr=self.config.addr,
                http_addr=web,
                masters=len(self.members),
                single=len(self.members) == 1,
            )
            stopped = asyncio.create_task(stopping.wait())
            ends: tuple[asyncio.Future[None], ...] = (*background, self.raft.fatal)
            waiting: list[asyncio.Future[Any]] = [stopped, *ends]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done() and (error := end.exception()) is not None:
                    log.critical("master_stopped", reason=repr(error))
                    raise error
            await _cancel(stopped)
            log.info("master_stopping")
        return 0

    def _on_applied(self) -> None:
        if self.archive is not None:
            self.archive.projector.wake(self.machine.state.revision)

    # ---- leading

    async def _follow_roles(self) -> None:
        """Lead while this master is the leader, one `Leader` per term. What goes wrong in leading ends this master:
        one that holds the leadership and does nothing with it would stop everybody."""
        self.raft.on_role(lambda role, term: self._terms.put_nowait((role, term)))
        if self.raft.is_leader:
            self._terms.put_nowait(("leader", self.raft.term))
        role, term = await self._terms.get()
        while True:
            log.info("role_changed", role=role, term=term)
            news = asyncio.create_task(self._terms.get())
            leading = asyncio.create_task(self._lead(term)) if role == "leader" else None
            try:
                if leading is not None:
                    await asyncio.wait((news, leading), return_when=asyncio.FIRST_COMPLETED)
                    if leading.done():
                        leading.result()
                role, term = await news
            finally:
                await _cancel(news, *([leading] if leading is not None else []))

    async def _lead(self, term: int) -> None:
        while self.raft.is_leader and self.raft.term == term:
            self.proposer.begin_term()
            try:
                await take_over(
                    metadata_url(self.config), self.raft, self.machine, self.proposer, wanted=self.restore
                )
            except (Unavailable, OutcomeUnknown) as error:
                log.info("leading_ended", term=term, reason=str(error))
                await asyncio.sleep(LEAD_AGAIN_S)
                continue
            self.archive = archive = self._open_archive(term)
            leader = Leader(
                term,
                self.raft,
                self.machine,
                self.proposer,
                ttl_s=parse_duration_ms(self.config.keepalive_ttl, "keepalive-ttl") / 1_000,
                keepalive_s=parse_duration_ms(self.config.keepalive_interval, "keepalive-interval") / 1_000,
                masters=tuple(member.address for member in self.members),
                archive=archive,
            )
            self.service.set_leader(leader, archive)
            archiving = asyncio.create_task(archive.run())
            try:
                await leader.run()
            finally:
                self.service.set_leader(None)
                await _cancel(archiving)
                archive.close()
                self.archive = None
            await asyncio.sleep(LEAD_AGAIN_S)

    def _open_archive(self, term: int) -> Archive:
        return Archive(
            metadata_url(self.config),
            self.raft.cluster_id,
            self.machine,
            self.proposer,
            self.clock,
            term=term,
            retention_ms=self.config.metadata.retention_ms,
        )

    async def _hand_over(self) -> None:
        """Give the leadership to a follower that is up to date, so that a planned stop costs no election."""
        if self.raft.is_leader and len(self.members) > 1:
            with contextlib.suppress(TiflowError, TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await self.raft.transfer()

    # ---- servers

    def _grpc(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=SERVER_OPTIONS, interceptors=self.tls.interceptors() if self.tls is not None else []
        )
        self.api = ApiServer(
            self.config.name,
            self.service,
            self.raft,
            address=self.config.advertise_addr,
            members=self.members,
            http_address=self.config.http_addr,
            retry=self.config.job_backoff.policy(),
            tls=self.tls,
        )
        self.raft.add_to_server(server)
        rpc.add_TiflowServicer_to_server(self.api, server)
        rpc.add_SessionsServicer_to_server(SessionServer(self.service), server)
        return server

    @contextlib.asynccontextmanager
    async def _serve_grpc(self, server: grpc.aio.Server) -> AsyncIterator[None]:
        host = parse_address(self.config.advertise_addr, "advertise-addr")[0]
        if not add_port(server, self.config.addr, self.tls, host):
            raise FailedPrecondition(_in_use(self.config.addr, "--addr"))
        await server.start()
        try:
            yield
        finally:
            await server.stop(STOP_GRACE_S / 4)
            await self.api.peers.close()

    @contextlib.asynccontextmanager
    async def _serve_web(self, listener: socket.socket | None) -> AsyncIterator[str]:
        if listener is None:
            yield ""
            return
        # with certificates other callers than those of this port are known: these may look, and change nothing
        members = MemberRoutes(lambda: self.machine.state, self.api.peers, read_only=self.tls is not None)
        app = build(
            lambda: self.machine.state,
            self.raft.status,
            lambda: self.lag.worst_s,
            self._metadata_state,
            self.service.samples,
            members,
        )
        server = WebServer(app, self.tls)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            host, port = listener.getsockname()[:2]
            yield f"{host}:{port}"
        finally:
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)

    def _metadata_state(self) -> dict[str, Any]:
        if self.archive is None:
            return {"state": "not leading"}
        return self.archive.status()


class _LoopLag:
    """How late the event loop is: the longest delay of a timer in the last 5 s."""

    def __init__(self) -> None:
        self._recent: list[float] = [0.0]

    @property
    def worst_s(self) -> float:
        return max(self._recent)

    async def measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._recent.append(max(0.0, loop.time() - due_s))
            del self._recent[: -int(5 / LAG_EVERY_S)]


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _tls(config: MasterConfig) -> Tls | None:
    """Raises InvalidArgument if the certificates are not fit for what others dial."""
    security = config.security
    tls = Tls.given(security.ca_path, security.cert_path, security.key_path, security.cert_allowed_cn)
    if tls is not None:
        tls.check(parse_address(config.advertise_addr, "advertise-addr")[0])
    return tls


def _members(config: MasterConfig) -> tuple[Member, ...]:
    if not config.raft.peers:
        return (Member(config.name, config.advertise_addr),)
    # a peer list has addresses only: the address is the identity, a name is for people and for this master's own logs
    return tuple(Member(address, address) for address in config.raft.peers)


def _raft_config(config: MasterConfig, members: tuple[Member, ...]) -> RaftConfig:
    name = members[0].name if len(members) == 1 else config.advertise_addr
    settings = config.raft
    return RaftConfig(
        name=name,
        members=members,
        data_dir=str(Path(config.data_dir) / "raft"),
        heartbeat_ms=parse_duration_ms(settings.heartbeat, "raft.heartbeat"),
        election_timeout_ms=(
            parse_duration_ms(settings.election_timeout_min, "raft.election-timeout-min"),
            parse_duration_ms(settings.election_timeout_max, "raft.election-timeout-max"),
        ),
        leader_fallback_ms=parse_duration_ms(settings.leader_fallback, "raft.leader-fallback"),
        snapshot_entries=settings.snapshot_entries,
        format=FORMAT,
        disk_reserve_bytes=settings.disk_reserve_bytes,
    )


def _in_use(address: str, option: str) -> str:
    return f"{option} {address} is in use by another process; stop that one or give another port"


def _listen(address: str, option: str) -> socket.socket:
    host, port = parse_address(address, option)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == 98:
            raise FailedPrecondition(_in_use(address, option)) from None
        raise FailedPrecondition(f"{option} {address} cannot be bound: {error.strerror}") from None
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _check_port_free(address: str, option: str) -> None:
    """gRPC says only 'failed to bind'; find the reason before it."""
    _listen(address, option).close()
