"""Open jobs, told as stories: groups that come and go, tasks that are withdrawn, clients that are gone."""

from typing import Any

import pytest
from msgspec import msgpack

from tests.unit.sched.support import KEPT, POLICY, Cluster
from tiflow.errors import FailedPrecondition, NotFound, ResourceExhausted
from tiflow.sched import pools
from tiflow.sched.commands import (
    AddGroup,
    CancelJob,
    CancelTasks,
    CloseGroups,
    ExpireExecutor,
    PauseJob,
    Place,
    PlaceTasks,
    RerunLost,
    SetFormat,
    SubmitJob,
)
from tiflow.sched.duties import due
from tiflow.sched.machine import Machine
from tiflow.sched.model import Call, GroupSpec, Job, JobSpec, JobState, TaskState
from tiflow.sched.plan import plan
from tiflow.sched.prune import alone
from tiflow.sched.snapshot import decode_state, encode_state
from tiflow.sched.views import results, tasks


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def open_job(cluster: Cluster, **fields: Any) -> Job:
    return cluster.apply(SubmitJob(JobSpec("pool", (), open=True, **fields), "token", cluster.now_ms))


def add(
    cluster: Cluster, job: Job, number: int, *, name: str = "g", count: int = 1, drop: tuple[str, ...] = ()
) -> Job:
    spec = GroupSpec(name, Call((b"f",)), count, (msgpack.encode([b""] * count),), retry=POLICY)
    return cluster.apply(AddGroup(job.uid, number, spec, drop))


def test_an_open_job_lives_until_it_is_sealed_and_its_tasks_have_ended(cluster):
    job, executor = open_job(cluster), cluster.register()
    assert cluster.stands(job) is JobState.CREATED
    add(cluster, job, 1)

    cluster.event(cluster.place(job, executor, 0, 1), "succeeded")
    assert cluster.stands(job) is JobState.RUNNING, "more may come"
    cluster.apply(CloseGroups(job.uid))

    assert cluster.stands(job) is JobState.FINISHED
    assert cluster.state.jobs[job.id].ended_at_ms
    with pytest.raises(FailedPrecondition, match="takes no more groups: it is Finished"):
        add(cluster, job, 2, name="late")


def test_a_pool_that_was_never_used_ends_with_its_sealing(cluster):
    job = open_job(cluster)

    cluster.apply(CloseGroups(job.uid))
    cluster.apply(CloseGroups(job.uid))

    assert cluster.stands(job) is JobState.FINISHED


def test_a_group_that_is_added_twice_is_there_once_even_after_it_was_dropped(cluster):
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1, name="g", count=2)
    before = cluster.state.groups[job.uid, "g"]
    add(cluster, job, 1, name="g", count=2)
    assert cluster.state.groups[job.uid, "g"] == before
    cluster.event(cluster.place(job, executor, 0, 2), "succeeded", results=msgpack.encode([b"1", b"2"]))
    add(cluster, job, 2, name="h", drop=("g",))

    add(cluster, job, 1, name="g", count=2)

    assert [group.name for group in cluster.state.groups_of(job)] == ["h"]
    assert results(cluster.state, job.uid, 0, 10) == []
    with pytest.raises(FailedPrecondition, match="4 does not follow 2"):
        add(cluster, job, 4, name="i")


def test_what_has_not_ended_is_not_dropped(cluster):
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1, name="g", count=2)
    cluster.place(job, executor, 0, 2)

    add(cluster, job, 2, name="h", drop=("g", "unheard-of"))

    assert [group.name for group in cluster.state.groups_of(job)] == ["g", "h"]


def test_a_failure_is_remembered_when_its_group_is_dropped(cluster):
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1)
    cluster.event(cluster.place(job, executor, 0, 1), "failed", final=True)
    add(cluster, job, 2, name="h", drop=("g",))
    cluster.apply(CancelTasks(job.uid, "h", 0, 1))

    cluster.apply(CloseGroups(job.uid))

    assert cluster.stands(job) is JobState.FAILED


def test_failures_of_groups_that_were_dropped_count_towards_the_most(cluster):
    job, executor = open_job(cluster, max_failures=2), cluster.register()
    add(cluster, job, 1)
    cluster.event(cluster.place(job, executor, 0, 1), "failed", final=True)
    add(cluster, job, 2, name="h", drop=("g",))
    add(cluster, job, 3, name="g")

    cluster.event(cluster.place(job, executor, 0, 1), "failed", final=True)

    assert cluster.stands(job) is JobState.FAILED
    assert cluster.state.jobs["pool"].failure == "2 tasks failed (max-failures = 2)"


def test_a_paused_pool_that_has_nothing_to_do_has_not_ended(cluster):
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1)
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(PauseJob(job.id))
    cluster.event(placement, "succeeded")

    assert cluster.stands(job) is JobState.PAUSED
    cluster.apply(CloseGroups(job.uid))
    assert cluster.stands(job) is JobState.FINISHED


def test_a_pool_has_bounds(cluster, monkeypatch):
    job = open_job(cluster)
    monkeypatch.setattr(pools, "POOL_GROUPS_MAX", 2)
    add(cluster, job, 1, name="a")
    add(cluster, job, 2, name="b")
    with pytest.raises(ResourceExhausted, match="2 groups of job pool exist"):
        add(cluster, job, 3, name="c")
    monkeypatch.setattr(pools, "POOL_GROUPS_MAX", 3)
    monkeypatch.setattr(pools, "POOL_BYTES_MAX", cluster.state.jobs[job.id].added_bytes + 1)
    with pytest.raises(ResourceExhausted, match="bytes at one time"):
        add(cluster, job, 3, name="c")
    with pytest.raises(FailedPrecondition, match="one with the name b"):
        add(cluster, job, 3, name="b")
    with pytest.raises(NotFound):
        cluster.apply(AddGroup(999, 1, GroupSpec("g", Call((b"f",)))))


def test_only_open_jobs_take_groups(cluster):
    job = cluster.submit()

    with pytest.raises(FailedPrecondition, match="takes no more groups"):
        add(cluster, job, 1, name="h")
    assert cluster.apply(CloseGroups(job.uid)) is False
    assert cluster.stands(job) is JobState.CREATED


def test_a_canceled_pool_is_canceled_though_all_its_tasks_succeeded(cluster):
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1)
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded")

    cluster.apply(CancelJob(job.id))

    assert cluster.stands(job) is JobState.CANCELED


# The client.


def test_a_job_whose_client_is_gone_fails_sealed_or_not(cluster):
    pool = open_job(cluster, client_ttl_ms=5_000)
    add(cluster, pool, 1, count=2)
    placement = cluster.place(pool, cluster.register(), 0, 1)
    cluster.apply(CloseGroups(pool.uid))
    other = cluster.submit("needs-none")

    (command,) = due(cluster.state, (), cluster.now_ms, [pool.uid, other.uid, 999])
    assert cluster.apply(command)

    assert cluster.stands(pool) is JobState.CANCELING
    assert cluster.state.jobs["pool"].failure == "its client is gone: not heard of for 5000 ms"
    assert due(cluster.state, (), cluster.now_ms, [pool.uid]) == []
    assert cluster.apply(command) is False, "once is enough"
    cluster.event(placement, "canceled")
    assert cluster.stands(pool) is JobState.FAILED


# Tasks that are withdrawn.


def test_tasks_that_wait_are_withdrawn_and_the_others_run(cluster):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=9)

    assert cluster.apply(CancelTasks(job.uid, "g", 3, 5)) == ((3, 5),)
    assert cluster.apply(CancelTasks(job.uid, "g", 4, 6)) == ((5, 6),), "the rest of what is new"
    assert cluster.apply(CancelTasks(job.uid, "g", 8, 99)) == ((8, 9),)
    assert cluster.apply(CancelTasks(job.uid, "g", 0, 0)) == ()

    places = plan(cluster.state, cluster.now_ms, {executor.uid: 9})
    assert [(place.start, place.stop) for place in places] == [(0, 3), (6, 8)]
    for placement in cluster.apply(PlaceTasks(tuple(places))):
        cluster.event(placement, "succeeded")
    cluster.apply(CloseGroups(job.uid))
    assert cluster.stands(job) is JobState.FINISHED
    shown = {(row.start, row.stop): row.state for row in tasks(cluster.state, cluster.state.jobs[job.id], 99)}
    assert shown[3, 6] == shown[8, 9] == "canceled"


def test_a_plan_from_before_places_what_is_left_of_it(cluster):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=4)
    late = Place(job.uid, "g", 0, 4, 1, executor.uid, executor.incarnation)
    cluster.apply(CancelTasks(job.uid, "g", 1, 3))

    (placement,) = cluster.apply(PlaceTasks((late,)))

    assert placement.left == 0b1001
    assert cluster.state.out(executor.uid) == 2


def test_a_task_that_waits_for_its_retry_is_withdrawn(cluster):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=4)
    cluster.event(cluster.place(job, executor, 0, 4), "failed")

    assert cluster.apply(CancelTasks(job.uid, "g", 1, 2)) == ((1, 2),)

    cluster.now_ms += 5_000
    places = plan(cluster.state, cluster.now_ms, {executor.uid: 9})
    assert [(place.start, place.stop, place.attempt) for place in places] == [(0, 1, 2), (2, 4, 2)]


@pytest.mark.parametrize("kind", ["failed", "canceled", "released", "lost"])
def test_a_task_that_is_withdrawn_by_force_ends_canceled_however_it_ends(cluster, kind):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=3)
    placement = cluster.place(job, executor, 0, 3)
    assert cluster.apply(CancelTasks(job.uid, "g", 1, 2)) == ()
    assert cluster.state.placements[placement.id].withdrawn == 0, "without force it goes on"

    cluster.apply(CancelTasks(job.uid, "g", 1, 2, force=True))
    assert cluster.state.placements[placement.id].withdrawn == 0b10
    if kind == "lost":
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    else:
        cluster.event(placement, kind)

    assert [cluster.task(job, index)[0] for index in range(3)] == ["waiting", "canceled", "waiting"]


@pytest.mark.parametrize(("format", "state"), [(2, "failed"), (3, "canceled")])
def test_a_task_that_is_withdrawn_ends_canceled_though_its_job_is_over_since(cluster, format, state):
    """What masters of format 2 make of it must stay as it is while there may be some."""
    cluster.apply(SetFormat(format))
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1)
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(CancelTasks(job.uid, "g", 0, 1, force=True))
    cluster.apply(CancelJob(job.id))

    cluster.event(placement, "failed")

    assert cluster.task(job)[0] == state
    assert cluster.stands(job) is JobState.CANCELED


def test_a_task_that_succeeds_though_it_was_withdrawn_has_succeeded(cluster):
    job, executor = open_job(cluster), cluster.register()
    add(cluster, job, 1)
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(CancelTasks(job.uid, "g", 0, 1, force=True))

    cluster.event(placement, "succeeded", results=KEPT)

    assert cluster.task(job)[0] is TaskState.SUCCEEDED


def test_tasks_that_are_withdrawn_together_may_end_one_by_one(cluster):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=3)
    placement = cluster.place(job, executor, 0, 3)
    cluster.apply(CancelTasks(job.uid, "g", 0, 2, force=True))

    cluster.event(placement, "canceled", 0, 1)

    assert cluster.state.placements[placement.id].withdrawn == 0b10
    assert [cluster.task(job, index)[0] for index in range(3)] == ["canceled", "placed", "placed"]


def test_nothing_is_withdrawn_from_a_job_that_is_canceled(cluster):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=3)
    placement = cluster.place(job, executor, 0, 2)
    cluster.apply(CancelJob(job.id))

    assert cluster.apply(CancelTasks(job.uid, "g", 0, 3, force=True)) == ()

    assert cluster.state.placements[placement.id].withdrawn == 0


def test_a_snapshot_holds_pools(cluster):
    job, executor = open_job(cluster), cluster.register(slots=9)
    add(cluster, job, 1, count=250)
    cluster.place(job, executor, 0, 200)
    cluster.apply(CancelTasks(job.uid, "g", 5, 220, force=True))
    restarted = Machine()

    restarted.restore(b"".join(cluster.machine.snapshot()))

    assert restarted.digest() == cluster.machine.digest()
    assert restarted.state.placements == cluster.state.placements
    assert restarted.state.groups_of(job) == cluster.state.groups_of(job)


# Lost results.


def lost(cluster: Cluster, results: bytes = KEPT, **fields: Any) -> Job:
    """A job that finished, and the executor that had its result is gone."""
    spec = GroupSpec("g", Call((b"f",)), items=(msgpack.encode([b""]),))
    job = cluster.apply(SubmitJob(JobSpec("j", (spec,), **fields), "t", cluster.now_ms))
    executor = cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=results)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    return job


def test_a_lost_result_fails_its_job_if_the_job_says_so(cluster):
    job = lost(cluster, on_lost_result="fail")
    assert cluster.stands(job) is JobState.FINISHED

    for _ in range(2):
        cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.stands(job) is JobState.FAILED
    assert cluster.task(job)[0] is TaskState.FAILED
    assert cluster.state.jobs["j"].failure == "the result of task 0 of group g was lost (on-lost-result = fail)"
    assert [row.outcome for _, row in results(cluster.state, job.uid, 0, 9)] == ["succeeded", "failed"]


def test_a_result_in_a_shared_store_outlives_its_executor(cluster):
    job = lost(cluster, msgpack.encode([[1_000, "sha", "file:///shared/1"]]))

    cluster.apply(RerunLost(job.uid, 0, 0))
    assert cluster.stands(job) is JobState.FINISHED

    cluster.apply(RerunLost(job.uid, 0, 0, missing=True))
    assert cluster.task(job) == (TaskState.WAITING, 2)


@pytest.mark.parametrize(("dropped", "rows"), [("a", [1, 2]), ("c", [0, 1])])
def test_an_archive_awaits_no_rows_of_groups_that_were_dropped(cluster: Cluster, dropped: str, rows: list[int]):
    job, executor = open_job(cluster), cluster.register()
    for number, name in enumerate("abc", start=1):
        add(cluster, job, number, name=name)
        place = Place(job.uid, name, 0, 1, 1, executor.uid, executor.incarnation)
        (placement,) = cluster.apply(PlaceTasks((place,)))
        cluster.event(placement, "succeeded", results=KEPT)
    add(cluster, job, 4, name="d", drop=(dropped,))
    cluster.apply(CloseGroups(job.uid, "its client is gone"))

    job = cluster.state.jobs[job.id]
    archive = decode_state(b"".join(encode_state(alone(cluster.state, job))))

    assert [number for number, _ in results(archive, job.uid, 0, 9)] == rows
    assert archive.jobs[job.id].result_rows == rows[-1] + 1
    assert cluster.stands(job) is JobState.FAILED
