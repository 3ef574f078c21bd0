"""Commands become log entries: what gathered since the last entry goes into the next one (group commit), and each
caller gets its own reply."""

import asyncio
from collections import deque
from typing import Any, TypeAlias

from msgspec import Raw, msgpack

from tiflow.clock import Clock
from tiflow.errors import NotLeader, ResourceExhausted, TiflowError, Unavailable
from tiflow.raft.node import RaftNode
from tiflow.sched.commands import AnyCommand, encode_command
from tiflow.sched.machine import Machine, check_format
from tiflow.sched.model import ENTRY_BYTES_MAX, Millis

ENTRIES_IN_FLIGHT_MAX = 4  #: entries proposed and not yet applied; more would only grow the queue in the log
COMMANDS_PER_ENTRY_MAX = 1_000
QUEUE_MAX = 20_000  #: commands that wait for their entry; then no more of clients are taken
QUEUE_BYTES_MAX = 256 << 20  #: likewise
FULL_PAUSE_S = 0.05  #: before consensus that has enough to do is asked again
WALL_STEP_MAX_MS = 60_000  #: how far a new term may move log time forward to meet the wall clock
_ENTRY_ROOM = ENTRY_BYTES_MAX - (64 << 10)  #: bytes of commands in one entry; the rest is the entry's own frame

_Waiting: TypeAlias = tuple[bytes, asyncio.Future[Any]]  #: a command, encoded, and who is told what came of it

_encode = msgpack.Encoder().encode


class LogTime:
    """The log's time: it advances by the leader's monotonic clock, so a wall clock that steps changes nothing.

    A new term adds what the wall clock is ahead, WALL_STEP_MAX_MS at most: a clock that is an hour ahead on one
    master poisons nothing.
    """

    def __init__(self, state_now_ms: Millis, wall_ms: Millis, monotonic_s: float) -> None:
        ahead = wall_ms - state_now_ms if state_now_ms else 0
        self._base_ms = (state_now_ms or wall_ms) + min(max(ahead, 0), WALL_STEP_MAX_MS)
        self._since_s = monotonic_s

    def now_ms(self, monotonic_s: float) -> Millis:
        return self._base_ms + int((monotonic_s - self._since_s) * 1_000)


class Proposer:
    """Proposes on behalf of everyone in this process. Lives as long as the process; its clock starts anew at each
    term (`begin_term`)."""

    def __init__(self, raft: RaftNode, machine: Machine, clock: Clock) -> None:
        self._raft = raft
        self._machine = machine
        self._clock = clock
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._full = False  #: consensus takes nothing for a moment
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._time: LogTime | None = None

    def begin_term(self) -> None:
        loop = asyncio.get_running_loop()
        self._time = LogTime(self._machine.state.now_ms, self._clock.now_ms(), loop.time())

    def now_ms(self) -> Millis:
        """Log time as the leader counts it. 0 before the first term of this process."""
        return self._time.now_ms(asyncio.get_running_loop().time()) if self._time else 0

    def wall_ms(self) -> Millis:
        """This master's wall clock, which its entries carry."""
        return self._clock.now_ms()

    async def propose(self, command: AnyCommand) -> Any:
        """Return the reply's value once the command of a client is applied.

        Raises:
            Rejected: by the state machine, or since not all masters understand it yet; nothing changed.
            ResourceExhausted: the command alone exceeds an entry.
            NotLeader: nothing was proposed.
            Unavailable: QUEUE_MAX commands wait, or QUEUE_BYTES_MAX of them.
            OutcomeUnknown: leadership was lost before the outcome was known.
        """
        if len(self._queue) >= QUEUE_MAX or self._queue_bytes >= QUEUE_BYTES_MAX:
            raise Unavailable(
                f"{len(self._queue)} commands ({self._queue_bytes >> 20} MiB) wait to be logged; try again"
            )
        return await self.propose_own(command)

    async def propose_own(self, command: AnyCommand) -> Any:
        """As `propose`, of what the leader itself, or an executor, has to say. That is bounded by how much of it is
        out at once, and waits behind whatever clients want: to refuse it would end sessions, or the term."""
        if not self._raft.is_leader or self._time is None:
            leader = self._raft.leader
            raise NotLeader(leader.address if leader else None)
        check_format(self._machine.state, command)
        data = encode_command(command, self._machine.state.format)
        if len(data) > _ENTRY_ROOM:
            raise ResourceExhausted(f"the command has {len(data)} bytes; a log entry holds {_ENTRY_ROOM}")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((data, future))
        self._queue_bytes += len(data)
        self._start_entry()
        return await future

    def _start_entry(self) -> None:
        if self._full or not self._queue or self._in_flight >= ENTRIES_IN_FLIGHT_MAX:
            return
        self._in_flight += 1
        task = asyncio.create_task(self._propose_entry())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < COMMANDS_PER_ENTRY_MAX:
            data = self._queue[0][0]
            if size + len(data) > _ENTRY_ROOM:
                break
            batch.append(self._queue.popleft())
            size += len(data)
        self._queue_bytes -= size
        return batch

    async def _propose_entry(self) -> None:
        # a started entry task runs after the callers of this loop turn have queued theirs: that is the group
        batch = self._next_batch()
        try:
            if batch:
                assert self._time is not None
                commands = [Raw(data) for data, _ in batch]
                entry = _encode((self.now_ms(), self._clock.now_ms(), commands))
                replies = await self._raft.propose(entry)
                for (_, future), reply in zip(batch, replies, strict=True):
                    if future.done():
                        continue
                    if reply.error is not None:
                        future.set_exception(reply.error)
                    else:
                        future.set_result(reply.value)
        except ResourceExhausted:
            self._put_back(batch)
            batch = []
        except TiflowError as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(type(error)(*error.args) if not isinstance(error, NotLeader) else error)
        finally:
            for _, future in batch:
                if not future.done():
                    future.cancel()
            self._in_flight -= 1
            self._start_entry()

    def _put_back(self, batch: list[_Waiting]) -> None:
        """Consensus has enough to do, and nothing of this happened. It comes first again, so that what an executor
        says stays in order."""
        self._queue.extendleft(reversed(batch))
        self._queue_bytes += sum(len(data) for data, _ in batch)
        if not self._full:
            self._full = True
            asyncio.get_running_loop().call_later(FULL_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._full = False
        self._start_entry()
