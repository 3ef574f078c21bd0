"""The log on disk: append-only segments, one checked record after another.

    segment = MAGIC record* zero*
    record  = length u32 | payload CRC u32 | kind u8 | term u64 | synced u64 | header CRC u32 | payload

`synced` is the offset up to which the segment was known to be on disk when the record was written. It tells a
torn tail from damage: bytes that a later record knows to have been on disk can not be torn. A torn tail is
cut off, since nobody was told of it; damage refuses to open, since somebody may have been.

The newest segment is longer than what is written: to sync a write into what the file has already, a file system has
nothing else to note, as it has when a file grows. The zeros are cut off when a segment is closed.

`Journal` is the list that pysyncobj appends to. It keeps the entries in memory and hands records over in
batches. `JournalFile` writes batches (one fdatasync each: group commit), in the thread of writer.py. A failed
write or sync is final: what the kernel keeps after one is unknown, so it is never tried again. Only a write for
which there was no room is: it has put nothing on disk that counts.
"""

import contextlib
import itertools
import mmap
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, overload

import pysyncobj.syncobj
from msgspec import Struct

from tiflow.errors import FailedPrecondition
from tiflow.raft.disk import DiskSpace, is_no_space

MAGIC: Final = b"TIFLOGv1"
ENTRY_BYTES_MAX: Final = 8 << 20
AHEAD_BYTES: Final = 1 << 20  #: the newest segment grows to a multiple of this

_HEADER = struct.Struct("<IIBQQ")
_CRC = struct.Struct("<I")
INDEX: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
_PAYLOAD_BYTES_MAX = ENTRY_BYTES_MAX + 1024
_SECTOR_BYTES = 512
# where a header may begin: a length below 2^24, a kind, an offset below 2^48. Torn tails have millions of places
_HEADER_LIKE = re.compile(rb"(?s)(?=..[\x00-\x80]\x00.{4}[\x01-\x05].{14}\x00\x00)")
NAME: Final = re.compile(r"journal-(\d{16})\.log")

ENTRY, TRUNCATE, STATE, COMMIT, BASE = 1, 2, 3, 4, 5

#: a segment, in memory or mapped
Bytes = bytes | mmap.mmap

#: command, index, term: the tuple that pysyncobj keeps in its log
Entry = tuple[bytes, int, int]


class JournalDamaged(FailedPrecondition):
    """The journal holds bytes that were on disk once and no longer are what they were."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(
            f"{path}: damaged at offset {offset}: {what}. The log can not be trusted: move the directory "
            f"away and let this master join again, empty"
        )
        self.path = path
        self.offset = offset


class Record(NamedTuple):
    kind: int
    term: int
    payload: bytes


class Rotate(NamedTuple):
    """Go on in a new segment that begins with `state` and repeats `entries`."""

    state: tuple[Record, ...]
    entries: list[Entry]


class DropOlder(NamedTuple):
    """Remove every segment but the newest `keep`."""

    keep: int


Op = Record | Rotate | DropOlder


class Recovered(Struct):
    """What the segments say, read from the first to the last."""

    entries: list[Entry] = []
    term: int = 0
    vote: str | None = None
    commit: int = 1

    def replay(self, record: Record) -> None:
        """Follow one record. Raises ValueError when it can not follow the ones before."""
        if record.kind == ENTRY:
            (index,) = INDEX.unpack_from(record.payload)
            self._cut(index)
            if self.entries and index != self.entries[-1][1] + 1:
                raise ValueError(f"entry {index} follows entry {self.entries[-1][1]}")
            self.entries.append((record.payload[INDEX.size :], index, record.term))
        elif record.kind == TRUNCATE:
            self._cut(INDEX.unpack(record.payload)[0])
        elif record.kind == STATE:
            self.term, self.vote = record.term, record.payload.decode() or None
        elif record.kind == COMMIT:
            (self.commit,) = INDEX.unpack(record.payload)
        elif record.kind == BASE:
            self.entries = [(NO_OP, INDEX.unpack(record.payload)[0], record.term)]

    def _cut(self, index: int) -> None:
        if self.entries and index <= self.entries[-1][1]:
            del self.entries[max(0, index - self.entries[0][1]) :]


#: the command of an entry that only marks a place: a new leader's first, or the one a snapshot ends with
NO_OP: Final = b"\x01"


class JournalFile:
    """The segments of a directory. `write` may run in a thread; everything else is done before that begins.

    Raises JournalDamaged on open, and OSError.
    """

    def __init__(self, directory: Path, *, fsync: bool = True, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.recovered = Recovered()
        self.existed = False
        self.no_space: Callable[[OSError], None] = _raise  #: returns when a write is to be tried again
        self._directory = directory
        self._fsync = fsync
        self._ahead_bytes = ahead_bytes
        self._segments = self._find()
        self.existed = bool(self._segments)
        for path in directory.glob("journal-*.tmp"):
            path.unlink()
        if not self._segments:
            self._create(1, b"")
        for path in self._segments:
            self._synced = self._recover(path, newest=path == self._segments[-1])
        self._fd = os.open(self._segments[-1], os.O_WRONLY | os.O_CLOEXEC)
        if fsync:
            # who was killed in the middle of a write may have left what only the page cache has
            os.fdatasync(self._fd)
            sync_directory(directory)
        self._size = os.fstat(self._fd).st_size

    def write(self, ops: Sequence[Op]) -> None:
        """Put all of `ops` on disk before returning. OSError: nothing more may be written, ever."""
        buffer: list[bytes] = []
        for op in ops:
            if isinstance(op, Record):
                buffer.append(_encode(op, self._synced))
                continue
            self._append(buffer)
            buffer = []
            if isinstance(op, Rotate):
                self._rotate(op)
            else:
                self._drop_older(op.keep)
        self._append(buffer)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # on a disk that has failed: the zeros may as well stay
            self._trim()
        os.close(self._fd)

    # --- writing

    def _append(self, buffer: list[bytes]) -> None:
        if not buffer:
            return
        data = b"".join(buffer)
        while not self._put(data):
            pass
        if self._fsync:
            os.fdatasync(self._fd)  # whatever this raises is final, also that there was no room
        self._synced += len(data)

    def _put(self, data: bytes) -> bool:
        """Write all of `data`, or nothing if there is no room."""
        end = self._synced + len(data)
        if end > self._size:
            self._extend(end)
        rest, place = memoryview(data), self._synced
        try:
            while rest:
                written = os.pwrite(self._fd, rest, place)
                rest, place = rest[written:], place + written
        except OSError as error:
            if not is_no_space(error):
                raise
            self._size = max(self._size, end)
            self._trim()  # nobody was told of what is behind
            self.no_space(error)
            return False
        self._size = max(self._size, end)
        return True

    def _extend(self, end: int) -> None:
        if not self._ahead_bytes:
            return
        size = -(-end // self._ahead_bytes) * self._ahead_bytes
        try:
            os.posix_fallocate(self._fd, self._size, size - self._size)
        except OSError:
            # no room for so much, or a file system that cannot: then it grows with each write
            size = os.fstat(self._fd).st_size  # some of it may have been there
        self._size = size

    def _trim(self) -> None:
        """Cut off what holds no records."""
        if self._size > self._synced:
            os.ftruncate(self._fd, self._synced)
            self._size = self._synced

    def _rotate(self, op: Rotate) -> None:
        if self._size > self._synced:
            self._trim()  # before there is a newer one: zeros may follow the records of the newest only
            if self._fsync:
                os.fdatasync(self._fd)
        records = [*op.state, *(entry_record(entry) for entry in op.entries)]
        number = int(NAME.fullmatch(self._segments[-1].name)[1]) + 1  # type: ignore[index]
        try:
            self._create(number, b"".join(_encode(record, 0) for record in records))
        except OSError as error:
            path = self._path(number)
            if not is_no_space(error) or path.exists():
                raise
            path.with_suffix(".tmp").unlink(missing_ok=True)
            return  # the segment in use has all that the new one would begin with
        os.close(self._fd)
        self._fd = os.open(self._segments[-1], os.O_WRONLY | os.O_CLOEXEC)
        self._synced = self._size = os.fstat(self._fd).st_size

    def _create(self, number: int, content: bytes) -> None:
        path = self._path(number)
        write_atomically(path, MAGIC + content, fsync=self._fsync)
        self._segments.append(path)

    def _path(self, number: int) -> Path:
        return self._directory / f"journal-{number:016}.log"

    def _drop_older(self, keep: int) -> None:
        for path in self._segments[:-keep]:
            path.unlink()
        self._segments = self._segments[-keep:]

    # --- recovery

    def _find(self) -> list[Path]:
        paths = sorted(path for path in self._directory.iterdir() if NAME.fullmatch(path.name))
        numbers = [int(NAME.fullmatch(path.name)[1]) for path in paths]  # type: ignore[index]
        for before, after, path in zip(numbers, numbers[1:], paths[1:], strict=False):
            if after != before + 1:
                raise JournalDamaged(path, 0, f"the segment before it, number {after - 1}, is gone")
        return paths

    def _recover(self, path: Path, *, newest: bool) -> int:
        """Replay a segment. Returns where its records end."""
        data = path.read_bytes()
        if data[: len(MAGIC)] != MAGIC:
            raise JournalDamaged(path, 0, "not a journal of this version")
        offset = len(MAGIC)
        while offset < len(data):
            found = decode_record(data, offset)
            if found is None:
                if newest and used(data, offset) == offset:
                    break
                if not newest or not is_torn(data, offset):
                    raise JournalDamaged(path, offset, "a record that was on disk does not match its checksum")
                self._cut_tail(path, offset)
                break
            record, _, end = found
            try:
                self.recovered.replay(record)
            except ValueError as error:
                raise JournalDamaged(path, offset, str(error)) from None
            offset = end
        return offset

    def _cut_tail(self, path: Path, offset: int) -> None:
        with path.open("r+b") as file:
            file.truncate(offset)
            if self._fsync:
                os.fsync(file.fileno())


def _raise(error: OSError) -> None:
    raise error


def entry_record(entry: Entry) -> Record:
    command, index, term = entry
    return Record(ENTRY, term, INDEX.pack(index) + command)


def beginning(term: int, index: int, last_term: int) -> list[Op]:
    """What a log consists of that is in `term`, and has nothing after a snapshot up to `index` of `last_term`."""
    return [Record(STATE, term, b""), Record(BASE, last_term, INDEX.pack(index))]


def write_atomically(path: Path, content: bytes, *, fsync: bool) -> None:
    """Replace `path` so that after a crash it is the old file or the new one, and survives a power cut."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        if fsync:
            os.fsync(file.fileno())
    temporary.rename(path)
    if fsync:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _encode(record: Record, synced: int) -> bytes:
    payload = record.payload
    header = _HEADER.pack(len(payload), zlib.crc32(payload), record.kind, record.term, synced)
    return header + _CRC.pack(zlib.crc32(header)) + payload


def _decode_header(data: Bytes, offset: int) -> tuple[int, int, int, int, int] | None:
    if offset + HEADER_BYTES > len(data):
        return None
    header = data[offset : offset + _HEADER.size]
    if zlib.crc32(header) != _CRC.unpack_from(data, offset + _HEADER.size)[0]:
        return None
    return _HEADER.unpack(header)


def decode_record(data: Bytes, offset: int) -> tuple[Record, int, int] | None:
    """The record at `offset`, its `synced`, and where the next one begins. None: there is no sound record."""
    header = _decode_header(data, offset)
    if header is None:
        return None
    length, crc, kind, term, synced = header
    begin = offset + HEADER_BYTES
    payload = data[begin : begin + length]
    if length > _PAYLOAD_BYTES_MAX or len(payload) != length or zlib.crc32(payload) != crc:
        return None
    return Record(kind, term, payload), synced, begin + length


def used(data: Bytes, offset: int) -> int:
    """Where the zeros at the end of a segment begin; not before `offset`."""
    return offset + len(data[offset:].rstrip(b"\0"))


def is_torn(data: Bytes, offset: int) -> bool:
    """Whether the unsound bytes from `offset` on can be what a crash left of an unfinished write.

    A write that was cut short ends with its file or, since blocks reach the disk in any order, has sectors of zeros.
    """
    last = used(data, offset)
    for found in _HEADER_LIKE.finditer(data, offset + 1, min(len(data), last + HEADER_BYTES)):
        header = _decode_header(data, found.start())
        if header is not None and header[4] > offset:
            return False  # when this was written, what is unsound now had been synced
    header = _decode_header(data, offset)
    end = offset + HEADER_BYTES + (header[0] if header is not None else 0)
    if end > len(data):
        return True
    end = max(end, last)
    edges = [offset, *range((offset // _SECTOR_BYTES + 1) * _SECTOR_BYTES, end, _SECTOR_BYTES), end]
    return any(not any(data[begin:stop]) for begin, stop in itertools.pairwise(edges))


class Journal:
    """The log as pysyncobj sees it: a list of entries, the term and the vote. It lives in the loop's thread.

    `position` counts the records that were appended, `durable_position` those on disk. Nothing is handed over
    before `flush`. Entries up to `durable_index` are on disk.
    """

    def __init__(self, recovered: Recovered, submit: Callable[[list[Op], int], None]) -> None:
        self.term = recovered.term
        self.vote = recovered.vote
        self.position = 0
        self.durable_position = 0
        self.durable_index = recovered.entries[-1][1] if recovered.entries else 0
        self.log_bytes = sum(len(entry[0]) for entry in recovered.entries)
        self.space = DiskSpace()  #: where it is written, as last looked at
        self._entries = recovered.entries
        self._commit = recovered.commit
        self._commit_written = recovered.commit
        self._submit = submit
        self._pending: list[Op] = []
        self._in_flight: deque[tuple[int, int, float]] = deque()  # position, last index, since when

    # --- group commit

    def flush(self) -> None:
        """Hand over what was appended since the last time."""
        if not self._pending:
            return
        ops, self._pending = self._pending, []
        self._in_flight.append((self.position, self.last_index, pysyncobj.syncobj.monotonicTime()))
        self._submit(ops, self.position)

    def landed(self, position: int) -> None:
        """All records up to `position` are on disk."""
        self.durable_position = position
        while self._in_flight and self._in_flight[0][0] <= position:
            self.durable_index = max(self.durable_index, self._in_flight.popleft()[1])

    @property
    def on_disk(self) -> bool:
        """Nothing that was handed over is still on its way."""
        return not self._in_flight

    def waiting_s(self) -> float:
        """How long the oldest batch has been on its way to the disk; 0 when none is."""
        return pysyncobj.syncobj.monotonicTime() - self._in_flight[0][2] if self._in_flight else 0.0

    # --- what is in it

    @property
    def first_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1] if self._entries else 0

    @property
    def fresh(self) -> bool:
        """Nothing was ever voted on or logged here."""
        return self.term == 0 and self.last_index <= 1

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`, None if it is not in the log."""
        place = index - self._entries[0][1]
        return self._entries[place][2] if 0 <= place < len(self._entries) else None

    # --- snapshots

    def rotate(self, keep_from: int) -> None:
        """Begin a segment that stands alone, given a snapshot of what precedes `keep_from`."""
        state = (
            Record(STATE, self.term, (self.vote or "").encode()),
            Record(COMMIT, 0, INDEX.pack(self._commit)),
        )
        kept = self._entries[max(0, keep_from - self.first_index) :]
        self._append(Rotate(state, kept))

    def compact(self, keep_from: int) -> None:
        """Forget the entries before `keep_from`: since the last `rotate` a snapshot has them, on disk."""
        place = min(keep_from - self.first_index, len(self._entries) - 1)
        if place > 0:
            self.log_bytes -= sum(len(entry[0]) for entry in self._entries[:place])
            del self._entries[:place]
        self._append(DropOlder(keep=1))

    def adopt_snapshot(self, index: int, term: int) -> None:
        """A snapshot up to `index` is on disk. Keep what follows it if this log agrees with it, else begin
        anew."""
        if self.term_of(index) != term:
            self._entries = [(NO_OP, index, term)]
            self.log_bytes = 1
            self._append(Record(BASE, term, INDEX.pack(index)))
            # of what is still on its way nothing is left
            self._in_flight = deque((position, index, since) for position, _, since in self._in_flight)
            self.durable_index = index
        self.durable_index = max(self.durable_index, index)
        self._commit = max(self._commit, index)

    # --- the interface of pysyncobj.journal.Journal, whose arguments are places in the list, not indices

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._append(entry_record((command, idx, term)))
        self._entries.append((command, idx, term))
        self.log_bytes += len(command)

    def deleteEntriesFrom(self, place: int) -> None:
        if place >= len(self._entries):
            return
        cut = self._entries[place][1]
        self._append(Record(TRUNCATE, 0, INDEX.pack(cut)))
        self.log_bytes -= sum(len(entry[0]) for entry in self._entries[place:])
        del self._entries[place:]
        self.durable_index = min(self.durable_index, cut - 1)
        self._in_flight = deque((position, min(last, cut - 1), since) for position, last, since in self._in_flight)

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...
    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        return self._entries[place]

    def __len__(self) -> int:
        return len(self._entries)

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self.term, self.vote = term, vote
        self._append(Record(STATE, term, (vote or "").encode()))

    def getCurrentTerm(self) -> int:
        return self.term

    def getVotedForNodeId(self) -> str | None:
        return self.vote

    def setRaftCommitIndex(self, index: int) -> None:
        self._commit = index

    def getRaftCommitIndex(self) -> int:
        # clamped: pysyncobj takes everything up to its commit index for committed, also what is logged later
        return max(1, min(self._commit, self.last_index))

    def onOneSecondTimer(self) -> None:
        # only a hint, which saves a restarted member from waiting for a leader before it applies its log
        if self._commit != self._commit_written:
            self._commit_written = self._commit
            self._append(Record(COMMIT, 0, INDEX.pack(self._commit)))

    def _destroy(self) -> None:
        self.flush()

    def _append(self, op: Op) -> None:
        self._pending.append(op)
        self.position += 1
