"""Commands become log entries: what gathered since the last entry goes into the next one (group commit), and each
caller gets its own reply."""

import asyncio
from collections import deque
from typing import Any

from msgspec import Raw, msgpack

from tiflow.clock import Clock
from tiflow.errors import NotLeader, ResourceExhausted, TiflowError
from tiflow.raft.node import RaftNode
from tiflow.sched.commands import AnyCommand
from tiflow.sched.machine import Machine, check_format
from tiflow.sched.model import ENTRY_BYTES_MAX, Millis

ENTRIES_IN_FLIGHT_MAX = 4  #: entries proposed and not yet applied; more would only grow the queue in the log
COMMANDS_PER_ENTRY_MAX = 1_000
QUEUE_MAX = 20_000  #: commands that wait for their entry
WALL_STEP_MAX_MS = 60_000  #: how far a new term may move log time forward to meet the wall clock
_ENTRY_ROOM = ENTRY_BYTES_MAX - (64 << 10)  #: bytes of commands in one entry; the rest is the entry's own frame

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
        self._queue: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
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
        """Return the reply's value once the command is applied.

        Raises:
            Rejected: by the state machine, or since not all masters understand it yet; nothing changed.
            NotLeader: nothing was proposed.
            OutcomeUnknown: leadership was lost before the outcome was known.
            ResourceExhausted: QUEUE_MAX commands wait, or the command alone exceeds an entry.
        """
        if not self._raft.is_leader or self._time is None:
            leader = self._raft.leader
            raise NotLeader(leader.address if leader else None)
        check_format(self._machine.state, command)
        if len(self._queue) >= QUEUE_MAX:
            raise ResourceExhausted(f"{QUEUE_MAX} commands wait to be logged; try again in a moment")
        data = _encode(command)
        if len(data) > _ENTRY_ROOM:
            raise ResourceExhausted(f"the command has {len(data)} bytes; a log entry holds {_ENTRY_ROOM}")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((data, future))
        if self._in_flight < ENTRIES_IN_FLIGHT_MAX:
            self._start_entry()
        return await future

    def _start_entry(self) -> None:
        self._in_flight += 1
        task = asyncio.create_task(self._propose_entry())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> tuple[list[Raw], list[asyncio.Future[Any]]]:
        commands: list[Raw] = []
        futures: list[asyncio.Future[Any]] = []
        size = 0
        while self._queue and len(commands) < COMMANDS_PER_ENTRY_MAX:
            data, future = self._queue[0]
            if size + len(data) > _ENTRY_ROOM:
                break
            self._queue.popleft()
            size += len(data)
            commands.append(Raw(data))
            futures.append(future)
        return commands, futures

    async def _propose_entry(self) -> None:
        # a started entry task runs after the callers of this loop turn have queued theirs: that is the group
        commands, futures = self._next_batch()
        try:
            if commands:
                assert self._time is not None
                entry = _encode((self.now_ms(), self._clock.now_ms(), commands))
                replies = await self._raft.propose(entry)
                for future, reply in zip(futures, replies, strict=True):
                    if future.done():
                        continue
                    if reply.error is not None:
                        future.set_exception(reply.error)
                    else:
                        future.set_result(reply.value)
        except TiflowError as error:
            for future in futures:
                if not future.done():
                    future.set_exception(type(error)(*error.args) if not isinstance(error, NotLeader) else error)
        finally:
            for future in futures:
                if not future.done():
                    future.cancel()
            self._in_flight -= 1
            if self._queue and self._in_flight < ENTRIES_IN_FLIGHT_MAX:
                self._start_entry()
