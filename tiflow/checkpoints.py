"""Checkpoints of a job, for who runs it: what a later attempt needs to go on where an earlier one ended."""

from collections.abc import Iterator
from dataclasses import dataclass

from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channel import MasterChannel

PAGE = 1_000


@dataclass(frozen=True)
class CheckpointInfo:
    key: str
    size: int  #: bytes
    attempt: int  #: that wrote it
    updated_at_ms: int


class Checkpoints:
    """Key-value pairs of one job, durable in the metadata database. See `Client.checkpoints`.

    The first call of a later attempt shuts out all earlier ones: their calls raise FailedPrecondition. While the
    database is away calls wait, for the client's `timeout_s`; then they raise Unavailable or OutcomeUnknown, and can
    be repeated.
    """

    def __init__(self, masters: MasterChannel, holder: pb.Holder) -> None:
        self._masters = masters
        self._holder = holder

    def put(self, key: str, value: bytes) -> None:
        """Durable when it returns. 4 MiB at most; keys have 255 printable ASCII characters at most."""
        request = pb.PutCheckpointRequest(holder=self._holder, key=key, value=value)
        self._masters.call("PutCheckpoint", request, write=True)

    def get(self, key: str) -> bytes | None:
        """None: there is none."""
        reply = self._masters.call("GetCheckpoint", pb.GetCheckpointRequest(holder=self._holder, key=key))
        return bytes(reply.value) if reply.found else None

    def delete(self, key: str) -> None:
        """No error if there is none."""
        self._masters.call("DeleteCheckpoint", pb.DeleteCheckpointRequest(holder=self._holder, key=key), write=True)

    def list(self, prefix: str = "") -> Iterator[CheckpointInfo]:
        """In order of their keys."""
        after = ""
        while True:
            request = pb.ListCheckpointsRequest(holder=self._holder, prefix=prefix, after=after, limit=PAGE)
            page = self._masters.call("ListCheckpoints", request).checkpoints
            for one in page:
                yield CheckpointInfo(one.key, one.size, one.attempt, one.updated_at_ms)
            if len(page) < PAGE:
                return
            after = page[-1].key
