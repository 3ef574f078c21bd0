"""An event loop whose time jumps, for tests."""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class JumpingLoop(asyncio.SelectorEventLoop):
    """When there is nothing to do before the next timer, it is the time of that timer."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._threads = 0  #: calls that are under way in threads
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, timeout_s: float | None) -> float | None:
        """How long to wait in real time, instead of `timeout_s`."""
        if self._threads:
            return None
        if timeout_s is None:
            raise RuntimeError("everything waits, and nothing will happen any more")
        self._now_s += timeout_s
        return 0

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]
        self._threads += 1
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)

        def done(_: object) -> None:
            self._threads -= 1

        future.add_done_callback(done)
        return future

    async def shutdown_default_executor(self) -> None:
        self._threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        return super().select(self._loop.jump(timeout))
