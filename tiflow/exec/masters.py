"""An executor's questions to the masters, for its members: one attempt each. Who asks tries again."""

from collections.abc import Sequence
from typing import Any

import grpc

from tiflow.errors import NotLeader, OutcomeUnknown, TiflowError, Unavailable
from tiflow.rpc.channels import Channels
from tiflow.rpc.status import from_rpc_error

TIMEOUT_S = 10.0


class Masters:
    """`channels` are closed by whoever made them."""

    def __init__(self, channels: Channels, addresses: Sequence[str]) -> None:
        self._channels = channels
        self._addresses = list(addresses)
        self._next = 0
        self._leader = ""

    def follow(self, leader: str, addresses: Sequence[str]) -> None:
        """There is a session with that leader, which named all masters."""
        self._leader = leader
        self._addresses = list(dict.fromkeys([*self._addresses, *addresses]))

    async def call(self, method: str, request: Any, *, write: bool, timeout_s: float = TIMEOUT_S) -> Any:
        """Raises what a master refuses; Unavailable, or OutcomeUnknown of a write, when none answered. The next call
        then asks another one."""
        address = self._leader or self._addresses[self._next % len(self._addresses)]
        try:
            return await getattr(self._channels.master(address), method)(request, timeout=timeout_s)
        except grpc.RpcError as failure:
            error = from_rpc_error(failure, write=write)
        if isinstance(error, NotLeader):
            self._leader = error.leader or ""
            self._next += 1
            raise Unavailable(str(error))
        if isinstance(error, Unavailable | OutcomeUnknown):
            self._leader = ""
            self._next += 1
        raise _named(error, address)


def _named(error: TiflowError, address: str) -> TiflowError:
    if isinstance(error, Unavailable | OutcomeUnknown):
        return type(error)(f"master {address}: {error}")
    return error
