"""Checkpoints through the leader: what many callers put at once goes into one transaction."""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa
import structlog
from msgspec import Struct

from tiflow.clock import Clock
from tiflow.errors import InvalidArgument, NotFound, OutcomeUnknown, ResourceExhausted, TiflowError, Unavailable
from tiflow.meta.checkpoints import KEYS_MAX, VALUE_BYTES_MAX, Checkpoint, Checkpoints, Holder, Verdict, Write
from tiflow.meta.tables import reason
from tiflow.sched.machine import Machine

BATCH_MAX = 500
BATCH_BYTES = 8 << 20
QUEUE_BYTES_MAX = 64 << 20  #: of values that wait
HELD_MAX = 100_000  #: fences that this leader knows to have raised
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 1.0
WAIT_S_MAX = 60.0  #: for a caller without a deadline
NAME = re.compile(r"[!-~]{0,255}")
KEY = re.compile(r"[!-~]{1,255}")

T = TypeVar("T")
log = structlog.get_logger()


class _Waiting(Struct):
    write: Write
    done: "asyncio.Future[None]"


class CheckpointService:
    """Of one term. Methods wait for a database that is away until `wait_s` is over, then raise Unavailable (nothing
    was written) or OutcomeUnknown."""

    def __init__(self, engine: sa.Engine, machine: Machine, clock: Clock, term: int) -> None:
        self._store = Checkpoints(engine, term)
        self._machine = machine
        self._clock = clock
        #: by (job uid, holder): the attempt to which this term has raised the fence, and about how many keys it has
        self._held: dict[tuple[int, str], tuple[int, int]] = {}
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._work = asyncio.Event()

    async def put(self, holder: Holder, key: str, value: bytes | None, wait_s: float) -> None:
        """Durable when it returns; `value` None: delete it. Raises FailedPrecondition: a later attempt holds it."""
        _check_key(key)
        if holder.attempt < 1:
            raise InvalidArgument("attempt = 0: only an attempt of the job, from 1, may write")
        size = len(value or b"")
        if size > VALUE_BYTES_MAX:
            raise InvalidArgument(f"value: has {size} bytes; {VALUE_BYTES_MAX} are the limit")
        if self._queued_bytes + size > QUEUE_BYTES_MAX:
            raise ResourceExhausted(f"{QUEUE_BYTES_MAX >> 20} MiB of checkpoints wait to be written; try again")
        await self._bounded(self._put(holder, key, value), wait_s, write=True)

    async def get(self, holder: Holder, key: str, wait_s: float) -> Checkpoint | None:
        """Raises FailedPrecondition: a later attempt holds it."""
        _check_key(key)

        async def work() -> Checkpoint | None:
            await self._hold(holder)
            return await self._patiently(lambda: self._store.get(holder.uid, key))

        return await self._bounded(work(), wait_s)

    async def list(
        self, holder: Holder, prefix: str, after: str, limit: int, wait_s: float
    ) -> tuple[Checkpoint, ...]:
        """In order of their keys, without values."""

        async def work() -> tuple[Checkpoint, ...]:
            await self._hold(holder)
            return tuple(
                await self._patiently(
                    lambda: self._store.list(holder.uid, prefix=prefix, after=after, limit=limit or 100)
                )
            )

        return await self._bounded(work(), wait_s)

    async def run(self) -> None:
        """Write what is put, batch after batch. Until canceled; what waits then is unknown to its callers."""
        most, pause_s = BATCH_MAX, 0.0
        try:
            while True:
                await self._work.wait()
                batch = self._next_batch(most)
                if not batch:
                    self._work.clear()
                    continue
                try:
                    verdicts = await asyncio.to_thread(self._store.write, [one.write for one in batch])
                except sa.exc.SQLAlchemyError as error:
                    log.debug("checkpoints_wait", reason=reason(error))
                    # it may be one of them that the server does not take: in smaller batches it is found
                    most, pause_s = max(1, len(batch) // 2), min(max(pause_s * 2, BACKOFF_S_MIN), BACKOFF_S_MAX)
                    if len(batch) == 1:  # it lets the others pass
                        self._queue.extend(batch)
                    else:
                        self._queue.extendleft(reversed(batch))
                    await asyncio.sleep(pause_s)
                    continue
                most, pause_s = min(BATCH_MAX, most * 2), 0.0
                for one, verdict in zip(batch, verdicts, strict=True):
                    _settle(one.done, verdict)
        finally:
            while self._queue:
                self._queue.popleft().done.cancel()

    async def _put(self, holder: Holder, key: str, value: bytes | None) -> None:
        await self._hold(holder)
        attempt, keys = self._held.get(_who(holder), (0, 0))
        if keys >= KEYS_MAX and value is not None:
            keys = await self._patiently(lambda: self._store.count(holder.uid))
            if keys >= KEYS_MAX:
                raise ResourceExhausted(f"the job has {keys} checkpoints; delete some, {KEYS_MAX} are the limit")
        self._held[_who(holder)] = (attempt or holder.attempt, keys + 1)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        size = len(value or b"")
        self._queued_bytes += size
        self._queue.append(_Waiting(Write(holder, key, value, self._clock.now_ms()), done))
        self._work.set()
        try:
            await done
        finally:
            self._queued_bytes -= size

    def _next_batch(self, most: int) -> "Sequence[_Waiting]":
        batch: deque[_Waiting] = deque()
        size = 0
        while self._queue and len(batch) < most and size < BATCH_BYTES:
            one = self._queue.popleft()
            if not one.done.done():  # else its caller has given up
                batch.append(one)
                size += len(one.write.value or b"")
        return batch

    async def _hold(self, holder: Holder) -> None:
        """Raise the fence, unless this term has."""
        if not NAME.fullmatch(holder.name):
            raise InvalidArgument("holder: has 0 to 255 printable ASCII characters without spaces")
        if holder.attempt == 0 or self._held.get(_who(holder), (0, 0))[0] == holder.attempt:
            return
        if self._machine.state.job_of(holder.uid) is None:
            raise NotFound(f"there is no job with uid {holder.uid} any more")
        await self._patiently(lambda: self._store.hold(holder))
        keys = await self._patiently(lambda: self._store.count(holder.uid))
        if len(self._held) >= HELD_MAX:
            del self._held[next(iter(self._held))]
        self._held[_who(holder)] = (holder.attempt, keys)

    async def _patiently(self, work: Callable[[], T]) -> T:
        """In a thread; again and again while the database is away."""
        pause_s = BACKOFF_S_MIN
        while True:
            try:
                return await asyncio.to_thread(work)
            except (sa.exc.SQLAlchemyError, Unavailable) as error:
                log.debug("checkpoints_wait", reason=reason(error))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACKOFF_S_MAX)

    @staticmethod
    async def _bounded(work: Awaitable[T], wait_s: float, *, write: bool = False) -> T:
        try:
            async with asyncio.timeout(min(wait_s, WAIT_S_MAX)):
                return await work
        except TimeoutError:
            text = f"the metadata database did not answer within {min(wait_s, WAIT_S_MAX):.1f} s"
            error: TiflowError = OutcomeUnknown(text) if write else Unavailable(text)
            raise error from None


def _who(holder: Holder) -> tuple[int, str]:
    return holder.uid, holder.name


def _settle(done: "asyncio.Future[None]", verdict: Verdict) -> None:
    if done.done():
        return
    if verdict is None:
        done.set_result(None)
    else:
        done.set_exception(verdict)


def _check_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise InvalidArgument(f"key {key[:40]!r}: has 1 to 255 printable ASCII characters without spaces")
