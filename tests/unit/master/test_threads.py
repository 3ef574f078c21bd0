"""A database that hangs."""

import asyncio
import threading

from tiflow.master.threads import Threads


async def test_callers_that_give_up_do_not_take_more_threads_than_there_may_be():
    threads, go, began = Threads(2), threading.Event(), []

    def hang() -> None:
        began.append(threading.current_thread())
        go.wait(30)
        raise OSError("nobody hears of it")

    callers = [asyncio.create_task(threads.run(hang)) for _ in range(5)]
    try:
        async with asyncio.timeout(30):
            while len(began) < 2:  # noqa: ASYNC110 - a thread says so
                await asyncio.sleep(0.001)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        late = asyncio.create_task(threads.run(lambda: 7))
        await asyncio.sleep(0.01)
        assert (len(began), late.done()) == (2, False)
    finally:
        go.set()
    assert await late == 7
