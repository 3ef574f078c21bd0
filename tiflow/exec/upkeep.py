"""What keeps a warm worker fit for the next task: its limits, what it uses, and an empty working directory."""

import contextlib
import os
import resource
import shutil
import time

from tiflow.exec import cgroups
from tiflow.sched.model import Limits

_MTIME_NS = 50_000_000  #: file systems count time in steps of a few ms
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Of this process, now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


class Bounds:
    """The limits of this process and of what it starts. `cgroup`: its own, if that bounds memory; else each process
    has a soft limit."""

    def __init__(self, cgroup: str) -> None:
        self._cgroup = cgroup
        self._memory_bytes = 0

    def keep_to(self, limits: Limits) -> None:
        """From now on; no limit takes an earlier one back."""
        memory_bytes = 0 if self._bound(limits.memory_bytes) else limits.memory_bytes
        for kind, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_NOFILE, limits.open_files)):
            before, hard = resource.getrlimit(kind)
            soft = min(most, hard) if most and hard != resource.RLIM_INFINITY else most or _SOFT[kind]
            if soft != before:
                resource.setrlimit(kind, (soft, hard))

    def _bound(self, memory_bytes: int) -> bool:
        """Whether the cgroup does it. If an earlier task has left more than that, this ends the process here."""
        if self._cgroup and memory_bytes != self._memory_bytes:
            try:
                cgroups.bound(self._cgroup, memory_bytes)
            except OSError:  # a task took our right to it away
                self._cgroup = ""
            self._memory_bytes = memory_bytes
        return bool(self._cgroup)


_SOFT = {kind: resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)}


class Place:
    """The working directory of a slot: each task finds itself in it, and finds it empty."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._empty_since_ns = -1  #: a modification time with which it was seen empty, when that time was over
        self._open()
        self.tidy()

    def tidy(self) -> None:
        """Go back there, and remove what the last task has left. A short task must not pay for a look."""
        here = os.stat(".")
        if here.st_mtime_ns != self._empty_since_ns or here.st_ino != self._inode or not here.st_nlink:
            self._clear()

    def _clear(self) -> None:
        os.fchdir(self._fd)
        if not os.fstat(self._fd).st_nlink:  # the task removed it
            os.close(self._fd)
            self._open()
        for name in os.listdir(self._fd):
            remove(f"{self._path}/{name}")
        modified_ns = os.fstat(self._fd).st_mtime_ns
        over = time.time_ns() - modified_ns > _MTIME_NS  # else something new may have the same time
        self._empty_since_ns = modified_ns if over else -1

    def _open(self) -> None:
        os.makedirs(self._path, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._inode = os.fstat(self._fd).st_ino
        os.fchdir(self._fd)


def remove(path: str) -> None:
    """A file or a tree; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


class Meter:
    """CPU time and peak memory of this process and of the children that it waited for."""

    def __init__(self) -> None:
        self._cpu_us = self._cpu()
        self._largest_child = 0  #: bytes, of all so far

    def begin(self) -> None:
        """A batch begins: what was used before is not its."""
        self._cpu_us = self._cpu()
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the high-water mark of resident memory; see proc(5)

    def read(self) -> tuple[int, int]:
        """CPU time (us) since the last call; the most that was resident (bytes) since `begin`."""
        cpu_us = self._cpu()
        used_us, self._cpu_us = cpu_us - self._cpu_us, cpu_us
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        if child > self._largest_child:  # else it may have been one of an earlier batch
            self._largest_child = child
            peak = max(peak, child)
        return used_us, peak

    @staticmethod
    def _cpu() -> int:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time_ns() // 1_000 + int((children.ru_utime + children.ru_stime) * 1e6)
