"""Channels of an event loop to other processes of the cluster, kept for the next call."""

import asyncio
from typing import Any

import grpc.aio

from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.channel import MESSAGE_BYTES_MAX
from tiflow.rpc.tls import Tls, open_aio_channel

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # in truth the time that one connection attempt may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a pod that was moved is found again (default: 30 s)
]
CHANNELS_MAX = 1_000  #: then the one that was used least recently is closed


class Channels:
    """Made when first needed, and anew when the certificates have changed."""

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._stamp = tls.stamp() if tls is not None else ()
        self._channels: dict[str, grpc.aio.Channel] = {}  #: by address; the one used last at the end
        self._old: list[grpc.aio.Channel] = []  #: calls may be under way on them

    def master(self, address: str) -> Any:
        """A stub for what clients ask. Raises InvalidArgument if a certificate cannot be read any more."""
        return rpc.TiflowStub(self._channel(address))

    def executor(self, address: str) -> Any:
        """A stub for what executors serve. Raises as `master`."""
        return rpc.ExecutorStub(self._channel(address))

    async def why(self, address: str, error: grpc.aio.AioRpcError) -> str:
        """Why a call to `address` failed, in one line."""
        details = str(error.details() or error.code().name)
        if self._tls is None:
            return details
        return await asyncio.to_thread(self._tls.explain, address, details) or details

    async def close(self) -> None:
        for channel in (*self._old, *self._channels.values()):
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._tls is not None and (stamp := self._tls.stamp()) != self._stamp:
            self._stamp = stamp
            self._old += self._channels.values()
            self._channels.clear()
        channel = self._channels.pop(address, None) or open_aio_channel(address, self._tls, OPTIONS)
        self._channels[address] = channel
        if len(self._channels) > CHANNELS_MAX:
            self._old.append(self._channels.pop(next(iter(self._channels))))
        return channel
