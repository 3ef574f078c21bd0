"""Reads jobs back that have left the replicated state. Blocks: call it in a thread."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from tiflow.errors import Unavailable
from tiflow.meta.records import EventRow, JobRow
from tiflow.meta.store import CHUNK_ROWS
from tiflow.meta.tables import (
    JOB_ARCHIVES,
    JOB_EVENTS,
    JOBS,
    PROJECTION,
    TABLES_OF_A_JOB,
    TERMINAL,
    reason,
)
from tiflow.sched.snapshot import decode_state
from tiflow.sched.state import State

LIMIT_MAX = 1_000
ARCHIVE_BYTES_MAX = 256 << 20  #: of an unpacked archive: an error of ours or of the database would show here

T = TypeVar("T")

_COLUMNS = [JOBS.c[name] for name in JobRow.__struct_fields__]


class History:
    """Jobs of one cluster as the database has them. Methods raise Unavailable when it does not answer, or is another
    cluster's."""

    def __init__(self, engine: sa.Engine, cluster_id: str) -> None:
        self._engine = engine
        self._cluster_id = cluster_id

    def get_job(self, id: str) -> JobRow | None:
        """The newest job of this id."""
        query = sa.select(*_COLUMNS).where(JOBS.c.id == id).order_by(JOBS.c.uid.desc()).limit(1)
        rows = self._read(lambda connection: _job_rows(connection, query))
        return rows[0] if rows else None

    def list_jobs(
        self,
        limit: int = 100,
        *,
        state: str = "",
        before_uid: int = 0,
        after_uid: int = 0,
        ended_only: bool = False,
    ) -> list[JobRow]:
        """The newest first, between the two uids; `before_uid` is the last one's of the page before. Their specs are
        left out."""
        columns = [sa.literal(b"").label("spec") if column is JOBS.c.spec else column for column in _COLUMNS]
        query = sa.select(*columns).order_by(JOBS.c.uid.desc()).limit(min(limit, LIMIT_MAX))
        if state:
            query = query.where(JOBS.c.state == state)
        if before_uid:
            query = query.where(JOBS.c.uid < before_uid)
        if after_uid:
            query = query.where(JOBS.c.uid > after_uid)
        if ended_only:
            query = query.where(JOBS.c.state.in_(TERMINAL))
        return self._read(lambda connection: _job_rows(connection, query))

    def archived(self, id: str, uid: int = 0) -> State | None:
        """A state that has this job alone, which has ended: the newest of this id, or the one with `uid`."""
        query = (
            sa.select(JOB_ARCHIVES.c.body)
            .join(JOBS, JOBS.c.uid == JOB_ARCHIVES.c.uid)
            .where(JOBS.c.id == id, JOBS.c.state.in_(TERMINAL))
            .order_by(JOBS.c.uid.desc())
            .limit(1)
        )
        if uid:
            query = query.where(JOBS.c.uid == uid)
        body = self._read(lambda connection: connection.scalar(query))
        return None if body is None else unpack_archive(body)

    def events(self, uid: int, *, after: tuple[int, int] = (0, 0), limit: int = LIMIT_MAX) -> list[EventRow]:
        """In order; `after` is (revision, seq) of the last one of the page before."""
        columns = [JOB_EVENTS.c[name] for name in EventRow.__struct_fields__]
        key = sa.tuple_(JOB_EVENTS.c.revision, JOB_EVENTS.c.seq)
        query = sa.select(*columns).where(JOB_EVENTS.c.uid == uid).order_by(JOB_EVENTS.c.revision, JOB_EVENTS.c.seq)
        if after != (0, 0):
            query = query.where(key > after)
        query = query.limit(min(limit, LIMIT_MAX))
        return self._read(lambda connection: [EventRow(*row) for row in connection.execute(query)])

    def archived_revisions(self, uids: Sequence[int]) -> dict[int, int]:
        """The `mod_revision` of each of these jobs that is archived."""

        def work(connection: sa.Connection) -> dict[int, int]:
            found: dict[int, int] = {}
            for first in range(0, len(uids), CHUNK_ROWS):
                query = sa.select(JOBS.c.uid, JOBS.c.mod_revision).join(
                    JOB_ARCHIVES, JOBS.c.uid == JOB_ARCHIVES.c.uid
                )
                query = query.where(JOBS.c.uid.in_(uids[first : first + CHUNK_ROWS]), JOBS.c.state.in_(TERMINAL))
                found.update((row.uid, row.mod_revision) for row in connection.execute(query))
            return found

        return self._read(work)

    def unfinished(self) -> list[JobRow]:
        """All of them, the oldest first."""
        query = sa.select(*_COLUMNS).where(JOBS.c.state.not_in(TERMINAL)).order_by(JOBS.c.uid)
        return self._read(lambda connection: _job_rows(connection, query))

    def delete(self, id: str, uid_max: int) -> int:
        """Delete all finished jobs of this id, but for those that were submitted after revision `uid_max`. Returns:
        how many there were."""

        def work(connection: sa.Connection) -> int:
            found = sa.select(JOBS.c.uid).where(JOBS.c.id == id, JOBS.c.uid <= uid_max, JOBS.c.state.in_(TERMINAL))
            uids = list(connection.scalars(found))
            for first in range(0, len(uids), CHUNK_ROWS):
                for table in TABLES_OF_A_JOB:
                    connection.execute(table.delete().where(table.c.uid.in_(uids[first : first + CHUNK_ROWS])))
            return len(uids)

        return self._read(work)

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                owner = connection.scalar(sa.select(PROJECTION.c.cluster_id))
                if owner != self._cluster_id:
                    raise Unavailable(f"the metadata database belongs to {owner or 'no cluster yet'}")
                return work(connection)
        except sa.exc.SQLAlchemyError as error:
            raise Unavailable(f"the metadata database does not answer: {reason(error)}") from error


def unpack_archive(body: bytes) -> State:
    """The state that the master packed."""
    inflate = zlib.decompressobj()
    data = inflate.decompress(body, ARCHIVE_BYTES_MAX)
    return decode_state(data)


def _job_rows(connection: sa.Connection, query: sa.Select[Any]) -> list[JobRow]:
    return [JobRow(**row) for row in connection.execute(query).mappings()]
