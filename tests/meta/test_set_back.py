"""A database that was set back under a leader: restored from an older backup, or emptied. Nobody tells."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from tests.meta.conftest import CLUSTER, State, begin_again
from tests.meta.test_projector import in_database, projector_of, running, until
from tests.unit.sched.support import Cluster
from tests.unit.sched.test_framework import place, start, submit
from tiflow.clock import SystemClock
from tiflow.errors import FailedPrecondition, Unavailable
from tiflow.master.archive import Archive
from tiflow.master.checkpoints import CheckpointService
from tiflow.meta.checkpoints import Checkpoints, Foreign, Holder, SetBack, Write
from tiflow.meta.tables import METADATA, PROJECTION, open_engine
from tiflow.sched.commands import SetFormat

WAIT_S = 30.0


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = open_engine(url)
    yield engine
    engine.dispose()


def backup(engine: sa.Engine) -> dict[sa.Table, list[dict[str, Any]]]:
    with engine.connect() as connection:
        return {
            table: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in METADATA.sorted_tables
        }


def restore(engine: sa.Engine, saved: dict[sa.Table, list[dict[str, Any]]]) -> None:
    with engine.begin() as connection:
        for table, rows in saved.items():
            connection.execute(table.delete())
            if rows:
                connection.execute(table.insert(), rows)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(SetFormat(3))
    return cluster


@asynccontextmanager
async def leading(url: str, cluster: Cluster, term: int) -> AsyncIterator[Archive]:
    """What a leader does with the database, but without its patience."""
    archive = Archive(url, CLUSTER, cluster.machine, None, SystemClock(), term=term, retention_ms=0)  # type: ignore[arg-type]
    archive.projector._pause_s, archive.projector._ask_s = 0.005, 0.05
    tasks = [asyncio.create_task(archive.projector.run()), asyncio.create_task(archive.checkpoints.run())]
    try:
        yield archive
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        archive.close()


async def refused(checkpoints: CheckpointService, holder: Holder, value: bytes | None) -> bool:
    try:
        await checkpoints.put(holder, "k", value, WAIT_S)
    except FailedPrecondition:
        return True
    return False


async def test_no_attempt_and_no_leader_of_before_the_backup_writes_again(
    url: str, engine: sa.Engine, cluster: Cluster
) -> None:
    job, executor = submit(cluster), cluster.register(slots=9)
    plain = cluster.submit("plain")
    first = place(cluster, job, executor)
    start(cluster, job)
    workers = place(cluster, job, executor, "w")
    old, new, worker = Holder(job.uid, "", 1), Holder(job.uid, "", 2), Holder(job.uid, "w/1", 1)
    async with leading(url, cluster, 1) as deposed:
        for holder in (old, worker, Holder(plain.uid, "", 3)):
            await deposed.checkpoints.put(holder, "k", b"before", WAIT_S)
        saved = backup(engine)
        cluster.event(first, "failed")
        cluster.now_ms += 10_000
        place(cluster, job, executor, attempt=2)
        cluster.event(workers, "failed", 0, 1)  # w/0 waits for its second attempt
        cluster.submit("later")
        async with leading(url, cluster, 2) as leader:
            await leader.checkpoints.put(new, "k", b"after", WAIT_S)
            await leader.checkpoints.put(worker, "k/1", b"after", WAIT_S)
            await leader.checkpoints.put(Holder(plain.uid, "", 4), "k", b"after", WAIT_S)
            await until(lambda: leader.projector.revision == cluster.state.revision)

            restore(engine, saved)

            store = Checkpoints(engine, CLUSTER, 1)
            with pytest.raises(SetBack):
                store.write([Write(old, "k", b"late", 7)], floor=leader.projector.revision)
            assert await refused(leader.checkpoints, old, b"late")
            assert await refused(leader.checkpoints, old, None), "a late delete is refused, too"
            assert await refused(leader.checkpoints, Holder(job.uid, "w/0", 1), b"late")
            assert await refused(leader.checkpoints, Holder(plain.uid, "", 3), b"late")
            fenced = Holder(job.uid, f"w/1#{cluster.state.groups[job.uid, 'w'].position}", 1)
            verdicts = store.write([Write(fenced, "k/1", b"late", 7), Write(fenced, "k/1", None, 7)])
            assert [type(verdict) for verdict in verdicts] == [Unavailable] * 2, "its leader is deposed"
            await leader.checkpoints.put(new, "k", b"again", WAIT_S)
            found = await leader.checkpoints.get(new, "k", WAIT_S)
            assert found is not None
            assert found.value == b"again"
            await until(lambda: leader.projector.revision == cluster.state.revision)
            assert "checkpoints are those of the backup" in leader.status()["note"]
    assert set(in_database(url)) == {job.uid, plain.uid, cluster.state.jobs["later"].uid}


async def test_a_leader_of_another_cluster_neither_reads_nor_writes_checkpoints(
    url: str, engine: sa.Engine, cluster: Cluster
) -> None:
    """Its jobs may have the same uids."""
    job = cluster.submit("j")
    master = Holder(job.uid, "", 1)
    async with leading(url, cluster, 1) as ours:
        await ours.checkpoints.put(master, "k", b"ours", WAIT_S)
        theirs = Checkpoints(engine, "decade", 9)
        for work in (
            lambda: theirs.hold(Holder(job.uid, "", 7)),
            lambda: theirs.write([Write(master, "k", b"theirs", 7)]),
            lambda: theirs.write([Write(master, "k", None, 7)]),
            lambda: theirs.get(job.uid, "k"),
            lambda: theirs.list(job.uid),
            lambda: theirs.count(job.uid),
        ):
            with pytest.raises(Foreign, match="belongs to cluster c0ffee, and this is decade"):
                work()
        assert not theirs.raise_fences(ours.projector.revision, [])
        with engine.begin() as connection:
            connection.execute(PROJECTION.update().values(cluster_id="decade"))
        for work in (
            ours.checkpoints.put(master, "k", b"late", WAIT_S),
            ours.checkpoints.put(master, "k", None, WAIT_S),
            ours.checkpoints.get(master, "k", WAIT_S),
        ):
            with pytest.raises(Unavailable, match="belongs to cluster decade, and this is c0ffee"):
                await work
    assert theirs.get(job.uid, "k").value == b"ours"  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["older", "empty"])
async def test_an_idle_leader_notices(url: str, engine: sa.Engine, how: str) -> None:
    state = State()
    kept = state.put("kept", state="Running")
    projector = projector_of(url, state, ask_s=0.05)
    async with running(projector):
        await until(lambda: projector.revision == 1)
        saved = backup(engine)
        state.put("kept", kept, state="Finished")
        state.put("later")
        projector.wake(state.revision)
        await until(lambda: projector.revision == state.revision)
        with capture_logs() as logs:
            restore(engine, saved) if how == "older" else begin_again(url)
            await until(lambda: bool(projector.restored) and projector.revision == state.revision)
            await until(lambda: in_database(url) == state.jobs)
    assert [entry["event"] for entry in logs if entry["event"] == "metadata_set_back"] == ["metadata_set_back"]
