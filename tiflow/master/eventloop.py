"""How a master waits for its sockets: what Raft and dispatch take is, for the most part, that waiting.

Measured in docs/decisions/0023-a-faster-loop-and-a-log-with-room.md.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import uvloop

T = TypeVar("T")

#: gRPC's older polling, in which the thread that waits for a socket also takes what has come: the newer one hands it
#: to another thread first. It was the only one for Python up to grpcio 1.79
GRPC_EXPERIMENTS: Final = "-event_engine_client,-event_engine_listener"


def prepare_grpc() -> None:
    """Choose how gRPC polls in this process. To be called before grpc is imported, which reads it; what is set
    already stays."""
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does, on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
