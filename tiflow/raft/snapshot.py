"""The state on disk, in one file: taken without stopping the loop, installed only when whole.

    file = MAGIC | index u64 | term u64 | body | body length u64 | CRC u32 of all before

The body is what the state machine's `snapshot()` yields, slice by slice: each is made in the loop and written
in a thread, and heartbeats go out in between. A snapshot from the leader arrives in chunks, in another file,
and takes the place of ours after its checksum was verified. Nothing is pickled and nothing is forked.
"""

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TypeVar

from msgspec import Struct

from tiflow.errors import FailedPrecondition
from tiflow.raft.journal import sync_directory

MAGIC: Final = b"TIFSNAP1"
CHUNK_BYTES: Final = 256 << 10
HEAD: Final = struct.Struct("<QQ")
TAIL: Final = struct.Struct("<QI")
_CRC_BYTES = 4
_HEAD_BYTES = len(MAGIC) + HEAD.size
_SYNC_EVERY_BYTES = 4 << 20  # so that the last sync is not the only one, and long

T = TypeVar("T")


class SnapshotDamaged(FailedPrecondition):
    """The file is not the snapshot that was written."""


class Runner(Protocol):
    """Runs `work` where it may block, then `done(result or error)` in the loop. Works run one after the
    other."""

    def __call__(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None: ...


class Snapshot(Struct, frozen=True):
    index: int
    term: int
    body: bytes


class Transfer(Struct):
    """A snapshot on its way to one follower. The file stays readable when a newer one takes its name."""

    file: BinaryIO
    size: int
    index: int
    term: int
    sent: int = 0
    acknowledged: int = 0

    @property
    def finished(self) -> bool:
        return self.sent == self.size


def read_snapshot(path: Path) -> Snapshot:
    """Read and verify. Raises SnapshotDamaged naming the file and what is wrong, and OSError."""
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC or len(data) < _HEAD_BYTES + TAIL.size:
        raise SnapshotDamaged(f"{path}: not a snapshot of this version")
    length, crc = TAIL.unpack_from(data, len(data) - TAIL.size)
    if length != len(data) - _HEAD_BYTES - TAIL.size:
        raise SnapshotDamaged(f"{path}: {len(data)} bytes long, but says that its body has {length}")
    if zlib.crc32(memoryview(data)[:-_CRC_BYTES]) != crc:
        raise SnapshotDamaged(f"{path}: does not match its checksum")
    index, term = HEAD.unpack_from(data, len(MAGIC))
    return Snapshot(index, term, data[_HEAD_BYTES : -TAIL.size])


def write_snapshot(path: Path, index: int, term: int, body: bytes, *, fsync: bool = True) -> None:
    """The file at once, where nothing else goes on. Raises OSError."""
    save = _Save(path.with_suffix(".tmp"), index, term, iter(()), fsync=fsync)
    save.write(body)
    save.finish(path)


class _Save:
    """A snapshot being written. `write` and `finish` run where they may block."""

    def __init__(self, path: Path, index: int, term: int, slices: Iterator[bytes], *, fsync: bool) -> None:
        self.index = index
        self.term = term
        self.slices = slices
        self.busy = False
        self.path = path
        self._fsync = fsync
        self._file = path.open("wb")
        self._crc = 0
        self._length = 0
        self._unsynced = 0
        self._put(MAGIC + HEAD.pack(index, term))

    def write(self, data: bytes) -> None:
        self._length += len(data)
        self._put(data)

    def finish(self, final: Path) -> None:
        self._put(TAIL.pack(self._length, 0)[:-_CRC_BYTES])
        self._file.write(struct.pack("<I", self._crc))
        self._file.flush()
        if self._fsync:
            os.fsync(self._file.fileno())
        self._file.close()
        self.path.rename(final)
        if self._fsync:
            sync_directory(final.parent)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # it writes what is buffered
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._unsynced += len(data)
        if self._fsync and self._unsynced >= _SYNC_EVERY_BYTES:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0


class SnapshotStore:
    """The newest snapshot of a directory, the one being taken, those being sent and the one being received.

    All methods belong to the loop's thread; what blocks goes through `run`.
    """

    def __init__(self, directory: Path, *, run: Runner, fsync: bool = True, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.index = 0  #: last entry that the newest snapshot covers; 0: there is none
        self.chunk_bytes = chunk_bytes
        self._path = directory / "snapshot"
        self._run = run
        self._fsync = fsync
        self._save: _Save | None = None
        self._transfers: dict[str, Transfer] = {}
        self._incoming: BinaryIO | None = None
        self._received = 0
        self._verifying: BinaryIO | None = None
        for leftover in (self._saving_path, self._incoming_path):
            leftover.unlink(missing_ok=True)

    @property
    def _saving_path(self) -> Path:
        return self._path.with_suffix(".tmp")

    @property
    def _incoming_path(self) -> Path:
        return self._path.with_suffix(".incoming")

    def age_s(self) -> float | None:
        """Seconds since the newest snapshot was taken, None if there is none."""
        return max(0.0, time.time() - self._path.stat().st_mtime) if self.index else None

    def load(self) -> Snapshot | None:
        """The newest snapshot. Raises SnapshotDamaged: going on without it would mean an empty state."""
        if not self._path.exists():
            return None
        snapshot = read_snapshot(self._path)
        self.index = snapshot.index
        return snapshot

    # --- taking one

    @property
    def saving(self) -> bool:
        return self._save is not None

    def begin(self, index: int, term: int, slices: Iterator[bytes]) -> None:
        """Begin to save the state as of `index`. `step` does the work."""
        assert self._save is None
        self._save = _Save(self._saving_path, index, term, slices, fsync=self._fsync)

    def step(
        self, saved: Callable[[int], None], failed: Callable[[BaseException], None], wake: Callable[[], None]
    ) -> None:
        """Make the next slice, unless the last one is still being written. `saved(index)` is called at the
        end."""
        save = self._save
        if save is None or save.busy:
            return
        save.busy = True

        def written(result: BaseException | None) -> None:
            save.busy = False
            if isinstance(result, BaseException):
                failed(result)
            wake()

        def finished(result: BaseException | None) -> None:
            if self._save is save:
                self._save = None
            if isinstance(result, BaseException):
                save.abandon()
                failed(result)
                return
            self.index = max(self.index, save.index)
            saved(save.index)
            wake()

        part = next(save.slices, None)
        if part is None:
            self._run(lambda: save.finish(self._path), finished)
        else:
            self._run(lambda: save.write(part), written)

    def give_up(self) -> None:
        """Forget the one that is being taken; what was written of it is removed."""
        if self._save is not None:
            self._save.abandon()
        self._save = None

    # --- sending

    def transfer(self, peer: str) -> Transfer | None:
        """The transfer to `peer`, begun if there is none. None: there is no snapshot."""
        if peer not in self._transfers:
            if not self.index:
                return None
            file = self._path.open("rb")
            index, term = HEAD.unpack_from(file.read(_HEAD_BYTES), len(MAGIC))
            file.seek(0)
            self._transfers[peer] = Transfer(file, os.fstat(file.fileno()).st_size, index, term)
        return self._transfers[peer]

    def next_chunk(self, transfer: Transfer) -> tuple[int, bytes, bool]:
        """Offset, data, and whether it is the last."""
        offset = transfer.sent
        data = transfer.file.read(self.chunk_bytes)
        transfer.sent += len(data)
        return offset, data, transfer.finished

    def acknowledge(self, peer: str, offset: int) -> None:
        """`peer` has so many bytes of what is being sent to it."""
        if peer in self._transfers:
            self._transfers[peer].acknowledged = max(self._transfers[peer].acknowledged, offset)

    def cancel(self, peer: str) -> None:
        transfer = self._transfers.pop(peer, None)
        if transfer is not None:
            transfer.file.close()

    # --- receiving

    def receive(
        self, offset: int, data: bytes, *, last: bool, verified: Callable[[Snapshot | BaseException], None]
    ) -> int | None:
        """Take a chunk and return how many bytes there are; None: it does not follow them, the sender must
        begin anew.

        After the last one `verified(snapshot or error)` is called.
        """
        if self._verifying is not None:
            return self._received
        if offset == 0 and data:
            self.forget_incoming()
            self._incoming = self._incoming_path.open("wb")
        if self._incoming is None or offset != self._received:
            return None
        self._incoming.write(data)
        self._received += len(data)
        if last:
            file, self._incoming = self._incoming, None
            self._verifying = file

            def done(result: Snapshot | BaseException) -> None:
                self._verifying = None
                self._received = 0
                verified(result)

            self._run(lambda: self._verify(file), done)
        return self._received

    def forget_incoming(self) -> None:
        """Begin anew with the next chunk that is a first one."""
        if self._incoming is not None:
            with contextlib.suppress(OSError):  # it writes what is buffered
                self._incoming.close()
            self._incoming_path.unlink(missing_ok=True)
        self._incoming = None
        self._received = 0

    def install(self, snapshot: Snapshot) -> None:
        """Put the verified file in the place of ours, on disk."""
        assert snapshot.index > self.index
        self._incoming_path.rename(self._path)
        if self._fsync:
            sync_directory(self._path.parent)
        self.index = snapshot.index

    def close(self) -> None:
        """Let go of all files. Nothing that was given to `run` may be under way."""
        self.forget_incoming()
        for peer in list(self._transfers):
            self.cancel(peer)
        if self._verifying is not None:
            self._verifying.close()
        self.give_up()

    def _verify(self, file: BinaryIO) -> Snapshot:
        file.flush()
        if self._fsync:
            os.fsync(file.fileno())
        file.close()
        return read_snapshot(self._incoming_path)
