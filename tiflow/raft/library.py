"""The library itself: which pysyncobj this is, and what everyone here says of it."""

import hashlib
import zlib
from pathlib import Path
from typing import Final

import pysyncobj.syncobj
from msgspec import Struct
from pysyncobj.node import Node
from pysyncobj.version import VERSION

AUDITED_VERSION: Final = "0.3.17"
AUDITED_SHA256: Final = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"


def check_library(version: str, source: Path) -> None:
    """Raises ImportError unless this is the pysyncobj whose private methods were audited."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if version != AUDITED_VERSION or digest != AUDITED_SHA256:
        raise ImportError(
            f"tiflow needs pysyncobj {AUDITED_VERSION} as published (sha256 of syncobj.py {AUDITED_SHA256[:12]}…), "
            f"because it overrides private methods; found {version} ({digest[:12]}…) in {source}"
        )


check_library(VERSION, Path(pysyncobj.syncobj.__file__))

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

APPEND_BYTES_MAX: Final = 1 << 20  # in one message, unless one entry is larger
DISK_SILENCE_S: Final = 1.0  # a leader whose disk hangs longer resigns


class Fatal(Exception):
    """This node must stop: it can not keep its promises any more."""


class Timing(Struct, frozen=True, kw_only=True):
    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.0
    leader_fallback_s: float = 1.0


class Limits(Struct, frozen=True, kw_only=True):
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 16 << 20
    kept_entries: int = 1000  #: before a snapshot, for followers that lag a little
    kept_bytes: int = 4 << 20
    append_bytes: int = APPEND_BYTES_MAX


class Peer(Node):  # type: ignore[misc]
    """A member as pysyncobj wants it; the library's own hash and comparison cost a property call each."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._hash = zlib.crc32(name.encode())  # not hash(): sets must have one order, for simulations to repeat

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Peer) and self._id == other._id)


def now_s() -> float:
    """Seconds by the monotonic clock of pysyncobj."""
    # through the module, whose clock the simulator replaces
    return float(pysyncobj.syncobj.monotonicTime())
