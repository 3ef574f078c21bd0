"""Which task goes where, and why a task waits."""

from collections.abc import Callable

import pytest

from tests.unit.sched.support import Cluster
from tiflow.sched import plan as planning
from tiflow.sched.commands import CancelJob, ExpireExecutor, Place, PlaceTasks
from tiflow.sched.duties import due, next_due_ms
from tiflow.sched.explain import explain
from tiflow.sched.looks import PASSED_PER_LOOK, Looks
from tiflow.sched.model import Executor, Job, Selector
from tiflow.sched.plan import _Supply, plan


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def planned(cluster: Cluster, budget: int = 10_000, **targets: int) -> list[Place]:
    return plan(cluster.state, cluster.now_ms, {f"uid-{name}": n for name, n in targets.items()}, budget)


def loads(places: list[Place]) -> dict[str, int]:
    """How many tasks each executor gets."""
    found: dict[str, int] = {}
    for place in places:
        found[place.executor] = found.get(place.executor, 0) + place.stop - place.start
    return found


def shares(places: list[Place]) -> dict[int, int]:
    """How many tasks of each job are placed."""
    found: dict[int, int] = {}
    for place in places:
        found[place.uid] = found.get(place.uid, 0) + place.stop - place.start
    return found


def expire(cluster: Cluster, executor: Executor) -> None:
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))


def test_an_even_share_goes_to_each_executor_as_one_range(cluster):
    cluster.submit(count=30)
    for name in "abc":
        cluster.register(name, slots=16)

    places = planned(cluster, a=16, b=16, c=16)

    assert [(p.executor, p.start, p.stop) for p in places] == [
        ("uid-a", 0, 10),
        ("uid-b", 10, 20),
        ("uid-c", 20, 30),
    ]


def test_all_slots_are_filled_before_any_backlog(cluster):
    cluster.submit(count=10)
    cluster.register("small", slots=2)
    cluster.register("large", slots=8)

    assert loads(planned(cluster, small=100, large=100)) == {"uid-large": 8, "uid-small": 2}


def test_a_backlog_grows_no_further_than_the_target(cluster):
    cluster.submit(count=100)
    cluster.register("a", slots=2)
    cluster.register("b", slots=2)

    assert loads(planned(cluster, a=10, b=3)) == {"uid-a": 10, "uid-b": 3}


def short_only(cluster: Cluster) -> Callable[[int, str], int]:
    """A depth for a job with the id `short`, and none for others: their tasks are long, or were never measured."""

    def depth(uid: int, group: str) -> int:
        job = cluster.state.job_of(uid)
        assert job is not None
        return 10 if job.id == "short" else 0

    return depth


def test_short_tasks_do_not_queue_behind_long_ones_while_others_make_room(cluster):
    """They would wait for hours, and the executor beside it would have worked them off in moments."""
    long, _ = cluster.submit("long", count=3), cluster.submit("short", count=60)
    full, half = cluster.register("full", slots=2), cluster.register("half", slots=2)
    cluster.place(long, full, 0, 2)
    cluster.place(long, half, 2, 3)
    cluster.register("empty", slots=2)
    targets = {"uid-full": 999, "uid-half": 999, "uid-empty": 999}

    places = plan(cluster.state, cluster.now_ms, targets, depth=short_only(cluster))

    assert loads(places) == {"uid-half": 1 + 10, "uid-empty": 2 + 20}, "a backlog for each slot that is worked off"


def test_short_tasks_do_not_queue_behind_long_ones_of_the_same_plan(cluster):
    long = cluster.submit("long", count=2, priority=60)
    short = cluster.submit("short", count=60)
    cluster.register("a", slots=3)

    places = plan(cluster.state, cluster.now_ms, {"uid-a": 999}, depth=short_only(cluster))

    assert shares(places) == {long.uid: 2, short.uid: 1 + 10}


def test_a_slot_that_is_held_for_long_is_not_kept_for_those_that_wait_for_one(cluster):
    """It does not become free; one that short tasks take in turns does, once it gets no backlog."""
    long, short = cluster.submit("long", count=2), cluster.submit("short", count=600)
    cluster.place(long, cluster.register("held", slots=2), 0, 2)
    cluster.place(short, cluster.register("turns", slots=2), 0, 2)
    cluster.submit("waits", count=1)
    targets = {"uid-held": 999, "uid-turns": 999}

    assert plan(cluster.state, cluster.now_ms, targets, depth=short_only(cluster)) == []


def test_a_backlog_that_turned_out_to_be_long_keeps_no_more_than_its_slots(cluster):
    long, short = cluster.submit("long", count=5), cluster.submit("short", count=600)
    cluster.place(long, cluster.register("over", slots=2), 0, 5)
    for number, name in enumerate("ab"):
        cluster.place(short, cluster.register(name, slots=2), 8 * number, 8 * number + 8)
    cluster.submit("waits", count=1)
    targets = {"uid-over": 999, "uid-a": 999, "uid-b": 999}

    places = plan(cluster.state, cluster.now_ms, targets, depth=short_only(cluster))

    assert loads(places) == {"uid-b": 22 - 8}, "of one executor the next slot is kept"


def test_what_waits_behind_long_tasks_says_that_there_is_no_slot(cluster):
    long, short = cluster.submit("long", count=2), cluster.submit("short", count=60)
    cluster.place(long, cluster.register("full", slots=2), 0, 2)

    (reason,) = explain(cluster.state, short.uid, cluster.now_ms, {"uid-full": 999}, short_only(cluster))

    assert (reason.candidates, reason.summary) == (0, "g: 60 of 60 tasks wait: 1 of 1 have no free slot")


def test_what_is_out_counts_against_the_target(cluster):
    job = cluster.submit(count=100)
    cluster.place(job, cluster.register("a", slots=4), 0, 3)

    assert loads(planned(cluster, a=4)) == {"uid-a": 1}
    assert planned(cluster, a=3) == []


def test_an_executor_without_a_target_gets_nothing(cluster):
    cluster.submit(count=100)
    for name in "ab":
        cluster.register(name)

    assert loads(planned(cluster, a=2, unknown=2)) == {"uid-a": 2}


def test_the_dead_get_nothing(cluster):
    cluster.submit(count=100)
    expire(cluster, cluster.register("a"))

    assert planned(cluster, a=2) == []


def test_neighbours_with_different_pasts_are_placed_apart(cluster):
    """Or `apply`, which gives all tasks of a placement the same past, would place none of them."""
    job, executor = cluster.submit(count=2), cluster.register("a")
    cluster.event(cluster.place(job, executor, 0, 1), "failed")
    cluster.event(cluster.place(job, executor, 1, 2), "released")
    cluster.now_ms += 5_000

    places = planned(cluster, a=2)

    assert sorted((place.start, place.stop) for place in places) == [(0, 1), (1, 2)]
    assert len(cluster.apply(PlaceTasks(tuple(places)))) == 2


def test_a_target_beyond_the_largest_backlog_is_not_followed(cluster):
    cluster.submit(count=10_000)
    cluster.register("a", slots=1)

    places = planned(cluster, a=10_000)

    assert loads(places) == {"uid-a": 513}
    assert len(cluster.apply(PlaceTasks(tuple(places)))) == len(places) == 2


def test_a_job_of_a_million_does_not_keep_a_job_of_one_waiting(cluster):
    large, small = cluster.submit("large", count=1_000_000), cluster.submit("small")
    cluster.register("a", slots=8)

    assert shares(planned(cluster, a=8)) == {large.uid: 7, small.uid: 1}


def test_jobs_of_equal_priority_share_evenly_and_older_ones_get_the_rest(cluster):
    jobs = [cluster.submit(id, count=100) for id in "xyz"]
    cluster.register("a", slots=11)

    assert shares(planned(cluster, a=11)) == dict(zip((job.uid for job in jobs), (4, 4, 3), strict=True))


def test_slots_that_become_free_one_by_one_are_shared_too(cluster):
    large, small = cluster.submit("large", count=1_000_000), cluster.submit("small", count=20)
    cluster.register("a", slots=1)

    for _ in range(40):
        (placement,) = cluster.apply(PlaceTasks(tuple(planned(cluster, a=1))))
        cluster.event(placement, "succeeded")

    done = [cluster.state.groups[job.uid, "g"].succeeded for job in (large, small)]
    assert min(done) >= 18, done


def test_a_plan_that_would_be_too_long_is_cut_and_the_next_ones_go_on(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.plan.PLACES_MAX", 10)
    jobs = [cluster.submit(f"j{i}", count=4) for i in range(25)]
    cluster.register("a", slots=512)
    cluster.event(cluster.place(jobs[0], cluster.register("b"), 0, 4), "released")

    for _ in range(20):
        places = planned(cluster, a=512)
        assert len(places) <= 10
        cluster.apply(PlaceTasks(tuple(places)))

    assert cluster.state.out("uid-a") == 100


def test_what_one_job_cannot_use_goes_to_the_others(cluster):
    jobs = [cluster.submit(id, count=n) for id, n in (("x", 2), ("y", 100), ("z", 5))]
    cluster.register("a", slots=30)

    assert shares(planned(cluster, a=30)) == dict(zip((job.uid for job in jobs), (2, 23, 5), strict=True))


def test_a_higher_priority_goes_first_and_leaves_the_rest(cluster):
    low, high = cluster.submit("low", count=10), cluster.submit("high", count=3, priority=60)
    cluster.register("a", slots=5)

    places = planned(cluster, a=5)

    assert places[0].uid == high.uid
    assert shares(places) == {high.uid: 3, low.uid: 2}


def test_the_budget_is_kept(cluster):
    cluster.submit(count=100)
    cluster.register("a", slots=50)

    assert loads(planned(cluster, 7, a=50)) == {"uid-a": 7}
    assert planned(cluster, 0, a=50) == []


def test_only_executors_that_match_get_tasks(cluster):
    cluster.submit("gpu", count=4, selectors=(Selector("gpu", "exists"),))
    cluster.register("plain", slots=9)
    cluster.register("gpu", slots=3, labels={"gpu": "a100"})

    assert loads(planned(cluster, plain=9, gpu=3)) == {"uid-gpu": 3}


def test_a_job_that_fits_nowhere_leaves_the_room_to_others(cluster):
    cluster.submit("gpu", count=4, selectors=(Selector("gpu", "exists"),))
    plain = cluster.submit("plain", count=4)
    cluster.register("a", slots=4)

    assert shares(planned(cluster, a=4)) == {plain.uid: 4}


def test_retries_that_are_due_go_before_fresh_tasks_and_as_one_range(cluster):
    job, executor = cluster.submit(count=10), cluster.register("a", slots=8)
    placement = cluster.place(job, executor, 0, 4)
    for start, stop in ((2, 4), (0, 2)):
        cluster.event(placement, "released", start, stop)

    places = planned(cluster, a=8)

    assert [(p.start, p.stop, p.attempt) for p in places] == [(0, 4, 2), (4, 8, 1)]


def test_retries_that_are_not_due_are_passed_over_and_say_when(cluster):
    job, executor = cluster.submit(count=1), cluster.register("a")
    cluster.event(cluster.place(job, executor, 0, 1), "failed")
    due_ms = cluster.state.retries[job.uid, "g"][0].due_at_ms
    look_ms = next_due_ms(cluster.state, cluster.now_ms)
    assert look_ms is not None

    assert due_ms <= look_ms < due_ms + 16
    cluster.now_ms = due_ms - 1
    assert planned(cluster, a=2) == []
    (reason,) = explain(cluster.state, job.uid, cluster.now_ms, {"uid-a": 2})
    assert reason.held == "they failed before; the next retry is due in 1 ms"
    assert reason.summary == f"g: 1 of 1 tasks wait: {reason.held}"
    cluster.now_ms = look_ms
    assert len(planned(cluster, a=2)) == 1
    assert next_due_ms(cluster.state, cluster.now_ms) is None, "what is due waits for room, and hides nothing"


def test_a_plan_that_is_followed_at_once_is_accepted_whole(cluster):
    for id in "abcdef":
        cluster.submit(id, count=1_000)
    for name in "xyz":
        cluster.register(name, slots=4)
    for _ in range(4):
        places = planned(cluster, x=900, y=300, z=5)
        accepted = cluster.apply(PlaceTasks(tuple(places)))
        assert len(accepted) == len(places)
        for placement in accepted[::2]:
            cluster.event(placement, "released", placement.start, placement.start + 1)
            cluster.event(placement, "failed", placement.stop - 1, placement.stop)
        cluster.now_ms += 10_000


def test_nothing_waits_and_nothing_is_planned(cluster):
    cluster.register("a")

    assert planned(cluster, a=2) == []
    assert next_due_ms(cluster.state, cluster.now_ms) is None
    assert list(explain(cluster.state, 999, cluster.now_ms, {})) == []


def test_a_canceled_job_waits_for_nothing(cluster):
    job = cluster.submit(count=5)
    cluster.register("a")
    cluster.apply(CancelJob("j"))

    assert planned(cluster, a=2) == []
    assert list(explain(cluster.state, job.uid, cluster.now_ms, {})) == []


def test_only_executors_whose_end_is_not_known_yet_are_expired(cluster):
    old, new = cluster.register("a", boot_id="1"), cluster.register("a", boot_id="2")
    other = cluster.register("b")
    expire(cluster, other)

    lost = [(e.uid, e.incarnation) for e in (other, old, new)] + [("unknown", 1)]

    assert due(cluster.state, lost, cluster.now_ms) == [ExpireExecutor(new.uid, new.incarnation, "its lease ran out")]


# What is looked at in vain.


def lacking(cluster: Cluster, count: int) -> list[Job]:
    """Jobs that fit nowhere, each for a reason of its own."""
    return [cluster.submit(f"x{n}", selectors=(Selector("k", "eq", (str(n),)),)) for n in range(count)]


def patient(cluster: Cluster, looks: Looks, plans: int, **targets: int) -> list[Place]:
    """What comes of plans, one after the other, none of which is followed."""
    found: list[Place] = []
    for _ in range(plans):
        found += plan(cluster.state, cluster.now_ms, {f"uid-{k}": n for k, n in targets.items()}, looks=looks)
    return found


def test_a_plan_looks_at_some_in_vain_and_the_next_one_goes_on(cluster, monkeypatch):
    looked: list[int] = []
    monkeypatch.setattr(
        planning, "_Supply", lambda state, job, *args: looked.append(job.uid) or _Supply(state, job, *args)
    )
    jobs = lacking(cluster, 30)
    last = cluster.submit("last")
    cluster.register("a", slots=40)
    looks = Looks(cost_max=4 * PASSED_PER_LOOK)

    for n in range(7):
        assert patient(cluster, looks, 1, a=40) == []
        assert looks.cut
        assert looked == [job.uid for job in jobs[4 * n : 4 * n + 4]]
        looked.clear()

    assert shares(patient(cluster, looks, 1, a=40)) == {last.uid: 1}


def test_when_all_were_looked_at_in_vain_it_is_over_until_something_changes(cluster):
    lacking(cluster, 30)
    cluster.register("a", slots=1)
    looks = Looks(cost_max=4 * PASSED_PER_LOOK)

    cuts = []
    for _ in range(8):
        assert patient(cluster, looks, 1, a=1) == []
        cuts.append(looks.cut)

    assert cuts == [True] * 7 + [False]


def test_who_wants_what_another_was_not_given_is_hardly_looked_at(cluster):
    for n in range(300):
        cluster.submit(f"gpu{n}", resources={"gpu": 1})
    last = cluster.submit("last")
    cluster.register("a", slots=1)

    assert shares(patient(cluster, Looks(cost_max=20 * PASSED_PER_LOOK), 1, a=1)) == {last.uid: 1}


def test_retries_that_are_not_due_are_hardly_looked_at(cluster):
    executor = cluster.register("a", slots=200)
    for n in range(200):
        cluster.event(cluster.place(cluster.submit(f"x{n}"), executor, 0, 1), "failed")
    last = cluster.submit("last")

    assert shares(patient(cluster, Looks(cost_max=12 * PASSED_PER_LOOK), 1, a=200)) == {last.uid: 1}


def test_those_that_lacked_something_get_their_turn_though_others_take_each_slot(cluster):
    jobs, many = lacking(cluster, 30), cluster.submit("many", count=10_000)
    cluster.register("a", slots=1)
    looks = Looks(cost_max=4 * PASSED_PER_LOOK)
    while not (places := patient(cluster, looks, 1, a=1)):
        pass  # it goes on behind those that lack something
    (placement,) = cluster.apply(PlaceTasks(tuple(places)))

    cluster.register("a", slots=1, boot_id="2", labels={"k": "7"})
    placed: set[int] = set()
    for _ in range(20):
        for placement in cluster.apply(PlaceTasks(tuple(patient(cluster, looks, 1, a=1)))):
            placed.add(placement.uid)
            cluster.event(placement, "succeeded")

    assert placed == {jobs[7].uid, many.uid}


def test_projects_and_priorities_do_not_lose_their_looks_to_others(cluster):
    for n in range(40):
        cluster.submit(f"x{n}", priority=90, selectors=(Selector("k", "eq", (str(n),)),))
    low = cluster.submit("low")
    cluster.register("a", slots=1)

    assert shares(patient(cluster, Looks(cost_max=8 * PASSED_PER_LOOK), 1, a=1)) == {low.uid: 1}
