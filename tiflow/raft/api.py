"""What the rest of tiflow sees of consensus: bytes go in, replies come out, and nothing here knows a job."""

from collections.abc import Iterator
from typing import Any, Protocol

import grpc
from msgspec import Struct

from tiflow.raft.disk import DiskSpace


class StateMachine(Protocol):
    """What is replicated. All three methods are called on the loop's thread."""

    def apply(self, entry: bytes) -> Any:
        """Apply one committed entry and return the reply for its proposer. Must not raise for a readable entry;
        what it raises stops the process."""

    def snapshot(self) -> Iterator[bytes]:
        """Freeze the state now (cheaply) and return its encoding in slices, each produced in about 2 ms."""

    def restore(self, data: bytes) -> None:
        """Replace the state by what `snapshot` encoded."""


class Member(Struct, frozen=True):
    """One configured master. `name` is its identity, `address` is `host:port` of its gRPC port."""

    name: str
    address: str


class Security(Protocol):
    """Mutual TLS between members."""

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For one connection attempt to a peer, whose certificate must name the host that is dialled."""

    def is_for(self, context: Any, host: str) -> bool:
        """Whether who calls a method of ours (`context` is the server's) showed a certificate that names `host`."""

    def explain(self, address: str, details: str) -> str:
        """Why no connection to `address` came about, if it is for a certificate, else an empty string; `details` is
        gRPC's account of it. May block for 2 s."""


class PeerStatus(Struct, frozen=True, kw_only=True):
    """A follower as its leader sees it."""

    name: str
    match_index: int
    lag: int  #: entries of the leader's log that it has not acknowledged
    connected: bool
    last_contact_ms: int | None  #: since its last answer; None: never in this term


class NodeStatus(Struct, frozen=True, kw_only=True):
    """What one master knows about itself. The cluster's table is made of these."""

    name: str
    address: str
    cluster_id: str
    role: str  #: leader, follower, candidate or forming
    term: int
    leader: str | None  #: name
    commit_index: int
    applied_index: int
    last_index: int
    first_index: int
    durable_index: int
    log_bytes: int
    snapshot_index: int
    snapshot_age_s: float | None
    learner: bool = False  #: it lost its disk, and votes again when it has caught up
    disk: DiskSpace = DiskSpace()
    peers: tuple[PeerStatus, ...] = ()  #: filled by the leader
