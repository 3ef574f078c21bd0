"""Messages between members: in order, at least once, bounded.

The sender numbers what it sends to each receiver, keeps it until the receiver has acknowledged, and sends it again
until then. The receiver remembers how far it has handled each sender's attempt, so that it skips what comes twice; an
attempt of its own that begins anew does not know, and handles some twice.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct, msgpack

from tiflow.errors import FailedPrecondition, NotFound
from tiflow.jobs.framework.port import ENVELOPE_BYTES_MAX, MESSAGE_BYTES_MAX, Envelope

QUEUE_MESSAGES_MAX = 1_000  #: to one receiver that are not acknowledged; then `put` waits
QUEUE_BYTES_MAX = 8 << 20  #: … or bytes of them
ENVELOPE_MESSAGES_MAX = 64

_encode = msgpack.Encoder().encode


def encode_message(message: Any) -> bytes:
    """Raises ValueError, which says what is wrong with it."""
    try:
        data = _encode(message)
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise ValueError(
            f"message of type {type(message).__name__} cannot be encoded: send numbers, strings, bytes, lists or"
            f" dicts ({error})"
        ) from None
    if len(data) > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"message of {len(data)} bytes; at most {MESSAGE_BYTES_MAX}: put it into a checkpoint or file"
        )
    return data


class Outbox:
    """To one receiver. `deliver` returns when an envelope is acknowledged, however long that takes; it raises
    NotFound when the receiver has ended: what waits is dropped then, and what comes later too."""

    def __init__(self, sender: str, attempt: int, to: str, deliver: Callable[[Envelope], Awaitable[None]]) -> None:
        self._sender = sender
        self._attempt = attempt
        self._to = to
        self._deliver = deliver
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._first = 1  #: number of the first in the queue
        self._changed = asyncio.Condition()
        self.ended = False  #: the receiver has

    async def put(self, data: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended or self._has_room(len(data)))
            if not self.ended:
                self._queue.append(data)
                self._bytes += len(data)
                self._changed.notify_all()

    async def flush(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._queue)

    async def run(self) -> None:
        """Send, until canceled or the receiver has ended."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._queue))
                batch = self._batch()
            try:
                await self._deliver(Envelope(self._sender, self._attempt, self._to, self._first, batch))
            except NotFound:
                async with self._changed:
                    self.ended = True
                    self._queue.clear()
                    self._changed.notify_all()
                return
            async with self._changed:
                for data in batch:
                    self._queue.popleft()
                    self._bytes -= len(data)
                self._first += len(batch)
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        if not self._queue:
            return True
        return len(self._queue) < QUEUE_MESSAGES_MAX and self._bytes + size <= QUEUE_BYTES_MAX

    def _batch(self) -> tuple[bytes, ...]:
        batch: list[bytes] = []
        size = 0
        for data in self._queue:
            size += len(data)
            if batch and (size > ENVELOPE_BYTES_MAX or len(batch) == ENVELOPE_MESSAGES_MAX):
                break
            batch.append(data)
        return tuple(batch)


class _Sender(Struct):
    """How far one sender's messages were handled."""

    turn: asyncio.Lock
    attempt: int = 0
    done: int = 0  #: number of the last one that was handled


class Inbox:
    """`handle(sender, message)` is called for one message after the other of each sender."""

    def __init__(self, handle: Callable[[str, Any], Awaitable[None]]) -> None:
        self._handle = handle
        self._senders: dict[str, _Sender] = {}

    def forget(self, sender: str) -> None:
        """Who comes under that name from now on is somebody else."""
        self._senders.pop(sender, None)

    async def take(self, envelope: Envelope) -> None:
        """Returns when all of it is handled. Raises FailedPrecondition when a later attempt of the sender was heard:
        this one has been replaced."""
        sender = self._senders.setdefault(envelope.sender, _Sender(asyncio.Lock()))
        async with sender.turn:
            if envelope.attempt < sender.attempt:
                raise FailedPrecondition(
                    f"attempt {envelope.attempt} of {envelope.sender or 'the job master'} has been replaced by"
                    f" attempt {sender.attempt}"
                )
            if envelope.attempt > sender.attempt:
                sender.attempt, sender.done = envelope.attempt, 0
            for number, data in enumerate(envelope.messages, start=envelope.first):
                if number > sender.done:
                    await self._handle(envelope.sender, msgpack.decode(data))
                    sender.done = number
