"""Groups that come after other groups of their job, told as stories."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.sched.support import KEPT, Cluster
from tiflow.errors import InvalidArgument
from tiflow.jobs.check import check_job
from tiflow.sched.commands import CancelJob, ExpireExecutor, PauseJob, Place, PlaceTasks, RerunLost, SubmitJob
from tiflow.sched.dependencies import why_not
from tiflow.sched.explain import explain
from tiflow.sched.model import (
    AFTER_PER_JOB_MAX,
    After,
    Command,
    Executor,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    RetryPolicy,
    TaskState,
)
from tiflow.sched.plan import plan
from tiflow.sched.validate import validate_spec
from tiflow.sched.views import progress, task_state, tasks

ONCE = RetryPolicy(attempts_max=1)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def spec(*after: tuple[str, *tuple[str, ...]], count: int = 1, **limits: Any) -> JobSpec:
    """`("b", "a", "c?")`: group b comes after a (on success) and c (on completion)."""
    groups = tuple(
        GroupSpec(
            name,
            Command(("true",)),
            count,
            retry=ONCE,
            after=tuple(After(one.rstrip("?"), "completion" if one.endswith("?") else "success") for one in befores),
        )
        for name, *befores in after
    )
    return JobSpec("j", groups, **limits)


def submit(cluster: Cluster, *after: tuple[str, *tuple[str, ...]], **options: Any) -> Job:
    return cluster.apply(SubmitJob(spec(*after, **options), "token", cluster.now_ms))


def reasons(cluster: Cluster, job: Job) -> list[str]:
    targets = {uid: executor.slots for uid, executor in cluster.state.executors.items()}
    return [one.held for one in explain(cluster.state, job.uid, cluster.now_ms, targets)]


def run(cluster: Cluster, executor: Executor, room: int = 100, **ends: str) -> list[str]:
    """Place what can be placed, and end it as said (default: succeeded). Returns: the groups that ran."""
    placed = cluster.apply(PlaceTasks(tuple(plan(cluster.state, cluster.now_ms, {executor.uid: room}))))
    for placement in placed:
        cluster.event(placement, ends.get(placement.group, "succeeded"))
    return [placement.group for placement in placed]


def test_a_group_runs_once_all_that_comes_before_it_has_succeeded(cluster):
    job = submit(cluster, ("end", "left", "right"), ("left", "begin"), ("right", "begin"), ("begin",), count=3)
    executor = cluster.register(slots=100)

    turns = [run(cluster, executor) for _ in range(4)]

    assert turns == [["begin"], ["left", "right"], ["end"], []]
    assert cluster.stands(job) is JobState.FINISHED


def test_what_waits_for_other_groups_says_so(cluster):
    job = submit(cluster, ("a",), ("b",), ("c", "a", "b?"), count=2)
    executor = cluster.register(slots=2)

    assert reasons(cluster, job) == ["", "", "after a, b (completion)"]
    assert run(cluster, executor, room=2) == ["a"]

    assert progress(cluster.state, cluster.state.jobs[job.id]).waiting == 4
    assert reasons(cluster, job) == ["", "after b (completion)"]


def test_a_group_is_skipped_when_one_that_had_to_succeed_did_not_and_so_is_what_comes_after_it(cluster):
    job = submit(cluster, ("a",), ("b", "a"), ("c", "b"), ("always", "c?"), count=2)
    executor = cluster.register(slots=2)

    assert run(cluster, executor, a="failed") == ["a"]

    assert [task_state(cluster.state, job, name, 1)[0] for name in "abc"] == ["failed", "skipped", "skipped"]
    assert [row.state for row in tasks(cluster.state, job, 10)] == ["failed", "skipped", "skipped", "waiting"]
    groups = cluster.state.groups_of(job)
    assert [why_not(job, group, groups) for group in groups] == [
        "",
        "skipped, for not all of a succeeded",
        "skipped, for not all of b succeeded",
        "",
    ]
    assert cluster.stands(job) is JobState.RUNNING
    assert run(cluster, executor) == ["always"]
    assert cluster.stands(job) is JobState.FAILED
    assert (progress(cluster.state, job).skipped, progress(cluster.state, job).succeeded) == (4, 2)


def test_nothing_is_decided_before_all_that_comes_before_has_ended(cluster):
    """So that what comes after a skipped group on completion does not meet tasks of an earlier one."""
    job = submit(cluster, ("a",), ("b",), ("c", "a", "b"), ("always", "c?"))
    executor = cluster.register(slots=2)
    first, second = cluster.apply(PlaceTasks(tuple(plan(cluster.state, cluster.now_ms, {executor.uid: 2}))))

    cluster.event(first, "failed")

    assert task_state(cluster.state, job, "c", 0)[0] is TaskState.WAITING
    assert run(cluster, executor) == []
    cluster.event(second, "succeeded")
    assert task_state(cluster.state, job, "c", 0)[0] is TaskState.SKIPPED
    assert run(cluster, executor) == ["always"]


def test_a_job_that_is_canceled_or_fails_early_cancels_what_is_held_and_skips_nothing(cluster):
    job = submit(cluster, ("a",), ("b", "a"), ("c", "b?"), max_failures=1)
    executor = cluster.register()

    assert run(cluster, executor, a="failed") == ["a"]

    assert cluster.stands(job) is JobState.FAILED
    assert [task_state(cluster.state, job, name, 0)[0] for name in "bc"] == ["canceled", "canceled"]
    assert [why_not(job, group, cluster.state.groups_of(job)) for group in cluster.state.groups_of(job)] == [""] * 3


def test_what_was_skipped_stays_so_when_the_job_is_canceled(cluster):
    job = submit(cluster, ("a",), ("b", "a"), ("c", "b?"))
    run(cluster, cluster.register(), a="failed")

    cluster.apply(CancelJob(job.id))

    assert cluster.stands(job) is JobState.CANCELED
    assert [task_state(cluster.state, job, name, 0)[0] for name in "abc"] == ["failed", "skipped", "canceled"]


def test_a_paused_job_is_decided_on_too(cluster):
    job, executor = submit(cluster, ("a",), ("b", "a"), ("c", "b")), cluster.register()
    (placement,) = cluster.apply(PlaceTasks(tuple(plan(cluster.state, cluster.now_ms, {executor.uid: 2}))))
    cluster.apply(PauseJob(job.id))

    cluster.event(placement, "failed")

    assert cluster.stands(job) is JobState.FAILED


def test_a_plan_that_is_older_than_the_wait_places_nothing_of_a_held_group(cluster):
    job, executor = submit(cluster, ("a",), ("b", "a")), cluster.register()

    assert cluster.apply(PlaceTasks((Place(job.uid, "b", 0, 1, 1, executor.uid, executor.incarnation),))) == ()


def test_a_group_waits_again_for_one_that_runs_again_but_only_until_it_was_let_go(cluster):
    job = submit(cluster, ("a",), ("b",), ("after_a", "a"), ("after_both", "a", "b"))
    executor, keeper = cluster.register("e", slots=9), cluster.register("k", slots=9)
    a = cluster.apply(PlaceTasks((Place(job.uid, "a", 0, 1, 1, keeper.uid, keeper.incarnation),)))[0]
    b = cluster.apply(PlaceTasks((Place(job.uid, "b", 0, 1, 1, executor.uid, executor.incarnation),)))[0]
    cluster.event(a, "succeeded", results=KEPT)
    cluster.apply(ExpireExecutor(keeper.uid, keeper.incarnation))
    cluster.apply(RerunLost(job.uid, 0, 0))

    cluster.event(b, "succeeded")

    assert run(cluster, executor) == ["a", "after_a"]
    assert run(cluster, executor) == ["after_both"]
    assert cluster.stands(job) is JobState.FINISHED


REFUSED = [
    (spec(("a", "a")), "groups.a.after: the group comes after itself; remove a"),
    (spec(("a", "b")), "groups.a.after: there is no group 'b'; the job has a"),
    (spec(("a", "b", "b"), ("b",)), "groups.a.after: names a group twice: b, b"),
    (
        spec(("a", "c"), ("b", "a"), ("c", "b"), ("d", "a")),
        "groups: after: a cycle, a before b before c before a; remove one of these from an `after`",
    ),
    (
        spec(*((f"g{i}", *(f"g{j}" for j in range(i))) for i in range(50))),
        f"after: 1225 groups named in all; at most {AFTER_PER_JOB_MAX} per job",
    ),
    (
        replace(spec(("a",)), groups=(replace(spec(("a",)).groups[0], after=(After("a", "luck"),)),)),
        "groups.a.after: on = 'luck': must be one of success, completion",
    ),
]


@pytest.mark.parametrize(("job", "message"), REFUSED, ids=lambda value: value[:30] if isinstance(value, str) else "")
@pytest.mark.parametrize("check", [validate_spec, check_job])
def test_what_can_never_run_is_refused_with_the_group_and_the_remedy(check, job, message):
    with pytest.raises(InvalidArgument) as caught:
        check(job)

    assert message in str(caught.value)


@given(edges=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda edge: edge[0] != edge[1])))
@settings(deadline=None)
def test_a_job_is_refused_if_and_only_if_some_group_would_never_have_its_turn(edges):
    job = spec(*((f"g{i}", *(f"g{b}" for a, b in sorted(edges) if a == i)) for i in range(7)))
    reached: set[int] = set()
    while turn := {i for i in range(7) if i not in reached and all(b in reached for a, b in edges if a == i)}:
        reached |= turn

    try:
        validate_spec(job)
        refused = False
    except InvalidArgument:
        refused = True

    assert refused is (len(reached) < 7)


def test_a_long_chain_is_skipped_at_once(cluster):
    job = submit(cluster, ("g0",), *((f"g{i}", f"g{i - 1}") for i in range(1, 100)))

    run(cluster, cluster.register(), g0="failed")

    assert cluster.stands(job) is JobState.FAILED
    assert progress(cluster.state, job).skipped == 99
