"""A cluster of real processes on this machine.

    with Cluster(masters=3, executors=2) as cluster:
        job = cluster.client().run_command(["true"], count=10)
        cluster.kill(cluster.wait_leader())
        cluster.wait_leader()

Nothing here waits for a time to pass: it waits for a condition, and fails with the logs when the condition does not
come. TIFLOW_TEST_SLOWDOWN=3 makes it three times as patient.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from uuid import uuid4

import grpc

import tiflow
from tests.cluster.network import Network
from tests.leftovers import remove_cgroup
from tests.ports import free_port, free_ports
from tiflow.rpc import certificates
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.tls import Tls, open_channel

REPOSITORY = Path(__file__).resolve().parents[2]
SLOWDOWN = float(os.environ.get("TIFLOW_TEST_SLOWDOWN", "1"))

LOG_LINES = 30  #: of each process, shown on failure
ASK_S = 0.5  #: for one answer; a paused master never gives one
STOP_S = 15.0  #: between SIGTERM and SIGKILL
RUN = "import sys; from tiflow.cli.main import main; sys.exit(main(sys.argv[1:]))"
TOKEN = "TIFLOW_TEST_CLUSTER"  #: environment variable by which the descendants of a cluster are found

T = TypeVar("T")
Config = Mapping[str, Any]  #: as in a TOML file: keys, or tables of keys


def eventually(
    fn: Callable[[], T],
    within_s: float = 20.0,
    every_s: float = 0.05,
    retry: tuple[type[Exception], ...] = (AssertionError,),
) -> T:
    """Calls `fn` until what it returns is true, and returns that. `retry`: errors that mean "not yet"."""
    deadline = time.monotonic() + within_s * SLOWDOWN
    while True:
        last: object
        try:
            last = value = fn()
            if value:
                return value
        except retry as error:
            last = error
        if time.monotonic() >= deadline:
            cause = last if isinstance(last, Exception) else None
            raise AssertionError(f"not within {within_s * SLOWDOWN:g} s; last: {last!r}") from cause
        time.sleep(every_s)


class Process:
    """One master or executor, over all its restarts."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.patch = ""  #: Python that runs before it, from its next start on
        self._prefix = prefix
        self.argv = argv
        self.log = log
        self._env = env
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._popen is None, f"{self.name} is running"
        with self.log.open("ab") as log:
            program = ["-c", f"{self.patch}\n{RUN}"] if self.patch else ["-m", "tiflow"]
            self._popen = subprocess.Popen(
                [*self._prefix, sys.executable, *program, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env=self._env,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """As far as the test knows: nobody has killed it."""
        return self._popen is not None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} is not running"
        return self._popen.pid

    def signal(self, sig: signal.Signals) -> None:
        os.kill(self.pid, sig)

    def wait(self, within_s: float = STOP_S) -> int:
        """Its exit code, once it has ended."""
        assert self._popen is not None, f"{self.name} is not running"
        try:
            code = self._popen.wait(within_s * SLOWDOWN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {within_s * SLOWDOWN:g} s") from None
        self._popen = None
        return code

    def crash(self) -> int | None:
        """Its exit code, if it ended without being told to."""
        return None if self._popen is None else self._popen.poll()

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        left_out = len(lines) - LOG_LINES
        head = [f"… {left_out} lines, see {self.log}"] if left_out > 0 else []
        return "\n".join([f"---- {self.name}", *head, *lines[-LOG_LINES:]])


class Cluster:
    """Masters m1, m2 … and executors e1, e2 …: started by `with`, or by start() and stop()."""

    living: ClassVar[weakref.WeakSet["Cluster"]] = weakref.WeakSet()  #: started and not stopped

    def __init__(
        self,
        masters: int = 3,
        executors: int = 2,
        slots: int = 1,
        data_dir: str | Path | None = None,
        metadata_url: str | None = None,
        *,
        master_config: Config | None = None,
        executor_config: Config | None = None,
        env: Mapping[str, str] | None = None,
        network: Network | None = None,
        tls: bool = False,
        before: Callable[[str], Sequence[str]] = lambda name: (),
    ) -> None:
        """`data_dir`: where data and logs go; None: a temporary directory that is kept if the test fails.
        `master_config`, `executor_config`: what goes into their TOML files, such as {"keepalive-ttl": "3s"}.
        `tls`: each process has a certificate of its own for its host, and clients that of `ops`.
        `before`: words to put in front of the command of a process, by its name.
        `network`: its hosts m1 … and e1 … run the processes; None: all run here, on loopback."""
        self.failed = False  #: keeps the directory
        self._own_directory = data_dir is None
        self.directory = Path(data_dir or tempfile.mkdtemp(prefix="tiflow-cluster-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._token = uuid4().hex
        self._env = self._environment(env or {})
        self._slots = slots
        # tasks keep the mark by which what is left behind is found
        self._executor_config = {"pass-env": ["*"], **(executor_config or {})}
        self._before = before
        self._clients: list[tiflow.Client] = []
        self._channels: dict[str, grpc.Channel] = {}
        self._processes: dict[str, Process] = {}

        self.certificates = self.directory / "certificates"
        self.tls = self._authority() if tls else None
        self._network = network
        ports = free_ports(2 * masters)
        names = [f"m{number + 1}" for number in range(masters)]
        self.addresses = {name: f"{self._host(name)}:{port}" for name, port in zip(names, ports, strict=False)}
        self.http_addresses = {
            name: f"{self._host(name)}:{port}" for name, port in zip(names, ports[masters:], strict=True)
        }
        config = dict(master_config or {})
        if metadata_url is not None:
            config["metadata"] = {**config.get("metadata", {}), "url": metadata_url}
        for name in names:
            self._add_master(name, config)
        for number in range(executors):
            self._add_executor(f"e{number + 1}", slots)

    # ---- life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.dump()
            self._kill_everything()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
            return
        self.dump()
        self._kill_everything()

    def start(self) -> None:
        """All processes, and waits until there is a leader and the executors have joined."""
        Cluster.living.add(self)
        for process in self._processes.values():
            process.start()
        if self.masters:
            self.wait_leader()
            self.wait_executors(len(self.executors))

    def stop(self) -> None:
        """SIGTERM, as an administrator would; fails if a process crashed, did not end, or left something behind."""
        crashed = self.crashed()
        problems = [f"{name} had crashed: exit code {code}" for name, code in crashed.items()]
        for names in self.executors, self.masters:  # executors first: they say goodbye to the leader
            stopping = [self._processes[name] for name in names if self.running(name) and name not in crashed]
            problems += self._terminate(stopping)
        try:
            eventually(lambda: not self._left_behind(), within_s=5)
        except AssertionError:
            problems += [f"left behind: {command}" for command in self._left_behind().values()]
        if problems:
            self.dump()
        self._kill_everything()
        assert not problems, "; ".join(problems)
        if self._own_directory and not self.failed:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal and waits for the end. Returns the exit code."""
        process = self._processes[name]
        process.signal(sig)
        return process.wait()

    def signal(self, name: str, sig: signal.Signals) -> None:
        self._processes[name].signal(sig)

    def wait(self, name: str) -> int:
        """Its exit code, once it has ended."""
        return self._processes[name].wait()

    def kill_host(self, name: str) -> None:
        """All processes of an executor at once, as when its machine fails: nobody is left to report it."""
        process = self._processes[name]
        process.signal(signal.SIGSTOP)  # so that the tree does not change while it is read
        pids = [process.pid]
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (thread / "children").read_text().split()]
        for pid in (*pids[1:], process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def wait_exit(self, name: str) -> int:
        """The exit code of one that ends by itself."""
        return self._processes[name].wait()

    def pause(self, name: str) -> None:
        """SIGSTOP: it hangs, as far as all others can tell."""
        self._processes[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._processes[name].signal(signal.SIGCONT)

    def patch(self, name: str, code: str) -> None:
        """Python that runs before the process, from its next start on: to make it of another version, say."""
        self._processes[name].patch = code

    def restart(self, name: str) -> None:
        """With the same data, address and name. A process that runs is killed first."""
        if self._processes[name].running:
            self.kill(name)
        self._processes[name].start()

    def add_executor(
        self,
        name: str,
        slots: int | None = None,
        data_dir: Path | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Starts one more."""
        self._add_executor(name, self._slots if slots is None else slots, data_dir, labels or {})
        self._processes[name].start()

    # ---- what there is

    @property
    def masters(self) -> list[str]:
        return list(self.addresses)

    @property
    def executors(self) -> list[str]:
        return [name for name in self._processes if name not in self.addresses]

    @property
    def master_addrs(self) -> str:
        """As clients and executors take it."""
        return ",".join(self.addresses.values())

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def running(self, name: str) -> bool:
        return self._processes[name].running

    def log(self, name: str) -> str:
        return self._processes[name].log.read_text(errors="replace")

    def data_dir(self, name: str) -> Path:
        return self.directory / name

    def crashed(self) -> dict[str, int]:
        """Exit codes of processes that ended without being told to."""
        codes = {name: process.crash() for name, process in self._processes.items()}
        return {name: code for name, code in codes.items() if code is not None}

    # ---- asking and waiting

    def status(self) -> dict[str, pb.MasterStatus]:
        """What each master says of itself; those that do not answer are missing."""
        request = pb.RaftStatusRequest(all=False)
        running = [name for name in self.masters if self._processes[name].running]
        futures = {name: self._stub(name).RaftStatus.future(request, timeout=ASK_S * SLOWDOWN) for name in running}
        answers: dict[str, pb.MasterStatus] = {}
        for name, future in futures.items():
            with suppress(grpc.RpcError):
                answers[name] = future.result().masters[0]
        return answers

    def leader(self) -> str | None:
        """The one of the highest term: a deposed leader may not know it yet."""
        leaders = {name: status.term for name, status in self.status().items() if status.role == "leader"}
        return max(leaders, key=leaders.__getitem__) if leaders else None

    def wait_leader(self, within_s: float = 15.0, other_than: str | None = None) -> str:
        """Its name, once a majority of the masters agrees on it. `other_than`: of a leader that is paused, say."""

        def agreed() -> str | None:
            self._check_alive()
            statuses = self.status()
            leaders = {name: status.term for name, status in statuses.items() if status.role == "leader"}
            if not leaders:
                return None
            name = max(leaders, key=leaders.__getitem__)
            itself = statuses[name]
            agree = [one for one in statuses.values() if (one.term, one.leader) == (itself.term, itself.leader)]
            return name if name != other_than and 2 * len(agree) > len(self.masters) else None

        name = eventually(agreed, within_s)
        assert name is not None
        return name

    def wait_executors(self, count: int, within_s: float = 15.0) -> None:
        """Until this many are alive and connected to the leader."""

        def connected() -> bool:
            self._check_alive()
            alive = [executor for executor in self._executors() if executor.state == "alive" and executor.connected]
            assert len(alive) == count, f"{len(alive)} executors of {count}: {[one.name for one in alive]}"
            return True

        eventually(connected, within_s, retry=(AssertionError, grpc.RpcError))

    def cli(
        self, *args: str, timeout_s: float = 30.0, check: bool = False, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `tiflow ARGS` against this cluster. `check`: fail unless it ends with 0."""
        done = subprocess.run(
            [sys.executable, "-m", "tiflow", *args],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env=self._env | {"TIFLOW_MASTER_ADDRS": self.master_addrs} | self._tls_environment(),
            timeout=timeout_s * SLOWDOWN,
            input=input,
        )
        told = f"tiflow {' '.join(args)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert not check or done.returncode == 0, told
        return done

    def client(self, **options: Any) -> tiflow.Client:
        """Closed when the cluster stops."""
        client = tiflow.Client(self.master_addrs, **self._tls_paths(), **options)
        self._clients.append(client)
        return client

    def dump(self) -> None:
        """The last lines of all logs, to where pytest shows them."""
        print(self.tails(), file=sys.stderr)

    def tails(self) -> str:
        return "\n".join([f"---- logs and data: {self.directory}", *(one.tail() for one in self._processes.values())])

    # ---- inside

    def _terminate(self, processes: Sequence[Process]) -> list[str]:
        """What went wrong."""
        for process in processes:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        problems: list[str] = []
        for process in processes:
            try:
                code = process.wait()
            except AssertionError as error:
                problems.append(str(error))
            else:
                if code not in (0, -signal.SIGTERM):  # one that has only just started has no handler yet
                    problems.append(f"{process.name} ended with {code} after SIGTERM")
        return problems

    def _add_master(self, name: str, config: Config) -> None:
        address = self.addresses[name]
        flags = {
            "--addr": address,
            "--advertise-addr": address,
            "--peers": self.master_addrs,
            "--http-addr": self.http_addresses[name],
        }
        self._add(name, "master", config, flags)

    def _add_executor(
        self, name: str, slots: int, data_dir: Path | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        address = f"{self._host(name)}:{free_port()}"
        flags = {
            "--join": self.master_addrs,
            "--addr": address,
            "--advertise-addr": address,
            "--slots": str(slots),
        }
        if data_dir is not None:
            flags["--data-dir"] = str(data_dir)
        if labels:
            flags["--labels"] = ",".join(f"{key}={value}" for key, value in labels.items())
        self._add(name, "executor", self._executor_config, flags)

    def _add(self, name: str, kind: str, config: Config, flags: Mapping[str, str]) -> None:
        assert name not in self._processes, name
        flags = {"--name": name, "--data-dir": str(self.data_dir(name)), **flags}
        if self.tls is not None:
            paths = certificates.issue(self.certificates, name, [self._host(name)], days=1)
            flags |= {"--ca-path": paths.ca_path, "--cert-path": paths.cert_path, "--key-path": paths.key_path}
        if config:
            file = self.directory / f"{name}.toml"
            file.write_text(_toml(config))
            flags["--config"] = str(file)
        argv = [kind, *(word for flag in flags.items() for word in flag)]
        prefix = [*self._before(name)]
        if self._network is not None:
            argv += ["--insecure"] if self.tls is None else []
            prefix = [*self._network.on(name), *prefix]
        self._processes[name] = Process(name, argv, self.directory / f"{name}.log", self._env, prefix)

    def _authority(self) -> Tls:
        certificates.create_authority(self.certificates, days=1)
        return Tls(*certificates.issue(self.certificates, "ops", [], days=1))

    def _tls_paths(self) -> dict[str, str]:
        if self.tls is None:
            return {}
        return {"ca_path": self.tls.ca_path, "cert_path": self.tls.cert_path, "key_path": self.tls.key_path}

    def _tls_environment(self) -> dict[str, str]:
        return {f"TIFLOW_{name.upper()}": path for name, path in self._tls_paths().items()}

    def _host(self, name: str) -> str:
        return "127.0.0.1" if self._network is None else self._network.addresses[name]

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIFLOW_")}
        return inherited | {"PYTHONPATH": str(REPOSITORY), TOKEN: self._token} | dict(extra)

    def _stub(self, name: str) -> rpc.TiflowStub:
        if name not in self._channels:
            options = [
                ("grpc.enable_http_proxy", 0),
                # a master that was restarted must be seen at once
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.dns_min_time_between_resolutions_ms", 100),
            ]
            self._channels[name] = open_channel(self.addresses[name], self.tls, options)
        return rpc.TiflowStub(self._channels[name])

    def _executors(self) -> Iterable[pb.ExecutorInfo]:
        leader = self.leader()
        assert leader is not None, "no leader"
        answer = self._stub(leader).ListExecutors(pb.ListExecutorsRequest(), timeout=ASK_S * SLOWDOWN)
        executors: Iterable[pb.ExecutorInfo] = answer.executors
        return executors

    def _check_alive(self) -> None:
        if crashed := self.crashed():
            # not an AssertionError: nobody should go on waiting
            raise RuntimeError(f"ended without being told to: {crashed}\n{self.tails()}")

    def _left_behind(self) -> dict[int, str]:
        """Processes of this cluster that are not ours to wait for: pid -> command. What is dead is not counted."""
        mark = f"{TOKEN}={self._token}".encode()
        ours = {process.pid for process in self._processes.values() if process.running}
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in ours:
                continue
            with suppress(OSError):  # it has ended, or is somebody else's
                if mark in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = command.strip()
        return found

    def _kill_everything(self) -> None:
        for client in self._clients:
            client.close()
        for channel in self._channels.values():
            channel.close()
        self._clients.clear()
        self._channels.clear()
        for process in self._processes.values():
            if process.running:
                with suppress(ProcessLookupError):
                    process.signal(signal.SIGKILL)
                process.wait()
        for pid in self._left_behind():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in self.executors:
            remove_cgroup(self.data_dir(name))
        Cluster.living.discard(self)


def _toml(config: Config) -> str:
    """JSON's strings, numbers, booleans and lists are TOML's too."""
    tables = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"
