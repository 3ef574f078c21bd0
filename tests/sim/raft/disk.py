"""Disks in memory that do what real ones do: lose what was not synced, tear a write, fail, fill up, rot.

`SimPath` and `SimOs` stand for `pathlib.Path` and `os` in the modules of tiflow.raft that touch files, so that every
call of theirs, in its order, is what is tested. A directory keeps its changes in order, as a journaling file system
does: after a power cut it is as it was at some moment since it was last synced.
"""

import errno
import fnmatch
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from random import Random
from typing import Any, ClassVar, NamedTuple

SECTOR_BYTES = 512
PLENTY = 1 << 40


class Died(BaseException):
    """The process ended in the middle of a call."""


class Inode:
    __slots__ = ("data", "stable")

    def __init__(self) -> None:
        self.data = bytearray()
        self.stable = b""  # what a power cut leaves at least


class Disk:
    """The files of one member. `rng` decides what a power cut leaves."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.names: dict[str, Inode] = {}
        self.broken = False  # writes and syncs fail with EIO
        self.free: int | None = None  # bytes until ENOSPC; None: plenty
        self.calls_left: int | None = None  # until the process dies
        self._synced_names: dict[str, Inode] = {}
        self._since: list[dict[str, Inode]] = []

    # --- what happens to disks

    def power_cut(self) -> None:
        """Keep what was synced, and of the rest what chance keeps."""
        self.names = dict(self.rng.choice([self._synced_names, *self._since]))
        self._synced_names, self._since = dict(self.names), []
        for inode in self.names.values():
            if inode.data != inode.stable:
                inode.stable = self._after_power_cut(inode)
                inode.data = bytearray(inode.stable)

    def _after_power_cut(self, inode: Inode) -> bytes:
        data, begin = bytes(inode.data), len(inode.stable)
        if not data.startswith(inode.stable):
            room = inode.stable.ljust(len(data), b"\0")
            begin = next((at for at, (was, now) in enumerate(zip(room, data, strict=False)) if was != now), len(data))
            if any(room[begin:]):  # it was cut
                return self.rng.choice([inode.stable, data])
            return self._half_written(data, begin)
        dice = self.rng.random()
        if dice < 0.4:
            return inode.stable
        if dice < 0.5:
            return data
        if dice < 0.8:
            return data[: self.rng.randint(begin, len(data))]
        # its new length is known, but not all sectors came
        edges = [begin, *range((begin // SECTOR_BYTES + 1) * SECTOR_BYTES, len(data), SECTOR_BYTES), len(data)]
        start, stop = self.rng.choice(list(itertools.pairwise(edges)))
        return data[:start] + bytes(stop - start) + data[stop:]

    def _half_written(self, data: bytes, begin: int) -> bytes:
        """A file that had room for what was written from `begin` on: some of its sectors came."""
        edges = [begin, *range((begin // SECTOR_BYTES + 1) * SECTOR_BYTES, len(data), SECTOR_BYTES), len(data)]
        pieces = list(itertools.pairwise(edges))
        if self.rng.random() < 0.6:
            came = edges[self.rng.randint(0, len(pieces))]  # those before it
            return data[:came].ljust(len(data), b"\0")
        return data[:begin] + b"".join(
            data[start:stop] if self.rng.random() < 0.5 else bytes(stop - start) for start, stop in pieces
        )

    def flip_bit(self, prefix: str) -> str | None:
        """Rot in a file whose name begins so. The name, or None if there is nothing to damage."""
        names = sorted(name for name, inode in self.names.items() if name.startswith(prefix) and inode.stable)
        if not names:
            return None
        name = self.rng.choice(names)
        inode = self.names[name]
        stable = bytearray(inode.stable)
        place, bit = self.rng.randrange(len(stable)), 1 << self.rng.randrange(8)
        stable[place] ^= bit
        inode.stable = bytes(stable)
        if place < len(inode.data):
            inode.data[place] ^= bit
        return name

    def wipe(self) -> None:
        self.names, self._synced_names, self._since = {}, {}, []
        self.repair()

    def repair(self) -> None:
        """Writes work again."""
        self.broken, self.free, self.calls_left = False, None, None

    # --- what files do

    def entered(self) -> None:
        """A call that changes something begins."""
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Died

    def write(self, inode: Inode, data: bytes | memoryview, place: int) -> int:
        self.entered()
        if self.broken:
            raise OSError(errno.EIO, "I/O error")
        there = len(inode.data) - place  # room that is the file's already
        assert there >= 0
        count = len(data)
        if self.free is not None:
            if self.free <= 0 and not there:
                raise OSError(errno.ENOSPC, "no space left on device")
            count = min(count, there + self.free)
            self.free -= max(0, count - there)
        inode.data[place : place + count] = data[:count]
        return count

    def allocate(self, inode: Inode, size: int) -> None:
        self.entered()
        more = size - len(inode.data)
        if self.free is not None:
            if self.free < more:
                raise OSError(errno.ENOSPC, "no space left on device")
            self.free -= more
        inode.data += bytes(more)

    def sync(self, inode: Inode | None) -> None:
        """Sync a file, or with None the directory."""
        self.entered()
        if self.broken:
            if inode is not None:
                inode.data = bytearray(inode.stable)  # the kernel drops the pages that it could not write
            raise OSError(errno.EIO, "I/O error")
        if inode is not None:
            inode.stable = bytes(inode.data)
        else:
            self._synced_names, self._since = dict(self.names), []

    def change(self, name: str, inode: Inode | None, was: str | None = None) -> None:
        """Give a name to a file, or with None remove it. `was` is the name that it loses."""
        self.entered()
        if was is not None:
            del self.names[was]
        if inode is None:
            del self.names[name]
        else:
            self.names[name] = inode
        self._since.append(dict(self.names))


class SimFile(io.RawIOBase):
    """What `SimPath.open` returns."""

    def __init__(self, disk: Disk, inode: Inode) -> None:
        self.disk = disk
        self.inode = inode
        self._place = 0

    def write(self, data: Any) -> int:
        done = 0
        while done < len(data):
            done += self.disk.write(self.inode, data[done:], len(self.inode.data))
        return done

    def read(self, size: int = -1) -> bytes:
        end = len(self.inode.data) if size < 0 else self._place + size
        data = bytes(self.inode.data[self._place : end])
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        assert whence == 0
        self._place = place
        return place

    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        self.disk.entered()
        del self.inode.data[size:]
        return size

    def fileno(self) -> int:
        return SimOs.number_of(self.disk, self.inode)


class SimPath(PurePosixPath):
    """`NAME/FILE`: a file on the disk of member NAME. There are no directories below."""

    disks: ClassVar[dict[str, Disk]] = {}

    @property
    def disk(self) -> Disk:
        return self.disks[self.parts[0]]

    def _inode(self) -> Inode:
        try:
            return self.disk.names[self.name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self)) from None

    def mkdir(self, **_: Any) -> None: ...

    def exists(self) -> bool:
        return self.name in self.disk.names

    def iterdir(self) -> Iterator["SimPath"]:
        return iter([self / name for name in self.disk.names])

    def glob(self, pattern: str) -> Iterator["SimPath"]:
        return (path for path in self.iterdir() if fnmatch.fnmatch(path.name, pattern))

    def stat(self) -> os.stat_result:
        return SimOs.stat_of(self._inode())

    def read_bytes(self) -> bytes:
        return bytes(self._inode().data)

    def open(self, mode: str) -> SimFile:
        if mode == "wb":
            self.disk.change(self.name, Inode())
        return SimFile(self.disk, self._inode())

    def unlink(self, missing_ok: bool = False) -> None:
        if self.exists() or not missing_ok:
            self._inode()
            self.disk.change(self.name, None)

    def room(self) -> int:
        """Bytes until the disk is full."""
        return PLENTY if self.disk.free is None else self.disk.free

    def rename(self, target: "SimPath") -> None:
        self.disk.change(target.name, self._inode(), self.name)


class _Opened(NamedTuple):
    disk: Disk
    inode: Inode | None


class SimOs:
    """The part of `os` that the journal and the snapshots use."""

    O_RDONLY, O_WRONLY, O_RDWR, O_APPEND = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_APPEND
    O_CREAT, O_CLOEXEC, O_DIRECTORY = os.O_CREAT, os.O_CLOEXEC, os.O_DIRECTORY

    _opened: ClassVar[dict[int, _Opened]] = {}
    _numbers: ClassVar[Iterator[int]] = itertools.count(1 << 20)

    @classmethod
    def forget(cls) -> None:
        """The world has ended, and with it all that was open."""
        cls._opened.clear()

    @classmethod
    def number_of(cls, disk: Disk, inode: Inode | None) -> int:
        number = next(cls._numbers)
        cls._opened[number] = _Opened(disk, inode)
        return number

    @staticmethod
    def stat_of(inode: Inode) -> os.stat_result:
        return os.stat_result((0, 0, 0, 0, 0, 0, len(inode.data), 0, 0, 0))

    def open(self, path: SimPath, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECTORY:
            return self.number_of(path.disk, None)
        if flags & os.O_CREAT and not path.exists():
            path.disk.change(path.name, Inode())
        return self.number_of(path.disk, path._inode())

    def close(self, fd: int) -> None:
        del self._opened[fd]

    def write(self, fd: int, data: bytes | memoryview) -> int:
        disk, inode = self._opened[fd]
        assert inode is not None
        return disk.write(inode, data, len(inode.data))

    def pwrite(self, fd: int, data: bytes | memoryview, place: int) -> int:
        disk, inode = self._opened[fd]
        assert inode is not None
        return disk.write(inode, data, place)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        disk, inode = self._opened[fd]
        assert inode is not None
        disk.allocate(inode, offset + length)

    def fsync(self, fd: int) -> None:
        disk, inode = self._opened[fd]
        disk.sync(inode)

    fdatasync = fsync

    def ftruncate(self, fd: int, length: int) -> None:
        disk, inode = self._opened[fd]
        assert inode is not None
        disk.entered()
        del inode.data[length:]

    @staticmethod
    def statvfs(path: SimPath) -> os.statvfs_result:
        return os.statvfs_result((1, 1, 0, path.room(), path.room(), 0, 0, 0, 0, 255))

    def fstat(self, fd: int) -> os.stat_result:
        inode = self._opened[fd].inode
        assert inode is not None
        return self.stat_of(inode)
