"""Records that are large, and such as the database does not take: neither holds up the others."""

import os
from typing import Any

import pytest
from msgspec import msgpack

from tests.meta.conftest import State, history_of, refusing_large
from tests.meta.test_projector import in_database, projector_of, running, until
from tests.unit.sched.support import Cluster
from tiflow.master import metadata
from tiflow.master.metadata import StateSource
from tiflow.meta import projector as projector_module
from tiflow.meta import store as store_module
from tiflow.meta.store import Store
from tiflow.meta.tables import open_engine
from tiflow.sched.commands import AddGroup, CloseGroups, Place, PlaceTasks, SubmitJob
from tiflow.sched.model import Call, Command, GroupSpec, JobSpec
from tiflow.sched.prune import prunable


@pytest.mark.parametrize("where", ["argv", "env", "function"])
def test_a_batch_is_bounded_in_bytes_wherever_they_are(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "BATCH_BYTES", 40_000)
    large = "x" * 10_000
    work = {
        "argv": Command(("echo", large)),
        "env": Command(("true",), {"LARGE": large}),
        "function": Call((large.encode(),)),
    }[where]
    cluster = Cluster()
    items = (msgpack.encode([b""]),) if where == "function" else ()
    for number in range(10):
        spec = JobSpec(f"j{number}", (GroupSpec("g", work, items=items),))
        cluster.apply(SubmitJob(spec, f"t{number}", cluster.now_ms))
    source, sizes, after = StateSource(cluster.machine, "mine"), [], 0
    while (batch := source.batch(after, 1_000)).to > after:
        sizes.append(len(list(batch.written)))
        after = batch.to
    assert sum(sizes) == 10
    assert max(sizes) == 4


def test_the_archive_of_a_pool_fits_into_a_row_however_large_its_arguments_are(url: str) -> None:
    """48 MiB of them."""
    cluster = Cluster()
    executor = cluster.register()
    job = cluster.apply(SubmitJob(JobSpec("pool", (), open=True), "token", cluster.now_ms))
    argument = msgpack.encode([os.urandom(3 << 20)])
    for number in range(1, 17):
        cluster.apply(AddGroup(job.uid, number, GroupSpec(f"g{number}", Call((b"f",)), items=(argument,))))
        place = Place(job.uid, f"g{number}", 0, 1, 1, executor.uid, executor.incarnation)
        cluster.event(cluster.apply(PlaceTasks((place,)))[0], "succeeded", results=msgpack.encode([b"1"]))
    cluster.apply(CloseGroups(job.uid))
    store = Store(open_engine(url), "mine")
    assert store.advance(store.stand().revision, StateSource(cluster.machine, "mine").batch(0, 1_000)) == []
    store.close()
    with history_of(url, "mine") as history:
        archive = history.archived("pool")
    assert archive is not None
    assert len(archive.results) == 16


async def test_a_job_that_the_database_does_not_take_is_named_and_the_others_go_on(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "REFUSED_S", 0.05)
    state = State()
    state.put("first")
    async with running(before := projector_of(url, state)):
        await until(lambda: before.revision == 1)
    for number in range(40):
        state.put(f"small-{number}")
    large = state.put("large", spec=os.urandom(1 << 20))
    for number in range(40):
        state.put(f"later-{number}")
    small = {uid: row for uid, row in state.jobs.items() if uid != large}
    with refusing_large(url, lambda: request.getfixturevalue("server")):
        projector = projector_of(url, state)
        async with running(projector):
            await until(lambda: projector.available and projector.revision == state.revision)
            found = in_database(url)
            assert found.pop(large).spec == b""
            assert found == small
            assert projector.note.startswith("not in the database as they are: jobs large (")
            assert "max_allowed_packet" in projector.note or "too large" in projector.note
            state.put("last")
            projector.wake(state.revision)
            await until(lambda: projector.available and projector.revision == state.revision)
            assert list(projector.refused) == [large]
        async with running(successor := projector_of(url, state)):
            await until(lambda: list(successor.refused) == [large])
    async with running(after := projector_of(url, state)):
        await until(lambda: in_database(url) == state.jobs)
        await until(lambda: not after.refused)
        assert after.note == ""


def test_what_the_database_does_not_take_stays_with_the_masters() -> None:
    cluster = Cluster()
    executor = cluster.register()
    uids = []
    for id in ("a", "b"):
        job = cluster.submit(id)
        cluster.event(cluster.place(job, executor, 0, 1), "succeeded")
        uids.append(job.uid)
    state = cluster.state
    command = prunable(state, state.revision, cluster.now_ms + 10, 0, {uids[0]: None})
    assert command is not None
    assert [uid for uid, _ in command.jobs] == uids[1:]


def test_versions_of_one_revision_are_sent_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command may touch many jobs, and memory has no room for all their rows."""
    monkeypatch.setattr(store_module, "PART_BYTES", 2_500)
    state = State()
    for number in range(10):
        state.put(f"j{number}", spec=bytes(1_000))
    made: list[int] = []
    written: list[int] = []
    write = Store._write

    def counted(self: Store, connection: Any, table: Any, rows: Any) -> None:
        if table.name == "jobs":
            written.append(len(rows))
            made.append(seen)
        write(self, connection, table, rows)

    monkeypatch.setattr(Store, "_write", counted)
    batch, seen = state.batch(0, 100), 0

    def lazily() -> Any:
        nonlocal seen
        for one in batch.written:
            seen += 1
            yield one

    store = Store(open_engine(url), state.cluster_id)
    batch_again = type(batch)(batch.to, lazily())
    assert store.advance(store.stand().revision, batch_again) == []
    store.close()
    assert (written, made) == ([2] * 5, [3, 5, 7, 9, 10])
    assert in_database(url) == state.jobs
