"""The two ends of a copy: where files are read, and where they are written. Everything here blocks.

A file appears under its name when it is whole: it is written beside it, under a name of this job's, and renamed.
Nothing is synced to the disk before that, as with rsync: what a power cut takes must be copied again.

What was written is read back and compared, here byte by byte, and elsewhere by its CRC-32, which at 4 GiB/s costs
least: it is to find what was damaged, and not what somebody has forged.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from tiflow.jobs.cvs.config import local_path
from tiflow.jobs.cvs.tree import Entry, Lister, fsspec_lister, local_lister, mtime_ns_of

CHUNK_BYTES = 256 << 10  #: at once: it and what is read back of it fit into the cache of a core
VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "ino")  #: of what fsspec tells of a file

Piece: TypeAlias = bytes | memoryview


class Changed(OSError):
    """A file is not what it was when it was looked at."""


class Gone(OSError):
    """What an earlier attempt had written of a file is not there any more."""


class Source(Protocol):
    def read(self, entry: Entry, offset: int = 0, length: int = -1) -> Iterator[Piece]:
        """A file, or a range of it, in pieces, each of which is good until the next. Raises OSError; Changed if it
        is not what was listed, or, at the end, if it changed meanwhile."""


class Target(Protocol):
    def has(self, entry: Entry) -> bool:
        """Whether there is a file of the same size and time."""

    def put(self, entry: Entry, chunks: Iterator[Piece], *, verify: bool) -> int:
        """Write a file. Returns: its bytes."""

    def begin(self, entry: Entry) -> None:
        """Ranges of a file are to come, in any order."""

    def put_range(self, entry: Entry, offset: int, chunks: Iterator[Piece], *, verify: bool) -> int:
        """Raises Gone."""

    def finish(self, entry: Entry) -> None:
        """All its ranges were put. Raises Gone."""

    def make(self, entry: Entry) -> None:
        """A directory or a link."""

    def set_attributes(self, entry: Entry) -> None:
        """Of a directory."""


class LocalSource:
    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._is_file = os.path.isfile(self._root)

    @property
    def lister(self) -> Lister:
        return local_lister(self._root)

    def read(self, entry: Entry, offset: int = 0, length: int = -1) -> Iterator[Piece]:
        fd = os.open(
            self._root if self._is_file else os.path.join(self._root, entry.path), os.O_RDONLY | os.O_CLOEXEC
        )
        try:
            before = os.fstat(fd)
            left = before.st_size - offset if length < 0 else length
            if (before.st_size, before.st_mtime_ns) != (entry.size, entry.mtime_ns):
                raise Changed(f"{_shown(entry)} changed after it was listed")
            buffer = memoryview(bytearray(min(max(left, 1), CHUNK_BYTES)))  # one for all: new memory is slow
            while left > 0:
                count = os.preadv(fd, [buffer[:left]], offset)
                if not count:
                    raise Changed(f"{_shown(entry)} became shorter")
                offset += count
                left -= count
                yield buffer[:count]
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise Changed(f"{_shown(entry)} changed while it was copied")
        finally:
            os.close(fd)

    def look(self, entry: Entry) -> Entry:
        """As it is now."""
        path = self._root if self._is_file else os.path.join(self._root, entry.path)
        status = os.stat(path)
        return Entry(entry.path, entry.kind, status.st_size, status.st_mtime_ns, status.st_mode & 0o7777)


class FsspecSource:
    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root
        self._is_file = fs.isfile(root)

    @property
    def lister(self) -> Lister:
        return fsspec_lister(self._fs, self._root)

    def read(self, entry: Entry, offset: int = 0, length: int = -1) -> Iterator[Piece]:
        path = self._path(entry)
        left = entry.size - offset if length < 0 else length
        before = size, mtime_ns, _ = self._version(path)
        # lists of a backend may be finer or coarser than what it tells of one file, or have no time at all
        moved = entry.mtime_ns and mtime_ns and abs(mtime_ns - entry.mtime_ns) >= 1_000_000_000
        if size != entry.size or moved:
            raise Changed(f"{_shown(entry)} changed after it was listed")
        with self._fs.open(path, "rb") as file:
            if offset:
                file.seek(offset)
            while left > 0:
                data = file.read(min(left, CHUNK_BYTES))
                if not data:
                    raise Changed(f"{_shown(entry)} became shorter")
                left -= len(data)
                yield data
        if self._version(path) != before:
            raise Changed(f"{_shown(entry)} changed while it was copied")

    def look(self, entry: Entry) -> Entry:
        """As it is now."""
        size, mtime_ns, _ = self._version(self._path(entry))
        return Entry(entry.path, entry.kind, size, mtime_ns, entry.mode)

    def _path(self, entry: Entry) -> str:
        return self._root if self._is_file else f"{self._root}/{entry.path.decode()}"

    def _version(self, path: str) -> tuple[int, int, str]:
        """Size, time and tag as they are now, as far as the backend tells them."""
        self._fs.invalidate_cache(self._fs._parent(path))  # else it tells what it has told before
        info = self._fs.info(path)
        tag = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
        return int(info.get("size") or 0), mtime_ns_of(info), tag


class Fetched:
    """What was read elsewhere, and came here: contents, or why there is none."""

    def __init__(self, contents: Mapping[bytes, bytes | str]) -> None:
        self._contents = contents

    def read(self, entry: Entry, offset: int = 0, length: int = -1) -> Iterator[Piece]:
        content = self._contents[entry.path]
        if isinstance(content, str):
            raise OSError(content)
        yield content


class LocalTarget:
    def __init__(self, root: str, tag: str) -> None:
        """`tag`: of the job, for the names under which files are written."""
        self._root = os.fsencode(root)
        self._tag = tag.encode()
        self._made: set[bytes] = set()
        os.makedirs(self._root, exist_ok=True)

    def has(self, entry: Entry) -> bool:
        try:
            status = os.lstat(self._path(entry))
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)

    def put(self, entry: Entry, chunks: Iterator[Piece], *, verify: bool) -> int:
        path, draft = self._path(entry), self._draft(entry)
        fd = self._open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            written = _write(fd, 0, chunks, verify=verify)
            self._dress(fd, entry)
        except BaseException:
            os.unlink(draft)
            raise
        finally:
            os.close(fd)
        os.rename(draft, path)
        return written

    def begin(self, entry: Entry) -> None:
        fd = self._open(self._draft(entry), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            os.ftruncate(fd, entry.size)
        finally:
            os.close(fd)

    def put_range(self, entry: Entry, offset: int, chunks: Iterator[Piece], *, verify: bool) -> int:
        try:
            fd = os.open(self._draft(entry), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Gone(f"{_shown(entry)}: what was written of it is gone") from None
        try:
            return _write(fd, offset, chunks, verify=verify)
        finally:
            os.close(fd)

    def finish(self, entry: Entry) -> None:
        draft = self._draft(entry)
        try:
            fd = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if self.has(entry):
                return  # an earlier attempt has finished it
            raise Gone(f"{_shown(entry)}: what was written of it is gone") from None
        try:
            self._dress(fd, entry)
        finally:
            os.close(fd)
        os.rename(draft, self._path(entry))

    def make(self, entry: Entry) -> None:
        path = self._path(entry)
        if entry.kind == "d":
            os.makedirs(path, exist_ok=True)
            self._made.add(path)
            return
        draft = self._draft(entry)
        self._make_parent(draft)
        if os.path.lexists(draft):
            os.unlink(draft)
        os.symlink(entry.link, draft)
        os.rename(draft, path)

    def set_attributes(self, entry: Entry) -> None:
        path = self._path(entry)
        if entry.mode >= 0:
            os.chmod(path, entry.mode)
        if entry.mtime_ns:
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))

    def _path(self, entry: Entry) -> bytes:
        return os.path.join(self._root, entry.path)

    def _draft(self, entry: Entry) -> bytes:
        """Beside it, and not longer than a name may be."""
        directory, _, name = entry.path.rpartition(b"/")
        mark = hashlib.sha256(self._tag + b"\0" + name).hexdigest()[:24].encode()
        return os.path.join(self._root, directory, b".tiflow-" + mark)

    def _open(self, path: bytes, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            if not self._make_parent(path):
                raise
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def _make_parent(self, path: bytes) -> bool:
        directory = os.path.dirname(path)
        if directory in self._made and os.path.isdir(directory):
            return False
        os.makedirs(directory, exist_ok=True)
        self._made.add(directory)
        return True

    @staticmethod
    def _dress(fd: int, entry: Entry) -> None:
        os.fchmod(fd, entry.mode if entry.mode >= 0 else 0o644)
        if entry.mtime_ns:
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


class FsspecTarget:
    """Files appear under their names as the backend does it: object stores show nothing of what is not whole. It
    takes no ranges."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root
        fs.makedirs(root, exist_ok=True)

    def has(self, entry: Entry) -> bool:
        """Times cannot be set there: a copy is as old as when it was made."""
        try:
            info = self._fs.info(self._path(entry))
        except (OSError, ValueError):
            return False
        mtime_ns = mtime_ns_of(info)
        return info.get("size") == entry.size and mtime_ns > 0 and mtime_ns >= entry.mtime_ns

    def put(self, entry: Entry, chunks: Iterator[Piece], *, verify: bool) -> int:
        path = self._path(entry)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        checksum = written = 0
        with self._fs.open(path, "wb") as file:
            for data in chunks:
                file.write(bytes(data))
                checksum = zlib.crc32(data, checksum)
                written += len(data)
        if verify:
            again = 0
            with self._fs.open(path, "rb") as file:
                while data := file.read(CHUNK_BYTES):
                    again = zlib.crc32(data, again)
            if checksum != again:
                raise OSError(_DAMAGED)
        return written

    def begin(self, entry: Entry) -> None:
        raise NotImplementedError

    def put_range(self, entry: Entry, offset: int, chunks: Iterator[Piece], *, verify: bool) -> int:
        raise NotImplementedError

    def finish(self, entry: Entry) -> None:
        raise NotImplementedError

    def make(self, entry: Entry) -> None:
        if entry.kind == "l":
            raise OSError("a symbolic link, which this target cannot have")
        self._fs.makedirs(self._path(entry), exist_ok=True)

    def set_attributes(self, entry: Entry) -> None:
        pass

    def _path(self, entry: Entry) -> str:
        return f"{self._root}/{entry.path.decode()}"


def open_source(url: str) -> LocalSource | FsspecSource:
    """Raises OSError when there is nothing."""
    if path := local_path(url):
        os.stat(path)
        return LocalSource(path)
    fs, root = _fsspec(url)
    if not fs.exists(root):
        raise FileNotFoundError(f"{url} does not exist")
    return FsspecSource(fs, root)


def open_target(url: str, tag: str) -> LocalTarget | FsspecTarget:
    if path := local_path(url):
        return LocalTarget(path, tag)
    return FsspecTarget(*_fsspec(url))


def _fsspec(url: str) -> tuple[Any, str]:
    import fsspec.core  # only who needs it pays for it

    fs, root = fsspec.core.url_to_fs(url)
    return fs, str(root).rstrip("/")


def _write(fd: int, offset: int, chunks: Iterator[Piece], *, verify: bool) -> int:
    """Returns: bytes. Raises OSError if what is read back differs."""
    written, again = 0, bytearray()
    for data in chunks:
        at = 0
        while at < len(data):
            at += os.pwrite(fd, data[at:] if at else data, offset + written + at)
        if verify:  # at once, while it is in the processor's cache
            if len(again) != len(data):
                again = bytearray(len(data))
            if os.preadv(fd, [again], offset + written) != len(data) or not again.startswith(data):
                raise OSError(_DAMAGED)
        written += len(data)
    return written


_DAMAGED = "what was written reads back as something else; look at that disk"


def _shown(entry: Entry) -> str:
    return entry.path.decode(errors="backslashreplace")
