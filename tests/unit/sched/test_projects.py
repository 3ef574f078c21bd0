"""Quotas of projects, and who gets how much of what there is."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sched.support import Cluster
from tiflow.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tiflow.sched import projects
from tiflow.sched.commands import CancelJob, DeleteProject, Place, PlaceTasks, SetProject, SubmitJob
from tiflow.sched.explain import explain
from tiflow.sched.machine import Machine
from tiflow.sched.model import Command, GroupSpec, Job, JobSpec, Placement
from tiflow.sched.plan import plan
from tiflow.sched.shares import fair_shares


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def submit(cluster: Cluster, id: str, project: str = "default", count: int = 1, priority: int = 50) -> Job:
    spec = JobSpec(id, (GroupSpec("g", Command(("true",)), count),), priority, project=project)
    return cluster.apply(SubmitJob(spec, f"token of {id}", cluster.now_ms))


def cycle(cluster: Cluster, depths: dict[int, int] | None = None) -> tuple[Placement, ...]:
    """One turn of the leader. `depths`: by job uid: backlog per slot."""
    targets = {uid: 513 * executor.slots for uid, executor in cluster.state.executors.items()}
    depths = depths or {}
    places = plan(cluster.state, cluster.now_ms, targets, 10_000, lambda uid, group: depths.get(uid, 0))
    placed = cluster.apply(PlaceTasks(tuple(places)))
    assert len(placed) == len(places)
    return placed


def out(cluster: Cluster, job: Job) -> int:
    return cluster.state.groups[job.uid, "g"].out


# Quotas.


def test_a_job_beyond_a_quota_is_refused_with_the_quota_and_what_is_used(cluster):
    cluster.apply(SetProject("p", tasks_max=10, jobs_max=2))
    submit(cluster, "a", "p", count=8)

    with pytest.raises(ResourceExhausted, match=r"project p: 8 tasks wait, the job has 3, and its quota is 10 tasks"):
        submit(cluster, "b", "p", count=3)
    submit(cluster, "b", "p", count=2)
    with pytest.raises(ResourceExhausted, match=r"project p: 2 jobs have not ended, and its quota is 2 jobs"):
        submit(cluster, "c", "p")
    submit(cluster, "d", "default", count=1_000)
    cluster.apply(CancelJob("b"))
    assert submit(cluster, "c", "p")


def test_a_repeat_of_a_submission_is_not_refused(cluster):
    cluster.apply(SetProject("p", jobs_max=1))
    job = submit(cluster, "a", "p")

    assert submit(cluster, "a", "p") == job


def test_tasks_that_are_out_or_ended_do_not_count_as_waiting(cluster):
    cluster.apply(SetProject("p", tasks_max=4))
    job, executor = submit(cluster, "a", "p", count=4), cluster.register(slots=4)
    placement = cluster.place(job, executor, 0, 2)
    assert submit(cluster, "b", "p", count=2)

    cluster.event(placement, "released")

    assert cluster.state.usage_of("p").waiting == 6, "what was let in stays"
    with pytest.raises(ResourceExhausted, match="6 tasks wait"):
        submit(cluster, "c", "p")


def test_a_quota_of_slots_limits_placement_only(cluster):
    cluster.apply(SetProject("p", slots_max=3))
    job, executor = submit(cluster, "a", "p", count=10), cluster.register(slots=8)

    cycle(cluster, {job.uid: 100})

    assert out(cluster, job) == 3
    (reason,) = explain(cluster.state, job.uid, cluster.now_ms, {executor.uid: 8})
    assert reason.summary == "g: 7 of 10 tasks wait: project p has its quota of 3 slots"
    beyond = Place(job.uid, "g", 3, 4, 1, executor.uid, executor.incarnation)
    assert cluster.apply(PlaceTasks((beyond,))) == (), "apply looks again"
    cluster.event(next(cluster.state.placements_of(job.uid)), "succeeded")
    assert cycle(cluster)
    assert out(cluster, job) == 3


def test_what_a_quota_leaves_goes_to_others(cluster):
    cluster.apply(SetProject("p", slots_max=2, weight=100))
    first, other = submit(cluster, "a", "p", count=100), submit(cluster, "b", count=100)
    cluster.register(slots=8)

    cycle(cluster)

    assert (out(cluster, first), out(cluster, other)) == (2, 6)


def test_a_project_that_was_not_made_is_refused(cluster):
    with pytest.raises(NotFound, match="there is no project p; `tiflow project set p` makes it"):
        submit(cluster, "a", "p")


def test_projects_are_changed_and_deleted_and_outlive_a_restart(cluster):
    cluster.apply(SetProject("p", weight=7))
    cluster.apply(SetProject("default", jobs_max=1))
    submit(cluster, "a", "p", count=3)
    restarted = Machine()
    restarted.restore(b"".join(cluster.machine.snapshot()))
    assert restarted.state.projects == cluster.state.projects
    assert restarted.state.usage == cluster.state.usage

    with pytest.raises(FailedPrecondition, match="project p: 1 of its jobs have not ended; cancel them first"):
        cluster.apply(DeleteProject("p"))
    cluster.apply(CancelJob("a"))
    cluster.apply(DeleteProject("p"))
    with pytest.raises(NotFound):
        cluster.apply(DeleteProject("p"))
    cluster.apply(DeleteProject("default"))
    assert cluster.state.project("default").jobs_max == 0
    assert cluster.state.usage == {}


def test_there_is_a_limit(cluster, monkeypatch):
    monkeypatch.setattr(projects, "PROJECTS_MAX", 1)
    cluster.apply(SetProject("p"))
    cluster.apply(SetProject("p", weight=2))

    with pytest.raises(ResourceExhausted, match="1 projects exist; delete some"):
        cluster.apply(SetProject("q"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a b"}, "name: 'a b' does not match"),
        ({"weight": 0}, "weight: 0 is not in 1 to 1000"),
        ({"weight": 1_001}, "weight: 1001 is not in 1 to 1000"),
        ({"slots_max": -1}, "slots_max: -1 is not in 0 to"),
        ({"tasks_max": 1 << 60}, "tasks_max: 1152921504606846976 is not in 0 to"),
        ({"jobs_max": -1}, "jobs_max: -1 is not in 0 to"),
    ],
)
def test_a_project_that_cannot_be_is_refused_with_the_field_the_value_and_the_bound(
    cluster, fields: dict[str, Any], message: str
):
    with pytest.raises(InvalidArgument) as caught:
        cluster.apply(SetProject(**{"name": "p", **fields}))

    assert message in str(caught.value)


# Shares.


@given(
    rows=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=8),
    count=st.integers(0, 200),
)
@settings(deadline=None)
def test_shares_are_those_of_giving_one_by_one_to_whoever_has_least(rows, count):
    used, weights = [float(one) for one, _ in rows], [weight for _, weight in rows]

    shares = fair_shares(used, weights, count)

    assert sum(shares) == count
    levels = [(u + share) / w for u, share, w in zip(used, shares, weights, strict=True)]
    for u, share, w in zip(used, shares, weights, strict=True):
        # nobody got one that another, with less for its weight, should have had
        assert not share or (u + share - 1) / w <= min(levels) + 1e-9


@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    executors=st.integers(1, 3),
    extra=st.integers(0, 5),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=30, deadline=None)
def test_slots_converge_to_the_weights_of_projects_that_are_always_hungry(weights, executors, extra, seed):
    """Whatever they have at first, and in whatever order tasks end."""
    cluster, random = Cluster(), Random(seed)
    for number in range(executors):
        cluster.register(f"e{number}", slots=sum(weights) + (extra if number == 0 else 0))
    jobs = []
    for number, weight in enumerate(weights):
        cluster.apply(SetProject(f"p{number}", weight=weight))
        jobs.append(submit(cluster, f"j{number}", f"p{number}", count=100_000))
        cycle(cluster)

    for _ in range(40):
        for placement in list(cluster.state.placements.values()):
            if random.random() < 0.5:
                left = [
                    i for i in range(placement.start, placement.stop) if placement.left >> (i - placement.start) & 1
                ]
                cluster.event(placement, "succeeded", random.choice(left), placement.stop)
        cycle(cluster)

    total = executors * sum(weights) + extra
    ideal = [total * weight / sum(weights) for weight in weights]
    have = [out(cluster, job) for job in jobs]
    assert sum(have) == total
    assert all(number <= wanted + 1 for number, wanted in zip(have, ideal, strict=True)), (have, ideal)
    if extra == 0:
        assert have == ideal


def test_projects_take_turns_by_their_weights_when_there_are_fewer_slots(cluster):
    jobs = {}
    for name, weight in (("a", 1), ("b", 3), ("c", 1)):
        cluster.apply(SetProject(name, weight=weight))
        jobs[submit(cluster, name, name, count=1_000).uid] = name
    cluster.register(slots=1)
    ran = []

    for _ in range(200):
        (placement,) = cycle(cluster)
        ran.append(jobs[placement.uid])
        cluster.event(placement, "succeeded")

    counts = {name: ran.count(name) for name in "abc"}
    assert all(abs(counts[name] - 40 * weight) <= 10 for name, weight in (("a", 1), ("b", 3), ("c", 1))), counts


@pytest.mark.parametrize("project", ["default", "other"])
@pytest.mark.parametrize("crowd", [1, 7])
@pytest.mark.parametrize("slots", [1, 8])
def test_a_job_of_one_is_not_starved_by_jobs_of_a_million_short_tasks(cluster, project, crowd, slots):
    """Their backlogs fill all executors; the small job's task was never measured, so it needs a free slot."""
    cluster.apply(SetProject("other"))
    for name in ("a", "b"):
        cluster.register(name, slots=slots)
    large = [submit(cluster, f"large{number}", count=1_000_000) for number in range(crowd)]
    depths = {job.uid: 500 for job in large}
    for _ in range(10):
        cycle(cluster, depths)
    small = submit(cluster, "small", project)

    for number in range(100):
        work_off(cluster, 50 * slots)
        if any(placement.uid == small.uid for placement in cycle(cluster, depths)):
            assert number <= 14 + 2 * crowd, "a backlog is worked off in about ten turns"
            return
    pytest.fail("starved")


def work_off(cluster: Cluster, count: int) -> None:
    """Each executor ends so many of its oldest tasks."""
    for executor in list(cluster.state.executors.values()):
        left = count
        for placement in list(cluster.state.placements_on(executor.uid)):
            first = placement.start + (placement.left & -placement.left).bit_length() - 1
            stop = min(placement.stop, first + left)
            if left > 0:
                cluster.event(placement, "succeeded", first, stop)
                left -= stop - first


def test_backlogs_go_on_beside_a_job_that_has_its_share(cluster):
    """Long tasks that want more than their share take no backlog from the short ones."""
    cluster.register("a", slots=4)
    cluster.register("b", slots=4)
    short = submit(cluster, "short", count=1_000_000)
    long = submit(cluster, "long", count=1_000)
    for _ in range(30):
        cycle(cluster, {short.uid: 100})
        work_off(cluster, 0)

    assert out(cluster, long) == 4
    assert out(cluster, short) > 400


def test_a_less_urgent_job_takes_no_backlog_from_a_more_urgent_one(cluster):
    cluster.register("a", slots=2)
    urgent = submit(cluster, "urgent", count=10_000, priority=60)
    cycle(cluster, {urgent.uid: 100})
    submit(cluster, "other", priority=50)
    before = out(cluster, urgent)

    work_off(cluster, 50)
    cycle(cluster, {urgent.uid: 100})

    assert out(cluster, urgent) == before == 202


def test_a_project_of_many_jobs_gets_no_more_than_one_of_one(cluster):
    cluster.apply(SetProject("many"))
    many = [submit(cluster, f"m{number}", "many", count=50) for number in range(20)]
    one = submit(cluster, "one", count=50)
    cluster.register(slots=20)

    cycle(cluster)

    assert out(cluster, one) == 10
    assert sum(out(cluster, job) for job in many) == 10


def test_a_backlog_takes_no_more_of_a_share_than_the_slots_that_it_lies_behind(cluster):
    cluster.apply(SetProject("p", weight=3))
    short = submit(cluster, "short", "p", count=100_000)
    cluster.register("a", slots=4)
    cycle(cluster, {short.uid: 100})
    assert out(cluster, short) == 404
    long = submit(cluster, "long", count=100)
    cluster.register("b", slots=4)

    cycle(cluster, {short.uid: 100})

    assert out(cluster, long) == 2, "two of eight slots, and not half of those that are free"


def test_priority_goes_before_shares(cluster):
    cluster.apply(SetProject("p", weight=1_000))
    rich, urgent = submit(cluster, "rich", "p", count=50), submit(cluster, "urgent", count=50, priority=51)
    cluster.register(slots=20)

    cycle(cluster)

    assert (out(cluster, rich), out(cluster, urgent)) == (0, 20)
