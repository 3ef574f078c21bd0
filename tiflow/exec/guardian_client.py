"""The agent's end of the guardian: starts it, gives it orders, hears of the children that ended."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from tiflow.exec import frames, procs
from tiflow.exec.cgroups import Cgroups
from tiflow.exec.frames import Message
from tiflow.sched.model import Limits

SILENCE_S_MAX = 3.0  #: a guardian that answers no lease for this long hangs
UNANSWERED_MAX = 4  #: leases; an agent that was stopped itself and goes on has only one such
KILL_S_MAX = 0.5  #: less than the margin by which the leader waits longer than a TTL

log = structlog.get_logger()


class GuardianClient:
    def __init__(self, process: "subprocess.Popen[bytes]", sock: socket.socket) -> None:
        self._process = process  #: the reaper, which leads the guardian's process group and outlives it
        self._sock = sock
        self._reader = frames.Reader(sock)
        self._clean: list[asyncio.Future[None]] = []
        self._on_message: Callable[[Message], None] = lambda message: None
        self._on_death: Callable[[], None] = lambda: None
        self._farewell = ""
        self._unanswered = 0  #: leases since the guardian answered one
        self._asked_s = 0.0  #: when the first of these was sent
        self.until_ns = 0  #: the deadline that the guardian holds, CLOCK_BOOTTIME

    @classmethod
    def start(cls, lock_fd: int, cgroups: Cgroups | None = None) -> "GuardianClient":
        """Start the process. It keeps `lock_fd` open as long as a child may live."""
        theirs_too = (cgroups.path, "memory" * cgroups.memory) if cgroups is not None else ("", "")
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                # a program of its own and not a fork, so that it has no part of what the agent imports
                procs.tiflow_program("guardian", str(theirs.fileno()), str(lock_fd), *theirs_too),
                pass_fds=[theirs.fileno(), lock_fd],
                start_new_session=True,  # Ctrl-C is for the agent, which ends it in order
            )
        procs.become_subreaper()  # if the guardian is killed, its children become ours
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def attach(self, on_message: Callable[[Message], None], on_death: Callable[[], None]) -> None:
        """Hear of children through `on_message` (exit, error), from the running loop on."""
        self._on_message, self._on_death = on_message, on_death
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def renew(self, until: float) -> None:
        """Move the deadline on to `until` (s, CLOCK_BOOTTIME; -inf: there is none yet)."""
        until_ns = int(max(until, 0.0) * 1e9)
        if until_ns > self.until_ns:
            self.until_ns = until_ns
            now_s = time.monotonic()
            if not self._unanswered:
                self._asked_s = now_s
            self._unanswered += 1
            if self._unanswered > UNANSWERED_MAX and now_s - self._asked_s > SILENCE_S_MAX:
                # it can not kill anything in time any more. Its children die with it, and that is reported
                log.error("guardian_silent", silent_s=round(now_s - self._asked_s, 1))
                self._kill()
                return
            self._send({"op": "lease", "until_ns": until_ns})

    def start_worker(self, token: str, sock: socket.socket, memory_fd: int, log: str, settings: Message) -> None:
        self._send({"op": "worker", "token": token, "log": log, "settings": settings}, [sock.fileno(), memory_fd])

    def start_command(
        self,
        token: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        limits: Limits,
        fds: Sequence[int],
        task: tuple[int, int] | None,
    ) -> None:
        """`fds`: stdout and stderr, and of a member the socket by which it talks to this process. `task`: placement
        and index, if its end says all that there is to say when this process is gone."""
        message: Message = {
            "op": "command",
            "token": token,
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
            "memory_bytes": limits.memory_bytes,
            "open_files": limits.open_files,
        }
        self._send(message if task is None else message | {"task": task}, fds)

    def signal(self, token: str, signum: int) -> None:
        """Signal a child's process group; that it is gone already is fine."""
        self._send({"op": "signal", "token": token, "signal": int(signum)})

    def have_read(self, token: str) -> None:
        """A child is done with, and all that it left (in the shared memory) is known and kept."""
        self._send({"op": "read", "token": token})

    def farewell(self, report: str) -> None:
        """What is to be reported when this process is gone and every child is dead; empty: nothing."""
        self._farewell = report
        self._send({"op": "farewell", "report": report})

    async def kill_all(self) -> None:
        """Returns when no child is left. A guardian that does not do it in time is killed: so are its children."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clean.append(done)
        self._send({"op": "kill_all"})
        try:
            async with asyncio.timeout(KILL_S_MAX):
                await asyncio.shield(done)
        except TimeoutError:
            self._kill()
            await done

    def close(self) -> None:
        """Returns when the guardian has ended, and all children with it."""
        self.detach()
        self._sock.close()
        self._process.wait()

    def bury(self) -> None:
        """The guardian has died: see that what it left is dead, too, and report that in its place. Its reaper is left
        the time to do that, and to remove the cgroups; what falls to us (we are a subreaper) is killed here."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S_MAX)
        procs.kill_children()
        if self._farewell:
            subprocess.run(procs.tiflow_program("reporter", self._farewell), check=False)

    def _kill(self) -> None:
        """The guardian and its reaper; the children die with the one, and what they leave falls to this process."""
        procs.kill_group(self._process.pid, signal.SIGKILL)

    def detach(self) -> None:
        with contextlib.suppress(RuntimeError):  # no loop runs: it never began, or is over
            asyncio.get_running_loop().remove_reader(self._sock)

    def _read(self) -> None:
        for message, _ in self._reader.read():
            if message["op"] == "alive":
                self._unanswered = 0
            elif message["op"] == "clean":
                done = self._clean.pop(0)
                if not done.done():
                    done.set_result(None)
            else:
                self._on_message(message)
        if self._reader.closed:
            self.detach()
            self._on_death()

    def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        if fds:
            message["fds"] = len(fds)
        data = frames.encode(message)
        # the guardian always reads on, as it never waits for us; one that does not must not outlast the lease
        left_s = (self.until_ns - procs.boot_ns()) / 1e9
        self._sock.settimeout(max(KILL_S_MAX, min(SILENCE_S_MAX, left_s)))
        try:
            sent = socket.send_fds(self._sock, [data], list(fds)) if fds else 0
            self._sock.sendall(data[sent:])
        except TimeoutError:
            log.error("guardian_silent")
            self._kill()
        except ConnectionError:
            pass  # the next read says that the guardian is gone
