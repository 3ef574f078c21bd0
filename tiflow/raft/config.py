"""The settings of one member of the group."""

from msgspec import Struct

from tiflow.errors import InvalidArgument
from tiflow.raft.api import Member


class RaftConfig(Struct, frozen=True, kw_only=True):
    """`members` are all, this one included; a single one is a lone master."""

    name: str
    members: tuple[Member, ...]
    data_dir: str
    heartbeat_ms: int = 100
    election_timeout_ms: tuple[int, int] = (500, 1000)
    leader_fallback_ms: int = 1000
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 16 << 20
    format: int = 1  #: of the commands in the entries: the highest that we understand; peers are told
    disk_reserve_bytes: int = 0  #: below so much free space this master takes no proposals and does not want to lead
    fsync: bool = True  #: tests only

    def check(self) -> None:
        """Raises InvalidArgument naming the setting and the remedy."""
        names = [member.name for member in self.members]
        shortest, longest = self.election_timeout_ms
        if self.name not in names:
            raise InvalidArgument(f"master {self.name} is not among its own members {', '.join(names)}")
        if len(set(names)) != len(names):
            raise InvalidArgument(f"two members have one name: {', '.join(sorted(names))}")
        if self.heartbeat_ms < 1 or shortest <= 3 * self.heartbeat_ms or longest <= shortest:
            raise InvalidArgument(
                f"election-timeout {shortest}-{longest} ms must rise, and exceed three heartbeats of "
                f"{self.heartbeat_ms} ms"
            )
        if self.leader_fallback_ms <= self.heartbeat_ms:
            raise InvalidArgument(f"leader-fallback {self.leader_fallback_ms} ms must exceed a heartbeat")
