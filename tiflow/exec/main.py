"""The executor process: puts its parts together, and takes them apart in order."""

import asyncio
import contextlib
import fcntl
import os
import resource
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec import Struct

from tiflow import __version__
from tiflow import log as logging_setup
from tiflow.config import ExecutorConfig, check_executor, parse_address, prepare_data_dir
from tiflow.errors import FailedPrecondition
from tiflow.exec import capacity, cgroups, procs
from tiflow.exec.agent import Agent
from tiflow.exec.guardian_client import GuardianClient
from tiflow.exec.health import DiskKeeper
from tiflow.ids import new_uid

if TYPE_CHECKING:  # gRPC is imported after the guardian was started
    from tiflow.exec.runner import Runner
    from tiflow.exec.session import Session
    from tiflow.exec.worker import Settings
    from tiflow.rpc.tls import Tls

LOCK_S_MAX = 10.0  #: an earlier guardian on the same directory has this long to end its children
FILES_PER_SLOT = 8  #: socket and memory of a worker; pipes, logs and socket of a command or member
FILES_BESIDE = 100  #: connections, results and logs that are read
HANDOVER_S_MAX = 3.0  #: then the leader has this long to commit the last reports

log = structlog.get_logger()


def run(config: ExecutorConfig) -> int:
    """Be an executor until SIGTERM or SIGINT. Returns the exit code; raises TiflowError when it cannot be one."""
    try:
        return _run(config)
    except OSError as error:
        raise FailedPrecondition(
            f"data-dir {config.data_dir}: {error.strerror or error}; see that the disk has room and is healthy, "
            "then start this executor again"
        ) from error


def _run(config: ExecutorConfig) -> int:
    config = check_executor(config)
    logging_setup.configure(config.log.level, config.log.file)
    data_dir = prepare(config.data_dir)
    with lock(data_dir) as lock_fd:
        uid = identity(data_dir)
        shutil.rmtree(f"{data_dir}/work", ignore_errors=True)
        guardian = GuardianClient.start(lock_fd, _cgroups(config, uid))
        try:
            asyncio.run(_serve(config, data_dir, uid, guardian))
            guardian.farewell("")  # goodbye was said
        finally:
            guardian.close()
    return 0


def prepare(path: str) -> str:
    """The absolute data directory, made if need be. Raises FailedPrecondition when it cannot be written."""
    data_dir = prepare_data_dir(path).absolute()
    for part in ("logs", "results"):
        (data_dir / part).mkdir(exist_ok=True)
    return str(data_dir)


@contextlib.contextmanager
def lock(data_dir: str, wait_s: float = LOCK_S_MAX) -> Iterator[int]:
    """Hold the data directory; yields the descriptor, for the guardian to hold it too. Raises FailedPrecondition."""
    fd = os.open(f"{data_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise FailedPrecondition(
                        f"data-dir = {data_dir}: another executor uses it: stop that one, or choose another directory"
                        " with --data-dir"
                    ) from None
                time.sleep(0.05)
        yield fd
    finally:
        os.close(fd)


class _Saved(Struct):
    uid: str


def identity(data_dir: str) -> str:
    """The uid of the executor that this directory belongs to; drawn once."""
    path = Path(data_dir, "executor.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Saved).uid
    except FileNotFoundError:
        uid = new_uid(SystemRandom())
    except msgspec.MsgspecError as error:
        raise FailedPrecondition(
            f"{path} is damaged ({error}): remove it; this executor then gets a new identity"
        ) from None
    draft = path.with_suffix(".tmp")
    with open(draft, "wb") as file:
        file.write(msgspec.json.encode(_Saved(uid)))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    return uid


def _cgroups(config: ExecutorConfig, uid: str) -> cgroups.Cgroups | None:
    """Those of attempts; None: there are none. Raises FailedPrecondition if those that were named cannot be had."""
    where = config.limits.cgroup
    if where == "off":
        return None
    try:
        found = cgroups.set_up(where, uid)
    except cgroups.Unusable as error:
        if where != "auto":
            raise FailedPrecondition(f'limits.cgroup = {where}: {error}; or set it to "auto" or "off"') from None
        log.info("cgroups_not_used", reason=str(error), instead="limits of single processes, and process groups")
        return None
    reason = {} if found.memory else {"memory": "by limits of single processes: its controller is not there"}
    log.info("cgroups_used", path=found.path, **reason)
    return found


async def _serve(config: ExecutorConfig, data_dir: str, uid: str, guardian: GuardianClient) -> None:
    from tiflow.exec.journal import Journal
    from tiflow.exec.masters import Masters
    from tiflow.exec.members import Members
    from tiflow.exec.runner import Runner, now
    from tiflow.exec.session import Identity, Session
    from tiflow.jobs.framework import types
    from tiflow.rpc.channels import Channels

    found = capacity.detect()
    slots = config.slots or found.slots
    _have_files_for(slots)
    agent = Agent(slots)
    journal = Journal(f"{data_dir}/journal")
    tls = _tls(config)
    settings = _task_settings(config, data_dir)
    channels = Channels(tls)
    members = Members(settings.keeper, config.job_types, Masters(channels, config.join), channels)
    runner = Runner(agent, guardian, journal, settings, members)
    runner.attach(on_death=partial(_end_without_guardian, runner, guardian))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_end_on_bug)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with _served(config, data_dir, runner, tls):
        who = Identity(
            uid=uid,
            name=config.name or config.advertise_addr or config.addr,
            address=config.advertise_addr or config.addr,
            slots=slots,
            labels=config.labels | types.labels(config.job_types),
            capacity=found.resources | config.capacity,
            version=__version__,
        )
        session = Session(who, config.join, runner, journal, SystemRandom(), tls)
        log.info(
            "executor_started",
            name=who.name,
            uid=uid,
            address=config.addr,
            slots=slots,
            guardian=guardian.pid,
        )
        keeper = DiskKeeper(
            data_dir,
            config.retention,
            running=agent.jobs,
            on_change=lambda trouble: runner.do(agent.feel(trouble, now())),
        )
        keeper.look()  # before the first task is asked for
        keeping = asyncio.create_task(keeper.run())
        connected = asyncio.create_task(session.run())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([connected, stopped, keeping], return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                connected.result()  # raises: the leader will not have us
            if keeping.done():
                keeping.result()
            await _drain(runner, session, connected, config.drain_timeout_s)
        finally:
            keeping.cancel()
            stopped.cancel()
            connected.cancel()
            await runner.close()
            await channels.close()
        if not agent.outbox:
            journal.remove()
    log.info("executor_stopped", name=who.name)


def _have_files_for(slots: int) -> None:
    """Take as many as allowed. The guardian was started before: tasks keep the limit that this process was given."""
    _, most = procs.raise_open_files()
    needed = slots * FILES_PER_SLOT + FILES_BESIDE
    if most != resource.RLIM_INFINITY and needed > most:
        raise FailedPrecondition(
            f"slots = {slots}: they need {needed} open files, and this process may have {most}: raise that limit"
            " (ulimit -Hn), or lower slots"
        )


async def _drain(runner: "Runner", session: "Session", connected: "asyncio.Task[None]", timeout_s: float) -> None:
    """No new tasks; running ones have a while to end, what is left is handed back; then goodbye."""
    from tiflow.exec.runner import now

    log.info("executor_draining", running=runner.agent.busy_slots)
    runner.do(runner.agent.drain(now()))
    await _until_idle(runner, timeout_s)
    runner.do(runner.agent.release(now()))
    await _until_idle(runner, HANDOVER_S_MAX)
    if not await session.drained(HANDOVER_S_MAX):
        log.warning("executor_reports_lost", reason="no leader committed them in time; their tasks run again")
    await session.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await connected


async def _until_idle(runner: "Runner", timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while runner.agent.busy_slots or runner.agent.killing:  # noqa: ASYNC110  once, at the end
                await asyncio.sleep(0.01)


def _tls(config: ExecutorConfig) -> "Tls | None":
    """Raises InvalidArgument if the certificates are not fit for what others dial."""
    from tiflow.rpc.tls import Tls

    security = config.security
    tls = Tls.given(security.ca_path, security.cert_path, security.key_path, security.cert_allowed_cn)
    if tls is not None:
        tls.check(parse_address(config.advertise_addr or config.addr, "advertise-addr")[0])
    return tls


def _task_settings(config: ExecutorConfig, data_dir: str) -> "Settings":
    from tiflow.exec.worker import Settings

    passed = {name: value for name, value in os.environ.items() if any(fnmatchcase(name, p) for p in config.pass_env)}
    return Settings(
        data_dir=data_dir,
        work_dir=f"{data_dir}/work",
        log_bytes_max=config.log_bytes_max,
        result_bytes_max=config.result_bytes_max,
        env=passed | config.env,
        preload=config.worker.preload,
        tasks_max=config.worker.tasks_max,
        growth_bytes_max=config.worker.growth_bytes_max,
        results_url=config.results.store,
    )


@contextlib.asynccontextmanager
async def _served(config: ExecutorConfig, data_dir: str, runner: "Runner", tls: "Tls | None") -> AsyncIterator[None]:
    """Results and logs are served at `config.addr`."""
    import grpc.aio

    from tiflow.exec.server import Server
    from tiflow.rpc.tiflow_pb2_grpc import add_ExecutorServicer_to_server
    from tiflow.rpc.tls import add_port

    # without so_reuseport two executors would share a port, and each get half of the requests
    interceptors = tls.interceptors() if tls is not None else []
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], interceptors=interceptors)
    add_ExecutorServicer_to_server(Server(data_dir, runner.agent.runs, runner.members), server)
    host = parse_address(config.advertise_addr or config.addr, "advertise-addr")[0]
    if not add_port(server, config.addr, tls, host):
        raise FailedPrecondition(
            f"addr = {config.addr}: the port is in use, or the address is not of this machine: choose another one"
            " with --addr"
        )
    if config.security.insecure:
        log.warning("insecure", reason="connections are neither encrypted nor authenticated")
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=0.2)


def _end_on_bug(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback of ours that raised may have left a state that nothing is known of. The guardian kills the tasks."""
    if "handle" not in context:  # not a callback: a task, whose error its owner gets
        loop.default_exception_handler(context)
        return
    log.error("bug", message=context["message"], exc_info=context.get("exception"))
    os._exit(70)


def _end_without_guardian(runner: "Runner", guardian: GuardianClient) -> None:
    """Nobody would kill the tasks in time any more: end at once. (A supervisor starts us again.)"""
    log.error("guardian_died", remedy="start the executor again")
    runner.last_look()
    guardian.bury()
    os._exit(70)
