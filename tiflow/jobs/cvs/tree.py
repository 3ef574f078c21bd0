"""Trees of files: what there is, in one order that does not depend on who looks.

The order is that of paths as tuples of names, so a walk can go on after any path.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from msgspec import Struct

FILES_MAX = 1_000  #: of a shard
SHARD_BYTES = 64 << 20  #: of its files; a larger file is several shards
ENTRIES_BYTES_MAX = 512 << 10  #: of their descriptions: a shard is one message

FILE, DIRECTORY, LINK = "f", "d", "l"


class Entry(Struct, array_like=True, frozen=True):
    """Something in a tree. Paths are bytes, as Linux has them, relative to the root of the tree."""

    path: bytes
    kind: str  #: f: a file, d: a directory, l: a symbolic link
    size: int = 0
    mtime_ns: int = 0
    mode: int = -1  #: permissions; -1: not known
    link: bytes = b""  #: what a link says


class Unlisted(Struct, array_like=True, frozen=True):
    """A directory, or something in one, that could not be looked at."""

    path: bytes
    error: str


Found: TypeAlias = Entry | Unlisted
Lister: TypeAlias = Callable[[bytes], Sequence[Found]]  #: what lies directly in a directory; raises OSError


def walk(ls: Lister, after: bytes = b"") -> Iterator[Found]:
    """All below the root, depth first, each directory before what is in it; only what comes after that path."""
    parts = after.split(b"/") if after else []
    stack = [_listed(ls, b"", parts)]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            continue
        entry, rest = found
        if rest is None:
            yield entry
        if isinstance(entry, Entry) and entry.kind == DIRECTORY:
            stack.append(_listed(ls, entry.path, rest or []))


def _listed(ls: Lister, directory: bytes, after: list[bytes]) -> Iterator[tuple[Found, list[bytes] | None]]:
    """What lies in a directory; `None`: it comes after the path of which `after` are the parts that are left, else
    the parts that are left below it."""
    try:
        entries = sorted(ls(directory), key=lambda entry: entry.path)
    except OSError as error:
        yield Unlisted(directory, f"cannot be listed: {error.strerror or error}"), None
        return
    for entry in entries:
        name = entry.path.rpartition(b"/")[2]
        if after and name < after[0]:
            continue
        yield entry, (after[1:] if after and name == after[0] else None)


def local_lister(root: bytes) -> Lister:
    """Of a directory here. What is neither file, directory nor link is left out. A root that is a file is its only
    entry."""

    def ls(directory: bytes) -> list[Found]:
        path = os.path.join(root, directory) if directory else root
        if not directory and os.path.isfile(root):
            return [_entry(os.path.basename(root), os.stat(root))]
        found: list[Found] = []
        with os.scandir(path) as entries:
            for one in entries:
                relative = directory + b"/" + one.name if directory else one.name
                try:
                    status = one.stat(follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        found.append(Entry(relative, LINK, 0, status.st_mtime_ns, -1, os.readlink(one.path)))
                    elif stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                        found.append(_entry(relative, status))
                except OSError as error:
                    found.append(Unlisted(relative, f"cannot be looked at: {error.strerror}"))
        return found

    return ls


def fsspec_lister(fs: Any, root: str) -> Lister:
    """Of a directory that fsspec opens."""

    def ls(directory: bytes) -> list[Found]:
        path = f"{root}/{directory.decode()}" if directory else root
        if not directory and fs.isfile(root):
            return [_of_fsspec(root.rpartition("/")[2], fs.info(root))]
        found: list[Found] = []
        for info in fs.ls(path, detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2]
            if name and info["name"].rstrip("/") != path.rstrip("/"):
                found.append(_of_fsspec(f"{directory.decode()}/{name}" if directory else name, info))
        return found

    return ls


def _entry(path: bytes, status: os.stat_result) -> Entry:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Entry(path, DIRECTORY, 0, status.st_mtime_ns, mode)
    return Entry(path, FILE, status.st_size, status.st_mtime_ns, mode)


def _of_fsspec(path: str, info: dict[str, Any]) -> Entry:
    if info["type"] == "directory":
        return Entry(path.encode(), DIRECTORY)
    return Entry(path.encode(), FILE, int(info.get("size") or 0), mtime_ns_of(info))


def mtime_ns_of(info: dict[str, Any]) -> int:
    """Backends name it as they like; 0: they do not say."""
    for key in ("mtime", "LastModified", "last_modified", "created"):
        match info.get(key):
            case int() | float() as seconds:
                return int(seconds * 1e9)
            case datetime() as moment:
                return int(moment.timestamp() * 1e9)
    return 0


class Shard(Struct, frozen=True):
    """What a worker does at once: it copies entries; or a range of one file, which others have begun and finish."""

    number: int
    entries: tuple[Entry, ...]
    offset: int = 0
    length: int = -1  #: of a range; -1: whole files
    begin: bool = False  #: ranges of it are to come
    finish: bool = False  #: all ranges are there: give it its name
    attributes: bool = False  #: of directories: give them their times and permissions

    @property
    def is_part(self) -> bool:
        return self.begin or self.finish or self.length >= 0


def shards(
    entries: Sequence[Entry], first: int = 0, *, in_ranges: bool, resume: tuple[Entry | None, int] | None = None
) -> Iterator[Shard]:
    """Group entries into shards, numbered from `first`.

    Args:
        in_ranges: a large file becomes a shard that begins it, those of its ranges, and one that finishes it.
        resume: a file, as it was, and up to where its ranges are done. One that has changed since begins anew.
    """
    number = first
    batch: list[Entry] = []
    size = described = 0
    for entry in entries:
        large = in_ranges and entry.kind == FILE and entry.size > SHARD_BYTES
        full = len(batch) == FILES_MAX or size + entry.size > SHARD_BYTES or described > ENTRIES_BYTES_MAX
        if batch and (large or full):
            yield Shard(number, tuple(batch))
            number, batch, size, described = number + 1, [], 0, 0
        if not large:
            batch.append(entry)
            size += entry.size
            described += len(entry.path) + len(entry.link) + 40
            continue
        begun = resume[1] if resume is not None and resume[0] == entry else 0
        if not begun:
            yield Shard(number, (entry,), begin=True)
            number += 1
        for start in range(begun, entry.size, SHARD_BYTES):
            yield Shard(number, (entry,), start, min(SHARD_BYTES, entry.size - start))
            number += 1
        yield Shard(number, (entry,), finish=True)
        number += 1
    if batch:
        yield Shard(number, tuple(batch))
