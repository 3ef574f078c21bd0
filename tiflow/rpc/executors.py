"""A client's way to the executors: results that were too large for the log, and what tasks wrote."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from tiflow.errors import Unavailable
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.channel import OPTIONS
from tiflow.rpc.status import from_rpc_error
from tiflow.rpc.tls import Tls, open_channel

FETCH_S_MIN = 10.0
FETCH_BYTES_PER_S_MIN = 1 << 20  #: slower than this is as good as dead


class ExecutorChannels:
    """One channel per address, made when first needed. Thread-safe."""

    def __init__(self, tls: Tls | None = None) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._channels: dict[str, tuple[Any, Any]] = {}

    def fetch(self, address: str, request: pb.FetchRequest, size_bytes: int, sha256: str) -> bytes:
        """The whole of a kept result, checked. Raises NotFound if the executor does not have it, Unavailable if it
        cannot be reached or what came is damaged."""
        timeout_s = FETCH_S_MIN + size_bytes / FETCH_BYTES_PER_S_MIN
        try:
            data = b"".join(chunk.data for chunk in self._stub(address).FetchResult(request, timeout=timeout_s))
        except grpc.RpcError as error:
            raise from_rpc_error(error, write=False) from None
        if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
            raise Unavailable(f"the result from {address} is damaged: {len(data)} of {size_bytes} bytes")
        return data

    def logs(self, address: str, request: pb.LogsRequest) -> Iterator[pb.LogChunk]:
        """What a task wrote; with `follow`, until its attempt has ended. Raises NotFound if it never ran there."""
        call = self._stub(address).Logs(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error, write=False) from None
        finally:
            call.cancel()

    def close(self) -> None:
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel, _ in channels:
            channel.close()

    def _stub(self, address: str) -> Any:
        with self._lock:
            if address not in self._channels:
                opened = open_channel(address, self._tls, OPTIONS)
                self._channels[address] = (opened, rpc.ExecutorStub(opened))
            return self._channels[address][1]
