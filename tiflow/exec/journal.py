"""The ends of tasks that the leader may not have heard of, on disk, until it says that they are committed.

A finish that happened is not repeated because the agent died: who comes after it (the reporter, or the next agent on
the same data directory) hands over what stands here before it says that the incarnation is over. To say something
twice is harmless: the leader takes an end once, and ignores placements that are over.

The file is a sequence of records: length, CRC-32, body. The first body is the `Hello` that ends the incarnation, the
others are reports in msgpack. What was written outlives the process (it is in the kernel's page cache); nothing is
fsynced, so what a power cut takes is run again. A torn or damaged tail ends the file.
"""

import contextlib
import errno
import os
import struct
from binascii import crc32
from collections.abc import Iterable, Iterator, Sequence

import structlog
from google.protobuf.message import DecodeError
from msgspec import MsgspecError, msgpack

from tiflow.exec import convert
from tiflow.exec.outbox import BATCH_BYTES_MAX, BATCH_REPORTS_MAX, Outbox, Report
from tiflow.rpc import tiflow_pb2 as pb

COMPACT_BYTES = 1 << 20  #: a journal that has grown by so much, and to twice what it began with, is written anew
RECORD_BYTES_MAX = 16 << 20

_encode = msgpack.Encoder().encode
_decode = msgpack.Decoder(list[Report]).decode
_HEAD = struct.Struct("<II")  #: length and CRC-32 of the body

log = structlog.get_logger()


class Journal:
    """Written by one agent. A disk that takes no more is said once; then tasks may be run again after a crash."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.compact_bytes = COMPACT_BYTES
        self._fd = -1
        self._hello = b""
        self._bytes = 0
        self._compact_at = COMPACT_BYTES
        self._broken = False

    def begin(self, hello: pb.Hello) -> None:
        """Start anew, for the incarnation that `hello` is to end."""
        self._hello = hello.SerializeToString()
        self._rewrite(())

    def keep(self, outbox: Outbox) -> None:
        """Write what was reported since the last call: one write, whatever the number of tasks."""
        fresh = outbox.take_fresh()
        if fresh and self._fd >= 0 and not self._broken:
            data = b"".join(_records(fresh))
            try:
                _write(self._fd, data)
            except OSError as error:
                self._fail(error)
            self._bytes += len(data)

    def trim(self, outbox: Outbox) -> None:
        """After an acknowledgement: drop what is committed, now and then."""
        if self._broken or (self._fd >= 0 and self._bytes >= self._compact_at):
            self._rewrite(outbox.unacknowledged())

    def remove(self) -> None:
        """The incarnation has ended in order."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _rewrite(self, reports: Sequence[Report]) -> None:
        draft = f"{self.path}.tmp"
        data = b"".join((_record(self._hello), *_records(reports)))
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, data)
                os.rename(draft, self.path)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            self._fail(error)
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._bytes, self._broken = fd, len(data), False
        self._compact_at = max(self.compact_bytes, 2 * len(data))

    def _fail(self, error: OSError) -> None:
        if not self._broken:
            log.error("journal_not_written", path=self.path, error=error.strerror or str(error))
        self._broken = True


def read(path: str) -> tuple[pb.Hello | None, list[pb.Events]]:
    """How to end the incarnation that wrote the journal, and what it had to say; (None, []) if there is none."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None, []
    bodies = _bodies(data)
    reports: list[Report] = []
    try:
        hello = pb.Hello.FromString(next(bodies))
    except (StopIteration, DecodeError):
        return None, []
    for body in bodies:
        try:
            reports += _decode(body)
        except MsgspecError:  # another version wrote it: as a damaged tail
            break
    return hello, batches(reports)


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _records(reports: Sequence[Report]) -> list[bytes]:
    parts = [reports[at : at + BATCH_REPORTS_MAX] for at in range(0, len(reports), BATCH_REPORTS_MAX)]
    records: list[bytes] = []
    while parts:
        part = parts.pop(0)
        body = _encode(part)
        if len(body) > RECORD_BYTES_MAX and len(part) > 1:  # large results: who reads it would take it for damage
            parts[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
        else:
            records.append(_record(body))
    return records


def _record(body: bytes) -> bytes:
    return _HEAD.pack(len(body), crc32(body)) + body


def _bodies(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        if not length or len(body) < length or length > RECORD_BYTES_MAX or crc32(body) != crc:
            return
        yield body
        at += _HEAD.size + length


def batches(reports: Iterable[Report], seq: int = 1) -> list[pb.Events]:
    """Reports in messages of a size that the leader takes, numbered from `seq` on."""
    found: list[pb.Events] = []
    size = 0
    for event in convert.event_list(reports).events:
        size += event.ByteSize()
        if not found or size > BATCH_BYTES_MAX or len(found[-1].events) >= BATCH_REPORTS_MAX:
            found.append(pb.Events(seq=seq + len(found)))
            size = event.ByteSize()
        found[-1].events.append(event)
    return found
