"""Jobs that are paused, tried again within limits, and fail in time; told as stories."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sched.support import KEPT, POLICY, Cluster
from tiflow.errors import InvalidArgument, NotFound
from tiflow.sched.commands import (
    CancelJob,
    DeleteJob,
    ExpireExecutor,
    ExpireJob,
    PauseJob,
    Place,
    PlaceTasks,
    RerunLost,
    ResumeJob,
    SubmitJob,
    TaskEvent,
    TaskEvents,
)
from tiflow.sched.duties import due, next_due_ms
from tiflow.sched.explain import explain
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    JOB_TRANSITIONS,
    TASK_TRANSITIONS,
    Command,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Python,
    RetryPolicy,
    TaskState,
)
from tiflow.sched.plan import plan
from tiflow.sched.tasks import lowest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def submit(cluster: Cluster, *, count: int = 1, retry: RetryPolicy = POLICY, id: str = "j", **limits: Any) -> Job:
    group = GroupSpec("g", limits.pop("work", Command(("true",))), count, retry=retry)
    return cluster.apply(SubmitJob(JobSpec(id, (group,), **limits), f"token of {id}", cluster.now_ms))


def late(cluster: Cluster) -> list[int]:
    """uids of the jobs that the leader would let fail now."""
    return [command.uid for command in due(cluster.state, (), cluster.now_ms) if isinstance(command, ExpireJob)]


# Pausing.


def test_a_job_that_is_paused_is_not_placed_and_says_so(cluster):
    job, executor = cluster.submit(count=4), cluster.register()
    running = cluster.place(job, executor, 0, 2)
    late_plan = PlaceTasks((Place(job.uid, "g", 2, 4, 1, executor.uid, executor.incarnation),))

    cluster.apply(PauseJob(job.id))

    assert cluster.stands(job) is JobState.PAUSING
    assert plan(cluster.state, cluster.now_ms, {executor.uid: 100}) == []
    assert cluster.apply(late_plan) == ()
    (reason,) = explain(cluster.state, job.uid, cluster.now_ms, {executor.uid: 100})
    assert reason.summary == "g: 2 of 4 tasks wait: the job is paused"
    cluster.event(running, "succeeded")
    assert cluster.stands(job) is JobState.PAUSED
    cluster.apply(ResumeJob(job.id))
    assert cluster.stands(job) is JobState.RUNNING
    assert len(cluster.apply(late_plan)) == 1


def test_whoever_mirrors_jobs_hears_of_every_state(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    states = []

    def look() -> None:
        (changed,) = cluster.state.changed_since(cluster.state.revision - 1, 10)
        states.append(str(cluster.stands(changed)))

    placement = cluster.place(job, executor, 0, 1)
    look()
    cluster.apply(PauseJob(job.id))
    look()
    cluster.event(placement, "failed")
    look()
    cluster.apply(ResumeJob(job.id))
    look()

    assert states == ["Running", "Pausing", "Paused", "Running"]


def test_pausing_and_resuming_twice_is_doing_it_once(cluster):
    job = cluster.submit()
    cluster.apply(PauseJob(job.id))
    paused = cluster.state.jobs[job.id]

    cluster.apply(PauseJob(job.id, job.uid))

    assert cluster.state.jobs[job.id] == paused
    cluster.apply(ResumeJob(job.id))
    resumed = cluster.state.jobs[job.id]
    cluster.apply(ResumeJob(job.id))
    assert cluster.state.jobs[job.id] == resumed
    assert cluster.stands(job) is JobState.CREATED, "nothing was ever placed"


def test_a_job_all_of_whose_tasks_are_out_ends_though_it_is_pausing(cluster):
    job, executor = cluster.submit(), cluster.register()
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(PauseJob(job.id))

    cluster.event(placement, "succeeded", results=KEPT)

    assert cluster.stands(job) is JobState.FINISHED
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    cluster.apply(RerunLost(job.uid, 0, 0))
    assert cluster.stands(job) is JobState.RUNNING, "its pause has ended with it"


def test_what_fails_while_its_job_is_pausing_waits_for_the_resumption(cluster):
    job, executor = cluster.submit(), cluster.register()
    placement = cluster.place(job, executor, 0, 1)
    cluster.apply(PauseJob(job.id))
    cluster.event(placement, "failed")
    cluster.now_ms += 5_000

    assert cluster.stands(job) is JobState.PAUSED
    assert plan(cluster.state, cluster.now_ms, {executor.uid: 100}) == []
    cluster.apply(ResumeJob(job.id))
    assert len(plan(cluster.state, cluster.now_ms, {executor.uid: 100})) == 1


@pytest.mark.parametrize("command", [PauseJob, ResumeJob])
def test_a_job_that_has_ended_or_is_canceled_is_neither_paused_nor_resumed(cluster, command):
    job = cluster.submit(count=2)
    placement = cluster.place(job, cluster.register(), 0, 1)
    for end, state in (
        (lambda: cluster.apply(CancelJob(job.id)), JobState.CANCELING),
        (lambda: cluster.event(placement, "canceled"), JobState.CANCELED),
    ):
        end()
        before = cluster.state.jobs[job.id]
        cluster.apply(command(job.id))
        assert cluster.state.jobs[job.id] == before
        assert cluster.stands(job) is state
    with pytest.raises(NotFound):
        cluster.apply(command(job.id, uid=job.uid + 1))


def test_a_job_is_canceled_while_it_is_paused_or_waits_for_a_retry(cluster):
    executor = cluster.register(slots=4)
    paused, pausing, waiting = (submit(cluster, id=id, count=2) for id in "abc")
    out = cluster.place(pausing, executor, 0, 1)
    cluster.event(cluster.place(waiting, executor, 0, 2), "failed")
    for job in (paused, pausing):
        cluster.apply(PauseJob(job.id))

    for job in (paused, pausing, waiting):
        cluster.apply(CancelJob(job.id))

    assert [cluster.stands(job) for job in (paused, pausing, waiting)] == ["Canceled", "Canceling", "Canceled"]
    cluster.event(out, "canceled")
    assert cluster.stands(pausing) is JobState.CANCELED
    for job in (paused, pausing, waiting):
        cluster.apply(DeleteJob(job.id))
        assert submit(cluster, id=job.id).uid > job.uid, "its id is free again"


# Trying again.


def test_a_budget_is_for_all_tasks_and_goes_to_the_first(cluster):
    job, executor = submit(cluster, count=4, retries_max=3), cluster.register(slots=4)

    cluster.event(cluster.place(job, executor, 0, 2), "failed")
    cluster.event(cluster.place(job, executor, 2, 4), "failed")

    states = [cluster.task(job, index)[0] for index in range(4)]
    assert states == [TaskState.WAITING] * 3 + [TaskState.FAILED]
    assert cluster.state.jobs[job.id].retries == 3
    cluster.now_ms += 2_000
    cluster.event(cluster.place(job, executor, 0, 1, attempt=2), "failed")
    assert cluster.task(job, 0)[0] is TaskState.FAILED


def test_a_budget_of_none_is_one_try(cluster):
    job = submit(cluster, retries_max=0)

    cluster.event(cluster.place(job, cluster.register(), 0, 1), "failed")

    assert cluster.stands(job) is JobState.FAILED


def test_a_lost_executor_costs_nothing_of_the_budget(cluster):
    job, executor = submit(cluster, retries_max=0), cluster.register()
    cluster.place(job, executor, 0, 1)

    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert cluster.task(job) == (TaskState.WAITING, 2)


@pytest.mark.parametrize(
    ("work", "event", "state"),
    [
        (Command(("x",)), {"exit_code": 3}, TaskState.FAILED),
        (Command(("x",)), {"exit_code": -9}, TaskState.FAILED),
        (Command(("x",)), {"exit_code": 4}, TaskState.WAITING),
        (Python("a:b"), {"error": "KeyError: 'x'"}, TaskState.FAILED),
        (Python("a:b"), {"error": "KeyError"}, TaskState.FAILED),
        (Python("a:b"), {"error": "KeyErrors: 1"}, TaskState.WAITING),
        (Python("a:b"), {"error": "ValueError: KeyError: 1"}, TaskState.WAITING),
    ],
)
def test_what_the_job_calls_final_is_not_tried_again(cluster, work, event, state):
    retry = RetryPolicy(final_exit_codes=(3, -9), final_errors=("KeyError",))
    job = submit(cluster, work=work, retry=retry)

    cluster.event(cluster.place(job, cluster.register(), 0, 1), "failed", **event)

    assert cluster.task(job)[0] is state


def test_a_long_healthy_run_makes_the_count_of_failures_start_over(cluster):
    retry = RetryPolicy(attempts_max=2, backoff_ms=1_000, multiplier_milli=10_000, reset_ms=60_000)
    job, executor = submit(cluster, retry=retry), cluster.register()

    for attempt, run_ms in enumerate((10, 60_000, 70_000), start=1):
        cluster.event(cluster.place(job, executor, 0, 1, attempt=attempt), "failed", run_ms=run_ms)
        cluster.now_ms += 1_100  # the first backoff, each time
    assert cluster.task(job) == (TaskState.WAITING, 4)
    cluster.event(cluster.place(job, executor, 0, 1, attempt=4), "failed", run_ms=59_999)

    assert cluster.task(job)[0] is TaskState.FAILED


def test_a_job_fails_as_soon_as_too_many_tasks_have(cluster):
    job, executor = submit(cluster, count=10, retry=RetryPolicy(1), max_failures=2), cluster.register(slots=4)
    placement = cluster.place(job, executor, 0, 4)
    cluster.event(placement, "failed", 0, 1)
    assert cluster.stands(job) is JobState.RUNNING

    cluster.event(placement, "failed", 1, 2)

    assert cluster.stands(job) is JobState.CANCELING
    assert list(cluster.state.closing) == [job.uid], "the leader tells the executors"
    assert cluster.state.jobs[job.id].failure == "2 tasks failed (max-failures = 2)"
    cluster.apply(CancelJob(job.id))
    cluster.event(placement, "canceled", 2, 4)
    assert cluster.stands(job) is JobState.FAILED, "the cancel came too late"
    assert not cluster.state.closing
    assert [cluster.task(job, index)[0] for index in (0, 2, 9)] == ["failed", "canceled", "canceled"]


def test_a_job_that_fails_early_leaves_no_retry_of_the_same_command(cluster):
    """Nor would a snapshot hold it, or a plan find it."""
    job, executor = submit(cluster, count=2, retry=RetryPolicy(2), max_failures=1), cluster.register()
    placement = cluster.place(job, executor, 0, 2)
    events = (TaskEvent(placement.id, 0, 1, "failed"), TaskEvent(placement.id, 1, 2, "failed", final=True))
    cluster.apply(TaskEvents(executor.uid, executor.incarnation, events))

    assert cluster.stands(job) is JobState.FAILED
    assert not cluster.state.retries
    assert not cluster.state.queues


# In time.


def test_a_job_that_has_not_ended_in_time_fails(cluster):
    job, executor = submit(cluster, count=3, job_timeout_ms=10_000), cluster.register()
    placement = cluster.place(job, executor, 0, 1)
    assert next_due_ms(cluster.state, cluster.now_ms) == cluster.now_ms + 10_000

    cluster.now_ms += 9_999
    assert not late(cluster)
    assert cluster.apply(ExpireJob(job.uid)) == "", "it is not late yet"
    cluster.now_ms += 1
    assert late(cluster) == [job.uid]
    assert cluster.apply(ExpireJob(job.uid)) == "timed out after 10000 ms (job-timeout)"

    assert cluster.stands(job) is JobState.CANCELING
    assert not late(cluster)
    assert cluster.apply(ExpireJob(job.uid)) == "", "once is enough"
    cluster.event(placement, "released")
    assert cluster.stands(job) is JobState.FAILED
    assert next_due_ms(cluster.state, cluster.now_ms) is None


def test_a_job_of_which_nothing_was_placed_in_time_fails(cluster):
    waiting, placed = (submit(cluster, id=id, queue_timeout_ms=500) for id in "ab")
    cluster.place(placed, cluster.register(), 0, 1)
    cluster.apply(PauseJob(waiting.id))

    cluster.now_ms += 500

    assert late(cluster) == [waiting.uid]
    assert "no task was placed (queue-timeout)" in cluster.apply(ExpireJob(waiting.uid))
    assert cluster.stands(waiting) is JobState.FAILED
    assert cluster.apply(ExpireJob(placed.uid)) == ""


def test_deadlines_are_those_of_the_log_and_outlive_a_restart(cluster):
    job = submit(cluster, job_timeout_ms=10_000, queue_timeout_ms=4_000)
    cluster.now_ms += 3_000
    cluster.submit("other")
    restarted = Machine()

    restarted.restore(b"".join(cluster.machine.snapshot()))

    assert next_due_ms(restarted.state, cluster.now_ms) == cluster.now_ms + 1_000
    assert due(restarted.state, (), cluster.now_ms + 1_000) == [ExpireJob(job.uid)]


def test_a_job_that_has_ended_has_no_deadline_even_if_a_task_runs_again(cluster):
    job, executor = submit(cluster, job_timeout_ms=10_000), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    cluster.now_ms += 20_000

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert not late(cluster)
    assert cluster.stands(job) is JobState.RUNNING


def test_deadlines_of_jobs_that_are_gone_are_dropped(cluster):
    submit(cluster, id="stays", job_timeout_ms=1)
    for number in range(300):
        submit(cluster, id=f"j{number}", job_timeout_ms=1_000_000)
        cluster.apply(CancelJob(f"j{number}"))
        cluster.apply(DeleteJob(f"j{number}"))

    assert len(cluster.state.deadlines) <= 100


# What is refused, and what is written down.


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"retries_max": -1}, "retries_max: -1 is not in 0 to 1000000000"),
        ({"max_failures": -1}, "max_failures: -1 is not in 0 to 10000000"),
        ({"job_timeout_ms": -1}, "job_timeout_ms: -1 is not in 0 to"),
        ({"queue_timeout_ms": 1 << 60}, "queue_timeout_ms: 1152921504606846976 is not in 0 to"),
        ({"retry": RetryPolicy(reset_ms=-1)}, "groups.g.retry.reset_ms: -1 is not in 0 to"),
        (
            {"retry": RetryPolicy(final_exit_codes=(256,))},
            "groups.g.retry.final_exit_codes: 256 is not in -64 to 255",
        ),
        (
            {"retry": RetryPolicy(final_exit_codes=(1,) * 101)},
            "final_exit_codes: number of them: 101 is not in 0 to 100",
        ),
        ({"retry": RetryPolicy(final_errors=("a b",))}, "final_errors: 'a b' is not the name of an exception type"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_with_the_field_the_value_and_the_bound(cluster, limits, message):
    with pytest.raises(InvalidArgument) as caught:
        submit(cluster, **limits)

    assert message in str(caught.value)


def test_the_lowest_of_the_bits():
    assert [lowest(0b1011, count) for count in range(5)] == [0, 0b1, 0b11, 0b1011, 0b1011]


@pytest.mark.parametrize(("heading", "table"), [("job", JOB_TRANSITIONS), ("task", TASK_TRANSITIONS)])
def test_the_life_cycle_that_is_documented_is_that_of_the_code(heading, table):
    text = (DOCS / "life-cycle.md").read_text()
    section = text.partition(f"## The states of a {heading}")[2].partition("\n## ")[0]

    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|([^|]*)\|$", section, re.MULTILINE)

    assert {state: set(re.findall(r"`([^`]+)`", after)) for state, after in rows} == table
