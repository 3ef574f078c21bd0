"""Checkpoints through the leader: what many callers put at once goes into one transaction."""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
import structlog
from msgspec import Struct

from tiflow.clock import Clock
from tiflow.errors import InvalidArgument, NotFound, OutcomeUnknown, ResourceExhausted, TiflowError, Unavailable
from tiflow.jobs.framework.port import MASTER
from tiflow.master.threads import Threads
from tiflow.meta.checkpoints import (
    KEYS_MAX,
    OF_GROUP,
    VALUE_BYTES_MAX,
    Checkpoint,
    Checkpoints,
    Foreign,
    Holder,
    SetBack,
    Verdict,
    Write,
)
from tiflow.meta.projector import Projector
from tiflow.meta.records import Fence, packet_of
from tiflow.meta.store import packet_max
from tiflow.meta.tables import is_outage, reason
from tiflow.sched.machine import Machine
from tiflow.sched.model import MASTER_GROUP, Group
from tiflow.sched.state import State
from tiflow.sched.workers import members

BATCH_MAX = 500
BATCH_BYTES = 8 << 20
QUEUE_BYTES_MAX = 64 << 20  #: of values that wait
HELD_MAX = 100_000  #: fences that this leader knows to have raised
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 1.0
ASKED_AT_ONCE = 2  #: threads that a database which hangs may hold, beside that of the writer
WAIT_S_MAX = 60.0  #: for a caller without a deadline
PACKET_SMALL = 256 << 10  #: bytes that every server takes at once
OVER = "this master does not lead any more; ask again"
NAME = re.compile(r"[!-~]{0,255}")
KEY = re.compile(r"[!-~]{1,255}")

T = TypeVar("T")
log = structlog.get_logger()


class _Over(Unavailable):
    """This term has ended here."""


class _Waits(Struct):
    reason: str = ""  #: why the database did not do it so far
    sent: bool = False  #: it may have done it


class _Waiting(Struct):
    write: Write
    done: "asyncio.Future[None]"
    waits: _Waits


class CheckpointService:
    """Of one term. Methods wait for a database that is away until `wait_s` is over, then raise Unavailable (nothing
    was written) or OutcomeUnknown.

    Nothing is served before the projector has seen where the database stands (`secure`), nor, when it turns out to
    have been set back, until the fences are as high again as they must be.
    """

    def __init__(self, engine: sa.Engine, cluster_id: str, machine: Machine, clock: Clock, term: int) -> None:
        self._engine = engine
        self._store = Checkpoints(engine, cluster_id, term)
        self._machine = machine
        self._clock = clock
        self._floor: int | None = None  #: the highest revision at which the database was seen; None: not yet
        self._times_secured = 0
        self.projector: Projector | None = None  #: that of the same term
        #: by (job uid, holder): the attempt to which this term has raised the fence
        self._held: dict[tuple[int, str], int] = {}
        self._asking = Threads(ASKED_AT_ONCE)
        self._keys: dict[int, int] = {}  #: by job uid: how many keys it has, at most
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._work = asyncio.Event()
        self._over = False

    async def secure(self, revision: int) -> bool:
        """The database stands at `revision`: this leader sees it for the first time, or it was farther before. The
        replicated state knows the attempt of each living member of a framework job; of others this leader knows whom
        it has heard. False: it does not stand there (any more)."""
        self._floor = None
        fences = living_fences(self._machine.state)
        for (uid, name), attempt in self._held.items():
            if self._machine.state.job_of(uid) is not None:
                fences[uid, name] = max(attempt, fences.get((uid, name), 0))
        rows = [Fence(uid, name, attempt) for (uid, name), attempt in fences.items()]
        if not await asyncio.to_thread(self._store.raise_fences, revision, rows):
            return False
        self._held.clear()
        self._keys.clear()
        self._times_secured += 1
        self._floor = revision
        return True

    def seen(self, revision: int) -> None:
        """The database stands there, and no lower."""
        if self._floor is not None:
            self._floor = max(self._floor, revision)

    async def put(self, holder: Holder, key: str, value: bytes | None, wait_s: float) -> None:
        """Durable when it returns; `value` None: delete it. Raises FailedPrecondition: a later attempt holds it."""
        _check_key(key)
        holder = self._fenced(holder)
        if holder.attempt < 1:
            raise InvalidArgument("attempt = 0: only an attempt of the job, from 1, may write")
        size = len(value or b"")
        if size > VALUE_BYTES_MAX:
            raise InvalidArgument(f"value: has {size} bytes; {VALUE_BYTES_MAX} are the limit")
        if self._queued_bytes + size > QUEUE_BYTES_MAX:
            raise ResourceExhausted(f"{QUEUE_BYTES_MAX >> 20} MiB of checkpoints wait to be written; try again")
        self._queued_bytes += size
        try:
            await self._bounded(lambda waits: self._put(holder, key, value, waits), wait_s)
        finally:
            self._queued_bytes -= size

    async def get(self, holder: Holder, key: str, wait_s: float) -> Checkpoint | None:
        """Raises FailedPrecondition: a later attempt holds it."""
        _check_key(key)
        holder = self._fenced(holder)

        async def work(waits: _Waits) -> Checkpoint | None:
            await self._hold(holder, waits)
            return await self._patiently(lambda floor: self._store.get(holder.uid, key, floor), waits)

        return await self._bounded(work, wait_s)

    async def list(
        self, holder: Holder, prefix: str, after: str, limit: int, wait_s: float
    ) -> tuple[Checkpoint, ...]:
        """In order of their keys, without values."""
        holder = self._fenced(holder)

        async def work(waits: _Waits) -> tuple[Checkpoint, ...]:
            await self._hold(holder, waits)

            def page(floor: int) -> Sequence[Checkpoint]:
                return self._store.list(holder.uid, prefix=prefix, after=after, limit=limit or 100, floor=floor)

            return tuple(await self._patiently(page, waits))

        return await self._bounded(work, wait_s)

    async def run(self) -> None:
        """Write what is put, batch after batch. Until canceled; then who waits is told so."""
        batch: Sequence[_Waiting] = ()
        most, pause_s = BATCH_MAX, 0.0
        try:
            while True:
                await self._work.wait()
                batch = self._next_batch(most)
                if not batch:
                    self._work.clear()
                    continue
                verdicts: list[Verdict]
                try:
                    work = partial(self._store.write, [one.write for one in batch], self._seen())
                    for one in batch:
                        one.waits.sent = True
                    verdicts = await asyncio.to_thread(work)
                except Foreign as error:
                    verdicts = [error] * len(batch)
                except (sa.exc.SQLAlchemyError, Unavailable) as error:
                    self._says(error, *(one.waits for one in batch))
                    if len(batch) == 1 and (refused := await self._never(batch[0].write, error)) is not None:
                        _settle(batch[0].done, refused)
                        continue
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
                batch = ()
        finally:
            self._over = True
            for one in (*batch, *self._queue):
                _settle(one.done, OutcomeUnknown(OVER) if one.waits.sent else Unavailable(OVER))
            self._queue.clear()

    async def _put(self, holder: Holder, key: str, value: bytes | None, waits: "_Waits") -> None:
        await self._hold(holder, waits)
        if value is not None:
            await self._make_room(holder.uid, waits)
        if self._over:
            raise _Over(OVER)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(Write(holder, key, value, self._clock.now_ms()), done, waits))
        self._work.set()
        await done

    async def _make_room(self, uid: int, waits: "_Waits") -> None:
        """For one more key of a job: counted on the safe side, and exactly only when that is too many."""
        if self._keys.get(uid, KEYS_MAX) >= KEYS_MAX:
            counted = await self._patiently(lambda floor: self._store.count(uid, floor), waits)
            if counted >= KEYS_MAX:
                raise ResourceExhausted(f"the job has {counted} checkpoints; delete some, {KEYS_MAX} are the limit")
            if len(self._keys) >= HELD_MAX:
                del self._keys[next(iter(self._keys))]
            self._keys[uid] = counted
        self._keys[uid] += 1

    async def _never(self, write: Write, error: Exception) -> InvalidArgument | None:
        """Whether the server will never take it as it is set up."""
        packet = packet_of(write.value or b"")
        if packet < PACKET_SMALL or is_outage(error):
            return None
        try:
            if packet <= (limit := await asyncio.to_thread(packet_max, self._engine)):
                return None
        except sa.exc.SQLAlchemyError:
            return None
        return InvalidArgument(
            f"value: needs a packet of {packet} bytes, and the metadata database's max_allowed_packet is {limit}: "
            "raise it to 16 MiB or more"
        )

    def _next_batch(self, most: int) -> "Sequence[_Waiting]":
        batch: deque[_Waiting] = deque()
        size = 0
        while self._queue and len(batch) < most and size < BATCH_BYTES:
            one = self._queue.popleft()
            if not one.done.done():  # else its caller has given up
                batch.append(one)
                size += len(one.write.value or b"")
        return batch

    def _fenced(self, holder: Holder) -> Holder:
        """Forgotten workers leave their names to others, whose attempts begin anew: a fence is one group's."""
        if not NAME.fullmatch(holder.name):
            raise InvalidArgument("holder: has 0 to 255 printable ASCII characters without spaces")
        name, of_group, _ = holder.name.rpartition("/")
        if not holder.attempt or not of_group or holder.uid not in self._machine.state.framework:
            return holder
        group = self._machine.state.groups.get((holder.uid, name))
        if group is None:
            raise Unavailable(f"there is no worker {holder.name} of the job with uid {holder.uid}")
        return Holder(holder.uid, f"{holder.name}{OF_GROUP}{group.position}", holder.attempt)

    async def _hold(self, holder: Holder, waits: "_Waits") -> None:
        """Raise the fence, unless this term has."""
        if holder.attempt == 0 or self._held.get(_who(holder)) == holder.attempt:
            return
        if self._machine.state.job_of(holder.uid) is None:
            raise NotFound(f"there is no job with uid {holder.uid} any more")
        times = -1
        while times != self._times_secured:  # else it may have been raised before the database was set back
            times = self._times_secured
            await self._patiently(lambda floor: self._store.hold(holder, floor), waits)
        if len(self._held) >= HELD_MAX:
            del self._held[next(iter(self._held))]
        self._held[_who(holder)] = holder.attempt

    async def _patiently(self, work: Callable[[int], T], waits: "_Waits") -> T:
        """In a thread, with the floor; again and again while the database is away."""
        pause_s = BACKOFF_S_MIN
        while True:
            try:
                return await self._asking.run(partial(work, self._seen()))
            except (Foreign, _Over):
                raise
            except (sa.exc.SQLAlchemyError, Unavailable) as error:
                self._says(error, waits)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACKOFF_S_MAX)

    def _seen(self) -> int:
        if self._over:
            raise _Over(OVER)
        if self._floor is None:
            why = self.projector.last_error if self.projector is not None else None
            raise Unavailable(why or "it has not been asked yet where it stands")
        return self._floor

    def _says(self, error: Exception, *waiting: "_Waits") -> None:
        log.debug("checkpoints_wait", reason=reason(error))
        for waits in waiting:
            waits.reason = reason(error)
        if isinstance(error, SetBack) and self.projector is not None:
            self.projector.look()

    @staticmethod
    async def _bounded(work: "Callable[[_Waits], Awaitable[T]]", wait_s: float) -> T:
        waits = _Waits()
        try:
            async with asyncio.timeout(min(wait_s, WAIT_S_MAX)):
                return await work(waits)
        except TimeoutError:
            text = f"the metadata database did not answer within {min(wait_s, WAIT_S_MAX):.1f} s"
            text += f": {waits.reason}" if waits.reason else ""
            error: TiflowError = OutcomeUnknown(text) if waits.sent else Unavailable(text)
            raise error from None


def living_fences(state: State) -> dict[tuple[int, str], int]:
    """Of the living members of framework jobs: by job uid and name the attempt that alone may write. O(all their
    members)."""
    return {
        (uid, _name(state.groups[uid, member.group], member.index)): member.attempt
        for uid in state.framework
        for member in members(state, state.jobs[state.job_ids[uid]])
        if member.attempt
    }


def _name(group: Group, index: int) -> str:
    """Of a member, as `_fenced` makes it of what its agent calls it."""
    return MASTER if group.name == MASTER_GROUP else f"{group.name}/{index}{OF_GROUP}{group.position}"


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
