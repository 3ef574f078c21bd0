"""What users rely on, one sentence each."""

import pytest
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.support import KEPT, Cluster
from tiflow.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Rejected,
    ResourceExhausted,
)
from tiflow.sched import executors, machine
from tiflow.sched.commands import (
    CancelJob,
    DeleteJob,
    ExpireExecutor,
    Place,
    PlaceTasks,
    RegisterExecutor,
    RerunLost,
    SubmitJob,
    TaskEvent,
    TaskEvents,
)
from tiflow.sched.machine import Machine, UnreadableEntry
from tiflow.sched.model import (
    AMOUNT_MAX,
    CHUNK_TASKS,
    LOST_MAX,
    SUBMIT_WINDOW_MS,
    Command,
    Deleted,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Python,
    RetryPolicy,
    Selector,
    TaskState,
)
from tiflow.sched.tasks import backoff_ms, runs
from tiflow.sched.validate import validate_spec
from tiflow.sched.views import newest_rows, progress, results, task_state, tasks


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


# Losing executors.


def test_what_runs_on_an_executor_that_expires_waits_again_at_once(cluster):
    job, executor = cluster.submit(count=5), cluster.register()
    cluster.place(job, executor, 0, 5)

    assert cluster.apply(ExpireExecutor(executor.uid, executor.incarnation)) == 5

    assert cluster.task(job, 4) == (TaskState.WAITING, 2)
    assert cluster.state.out(executor.uid) == 0


def test_an_expiry_of_an_older_incarnation_is_void(cluster):
    job = cluster.submit()
    old, new = cluster.register(boot_id="1"), cluster.register(boot_id="2")
    cluster.place(job, new, 0, 1)

    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    assert cluster.state.executors[new.uid].alive
    assert cluster.task(job)[0] is TaskState.PLACED


def test_a_new_process_of_an_executor_ends_what_the_old_one_had(cluster):
    job, old = cluster.submit(), cluster.register(boot_id="1")
    placement = cluster.place(job, old, 0, 1)

    new = cluster.register(boot_id="2")

    assert cluster.task(job) == (TaskState.WAITING, 2)
    assert new.incarnation > old.incarnation
    assert cluster.event(placement, "succeeded") == 1, "the old process has lost its say"


def test_what_an_executor_says_was_used_can_be_kept_however_much_it_is(cluster):
    job, executor = cluster.submit(count=3), cluster.register(slots=3)
    placement = cluster.place(job, executor, 0, 3)
    for index in range(3):
        cluster.event(placement, "succeeded", index, index + 1, cpu_us=(1 << 64) - 1)

    restored = Machine()
    restored.restore(b"".join(cluster.machine.snapshot()))

    assert restored.state.groups[job.uid, "g"].cpu_us == AMOUNT_MAX


def test_registering_twice_is_registering_once(cluster):
    assert cluster.register() == cluster.register()


def test_a_process_whose_lease_ran_out_can_come_back(cluster):
    old = cluster.register()
    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    new = cluster.register()

    assert new.alive
    assert new.incarnation > old.incarnation


def test_a_name_is_taken_only_while_its_executor_is_alive(cluster):
    old = cluster.register("e")
    newcomer = RegisterExecutor("other uid", "b", "e", "h:1", 1)

    with pytest.raises(AlreadyExists, match="e is alive on e:1"):
        cluster.apply(newcomer)
    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    assert cluster.apply(newcomer).alive


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"uid": ""}, "uid: 0"),
        ({"boot_id": ""}, "boot_id: 0"),
        ({"name": "a b"}, "name: 'a b'"),
        ({"slots": 0}, "slots: 0 is not in 1 to 10000"),
        ({"labels": {"": "x"}}, "labels: ''"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "labels: number of them: 65 is not in 0 to 64"),
        ({"labels": {"zone": "x" * 257}}, "labels.zone: characters: 257 is not in 0 to 256"),
        ({"version": "1" * 129}, "version: characters: 129 is not in 0 to 128"),
        ({"address": "x" * 301}, "address: 301 characters"),
        ({"address": ""}, "address: empty"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(fields, message):
    good = RegisterExecutor("u", "b", "e", "h:1", 1)

    with pytest.raises(InvalidArgument, match=message):
        executors.validate_registration(replace(good, **fields))


def test_a_task_that_is_lost_too_often_fails(cluster):
    job = cluster.submit()
    for attempt in range(1, LOST_MAX + 1):
        assert cluster.stands(job) is not JobState.FAILED
        executor = cluster.register(boot_id=str(attempt))
        cluster.place(job, executor, 0, 1, attempt=attempt)
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert cluster.stands(job) is JobState.FAILED
    assert "lost 5 times with its executor; the last was e" in results(cluster.state, job.uid, 0, 1)[0][1].error


def test_dead_executors_are_forgotten_oldest_first_when_there_are_many(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.state.EXECUTORS_DEAD_MAX", 2)
    found = [cluster.register(name) for name in "abcd"]

    for executor in found:
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert list(cluster.state.executors) == ["uid-c", "uid-d"]


def test_when_all_executors_are_there_one_can_still_restart(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.executors.EXECUTORS_MAX", 1)
    cluster.register("a", boot_id="1")

    with pytest.raises(ResourceExhausted, match="1 executors are alive"):
        cluster.register("b")
    assert cluster.register("a", boot_id="2").alive


def test_there_are_only_so_many_jobs(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.jobs.JOBS_MAX", 1)
    cluster.submit("a")

    with pytest.raises(ResourceExhausted, match="1 jobs exist; delete some"):
        cluster.submit("b")


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


# Lost results.


def lost_result(cluster: Cluster) -> Job:
    """A finished job, whose only result was on an executor that is gone."""
    job, executor = cluster.submit(), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    return job


def test_a_task_whose_result_was_lost_runs_again(cluster):
    job = lost_result(cluster)
    assert cluster.stands(job) is JobState.FINISHED

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.stands(job) is JobState.RUNNING
    assert cluster.task(job) == (TaskState.WAITING, 2)
    assert cluster.state.jobs["j"].ended_at_ms == 0


def test_a_repeat_of_a_rerun_is_void_even_after_the_task_succeeded_again(cluster):
    job = lost_result(cluster)
    cluster.apply(RerunLost(job.uid, 0, 0))
    cluster.apply(RerunLost(job.uid, 0, 0))
    cluster.event(cluster.place(job, cluster.register("f"), 0, 1, attempt=2), "succeeded", results=KEPT)

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.stands(job) is JobState.FINISHED


def test_a_result_that_can_be_had_is_not_computed_again(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    inline = msgpack.encode([b"small"])
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.event(cluster.place(job, executor, 1, 2), "succeeded", results=inline)

    cluster.apply(RerunLost(job.uid, 0, 0))  # its executor is alive
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    cluster.apply(RerunLost(job.uid, 1, 1))  # it is in the row

    assert cluster.stands(job) is JobState.FINISHED


def test_each_result_of_a_row_can_be_lost_once(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    both = msgpack.encode([[9_999, b"a"], [9_999, b"b"]])
    cluster.event(cluster.place(job, executor, 0, 2), "succeeded", results=both)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    for index in (0, 1):
        cluster.apply(RerunLost(job.uid, 0, index))
    other = cluster.register("f")
    cluster.event(cluster.place(job, other, 0, 2, attempt=2), "succeeded", results=both)

    for index in (0, 1):
        cluster.apply(RerunLost(job.uid, 0, index))

    assert cluster.stands(job) is JobState.FINISHED


def test_a_canceled_job_computes_nothing_again(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.apply(CancelJob("j"))
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.task(job, 0)[0] is TaskState.SUCCEEDED
    assert cluster.stands(job) is JobState.CANCELED


def test_a_rerun_of_nothing_is_refused(cluster):
    job = lost_result(cluster)

    with pytest.raises(NotFound):
        cluster.apply(RerunLost(job.uid, 1, 0))
    with pytest.raises(InvalidArgument, match="says nothing good of task 1"):
        cluster.apply(RerunLost(job.uid, 0, 1))


# The machine.


def test_an_entry_that_cannot_be_read_stops_the_process():
    with pytest.raises(UnreadableEntry, match="needs a newer tiflow"):
        Machine().apply(b"\xff")


def test_a_snapshot_that_cannot_be_read_leaves_the_state(cluster):
    cluster.submit()
    data = b"".join(cluster.machine.snapshot())
    before = cluster.machine.digest()

    for damaged in (data[:-1], data[:3], b"\0\0\0\0", b"\0\0\0\x06" + b"\x92\xa3new\x90"):
        with pytest.raises(UnreadableEntry):
            cluster.machine.restore(damaged)

    assert cluster.machine.digest() == before


def test_a_bug_in_a_handler_is_an_answer_and_changes_nothing(cluster, monkeypatch):
    def buggy(draft, command):
        draft.closed.append(1 / 0)

    monkeypatch.setitem(machine.HANDLERS, CancelJob, buggy)

    reply = machine._answer(cluster.state, CancelJob("j"))

    assert isinstance(reply.error, Internal)
    assert str(reply.error) == "CancelJob: ZeroDivisionError: division by zero"


def test_running_out_of_memory_is_not_an_answer(cluster, monkeypatch):
    def hungry(draft, command):
        raise MemoryError

    monkeypatch.setitem(machine.HANDLERS, CancelJob, hungry)

    with pytest.raises(MemoryError):
        machine._answer(cluster.state, CancelJob("j"))


def test_a_command_of_a_later_format_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(CancelJob, "since", 2)

    with pytest.raises(Rejected, match="needs format 2; this is 1"):
        cluster.apply(CancelJob("j"))


def test_a_snapshot_is_of_the_moment_when_it_was_asked_for(cluster):
    cluster.submit("a")
    expected = b"".join(cluster.machine.snapshot())

    frames = cluster.machine.snapshot()
    cluster.submit("b")

    assert b"".join(frames) == expected


def test_log_time_never_falls(cluster):
    cluster.submit("a")
    cluster.now_ms -= 500
    cluster.submit("b")

    assert cluster.state.now_ms == cluster.now_ms + 500
    assert cluster.state.wall_ms == cluster.now_ms


# What changed.


def test_changes_come_in_the_order_of_their_last_write_and_each_once(cluster):
    a, b, c = (cluster.submit(id) for id in "abc")
    cluster.apply(CancelJob("a"))
    cluster.apply(DeleteJob("a"))
    cluster.apply(CancelJob("b"))

    changed = cluster.state.changed_since(0, 9)

    assert [(record.mod_revision, record.uid) for record in changed] == [(3, c.uid), (5, a.uid), (6, b.uid)]
    assert cluster.state.changed_since(0, 1) == changed[:1]
    assert cluster.state.changed_since(5, 9) == changed[2:]


def test_changes_of_one_revision_are_not_parted(cluster):
    jobs, executor = [cluster.submit(id) for id in "abc"], cluster.register()
    for job in jobs:
        cluster.place(job, executor, 0, 1)
    revision = cluster.state.revision
    for job in jobs:
        cluster.apply(CancelJob(job.id))
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert len(cluster.state.changed_since(revision, 1)) == 3


def test_a_jobs_revision_moves_with_its_counters(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    placement = cluster.place(job, executor, 0, 2)
    record = cluster.state.jobs["j"]

    cluster.event(placement, "succeeded", 0, 1)

    assert cluster.state.jobs["j"] == record
    assert cluster.state.job_revision(record) == cluster.state.revision


# Views.


def test_tasks_are_shown_as_ranges(cluster):
    job, executor = cluster.submit(count=10), cluster.register()
    placement = cluster.place(job, executor, 0, 8)
    cluster.event(placement, "started", 0, 2)
    cluster.event(placement, "succeeded", 1, 3)
    cluster.event(placement, "failed", 6, 7, final=True)
    cluster.event(placement, "released", 7, 8)

    shown = [(row.start, row.stop, row.state, row.attempt) for row in tasks(cluster.state, job, 9)]

    assert shown == [
        (0, 1, "running", 1),
        (3, 6, "placed", 1),
        (7, 8, "waiting", 2),
        (6, 7, "failed", 0),
        (1, 3, "succeeded", 0),
        (8, 10, "waiting", 1),
    ]
    assert len(tasks(cluster.state, job, 2)) == 2


def test_a_task_that_is_not_there_is_an_index_error(cluster):
    job = cluster.submit(count=2)

    with pytest.raises(IndexError, match="has tasks 0 to 1, not 2"):
        task_state(cluster.state, job, "g", 2)


def test_results_are_read_from_a_position(cluster):
    job, executor = cluster.submit(count=3), cluster.register()
    for index in range(3):
        cluster.event(cluster.place(job, executor, index, index + 1), "succeeded", results=KEPT)

    assert [row.start for _, row in results(cluster.state, job.uid, 1, 1)] == [1]
    assert [row.start for _, row in results(cluster.state, job.uid, 1, 9)] == [1, 2]
    assert results(cluster.state, 999, 0, 9) == []


def test_runs_of_a_bit_set():
    assert list(runs(0b1011_0011, 10)) == [(10, 12), (14, 16), (17, 18)]
    assert list(runs(0, 10)) == []
    assert list(runs((1 << 512) - 1, 5)) == [(5, 517)]
