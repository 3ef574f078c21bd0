"""`tiflow dev`: a whole cluster as child processes of this one."""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click

from tiflow.cli.common import DEFAULT_MASTER_ADDRS, print_json, print_table
from tiflow.config import prepare_data_dir
from tiflow.errors import FailedPrecondition, InvalidArgument, TiflowError, Unavailable

if TYPE_CHECKING:
    from tiflow.client import MasterInfo

READY_S_MAX = 60.0
STOP_S_MAX = 15.0
POLL_S = 0.2
PR_SET_PDEATHSIG = 1
HOST = "127.0.0.1"
#: of the first master, gRPC and HTTP, as clients look for it; the next masters have them PORT_STEP higher, as the
#: containers of docker-compose do
PORT, HTTP_PORT, PORT_STEP = 10240, 10250, 1_000
EXECUTOR_PORT = 10301  #: of the first executor
PLAN = "plan.json"  #: names and addresses, for the next start
DESCRIPTION = "dev.json"  #: there while the cluster is up


@click.command()
@click.option(
    "--data-dir", metavar="DIR", help="Keep everything there. Default: a temporary one, removed at the end."
)
@click.option("--masters", default=3, type=click.IntRange(1, 7), metavar="N", help="Default: 3.")
@click.option("--executors", default=2, type=click.IntRange(0, 64), metavar="N", help="Default: 2.")
@click.option("--slots", default=4, type=click.IntRange(1, 256), metavar="N", help="Of each executor. Default: 4.")
@click.option(
    "--port-base",
    type=click.IntRange(0, 65_000),
    metavar="PORT",
    help="Ports from PORT on; 0: any free ones. Default: 10240 …, where they are free.",
)
@click.option("--json", "as_json", is_flag=True, help="Print dev.json once the cluster is ready.")
def dev(data_dir: str | None, masters: int, executors: int, slots: int, port_base: int | None, as_json: bool) -> int:
    """Run masters and executors on this machine until Ctrl-C or SIGTERM, with metadata in SQLite.

    The first master listens on 127.0.0.1:10240, where clients look when they are told no address. Ports that are in
    use are replaced by free ones; DIR keeps those that it began with.

    A process that ends is reported and not started again: kill one, and see what happens. DIR/dev.json has all
    addresses and pids, DIR/NAME.log what each process logs.

    \b
    Examples:
      tiflow dev
      tiflow dev --masters 1 --executors 4 --slots 2 --data-dir ./dev
    """
    if masters % 2 == 0:
        raise InvalidArgument(f"--masters = {masters}: use 1, 3, 5 or 7; an even number survives no more failures")
    with ExitStack() as stack:
        directory = _directory(data_dir, stack)
        _lock(directory, stack)
        stop = _StopSignals()
        cluster = Cluster(directory, _plan(directory, masters, executors, port_base), slots)
        stack.callback(cluster.stop)
        stack.callback((directory / DESCRIPTION).unlink, missing_ok=True)
        cluster.start()
        if not cluster.wait_ready(stop):
            return 0
        _write_json(directory / DESCRIPTION, cluster.describe())
        if as_json:
            print_json(cluster.describe())
        else:
            _welcome(cluster)
        while not stop.asked:
            cluster.report_ended()
            time.sleep(POLL_S)
        click.echo("stopping", err=True)
    return 0


@dataclass
class Child:
    """A master or an executor."""

    kind: str  #: master or executor
    name: str
    addr: str
    http: str = ""  #: of a master
    process: "subprocess.Popen[bytes] | None" = None
    reported: bool = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Cluster:
    """The child processes, their files and their fate."""

    directory: Path
    children: Sequence[Child]
    slots: int
    _logs: list[IO[bytes]] = field(default_factory=list)

    @property
    def master_addrs(self) -> str:
        return ",".join(child.addr for child in self.children if child.kind == "master")

    def start(self) -> None:
        for child in self.children:
            log = (self.directory / f"{child.name}.log").open("ab")
            self._logs.append(log)
            child.process = subprocess.Popen(
                [sys.executable, "-m", "tiflow", *self._arguments(child)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C reaches this process only, which stops them in order
                preexec_fn=_die_with_parent(os.getpid()),
            )

    def wait_ready(self, stop: "_StopSignals") -> bool:
        """Until there is a leader and all executors are registered. False: stopped before."""
        from tiflow.client import Client

        executors = sum(child.kind == "executor" for child in self.children)
        deadline_s = time.monotonic() + READY_S_MAX
        reason = "no master answers"
        with Client(self.master_addrs, timeout_s=2.0) as client:
            while not stop.asked:
                for child in self.children:
                    if not child.running:
                        raise FailedPrecondition(f"{self._epitaph(child)}; see {self._log_path(child)}")
                try:
                    alive = sum(one.state == "alive" for one in client.executors())
                    if alive >= executors and self._are_ours(client.raft_status()):
                        return True
                    reason = f"{alive} of {executors} executors have joined"
                except TiflowError as error:
                    reason = str(error)
                if time.monotonic() >= deadline_s:
                    raise Unavailable(
                        f"the cluster was not ready in {READY_S_MAX:g} s: {reason}; see the logs in {self.directory}"
                    )
                time.sleep(POLL_S / 2)
        return False

    def _are_ours(self, masters: Sequence["MasterInfo"]) -> bool:
        """Another cluster may answer at our addresses, until our processes have found that the ports are taken."""
        return {master.pid for master in masters if master.reachable} <= {_pid(child) for child in self.children}

    def report_ended(self) -> None:
        """Say it once of each process that has ended; the others go on."""
        for child in self.children:
            if not child.running and not child.reported:
                child.reported = True
                click.echo(self._epitaph(child), err=True)

    def stop(self) -> None:
        """SIGTERM, executors first so that they can say goodbye; SIGKILL for what is left."""
        for kind in ("executor", "master"):
            running = [child for child in self.children if child.kind == kind and child.running]
            for child in running:
                _signal(child, signal.SIGTERM)
            deadline_s = time.monotonic() + STOP_S_MAX
            while any(child.running for child in running) and time.monotonic() < deadline_s:
                time.sleep(0.05)
            for child in running:
                if child.running:
                    click.echo(f"{child.name} did not stop in {STOP_S_MAX:g} s and is killed", err=True)
                    _signal(child, signal.SIGKILL)
        for child in self.children:
            if child.process is not None:
                child.process.wait()
        for log in self._logs:
            log.close()

    def describe(self) -> dict[str, Any]:
        """What dev.json holds."""
        return {
            "master_addrs": self.master_addrs,
            "masters": [
                {"name": child.name, "addr": child.addr, "http": child.http, "pid": _pid(child)}
                for child in self.children
                if child.kind == "master"
            ],
            "executors": [
                {"name": child.name, "addr": child.addr, "pid": _pid(child)}
                for child in self.children
                if child.kind == "executor"
            ],
        }

    def _arguments(self, child: Child) -> list[str]:
        own = ["--addr", child.addr, "--name", child.name, "--data-dir", str(self.directory / child.name)]
        if child.kind == "executor":
            return ["executor", *own, "--join", self.master_addrs, "--slots", str(self.slots)]
        single = self.master_addrs == child.addr
        peers = [] if single else ["--peers", self.master_addrs]
        # one file for all of them: whoever leads finds the checkpoints that were written under another leader
        metadata = f"sqlite:///{(self.directory / 'metadata.db').resolve()}"
        return ["master", *own, "--http-addr", child.http, *peers, "--metadata-url", metadata]

    def _log_path(self, child: Child) -> Path:
        return self.directory / f"{child.name}.log"

    def _epitaph(self, child: Child) -> str:
        code = child.process.returncode if child.process is not None else 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        lines = self._log_path(child).read_text(encoding="utf-8", errors="replace").splitlines()
        return f"{child.name} {how}" + (f": {lines[-1].strip()}" if lines else "")


class _StopSignals:
    """SIGINT and SIGTERM, as a flag."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _directory(data_dir: str | None, stack: ExitStack) -> Path:
    if data_dir is not None:
        return prepare_data_dir(data_dir, "--data-dir").resolve()
    temporary = tempfile.mkdtemp(prefix="tiflow-dev-")
    stack.callback(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _lock(directory: Path, stack: ExitStack) -> None:
    """One `tiflow dev` per directory; the lock ends with this process, however it ends."""
    lock = stack.enter_context((directory / "lock").open("wb"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            f"--data-dir = {directory}: another tiflow dev uses it; stop that one, or give another directory"
        ) from None


def _plan(directory: Path, masters: int, executors: int, port_base: int | None) -> list[Child]:
    """Names and addresses: those of before, when the directory has been used; else new ones."""
    plan = directory / PLAN
    if plan.exists():
        # a master is known to the others by its address, so a directory keeps the ports that it began with
        children = [Child(*one) for one in json.loads(plan.read_text(encoding="utf-8"))]
        before = [sum(child.kind == kind for child in children) for kind in ("master", "executor")]
        if before != [masters, executors]:
            raise FailedPrecondition(
                f"--data-dir = {directory}: holds a cluster of {before[0]} masters and {before[1]} executors; "
                "give the same numbers, or another directory"
            )
        return children
    addresses = iter([f"{HOST}:{port}" for port in _ports(masters, executors, port_base)])
    children = [
        *(Child("master", f"m{number}", next(addresses), next(addresses)) for number in range(masters)),
        *(Child("executor", f"e{number}", next(addresses)) for number in range(executors)),
    ]
    _write_json(plan, [(child.kind, child.name, child.addr, child.http) for child in children])
    return children


def _write_json(target: Path, value: object) -> None:
    draft = target.with_suffix(".json.new")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    draft.replace(target)


def _ports(masters: int, executors: int, base: int | None) -> list[int]:
    """Of each master gRPC and HTTP, then those of the executors."""
    wanted = 2 * masters + executors
    if base:
        return list(range(base, base + wanted))
    usual = [port + PORT_STEP * number for number in range(masters) for port in (PORT, HTTP_PORT)]
    usual += range(EXECUTOR_PORT, EXECUTOR_PORT + executors)
    with ExitStack() as stack:  # each is held until all are known, so that no two are the same

        def hold(port: int) -> int:
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the cluster before may linger
            one.bind((HOST, port))
            return int(one.getsockname()[1])

        ports = []
        for port in usual if base is None else [0] * wanted:
            try:
                ports.append(hold(port))
            except OSError:
                ports.append(hold(0))
        return ports


def _die_with_parent(parent: int) -> Any:
    """What a child calls before it becomes a master or an executor: SIGKILL when this process dies, however."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before it was asked for
            os._exit(1)

    return prepare


def _signal(child: Child, number: int) -> None:
    if child.process is not None:
        child.process.send_signal(number)


def _pid(child: Child) -> int:
    return child.process.pid if child.process is not None else 0


def _welcome(cluster: Cluster) -> None:
    print_table(
        ("NAME", "GRPC", "HTTP", "PID"),
        [(child.name, child.addr, child.http or "-", _pid(child)) for child in cluster.children],
    )
    http = next(child.http for child in cluster.children if child.kind == "master")
    program = _program()
    first = cluster.master_addrs.partition(",")[0]
    export = f"export TIFLOW_MASTER_ADDRS={cluster.master_addrs}"
    needed, also = (f"    {export}\n", "")
    if first == DEFAULT_MASTER_ADDRS:
        needed = ""
        if first != cluster.master_addrs:
            also = f"\nClients find {first} by themselves; while that master is down:\n\n    {export}\n"
    click.echo(
        f"""
The cluster is ready. Its files and logs are in {cluster.directory}
Health and metrics of a master: http://{http}/readyz and http://{http}/metrics

In another terminal:

{needed}    {program} job run examples/wordcount.toml
    {program} raft status
{also}
Ctrl-C stops everything."""
    )


def _program() -> str:
    """What to type for this program: its name, or its path in a checkout."""
    launcher = Path(__file__).resolve().parents[2] / "bin" / "tiflow"
    if shutil.which("tiflow") or not launcher.exists():
        return "tiflow"
    here = Path.cwd()
    return str(launcher.relative_to(here) if launcher.is_relative_to(here) else launcher)
