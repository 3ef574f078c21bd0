import asyncio
import signal
import socket

from starlette.applications import Starlette

from tiflow.web.app import WebServer


async def test_serving_leaves_the_signals_to_the_process():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    server = WebServer(Starlette())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110  uvicorn has a flag, and no event
                await asyncio.sleep(0)

        during = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        server.should_exit = True
        await serving

    assert during == before
