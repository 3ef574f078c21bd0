"""A cgroup (version 2) for each child of the guardian, where the executor may make some.

What an attempt uses is then measured and bounded as a whole, however many processes it has, and none of them escapes.

    <parent>/tiflow-<uid>/          of this executor; the parent is its own cgroup, or the one that its settings name
    <parent>/tiflow-<uid>/<token>/  of one child
    <parent>/tiflow-agent/          of the executor itself, if the parent had to be emptied: processes are in leaves

Standard library only: the guardian imports this.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from tiflow.exec import capacity

REMOVE_S_MAX = 2.0  #: what was killed needs a moment to be gone, on a busy machine


class Unusable(Exception):
    """There are no cgroups for attempts; `str` says why, and what would help."""


class Usage(NamedTuple):
    """Of one child and all that descends from it."""

    cpu_us: int  #: 0: unknown
    memory_bytes: int  #: the most at one time, page cache among it; 0: unknown
    oom: bool  #: the kernel killed it as memory ran out
    limit_bytes: int  #: of its memory; 0: none of its own


def set_up(where: str, uid: str, root: str | Path = "/") -> "Cgroups":
    """Take the cgroup of the executor `uid`, and remove what an earlier process of it has left there. To be called
    while this process has no children.

    Args:
        where: auto (the cgroup that this process is in), or the path of one that is this executor's to divide.
        root: where /proc, /sys and /run are found.

    Raises:
        Unusable: and nothing has changed but, perhaps, which cgroup this process is in.
    """
    parent = _own(Path(root)) if where == "auto" else Path(where)
    try:
        if not (parent / "cgroup.controllers").exists():
            raise Unusable(f"{parent} is not a cgroup of version 2")
        memory = _divide(parent)
        mine = parent / f"tiflow-{uid}"
        mine.mkdir(exist_ok=True)
        clear(str(mine), itself=False)
        if not (mine / "cgroup.kill").exists():
            raise Unusable("this kernel has no cgroup.kill; it came with Linux 5.14")
        if memory:
            _write(mine / "cgroup.subtree_control", "+memory")
        found = Cgroups(str(mine), memory=memory)
        _try_out(found)
    except OSError as error:
        raise Unusable(
            f"{error.filename or parent}: {error.strerror}; give this executor a cgroup of its own (systemd: "
            "Delegate=yes), or name one in limits.cgroup"
        ) from None
    return found


def _own(root: Path) -> Path:
    parent = capacity.own_cgroup(root)
    if parent is None:
        raise Unusable("there is no cgroup file system of version 2")
    is_top = not (parent / "cgroup.type").exists()
    if not is_top and (root / "run/systemd/system").exists() and not _is_delegated(parent):
        raise Unusable(f"{parent} belongs to systemd; give this executor one of its own (Delegate=yes)")
    return parent


def _is_delegated(cgroup: Path) -> bool:
    """Whether systemd says that it is ours to divide."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(cgroup, name) == b"1":
                return True
    return False


def _divide(parent: Path) -> bool:
    """Have the cgroups below bound memory. Returns whether they do."""
    if "memory" not in _read(parent / "cgroup.controllers").split():
        return False
    if "memory" in _read(parent / "cgroup.subtree_control").split():
        return True
    pids = _read(parent / "cgroup.procs").split()
    if pids and (parent / "cgroup.type").exists():
        if pids != [str(os.getpid())]:
            raise Unusable(
                f"{parent} has other processes in it; give this executor a cgroup of its own (systemd: "
                "Delegate=yes), or name one in limits.cgroup"
            )
        leaf = parent / "tiflow-agent"
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", "0")
    _write(parent / "cgroup.subtree_control", "+memory")
    return True


def _try_out(cgroups: "Cgroups") -> None:
    """Whether a child can be put into one: who was started elsewhere may not go there. Raises OSError."""
    path = cgroups.make("trial", 1 << 30)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if join(path) else 1)
    _, status = os.waitpid(pid, 0)
    clear(path)
    if status:
        raise PermissionError(1, "processes cannot be moved there", path)


class Cgroups:
    """Those of an executor's children. `memory`: whether they bound it."""

    def __init__(self, path: str, *, memory: bool) -> None:
        self.path = path
        self.memory = memory
        self._left: list[str] = []  #: those whose processes were killed and are not gone yet

    @property
    def left(self) -> bool:
        """Whether `sweep` is to be called again."""
        return bool(self._left)

    def make(self, token: str, memory_bytes: int) -> str:
        """The cgroup of a child that is about to start; 0: its memory is not bounded. Raises OSError."""
        path = f"{self.path}/{token}"
        os.mkdir(path)
        if self.memory:
            try:
                _write(f"{path}/memory.oom.group", "1")  # half an attempt is of no use
                bound(path, memory_bytes)
            except OSError:
                os.rmdir(path)
                raise
        return path

    def end(self, token: str) -> Usage | None:
        """The child is gone: kill what it left, and remove its cgroup. Returns None if it had none."""
        path = f"{self.path}/{token}"
        if not os.path.isdir(path):
            return None
        usage = _usage(path)
        self._left.append(path)
        self.sweep()
        return usage

    def sweep(self) -> None:
        """Remove those that are empty by now."""
        self._left = [path for path in self._left if not _remove(path)]

    def kill_all(self) -> None:
        """Whatever runs in any of them."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", "1")


def join(path: str) -> bool:
    """Put this process into a cgroup. Returns whether it is there."""
    try:
        _write(f"{path}/cgroup.procs", "0")
    except OSError:
        return False
    return True


def bound(path: str, memory_bytes: int) -> None:
    """What the processes of a cgroup may have together, of memory and without swap; 0: as much as there is. Raises
    OSError."""
    _write(f"{path}/memory.max", str(memory_bytes or "max"))
    with contextlib.suppress(FileNotFoundError):  # a kernel that does not count swap
        _write(f"{path}/memory.swap.max", "0" if memory_bytes else "max")


def clear(path: str, *, itself: bool = True) -> None:
    """Kill what is in the cgroups below, and remove them; `itself`: this one, too. What takes longer than
    REMOVE_S_MAX stays for the next start."""
    until_s = time.monotonic() + REMOVE_S_MAX
    with contextlib.suppress(OSError):
        left = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
        while left := [child for child in left if not _remove(child)]:
            if time.monotonic() > until_s:
                return
            time.sleep(0.001)
        while itself and not _remove(path) and time.monotonic() < until_s:
            time.sleep(0.001)


def _remove(path: str) -> bool:
    """Whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:  # something lives in it
        with contextlib.suppress(OSError):
            _write(f"{path}/cgroup.kill", "1")
        return False
    return True


def _usage(path: str) -> Usage:
    limit = _read(f"{path}/memory.max")
    peak = _read(f"{path}/memory.peak")  # since Linux 5.19
    return Usage(
        _value(f"{path}/cpu.stat", "usage_usec"),
        int(peak) if peak.isdigit() else 0,
        _value(f"{path}/memory.events", "oom_kill") > 0,
        int(limit) if limit.isdigit() else 0,
    )


def _value(path: str, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _read(path: str | Path) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(path: str | Path, text: str) -> None:
    fd = os.open(
        path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
    )  # never made: who writes to a cgroup that is gone hears of it
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
