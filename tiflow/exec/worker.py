"""A warm worker: a process that was forked from the guardian and runs batches of `python` tasks for one slot.

A batch arrives over the socket; what comes of its tasks is left in memory that is shared with the agent, so that
nothing is lost when a task takes the worker down with it. A byte on the socket says "look".
"""

import faulthandler
import importlib
import io
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct, convert, msgpack
from msgspec.structs import replace

from tiflow.exec import logs
from tiflow.exec.keeping import CannotKeep, Keeper
from tiflow.exec.outbox import Result
from tiflow.exec.procs import TOKEN_VARIABLE
from tiflow.exec.upkeep import Bounds, Meter, Place, resident_bytes
from tiflow.jobs.failures import cut, describe, traceback_of
from tiflow.sched.model import ERROR_CHARS_MAX, Call, Limits

if TYPE_CHECKING:
    from tiflow.exec.calls import Calls

LOOK_NS = 5_000_000  #: the agent learns of an end this much later at most, if another one follows
SHARED_BYTES = 2 << 20  #: pages that are never touched cost nothing
END_BYTES_MAX = 4 * ERROR_CHARS_MAX + 64  #: of one encoded end

#: words at the beginning of the shared memory
POSITION = 0  #: batch number << 32 | index of the task that runs, or ran last
STARTED_NS = 1  #: when it started, CLOCK_BOOTTIME
FILLED = 2  #: bytes of ends; written by the worker after the bytes themselves, set to 0 by the agent
DONE = 3  #: number of the last batch that was ended
SKIP = 4  #: set by the agent: batches up to this number start no more tasks
STOP = 5  #: set by the agent before SIGTERM: the task that runs of batches up to this number is to end
WORN = 6  #: set by the worker before DONE: it is to be replaced
PLACEMENT = 7  #: of the batch, and its first task: set by the agent after FILLED, for who comes after it
START = 8
WORDS = 16
ENDS_AT = WORDS * 8

LENGTH = struct.Struct("<I")


class Batch(Struct, array_like=True, frozen=True):
    number: int
    job_id: str
    job_uid: int
    group: str
    start: int
    stop: int
    attempt: int
    function: str
    path: tuple[str, ...]
    items: tuple[Raw, ...]  #: of [start, stop); empty: tasks get their index
    limits: Limits = Limits()
    call: Call | None = None  #: calls of a pool; then `function` is empty


class Settings(Struct, frozen=True):
    """What an executor tells each of its workers."""

    data_dir: str
    work_dir: str  #: of the slot; tasks find it empty, and it is emptied after each
    log_bytes_max: int
    result_bytes_max: int
    env: dict[str, str] = {}
    preload: tuple[str, ...] = ()
    tasks_max: int = 0  #: then it is worn; 0: never
    growth_bytes_max: int = 0  #: likewise, of resident memory since its first batch
    results_url: str = ""  #: of the shared store for large results; empty: they stay below data_dir
    cgroup: str = ""  #: of the worker, if it bounds memory; the guardian says

    @property
    def keeper(self) -> Keeper:
        return Keeper(self.data_dir, self.result_bytes_max, self.results_url)


class End(Struct, array_like=True, frozen=True):
    """How one task ended. Ends of a batch stand in the order of their tasks."""

    #: the value, encoded; or where it is kept: size in bytes, sha256, and the URL if it is shared. None: failed
    result: bytes | tuple[int | str, ...] | None
    run_us: int
    error: str = ""
    final: bool = False
    stopped: bool = False  #: it was told to end; why, the agent knows
    cpu_us: int = 0  #: of the tasks since the last End that has any, this one too
    memory_bytes: int = 0  #: the most that was resident in its batch; 0: as cpu_us


_decode_end = msgpack.Decoder(End).decode


class TaskStopped(SystemExit):
    """Raised in the function of a task that is canceled or has run too long, so that its `finally` blocks run.

    A SystemExit, which libraries (asyncio among them) let through where they hold on to other exceptions.
    """


class CannotRun(Exception):
    """A task failed in a way that a retry cannot mend."""


def ends(memory: mmap.mmap, start: int, stop: int) -> Iterator[End]:
    """The ends in bytes [start, stop) of those that a batch has left in the shared memory."""
    while start < stop:
        at = ENDS_AT + start
        (length,) = LENGTH.unpack_from(memory, at)
        at += LENGTH.size
        start += LENGTH.size + length
        yield _decode_end(memory[at : at + length])


def serve(sock: socket.socket, memory_fd: int, settings: dict[str, Any]) -> None:
    """Run batches from `sock` until it is closed. `settings`: as in Settings."""
    memory = mmap.mmap(memory_fd, SHARED_BYTES)
    os.close(memory_fd)
    faulthandler.enable(file=2)  # the worker's own log then says where it crashed
    worker = Worker(sock, memory, convert(settings, Settings))
    worker.preload()
    stream = sock.makefile("rb")
    decode = msgpack.Decoder(Batch).decode
    while not worker.stopped and (head := stream.read(LENGTH.size)):
        body = stream.read(LENGTH.unpack(head)[0])
        worker.run(decode(body))


class Worker:
    def __init__(self, sock: socket.socket, memory: mmap.mmap, settings: Settings) -> None:
        self._settings = settings
        self._place = Place(settings.work_dir)
        self._env = settings.env | {name: os.environ[name] for name in (TOKEN_VARIABLE,) if name in os.environ}
        self._job_uid = 0
        self._meter = Meter()
        self._bounds = Bounds(settings.cgroup)
        self._tasks = 0
        self._rss_before = 0  #: bytes, after the first batch
        self._sock = sock
        self._memory = memory
        self._words = memoryview(memory)[:ENDS_AT].cast("Q")
        self._keeper = settings.keeper
        self._encode_end = msgpack.Encoder().encode
        self._functions = Functions()
        self._calls: Calls | None = None  # made by the first call of a pool: it imports cloudpickle
        self._out = TaskStream(settings.data_dir, "stdout", settings.log_bytes_max)
        self._err = TaskStream(settings.data_dir, "stderr", settings.log_bytes_max)
        sys.stdout, sys.stderr = self._out, self._err
        self.stopped = False  #: a task was told to end. The worker ends too, with all that the task left in it
        self._pid = os.getpid()
        self._number = 0  #: of the batch
        self._stoppable = False  #: a task runs
        signal.signal(signal.SIGTERM, self._on_sigterm)
        os.register_at_fork(after_in_child=self._leave_socket)

    def _leave_socket(self) -> None:
        """A process that a task forks must not read our batches, nor keep the socket open when we are dead. What that
        process forks has no socket any more, but perhaps something else under its number."""
        fd = self._sock.detach()
        if fd >= 0:
            os.close(fd)

    def preload(self) -> None:
        """Import what the executor's settings name. What cannot be imported is in this worker's own log."""
        for name in self._settings.preload:
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001  a module may raise anything
                os.write(2, f"tiflow: worker.preload: {name}\n{traceback_of(error)}".encode())

    def run(self, batch: Batch) -> None:
        """Run the tasks of a batch, in order, until its end or until it is to be skipped."""
        words = self._words
        self._enter(batch)
        looked_ns = time.monotonic_ns()
        filled = 0
        for index in range(batch.start, batch.stop):
            if words[SKIP] >= batch.number or filled + END_BYTES_MAX > SHARED_BYTES - ENDS_AT:
                break
            words[STARTED_NS] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            words[POSITION] = batch.number << 32 | index
            os.environ["TIFLOW_INDEX"] = str(index)
            self._out.index = self._err.index = index
            result = self._run_stoppable_task(batch, index)
            if os.getpid() != self._pid:
                os._exit(0)  # the task forked, and this is the child, which has returned from the function too
            self._out.end_task()
            self._err.end_task()
            self._place.tidy()
            now_ns = time.monotonic_ns()
            look = now_ns - looked_ns >= LOOK_NS
            if look or index + 1 == batch.stop:  # what short tasks use is measured together
                cpu_us, memory_bytes = self._meter.read()
                result = replace(result, cpu_us=cpu_us, memory_bytes=memory_bytes)
            end = self._encode_end(result)

            at = ENDS_AT + filled
            LENGTH.pack_into(self._memory, at, len(end))
            self._memory[at + LENGTH.size : at + LENGTH.size + len(end)] = end
            filled += LENGTH.size + len(end)
            words[FILLED] = filled  # last: what is counted is complete
            if self.stopped:
                return  # the batch is not done: the agent takes the rest of it back when this process has ended
            if look:
                looked_ns = now_ns
                self._sock.send(b".")
        self._tasks += batch.stop - batch.start
        words[WORN] = self._is_worn()
        words[DONE] = batch.number
        self._sock.send(b".")

    def _is_worn(self) -> bool:
        if 0 < self._settings.tasks_max <= self._tasks:
            return True
        if not self._settings.growth_bytes_max:
            return False
        rss = resident_bytes()
        self._rss_before = self._rss_before or rss
        return rss - self._rss_before > self._settings.growth_bytes_max

    def _enter(self, batch: Batch) -> None:
        self._number = batch.number
        signal.signal(signal.SIGTERM, self._on_sigterm)  # an earlier task may have set its own
        if batch.job_uid != self._job_uid:
            self._job_uid = batch.job_uid
            os.environ.clear()
            os.environ.update(self._env)
        self._bounds.keep_to(batch.limits)
        self._meter.begin()
        os.environ |= {
            "TIFLOW_JOB_ID": batch.job_id,
            "TIFLOW_JOB_UID": str(batch.job_uid),
            "TIFLOW_GROUP": batch.group,
            "TIFLOW_ATTEMPT": str(batch.attempt),
        }
        self._out.batch = self._err.batch = batch

    def _on_sigterm(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:  # a process that the task forked: it did not ask for our handler
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._stoppable and not self.stopped and self._words[STOP] >= self._number:
            self.stopped = True
            raise TaskStopped
        # else it is not meant for what runs now: it came late, or from a supervisor that signals all processes

    def _run_stoppable_task(self, batch: Batch, index: int) -> End:
        run_us = 0
        try:
            self._stoppable = True
            if self._words[STOP] >= batch.number:  # SIGTERM came just before
                self.stopped = True
                raise TaskStopped
            end = self._run_task(batch, index)
            self._stoppable = False
            run_us = end.run_us
        except TaskStopped:  # between two statements of ours; in the function it ends up in _run_task
            self._stoppable = False
        # also when the function holds on: what comes after it was told to end is not a result
        return End(None, run_us, stopped=True) if self.stopped else end

    def _run_task(self, batch: Batch, index: int) -> End:
        started_ns = time.monotonic_ns()
        try:
            if batch.call is not None:
                value = self._call(batch, batch.call, index)
                return End(self._keep(batch, index, value), (time.monotonic_ns() - started_ns) // 1_000)
            function = self._functions.load(batch.job_uid, batch.function, batch.path)
            started_ns = time.monotonic_ns()  # how long an import took says nothing about the next task
            argument = msgpack.decode(batch.items[index - batch.start]) if batch.items else index
            value = function(argument)
            return End(self._keep(batch, index, value), (time.monotonic_ns() - started_ns) // 1_000)
        except CannotRun as error:
            return End(None, 0, cut(str(error)), final=True)
        except BaseException as error:  # noqa: BLE001  SystemExit too: a task must not end the worker so easily
            self._err.write(traceback_of(error))
            run_us = (time.monotonic_ns() - started_ns) // 1_000
            return End(None, run_us, cut(describe(error)))

    def _call(self, batch: Batch, work: Call, index: int) -> list[Any]:
        from tiflow.exec.calls import Calls, Unloadable

        self._functions.enter(batch.job_uid, work.path)
        self._calls = self._calls or Calls()
        try:
            return self._calls.run(batch.job_uid, work, batch.items[index - batch.start], TaskStopped)
        except Unloadable as error:
            raise CannotRun(str(error)) from None

    def _keep(self, batch: Batch, index: int, value: object) -> Result:
        try:
            return self._keeper.keep(batch.job_uid, batch.group, index, batch.attempt, value)
        except CannotKeep as error:
            raise CannotRun(str(error)) from None


class Functions:
    """Finds what a task calls. A job finds the modules of its own `path` as they are on disk when it first runs
    here, not as an earlier job imported them."""

    def __init__(self) -> None:
        self._base = list(sys.path)
        self._job_uid = 0
        self._path: tuple[str, ...] = ()
        self._found: dict[str, Callable[[Any], Any]] = {}

    def load(self, job_uid: int, name: str, path: tuple[str, ...]) -> Callable[[Any], Any]:
        """The function `module:qualified.name`. Raises CannotRun when there is none."""
        self.enter(job_uid, path)
        function = self._found.get(name)
        if function is None:
            function = self._found[name] = self._find(name)
        return function

    def enter(self, job_uid: int, path: tuple[str, ...]) -> None:
        """Import what the job imports from now on."""
        if (job_uid, path) == (self._job_uid, self._path):
            return
        roots = tuple(os.path.join(os.path.abspath(part), "") for part in (*self._path, *path))
        # all of them first: where a namespace package lies is found through its parent
        for name in [name for name, module in list(sys.modules.items()) if roots and _is_theirs(name, module, roots)]:
            del sys.modules[name]
        self._found.clear()
        importlib.invalidate_caches()
        sys.path[:] = [*path, *self._base]
        self._job_uid, self._path = job_uid, path

    def _find(self, name: str) -> Callable[[Any], Any]:
        module_name, colon, qualified = name.partition(":")
        if not (module_name and colon and qualified):
            raise CannotRun(f"function {name!r} is not of the form module:function")
        try:
            found: Any = importlib.import_module(module_name)
        except BaseException as error:  # noqa: BLE001  a module may raise anything
            sys.stderr.write(traceback_of(error))
            raise CannotRun(f"module {module_name!r} cannot be imported: {describe(error)}") from None
        for part in qualified.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise CannotRun(f"module {module_name!r} has no function {qualified!r}") from None
        if not callable(found):
            raise CannotRun(f"{name!r} is not a function but of type {type(found).__name__}")
        function: Callable[[Any], Any] = found
        return function


def _is_theirs(name: str, module: object, roots: tuple[str, ...]) -> bool:
    """Whether a module is a job's own: not ours, nor installed (a project's .venv is below the project)."""
    file = getattr(module, "__file__", None)
    places = [file] if file else list(getattr(module, "__path__", ()))
    if name.partition(".")[0] == "tiflow" or not places:
        return False
    place = os.path.abspath(places[0])
    return place.startswith(roots) and "-packages/" not in place


class TaskStream(io.TextIOBase):
    """sys.stdout or sys.stderr of tasks: each attempt has its own file, which the first write creates."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, data_dir: str, stream: str, bytes_max: int) -> None:
        self.batch: Batch | None = None
        self.index = 0
        self.buffer = _ByteStream(self)
        self._data_dir = data_dir
        self._stream = stream
        self._bytes_max = bytes_max
        self._file: logs.BoundedLog | None = None
        self._lock = threading.Lock()  # tasks may start threads that print

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1 if self._stream == "stdout" else 2  # the worker's own log: programs that a task starts end there

    def write(self, text: str) -> int:
        self.write_bytes(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        with self._lock:
            if self._file is None:
                if self.batch is None:
                    return
                most = self.batch.limits.output_bytes or self._bytes_max
                self._file = logs.BoundedLog(self._path(self.batch), min(most, self._bytes_max))
            self._file.write(data)

    def end_task(self) -> None:
        if self._file is not None:
            with self._lock:
                self._file.close()
                self._file = None

    def _path(self, batch: Batch) -> str:
        return logs.log_path(self._data_dir, batch.job_uid, batch.group, self.index, batch.attempt, self._stream)


class _ByteStream(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, text: TaskStream) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._text.write_bytes(data)
        return len(data)
