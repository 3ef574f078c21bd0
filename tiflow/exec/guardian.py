"""The process that forks all tasks and kills them in time.

An agent that hangs or is stopped cannot kill anything, so the killing is done here: a small process with one
thread and the standard library, which holds the lease's deadline. It starts nothing past the deadline, and kills
every descendant when the deadline passes or when the agent is gone. It never moves the deadline by itself. When the
agent is gone and every child is dead, it becomes the reporter, which tells the leader so.

    agent → guardian   lease, worker, command, signal, kill_all, farewell, read (all that a child has left is known)
    guardian → agent   exit (of a child), error (it could not be started), clean (no child is left),
                       alive (answers each lease)
"""

import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from functools import partial

from tiflow.exec import MEMBER_FD_VARIABLE, cgroups, frames, procs
from tiflow.exec.cgroups import Cgroups
from tiflow.exec.frames import Message
from tiflow.exec.procs import TOKEN_VARIABLE


class Guardian:
    def __init__(self, agent: socket.socket, cgroups: Cgroups | None = None) -> None:
        self._agent = agent
        self._cgroups = cgroups
        self._usual_files, _ = procs.raise_open_files()  # it has one of each worker
        self._reader = frames.Reader(agent)
        self._unsent = bytearray()
        self._told_of_cgroups = False
        self._farewell = ""  #: what is to be reported when the agent is gone; empty: nothing
        self._until_ns = 0
        self._timer = procs.BootTimer()
        self._tokens: dict[int, str] = {}  #: pid of each child that was started and not yet reaped
        self._pids: dict[str, int] = {}
        self._memories: dict[str, int] = {}  #: of each worker, what it shares with the agent
        self._started: dict[str, tuple[int, int, float]] = {}  #: commands: placement, index, since when
        self._ended: dict[str, Message] = {}  #: commands whose end the agent may not know
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> str:
        """Serve the agent until it is gone; then no child is left. Returns what is to be reported of that."""
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        while not self._reader.closed:
            self._wait()
            for message, fds in self._reader.read():  # first: the lease may have been renewed meanwhile
                self._obey(message, fds)
            if procs.boot_ns() >= self._until_ns:
                self._lapse()
            self._reap()
            if self._cgroups is not None:
                self._cgroups.sweep()
            self._flush()
        if self._cgroups is not None:
            self._cgroups.kill_all()
        procs.kill_children()  # their cgroups are left to the reaper: the report must not wait for the kernel
        return self._farewell

    def memories(self) -> list[int]:
        """Descriptors of what the workers shared with the agent, which may not have read all of it."""
        return list(self._memories.values())

    def ended(self) -> list[Message]:
        """The commands that had ended by themselves, which the agent may not know."""
        return list(self._ended.values())

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._agent, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.register(self._wake_r, select.POLLIN)
        poll.register(self._timer.fileno(), select.POLLIN)
        poll.poll(SWEEP_MS if self._cgroups is not None and self._cgroups.left else None)
        with suppress(BlockingIOError):
            os.read(self._wake_r, 4096)

    # ---- orders

    def _obey(self, message: Message, fds: list[int]) -> None:
        match message["op"]:
            case "lease":
                self._until_ns = max(self._until_ns, message["until_ns"])
                self._arm()
                self._tell({"op": "alive"})
            case "worker" | "command" if procs.boot_ns() >= self._until_ns:
                self._tell({"op": "error", "token": message["token"], "error": "the lease ran out", "lease": True})
            case "worker":
                self._start_worker(message["token"], fds, message["log"], message["settings"])
            case "command":
                self._start_command(message, fds)
            case "signal":
                pid = self._pids.get(message["token"])
                if pid is not None:
                    self._started.pop(message["token"], None)  # what its end means, only the agent knows
                    procs.kill_group(pid, message["signal"])
            case "kill_all":
                self._kill_all(lease=False)
                self._ended.clear()
                self._tell({"op": "clean"})
            case "read":
                self._drop_memory(message["token"])
                self._ended.pop(message["token"], None)
            case "farewell":
                self._farewell = message["report"]
        for fd in fds:
            os.close(fd)

    def _start_worker(self, token: str, fds: list[int], log: str, settings: Message) -> None:
        parent = os.getpid()
        cgroup = self._cgroup(token)
        try:
            self._memories[token] = os.dup(fds[1])
            pid = os.fork()
        except OSError as error:
            self._drop_memory(token)
            self._drop_cgroup(token)
            self._tell({"op": "error", "token": token, "error": str(error.strerror), "final": False})
            return
        if pid == 0:
            try:
                self._become_worker(parent, token, fds, log, settings, cgroup)
            except BaseException:  # noqa: BLE001  nothing may return into the guardian's loop
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)
            os._exit(0)
        self._keep(pid, token)

    def _become_worker(
        self, parent: int, token: str, fds: list[int], log: str, settings: Message, cgroup: str
    ) -> None:
        from tiflow.exec import worker

        os.setsid()
        procs.die_with_parent(parent)
        if cgroup and cgroups.join(cgroup) and self._cgroups is not None and self._cgroups.memory:
            settings = settings | {"cgroup": cgroup}
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        self._agent.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        self._timer.close()
        for memory in self._memories.values():
            os.close(memory)
        os.environ[TOKEN_VARIABLE] = token
        gc.enable()
        worker.serve(socket.socket(fileno=fds[0]), fds[1], settings)

    def _start_command(self, message: Message, fds: list[int]) -> None:
        """`fds`: stdout, stderr, and of a member the socket by which it talks to the agent."""
        token = message["token"]
        member = {MEMBER_FD_VARIABLE: str(fds[2])} if len(fds) > 2 else {}
        argv = message["argv"]
        cgroup = self._cgroup(token, message["memory_bytes"])
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=fds[0],
                stderr=fds[1],
                cwd=message["cwd"] or None,
                env=message["env"] | {TOKEN_VARIABLE: token} | member,
                start_new_session=True,
                pass_fds=fds[2:],
                # safe: there is one thread
                preexec_fn=partial(
                    procs.prepare,
                    os.getpid(),
                    self._usual_files,
                    message["memory_bytes"],
                    message["open_files"],
                    cgroup,
                ),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = _why_not(argv[0], message["cwd"], error)
            final = getattr(error, "errno", None) not in _PASSING
            self._drop_cgroup(token)
            self._tell({"op": "error", "token": token, "error": why, "final": final})
            return
        process.returncode = 0  # the guardian waits for all its children itself
        if "task" in message:
            self._started[token] = (*message["task"], time.monotonic())
        self._keep(process.pid, token)

    def _cgroup(self, token: str, memory_bytes: int = 0) -> str:
        """One for a child that is to start; empty: it goes without, and its limits are those of each process."""
        if self._cgroups is None:
            return ""
        try:
            return self._cgroups.make(token, memory_bytes)
        except OSError as error:
            if not self._told_of_cgroups:
                self._told_of_cgroups = True
                print(f"tiflow guardian: {token} has no cgroup: {error}", file=sys.stderr, flush=True)
            return ""

    def _drop_cgroup(self, token: str) -> None:
        if self._cgroups is not None:
            self._cgroups.end(token)

    def _keep(self, pid: int, token: str) -> None:
        self._tokens[pid] = token
        self._pids[token] = pid
        self._arm()

    # ---- ends

    def _arm(self) -> None:
        # idle, the guardian sleeps until the agent speaks
        self._timer.arm(self._until_ns if self._tokens else 0)

    def _lapse(self) -> None:
        if self._tokens or procs.children():
            self._kill_all(lease=True)

    def _kill_all(self, *, lease: bool) -> None:
        if self._cgroups is not None:
            self._cgroups.kill_all()
        for pid, status in procs.kill_children():
            self._report(pid, status, lease=lease)
        for token in [token for token in self._memories if token not in self._pids]:
            self._drop_memory(token)  # nobody asks for it any more
        self._arm()

    def _reap(self) -> None:
        ended = False
        while True:
            try:
                child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if child is None:
                break
            if child.si_pid in self._tokens:
                # before the pid is free for reuse: what it left in its group ends with it
                procs.kill_group(child.si_pid, signal.SIGKILL)
            _, status, used = os.wait4(child.si_pid, 0)
            self._report(child.si_pid, status, used, lease=False)
            ended = True
        if ended:
            self._kill_orphans()
            self._arm()

    def _kill_orphans(self) -> None:
        """Descendants that left their group, of children that have ended, are ours now (subreaper)."""
        for pid in procs.children():
            if pid not in self._tokens:
                token = procs.environ_value(pid, TOKEN_VARIABLE)
                if token not in self._pids and (token is not None or not self._tokens):
                    procs.kill(pid, signal.SIGKILL)

    def _drop_memory(self, token: str) -> None:
        if token in self._memories:
            os.close(self._memories.pop(token))

    def _report(self, pid: int, status: int, used: resource.struct_rusage | None = None, *, lease: bool) -> None:
        token = self._tokens.pop(pid, None)
        if token is not None:
            del self._pids[token]
            exit: Message = {"op": "exit", "token": token, "status": status, "lease": lease}
            if used is not None:
                exit |= {"cpu_us": int((used.ru_utime + used.ru_stime) * 1e6), "memory_bytes": used.ru_maxrss << 10}
            usage = self._cgroups.end(token) if self._cgroups is not None else None
            if usage is not None and not token.startswith("w"):  # a worker runs many tasks, and measures each
                exit |= {name: value for name, value in usage._asdict().items() if value and name in _MEASURES}
            if usage is not None and usage.oom:
                exit |= {"oom": True, "limit_bytes": usage.limit_bytes}
            started = self._started.pop(token, None)
            if started is not None and used is not None:
                placement, index, since_s = started
                run_us = int((time.monotonic() - since_s) * 1e6)
                self._ended[token] = exit | {"placement": placement, "index": index, "run_us": run_us}
            self._tell(exit)

    def _tell(self, message: Message) -> None:
        self._unsent += frames.encode(message)

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._agent.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._unsent.clear()  # the next read says that the agent is gone


SWEEP_MS = 20  #: between two looks whether cgroups are empty
_MEASURES = ("cpu_us", "memory_bytes")

#: the machine, or this process, has nothing left: another time it may have
_PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def _why_not(program: str, cwd: str, error: Exception) -> str:
    if cwd and not os.path.isdir(cwd):
        return f"the working directory {cwd!r} does not exist on this executor"
    if isinstance(error, FileNotFoundError):
        return f"program {program!r} was not found on this executor"
    if isinstance(error, PermissionError):
        return f"program {program!r} may not be executed: {error.strerror}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"program {program!r} could not be started: {reason}"


def _leave_reaper(agent: socket.socket, cgroup: str) -> None:
    """Go on as a child of this process, which stays behind as the reaper and only waits: when guardian and agent are
    killed together, what they ran falls to it, and dies. Until then it keeps the data directory locked. `cgroup`: it
    is removed in the end."""
    procs.become_subreaper()
    guardian = os.fork()
    if guardian == 0:
        procs.become_subreaper()
        return
    agent.close()
    os.waitpid(guardian, 0)
    procs.kill_children()
    if cgroup:
        cgroups.clear(cgroup)
    os._exit(0)


def salvage_file(ended: list[Message]) -> int:
    """A descriptor of what the reporter is to know of commands; it may be too much for its command line."""
    fd = os.memfd_create("tiflow-ended", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(ended).encode())
    return fd


def main() -> None:
    """Entry of the process: `argv` is the descriptor of the agent's socket and of the data directory's lock; if there
    are cgroups, their directory and whether they bound memory."""
    agent = socket.socket(fileno=int(sys.argv[1]))
    lock = int(sys.argv[2])
    path, memory = sys.argv[3:]
    for fd in (agent.fileno(), lock):
        os.set_inheritable(fd, False)  # programs must not keep them; workers, which do not exec, keep the lock
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # it ends when the agent does. A handler and not SIG_IGN, which programs would inherit
        signal.signal(signum, lambda signum, frame: None)
    _leave_reaper(agent, path)
    import tiflow.exec.worker  # noqa: F401  once, so that all workers share its pages

    gc.collect()
    gc.disable()  # a collection would copy pages that are shared with the workers; the loop makes no cycles
    gc.freeze()
    guardian = Guardian(agent, Cgroups(path, memory=bool(memory)) if path else None)
    farewell = guardian.run()
    if farewell:
        memories, ended = guardian.memories(), salvage_file(guardian.ended())
        for fd in (lock, ended, *memories):
            os.set_inheritable(fd, True)  # the lock: a successor starts when the report is made, or given up
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # a handler would be reset to death
        os.execv(sys.executable, procs.tiflow_program("reporter", farewell, *map(str, (ended, *memories))))


if __name__ == "__main__":
    main()
