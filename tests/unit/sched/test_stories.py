"""What users rely on, one sentence each."""

import pytest
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.support import KEPT, Cluster
from tiflow.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from tiflow.sched import tasks as tasks_module
from tiflow.sched.commands import (
    FORMAT,
    CancelJob,
    DeleteJob,
    ExpireExecutor,
    Place,
    PlaceTasks,
    SetFormat,
    SubmitJob,
    TaskEvent,
    TaskEvents,
)
from tiflow.sched.model import (
    CHUNK_TASKS,
    SUBMIT_WINDOW_MS,
    Command,
    Deleted,
    GroupSpec,
    JobSpec,
    JobState,
    Python,
    RetryPolicy,
    Selector,
    TaskState,
)
from tiflow.sched.tasks import ERRORS_FORMAT, backoff_ms
from tiflow.sched.validate import validate_spec
from tiflow.sched.views import newest_rows, progress, results, task_state


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# What tasks used.


def test_a_group_sums_up_what_its_attempts_used_and_a_repeat_adds_nothing(cluster):
    job = cluster.submit("j", count=3, retry=RetryPolicy(attempts_max=2, backoff_ms=0))
    executor = cluster.register("e")
    placement = cluster.place(job, executor, 0, 3)
    for _ in range(2):
        cluster.event(placement, "failed", start=0, stop=1, cpu_us=5, memory_bytes=900)
        cluster.event(
            placement, "succeeded", start=1, stop=3, results=msgpack.encode([b"a", b"b"]), cpu_us=7, memory_bytes=300
        )
    again = cluster.place(job, executor, 0, 1, attempt=2)
    cluster.event(again, "failed", error="no", cpu_us=10, memory_bytes=40)

    (group,) = cluster.state.groups_of(cluster.state.jobs["j"])
    assert (group.cpu_us, group.memory_bytes) == (22, 900)
    rows = results(cluster.state, job.uid, 0, 10)
    assert [(row.outcome, row.cpu_us, row.memory_bytes) for _, row in rows] == [
        ("succeeded", 7, 300),
        ("failed", 10, 40),
    ]
    wanted = {("g", index): None for index in range(3)}
    found = newest_rows(cluster.state, cluster.state.jobs["j"], wanted)
    assert {key: row.cpu_us for key, row in found.items()} == {("g", 0): 10, ("g", 1): 7, ("g", 2): 7}


# Submitting.


def test_the_same_token_gets_the_same_job(cluster):
    job = cluster.submit("j")

    again = cluster.apply(SubmitJob(job.spec, job.token, cluster.now_ms))

    assert (again, len(cluster.state.jobs)) == (job, 1)


def test_another_token_under_a_living_id_is_refused(cluster):
    job = cluster.submit("j")

    with pytest.raises(AlreadyExists, match="j exists; use another id"):
        cluster.apply(SubmitJob(job.spec, "another", cluster.now_ms))


def test_a_repeat_that_comes_after_the_window_does_not_run_a_deleted_job_again(cluster):
    job = cluster.submit("j")
    born_ms = cluster.now_ms
    cluster.apply(CancelJob("j"))
    cluster.apply(DeleteJob("j"))

    cluster.now_ms += SUBMIT_WINDOW_MS + 1

    with pytest.raises(FailedPrecondition, match="older than 24 h"):
        cluster.apply(SubmitJob(job.spec, job.token, born_ms))
    assert not cluster.state.jobs


def test_a_repeat_within_the_window_gets_its_job(cluster):
    job = cluster.submit("j")
    born_ms = cluster.now_ms

    cluster.now_ms += SUBMIT_WINDOW_MS + 1  # the job lives, so there is no doubt about it

    assert cluster.apply(SubmitJob(job.spec, job.token, born_ms)).uid == job.uid


GROUP = GroupSpec("g", Command(("true",)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (JobSpec("", (GROUP,)), "id: ''"),
        (JobSpec("j\n", (GROUP,)), "id: "),
        (JobSpec("j" * 129, (GROUP,)), "id: "),
        (JobSpec("j", ()), "groups: 0 given"),
        (JobSpec("j", (GROUP,) * 101), "groups: 101 given; a job has 1 to 100"),
        (JobSpec("j", (GROUP, GROUP)), "groups: two have the name g"),
        (JobSpec("j", (GROUP,), priority=101), "priority: 101 is not in 0 to 100"),
        (JobSpec("j", (GROUP,), labels={"a b": ""}), "labels: 'a b'"),
        (JobSpec("j", (replace(GROUP, name="a/b"),)), "groups: name: 'a/b'"),
        (JobSpec("j", (replace(GROUP, count=0),)), "g.count: 0 is not in 1 to 10000000"),
        (JobSpec("j", tuple(replace(GROUP, name=n, count=6_000_000) for n in "ab")), "tasks in all: 12000000"),
        (JobSpec("j", (replace(GROUP, count=257, items=(b"",)),)), "257 tasks need 2"),
        (JobSpec("j", (replace(GROUP, work=Command(())),)), "argv: empty"),
        (JobSpec("j", (replace(GROUP, work=Command(("",))),)), "argv: empty"),
        (JobSpec("j", (replace(GROUP, work=Python("f")),)), "'f' is not of the form module:name"),
        (JobSpec("j", (replace(GROUP, work=Python(":f")),)), "is not of the form"),
        (JobSpec("j", (replace(GROUP, selectors=(Selector("a", "like", ("b",)),)),)), "op 'like' is none of eq"),
        (JobSpec("j", (replace(GROUP, selectors=(Selector("a"),)),)), "values of eq: 0 is not in 1 to 1"),
        (JobSpec("j", (replace(GROUP, selectors=(Selector("a", "exists", ("b",)),)),)), "1 is not in 0 to 0"),
        (JobSpec("j", (replace(GROUP, selectors=(Selector("", "exists"),)),)), "selectors: key: ''"),
        (JobSpec("j", (replace(GROUP, retry=RetryPolicy(attempts_max=0)),)), "attempts_max: 0"),
        (JobSpec("j", (replace(GROUP, retry=RetryPolicy(backoff_ms=-1)),)), "backoff_ms: -1"),
        (JobSpec("j", (replace(GROUP, retry=RetryPolicy(multiplier_milli=999)),)), "multiplier_milli: 999"),
        (JobSpec("j", (replace(GROUP, retry=RetryPolicy(backoff_ms_max=-1)),)), "backoff_ms_max: -1"),
        (JobSpec("j", (replace(GROUP, timeout_ms=-1),)), "timeout_ms: -1"),
        (JobSpec("j", (replace(GROUP, grace_ms=-1),)), "grace_ms: -1"),
        (JobSpec("j", (replace(GROUP, items=(bytes(5 << 20),)),)), "spec: 5242.* at most 4194304"),
    ],
)
def test_a_job_that_cannot_run_is_refused_with_the_field_the_value_and_the_bound(spec, message):
    with pytest.raises(InvalidArgument, match=message):
        validate_spec(spec)


def test_a_refused_command_changes_nothing_but_the_revision(cluster):
    with pytest.raises(InvalidArgument, match="token: 0 characters"):
        cluster.apply(SubmitJob(JobSpec("j", (GROUP,)), "", cluster.now_ms))

    assert (cluster.state.revision, cluster.state.jobs, cluster.state.groups) == (1, {}, {})


# Retrying.


def test_a_task_that_fails_waits_for_its_backoff_and_runs_again(cluster):
    job, executor = cluster.submit(), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "failed", exit_code=1)
    due_ms = cluster.state.retries[job.uid, "g"][0].due_at_ms

    early = Place(job.uid, "g", 0, 1, 2, executor.uid, executor.incarnation)
    cluster.now_ms = due_ms - 1
    assert cluster.apply(PlaceTasks((early,))) == ()

    cluster.now_ms = due_ms
    assert cluster.place(job, executor, 0, 1, attempt=2).failures == 1


def test_a_task_fails_after_its_last_attempt_and_its_job_with_it(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded")
    for attempt in (1, 2, 3):
        cluster.event(cluster.place(job, executor, 1, 2, attempt=attempt), "failed", error=f"bang {attempt}")
        cluster.now_ms += 10_000

    assert cluster.stands(job) is JobState.FAILED
    assert [(row.outcome, row.attempt, row.error) for _, row in results(cluster.state, job.uid, 0, 9)] == [
        ("failed", 3, "bang 3")
    ]


def test_a_final_failure_is_not_retried(cluster):
    job, executor = cluster.submit(), cluster.register()

    cluster.event(cluster.place(job, executor, 0, 1), "failed", final=True, exit_code=127)

    assert cluster.stands(job) is JobState.FAILED
    assert results(cluster.state, job.uid, 0, 1)[0][1].error == "exit code 127"


def test_the_backoff_grows_by_the_multiplier_up_to_its_bound_give_or_take_a_tenth():
    policy = RetryPolicy(backoff_ms=1_000, multiplier_milli=2_000, backoff_ms_max=5_000)

    for failures, expected in ((1, 1_000), (2, 2_000), (3, 4_000), (4, 5_000), (500, 5_000)):
        waits = [backoff_ms(policy, 7, index, failures, failures) for index in range(200)]
        assert expected * 0.9 <= min(waits) < expected * 0.95
        assert expected * 1.05 < max(waits) <= expected * 1.1


def test_a_task_that_is_handed_back_has_lost_nothing(cluster):
    job, executor = cluster.submit(), cluster.register()
    placement = cluster.place(job, executor, 0, 1)

    cluster.event(placement, "released")

    assert cluster.task(job) == (TaskState.WAITING, 2)
    again = cluster.place(job, executor, 0, 1, attempt=2)
    assert (again.failures, again.losses) == (0, 0)


def test_what_is_left_of_a_range_waits_as_ranges(cluster):
    job, executor = cluster.submit(count=10), cluster.register()
    placement = cluster.place(job, executor, 0, 10)
    cluster.event(placement, "succeeded", 3, 5)

    cluster.event(placement, "failed")

    rows = cluster.state.retries[job.uid, "g"].values()
    assert [(row.index, row.stop) for row in rows] == [(0, 3), (5, 10)]


def test_a_part_of_a_waiting_range_can_be_placed_and_neighbours_go_together(cluster):
    job, executor = cluster.submit(count=10), cluster.register()
    for start, stop in ((0, 4), (4, 10)):
        cluster.event(cluster.place(job, executor, start, stop), "released")

    placement = cluster.place(job, executor, 0, 7, attempt=2)

    assert (placement.start, placement.stop) == (0, 7)
    (row,) = cluster.state.retries[job.uid, "g"].values()
    assert (row.index, row.stop) == (7, 10)


def test_neighbours_with_another_past_do_not_go_together(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "released")
    cluster.event(cluster.place(job, executor, 1, 2), "failed")
    cluster.now_ms += 10_000

    both = Place(job.uid, "g", 0, 2, 2, executor.uid, executor.incarnation)

    assert cluster.apply(PlaceTasks((both,))) == ()


def test_tasks_of_two_chunks_end_in_one_event(cluster):
    job, executor = cluster.submit(count=CHUNK_TASKS + 300), cluster.register()
    for start in range(0, CHUNK_TASKS - 200, 487):
        stop = min(start + 487, CHUNK_TASKS - 200)
        cluster.event(cluster.place(job, executor, start, stop), "succeeded")
    placement = cluster.place(job, executor, CHUNK_TASKS - 200, CHUNK_TASKS + 300)

    cluster.event(placement, "failed", CHUNK_TASKS - 2, CHUNK_TASKS + 2, final=True)
    cluster.event(placement, "succeeded")

    found = [task_state(cluster.state, job, "g", i)[0] for i in (CHUNK_TASKS - 3, CHUNK_TASKS - 1, CHUNK_TASKS)]
    assert found == [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.FAILED]
    assert progress(cluster.state, cluster.state.jobs["j"]).failed == 4


# Placing.


def test_a_range_that_was_placed_is_not_placed_again(cluster):
    job, executor = cluster.submit(count=4), cluster.register()
    cluster.place(job, executor, 0, 2)

    for start, stop in ((0, 2), (1, 3), (3, 4), (2, 5), (2, 2)):
        place = Place(job.uid, "g", start, stop, 1, executor.uid, executor.incarnation)
        assert cluster.apply(PlaceTasks((place,))) == ()


def test_an_executor_gets_its_slots_and_its_backlog_and_no_more(cluster):
    job, executor = cluster.submit(count=2_000), cluster.register(slots=1)
    places = tuple(
        Place(job.uid, "g", start, stop, 1, executor.uid, executor.incarnation)
        for start, stop in ((0, 512), (512, 514), (512, 513), (513, 514))
    )

    accepted = cluster.apply(PlaceTasks(places))

    assert [(row.start, row.stop) for row in accepted] == [(0, 512), (512, 513)]
    assert cluster.state.out(executor.uid) == 513


def test_a_placement_has_at_most_512_tasks(cluster):
    job, executor = cluster.submit(count=2_000), cluster.register()
    place = Place(job.uid, "g", 0, 513, 1, executor.uid, executor.incarnation)

    assert cluster.apply(PlaceTasks((place,))) == ()


def test_nothing_is_placed_on_the_dead_or_on_an_older_incarnation(cluster):
    job = cluster.submit()
    old, new = cluster.register(boot_id="1"), cluster.register(boot_id="2")
    dead = cluster.register("dead")
    cluster.apply(ExpireExecutor(dead.uid, dead.incarnation))

    for executor in (old, dead, replace(new, uid="unknown")):
        place = Place(job.uid, "g", 0, 1, 1, executor.uid, executor.incarnation)
        assert cluster.apply(PlaceTasks((place,))) == ()


# Events.


def test_an_end_is_recorded_once(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    placement = cluster.place(job, executor, 0, 2)

    assert cluster.event(placement, "succeeded", 0, 1, results=KEPT) == 0
    assert cluster.event(placement, "succeeded", 0, 1, results=KEPT) == 1
    assert cluster.event(placement, "failed", 0, 1) == 1

    assert progress(cluster.state, cluster.state.jobs["j"]).succeeded == 1
    assert len(results(cluster.state, job.uid, 0, 9)) == 1


def test_results_of_a_range_that_ended_in_part_are_not_taken(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    placement = cluster.place(job, executor, 0, 2)
    cluster.event(placement, "released", 0, 1)

    assert cluster.event(placement, "succeeded", 0, 2, results=msgpack.encode([b"", b""])) == 1
    assert cluster.event(placement, "succeeded", 0, 2) == 0, "without results, what is left counts"

    assert progress(cluster.state, cluster.state.jobs["j"]).succeeded == 1


def test_an_executor_cannot_speak_of_what_another_one_has(cluster):
    job, mine, other = cluster.submit(), cluster.register("mine"), cluster.register("other")
    placement = cluster.place(job, mine, 0, 1)

    assert cluster.event(replace(placement, executor=other.uid, incarnation=other.incarnation), "succeeded") == 1
    assert cluster.event(replace(placement, executor=other.uid), "succeeded") == 1
    assert cluster.event(replace(placement, incarnation=0), "succeeded") == 1


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 3), (1, 1), (2, 1)])
def test_an_event_out_of_its_placement_is_void(cluster, start, stop):
    job, executor = cluster.submit(count=4), cluster.register()
    placement = cluster.place(job, executor, 0, 2)

    event = TaskEvent(placement.id, start, stop, "succeeded")

    assert cluster.apply(TaskEvents(executor.uid, executor.incarnation, (event,))) == 1


def test_several_events_of_one_command_see_each_other(cluster):
    job, executor = cluster.submit(count=3), cluster.register()
    placement = cluster.place(job, executor, 0, 3)
    kinds = ((0, 3, "started"), (0, 2, "succeeded"), (1, 3, "failed"), (0, 3, "succeeded"))

    void = cluster.apply(
        TaskEvents(executor.uid, executor.incarnation, tuple(TaskEvent(placement.id, *kind) for kind in kinds))
    )

    assert void == 1
    assert [cluster.task(job, i)[0] for i in range(3)] == ["succeeded", "succeeded", "waiting"]


def test_a_long_error_is_cut(cluster):
    job, executor = cluster.submit(), cluster.register()

    cluster.event(cluster.place(job, executor, 0, 1), "failed", error="x" * 5_000, final=True)

    assert results(cluster.state, job.uid, 0, 1)[0][1].error == "x" * 1_000


@pytest.mark.parametrize(("format", "later"), [(FORMAT, 100), (ERRORS_FORMAT - 1, 1_000)])
def test_of_many_errors_the_first_ones_are_kept_whole(cluster, monkeypatch, format, later):
    monkeypatch.setattr(tasks_module, "ERRORS_WHOLE_MAX", 2)
    cluster.apply(SetFormat(format))
    job, executor = cluster.submit(count=4), cluster.register(slots=4)
    placement = cluster.place(job, executor, 0, 4)

    for index in range(4):
        cluster.event(placement, "failed", index, index + 1, error=f"{index}" * 2_000, final=True)

    kept = [row.error for _, row in results(cluster.state, job.uid, 0, 9)]
    assert kept == [f"{index}" * chars for index, chars in enumerate((1_000, 1_000, later, later))]


# Canceling and deleting.


def test_cancel_ends_what_waits_at_once_and_what_is_out_when_its_executor_says_so(cluster):
    job, executor = cluster.submit(count=5), cluster.register()
    placement = cluster.place(job, executor, 0, 4)
    cluster.event(placement, "failed", 3, 4)
    cluster.event(placement, "started", 0, 1)

    cluster.apply(CancelJob("j"))
    assert cluster.stands(job) is JobState.CANCELING
    assert [cluster.task(job, i)[0] for i in range(5)] == ["running", "placed", "placed", "canceled", "canceled"]

    cluster.event(placement, "canceled", 0, 1)
    cluster.event(placement, "released", 1, 2)
    cluster.event(placement, "succeeded", 2, 3)
    assert cluster.stands(job) is JobState.CANCELED
    assert [cluster.task(job, i)[0] for i in range(3)] == ["canceled", "canceled", "succeeded"]
    assert cluster.state.jobs["j"].ended_at_ms == cluster.now_ms


def test_a_job_whose_tasks_all_succeeded_in_spite_of_a_cancel_is_finished(cluster):
    job, executor = cluster.submit(), cluster.register()
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(CancelJob("j"))

    cluster.event(placement, "succeeded")

    assert cluster.stands(job) is JobState.FINISHED


def test_a_canceled_job_ends_when_its_executor_is_lost(cluster):
    job, executor = cluster.submit(), cluster.register()
    cluster.place(job, executor, 0, 1)
    cluster.apply(CancelJob("j"))

    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert cluster.stands(job) is JobState.CANCELED


def test_a_failure_in_a_canceled_job_is_not_retried(cluster):
    job, executor = cluster.submit(), cluster.register()
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(CancelJob("j"))

    cluster.event(placement, "failed", error="killed")

    assert cluster.task(job)[0] is TaskState.FAILED
    assert cluster.stands(job) is JobState.CANCELED


def test_canceling_what_has_ended_changes_nothing(cluster):
    job, executor = cluster.submit(), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded")
    before = cluster.state.jobs["j"]

    cluster.apply(CancelJob("j"))

    assert cluster.state.jobs["j"] == before


def test_only_a_job_that_has_ended_can_be_deleted(cluster):
    job = cluster.submit(count=5_000)
    with pytest.raises(FailedPrecondition, match="j is Created; cancel it"):
        cluster.apply(DeleteJob("j"))
    cluster.apply(CancelJob("j"))

    cluster.apply(DeleteJob("j", job.uid))
    cluster.apply(DeleteJob("j", job.uid))  # a repeat

    assert not any((cluster.state.jobs, cluster.state.groups, cluster.state.ended, cluster.state.results))
    assert cluster.state.changed_since(0, 9) == [Deleted("j", job.uid, job.uid + 3)]
    with pytest.raises(NotFound):
        cluster.apply(DeleteJob("j"))


def test_an_order_for_a_uid_does_not_touch_a_later_job_of_the_same_id(cluster):
    first = cluster.submit("j")
    cluster.apply(CancelJob("j"))
    cluster.apply(DeleteJob("j"))
    second = cluster.apply(SubmitJob(first.spec, "again", cluster.now_ms))

    with pytest.raises(NotFound, match="no job j with uid 1"):
        cluster.apply(CancelJob("j", first.uid))
    cluster.apply(DeleteJob("j", first.uid))

    assert cluster.stands(second) is JobState.CREATED
