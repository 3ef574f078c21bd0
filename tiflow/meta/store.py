"""The projector's transactions. Everything here blocks; it runs in a thread."""

from collections.abc import Collection
from functools import partial
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy.dialects import mysql, sqlite

from tiflow.meta import schema
from tiflow.meta.records import Batch
from tiflow.meta.tables import JOB_ARCHIVES, JOB_EVENTS, JOBS, PROJECTION, TABLES_OF_A_JOB, TERMINAL

CHUNK_ROWS = 500  #: uids in one statement: SQLite takes 32,766 variables, and packets have a limit


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
        found = read_projection(self._engine)
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

    def advance(self, read: int, batch: Batch) -> bool:
        """Moves the database from revision `read` to `batch.to`. False: it is not at `read`; nothing changed."""
        assert batch.to > read, (read, batch.to)
        written = list(batch.written)
        ended = [one for one in written if one.archive is not None]
        going_on = [one.job.uid for one in written if one.archive is None]
        events = [asdict(event) for one in written for event in one.events if event.revision > read]
        with self._engine.begin() as connection:
            # First, since it locks the row: a second writer waits here, and then misses.
            moved = connection.execute(
                PROJECTION.update()
                .where(PROJECTION.c.revision == read, PROJECTION.c.cluster_id == self._cluster_id)
                .values(revision=batch.to, pruned=batch.pruned)
            )
            if moved.rowcount != 1:
                return False
            self._write(connection, JOBS, [asdict(one.job) for one in written])
            self._write(connection, JOB_EVENTS, events)
            self._write(connection, JOB_ARCHIVES, [{"uid": one.job.uid, "body": one.archive} for one in ended])
            _delete(connection, (JOB_ARCHIVES,), going_on)  # it had ended, and runs again
            _delete(connection, TABLES_OF_A_JOB, batch.deleted)
        return True

    def drop_unfinished(self, read: int, living: Collection[int]) -> list[str]:
        """Unfinished jobs of which the masters know nothing (any more) go. Returns: their ids."""
        query = sa.select(JOBS.c.uid, JOBS.c.id).where(JOBS.c.state.not_in(TERMINAL))
        with self._engine.begin() as connection:
            own = sa.select(PROJECTION.c.id).where(
                PROJECTION.c.revision == read, PROJECTION.c.cluster_id == self._cluster_id
            )
            if connection.execute(own.with_for_update()).one_or_none() is None:
                return []
            lost = [(uid, id) for uid, id in connection.execute(query) if uid not in living]
            _delete(connection, TABLES_OF_A_JOB, [uid for uid, _ in lost])
        return [id for _, id in lost]

    def _write(self, connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            connection.execute(self._upsert(table), rows)


def read_projection(engine: sa.Engine) -> tuple[str, Stand] | None:
    """Whose the database is, and where it stands; None: nobody's yet."""
    with engine.connect() as connection:
        columns = (PROJECTION.c.cluster_id, PROJECTION.c.revision, PROJECTION.c.pruned)
        row = connection.execute(sa.select(*columns)).one_or_none()
    return None if row is None else (row.cluster_id, Stand(row.revision, row.pruned))


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
