"""A virtual clock, and an event loop for each member that runs by it."""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class Clock:
    """The monotonic clock of whoever runs now: the world's, shifted by what that member's has missed or jumped."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.shift = 0.0

    def __call__(self) -> float:
        return self.now + self.shift


class Handle:
    __slots__ = ("arguments", "callback", "canceled")

    def __init__(self, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.callback = callback
        self.arguments = arguments
        self.canceled = False

    def cancel(self) -> None:
        self.canceled = True


class Loop:
    """What RaftNode and asyncio's futures ask of an event loop. What a callback raises ends the schedule."""

    def __init__(self, clock: Clock) -> None:
        self.shift = 0.0
        self._clock = clock
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = itertools.count()

    # --- for asyncio

    def time(self) -> float:
        return self._clock.now + self.shift

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> Handle:
        handle = Handle(callback, arguments)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> Handle:
        handle = Handle(callback, arguments)
        heapq.heappush(self._timers, (self.time() + delay, next(self._order), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=self)  # type: ignore[arg-type]
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it dies with its member
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Only told of futures whose waiter died with its member."""

    # --- for the world

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` at once up to where it waits, and on when that has come. What it raises ends the schedule."""

        def resume(_: object = None) -> None:
            try:
                future = work.send(None)
            except StopIteration:
                return
            future._asyncio_future_blocking = False  # as a task says that it has seen it
            future.add_done_callback(resume)

        self.enter()
        resume()

    def next_due(self) -> float:
        """When there is something to do, on the world's clock."""
        if self._ready:
            return self._clock.now
        while self._timers and self._timers[0][2].canceled:
            heapq.heappop(self._timers)
        return self._timers[0][0] - self.shift if self._timers else float("inf")

    def enter(self) -> None:
        """From now on this member runs."""
        self._clock.shift = self.shift
        asyncio._set_running_loop(self)  # type: ignore[arg-type]

    def turn(self) -> None:
        """Run once what is due, not what that makes due."""
        now = self.time()
        while self._timers and self._timers[0][0] <= now:
            self._ready.append(heapq.heappop(self._timers)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.canceled:
                handle.callback(*handle.arguments)
