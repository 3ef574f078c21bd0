"""The replicated state as rows for the metadata database."""

import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct, msgpack

from tiflow.config import MasterConfig
from tiflow.meta.records import Batch, EventRow, JobRow, Written
from tiflow.sched.machine import Machine
from tiflow.sched.model import Group, Job, JobEvents, job_state, progress
from tiflow.sched.prune import alone, group_size, spec_size
from tiflow.sched.snapshot import encode_state
from tiflow.sched.state import State
from tiflow.sched.views import job_type

BATCH_BYTES = 8 << 20  #: of specs and results in one transaction, about, unless one version has more
BATCH_RESULT_ROWS = 20_000  #: looked at for one transaction, about: the loop must not be held up

_encode = msgpack.Encoder().encode


def metadata_url(config: MasterConfig) -> str:
    """`[metadata] url`, or SQLite under the data directory."""
    return config.metadata.url or f"sqlite:///{Path(config.data_dir).resolve() / 'metadata.db'}"


class StateSource:
    """What `Projector` asks for."""

    def __init__(self, machine: Machine, cluster_id: str) -> None:
        self._machine = machine
        self._cluster_id = cluster_id

    def batch(self, after: int, limit: int) -> Batch:
        state = self._machine.state
        changed = state.changed_since(after, limit)
        # a full page may end between two records of later revisions; an incomplete one is everything there is
        to = changed[-1].mod_revision if len(changed) >= limit else state.revision
        versions: list[_Version] = []
        deleted: list[int] = []
        room, rows_room, last = BATCH_BYTES, BATCH_RESULT_ROWS, 0
        for record in changed:
            if (room <= 0 or rows_room <= 0) and record.mod_revision != last:
                to = last
                break
            last = record.mod_revision
            if isinstance(record, Job):
                version = _version(state, record)
                room -= _size(version)
                rows_room -= len(version.archive.results) if version.archive is not None else 0
                versions.append(version)
            else:
                deleted.append(record.uid)
        return Batch(
            to,
            written=self._written(versions),
            deleted=tuple(deleted),
            persisted=state.persisted,
            pruned=state.pruned_total,
        )

    def living(self) -> Iterator[tuple[int, int]]:
        jobs = list(self._machine.state.jobs.values())
        return ((job.uid, job.mod_revision) for job in jobs)

    def versions(self, uids: Collection[int]) -> list[tuple[int, Iterable[Written]]]:
        state = self._machine.state
        found = ((uid, state.job_of(uid)) for uid in uids)
        return [(uid, self._written([_version(state, job)])) for uid, job in found if job is not None]

    def _written(self, versions: "list[_Version]") -> Iterator[Written]:
        for version in versions:
            archive = version.archive
            yield Written(
                job=_row(version.job, version.groups, self._cluster_id),
                events=_events(version.events),
                archive=pack_archive(archive) if archive is not None else None,
            )


class _Version(Struct, frozen=True):
    """Frozen values: the state may go on while rows are made of them."""

    job: Job
    groups: tuple[Group, ...]
    events: JobEvents | None
    archive: State | None


def _version(state: State, job: Job) -> _Version:
    archive = alone(state, job) if job.ended_at_ms else None
    return _Version(job, state.groups_of(job), state.events.get(job.uid), archive)


def _size(version: _Version) -> int:
    """Bytes of bodies, about, with those that are made of it on the way to the database."""
    size = spec_size(version.job.spec)
    if (archive := version.archive) is not None:
        size += size + sum(group_size(group.spec) for group in archive.groups.values() if group.spec)
        size += sum(len(row.results) + len(row.error) for row in archive.results.values())
    return size


def pack_archive(state: State) -> bytes:
    """As `history.unpack_archive` reads it."""
    return zlib.compress(b"".join(encode_state(state)), level=1)


def _row(job: Job, groups: tuple[Group, ...], cluster_id: str) -> JobRow:
    sums = progress(groups)
    return JobRow(
        uid=job.uid,
        id=job.id,
        cluster_id=cluster_id,
        state=str(job_state(job, groups)),
        type=job_type(job),
        spec=_encode(job.spec),
        token=job.token,
        priority=job.spec.priority,
        total=sums.total + job.dropped,
        succeeded=sums.succeeded + job.dropped - job.dropped_failed - job.dropped_canceled,
        failed=sums.failed + job.dropped_failed,
        canceled=sums.canceled + job.dropped_canceled,
        submitted_at_ms=job.submitted_at_ms,
        started_at_ms=job.started_at_ms,
        ended_at_ms=job.ended_at_ms,
        mod_revision=job.mod_revision,
    )


def _events(record: JobEvents | None) -> tuple[EventRow, ...]:
    if record is None:
        return ()
    rows: list[EventRow] = []
    if record.omitted:
        first = record.events[0]
        text = f"{record.omitted} events omitted: the database was away"
        rows.append(EventRow(record.uid, first.revision, 0, first.at_ms, "omitted", text))
    seq = 0
    for before, event in zip((None, *record.events), record.events, strict=False):
        seq = seq + 1 if before is not None and before.revision == event.revision else 1
        rows.append(EventRow(record.uid, event.revision, seq, event.at_ms, event.kind, event.message, event.by))
    return tuple(rows)
