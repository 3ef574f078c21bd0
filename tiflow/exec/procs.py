"""What Linux offers to keep children on a leash. Standard library only: the guardian imports this."""

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
import time

from tiflow.exec import cgroups

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TFD_TIMER_ABSTIME = 1

TOKEN_VARIABLE = "TIFLOW_TOKEN"  #: of the environment: tells which child a process descends from

_libc = ctypes.CDLL(None, use_errno=True)


def tiflow_program(module: str, *args: str) -> list[str]:
    """The command line of a process that runs `main` of a module of `tiflow.exec`."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from tiflow.exec.{module} import main; main()"
    # -P: the current directory is not where tasks find modules, unless they say so
    return [sys.executable, "-P", "-c", code, root, *args]


def raise_open_files() -> tuple[int, int]:
    """Let this process have as many files open as it may. Returns what it could before, and now."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before, hard


def prepare(parent: int, usual_files: int, memory_bytes: int = 0, open_files: int = 0, cgroup: str = "") -> None:
    """What a program's process does before it becomes the program: dies with its parent, and keeps to its limits.
    `usual_files`: the soft limit of open files, unless it has one of its own. `cgroup`: it may bound memory."""
    die_with_parent(parent)
    if cgroup and cgroups.join(cgroup) and os.path.exists(f"{cgroup}/memory.max"):
        memory_bytes = 0
    _, hard_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual_files, hard_files))
    for kind, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_NOFILE, open_files)):
        if most:
            _, hard = resource.getrlimit(kind)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


def boot_ns() -> int:
    """Nanoseconds since the machine started, time that it was suspended included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process, so that none escapes by forking twice."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent` ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def children() -> list[int]:
    """The pids of all children of this process, the dead that were not waited for included."""
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as file:
                found += [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or a thread that just ended
        return _children_by_scan()
    return found


def _children_by_scan() -> list[int]:
    me = str(os.getpid())
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = file.read().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if parent == me:
                found.append(int(name))
    return found


def environ_value(pid: int, name: str) -> str | None:
    """The value of an environment variable that the process was started with, or None."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            block = file.read()
    except OSError:
        return None
    prefix = f"{name}=".encode()
    for entry in block.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def kill(pid: int, signum: int) -> None:
    """Signal a process; that it is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def kill_group(pid: int, signum: int) -> None:
    """Signal the process group that `pid` leads; that it is gone already is fine."""
    # PermissionError: what some sandboxes say of a group of zombies
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def kill_children() -> list[tuple[int, int]]:
    """Kill every descendant of this subreaper and wait until they are gone. Returns (pid, wait status) of each."""
    dead: list[tuple[int, int]] = []
    while True:
        for pid in children():
            kill_group(pid, signal.SIGKILL)
            kill(pid, signal.SIGKILL)
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead
        if pid:
            dead.append((pid, status))
        else:
            # look again rather than block: while processes end, /proc may leave out a child that was just orphaned
            time.sleep(0.001)


class BootTimer:
    """A file descriptor that becomes readable at a CLOCK_BOOTTIME instant, also after a suspend.

    `select` and `poll` time out by CLOCK_MONOTONIC, which stands still while the machine is suspended.
    """

    def __init__(self) -> None:
        self._fd = _libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")

    def fileno(self) -> int:
        return int(self._fd)

    def arm(self, at_ns: int) -> None:
        """Fire at `at_ns` (0: never). Replaces the earlier instant."""
        spec = struct.pack("qqqq", 0, 0, *divmod(at_ns, 1_000_000_000))
        if _libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        os.close(self._fd)
