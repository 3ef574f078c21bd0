"""Jobs that leave the state for the metadata database, and those of a lost cluster that come from it."""

import pytest
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.support import KEPT, START_MS, Cluster
from tiflow.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from tiflow.sched import jobs, prune
from tiflow.sched.commands import (
    AddGroup,
    CancelJob,
    CloseGroups,
    DeleteJob,
    PauseJob,
    Place,
    PlaceTasks,
    PruneJobs,
    RestoreJob,
    ResumeJob,
    SetFormat,
    SetProject,
    SubmitJob,
)
from tiflow.sched.dependencies import why_not
from tiflow.sched.machine import Machine
from tiflow.sched.model import SUBMIT_WINDOW_MS, After, Call, Command, GroupSpec, Job, JobSpec, Pruned
from tiflow.sched.prune import CLOCK_SLACK_MS, alone, prunable
from tiflow.sched.snapshot import decode_state, encode_state
from tiflow.sched.views import job_state, results, tasks

DAY_MS = 86_400_000


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(SetFormat(2))
    return cluster


def finished(cluster: Cluster, id: str, *, count: int = 1, results: bytes = b"") -> Job:
    """A job that has ended."""
    executor = cluster.register()
    job = cluster.submit(id, count=count)
    placement = cluster.place(job, executor, 0, count)
    cluster.event(placement, "succeeded", results=results)
    return cluster.state.jobs[id]


def prune_all(cluster: Cluster) -> int:
    state = cluster.state
    named = tuple((job.uid, job.mod_revision) for job in state.jobs.values())
    return cluster.apply(PruneJobs(state.revision, named))


def test_a_finished_job_leaves_and_one_that_goes_on_stays(cluster: Cluster):
    finished(cluster, "done")
    cluster.submit("waiting")

    assert prune_all(cluster) == 1

    assert set(cluster.state.jobs) == {"waiting"}
    assert (cluster.state.pruned_total, cluster.state.results) == (1, {})
    assert cluster.state.deleted == {}, "it stays in the database"
    assert prune_all(cluster) == 0


def test_a_job_that_the_database_does_not_have_in_its_last_version_stays(cluster: Cluster):
    job = finished(cluster, "done")
    revision = cluster.state.revision

    assert cluster.apply(PruneJobs(job.mod_revision - 1, ((job.uid, job.mod_revision),))) == 0
    assert cluster.apply(PruneJobs(revision, ((job.uid, job.mod_revision - 1),))) == 0
    assert cluster.apply(PruneJobs(revision, ((job.uid, job.mod_revision),) * 2)) == 1


def test_what_the_database_has_is_dropped(cluster: Cluster):
    job = finished(cluster, "deleted")
    cluster.apply(DeleteJob("deleted"))
    between = cluster.state.revision
    cluster.submit("a")
    cluster.submit("b")
    assert set(cluster.state.deleted) == {job.uid}
    assert len(cluster.state.events) == 2

    cluster.apply(PruneJobs(between))
    assert cluster.state.deleted == {}
    assert len(cluster.state.events) == 2
    cluster.apply(PruneJobs(between + 1))
    assert list(cluster.state.events) == [cluster.state.jobs["b"].uid]
    cluster.apply(PruneJobs(between))
    assert cluster.state.persisted == between + 1, "it never falls"


def test_a_repeated_submission_of_a_job_that_has_left_does_not_run_it_again(cluster: Cluster):
    job = finished(cluster, "j")
    first_token_at_ms = cluster.now_ms
    prune_all(cluster)
    again = SubmitJob(job.spec, job.token, first_token_at_ms)

    assert cluster.apply(again) == Pruned(job.token, "j", job.uid, cluster.now_ms, "Finished")

    cluster.now_ms += SUBMIT_WINDOW_MS
    assert isinstance(cluster.apply(again), Pruned)
    cluster.now_ms += 1
    cluster.apply(PruneJobs(cluster.state.revision))
    assert cluster.state.pruned == {}
    with pytest.raises(FailedPrecondition, match="its token is older"):
        cluster.apply(again)
    assert cluster.apply(SubmitJob(job.spec, "another", cluster.now_ms)).uid > job.uid


def test_of_an_old_job_no_token_is_kept(cluster: Cluster):
    finished(cluster, "j")
    cluster.now_ms += SUBMIT_WINDOW_MS + CLOCK_SLACK_MS + 1
    assert prune_all(cluster) == 1
    assert cluster.state.pruned == {}


def test_tokens_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prune, "PRUNED_MAX", 3)
    for number in range(5):
        finished(cluster, f"j{number}")
    assert prune_all(cluster) == 3
    assert prune_all(cluster) == 0
    cluster.now_ms += SUBMIT_WINDOW_MS + CLOCK_SLACK_MS + 1
    assert prune_all(cluster) == 2


def test_deletions_wait_for_the_database_when_there_are_too_many(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "DELETED_MAX", 2)
    for number in range(3):
        finished(cluster, f"j{number}")
    for number in range(2):
        cluster.apply(DeleteJob(f"j{number}"))
    with pytest.raises(ResourceExhausted, match="tiflow cluster status"):
        cluster.apply(DeleteJob("j2"))
    cluster.apply(PruneJobs(cluster.state.revision))
    cluster.apply(DeleteJob("j2"))


def test_the_oldest_go_first_and_after_their_retention(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    ended = []
    for number in range(4):
        ended.append(finished(cluster, f"j{number}"))
        cluster.now_ms += DAY_MS
    state, now_ms = cluster.state, cluster.now_ms

    def leaving(persisted: int, retention_ms: int) -> list[str]:
        command = prunable(state, persisted, now_ms, retention_ms)
        uids = [uid for uid, _ in command.jobs] if command is not None else []
        return [job.id for job in ended if job.uid in uids]

    assert leaving(state.revision, 2 * DAY_MS) == ["j0", "j1", "j2"]
    assert leaving(ended[1].mod_revision, 2 * DAY_MS) == ["j0", "j1"]
    assert leaving(state.revision, 9 * DAY_MS) == []
    monkeypatch.setattr(prune, "JOBS_KEPT_MAX", 3)
    assert leaving(state.revision, 9 * DAY_MS) == ["j0"], "there are too many of them"
    cluster.apply(PruneJobs(state.revision))
    monkeypatch.setattr(prune, "JOBS_KEPT_MAX", 4)
    assert prunable(state, state.revision, now_ms, 9 * DAY_MS) is None, "nothing to propose"


def test_memory_falls_and_so_does_the_snapshot(cluster: Cluster):
    empty = len(b"".join(cluster.machine.snapshot()))
    for number in range(300):
        finished(cluster, f"j{number}", count=4, results=b"\x94\xc4\x64" + b"r" * 100)
    full = len(b"".join(cluster.machine.snapshot()))
    assert full > empty + 300 * 100
    cluster.now_ms += SUBMIT_WINDOW_MS + CLOCK_SLACK_MS + 1

    assert prune_all(cluster) == 300

    state = cluster.state
    for table in ("jobs", "groups", "results", "ended", "events", "job_ids", "finished"):
        assert not getattr(state, table), table
    assert len(b"".join(cluster.machine.snapshot())) < empty + 500


def test_replicas_agree_through_a_snapshot(cluster: Cluster):
    finished(cluster, "gone")
    prune_all(cluster)
    cluster.submit("here")
    again = Machine()
    again.restore(b"".join(cluster.machine.snapshot()))
    assert again.digest() == cluster.machine.digest()
    assert again.state.pruned == cluster.state.pruned
    assert again.state.events == cluster.state.events


def test_an_archive_has_its_job_alone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    job = finished(cluster, "j", count=3, results=b"\x93\xc4\x01a\xc4\x01b\xc4\x01c")
    cluster.submit("other")
    archive = alone(cluster.state, job)
    assert archive.jobs == {"j": job}
    assert archive.results == cluster.state.results
    monkeypatch.setattr(prune, "ARCHIVE_BYTES_MAX", 5)
    assert alone(cluster.state, job).results == {}


def test_an_archive_has_the_arguments_of_a_pool_as_far_as_they_are_small(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prune, "ARCHIVE_SPECS_BYTES_MAX", 2_500)
    executor = cluster.register()
    job = cluster.apply(SubmitJob(JobSpec("pool", (), open=True), "token", cluster.now_ms))
    for number, work in enumerate((Call((bytes(1_000),)), Call((bytes(999),)), Command(("x" * 1_000,))), 1):
        items = (msgpack.encode([b"1"]),) if isinstance(work, Call) else ()
        cluster.apply(AddGroup(job.uid, number, GroupSpec(f"g{number}", work, items=items)))
        place = Place(job.uid, f"g{number}", 0, 1, 1, executor.uid, executor.incarnation)
        cluster.event(cluster.apply(PlaceTasks((place,)))[0], "succeeded", results=KEPT)
    cluster.apply(CloseGroups(job.uid))
    job = cluster.state.jobs["pool"]

    archive = decode_state(b"".join(encode_state(alone(cluster.state, job))))

    first, second, third = archive.groups_of(archive.jobs["pool"])
    assert first.spec == cluster.state.groups[job.uid, "g1"].spec
    assert second.spec == cluster.state.groups[job.uid, "g2"].spec
    assert third.spec == GroupSpec("g3", Command(()))
    assert results(archive, job.uid, 0, 9) == results(cluster.state, job.uid, 0, 9)
    assert job_state(archive, archive.jobs["pool"]) == "Finished"
    assert tasks(archive, archive.jobs["pool"], 9) == tasks(cluster.state, job, 9)


def test_an_archive_has_groups_that_were_skipped_and_what_tasks_used(cluster: Cluster):
    executor = cluster.register()
    last = GroupSpec("last", Command(("true",)), 4, after=(After("g"),), resources={"gpu": 1})
    spec = JobSpec("j", (GroupSpec("g", Command(("true",)), 2), last), project="p")
    cluster.apply(SetProject("p"))
    job = cluster.apply(SubmitJob(spec, "t", cluster.now_ms))
    placement = cluster.place(job, executor, 0, 2)
    cluster.event(placement, "failed", final=True, cpu_us=70, memory_bytes=9)
    before = cluster.state
    archive = decode_state(b"".join(encode_state(alone(before, before.jobs["j"]))))
    prune_all(cluster)
    assert cluster.state.jobs == {}

    kept = archive.jobs["j"]
    first, skipped = archive.groups_of(kept)
    assert (kept.spec, job_state(archive, kept)) == (spec, "Failed")
    assert (first.failed, first.cpu_us, first.memory_bytes) == (2, 70, 9)
    assert skipped.skipped == 4
    assert why_not(kept, skipped, (first, skipped)) == "skipped, for not all of g succeeded"
    assert [row.cpu_us for _, row in results(archive, kept.uid, 0, 9)] == [70]
    assert [(one.group, one.stop, one.state) for one in tasks(archive, kept, 9)] == [
        ("g", 2, "failed"),
        ("last", 4, "skipped"),
    ]


class TestHistory:
    def kinds(self, cluster: Cluster, job: Job) -> list[str]:
        return [event.kind for event in cluster.state.events[job.uid].events]

    def test_says_what_happened_and_why(self, cluster: Cluster):
        executor = cluster.register()
        job = cluster.submit("j", count=10)
        cluster.place(job, executor, 0, 9)
        placement = next(iter(cluster.state.placements.values()))
        for start in range(7):
            cluster.event(placement, "failed", start, start + 1, error=f"error {start}", final=True)
        cluster.apply(CancelJob("j"))
        cluster.event(placement, "canceled", 7, 9)
        events = cluster.state.events[job.uid].events
        assert [(event.kind, event.message) for event in events] == [
            ("submitted", "10 tasks"),
            ("started", ""),
            ("failures", "1 tasks have failed; the last: error 0"),
            ("failures", "2 tasks have failed; the last: error 1"),
            ("failures", "4 tasks have failed; the last: error 3"),
            ("canceling", ""),
            ("ended", "Canceled: 0 succeeded, 7 failed, 3 canceled"),
        ]
        assert [event.revision for event in events] == sorted({event.revision for event in events})
        assert {event.at_ms for event in events} == {START_MS}

    def test_is_bounded_and_says_what_was_left_out(self, cluster: Cluster):
        job = cluster.submit("j")
        for _ in range(50):
            cluster.apply(PauseJob("j"))
            cluster.apply(ResumeJob("j"))
        record = cluster.state.events[job.uid]
        assert (len(record.events), record.omitted) == (64, 37)

    def test_is_not_kept_before_all_masters_understand_it(self):
        cluster = Cluster()
        cluster.submit("j")
        assert cluster.state.events == {}


class TestRestoring:
    SPEC = JobSpec("j", (GroupSpec("g", Command(("true",)), 3),))

    def order(self, **fields: object) -> RestoreJob:
        return RestoreJob("lost", 500, **fields)  # type: ignore[arg-type]

    def test_takes_over_the_jobs_of_a_lost_cluster(self, cluster: Cluster):
        cluster.apply(self.order())
        cluster.apply(self.order())  # a repeat
        restored = self.order(spec=self.SPEC, token="t", submitted_at_ms=7, paused=True)
        cluster.apply(restored)
        cluster.apply(restored)  # a repeat
        job = cluster.state.jobs["j"]
        assert job.uid > 500
        assert (job.submitted_at_ms, job.paused, job.token) == (7, True, "t")
        assert [event.kind for event in cluster.state.events[job.uid].events] == ["restored", "paused"]
        with pytest.raises(AlreadyExists):
            cluster.apply(self.order(spec=self.SPEC, token="another"))
        again = Machine()
        again.restore(b"".join(cluster.machine.snapshot()))
        assert again.state.restored_from == "lost"

    def test_groups_that_come_after_others_wait_for_them_again(self, cluster: Cluster):
        last = GroupSpec("last", Command(("true",)), after=(After("g"),), resources={"gpu": 2})
        spec = replace(self.SPEC, groups=(*self.SPEC.groups, last), project="p")
        cluster.apply(self.order())
        cluster.apply(self.order(spec=spec, token="t"))
        job = cluster.state.jobs["j"]
        assert job.spec == spec
        assert [group.held for group in cluster.state.groups_of(job)] == [False, True]
        assert cluster.state.usage_of("p").waiting == 4

    def test_not_into_a_cluster_that_has_jobs(self, cluster: Cluster):
        cluster.submit("mine")
        with pytest.raises(FailedPrecondition, match="jobs of its own"):
            cluster.apply(self.order())

    def test_not_of_another_cluster(self, cluster: Cluster):
        cluster.apply(self.order())
        with pytest.raises(FailedPrecondition, match="does not take over"):
            cluster.apply(RestoreJob("third", 1, spec=self.SPEC))
        with pytest.raises(NotFound):
            cluster.apply(CancelJob("j"))
