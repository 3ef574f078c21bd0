"""Framework jobs, told as stories: a job master that starts workers, is replaced, and with which the job ends."""

from typing import Any

import pytest
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.support import KEPT, POLICY, Cluster
from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tiflow.sched import pools
from tiflow.sched.commands import (
    AddGroup,
    CancelJob,
    CancelTasks,
    CloseGroups,
    DrainExecutor,
    ExpireExecutor,
    ExpireJob,
    FireSchedule,
    PauseJob,
    Place,
    PlaceTasks,
    PutSchedule,
    RerunLost,
    RestoreJob,
    ResumeJob,
    SetFormat,
    SetProject,
    StartWorkers,
    StopWorkers,
    SubmitJob,
    TaskEvent,
    TaskEvents,
    format_of,
)
from tiflow.sched.duties import recalled
from tiflow.sched.explain import explain
from tiflow.sched.framework import advertised
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    LOST_MAX,
    LOST_RESET_MS,
    Command,
    Executor,
    Framework,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Placement,
    RetryPolicy,
    TaskState,
)
from tiflow.sched.plan import plan
from tiflow.sched.views import job_type, task_state


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(SetFormat(3))
    return cluster


def master_group(**fields: Any) -> GroupSpec:
    return GroupSpec("master", Framework("copy"), **{"retry": POLICY, **fields})


def spec_of(id: str = "j", *, retry: RetryPolicy = POLICY, **fields: Any) -> JobSpec:
    return JobSpec(id, (master_group(retry=retry),), open=True, **fields)


def submit(cluster: Cluster, id: str = "j", **fields: Any) -> Job:
    return cluster.apply(SubmitJob(spec_of(id, **fields), f"token of {id}", cluster.now_ms))


def place(cluster: Cluster, job: Job, executor: Executor, group: str = "master", *, attempt: int = 1) -> Placement:
    count = cluster.state.groups[job.uid, group].count
    whole = Place(job.uid, group, 0, count, attempt, executor.uid, executor.incarnation)
    (placement,) = cluster.apply(PlaceTasks((whole,)))
    return placement


def workers(name: str = "w", count: int = 2, **fields: Any) -> GroupSpec:
    work = fields.pop("work", Framework("copy", "worker"))
    items = (msgpack.encode([b""] * count),)
    return GroupSpec(name, work, count, **{"items": items, "retry": POLICY, **fields})


def start(cluster: Cluster, job: Job, name: str = "w", *, attempt: int = 1, **fields: Any) -> Job:
    return cluster.apply(StartWorkers(job.uid, attempt, workers(name, **fields)))


def stop(cluster: Cluster, job: Job, name: str = "w", *, attempt: int = 1, forget: bool = False) -> bool:
    return cluster.apply(StopWorkers(job.uid, attempt, name, 0, 99, forget))


def stand(cluster: Cluster, job: Job, group: str, index: int = 0) -> TaskState:
    return task_state(cluster.state, job, group, index)[0]


# The life of the job.


def test_a_job_is_finished_when_its_job_master_is_and_its_workers_are_told_to_end(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    assert cluster.stands(job) is JobState.CREATED
    assert list(cluster.state.framework) == [job.uid]
    master = place(cluster, job, executor)
    start(cluster, job)
    start(cluster, job, "waits")
    out = place(cluster, job, executor, "w")

    cluster.event(master, "succeeded")

    assert cluster.stands(job) is JobState.RUNNING
    assert list(cluster.state.closing) == [job.uid], "the leader tells the executors"
    assert stand(cluster, job, "waits") is TaskState.CANCELED
    assert plan(cluster.state, cluster.now_ms, {executor.uid: 9}) == []
    cluster.event(out, "failed", 0, 1)
    cluster.event(out, "canceled", 1, 2)
    assert cluster.stands(job) is JobState.FINISHED
    assert cluster.state.jobs["j"].ended_at_ms
    assert not cluster.state.framework
    assert [stand(cluster, job, "w", index) for index in range(2)] == ["failed", "canceled"]


def test_what_has_been_done_is_neither_canceled_nor_paused_nor_late_nor_failed(cluster):
    job, executor = submit(cluster, job_timeout_ms=10, max_failures=1), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")
    cluster.event(master, "succeeded")
    before = cluster.state.jobs["j"]
    cluster.now_ms += 20

    for command in (CancelJob("j"), PauseJob("j"), ResumeJob("j"), ExpireJob(job.uid)):
        cluster.apply(command)
    assert cluster.state.jobs["j"] == before

    cluster.event(out, "failed")
    assert cluster.stands(job) is JobState.FINISHED


def test_a_job_that_is_pausing_is_finished_by_its_job_master(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")
    cluster.apply(PauseJob("j"))

    cluster.event(master, "succeeded")

    assert cluster.stands(job) is JobState.RUNNING
    cluster.event(out, "canceled")
    assert cluster.stands(job) is JobState.FINISHED


def test_a_job_fails_with_its_job_master_and_says_why(cluster):
    job, executor = submit(cluster, retry=RetryPolicy(1)), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")

    cluster.event(master, "failed", error="ValueError: no such table")

    assert cluster.stands(job) is JobState.CANCELING
    assert cluster.state.jobs["j"].failure == "its job master failed: ValueError: no such table"
    cluster.event(out, "succeeded")
    assert cluster.stands(job) is JobState.FAILED


def test_the_error_is_that_of_the_job_master_whatever_fails_beside_it(cluster):
    job, executor = submit(cluster, retry=RetryPolicy(1)), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")

    events = (
        TaskEvent(out.id, 0, 2, "failed", error="a", final=True),
        TaskEvent(master.id, 0, 1, "failed", error="b"),
    )
    cluster.apply(TaskEvents(executor.uid, executor.incarnation, events))

    assert cluster.stands(job) is JobState.FAILED
    assert cluster.state.jobs["j"].failure == "its job master failed: b"


def test_a_job_master_that_fails_counts_as_such_whatever_else_is_full(cluster):
    job, executor = submit(cluster, retry=RetryPolicy(1), max_failures=1), cluster.register()

    cluster.event(place(cluster, job, executor), "failed", error="bang")

    assert cluster.state.jobs["j"].failure == "its job master failed: bang"


def test_a_worker_that_fails_for_good_is_the_job_masters_business_unless_there_is_a_bound(cluster):
    free, bound = submit(cluster, "free"), submit(cluster, "bound", max_failures=2)
    executor = cluster.register(slots=20)
    for job in (free, bound):
        place(cluster, job, executor)
        start(cluster, job)
        cluster.event(place(cluster, job, executor, "w"), "failed", final=True)

    assert cluster.stands(free) is JobState.RUNNING
    assert cluster.stands(bound) is JobState.CANCELING
    assert cluster.state.jobs["bound"].failure == "2 tasks failed (max-failures = 2)"


def test_failures_that_are_forgotten_count_once(cluster):
    job, executor = submit(cluster, max_failures=2), cluster.register(slots=9)
    place(cluster, job, executor)
    start(cluster, job, count=3)
    out = cluster.apply(PlaceTasks((Place(job.uid, "w", 0, 1, 1, executor.uid, executor.incarnation),)))
    cluster.event(out[0], "failed", final=True)

    assert stop(cluster, job, forget=True)

    assert cluster.stands(job) is JobState.RUNNING
    assert cluster.state.jobs["j"].dropped_failed == 1


def test_a_canceled_job_ends_with_all_its_members(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")

    cluster.apply(CancelJob("j"))

    assert cluster.stands(job) is JobState.CANCELING
    cluster.event(master, "succeeded")
    assert cluster.stands(job) is JobState.CANCELING, "the cancel came first"
    cluster.event(out, "canceled")
    assert cluster.stands(job) is JobState.CANCELED


def test_what_is_out_of_a_job_that_is_pausing_comes_back_and_goes_on_after_the_resumption(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")
    cluster.apply(PauseJob("j"))
    assert cluster.stands(job) is JobState.PAUSING

    for placement in (master, out):
        cluster.event(placement, "canceled")

    assert cluster.stands(job) is JobState.PAUSED
    assert list(cluster.state.framework) == [job.uid]
    cluster.apply(ResumeJob("j"))
    places = plan(cluster.state, cluster.now_ms, {executor.uid: 9})
    assert [(one.group, one.start, one.stop, one.attempt) for one in places] == [("master", 0, 1, 2), ("w", 0, 2, 2)]


def test_what_members_returned_is_not_computed_again(cluster):
    job, executor = submit(cluster), cluster.register()
    cluster.event(place(cluster, job, executor), "succeeded", results=KEPT)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    with pytest.raises(FailedPrecondition, match="not computed again"):
        cluster.apply(RerunLost(job.uid, 0, 0))


# Who is in charge.


def test_workers_are_started_and_stopped_by_the_attempt_that_is_out_alone(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    with pytest.raises(FailedPrecondition, match="attempt 1 of the job master of job j is not running"):
        start(cluster, job)
    master = place(cluster, job, executor)
    with pytest.raises(FailedPrecondition, match="attempt 2 of the job master of job j is not running"):
        start(cluster, job, attempt=2)
    start(cluster, job)
    cluster.event(master, "failed")
    with pytest.raises(FailedPrecondition, match="attempt 1 of the job master of job j is not running"):
        stop(cluster, job)
    cluster.now_ms += 5_000
    place(cluster, job, executor, attempt=2)

    for command in (start, stop):
        with pytest.raises(FailedPrecondition, match=r"attempt 1 of .* has been replaced by attempt 2"):
            command(cluster, job, "w")
    assert [group.name for group in cluster.state.groups_of(job)] == ["master", "w"]
    start(cluster, job, "late", attempt=2)


def test_only_a_living_framework_job_takes_workers(cluster):
    plain, job = cluster.submit("plain"), submit(cluster)
    executor = cluster.register(slots=9)
    cluster.place(plain, executor, 0, 1)
    master = place(cluster, job, executor)
    with pytest.raises(FailedPrecondition, match="plain has no job master"):
        start(cluster, plain)
    with pytest.raises(NotFound, match="uid 999"):
        cluster.apply(StartWorkers(999, 1, workers()))
    cluster.apply(CancelJob("j"))
    with pytest.raises(FailedPrecondition, match="takes no more workers: it is Canceling"):
        start(cluster, job)
    cluster.event(master, "canceled")
    with pytest.raises(FailedPrecondition, match="is not running"):
        start(cluster, job)


def test_a_client_does_not_decide_on_workers(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    place(cluster, job, executor)
    start(cluster, job)
    before = cluster.state.groups_of(job)

    for command in (
        AddGroup(job.uid, 1, GroupSpec("g", Command(("true",)))),
        CloseGroups(job.uid),
        CloseGroups(job.uid, "its client is gone"),
        CancelTasks(job.uid, "w", 0, 2, force=True),
    ):
        with pytest.raises(FailedPrecondition, match="has a job master, which alone decides"):
            cluster.apply(command)
    assert cluster.state.groups_of(job) == before
    pool = cluster.apply(SubmitJob(JobSpec("pool", (), open=True), "t", cluster.now_ms))
    with pytest.raises(InvalidArgument, match="only the job master"):
        cluster.apply(AddGroup(pool.uid, 1, workers()))


# Starting and stopping.


def test_workers_that_exist_stay_as_they_are(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    master = place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")
    cluster.event(master, "canceled")
    place(cluster, job, executor, attempt=2)
    before = cluster.state.groups[job.uid, "w"], cluster.state.jobs["j"]

    start(cluster, job, attempt=2)
    start(cluster, job, attempt=2, retry=RetryPolicy(7))

    assert (cluster.state.groups[job.uid, "w"], cluster.state.jobs["j"]) == before
    assert cluster.state.placements[out.id].attempt == 1
    with pytest.raises(AlreadyExists, match="workers w of job j exist, and are not as asked"):
        start(cluster, job, attempt=2, count=3)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (workers("master"), "master is the job master"),
        (workers(work=Framework("other", "worker")), "of a kind of copy"),
        (workers(work=Framework("copy"), items=(), count=1), "of a kind of copy"),
        (workers(work=Command(("true",))), "of a kind of copy"),
        (workers(items=()), "items: the configs of workers"),
        (workers("a b"), "'a b' does not match"),
    ],
)
def test_workers_that_cannot_be_are_refused(cluster, group, message):
    job = submit(cluster)
    place(cluster, job, cluster.register())

    with pytest.raises(InvalidArgument, match=message):
        cluster.apply(StartWorkers(job.uid, 1, group))


def test_workers_have_the_bounds_of_pools_and_of_projects(cluster, monkeypatch):
    job = submit(cluster)
    place(cluster, job, cluster.register())
    monkeypatch.setattr(pools, "POOL_GROUPS_MAX", 2)
    start(cluster, job)
    with pytest.raises(ResourceExhausted, match="2 groups of job j exist"):
        start(cluster, job, "x")
    monkeypatch.undo()
    cluster.apply(SetProject("default", tasks_max=2))
    with pytest.raises(ResourceExhausted, match="default"):
        start(cluster, job, "x")


def test_workers_that_are_stopped_end_whether_they_wait_or_are_out(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    place(cluster, job, executor)
    start(cluster, job, count=3)
    whole = Place(job.uid, "w", 0, 1, 1, executor.uid, executor.incarnation)
    (out,) = cluster.apply(PlaceTasks((whole,)))

    assert not cluster.apply(StopWorkers(job.uid, 1, "w", 0, 2))

    assert cluster.state.placements[out.id].withdrawn == 1
    assert [stand(cluster, job, "w", index) for index in range(3)] == ["placed", "canceled", "waiting"]
    cluster.event(out, "failed")
    assert stand(cluster, job, "w") is TaskState.CANCELED
    with pytest.raises(InvalidArgument, match="master is the job master"):
        stop(cluster, job, "master")


def test_workers_that_have_ended_are_forgotten_and_their_name_is_free(cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")

    assert not stop(cluster, job, forget=True), "they are out"
    cluster.event(out, "canceled")
    assert not stop(cluster, job), "who does not say so keeps them"
    assert stop(cluster, job, forget=True)
    assert stop(cluster, job, forget=True), "as one who heard no answer does"

    assert (job.uid, "w") not in cluster.state.groups
    assert cluster.state.jobs["j"].dropped_canceled == 2
    start(cluster, job, count=5)
    assert stop(cluster, job, forget=True), "none had been placed"
    assert cluster.state.jobs["j"].dropped == 7


# Lost, and placed.


def test_a_member_that_ran_for_long_before_it_was_lost_is_not_what_kills_executors(cluster):
    job, attempt = submit(cluster), 0
    for attempt in range(1, 2 * LOST_MAX):
        executor = cluster.register(boot_id=str(attempt))
        place(cluster, job, executor, attempt=attempt)
        cluster.now_ms += LOST_RESET_MS
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    assert cluster.stands(job) is JobState.RUNNING

    for again in range(attempt + 1, attempt + LOST_MAX):
        executor = cluster.register(boot_id=str(again))
        place(cluster, job, executor, attempt=again)
        cluster.now_ms += LOST_RESET_MS - 1
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert cluster.stands(job) is JobState.FAILED
    assert cluster.state.jobs["j"].failure == "its job master failed: lost 5 times with its executor; the last was e"


def test_other_tasks_are_counted_lost_however_long_they_ran(cluster):
    job = cluster.submit()
    for attempt in range(1, LOST_MAX + 1):
        executor = cluster.register(boot_id=str(attempt))
        cluster.place(job, executor, 0, 1, attempt=attempt)
        cluster.now_ms += LOST_RESET_MS
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert cluster.stands(job) is JobState.FAILED


def test_members_never_lie_in_a_backlog(cluster):
    job, executor = submit(cluster), cluster.register(slots=2)
    place(cluster, job, executor)
    start(cluster, job, count=5)

    places = plan(cluster.state, cluster.now_ms, {executor.uid: 1_000})

    assert [(one.start, one.stop) for one in places] == [(0, 1)]
    cluster.apply(PlaceTasks(tuple(places)))
    (reason,) = explain(cluster.state, job.uid, cluster.now_ms, {executor.uid: 1_000})
    assert (reason.candidates, reason.summary) == (0, "w: 4 of 5 tasks wait: 1 of 1 have no free slot")


def test_members_go_where_their_type_is_known(cluster):
    job = submit(cluster)
    place(cluster, job, cluster.register("other"))
    knows = cluster.register("knows", labels={"job-type.copy": "1"})
    start(cluster, job, selectors=(advertised("copy"),))

    places = plan(cluster.state, cluster.now_ms, {"uid-other": 9, knows.uid: 9})

    assert [one.executor for one in places] == [knows.uid]


def test_a_drain_takes_members_at_once_and_others_at_its_deadline(cluster):
    job, plain = submit(cluster), cluster.submit("plain")
    executor, other = cluster.register("e", slots=9), cluster.register("other")
    short = cluster.place(plain, executor, 0, 1)
    master = place(cluster, job, executor)
    start(cluster, job)
    place(cluster, job, other, "w")
    assert recalled(cluster.state, cluster.now_ms) == {}

    cluster.apply(DrainExecutor("e", 5_000))

    assert recalled(cluster.state, cluster.now_ms) == {executor.uid: (master.id,)}
    assert recalled(cluster.state, cluster.now_ms + 5_000) == {executor.uid: (short.id, master.id)}
    cluster.event(master, "canceled")
    assert recalled(cluster.state, cluster.now_ms) == {}
    assert stand(cluster, job, "master") is TaskState.WAITING


# Elsewhere begun.


def test_a_schedule_starts_framework_jobs(cluster):
    at_ms = cluster.now_ms + 10
    put = PutSchedule("s", replace(spec_of(), id=""), "* * * * *", "UTC", "t", "skip", "skip", 1, at_ms)
    schedule = cluster.apply(put)
    cluster.now_ms = at_ms

    job = cluster.apply(FireSchedule("s", schedule.uid, at_ms, at_ms, "s-1", 0))

    place(cluster, job, cluster.register())
    assert start(cluster, job).added == 1
    assert list(cluster.state.framework) == [job.uid]


def test_a_job_of_a_lost_cluster_begins_with_its_job_master(cluster):
    cluster.apply(RestoreJob("lost", 1_000))
    cluster.apply(RestoreJob("lost", 1_000, spec_of(), "t"))
    job = cluster.state.jobs["j"]

    assert list(cluster.state.framework) == [job.uid]
    assert [group.name for group in cluster.state.groups_of(job)] == ["master"]


# What is written down, and what is refused.


def test_a_job_is_of_its_type(cluster):
    assert job_type(submit(cluster)) == "copy"


def test_framework_jobs_that_live_are_known_after_a_restart_in_their_order(cluster):
    jobs = [submit(cluster, id) for id in "abcd"]
    executor = cluster.register(slots=9)
    for job in (jobs[2], jobs[0]):
        master = place(cluster, job, executor)
        start(cluster, job)
        place(cluster, job, executor, "w")
        cluster.event(master, "succeeded")
    cluster.apply(CancelJob("d"))
    restarted = Machine()

    restarted.restore(b"".join(cluster.machine.snapshot()))

    assert list(restarted.state.framework) == list(cluster.state.framework) == [job.uid for job in jobs[:3]]
    assert restarted.state.closing == cluster.state.closing == {jobs[0].uid: None, jobs[2].uid: None}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(spec_of(), open=False), "a framework job is open"),
        (replace(spec_of(), client_ttl_ms=9), "needs no client"),
        (replace(spec_of(), groups=(master_group(), GroupSpec("g", Command(("true",))))), "begins with one group"),
        (replace(spec_of(), groups=(GroupSpec("g", Command(("true",))), workers())), "begins with one group"),
        (replace(spec_of(), groups=(workers("master", 1),)), "begins with one group"),
        (replace(spec_of(), groups=(replace(master_group(), name="g"),)), "begins with one group"),
        (replace(spec_of(), groups=(replace(master_group(), count=2),)), "begins with one group"),
        (replace(spec_of(), groups=(master_group(items=(b"\x91\xc0",)),)), "a job master has none"),
        (replace(spec_of(), groups=(GroupSpec("master", Framework("a b")),)), "'a b' does not match"),
        (replace(spec_of(), groups=(GroupSpec("master", Framework("x" * 33)),)), "type: 33 characters"),
    ],
)
def test_a_framework_job_begins_with_its_job_master_alone(cluster, spec, message):
    with pytest.raises(InvalidArgument, match=message):
        cluster.apply(SubmitJob(spec, "t", cluster.now_ms))


def test_nothing_of_framework_jobs_is_logged_before_all_masters_understand_it():
    cluster = Cluster()
    cluster.apply(SetFormat(2))
    spec = spec_of()
    schedule = PutSchedule("s", replace(spec, id=""), "* * * * *", "UTC", "t", "skip", "skip", 1, 0)

    for command in (
        SubmitJob(spec, "t", cluster.now_ms),
        schedule,
        RestoreJob("c", 0, spec),
        StartWorkers(1, 1, workers()),
        StopWorkers(1, 1, "w", 0, 1),
    ):
        assert format_of(command) == 3
        with pytest.raises(FailedPrecondition, match="needs format 3; this is 2"):
            cluster.apply(command)
    assert format_of(SubmitJob(JobSpec("j", (GroupSpec("g", Command(("true",))),)), "t", 0)) == 1
    assert format_of(RestoreJob("c", 0)) == 2


def test_a_snapshot_without_framework_jobs_can_be_read_by_masters_of_an_older_format():
    cluster = Cluster()
    cluster.submit()
    frames = b"".join(cluster.machine.snapshot())
    size = int.from_bytes(frames[:4], "big")
    _, rows = msgpack.decode(frames[4 + size + 4 :][: int.from_bytes(frames[4 + size :][:4], "big")])

    assert len(rows[0]) == len(Job.__struct_fields__) - 3
