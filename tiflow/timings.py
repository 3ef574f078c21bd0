"""The durations of a master: what follows from them, and what they must keep to."""

from typing import TYPE_CHECKING

from tiflow.errors import InvalidArgument
from tiflow.toml import Where
from tiflow.values import parse_duration_ms, show_duration

if TYPE_CHECKING:
    from tiflow.config import MasterConfig, RaftSettings

VOTE_RETRY_MS = 300


def timings(config: "MasterConfig") -> list[tuple[str, int, str]]:
    """(name, milliseconds, meaning) of all that the settings decide, for `tiflow master --print-timings`."""
    raft = config.raft
    ttl_ms = config.keepalive_ttl_ms
    return [
        ("raft.heartbeat", raft.heartbeat_ms, "the leader speaks to its followers"),
        (
            "raft.election-timeout-min",
            raft.election_timeout_min_ms,
            "a follower without news campaigns, soonest",
        ),
        ("raft.election-timeout-max", raft.election_timeout_max_ms, "... and latest"),
        (
            "worst election",
            worst_election_ms(raft),
            "election-timeout-max and a round of votes that is tried again",
        ),
        ("raft.leader-fallback", raft.leader_fallback_ms, "a leader that hears no majority steps down"),
        ("keepalive-interval", config.keepalive_interval_ms, "an executor speaks to the leader"),
        ("keepalive-interval, stretched", ttl_ms // 4, "... at most, with many executors"),
        ("keepalive-ttl", ttl_ms, "an executor without an answer kills its tasks"),
        (
            "lease as the leader sees it",
            ttl_ms * 11 // 10 + 500,
            "TTL + 10 % + 500 ms: their tasks are placed anew",
        ),
    ]


def worst_election_ms(raft: "RaftSettings") -> int:
    """How long the cluster may be without a leader after one has died."""
    return raft.election_timeout_max_ms + VOTE_RETRY_MS


def check_timings(config: "MasterConfig", where: Where) -> None:
    """Each duration by itself, then the relations without which the promises of the design do not hold."""
    raft = config.raft
    limits = {
        "raft.heartbeat": (raft.heartbeat, 10, 10_000),
        "raft.election-timeout-min": (raft.election_timeout_min, 50, 60_000),
        "raft.election-timeout-max": (raft.election_timeout_max, 50, 120_000),
        "raft.leader-fallback": (raft.leader_fallback, 50, 120_000),
        "keepalive-ttl": (config.keepalive_ttl, 500, 3_600_000),
        "keepalive-interval": (config.keepalive_interval, 10, 600_000),
    }
    ms = {key: parse_duration_ms(text, where(key), low, high) for key, (text, low, high) in limits.items()}

    def require(holds: bool, small: str, relation: str, large: str, remedy: str) -> None:
        if not holds:
            raise InvalidArgument(
                f"{where(small)} = {show_duration(ms[small])}: must be {relation} {large} = "
                f"{show_duration(ms[large])}; {remedy}"
            )

    require(
        ms["raft.heartbeat"] * 3 <= ms["raft.election-timeout-min"],
        "raft.heartbeat",
        "at most a third of",
        "raft.election-timeout-min",
        "or one lost heartbeat deposes the leader",
    )
    require(
        ms["raft.election-timeout-min"] < ms["raft.election-timeout-max"],
        "raft.election-timeout-min",
        "less than",
        "raft.election-timeout-max",
        "or masters campaign all at once",
    )
    require(
        ms["raft.leader-fallback"] >= 3 * ms["raft.heartbeat"],
        "raft.leader-fallback",
        "at least three times",
        "raft.heartbeat",
        "or one lost answer deposes the leader",
    )
    require(
        ms["keepalive-interval"] * 4 <= ms["keepalive-ttl"],
        "keepalive-interval",
        "at most a quarter of",
        "keepalive-ttl",
        "or a few lost messages end the executor's lease",
    )
    require(
        ms["keepalive-ttl"] > 2 * worst_election_ms(raft),
        "keepalive-ttl",
        f"more than {show_duration(2 * worst_election_ms(raft))}, which is twice the worst election "
        f"({VOTE_RETRY_MS}ms beyond)",
        "raft.election-timeout-max",
        "or an election restarts tasks; raise the one or lower the other",
    )
