"""Between protobuf and the executor's own types."""

import re
from collections.abc import Iterable

from msgspec import msgpack

from tiflow.errors import InvalidArgument
from tiflow.exec.actions import Assignment
from tiflow.exec.outbox import Batch, Report
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.convert import limits_from_proto, work_from_proto
from tiflow.sched.model import ID_CHARS

_encode = msgpack.Encoder().encode
_is_id = re.compile(ID_CHARS).fullmatch


def check_group(group: str) -> str:
    """A group's name becomes part of a path."""
    if not _is_id(group):
        raise InvalidArgument(f"group = {group!r}: must match {ID_CHARS}")
    return group


def assignment(message: pb.Assignment) -> Assignment:
    return Assignment(
        placement=message.placement,
        job_id=message.job_id,
        job_uid=message.job_uid,
        group=check_group(message.group),
        start=message.start,
        stop=message.stop,
        attempt=message.attempt,
        work=work_from_proto(message),
        items=message.items,
        timeout_ms=message.timeout_ms,
        grace_ms=message.grace_ms,
        limits=limits_from_proto(message.limits),
        left=message.left,
        count=message.count,
    )


def events(batch: Batch) -> pb.Events:
    return pb.Events(seq=batch.seq, events=[_event(report) for report in batch.reports])


def event_list(reports: Iterable[Report]) -> pb.Events:
    """Reports that are not in a batch."""
    return pb.Events(events=[_event(report) for report in reports])


def _event(report: Report) -> pb.TaskEvent:
    return pb.TaskEvent(
        placement=report.placement,
        start=report.start,
        stop=report.stop,
        kind=report.kind,
        results=b"" if report.results is None else _encode(report.results),
        error=report.error,
        exit_code=report.exit_code,
        final=report.final,
        run_us=report.run_us,
        cpu_us=report.cpu_us,
        memory_bytes=report.memory_bytes,
    )
