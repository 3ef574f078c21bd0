"""The socket between an agent and the process of a job master or worker: questions both ways, and notes.

A frame is a length and a message in msgpack. Standard library, msgspec and our own small modules: the process of a
member imports this, and must start fast.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Self, TypeAlias

from msgspec import MsgspecError, Struct, msgpack
from msgspec.structs import replace

from tiflow.errors import CLASSES, Internal, NotLeader, TiflowError, Unavailable
from tiflow.exec.keeping import Keeper
from tiflow.exec.outbox import Result
from tiflow.jobs.framework.port import About, Envelope, Report, Request, Response, WorkerGroup, WorkerRow
from tiflow.parts import in_parts

FRAME_BYTES_MAX = 16 << 20
ROWS_BYTES_MAX = 4 << 20  #: of the rows in one frame
ASKED_MAX = 1_024  #: questions of the other side that are being answered; more are refused for now, and asked again
ASKED_BYTES_MAX = 64 << 20  #: … or bytes of them
UNSENT_BYTES_MAX = 32 << 20  #: then a side that does not read is given up

_LENGTH = struct.Struct("<I")


class Message(Struct, frozen=True, tag_field="op"):
    pass


# Questions of a member. The answers: None, but where it is said.


class StartWorkers(Message, frozen=True, tag="start"):
    group: WorkerGroup
    once: tuple[int, int] = (0, 0)  #: number of the request, and below which all are settled


class StopWorkers(Message, frozen=True, tag="stop_workers"):
    group: str
    start: int
    stop: int
    forget: bool
    once: tuple[int, int] = (0, 0)


class Get(Message, frozen=True, tag="get"):
    """Answer: bytes | None."""

    key: str


class Put(Message, frozen=True, tag="put"):
    key: str
    value: bytes | None


class Keys(Message, frozen=True, tag="keys"):
    """Answer: list[str]."""

    prefix: str


# Questions both ways: a member asks another one, through both agents.


class Deliver(Message, frozen=True, tag="deliver"):
    envelope: Envelope


class Call(Message, frozen=True, tag="call"):
    """Answer: Response."""

    to: str
    request: Request


# Notes of an agent.


class Begin(Message, frozen=True, tag="begin"):
    """The first of all."""

    about: About
    group: str
    index: int
    entry: str  #: `module:Class` of the job type, if the executor's settings name it; else it is looked up
    path: tuple[str, ...]  #: put in front of sys.path
    keeper: Keeper
    rows: tuple[WorkerRow, ...] | None  #: to a job master: all workers
    more: bool = False  #: … the others follow, before anything else


class Rows(Message, frozen=True, tag="rows"):
    rows: tuple[WorkerRow, ...]
    whole: bool
    more: bool = False  #: of what a job master begins with: others follow


class Stop(Message, frozen=True, tag="stop"):
    reason: str


# Notes of a member.


class Reported(Message, frozen=True, tag="report"):
    report: Report


class End(Message, frozen=True, tag="end"):
    """The last of all: how the attempt ended. `result`: it succeeded; else `error`, or `stopped`: it was told to."""

    result: Result | None = None
    error: str = ""
    final: bool = False
    stopped: bool = False


# The frames themselves.


class Asked(Message, frozen=True, tag="ask"):
    id: int
    what: "StartWorkers | StopWorkers | Get | Put | Keys | Deliver | Call"


class Answered(Message, frozen=True, tag="answer"):
    id: int
    value: bytes = b""  #: msgpack; empty: None
    error: tuple[str, str] | None = None  #: the name of its class in `tiflow.errors`, and its text


Question: TypeAlias = StartWorkers | StopWorkers | Get | Put | Keys | Deliver | Call
Note: TypeAlias = Begin | Rows | Stop | Reported | End
Answer: TypeAlias = Response | bytes | list[str] | None

_encode = msgpack.Encoder().encode
_decoder: msgpack.Decoder[Asked | Answered | Note] = msgpack.Decoder(Asked | Answered | Note)


def in_frames(begin: Begin) -> Iterator[Begin | Rows]:
    """It, and what of its rows would be too much for one frame."""
    parts = list(in_parts(begin.rows or (), _size, ROWS_BYTES_MAX))
    if len(parts) <= 1:
        yield begin
        return
    yield replace(begin, rows=tuple(parts[0]), more=True)
    for number, part in enumerate(parts[1:], start=2):
        yield Rows(tuple(part), whole=False, more=number < len(parts))


def _size(row: WorkerRow) -> int:
    """Bytes, about."""
    return 500 + len(row.status) + len(row.result) + 4 * len(row.error)


class Link:
    """One end. `on_ask` answers the questions of the other side, and may take its time; what it raises of
    `tiflow.errors` is raised there. `on_note` is told the notes, in order."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_ask: Callable[[Question], Awaitable[Answer]],
        on_note: Callable[[Note], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_ask = on_ask
        self._on_note = on_note
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._asked_bytes = 0  #: of the questions that are being answered
        self._turn = asyncio.Lock()  #: of large messages: one after the other, as fast as the other side reads
        self.closed = False

    @classmethod
    async def open(
        cls, sock: socket.socket, on_ask: Callable[[Question], Awaitable[Answer]], on_note: Callable[[Note], None]
    ) -> Self:
        return cls(*await asyncio.open_connection(sock=sock), on_ask, on_note)

    async def run(self) -> None:
        """Read until the other side is gone, or says what cannot be understood. It is read however much it asks: what
        it asks may wait for what it answers."""
        try:
            while True:
                message, size = await self._read()
                match message:
                    case Asked(id, what):
                        self._take(id, what, size)
                    case Answered(id):
                        if (waiting := self._asked.pop(id, None)) is not None and not waiting.done():
                            _settle(waiting, message)
                    case _:
                        self._on_note(message)
        except (asyncio.IncompleteReadError, ConnectionError, MsgspecError, ValueError):
            pass
        finally:
            self.close()

    async def ask(self, what: Question, kind: Any = None) -> Any:
        """The answer, which is of type `kind`. Raises what the other side raised; Unavailable when it is gone."""
        if self.closed:
            raise Unavailable("the other side of the socket is gone")
        self._number += 1
        number, waiting = self._number, asyncio.get_running_loop().create_future()
        self._asked[number] = waiting
        try:
            await self._post(Asked(number, what))
            value = await waiting
        finally:
            self._asked.pop(number, None)
        return msgpack.decode(value, type=kind) if value else None

    def tell(self, note: Note) -> None:
        self._send(note)

    async def drain(self) -> None:
        """Returns when what was told is written to the socket, or the other side is gone."""
        self._writer.transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def close(self) -> None:
        """Whoever waits for an answer gets none."""
        if self.closed:
            return
        self.closed = True
        for task in self._answering:
            task.cancel()
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the other side of the socket is gone"))
        self._asked.clear()
        self._writer.transport.abort()  # what the other side has not read it never will

    def _take(self, id: int, what: Question, size: int) -> None:
        busy = self._answering and self._asked_bytes + size > ASKED_BYTES_MAX
        if busy or len(self._answering) >= ASKED_MAX:
            self._send(Answered(id, error=("Unavailable", "it is asked too much at this time; try again")))
            return
        self._asked_bytes += size
        task = asyncio.create_task(self._answer(id, what))
        self._answering.add(task)

        def done(_: object) -> None:
            self._answering.discard(task)
            self._asked_bytes -= size

        task.add_done_callback(done)

    async def _answer(self, id: int, what: Question) -> None:
        try:
            value = await self._on_ask(what)
            answer = Answered(id, b"" if value is None else _encode(value))
        except TiflowError as error:
            answer = Answered(id, error=(type(error).__name__, str(error)))
        except Exception as bug:  # noqa: BLE001  the asker must hear of it, and this side goes on
            answer = Answered(id, error=("Internal", f"{type(bug).__name__}: {bug}"))
        await self._post(answer)

    async def _post(self, message: Message) -> None:
        async with self._turn:
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            self._send(message)

    def _send(self, message: Message) -> None:
        if self.closed:
            return
        body = _encode(message)
        if self._writer.transport.get_write_buffer_size() + len(body) > UNSENT_BYTES_MAX:
            self.close()  # it hangs; what becomes of it is its guardian's matter
            return
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def _read(self) -> tuple[Asked | Answered | Note, int]:
        """A message, and its size in bytes."""
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes")
        return _decoder.decode(await self._reader.readexactly(length)), length


def _settle(waiting: "asyncio.Future[bytes]", answer: Answered) -> None:
    if answer.error is None:
        waiting.set_result(answer.value)
        return
    name, text = answer.error
    kind = CLASSES.get(name, Internal)
    # who leads is the agent's matter
    waiting.set_exception(Unavailable(text) if kind is NotLeader else kind(text))
