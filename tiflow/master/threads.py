"""Threads that wait for a database, of which one that hangs may hold only so many."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """A caller that gives up does not free its thread; only so is the bound one. The event loop has few threads (5 or
    more), and the projector and the writer of checkpoints need theirs."""

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in a thread, when there is room."""
        await self._room.acquire()
        try:
            doing = asyncio.get_running_loop().run_in_executor(None, work)
        except BaseException:
            self._room.release()
            raise
        doing.add_done_callback(self._done)
        return await asyncio.shield(doing)

    def _done(self, doing: "asyncio.Future[T]") -> None:
        self._room.release()
        if not doing.cancelled():
            doing.exception()  # its caller may be gone
