"""A database of each kind, and a replicated state small enough to read."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tests.mysql import Server
from tiflow.meta.history import History
from tiflow.meta.records import Batch, EventRow, JobRow, Written
from tiflow.meta.tables import TERMINAL, open_engine

CLUSTER = "c0ffee"


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)])
def url(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/metadata.db"
    return create_database(request.getfixturevalue("mysql"))


@pytest.fixture
def server(mysql: Server) -> Iterator[Server]:
    """The server for a test that hurts it."""
    yield mysql
    if not mysql.running:
        mysql.start()


def begin_again(url: str) -> None:
    """The database is as if it had just been created."""
    engine = open_engine(url)
    with engine.begin() as connection:
        for table in sa.inspect(engine).get_table_names():
            connection.execute(sa.text(f"DROP TABLE {table}"))
    engine.dispose()


@contextmanager
def refusing_large(url: str, server: Callable[[], Server]) -> Iterator[None]:
    """Until the end the database takes no body of more than half a MiB."""
    engine = open_engine(url)
    if engine.dialect.name == "sqlite":
        for when in ("INSERT", "UPDATE"):
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    f"CREATE TRIGGER large_{when} BEFORE {when} ON jobs WHEN length(NEW.spec) > 524288 "
                    "BEGIN SELECT RAISE(ABORT, 'too large'); END"
                )
        yield
        for when in ("INSERT", "UPDATE"):
            with engine.begin() as connection:
                connection.exec_driver_sql(f"DROP TRIGGER large_{when}")
    else:
        before = server().execute("SELECT @@global.max_allowed_packet")[0][0]
        server().execute("SET GLOBAL max_allowed_packet = 524288")  # of connections that are made from now on
        try:
            yield
        finally:
            server().execute(f"SET GLOBAL max_allowed_packet = {before}")
    engine.dispose()


def create_database(mysql: Server) -> str:
    return mysql.create_database(f"tiflow_{uuid4().hex[:12]}")


class State:
    """What the masters have: every command is a revision, and records know that of their last write."""

    def __init__(self, cluster_id: str = CLUSTER) -> None:
        self.cluster_id = cluster_id
        self.revision = 0
        self.jobs: dict[int, JobRow] = {}
        self.deleted: dict[int, int] = {}  #: uid -> revision
        self.asked: list[tuple[int, int]] = []
        self.persisted = self.pruned = 0

    def put(self, id: str, uid: int = 0, **fields: object) -> int:
        self.revision += 1
        uid = uid or self.revision
        values: dict[str, object] = {
            "cluster_id": self.cluster_id,
            "state": "Created",
            "type": "command",
            "spec": b"\x00spec\xff",
            "priority": 50,
            "total": 10,
            "succeeded": 0,
            "failed": 0,
            "canceled": 0,
            "submitted_at_ms": 1_700_000_000_000,
        }
        self.jobs[uid] = JobRow(id=id, uid=uid, mod_revision=self.revision, **(values | fields))  # type: ignore[arg-type]
        return uid

    def delete(self, uid: int) -> None:
        self.revision += 1
        del self.jobs[uid]
        self.deleted[uid] = self.revision

    def tick(self) -> None:
        """A command that changes no job."""
        self.revision += 1

    def living(self) -> list[tuple[int, int]]:
        return [(job.uid, job.mod_revision) for job in self.jobs.values()]

    def versions(self, uids: Collection[int]) -> list[tuple[int, Iterable[Written]]]:
        return [(uid, [self.version(self.jobs[uid])]) for uid in uids if uid in self.jobs]

    def version(self, row: JobRow) -> Written:
        return Written(row, (self.event(row),), self.archive(row))

    def batch(self, after: int, limit: int) -> Batch:
        """As the master's: in order of last write; if `limit` cuts it off, up to the last one's revision."""
        self.asked.append((after, limit))
        rows = sorted(
            (job for job in self.jobs.values() if job.mod_revision > after), key=lambda job: job.mod_revision
        )
        to = self.revision if len(rows) <= limit else rows[limit - 1].mod_revision
        deleted = [uid for uid, revision in self.deleted.items() if after < revision <= to]
        written = [self.version(row) for row in rows[:limit]]
        return Batch(to, iter(written), tuple(deleted), persisted=self.persisted, pruned=self.pruned)

    @staticmethod
    def event(row: JobRow) -> EventRow:
        return EventRow(row.uid, row.mod_revision, 1, row.submitted_at_ms, "written", "☃", "löwe@home")

    @staticmethod
    def archive(row: JobRow) -> bytes | None:
        return row.id.encode() if row.state in TERMINAL else None


@contextmanager
def history_of(url: str, cluster_id: str = CLUSTER) -> Iterator[History]:
    engine = open_engine(url)
    try:
        yield History(engine, cluster_id)
    finally:
        engine.dispose()
