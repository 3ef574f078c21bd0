"""What the specs of all jobs, pools and schedules may have together."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.unit.sched.support import Cluster
from tiflow.errors import ResourceExhausted
from tiflow.sched import jobs
from tiflow.sched.commands import (
    FORMAT,
    AddGroup,
    CancelJob,
    DeleteJob,
    DeleteSchedule,
    FireSchedule,
    PruneJobs,
    PutSchedule,
    SetFormat,
    SubmitJob,
    TriggerSchedule,
)
from tiflow.sched.model import Command, GroupSpec, Job, JobSpec, encoded_bytes

GROUP = GroupSpec("g", Command(("true", "x" * 1_000)))
TICK = PutSchedule("tick", JobSpec("", (GROUP,)), "* * * * *", "UTC", "t", "skip", "skip", 1, 2_000_000)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(SetFormat(FORMAT))
    return cluster


@pytest.fixture
def allow(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """So many bytes more than there are now."""
    return lambda more: monkeypatch.setattr(jobs, "SPECS_BYTES_MAX", cluster.state.spec_bytes + more)


def submission(id: str) -> SubmitJob:
    return SubmitJob(JobSpec(id, (GROUP,)), f"token of {id}", 1_000_000)


def pool(cluster: Cluster) -> Job:
    return cluster.apply(SubmitJob(JobSpec("pool", (), open=True), "token of pool", cluster.now_ms))


def test_a_job_beyond_the_bound_is_refused_and_one_that_is_known_is_answered_as_before(cluster, allow):
    known = cluster.apply(submission("a"))
    size = encoded_bytes(known.spec)
    allow(size)
    cluster.apply(submission("b"))

    with pytest.raises(ResourceExhausted) as refusal:
        cluster.apply(submission("c"))

    for word in (f"has {size} bytes", f"schedules {2 * size};", f"at most {3 * size - size} together", "Delete jobs"):
        assert word in str(refusal.value)
    assert cluster.apply(submission("a")).uid == known.uid
    assert cluster.apply(submission("b")).id == "b"


def test_a_group_beyond_the_bound_is_refused_until_others_are_dropped(cluster, allow):
    job = pool(cluster)
    cluster.apply(AddGroup(job.uid, 1, GROUP))
    executor = cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded")
    second = AddGroup(job.uid, 2, replace(GROUP, name="h"))
    allow(encoded_bytes(GROUP) - 1)

    with pytest.raises(ResourceExhausted, match="group h of job pool: its description has"):
        cluster.apply(second)

    assert cluster.apply(AddGroup(job.uid, 1, GROUP)).added == 1, "it is known"
    cluster.apply(replace(second, drop=("g",)))


@pytest.mark.parametrize("leave", ["delete", "prune"])
def test_what_a_job_had_is_free_again_when_it_is_gone(cluster, allow, leave):
    job = pool(cluster)
    cluster.apply(AddGroup(job.uid, 1, GROUP))
    cluster.apply(CancelJob("pool"))
    allow(0)
    with pytest.raises(ResourceExhausted):
        cluster.apply(submission("a"))

    mod_revision = cluster.state.jobs["pool"].mod_revision
    cluster.apply(
        DeleteJob("pool") if leave == "delete" else PruneJobs(mod_revision, ((job.uid, mod_revision),)),
    )

    assert cluster.state.spec_bytes == 0
    cluster.apply(submission("a"))


def test_schedules_and_their_runs_count_and_a_run_that_does_not_fit_says_so(cluster, allow):
    allow(encoded_bytes(TICK.spec))
    schedule = cluster.apply(TICK)
    with pytest.raises(ResourceExhausted, match="schedule tock"):
        cluster.apply(replace(TICK, name="tock"))
    with pytest.raises(ResourceExhausted, match="job run-1"):
        cluster.apply(TriggerSchedule("tick", "run-1", "t1", cluster.now_ms))
    assert cluster.apply(TICK) == schedule

    cluster.now_ms = TICK.next_at_ms
    fire = FireSchedule("tick", schedule.uid, TICK.next_at_ms, TICK.next_at_ms, "run-2", TICK.next_at_ms + 60_000)
    assert cluster.apply(fire) is None

    assert cluster.state.schedules["tick"].note.startswith("refused: job run-2: its description has")
    cluster.apply(DeleteSchedule("tick"))
    assert cluster.state.spec_bytes == 0


def test_masters_that_do_not_all_know_the_bound_take_what_is_beyond_it(monkeypatch):
    """Else they would disagree."""
    monkeypatch.setattr(jobs, "SPECS_BYTES_MAX", 0)
    cluster = Cluster()
    cluster.apply(SetFormat(jobs.SPECS_FORMAT - 1))

    cluster.apply(submission("a"))
