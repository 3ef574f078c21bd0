"""Copies one shard. Blocks; workers call it in a thread."""

import os

from msgspec import Struct

from tiflow.jobs.cvs.ends import Changed, FsspecSource, Gone, LocalSource, Source, Target
from tiflow.jobs.cvs.tree import DIRECTORY, FILE, Entry, Shard

CHANGES_MAX = 3  #: times that a file may change while it is copied before it is given up
ERRORS_MAX = 20  #: of a shard that are told; all are counted


class Done(Struct):
    """What became of a shard."""

    number: int
    files: int = 0  #: copied
    same: int = 0  #: left as they were
    bytes: int = 0  #: written
    failed: int = 0
    errors: list[tuple[str, str]] = []  #: path, and why; of the first that failed
    gone: bool = False  #: what an earlier attempt had written is not there any more: the file must be copied anew

    def fail(self, entry: Entry, error: OSError | ValueError) -> None:
        self.failed += 1
        if len(self.errors) < ERRORS_MAX:
            text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            self.errors.append((entry.path.decode(errors="backslashreplace"), text))


def copy_shard(shard: Shard, source: Source, target: Target, *, compare: bool, verify: bool) -> Done:
    """What cannot be copied is in the result."""
    done = Done(shard.number, errors=[])
    if shard.is_part:
        _copy_part(shard, source, target, done, compare=compare, verify=verify)
        return done
    for entry in shard.entries:
        try:
            check_path(entry)
            if shard.attributes:
                target.set_attributes(entry)
            elif entry.kind != FILE:
                target.make(entry)
                done.files += entry.kind != DIRECTORY
            elif compare and target.has(entry):
                done.same += 1
            else:
                done.bytes += _copy_file(entry, source, target, verify=verify)
                done.files += 1
        except (OSError, ValueError) as error:
            done.fail(entry, error)
    return done


def check_path(entry: Entry) -> None:
    """Raises ValueError if it would lead out of the tree."""
    if not entry.path or entry.path.startswith(b"/") or b".." in entry.path.split(b"/"):
        raise ValueError("a path that leads out of the tree")


def _copy_file(entry: Entry, source: Source, target: Target, *, verify: bool) -> int:
    for _ in range(CHANGES_MAX - 1):
        try:
            return target.put(entry, source.read(entry), verify=verify)
        except Changed:
            if not isinstance(source, LocalSource | FsspecSource):
                raise
            entry = source.look(entry)
    return target.put(entry, source.read(entry), verify=verify)


def _copy_part(shard: Shard, source: Source, target: Target, done: Done, *, compare: bool, verify: bool) -> None:
    (entry,) = shard.entries
    try:
        check_path(entry)
        if compare and target.has(entry):
            done.same += shard.finish
        elif shard.begin:
            target.begin(entry)
        elif shard.finish:
            target.finish(entry)
            done.files += 1
        else:
            chunks = source.read(entry, shard.offset, shard.length)
            done.bytes += target.put_range(entry, shard.offset, chunks, verify=verify)
    except Gone as error:
        done.gone = True
        done.fail(entry, error)
    except (OSError, ValueError) as error:
        done.fail(entry, error)
