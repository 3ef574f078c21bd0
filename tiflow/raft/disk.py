"""How much room there is where the log is.

A member keeps a reserve free: below it, it takes no proposals and gives the leadership away, while votes, and what a
leader sends, still fit. Room is looked at before each write, in the thread that writes; the loop reads `space`.
"""

import errno
import os
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

#: writing failed, and nothing is wrong with the disk
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

LOOK_EVERY_S: Final = 0.5
RETRY_S: Final = 0.2  # of a write for which there was no room
_ENOUGH: Final = 1.25  # times the reserve: so that a member at its edge does not change its mind all the time


class DiskSpace(Struct, frozen=True, kw_only=True):
    """`low`: less than the reserve is free. `full`: a write waits for room, and with it every promise."""

    state: Literal["ok", "low", "full"] = "ok"
    free_bytes: int = 0
    reserve_bytes: int = 0

    @property
    def short(self) -> bool:
        return self.state != "ok"

    def refusal(self, directory: Path) -> str:
        return (
            f"data-dir {directory} has {self.free_bytes:,} bytes free, and {self.reserve_bytes:,} are needed "
            f"(raft.disk-reserve-bytes): make room; nothing has to be restarted"
        )


class DiskGuard:
    """Looks at the file system of `directory`. `look` belongs to one thread; any may read `space`."""

    def __init__(self, directory: Path, reserve_bytes: int) -> None:
        self._directory = directory
        self._reserve_bytes = reserve_bytes
        self.space = DiskSpace(reserve_bytes=reserve_bytes)
        self.look()

    def look(self, *, full: bool = False) -> None:
        """Measure again. `full`: a write has just found no room. Raises OSError."""
        stat = os.statvfs(self._directory)
        free_bytes = stat.f_bavail * stat.f_frsize
        needed_bytes = self._reserve_bytes * (_ENOUGH if self.space.short else 1)
        state: Literal["ok", "low", "full"] = "full" if full else "low" if free_bytes < needed_bytes else "ok"
        self.space = DiskSpace(state=state, free_bytes=free_bytes, reserve_bytes=self._reserve_bytes)


def is_no_space(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in NO_SPACE
