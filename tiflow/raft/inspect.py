"""A look at the data directory of a master that is not running. Nothing is written, and little is kept in memory:
segments are mapped, and of the log's past only the ranges of its terms are remembered."""

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tiflow.errors import FailedPrecondition, InvalidArgument
from tiflow.raft import snapshot as snapshots
from tiflow.raft.codec import REGULAR
from tiflow.raft.identity import FILE_NAME, Identity
from tiflow.raft.journal import (
    BASE,
    COMMIT,
    ENTRY,
    HEADER_BYTES,
    INDEX,
    MAGIC,
    NAME,
    STATE,
    TRUNCATE,
    Record,
    decode_record,
    is_torn,
    used,
)

KINDS: Final = {ENTRY: "entry", TRUNCATE: "truncate", STATE: "vote", COMMIT: "commit", BASE: "snapshot"}
_READ_BYTES = 1 << 20
_MAPPED_BYTES = 16 << 20


class LogRecord(Struct, frozen=True, kw_only=True):
    """One record, as it stands in its segment. An entry may be cut off, or repeated, by later records."""

    segment: str
    offset: int
    kind: str  #: entry; truncate (from `index` on); vote; commit (a hint); snapshot (the log begins at `index`)
    index: int | None
    term: int | None
    size_bytes: int
    vote: str = ""


class Damage(Struct, frozen=True):
    file: str
    offset: int
    what: str


class SnapshotFound(Struct, frozen=True, kw_only=True):
    index: int
    term: int
    size_bytes: int
    crc32: str


class TermRange(Struct, kw_only=True):
    term: int
    first: int
    last: int


class Summary(Struct, kw_only=True):
    """What the directory holds. It is complete when all records have been read."""

    directory: str
    cluster_id: str = ""
    name: str = ""
    members: tuple[str, ...] = ()
    segments: int = 0
    log_bytes: int = 0
    records: int = 0
    first_index: int | None = None
    last_index: int | None = None
    terms: list[TermRange] = []  #: of the entries that count
    term: int = 0  #: the newest that this master promised to
    vote: str = ""
    commit_index: int = 0  #: at least so far; a hint
    snapshot: SnapshotFound | None = None
    torn: Damage | None = None  #: an unfinished write at the end: harmless, a start cuts it off
    damage: list[Damage] = []

    def follow(self, record: LogRecord) -> str:
        """Take one record into account. What is wrong with it, or nothing."""
        self.records += 1
        if record.kind == "vote":
            self.term, self.vote = record.term or 0, record.vote
        elif record.kind == "commit":
            self.commit_index = record.index or 0
        elif record.kind == "truncate":
            self._cut(record.index or 0)
        else:
            assert record.index is not None
            assert record.term is not None
            if record.kind == "snapshot":
                self.terms = []
            self._cut(record.index)
            wrong = (
                f"entry {record.index} follows entry {self.terms[-1].last}"
                if self.terms and record.index != self.terms[-1].last + 1
                else ""
            )
            if self.terms and self.terms[-1].term == record.term:
                self.terms[-1].last = record.index
            else:
                self.terms.append(TermRange(term=record.term, first=record.index, last=record.index))
            return wrong
        return ""

    def close(self) -> None:
        """All records were read."""
        if self.terms:
            self.first_index, self.last_index = self.terms[0].first, self.terms[-1].last
        covered = self.snapshot.index if self.snapshot is not None else 1
        if self.first_index is not None and self.first_index > covered and not self.damage:
            what = f"the log begins at {self.first_index}, the snapshot ends at {covered}"
            self.damage.append(Damage(f"{self.directory}/snapshot", 0, what))

    def _cut(self, index: int) -> None:
        while self.terms and self.terms[-1].first >= index:
            self.terms.pop()
        if self.terms:
            self.terms[-1].last = min(self.terms[-1].last, index - 1)


class Inspection:
    """Made by `inspect`. Read `records` to their end, then look at `summary`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.summary = Summary(directory=str(directory))
        self._take_identity()
        self._take_snapshot()

    def records(self) -> Iterator[LogRecord]:
        """All records, segment by segment, in the order in which they were written."""
        paths = sorted(path for path in self._directory.iterdir() if NAME.fullmatch(path.name))
        self.summary.segments = len(paths)
        number = None
        for path in paths:
            found = int(NAME.fullmatch(path.name)[1])  # type: ignore[index]
            if number is not None and found != number + 1:
                self._damaged(path, 0, f"the segment before it, number {found - 1}, is gone")
            number = found
            yield from self._segment(path, newest=path == paths[-1])
        self.summary.close()

    def proposed(self, record: LogRecord) -> bytes:
        """What the entry carries; empty for one that only marks the beginning of a term."""
        with (self._directory / record.segment).open("rb") as file:
            file.seek(record.offset)
            found = decode_record(file.read(HEADER_BYTES + record.size_bytes), 0)
        if found is None:
            raise FailedPrecondition(f"{file.name}: has changed at offset {record.offset}")
        body = found[0].payload[INDEX.size :]
        return body[1:] if body[:1] == REGULAR else b""

    def _segment(self, path: Path, *, newest: bool) -> Iterator[LogRecord]:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.summary.log_bytes += size
            if size < len(MAGIC):
                self._damaged(path, 0, "not a journal of this version")
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if data[: len(MAGIC)] != MAGIC:
                    self._damaged(path, 0, "not a journal of this version")
                    return
                offset = kept = len(MAGIC)
                while offset < size:
                    if offset - kept > _MAPPED_BYTES:
                        kept = offset // mmap.PAGESIZE * mmap.PAGESIZE
                        data.madvise(mmap.MADV_DONTNEED, 0, kept)
                    found = decode_record(data, offset)
                    if found is None and newest and used(data, offset) == offset:
                        return
                    if found is None:
                        self._unsound(path, data, offset, newest=newest)
                        return
                    try:
                        record = _described(path, offset, found[0])
                    except struct.error:
                        self._damaged(path, offset, "a record without its index")
                        return
                    if wrong := self.summary.follow(record):
                        self._damaged(path, offset, wrong)
                    yield record
                    offset = found[2]

    def _unsound(self, path: Path, data: mmap.mmap, offset: int, *, newest: bool) -> None:
        if newest and is_torn(data, offset):
            what = f"{used(data, offset) - offset} bytes of an unfinished write"
            self.summary.torn = Damage(str(path), offset, what)
        else:
            self._damaged(path, offset, "a record that was on disk does not match its checksum")

    def _take_identity(self) -> None:
        path = self._directory / FILE_NAME
        try:
            identity = msgspec.json.decode(path.read_bytes(), type=Identity)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            self._damaged(path, 0, str(error))
            return
        self.summary.cluster_id, self.summary.name = identity.cluster_id, identity.name
        self.summary.members = identity.members

    def _take_snapshot(self) -> None:
        path = self._directory / "snapshot"
        if not path.exists():
            return
        try:
            self.summary.snapshot = read_snapshot_head(path)
        except FailedPrecondition as error:
            self._damaged(path, 0, str(error).removeprefix(f"{path}: "))

    def _damaged(self, path: Path, offset: int, what: str) -> None:
        self.summary.damage.append(Damage(str(path), offset, what))


@contextmanager
def inspect(directory: Path) -> Iterator[Inspection]:
    """`directory`: a master's data-dir, or `raft` in it. It can not be started while the block runs.

    Raises InvalidArgument (there is no log), FailedPrecondition (a master runs on it), OSError.
    """
    directory = directory / "raft" if (directory / "raft").is_dir() else directory
    if not directory.is_dir() or not any(NAME.fullmatch(path.name) for path in directory.iterdir()):
        raise InvalidArgument(f"{directory} holds no log of a master: name its data-dir")
    with _held(directory):
        yield Inspection(directory)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    try:
        fd = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a copy, perhaps
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise FailedPrecondition(
            f"{directory} is in use by a running master: stop it, or look at a copy of the directory"
        ) from None
    try:
        yield
    finally:
        os.close(fd)


def read_snapshot_head(path: Path) -> SnapshotFound:
    """Verify the file without keeping it. Raises SnapshotDamaged naming the file and what is wrong, and OSError."""
    size = path.stat().st_size
    head_bytes, tail_bytes = len(snapshots.MAGIC) + snapshots.HEAD.size, snapshots.TAIL.size
    with path.open("rb") as file:
        head = file.read(head_bytes)
        if head[: len(snapshots.MAGIC)] != snapshots.MAGIC or size < head_bytes + tail_bytes:
            raise snapshots.SnapshotDamaged(f"{path}: not a snapshot of this version")
        crc, left = zlib.crc32(head), size - head_bytes - 4
        while left:
            part = file.read(min(left, _READ_BYTES))
            if not part:
                raise snapshots.SnapshotDamaged(f"{path}: ends too early")
            crc, left = zlib.crc32(part, crc), left - len(part)
        file.seek(size - tail_bytes)
        length, expected = snapshots.TAIL.unpack(file.read(tail_bytes))
    if length != size - head_bytes - tail_bytes:
        raise snapshots.SnapshotDamaged(f"{path}: {size} bytes long, but says that its body has {length}")
    if crc != expected:
        raise snapshots.SnapshotDamaged(f"{path}: does not match its checksum")
    index, term = snapshots.HEAD.unpack_from(head, len(snapshots.MAGIC))
    return SnapshotFound(index=index, term=term, size_bytes=size, crc32=f"{crc:08x}")


def _described(path: Path, offset: int, record: Record) -> LogRecord:
    index = None if record.kind == STATE else INDEX.unpack_from(record.payload)[0]
    return LogRecord(
        segment=path.name,
        offset=offset,
        kind=KINDS.get(record.kind, "?"),
        index=index,
        term=record.term if record.kind in (ENTRY, STATE, BASE) else None,
        size_bytes=len(record.payload),
        vote=record.payload.decode(errors="replace") if record.kind == STATE else "",
    )
