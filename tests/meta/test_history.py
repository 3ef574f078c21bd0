"""Jobs read back from the database."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from tests.meta.conftest import State, history_of
from tests.unit.sched.support import Cluster
from tiflow.errors import Unavailable
from tiflow.master.archive import Archive
from tiflow.master.metadata import StateSource
from tiflow.meta.store import Store
from tiflow.meta.tables import METADATA, open_engine
from tiflow.sched.commands import FORMAT, DeleteJob, PauseJob, PruneJobs, ResumeJob, SetFormat
from tiflow.sched.views import job_state, results


def write(url: str, state: State) -> None:
    store = Store(open_engine(url), state.cluster_id)
    assert store.advance(store.stand().revision, state.batch(0, 10_000)) == []
    store.close()


def test_jobs_are_read_back_as_they_were_written(url: str) -> None:
    state = State("mine")
    for number, stands in enumerate(["Finished", "Running", "Finished", "Failed"]):
        state.put(f"job-{number % 3}", state=stands, ended_at_ms=number)
    write(url, state)
    bare = {uid: replace(row, spec=b"") for uid, row in state.jobs.items()}
    with history_of(url, "mine") as history:
        assert history.get_job("job-1") == state.jobs[2]
        assert history.get_job("job-0") == state.jobs[4], "the newest of its id"
        assert history.get_job("job-9") is None
        assert history.list_jobs() == [bare[uid] for uid in (4, 3, 2, 1)]
        assert history.list_jobs(limit=2) == [bare[4], bare[3]]
        assert history.list_jobs(limit=2, before_uid=3) == [bare[2], bare[1]]
        assert history.list_jobs(limit=1, state="Finished") == [bare[3]]
        assert history.list_jobs(ended_only=True) == [bare[uid] for uid in (4, 3, 1)]
        assert history.list_jobs(after_uid=1, before_uid=4) == [bare[3], bare[2]]
        revisions = {uid: state.jobs[uid].mod_revision for uid in (1, 4)}
        assert history.archived_revisions([1, 2, 4, 9]) == revisions
        assert [row.uid for row in history.unfinished()] == [2]
        assert history.events(3) == [State.event(state.jobs[3])]
        assert history.delete("job-0", 3) == 1
        assert history.get_job("job-0") == state.jobs[4], "it was submitted after the order to delete the first one"
        assert history.delete("job-0", 4) == 1
        assert history.get_job("job-0") is None
    with history_of(url, "yours") as history, pytest.raises(Unavailable, match="belongs to mine"):
        history.list_jobs()
    engine = open_engine(url)
    with engine.connect() as connection:
        for table in METADATA.tables.values():
            if "uid" in table.columns:
                assert not set(connection.scalars(sa.select(table.c.uid))) & {1, 4}, table
    engine.dispose()


def test_an_archived_job_is_as_it_was_in_the_state(url: str) -> None:
    cluster = Cluster()
    cluster.apply(SetFormat(FORMAT))
    executor = cluster.register()
    job = cluster.submit("j", count=5_000)
    cluster.submit("other")
    cluster.apply(PauseJob("j", by="🦊" * 1_000))
    cluster.apply(ResumeJob("j", by="löwe"))
    for start in range(0, 5_000, 500):
        placement = cluster.place(job, executor, start, start + 500)
        cluster.event(placement, "succeeded" if start else "failed", error="☃" * 100, final=True)
    store = Store(open_engine(url), "mine")
    assert store.advance(store.stand().revision, StateSource(cluster.machine, "mine").batch(0, 10)) == []
    store.close()
    with history_of(url, "mine") as history:
        state = history.archived("j")
        assert state is not None
        assert history.archived("j", job.uid + 1) is None
        assert history.archived("other") is None, "it has not ended"
        events = [(event.kind, event.by_whom) for event in history.events(job.uid)]
    before = cluster.state
    assert state.jobs == {"j": before.jobs["j"]}
    assert job_state(state, state.jobs["j"]) == "Failed"
    assert results(state, job.uid, 0, 9) == results(before, job.uid, 0, 9)
    assert state.ended == before.ended
    assert events == [
        *(("submitted", ""), ("paused", "🦊" * 255), ("resumed", "löwe")),
        *(("started", ""), ("failures", ""), ("ended", "")),
    ]


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/no/such/directory/m.db"
    with history_of(url, "mine") as history, pytest.raises(Unavailable, match="unable to open database file"):
        history.list_jobs()


def test_of_the_jobs_that_left_the_masters_only_those_are_deleted_that_the_database_does_not_have(url: str) -> None:
    """Executors remove the results of what they are told was deleted."""
    cluster = Cluster()
    cluster.apply(SetFormat(2))
    executor = cluster.register()
    uids = {}
    for id in ("left", "deleted", "here", "noted"):
        job = cluster.submit(id)
        cluster.event(cluster.place(job, executor, 0, 1), "succeeded")
        uids[id] = job.uid
    archive = Archive(url, "mine", cluster.machine, None, None, term=1, retention_ms=0)  # type: ignore[arg-type]
    asked = [*uids.values(), 10_000]

    def deleted() -> set[int]:
        return set(asyncio.run(archive.deleted(asked)))

    assert deleted() == {10_000}, "nothing has left, so the database need not be asked"
    cluster.apply(DeleteJob("deleted"))
    store = Store(open_engine(url), "mine")
    assert store.advance(store.stand().revision, StateSource(cluster.machine, "mine").batch(0, 10)) == []
    store.close()
    left = cluster.state.jobs["left"]
    assert cluster.apply(PruneJobs(cluster.state.revision, ((left.uid, left.mod_revision),))) == 1
    cluster.apply(DeleteJob("noted"))  # the database does not know yet
    assert deleted() == {uids["deleted"], uids["noted"], 10_000}
    archive.close()

    away = Archive("sqlite:////nowhere/at/all.db", "mine", cluster.machine, None, None, term=1, retention_ms=0)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        asyncio.run(away.deleted(asked))
    away.close()
