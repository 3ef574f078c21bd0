"""Jobs that start at times, told as stories. When those times are is tested in tests/unit/jobs/test_cron.py."""

from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.sched.support import Cluster
from tiflow.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from tiflow.sched import schedules
from tiflow.sched.commands import (
    CancelJob,
    DeleteSchedule,
    FireSchedule,
    PauseSchedule,
    PruneJobs,
    PutSchedule,
    SetFormat,
    SubmitJob,
    TriggerSchedule,
)
from tiflow.sched.machine import Machine
from tiflow.sched.model import SCHEDULE_SPEC_BYTES_MAX, Command, GroupSpec, Job, JobSpec, JobState, Schedule

SPEC = JobSpec("", (GroupSpec("g", Command(("true",))),))
MINUTE_MS = 60_000


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def put(cluster: Cluster, name: str = "s", **fields: Any) -> Schedule:
    """It waits for the next minute."""
    defaults = {
        "spec": SPEC,
        "cron": "* * * * *",
        "timezone": "UTC",
        "token": f"token of {name}",
        "overlap": "skip",
        "missed": "skip",
        "keep": 2,
        "next_at_ms": cluster.now_ms + MINUTE_MS,
    }
    return cluster.apply(PutSchedule(name, **{**defaults, **fields}))


def fire(cluster: Cluster, name: str = "s", **fields: Any) -> Job | None:
    """Its time has come."""
    schedule = cluster.state.schedules[name]
    at_ms = schedule.next_at_ms
    cluster.now_ms = max(cluster.now_ms, at_ms)
    command = FireSchedule(name, schedule.uid, at_ms, at_ms, f"{name}-{at_ms}", at_ms + MINUTE_MS)
    return cluster.apply(replace(command, **fields))


def note(cluster: Cluster, name: str = "s") -> str:
    return cluster.state.schedules[name].note


def finish(cluster: Cluster, job: Job) -> None:
    executor = cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded")


def test_a_time_starts_a_job_of_its_own_and_the_schedule_waits_for_the_next(cluster):
    schedule = put(cluster)

    job = fire(cluster)

    assert job is not None
    assert (job.id, job.spec.groups) == (f"s-{schedule.next_at_ms}", SPEC.groups)
    after = cluster.state.schedules["s"]
    assert (after.next_at_ms, after.last_at_ms) == (schedule.next_at_ms + MINUTE_MS, schedule.next_at_ms)
    assert (after.runs, after.note) == ((job.uid,), f"started {job.id}")
    assert cluster.state.fires == [(after.next_at_ms, "s")]


def test_a_time_is_dealt_with_once_whoever_leads(cluster):
    schedule = put(cluster, overlap="allow")
    due_ms = schedule.next_at_ms
    assert fire(cluster) is not None

    for other in ({"job_id": "another"}, {"next_at_ms": 0}, {"at_ms": due_ms + 1}):
        said = {"due_at_ms": due_ms, "at_ms": due_ms, **other}
        assert fire(cluster, **said) is None

    assert len(cluster.state.jobs) == 1


def test_a_clock_that_was_ahead_and_is_put_back_fires_nothing_twice(cluster):
    put(cluster, overlap="allow")
    first = fire(cluster)
    cluster.now_ms -= 30_000

    early = cluster.state.schedules["s"].next_at_ms
    command = FireSchedule("s", cluster.state.schedules["s"].uid, early, early, "early", early + MINUTE_MS)
    assert cluster.apply(command) is None, "not before its time"

    assert list(cluster.state.jobs) == [first.id]


def test_overlapping_runs_are_left_out_allowed_or_replaced(cluster):
    for overlap in ("skip", "allow", "replace"):
        put(cluster, overlap, overlap=overlap)
    first = {name: fire(cluster, name) for name in ("skip", "allow", "replace")}

    second = {name: fire(cluster, name) for name in ("skip", "allow", "replace")}

    assert second["skip"] is None
    assert note(cluster, "skip") == f"skipped: {first['skip'].id} has not ended"
    assert cluster.stands(first["allow"]) is cluster.stands(second["allow"]) is JobState.CREATED
    assert cluster.stands(first["replace"]) is JobState.CANCELED
    assert cluster.stands(second["replace"]) is JobState.CREATED
    cluster.apply(CancelJob(first["skip"].id))
    assert fire(cluster, "skip") is not None


def test_a_missed_time_is_noted_and_starts_nothing(cluster):
    schedule = put(cluster)

    assert fire(cluster, job_id="") is None

    assert note(cluster) == "missed: no master led at that time"
    assert cluster.state.schedules["s"].next_at_ms == schedule.next_at_ms + MINUTE_MS


def test_a_run_that_is_refused_is_noted_and_the_schedule_goes_on(cluster):
    schedule = put(cluster)
    taken = JobSpec(f"s-{schedule.next_at_ms}", SPEC.groups)
    cluster.apply(SubmitJob(taken, "token", cluster.now_ms))

    assert fire(cluster) is None

    assert note(cluster).startswith(f"refused: job {taken.id} exists")
    assert fire(cluster) is not None


def test_old_runs_that_have_ended_are_deleted(cluster):
    put(cluster, keep=2)
    runs = []
    for _ in range(5):
        job = fire(cluster)
        finish(cluster, job)
        runs.append(job.id)

    fire(cluster)

    assert list(cluster.state.jobs)[:-1] == runs[-2:]
    assert len(cluster.state.schedules["s"].runs) == 3


def test_too_many_runs_at_one_time_are_left_out(cluster, monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULE_LIVE_MAX", 2)
    put(cluster, overlap="allow")
    assert fire(cluster)
    assert fire(cluster)

    assert fire(cluster) is None

    assert note(cluster) == "skipped: 2 runs have not ended"
    with pytest.raises(ResourceExhausted, match="schedule s: 2 runs have not ended; cancel some"):
        cluster.apply(TriggerSchedule("s", "now", "t", cluster.now_ms))


def test_a_paused_schedule_starts_nothing_and_goes_on_with_the_time_it_is_given(cluster):
    put(cluster)
    before = cluster.apply(PauseSchedule("s", True, 0))

    assert cluster.state.fires == []
    assert cluster.apply(PauseSchedule("s", True, 5)) == cluster.state.schedules["s"], "twice is once"
    assert fire(cluster, due_at_ms=0, at_ms=0) is None
    resumed = cluster.apply(PauseSchedule("s", False, cluster.now_ms + 10))
    assert (before.paused, resumed.next_at_ms) == (True, cluster.now_ms + 10)
    assert fire(cluster) is not None


def test_a_triggered_run_starts_at_once_and_counts_as_a_run(cluster):
    put(cluster, paused=True)

    job = cluster.apply(TriggerSchedule("s", "s-now", "t", cluster.now_ms))

    assert cluster.apply(TriggerSchedule("s", "s-now", "t", cluster.now_ms)) == job, "idempotent by its token"
    assert cluster.state.schedules["s"].runs == (job.uid,)
    cluster.apply(PauseSchedule("s", False, cluster.now_ms + 1))
    assert fire(cluster) is None
    assert note(cluster) == "skipped: s-now has not ended"


def test_a_deleted_schedule_leaves_its_runs_and_another_may_have_its_name(cluster):
    old = put(cluster)
    job = fire(cluster)

    cluster.apply(DeleteSchedule("s"))

    assert cluster.stands(job) is JobState.CREATED
    with pytest.raises(NotFound, match="there is no schedule s"):
        cluster.apply(DeleteSchedule("s"))
    new = put(cluster)
    assert fire(cluster, uid=old.uid) is None, "not for the old one"
    assert new.uid > old.uid


def test_the_same_token_gets_the_same_schedule_and_another_one_is_refused(cluster):
    schedule = put(cluster)

    assert put(cluster, cron="5 * * * *") == schedule
    with pytest.raises(AlreadyExists, match="schedule s exists; use another name, or delete it"):
        put(cluster, token="another")


def test_there_is_a_limit(cluster, monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES_MAX", 1)
    put(cluster)

    with pytest.raises(ResourceExhausted, match="1 schedules exist; delete some"):
        put(cluster, "t")


def test_schedules_outlive_a_restart(cluster):
    put(cluster)
    put(cluster, "paused", paused=True)
    fire(cluster)
    restarted = Machine()

    restarted.restore(b"".join(cluster.machine.snapshot()))

    assert restarted.state.schedules == cluster.state.schedules
    assert restarted.state.fires == cluster.state.fires


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a b"}, "name: 'a b' does not match"),
        ({"name": "a" * 101}, "name: 101 characters; 1 to 100"),
        ({"cron": ""}, "cron: 0 characters; 1 to 256"),
        ({"timezone": "x" * 200}, "timezone: 200 characters"),
        ({"overlap": "queue"}, "overlap = 'queue': must be one of skip, allow, replace"),
        ({"missed": "all"}, "missed = 'all': must be one of skip, run-once"),
        ({"keep": 0}, "keep: 0 is not in 1 to 100"),
        ({"keep": 101}, "keep: 101 is not in 1 to 100"),
        ({"next_at_ms": 0}, "next_at_ms: 0 is not in 1 to"),
        ({"token": ""}, "token: 0 characters"),
        ({"spec": JobSpec("", ())}, "groups: 0 given"),
        (
            {"spec": JobSpec("", (GroupSpec("g", Command(("x" * SCHEDULE_SPEC_BYTES_MAX,))),))},
            "at most 262144 for a schedule",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_field_the_value_and_the_bound(cluster, fields, message):
    with pytest.raises(InvalidArgument) as caught:
        put(cluster, **{"name": "s", **fields})

    assert message in str(caught.value)
    assert not cluster.state.schedules


def test_runs_are_deleted_when_the_database_has_taken_the_notes_of_earlier_ones(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """Or the oldest note would be dropped, and the database keep its job for ever."""
    monkeypatch.setattr(schedules, "DELETED_MAX", 1)
    cluster.apply(SetFormat(2))
    put(cluster, keep=1)
    for _ in range(4):
        run = fire(cluster)
        assert run is not None
        finish(cluster, run)
    assert (len(cluster.state.deleted), len(cluster.state.jobs)) == (1, 3)

    for jobs in (3, 3, 3):
        cluster.apply(PruneJobs(cluster.state.revision))
        run = fire(cluster)
        assert run is not None
        assert len(cluster.state.jobs) == jobs
        finish(cluster, run)


def test_a_run_that_has_left_for_the_database_is_answered_and_not_started_again(cluster: Cluster):
    cluster.apply(SetFormat(2))
    put(cluster)
    command = TriggerSchedule("s", "t", "token", cluster.now_ms)
    run = cluster.apply(command)
    finish(cluster, run)
    ended = cluster.state.jobs["t"]
    assert cluster.apply(PruneJobs(cluster.state.revision, ((ended.uid, ended.mod_revision),))) == 1

    assert cluster.apply(command).uid == run.uid
    assert cluster.state.jobs == {}
    assert fire(cluster) is not None


def test_a_time_whose_token_somebody_has_used_starts_nothing(cluster: Cluster):
    cluster.apply(SetFormat(2))
    schedule = put(cluster)
    token = f"{schedule.uid}/{schedule.next_at_ms}"
    finish(cluster, cluster.apply(SubmitJob(replace(SPEC, id="j"), token, cluster.now_ms)))
    job = cluster.state.jobs["j"]
    assert cluster.apply(PruneJobs(cluster.state.revision, ((job.uid, job.mod_revision),))) == 1

    assert fire(cluster) is None
    assert note(cluster) == "refused: its token is that of job j"
    assert cluster.state.schedules["s"].runs == ()
