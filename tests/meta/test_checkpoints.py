"""Checkpoints: durable when put, and fenced where they are kept."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from tests.meta.conftest import CLUSTER, State, create_database
from tests.mysql import Server
from tests.unit.sched import test_framework as framework
from tests.unit.sched.support import KEPT, Cluster
from tiflow.clock import SystemClock
from tiflow.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    ResourceExhausted,
    Unavailable,
)
from tiflow.master import checkpoints as service_module
from tiflow.master.checkpoints import CheckpointService
from tiflow.master.metadata import StateSource
from tiflow.meta.checkpoints import Checkpoints, Holder, Write
from tiflow.meta.records import Batch
from tiflow.meta.store import Store
from tiflow.meta.tables import JOB_CHECKPOINTS, JOB_FENCES, open_engine
from tiflow.sched.commands import SetFormat

WAIT_S = 30.0


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def state(engine: sa.Engine) -> State:
    """Job 1, in the database too."""
    state = State()
    state.put("job")
    store = Store(engine, CLUSTER)
    assert store.advance(store.stand().revision, state.batch(0, 10)) == []
    return state


def put(holder: Holder, key: str, value: bytes | None) -> Write:
    return Write(holder, key, value, 7)


@pytest.mark.usefixtures("state")
def test_what_was_put_is_there_and_in_order(engine: sa.Engine) -> None:
    store, master = Checkpoints(engine, CLUSTER, 1), Holder(1, "", 1)
    store.hold(master)
    large = bytes(range(256)) * 16_384  # 4 MiB
    assert store.write([put(master, "b/2", b"x"), put(master, "a", large), put(master, "b/2", b"y")]) == [None] * 3
    assert store.write([put(master, "b/1", b"")]) == [None]
    found = store.get(1, "a")
    assert found is not None
    assert (found.value, found.attempt, found.updated_at_ms) == (large, 1, 7)
    assert [(one.key, one.size) for one in store.list(1)] == [("a", 4 << 20), ("b/1", 0), ("b/2", 1)]
    assert [one.key for one in store.list(1, prefix="b/")] == ["b/1", "b/2"]
    assert [one.key for one in store.list(1, after="a", limit=1)] == ["b/1"]
    assert store.get(1, "b/2").value == b"y"  # type: ignore[union-attr]
    assert store.write([put(master, "a", None), put(master, "never", None)]) == [None, None]
    assert store.get(1, "a") is None
    assert store.count(1) == 2


@pytest.mark.usefixtures("state")
def test_a_late_write_of_a_replaced_attempt_is_refused(engine: sa.Engine) -> None:
    """Whoever sends it: the fence is in the database, and not in a leader's memory."""
    leader, deposed = Checkpoints(engine, CLUSTER, 1), Checkpoints(open_engine(engine.url), CLUSTER, 1)
    first, second, worker = Holder(1, "", 1), Holder(1, "", 2), Holder(1, "worker-7", 1)
    deposed.hold(first)
    assert deposed.write([put(first, "k", b"first")]) == [None]
    leader.hold(second)
    leader.hold(worker)
    assert leader.write([put(second, "k", b"second")]) == [None]

    verdicts = deposed.write([put(first, "k", b"late"), put(worker, "w", b"fine"), put(first, "k", None)])

    assert [str(verdict) if verdict else None for verdict in verdicts] == [
        "attempt 1 of the job master has been replaced by attempt 2",
        None,
        "attempt 1 of the job master has been replaced by attempt 2",
    ]
    assert leader.get(1, "k").value == b"second"  # type: ignore[union-attr]
    with pytest.raises(FailedPrecondition, match="has been replaced by attempt 2"):
        deposed.hold(first)
    deposed._engine.dispose()


@pytest.mark.usefixtures("state")
def test_a_late_write_of_a_deposed_leader_is_refused_though_the_attempt_is_the_same(engine: sa.Engine) -> None:
    """Its caller has long asked the next leader, and gone on: an older value must not come back."""
    leader, deposed = Checkpoints(engine, CLUSTER, 2), Checkpoints(open_engine(engine.url), CLUSTER, 1)
    master = Holder(1, "", 1)
    deposed.hold(master)
    leader.hold(master)
    assert leader.write([put(master, "k", b"newer")]) == [None]

    (verdict,) = deposed.write([put(master, "k", b"older")])

    assert isinstance(verdict, Unavailable)
    assert leader.get(1, "k").value == b"newer"  # type: ignore[union-attr]
    with pytest.raises(Unavailable, match="leader of term 2"):
        deposed.hold(master)
    assert leader.write([put(master, "k", None)]) == [None]

    deposed.hold(Holder(1, "", 2))  # that was placed while it led, and a leader that is deposed may hear late
    leader.hold(Holder(1, "", 2))
    assert leader.write([put(Holder(1, "", 2), "k", b"second")]) == [None]
    assert isinstance(leader.write([put(master, "k", b"late")])[0], FailedPrecondition)
    deposed._engine.dispose()


@pytest.mark.usefixtures("state")
def test_a_write_that_waits_for_its_successor_is_refused(engine: sa.Engine) -> None:
    """The successor's transaction has begun first: it decides."""
    if engine.dialect.name == "sqlite":
        pytest.skip("a writer has the whole file")
    store, first = Checkpoints(engine, CLUSTER, 1), Holder(1, "", 1)
    store.hold(first)

    async def race() -> list[Any]:
        with engine.begin() as connection:
            connection.execute(JOB_FENCES.update().values(attempt=2))
            late = asyncio.create_task(asyncio.to_thread(store.write, [put(first, "k", b"late")]))
            for _ in range(3):
                await asyncio.sleep(0.1)
                assert not late.done(), "it waits for the lock"
        return await late

    (verdict,) = asyncio.run(race())
    assert "replaced by attempt 2" in str(verdict)
    assert store.get(1, "k") is None


def test_nothing_is_written_for_a_job_that_was_deleted(engine: sa.Engine, state: State) -> None:
    store, master = Checkpoints(engine, CLUSTER, 1), Holder(1, "", 1)
    store.hold(master)
    store.write([put(master, "k", b"v")])
    state.delete(1)
    projection = Store(engine, CLUSTER)
    assert projection.advance(projection.stand().revision, Batch(state.revision, deleted=(1,))) == []

    (verdict,) = store.write([put(master, "k", b"late")])

    assert "was deleted" in str(verdict)
    with pytest.raises(Unavailable, match="does not have the job"):
        store.hold(master)
    with engine.connect() as connection:
        for table in (JOB_CHECKPOINTS, JOB_FENCES):
            assert connection.execute(sa.select(table)).all() == []


@asynccontextmanager
async def service(url: str, cluster: Cluster, term: int = 1) -> AsyncIterator[CheckpointService]:
    """A leader's, whose jobs are in the database."""
    engine = open_engine(url)
    store = Store(engine, CLUSTER)
    read = (await asyncio.to_thread(store.stand)).revision
    if (batch := StateSource(cluster.machine, CLUSTER).batch(read, 100)).to > read:
        assert await asyncio.to_thread(store.advance, read, batch) == []
        read = batch.to
    made = CheckpointService(engine, CLUSTER, cluster.machine, SystemClock(), term)
    assert await made.secure(read)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        engine.dispose()


async def test_many_callers_share_a_transaction(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    uid = cluster.submit("j").uid
    sizes: list[int] = []
    write = Checkpoints.write

    def counted(self: Checkpoints, writes: Any, floor: int) -> Any:
        sizes.append(len(writes))
        return write(self, writes, floor)

    monkeypatch.setattr(Checkpoints, "write", counted)
    async with service(url, cluster) as checkpoints:
        holder = Holder(uid, "", 1)
        await checkpoints.put(holder, "first", b"", WAIT_S)
        await asyncio.gather(*(checkpoints.put(holder, f"k{n}", b"%d" % n, WAIT_S) for n in range(1_000)))
        found = await checkpoints.get(holder, "k999", WAIT_S)
        assert found is not None
        assert found.value == b"999"
        assert len(await checkpoints.list(holder, "k", "", 1_000, WAIT_S)) == 1_000
    assert sum(sizes) == 1_001
    assert len(sizes) <= 12


async def test_a_replaced_attempt_is_told_so(url: str) -> None:
    cluster = Cluster()
    uid = cluster.submit("j").uid
    async with service(url, cluster) as checkpoints, service(url, cluster, 2) as new_leader:
        await checkpoints.put(Holder(uid, "", 1), "k", b"1", WAIT_S)
        assert (await new_leader.get(Holder(uid, "", 2), "k", WAIT_S)).value == b"1"  # type: ignore[union-attr]
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="replaced by attempt 2"):
                await checkpoints.put(Holder(uid, "", 1), "k", b"late", WAIT_S)
        with pytest.raises(FailedPrecondition, match="replaced by attempt 2"):
            await new_leader.get(Holder(uid, "", 1), "k", WAIT_S)
        assert (await checkpoints.get(Holder(uid, "", 0), "k", WAIT_S)).value == b"1"  # type: ignore[union-attr]


async def test_what_cannot_be_is_refused_at_the_edge(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    uid = cluster.submit("j").uid
    monkeypatch.setattr(service_module, "KEYS_MAX", 3)
    async with service(url, cluster) as checkpoints:
        for holder, key, value, error in (
            (Holder(uid, "", 0), "k", b"", InvalidArgument),
            (Holder(uid, "", 1), "", b"", InvalidArgument),
            (Holder(uid, "", 1), "ä", b"", InvalidArgument),
            (Holder(uid, "a b", 1), "k", b"", InvalidArgument),
            (Holder(uid, "", 1), "k", bytes((4 << 20) + 1), InvalidArgument),
            (Holder(uid + 9, "", 1), "k", b"", NotFound),
        ):
            with pytest.raises(error):
                await checkpoints.put(holder, key, value, WAIT_S)
        for number in range(3):
            await checkpoints.put(Holder(uid, "", 1), f"k{number}", b"", WAIT_S)
        with pytest.raises(ResourceExhausted, match="the job has 3 checkpoints"):
            await checkpoints.put(Holder(uid, "", 1), "more", b"", WAIT_S)


@pytest.mark.mysql
async def test_during_an_outage_a_put_waits_as_long_as_its_caller_does(server: Server) -> None:
    url = create_database(server)
    cluster = Cluster()
    holder = Holder(cluster.submit("j").uid, "", 1)
    async with service(url, cluster) as checkpoints:
        await checkpoints.put(holder, "k", b"before", WAIT_S)
        server.kill()
        with pytest.raises(OutcomeUnknown, match="did not answer within"):
            await checkpoints.put(holder, "k", b"given up", 0.3)
        with pytest.raises(Unavailable, match="did not answer within"):
            await checkpoints.get(holder, "k", 0.3)
        patient = asyncio.create_task(checkpoints.put(holder, "k", b"patient", WAIT_S))
        await asyncio.to_thread(server.start)
        await patient
        assert (await checkpoints.get(holder, "k", WAIT_S)).value == b"patient"  # type: ignore[union-attr]


async def test_workers_that_were_forgotten_leave_no_fences_to_those_of_the_same_name(url: str) -> None:
    cluster = Cluster()
    cluster.apply(SetFormat(3))
    job, executor = framework.submit(cluster), cluster.register(slots=9)
    framework.place(cluster, job, executor)
    framework.start(cluster, job, count=1)
    cluster.event(framework.place(cluster, job, executor, "w"), "failed")
    cluster.now_ms += 10_000
    framework.place(cluster, job, executor, "w", attempt=2)
    async with service(url, cluster) as checkpoints:
        await checkpoints.put(Holder(job.uid, "w/0", 2), "k", b"first", WAIT_S)
        with pytest.raises(FailedPrecondition, match="attempt 1 of the worker w/0 has been replaced by attempt 2"):
            await checkpoints.put(Holder(job.uid, "w/0", 1), "k", b"late", WAIT_S)
        (placement,) = (one for one in cluster.state.placements_of(job.uid) if one.group == "w")
        cluster.event(placement, "succeeded", results=KEPT)
        assert framework.stop(cluster, job, forget=True)
        with pytest.raises(Unavailable, match="there is no worker w/0"):
            await checkpoints.put(Holder(job.uid, "w/0", 2), "k", b"late", WAIT_S)
        framework.start(cluster, job, count=1)
        framework.place(cluster, job, executor, "w")

        await checkpoints.put(Holder(job.uid, "w/0", 1), "k", b"second", WAIT_S)


async def test_who_waits_when_the_term_ends_is_told_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    holder = Holder(cluster.submit("j").uid, "", 1)
    began, go = threading.Event(), threading.Event()

    def hang(*_: object) -> list[Any]:
        began.set()
        go.wait(WAIT_S)
        return [None]

    try:
        async with service(url, cluster) as checkpoints:
            await checkpoints.put(holder, "k", b"before", WAIT_S)
            monkeypatch.setattr(Checkpoints, "write", hang)
            sent = asyncio.create_task(checkpoints.put(holder, "k", b"sent", WAIT_S))
            await asyncio.to_thread(began.wait, WAIT_S)
            queued = asyncio.create_task(checkpoints.put(holder, "k", b"queued", WAIT_S))
            await asyncio.sleep(0)
        with pytest.raises(OutcomeUnknown, match="does not lead any more"):
            await sent
        with pytest.raises(Unavailable, match="does not lead any more"):
            await queued
        with pytest.raises(Unavailable, match="does not lead any more"):
            await checkpoints.get(holder, "k", WAIT_S)
    finally:
        go.set()


@pytest.mark.mysql
async def test_one_that_the_server_does_not_take_does_not_stop_the_others(server: Server) -> None:
    url = create_database(server)
    cluster = Cluster()
    holder = Holder(cluster.submit("j").uid, "", 1)
    server.execute("SET GLOBAL max_allowed_packet = 1048576")
    try:
        async with service(url, cluster) as checkpoints:
            too_large = asyncio.create_task(checkpoints.put(holder, "large", bytes(2 << 20), WAIT_S))
            others = [checkpoints.put(holder, f"k{n}", b"small", WAIT_S) for n in range(50)]
            await asyncio.gather(*others)
            with pytest.raises(InvalidArgument, match="max_allowed_packet is 1048576"):
                await too_large
    finally:
        server.execute("SET GLOBAL max_allowed_packet = 16777216")
