"""The projector's transactions. Everything here blocks; it runs in a thread."""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import asdict, replace
from sqlalchemy.dialects import mysql, sqlite

from tiflow.meta import schema
from tiflow.meta.records import Batch, Refused, Written
from tiflow.meta.tables import JOB_ARCHIVES, JOB_EVENTS, JOBS, PROJECTION, TABLES_OF_A_JOB, UNFINISHED
from tiflow.parts import in_parts

CHUNK_ROWS = 500  #: uids in one statement: SQLite takes 32,766 variables, and packets have a limit
PART_BYTES = 4 << 20  #: of bodies in memory at one time, unless a single version has more


class ForeignCluster(Exception):
    """The database belongs to another cluster. Nothing is written to it."""


class Stand(Struct, frozen=True):
    """Where a database stands."""

    revision: int
    pruned: int  #: jobs that the masters had left to it alone by then


class Store:
    """A database that stands at a revision of one cluster's state.

    The row in `projection` is the guard: whoever moves it from the revision that was read to a higher one
    writes what changed between the two, in the same transaction. So any number of writers may try, and a
    deposed leader's late transaction cannot land.
    """

    def __init__(self, engine: sa.Engine, cluster_id: str) -> None:
        self._engine = engine
        self._cluster_id = cluster_id
        self._upsert = partial(upsert, engine.dialect.name)
        self._migrated = False

    def close(self) -> None:
        self._engine.dispose()

    def stand(self) -> Stand:
        """Where the database stands. The first call makes what is missing: the tables, the row.

        Raises ForeignCluster, schema.NewerSchema, SQLAlchemyError.
        """
        if not self._migrated:
            schema.ensure(self._engine)
            self._migrated = True
        try:
            found = read_projection(self._engine)
        except sa.exc.SQLAlchemyError:
            self._migrated = False  # the tables may be gone
            raise
        if found is None:
            try:
                with self._engine.begin() as connection:
                    first = {"id": 1, "cluster_id": self._cluster_id, "revision": 0, "pruned": 0}
                    connection.execute(PROJECTION.insert().values(first))
            except sa.exc.IntegrityError:  # another writer was faster
                pass
            found = read_projection(self._engine)
            assert found is not None, "an inserted row is there"
        cluster_id, stand = found
        if cluster_id != self._cluster_id:
            raise ForeignCluster(
                f"the database belongs to cluster {cluster_id}, and this is {self._cluster_id}: give every cluster a "
                "database of its own ([metadata] url); or, if that one is lost, start all masters with empty data "
                "directories and --restore-from-metadata"
            )
        return stand

    def advance(self, read: int, batch: Batch, *, bare: int = 0) -> list[Refused] | None:
        """Moves the database from revision `read` to `batch.to`. None: it is not at `read`; nothing changed.

        `bare`: so many versions, the largest, are written without their bodies, which the database may refuse for
        ever. Returns: which.
        """
        assert batch.to > read, (read, batch.to)
        with self._engine.begin() as connection:
            # First, since it locks the row: a second writer waits here, and then misses.
            moved = connection.execute(
                PROJECTION.update().where(*self._at(read)).values(revision=batch.to, pruned=batch.pruned)
            )
            if moved.rowcount != 1:
                return None
            refused = self._write_versions(connection, batch.written, after=read, bare=bare)
            _delete(connection, TABLES_OF_A_JOB, batch.deleted)
        return refused

    def rewrite(self, read: int, written: Iterable[Written]) -> bool:
        """Writes what the database, which stands at `read`, has in another version. False: it is not at `read`."""
        with self._engine.begin() as connection:
            if not self._lock(connection, read):
                return False
            self._write_versions(connection, written, after=0)
        return True

    def differing(self, read: int, living: Iterable[tuple[int, int]], *, drop: bool) -> tuple[list[str], list[int]]:
        """Its unfinished jobs beside all that the masters have (`living`: uid and `mod_revision`). With `drop` those
        go that they do not have. Returns: ids of these, uids of those that should be there in another version."""
        query = sa.select(JOBS.c.uid, JOBS.c.id, JOBS.c.mod_revision).where(JOBS.c.state.in_(UNFINISHED))
        known = dict(living)
        with self._engine.begin() as connection:
            if not self._lock(connection, read):
                return [], []
            rows = connection.execute(query).all()
            if drop:
                _delete(connection, TABLES_OF_A_JOB, [row.uid for row in rows if row.uid not in known])
        lost = [row.id for row in rows if row.uid not in known]
        differ = [row for row in rows if row.uid in known and row.mod_revision != known[row.uid] <= read]
        return lost, [row.uid for row in differ]

    def packet_max(self) -> int:
        return packet_max(self._engine)

    def _at(self, read: int) -> tuple[sa.ColumnElement[bool], ...]:
        return PROJECTION.c.revision == read, PROJECTION.c.cluster_id == self._cluster_id

    def _lock(self, connection: sa.Connection, read: int) -> bool:
        """Whether the database stands at `read`, and then keep it there until the transaction ends."""
        same = PROJECTION.update().where(*self._at(read)).values(revision=PROJECTION.c.revision)
        return connection.execute(same).rowcount == 1

    def _write_versions(
        self, connection: sa.Connection, written: Iterable[Written], *, after: int, bare: int = 0
    ) -> list[Refused]:
        """With their events that are later than revision `after`."""
        refused: list[Refused] = []
        if bare:
            written = sorted(written, key=lambda one: -one.size)
            refused = [Refused(one.job.uid, one.job.id, one.packet) for one in written[:bare]]
            written = [*map(_bare, written[:bare]), *written[bare:]]
        for part in in_parts(written, lambda one: one.size, PART_BYTES, CHUNK_ROWS):
            events = [asdict(event) for one in part for event in one.events if event.revision > after]
            archives = [{"uid": one.job.uid, "body": one.archive} for one in part if one.archive is not None]
            self._write(connection, JOBS, [asdict(one.job) for one in part])
            self._write(connection, JOB_EVENTS, events)
            self._write(connection, JOB_ARCHIVES, archives)
            # it had ended, and runs again
            _delete(connection, (JOB_ARCHIVES,), [one.job.uid for one in part if one.archive is None])
        return refused

    def _write(self, connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            connection.execute(self._upsert(table), rows)


def packet_max(engine: sa.Engine) -> int:
    """Bytes that the server takes at once."""
    if engine.dialect.name == "sqlite":
        return 1_000_000_000
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())


def read_projection(engine: sa.Engine) -> tuple[str, Stand] | None:
    """Whose the database is, and where it stands; None: nobody's yet."""
    with engine.connect() as connection:
        columns = (PROJECTION.c.cluster_id, PROJECTION.c.revision, PROJECTION.c.pruned)
        row = connection.execute(sa.select(*columns)).one_or_none()
    return None if row is None else (row.cluster_id, Stand(row.revision, row.pruned))


def _bare(version: Written) -> Written:
    """Its revision says that it is not the version that the masters have."""
    return Written(replace(version.job, spec=b"", mod_revision=0), version.events)


def _delete(connection: sa.Connection, tables: Collection[sa.Table], uids: Collection[int]) -> None:
    uids = list(uids)
    for first in range(0, len(uids), CHUNK_ROWS):
        for table in tables:
            connection.execute(table.delete().where(table.c.uid.in_(uids[first : first + CHUNK_ROWS])))


def upsert(dialect: str, table: sa.Table) -> sa.Insert:
    """Insert rows, or overwrite all of them but their key."""
    names = [column.name for column in table.columns if not column.primary_key]
    keys = [column for column in table.columns if column.primary_key]
    if dialect == "sqlite":
        insert = sqlite.insert(table)
        return insert.on_conflict_do_update(index_elements=keys, set_={name: insert.excluded[name] for name in names})
    insert_mysql = mysql.insert(table)
    return insert_mysql.on_duplicate_key_update({name: insert_mysql.inserted[name] for name in names})
