"""The projector against real databases: whatever happens, in the end they have what the masters have."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from structlog.testing import capture_logs

from tests.meta.conftest import CLUSTER, State, create_database, history_of
from tests.mysql import PASSWORD, Server
from tiflow.errors import InvalidArgument
from tiflow.meta.projector import Projector, Source
from tiflow.meta.records import Batch, JobRow
from tiflow.meta.store import ForeignCluster, Stand, Store
from tiflow.meta.tables import JOB_CHECKPOINTS, JOBS, PROJECTION, open_engine

WITHIN_S = 30.0


def projector_of(url: str, source: Source, cluster_id: str = CLUSTER, *, ask_s: float = 0.3) -> Projector:
    """As in production, but without its patience."""
    return Projector(url, cluster_id, source, pause_s=0.005, backoff_s_max=0.1, ask_s=ask_s)


@asynccontextmanager
async def running(*projectors: Projector) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(projector.run()) for projector in projectors]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for projector in projectors:
            projector.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - the projector offers no event, and needs none but here
            await asyncio.sleep(0.005)


def in_database(url: str) -> dict[int, JobRow]:
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(*(JOBS.c[name] for name in JobRow.__struct_fields__))).mappings()
            return {row["uid"]: JobRow(**row) for row in rows}
    finally:
        engine.dispose()


async def test_the_database_follows_the_state(url: str) -> None:
    state = State()
    first = state.put("first")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: projector.revision == 1)
        state.put("first", first, state="Running", started_at_ms=1_700_000_000_500)
        state.put("second", spec=bytes(range(256)) * 16_384)  # 4 MiB, the most that a spec can have
        state.tick()
        projector.wake(state.revision)
        assert projector.lag_source == 3
        await until(lambda: projector.revision == 4)
    assert in_database(url) == state.jobs
    assert projector.lag_source == 0
    assert projector.available
    assert projector.last_error is None


async def test_deleted_jobs_go_and_their_ids_can_be_used_again(url: str) -> None:
    state = State()
    old, kept = state.put("a"), state.put("b")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: projector.revision == 2)
        engine = open_engine(url)
        with engine.begin() as connection:
            checkpoints = [
                {"uid": uid, "key": "k", "value": b"v", "attempt": 1, "updated_at_ms": 1} for uid in (old, kept)
            ]
            connection.execute(JOB_CHECKPOINTS.insert(), checkpoints)
        state.delete(old)
        new = state.put("a")
        projector.wake(state.revision)
        await until(lambda: projector.revision == state.revision)
        with engine.connect() as connection:
            assert connection.scalars(sa.select(JOB_CHECKPOINTS.c.uid)).all() == [kept]
        engine.dispose()
    assert in_database(url) == state.jobs
    assert set(state.jobs) == {kept, new}


async def test_ids_differ_by_case(url: str) -> None:
    state = State()
    state.put("Job")
    state.put("job")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: projector.revision == 2)
    with history_of(url) as history:
        assert [history.get_job(id) for id in ("Job", "job", "JOB")] == [state.jobs[1], state.jobs[2], None]


async def test_catching_up_takes_a_thousand_rows_at_a_time(url: str) -> None:
    state = State()
    for number in range(2_500):
        state.put(f"job-{number}")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: projector.revision == 2_500)
    assert state.asked[:3] == [(0, 1_000), (1_000, 1_000), (2_000, 1_000)]


async def test_changes_share_a_transaction(url: str) -> None:
    state = State()
    projector = Projector(url, CLUSTER, state, pause_s=0.2)
    async with running(projector):
        for _ in range(100):
            state.put("job")
            projector.wake(state.revision)
            await asyncio.sleep(0.002)
        await until(lambda: projector.revision == 100)
    assert len(state.asked) < 15


async def test_a_new_leader_goes_on_where_the_database_stands(url: str) -> None:
    state = State()
    state.put("first")
    async with running(before := projector_of(url, state)):
        await until(lambda: before.revision == 1)
    state.put("second")
    state.asked.clear()
    async with running(after := projector_of(url, state)):
        await until(lambda: after.revision == 2)
    assert state.asked[0][0] == 1
    assert in_database(url) == state.jobs


async def test_a_projector_can_run_again(url: str) -> None:
    state = State()
    projector = projector_of(url, state)
    for number in range(3):
        state.put(f"job-{number}")
        async with running(projector):
            await until(lambda: projector.revision == state.revision)
    assert in_database(url) == state.jobs


def test_of_two_writers_only_one_moves_the_database_on(url: str) -> None:
    state = State()
    state.put("job", state="Running")
    ours = state.batch(0, 10)
    state.put("job", 1, state="Finished")
    theirs = state.batch(0, 10)
    leader, deposed = Store(open_engine(url), CLUSTER), Store(open_engine(url), CLUSTER)
    assert leader.stand() == deposed.stand() == Stand(0, 0)
    assert leader.advance(0, theirs) == []
    assert deposed.advance(0, replace(ours, deleted=(1,))) is None
    assert deposed.stand() == Stand(2, 0)
    leader.close()
    deposed.close()
    assert in_database(url) == state.jobs


async def test_two_projectors_at_once_lose_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[int, int]] = []
    misses = 0
    advance = Store.advance

    def counted(self: Store, read: int, batch: Batch, **options: Any) -> Any:
        nonlocal misses
        refused = advance(self, read, batch, **options)
        if refused is not None:
            moves.append((read, batch.to))
        else:
            misses += 1
        return refused

    monkeypatch.setattr(Store, "advance", counted)
    dice = random.Random(7)
    state = State()
    projectors = [projector_of(url, state) for _ in range(2)]
    async with running(*projectors):
        for number in range(150):
            uids = list(state.jobs)
            if uids and dice.random() < 0.2:
                state.delete(dice.choice(uids))
            elif uids and dice.random() < 0.5:
                uid = dice.choice(uids)
                state.put(state.jobs[uid].id, uid, succeeded=number)
            else:
                state.put(f"job-{number}")
            for projector in projectors:
                projector.wake(state.revision)
            await asyncio.sleep(dice.random() * 0.01)
        await until(lambda: all(projector.revision == state.revision for projector in projectors))
    assert in_database(url) == state.jobs
    moves.sort()
    assert [read for read, _ in moves] == [0, *(to for _, to in moves[:-1])], "each revision is moved from once"
    assert misses, "the two never met"


async def test_the_database_of_another_cluster_is_left_alone(url: str) -> None:
    theirs = State()
    theirs.put("theirs")
    async with running(other := projector_of(url, theirs)):
        await until(lambda: other.revision == 1)
    ours = State("decade")
    for _ in range(5):
        ours.put("ours")
    projector = projector_of(url, ours, "decade")
    with capture_logs() as logs:
        async with running(projector):
            await until(lambda: not projector.available)
            await asyncio.sleep(0.3)  # some tries more
    assert projector.last_error is not None
    assert "belongs to cluster c0ffee, and this is decade" in projector.last_error
    assert [entry["event"] for entry in logs] == ["metadata_refused"]
    assert in_database(url) == theirs.jobs
    with pytest.raises(ForeignCluster):
        Store(open_engine(url), "decade").stand()


async def test_a_cluster_id_that_changes_under_a_projector_stops_it(url: str) -> None:
    state = State()
    state.put("job")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: projector.revision == 1)
        engine = open_engine(url)
        with engine.begin() as connection:
            connection.execute(PROJECTION.update().values(cluster_id="restored"))
        engine.dispose()
        state.put("late")
        projector.wake(state.revision)
        await until(lambda: not projector.available)
    assert list(in_database(url)) == [1]


async def test_a_database_that_is_ahead_of_the_masters_is_left_alone(url: str) -> None:
    state = State()
    for _ in range(5):
        state.put("job")
    async with running(before := projector_of(url, state)):
        await until(lambda: before.revision == 5)
    kept = dict(state.jobs)
    lost = State()
    lost.put("other")
    projector = projector_of(url, lost)
    async with running(projector):
        await until(lambda: not projector.available)
        assert "the database stands at revision 5, and the masters at 1 had less" in str(projector.last_error)
        for _ in range(9):
            lost.put("other")
        projector.wake(lost.revision)
        await until(lambda: "the masters at 10 had less" in str(projector.last_error))
    assert in_database(url) == kept, "it has another history, however far the masters go on"


@pytest.mark.mysql
async def test_a_server_that_dies_and_comes_back_is_caught_up_with(server: Server) -> None:
    url = create_database(server)
    state = State()
    dice = random.Random(11)
    projector = projector_of(url, state)

    async def work(steps: int) -> None:
        for _ in range(steps):
            state.put(f"job-{dice.randrange(50)}", dice.randrange(1, 50), succeeded=state.revision)
            projector.wake(state.revision)
            await asyncio.sleep(0.002)

    with capture_logs() as logs:
        async with running(projector):
            await work(50)
            await until(lambda: projector.revision > 0)
            for _ in range(2):
                server.kill()
                await work(100)
                await until(lambda: not projector.available)
                assert projector.lag_source > 0
                await asyncio.to_thread(server.start)
                await work(50)
                await until(lambda: projector.revision == state.revision)
    assert in_database(url) == state.jobs
    assert [entry["event"] for entry in logs] == ["metadata_unavailable", "metadata_available"] * 2
    unavailable = logs[0]
    assert unavailable["log_level"] == "warning"
    assert PASSWORD not in str(logs)
    assert ":***@127.0.0.1" in unavailable["url"]
    assert "MySQL" in unavailable["reason"]


async def test_a_source_that_raises_does_not_end_the_projector(url: str) -> None:
    state = State()
    state.put("job")
    broken = True

    class Broken(State):
        def batch(self, after: int, limit: int) -> Batch:
            if broken:
                raise ZeroDivisionError("a bug")
            return state.batch(after, limit)

    projector = projector_of(url, Broken())
    with capture_logs() as logs:
        async with running(projector):
            await until(lambda: projector.last_error == "a bug")
            broken = False
            await until(lambda: projector.revision == 1)
    assert [entry["event"] for entry in logs] == ["metadata_failed", "metadata_available"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "not a SQLAlchemy URL"),
        ("what is this", "not a SQLAlchemy URL"),
        ("mysql+pymysql://u:secret@host:port/db", "written as %XX"),
        ("mysql://u:secret@host/db", "not installed"),
        ("mysql+nosuch://u:secret@host/db", "mysql.nosuch"),
        ("mysql+pymysql://u:secret@host", "names no database"),
        ("postgresql://u:secret@host/db", "postgresql is not supported"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_url_that_can_never_work_is_refused(url: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Projector(url, CLUSTER, State())
    assert str(refused.value).startswith("[metadata] url: ")
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_a_database_that_was_set_back_is_brought_up_to_date(url: str) -> None:
    """As when it was restored from an older backup: here, of one job, and of one that was deleted later."""
    state = State()
    kept, gone = state.put("kept"), state.put("gone", state="Running")
    state.put("unknown", state="Running")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: projector.revision == 3)
    for number in range(5):
        state.put(f"later-{number}")
    state.put("kept", kept, state="Finished")
    # the masters have seen a database at their revision, and forgot what they kept for it
    del state.jobs[gone], state.jobs[3]
    state.revision += 1
    state.persisted, state.pruned = state.revision, 2
    with capture_logs() as logs:
        async with running(projector):
            await until(lambda: projector.revision == state.revision)
            await until(lambda: len(logs) == 2)
    assert in_database(url) == state.jobs
    assert "Up to 2 jobs left the masters" in projector.restored
    assert [entry["event"] for entry in logs] == ["metadata_set_back", "metadata_unknown_jobs_dropped"]
    assert logs[1]["ids"] == ["gone", "unknown"]
