"""A database of each kind, and a replicated state small enough to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

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

    def living(self) -> frozenset[int]:
        return frozenset(self.jobs)

    def batch(self, after: int, limit: int) -> Batch:
        """As the master's: in order of last write; if `limit` cuts it off, up to the last one's revision."""
        self.asked.append((after, limit))
        rows = sorted(
            (job for job in self.jobs.values() if job.mod_revision > after), key=lambda job: job.mod_revision
        )
        to = self.revision if len(rows) <= limit else rows[limit - 1].mod_revision
        deleted = [uid for uid, revision in self.deleted.items() if after < revision <= to]
        written = [Written(row, (self.event(row),), self.archive(row)) for row in rows[:limit]]
        return Batch(to, iter(written), tuple(deleted), persisted=self.persisted, pruned=self.pruned)

    @staticmethod
    def event(row: JobRow) -> EventRow:
        return EventRow(row.uid, row.mod_revision, 1, row.submitted_at_ms, "written", "☃")

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
