"""What tasks write to stdout and stderr: bounded, the newest kept, read while it is written.

    <index>.<attempt>.out            the first segment of an attempt's stdout; `.err`: of its stderr
    <index>.<attempt>.out.<offset>   a later one: its first byte is the log's byte number <offset>
    <index>.<attempt>.out.at         when what was written: (ms since 1970, offset) pairs; only of long-lived logs

A segment takes half of what a log may have. When it is full the next one begins, and the one before it goes, so that
a reader that knows its position finds it again, and nothing is ever renamed under it. Standard library only: workers
import this.
"""

import contextlib
import os
import shutil
import struct
import time
from collections.abc import Collection

STREAMS = {"stdout": "out", "stderr": "err"}
BYTES_MIN = 1 << 10

_STAMP = struct.Struct("<QQ")
_STAMP_S_MIN = 1.0  #: between two stamps of a log
_STAMP_AGES = 1_000  #: … or this part of its age, so that there are some thousand in all


def log_path(data_dir: str, job_uid: int, group: str, index: int, attempt: int, stream: str) -> str:
    """`stream` is stdout or stderr."""
    return f"{data_dir}/logs/{job_uid}/{group}/{index}.{attempt}.{STREAMS[stream]}"


def worker_log_path(data_dir: str, slot: int) -> str:
    return f"{data_dir}/logs/worker-{slot}.log"


def newest_attempt(data_dir: str, job_uid: int, group: str, index: int) -> int:
    """The newest attempt of a task that wrote a log here; 0: none."""
    prefix = f"{index}."
    attempts = (
        name.split(".")[1] for name in _names(f"{data_dir}/logs/{job_uid}/{group}") if name.startswith(prefix)
    )
    return max((int(attempt) for attempt in attempts if attempt.isdigit()), default=0)


class BoundedLog:
    """A log that is created by the first write. Of more than `bytes_max` bytes at least the newest half is kept."""

    def __init__(self, path: str, bytes_max: int) -> None:
        self._path = path
        self._segment_max = max(bytes_max, BYTES_MIN) // 2
        self._fd = -1
        self._base = 0  #: offset of the segment's first byte
        self._size = 0  #: of the segment
        self._before = ""  #: the segment before it
        self._began_s = 0.0
        self._stamp_at_s = 0.0
        self._lost = False

    def write(self, data: bytes) -> None:
        if self._lost or not data:
            return
        try:
            self._append(data)
        except OSError as error:  # a full disk: a task does not fail for its log
            self._lost = True
            text = f"tiflow: {self._path}: {error.strerror}; the rest of this log is lost\n"
            with contextlib.suppress(OSError):  # stderr may be on the same disk
                os.write(2, text.encode())

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        if self._fd < 0:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            self._open(self._path)
            self._began_s = time.monotonic()
            self._stamp_at_s = self._began_s + _STAMP_S_MIN
        elif (now_s := time.monotonic()) >= self._stamp_at_s:
            self._stamp_at_s = now_s + max(_STAMP_S_MIN, (now_s - self._began_s) / _STAMP_AGES)
            self._stamp()
        while view:
            room = self._segment_max - self._size
            if room <= 0:
                self._next_segment()
                continue
            written = os.write(self._fd, view[:room])
            self._size += written
            view = view[written:]

    def _open(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._fd).st_size

    def _next_segment(self) -> None:
        full = self._segment_path()
        os.close(self._fd)
        self._fd = -1
        if self._before:
            os.unlink(self._before)
        self._before = full
        self._base += self._size
        self._open(self._segment_path())

    def _segment_path(self) -> str:
        return f"{self._path}.{self._base}" if self._base else self._path

    def _stamp(self) -> None:
        with open(f"{self._path}.at", "ab") as file:
            file.write(_STAMP.pack(time.time_ns() // 1_000_000, self._base + self._size))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LogReader:
    """Reads a log that may not exist yet, and may grow. `read` returns b"" when there is nothing more for now."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._at: int | None = None  #: the next byte; None: the oldest that there is
        self._base: int | None = None  #: of the segment that is being read
        self._note = b""

    def exists(self) -> bool:
        return os.path.exists(self._path) or bool(self._segments())

    def begin_at_tail(self, bytes_max: int) -> None:
        """Begin so many bytes before the end."""
        segments = self._segments()
        if segments:
            self._at = max(segments[0][0], segments[-1][0] + _size(segments[-1][1]) - bytes_max)

    def begin_at_time(self, at_ms: int) -> None:
        """Begin with what was written since then (ms since 1970), give or take a thousandth of the log's age."""
        segments = self._segments()
        if not segments:
            return
        if os.stat(segments[-1][1]).st_mtime_ns // 1_000_000 < at_ms:
            self._at = segments[-1][0] + _size(segments[-1][1])
            return
        earlier = [offset for stamp_ms, offset in self._stamps() if stamp_ms <= at_ms]
        self._at = max(segments[0][0], earlier[-1] if earlier else 0)

    def read(self, bytes_max: int) -> bytes:
        while True:
            if self._base is None and not self._find():
                return b""
            if self._note:
                note, self._note = self._note, b""
                return note
            assert self._at is not None
            assert self._base is not None
            path = f"{self._path}.{self._base}" if self._base else self._path
            try:
                with open(path, "rb") as file:
                    file.seek(self._at - self._base)
                    data = file.read(bytes_max)
            except FileNotFoundError:  # it was too old
                self._base = None
                continue
            if data:
                self._at += len(data)
                return data
            if self._at == self._base or not os.path.exists(f"{self._path}.{self._at}"):
                return b""
            self._base = self._at

    def _find(self) -> bool:
        """The segment of the next byte, or the oldest one. A log of one segment is found without looking around."""
        segments = [(0, self._path)] if not self._at and os.path.exists(self._path) else self._segments()
        if not segments:
            return False
        oldest = segments[0][0]
        if oldest > (self._at or 0):
            self._note = b"[tiflow: %d bytes of older output are gone]\n" % (oldest - (self._at or 0))
        at = max(self._at or 0, oldest)
        self._base = max(base for base, _ in segments if base <= at)
        self._at = at
        return True

    def _segments(self) -> list[tuple[int, str]]:
        """(offset, path), the oldest first."""
        directory, name = os.path.split(self._path)
        first = [(0, self._path)] if os.path.exists(self._path) else []
        later = [other[len(name) + 1 :] for other in _names(directory) if other.startswith(f"{name}.")]
        return sorted(first + [(int(base), f"{self._path}.{base}") for base in later if base.isdigit()])

    def _stamps(self) -> list[tuple[int, int]]:
        try:
            with open(f"{self._path}.at", "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return []
        return list(_STAMP.iter_unpack(data[: len(data) // _STAMP.size * _STAMP.size]))


def prune(data_dir: str, older_than_s: float, bytes_max: int, running: Collection[int]) -> list[int]:
    """Remove the logs of jobs to which nothing was written since `older_than_s` (Unix time), then the oldest until
    all have at most `bytes_max` bytes; but not of the jobs that are `running`. Returns the uids of the jobs."""
    jobs = []
    for name in job_uids(f"{data_dir}/logs"):
        size, newest_s = _weigh(f"{data_dir}/logs/{name}")
        jobs.append((newest_s, size, name))
    total, removed = sum(size for _, size, _ in jobs), []
    for newest_s, size, uid in sorted(jobs):
        if uid not in running and (newest_s < older_than_s or total > bytes_max):
            shutil.rmtree(f"{data_dir}/logs/{uid}", ignore_errors=True)
            total -= size
            removed.append(uid)
    return removed


def job_uids(directory: str) -> list[int]:
    """The jobs that have a directory here."""
    return sorted(int(name) for name in _names(directory) if name.isdigit())


def _weigh(path: str) -> tuple[int, float]:
    """Bytes on disk, and when something was written last."""
    size, newest_s = 0, 0.0
    for directory, _, names in os.walk(path):
        for one in (directory, *(f"{directory}/{name}" for name in names)):
            try:
                stat = os.lstat(one)
            except FileNotFoundError:
                continue
            size += stat.st_blocks * 512
            newest_s = max(newest_s, stat.st_mtime)
    return size, newest_s


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
