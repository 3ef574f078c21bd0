"""Cgroups of attempts: on the real file system where this machine has one, else on a tree that stands in for it."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import msgpack

from tests.unit.exec.conftest import alive
from tests.unit.exec.fake_leader import command, eventually, python
from tiflow.errors import FailedPrecondition, InvalidArgument
from tiflow.exec import capacity, cgroups
from tiflow.exec.cgroups import Unusable, set_up
from tiflow.exec.upkeep import Bounds
from tiflow.exec.verdicts import in_words
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.model import Limits

MIB = 1 << 20
MOUNTED = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


class Kernel:
    """Makes the files of cgroups in a directory tree, as the kernel does, and removes them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.busy: set[str] = set()  #: names of cgroups that cannot be removed yet
        self._mkdir, self._rmdir = os.mkdir, os.rmdir
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        self.own = root / "sys/fs/cgroup/own"
        for name, text in {"proc/self/mountinfo": MOUNTED, "proc/self/cgroup": "0::/own\n"}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        self.own.parent.mkdir(parents=True)
        self.own.mkdir()
        self.put(self.own, {"cgroup.controllers": "cpu memory pids", "cgroup.procs": str(os.getpid())})

    def mkdir(self, path: str | Path, *args: object, **options: object) -> None:
        self._mkdir(path, *args, **options)  # type: ignore[arg-type]
        parent = Path(path).parent
        if not str(path).startswith(str(self.root / "sys/fs/cgroup/")):
            return
        enabled = parent / "cgroup.subtree_control"
        memory = enabled.exists() and "memory" in enabled.read_text()
        files = {"type": "domain", "procs": "", "kill": "", "controllers": "memory" * memory, "subtree_control": ""}
        self.put(path, {f"cgroup.{name}": text for name, text in files.items()} | {"cpu.stat": "usage_usec 7000"})
        if memory:
            memory_files = {"max": "max", "swap.max": "max", "oom.group": "0", "events": "oom_kill 0", "peak": "4096"}
            self.put(path, {f"memory.{name}": text for name, text in memory_files.items()})

    def rmdir(self, path: str | Path, **options: object) -> None:
        if Path(path).name in self.busy:
            raise OSError(16, "Device or resource busy", str(path))
        if str(path).startswith(str(self.root)):
            for file in Path(path).iterdir():
                if file.is_file():
                    file.unlink()
        self._rmdir(path, **options)  # type: ignore[arg-type]

    def put(self, path: str | Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            (Path(path) / name).write_text(text)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_an_executor_makes_room_in_its_own_cgroup_and_bounds_each_attempt(kernel):
    found = set_up("auto", "u1", kernel.root)
    assert (found.path, found.memory) == (f"{kernel.own}/tiflow-u1", True)
    assert (kernel.own / "tiflow-agent/cgroup.procs").read_text() == "0", "processes are in leaves alone"

    path = Path(found.make("c1", 256 * MIB))

    assert {name: (path / f"memory.{name}").read_text() for name in ("max", "swap.max", "oom.group")} == {
        "max": str(256 * MIB),
        "swap.max": "0",
        "oom.group": "1",
    }
    (path / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 1")
    assert found.end("c1") == cgroups.Usage(7_000, 4_096, True, 256 * MIB)
    assert not path.exists()
    assert found.end("c1") is None
    assert [entry.name for entry in Path(found.path).iterdir() if entry.is_dir()] == []


def test_what_is_not_gone_yet_is_killed_and_removed_later(kernel):
    found = set_up("auto", "u1", kernel.root)
    path = Path(found.make("c1", 0))
    kernel.busy.add("c1")

    found.end("c1")

    assert (path / "cgroup.kill").read_text() == "1"
    assert found.left
    kernel.busy.clear()
    found.sweep()
    assert not found.left
    assert not path.exists()


def test_what_an_earlier_process_has_left_is_removed_at_the_start(kernel):
    Path(set_up("auto", "u1", kernel.root).make("c1", 0))

    found = set_up("auto", "u1", kernel.root)

    assert [entry.name for entry in Path(found.path).iterdir() if entry.is_dir()] == []


def test_without_the_memory_controller_they_hold_processes_together_all_the_same(kernel):
    kernel.put(kernel.own, {"cgroup.controllers": "cpu pids"})

    found = set_up("auto", "u1", kernel.root)

    assert not found.memory
    assert not (kernel.own / "tiflow-agent").exists(), "nothing had to be moved"
    assert not (Path(found.make("c1", MIB)) / "memory.max").exists()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"sys/fs/cgroup/own/cgroup.procs": f"1\n{os.getpid()}"}, "has other processes in it; give this executor a"),
        ({"run/systemd/system/x": ""}, r"own belongs to systemd; give this executor one of its own \(Delegate=yes\)"),
        (
            {"proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda rw\n"},
            "there is no cgroup file system of version",
        ),
    ],
)
def test_where_there_can_be_none_the_reason_is_said(kernel, files, reason):
    for name, text in files.items():
        (kernel.root / name).parent.mkdir(parents=True, exist_ok=True)
        (kernel.root / name).write_text(text)

    with pytest.raises(Unusable, match=reason):
        set_up("auto", "u1", kernel.root)


def test_a_directory_that_is_none_is_refused_by_name(tmp_path):
    from tiflow.config import ExecutorConfig, LimitsConfig, check_executor
    from tiflow.exec.main import _cgroups

    config = ExecutorConfig(join=("h:1",), limits=LimitsConfig(cgroup=str(tmp_path)))
    with pytest.raises(
        FailedPrecondition, match=f"limits.cgroup = {tmp_path}: {tmp_path} is not a cgroup of version"
    ):
        _cgroups(check_executor(config), "u1")
    with pytest.raises(InvalidArgument, match=r'limits.cgroup = "yes": must be "auto", "off", or the path'):
        check_executor(ExecutorConfig(join=("h:1",), limits=LimitsConfig(cgroup="yes")))


def test_a_worker_bounds_its_cgroup_for_each_batch_and_no_single_process(kernel):
    path = set_up("auto", "u1", kernel.root).make("w1", 0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = Bounds(path)

    bounds.keep_to(Limits(memory_bytes=64 * MIB))

    assert (Path(path) / "memory.max").read_text() == str(64 * MIB)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    bounds.keep_to(Limits())
    assert (Path(path) / "memory.max").read_text() == "max"
    assert (Path(path) / "memory.swap.max").read_text() == "max"


def test_who_was_killed_as_memory_ran_out_is_told_so_with_the_limit():
    exit = {"op": "exit", "token": "c1", "status": signal.SIGKILL, "oom": True, "limit_bytes": 256 * MIB}

    assert in_words(exit) == "killed by SIGKILL: out of memory (oom_kill), its limit is 256MiB"
    assert in_words(exit | {"token": "w1", "limit_bytes": 0}) == "was killed by SIGKILL: out of memory (oom_kill)"


# ---- on the real file system


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup for an executor."""
    own = capacity.own_cgroup()
    path = own / f"tiflow-test-{os.getpid()}" if own is not None else Path("/nonexistent/path")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of version 2 can be made here: {error}")
    yield path
    cgroups.clear(str(path))
    assert not path.exists()


def inside(cgroup: Path) -> set[str]:
    return {name for _, names, _ in os.walk(cgroup) for name in names if not name.startswith("tiflow")}


async def test_who_leaves_group_session_and_environment_dies_with_its_attempt(start, leader, tasks, tmp_path, cgroup):
    executor = await start(leader, slots=2, limits={"cgroup": str(cgroup)})
    leader.assign(command(1, "sleep", "60"))
    await leader.until(lambda: leader.started(1))
    mark = tmp_path / "mark"
    escape = f"env -i \"$(command -v setsid)\" sh -c 'echo $$ >{mark}.tmp; mv {mark}.tmp {mark}; exec sleep 60' &"

    leader.assign(command(2, "sh", "-c", f"{escape} while ! [ -e {mark} ]; do sleep 0.01; done; : $(seq 100000)"))
    await leader.until(lambda: leader.ends(2))

    await eventually(lambda: not alive(int(mark.read_text())))
    assert leader.ends()[2, 0].kind == "succeeded"
    assert leader.ends()[2, 0].cpu_us > 0
    leader.assign(python(3, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(3))
    await eventually(lambda: inside(cgroup) == {"c1", "w3"})
    leader.revoke(1)
    await leader.until(lambda: leader.ends(1))
    executor.signal(signal.SIGTERM)
    assert await executor.wait() == 0
    assert not list(cgroup.glob("tiflow-*"))


@pytest.mark.parametrize("together", [False, True])
async def test_no_cgroup_outlives_an_executor_that_was_killed(start, leader, cgroup, together):
    executor = await start(leader, limits={"cgroup": str(cgroup)})
    leader.assign(command(1, "sleep", "60"))
    await leader.until(lambda: leader.started(1))
    assert inside(cgroup) == {"c1"}

    if together:
        os.kill(executor.guardian, signal.SIGKILL)
    executor.signal(signal.SIGKILL)

    await leader.until(lambda: together or leader.reports)
    await eventually(lambda: not list(cgroup.glob("tiflow-*")))


async def test_the_kernel_ends_an_attempt_that_has_too_much_and_its_limit_is_said(start, leader, tasks, cgroup):
    if "memory" not in (cgroup / "cgroup.controllers").read_text().split():
        pytest.skip("the memory controller of version 2 is not there")
    await start(leader, limits={"cgroup": str(cgroup)})
    limits = pb.Limits(memory_bytes=64 * MIB)
    take = f"x = bytearray({256 * MIB}); x[::4096] = x[::4096]"

    leader.assign(command(1, "sh", "-c", f'{sys.executable} -c "{take}"; true', limits=limits))
    leader.assign(python(2, "tasks:burn", 2, path=[tasks], items=msgpack.encode([1, 256]), limits=limits))
    await leader.until(lambda: len(leader.ends()) == 3)

    assert leader.ends()[1, 0].error == "killed by SIGKILL: out of memory (oom_kill), its limit is 64MiB"
    assert leader.ends()[2, 0].kind == "succeeded"
    assert leader.ends()[2, 1].error == "worker was killed by SIGKILL: out of memory (oom_kill), its limit is 64MiB"


def test_a_process_is_put_there_measured_and_killed(cgroup):
    found = set_up(str(cgroup), "u1")
    path = found.make("c1", 0)
    join: Callable[[], object] = lambda: cgroups.join(path)  # noqa: E731
    process = subprocess.Popen(["sh", "-c", "setsid sleep 60 & wait"], preexec_fn=join, start_new_session=True)

    found.kill_all()

    assert process.wait() == -signal.SIGKILL
    usage = found.end("c1")
    assert usage is not None
    assert usage.cpu_us > 0
    cgroups.clear(found.path)
    assert not Path(found.path).exists()
