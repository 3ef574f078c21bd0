"""A real executor process with a fake leader."""

# ruff: noqa: ASYNC220, ASYNC230, ASYNC240  a test may block

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.leftovers import remove_cgroup
from tests.ports import free_port
from tests.unit.exec.fake_leader import FakeLeader, eventually

_START = """
import sys, msgspec
from tiflow.config import ExecutorConfig
from tiflow.errors import TiflowError
from tiflow.exec.main import run
assert "grpc" not in sys.modules
try:
    sys.exit(run(msgspec.json.decode(sys.argv[1], type=ExecutorConfig)))
except TiflowError as error:
    print(error.code, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

TASKS = """
import os, resource, shutil, signal, subprocess, sys, time

def same(x): return x
def fail(x): raise ValueError(f"no {x}")
def print_index(i):
    print("out", i); print("err", i, file=sys.stderr); return os.environ["TIFLOW_INDEX"]
def big(n): return "x" * n
def odd(i): return object()
def leave(i): os._exit(3)
def die_at_5(i):
    if i == 5: os.kill(os.getpid(), signal.SIGKILL)
    return i
def hang_at_5(i):
    if i == 5: time.sleep(60)
    return i
def tidy_at_5(path):
    if int(os.environ["TIFLOW_INDEX"]) != 5: return os.getpid()
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        with open(path, "w") as file: file.write(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    finally:
        with open(path + ".tidy", "w") as file: file.write("tidy")
def hold_on(path):
    with open(path, "w") as file: file.write("up")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try: time.sleep(60)
        except BaseException: pass
def fork_and_terminate(i):
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def fork_twice(path):
    child = os.fork()
    if child == 0:  # its files get the numbers that the fork has freed
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(30)]
        if os.fork() == 0:
            for fd in files: os.write(fd, b"x")
            os._exit(0)
        os.wait()
        os._exit(0)
    os.waitpid(child, 0)
    with open(path) as file: return file.read()
def pid(i): return os.getpid()
KEPT = []
def leak(mib):
    KEPT.append(bytearray(mib << 20)); KEPT[0][::4096] = KEPT[0][::4096]
    return os.getpid()
def is_imported(name): return name in sys.modules
def litter(i):
    names, place = os.listdir(), os.getcwd()
    open("a", "w").close(); os.makedirs("b/c"); os.symlink("/", "root")
    if i % 3 == 0: os.chdir("/")
    if i % 7 == 0: shutil.rmtree(place)
    return names, place
def set_variable(i): os.environ["LEFT"] = "over"
def environment(i):
    assert os.environ["PATH"] and os.environ["TIFLOW_GROUP"] == "g"
    return {name: value for name, value in os.environ.items() if name != "PATH" and not name.startswith("TIFLOW_")}
def allocate(mib): return len(bytearray(mib << 20))
def open_many(n):
    for file in [open("/dev/null") for _ in range(n)]: file.close()
def print_files_and_wait(path):
    for stream in sys.stdout, sys.stderr: print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], file=stream)
    while not os.path.exists(path): time.sleep(0.2)
def segfault_at_1(i):
    import ctypes
    if i == 1: ctypes.string_at(0)
    return i
def burn(mib):
    data = bytearray(mib << 20); data[::4096] = data[::4096]
    return sum(range(10**6)) > 0
def signal_itself(i):
    os.kill(os.getpid(), signal.SIGTERM)
    return i
def sleep_with_child(path):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with open(path + ".tmp", "w") as file: file.write(f"{os.getpid()} {child.pid}")
    os.rename(path + ".tmp", path)
    time.sleep(60)
def end_after(path):
    open("mark", "w").close()  # it goes when the task has ended
    while not os.path.exists(path): time.sleep(0.01)
    return "ended"
def wait_for(path):
    with open(path + ".pid", "a") as file: file.write(f"{os.getpid()}\\n")
    while not os.path.exists(path): time.sleep(0.01)
    return os.getpid()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    """Pids of all that descend from a process."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        found = [int(c) for t in threads for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found + [d for child in found for d in descendants(child)]


def first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@dataclass
class Executor:
    process: "subprocess.Popen[bytes]"
    address: str
    data_dir: Path
    seen: set[int] = field(default_factory=set)

    @property
    def reaper(self) -> int:
        return first_child(self.process.pid)

    @property
    def guardian(self) -> int:
        return first_child(self.reaper)

    def signal(self, signum: int) -> None:
        self.seen.update(descendants(self.process.pid))
        self.process.send_signal(signum)

    async def wait(self, timeout_s: float = 30.0) -> int:
        await eventually(lambda: self.process.poll() is not None, timeout_s)
        code: int = self.process.returncode
        return code

    async def end(self) -> None:
        if self.process.poll() is None:
            self.seen.update(descendants(self.process.pid))
            self.process.kill()
            for pid in filter(alive, self.seen):  # the guardian too: there is nobody left to whom it could report
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        await eventually(lambda: not any(map(alive, self.seen)))
        remove_cgroup(self.data_dir)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with a module `tasks`."""
    path = tmp_path / "lib"
    path.mkdir()
    (path / "tasks.py").write_text(TASKS)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB. It is gone before the executor on it is."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], check=False)
    if mounted.returncode:
        assert not os.environ.get("CI"), "CI must not skip"
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start an executor that joins leaders, and wait until one has welcomed it."""
    executors: list[Executor] = []

    async def start(
        *leaders: FakeLeader, wait: bool = True, data_dir: Path | None = None, **settings: Any
    ) -> Executor:
        address = f"127.0.0.1:{free_port()}"
        data_dir = data_dir or tmp_path / f"executor-{len(executors)}"
        config = {
            "name": "e1",
            "join": [leader.address for leader in leaders],
            "addr": address,
            "data-dir": str(data_dir),
            "slots": 1,
        } | settings
        with open(tmp_path / f"output-{len(executors)}", "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, msgspec.json.encode(config).decode()],
                cwd=Path(__file__).parents[3],
                stdout=output,
                stderr=output,
            )
        executor = Executor(process, config["addr"], data_dir)
        executors.append(executor)
        if wait:
            connected = [asyncio.create_task(leader.until(lambda x=leader: x.connected)) for leader in leaders]
            await asyncio.wait(connected, return_when=asyncio.FIRST_COMPLETED)
            for task in connected:
                task.cancel()
            assert any(leader.connected for leader in leaders)
        return executor

    yield start
    for executor in executors:
        await executor.end()
    output = "\n".join(path.read_text() for path in sorted(tmp_path.glob("output-*")))
    print(output)
    assert "Traceback" not in output


@pytest.fixture
async def lead() -> AsyncIterator[Callable[..., Any]]:
    """Start a fake leader."""
    leaders: list[FakeLeader] = []

    async def lead(**settings: Any) -> FakeLeader:
        leaders.append(await FakeLeader(**settings).start())
        return leaders[-1]

    yield lead
    for leader in leaders:
        await leader.stop()


@pytest.fixture
async def leader(lead: Callable[..., Any]) -> FakeLeader:
    leader: FakeLeader = await lead()
    return leader
