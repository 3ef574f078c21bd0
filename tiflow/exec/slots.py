"""What runs in a slot: a warm worker, or a command. I/O and no decisions."""

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import json, msgpack

from tiflow.exec import logs, worker
from tiflow.exec.actions import Run
from tiflow.exec.upkeep import remove
from tiflow.sched.model import Call, Command, Python

_PIPE_BYTES = 1 << 16
_encode = msgpack.Encoder().encode


class WorkerSlot:
    """The agent's end of a warm worker, with the memory that both share."""

    def __init__(self, token: str, on_look: Callable[[], None]) -> None:
        self.token = token
        self.run: Run | None = None  #: the batch that it was given
        self.stopping = False  #: it was told to end its task, and ends with it
        self._on_look = on_look
        self._read = 0  #: bytes of ends that were read
        self.sock, self.worker_sock = socket.socketpair()
        self.sock.setblocking(False)
        self.memory_fd = os.memfd_create("tiflow-worker", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, worker.SHARED_BYTES)
        self._memory = mmap.mmap(self.memory_fd, worker.SHARED_BYTES)
        self._words = memoryview(self._memory)[: worker.ENDS_AT].cast("Q")
        self._sending: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(self.sock, self._look)

    def handed_over(self) -> None:
        """The guardian has copies of what the worker needs."""
        self.worker_sock.close()
        os.close(self.memory_fd)

    def start(self, run: Run) -> None:
        """Send a batch."""
        self.run = run
        self._read = 0
        assignment = run.assignment
        self._words[worker.FILLED] = 0
        self._words[worker.PLACEMENT] = assignment.placement
        self._words[worker.START] = run.start
        work = assignment.work
        assert isinstance(work, Python | Call)
        body = _encode(
            worker.Batch(
                run.number,
                assignment.job_id,
                assignment.job_uid,
                assignment.group,
                run.start,
                run.stop,
                assignment.attempt,
                work.function if isinstance(work, Python) else "",
                work.path,
                run.items,
                assignment.limits,
                work if isinstance(work, Call) else None,
            )
        )
        data = worker.LENGTH.pack(len(body)) + body
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            return  # the guardian says what became of it
        if sent < len(data):
            self._sending = asyncio.get_running_loop().create_task(self._send_rest(data[sent:]))

    async def _send_rest(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # as above
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def skip(self, number: int) -> None:
        self._words[worker.SKIP] = number

    def stop(self) -> None:
        """Its task is to end; SIGTERM is to follow."""
        if self.run is not None:
            self.stopping = True
            self._words[worker.STOP] = self.run.number

    @property
    def done(self) -> bool:
        """Whether its batch is over."""
        return self.run is None or self._words[worker.DONE] == self.run.number

    @property
    def worn(self) -> bool:
        """Whether it is to be replaced after its batch."""
        return bool(self._words[worker.WORN])

    def position(self) -> tuple[int, float] | None:
        """The task that runs, or ran last, and since when (s, CLOCK_BOOTTIME); None: none of this batch yet."""
        while True:
            position, started_ns = self._words[worker.POSITION], self._words[worker.STARTED_NS]
            if position == self._words[worker.POSITION]:
                break
        if self.run is None or position >> 32 != self.run.number:
            return None
        return position & 0xFFFFFFFF, started_ns / 1e9

    def ends(self) -> Iterator[worker.End]:
        """The ends that were not read yet."""
        start, self._read = self._read, self._words[worker.FILLED]
        return worker.ends(self._memory, start, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        if self._sending is not None:
            self._sending.cancel()
        self.sock.close()
        self._words.release()
        self._memory.close()

    def _look(self) -> None:
        try:
            gone = not self.sock.recv(4096)
        except BlockingIOError:
            return
        except ConnectionError:
            gone = True
        if gone:  # the guardian says why
            asyncio.get_running_loop().remove_reader(self.sock)
        else:
            self._on_look()


class CommandSlot:
    """A command and the pipes of its output."""

    def __init__(self, token: str, run: Run, started: float, data_dir: str, log_bytes_max: int) -> None:
        self.token = token
        self.run = run
        self.started = started  #: s, CLOCK_BOOTTIME
        self.work_dir = f"{data_dir}/work/{token}"
        self._pipes: dict[int, logs.BoundedLog] = {}
        self.child_fds: list[int] = []  #: stdout and stderr, for the guardian
        assignment = run.assignment
        with contextlib.suppress(OSError):  # then it cannot be started, and that is said
            os.makedirs(self.work_dir, exist_ok=True)
        log_bytes_max = min(log_bytes_max, assignment.limits.output_bytes or log_bytes_max)
        for stream in logs.STREAMS:
            path = logs.log_path(
                data_dir, assignment.job_uid, assignment.group, run.start, assignment.attempt, stream
            )
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours, False)
            self._pipes[ours] = logs.BoundedLog(path, log_bytes_max)
            self.child_fds.append(theirs)
            asyncio.get_running_loop().add_reader(ours, self._copy, ours)

    def handed_over(self) -> None:
        for fd in self.child_fds:
            os.close(fd)

    def note(self, text: str) -> None:
        """Add a line to its stderr log."""
        list(self._pipes.values())[-1].write(f"{text}\n".encode())

    def close(self) -> None:
        """Take what its process has left in the pipes, which is no more than they hold. Somebody may still write: a
        process that left its group, and says of itself no more whose it is."""
        for fd, log in self._pipes.items():
            left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            while left > 0 and (size := self._copy(fd)):
                left -= size
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
            log.close()
        try:
            os.rmdir(self.work_dir)
        except FileNotFoundError:
            pass
        except OSError:  # it is not empty
            asyncio.get_running_loop().run_in_executor(None, remove, self.work_dir)

    def _copy(self, fd: int) -> int:
        """Returns how many bytes there were."""
        try:
            data = os.read(fd, _PIPE_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            asyncio.get_running_loop().remove_reader(fd)
            return 0
        self._pipes[fd].write(data)
        return len(data)


def argument(run: Run) -> Any:
    """What the first task of a batch is called with: its item, or its index."""
    return msgpack.decode(run.items[0]) if run.items else run.start


def filled_in(run: Run) -> tuple[list[str], dict[str, str], str]:
    """argv, env and cwd of a command, with `{index}` and `{item}` replaced by the task's own."""
    work = run.assignment.work
    assert isinstance(work, Command)
    item = argument(run)
    text = item if isinstance(item, str) else json.encode(item).decode()

    def fill(template: str) -> str:
        # one after the other would replace in what an item says
        return text.join(part.replace("{index}", str(run.start)) for part in template.split("{item}"))

    return [fill(arg) for arg in work.argv], {k: fill(v) for k, v in work.env.items()}, fill(work.cwd)
