"""Which executors can take a task, which is the best, and what is said when none can."""

import time
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sched.support import Cluster
from tiflow.errors import InvalidArgument, ResourceExhausted
from tiflow.sched.candidates import even
from tiflow.sched.commands import (
    DrainExecutor,
    ExpireExecutor,
    Place,
    PlaceTasks,
    RegisterExecutor,
    UndrainExecutor,
)
from tiflow.sched.duties import next_due_ms, recalled
from tiflow.sched.explain import explain
from tiflow.sched.looks import Looks
from tiflow.sched.model import Job, PlacementPolicy, RetryPolicy, Selector
from tiflow.sched.plan import plan
from tiflow.sched.room import NO_BOUND, Room, addable, needed_at_once
from tiflow.sched.selectors import check_regex, matches, show

DEEP = 512
HOSTILE = "(a|b|ab)*(a|bb)(a|b){40}"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def fill(cluster: Cluster, *, depth: int = 0) -> dict[str, int]:
    """Plan and apply until nothing comes of it. Returns: tasks by the name of their executor."""
    targets = dict.fromkeys(cluster.state.executors, 10_000)
    while places := plan(cluster.state, cluster.now_ms, targets, depth=lambda uid, group: depth):
        assert len(cluster.apply(PlaceTasks(tuple(places)))) == len(places)
    out = {executor.name: cluster.state.out(uid) for uid, executor in cluster.state.executors.items()}
    return {name: count for name, count in out.items() if count}


def reason(cluster: Cluster, job: Job, connected: str = ""):
    uids = [f"uid-{name}" for name in connected] if connected else list(cluster.state.executors)
    (found,) = explain(cluster.state, job.uid, cluster.now_ms, dict.fromkeys(uids, 100), lambda uid, group: 0)
    return found


# Resources.


def test_tasks_go_where_their_resources_are_and_no_more_than_fit(cluster):
    cluster.submit(count=10, resources={"gpu": 1})
    cluster.register("plain", slots=4)
    cluster.register("two", slots=4, capacity={"gpu": 2})
    cluster.register("one", slots=4, capacity={"gpu": 1})

    assert fill(cluster, depth=DEEP) == {"two": 2, "one": 1}


def test_cpu_and_memory_that_are_not_given_are_not_limited(cluster):
    cluster.submit(count=9, resources={"cpu": 500, "memory": 1 << 30})
    cluster.register("unknown", slots=3)
    cluster.register("known", slots=3, capacity={"cpu": 1_000, "memory": 8 << 30})

    assert fill(cluster) == {"unknown": 3, "known": 2}


def test_a_backlog_of_which_all_slots_together_fit_is_not_limited(cluster):
    cluster.submit(count=100, resources={"cpu": 500})
    cluster.register("a", slots=2, capacity={"cpu": 1_000})

    assert fill(cluster, depth=9) == {"a": 20}


def test_jobs_with_different_needs_share_what_there_is(cluster):
    cluster.submit("large", count=10, resources={"cpu": 3_000})
    cluster.submit("small", count=10, resources={"cpu": 1_000})
    cluster.submit("none", count=10)
    cluster.register("a", slots=6, capacity={"cpu": 5_000})

    fill(cluster)

    (load,) = cluster.state.loads["uid-a"].values()
    assert needed_at_once(load, 6) <= 5_000
    assert cluster.state.out("uid-a") == 6


def test_a_plan_that_goes_beyond_the_capacity_is_not_followed(cluster):
    job = cluster.submit(count=10, resources={"gpu": 1})
    executor = cluster.register("a", slots=8, capacity={"gpu": 3})
    places = [
        Place(job.uid, "g", start, stop, 1, executor.uid, executor.incarnation) for start, stop in ((0, 2), (2, 4))
    ]

    accepted = cluster.apply(PlaceTasks(tuple(places)))

    assert [(placement.start, placement.stop) for placement in accepted] == [(0, 2)]


def test_what_a_task_needed_is_free_when_it_has_ended(cluster):
    job = cluster.submit(count=2, resources={"gpu": 2})
    executor = cluster.register("a", slots=8, capacity={"gpu": 3})

    for start in (0, 1):
        assert fill(cluster) == {"a": 1}
        (placement,) = cluster.state.placements_on(executor.uid)
        assert placement.start == start
        cluster.event(placement, "succeeded")
    assert not cluster.state.loads
    assert cluster.stands(job) == "Finished"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resources": {"gpu": -1}}, "groups.g.resources.gpu: -1 is not in 1 to"),
        ({"resources": {"cpu": 0}}, "groups.g.resources.cpu: 0 is not in 1 to"),
        ({"resources": {"a b": 1}}, "groups.g.resources: name: 'a b'"),
        ({"resources": {f"r{i}": 1 for i in range(33)}}, "groups.g.resources: number of them: 33"),
        ({"placement": PlacementPolicy("best")}, "groups.g.placement.strategy: 'best' is none of spread, binpack"),
        ({"placement": PlacementPolicy(spread_over="a b")}, "groups.g.placement.spread_over: 'a b'"),
        ({"placement": PlacementPolicy(max_per_executor=-1)}, "groups.g.placement.max_per_executor: -1"),
        ({"selectors": (Selector("k", "like", ("x",)),)}, "groups.g.selectors: op 'like' is none of eq,"),
        ({"selectors": (Selector("k", "regex", ("x" * 257,)),)}, "groups.g.selectors: regex on k: 257 characters"),
    ],
)
def test_what_cannot_be_is_refused_by_name(cluster, fields, said):
    with pytest.raises(InvalidArgument) as caught:
        cluster.submit(**fields)
    assert said in str(caught.value)


loads = st.dictionaries(st.integers(1, 6), st.integers(1, 4), max_size=4)


@given(loads, st.integers(1, 5), st.integers(1, 20), st.integers(1, 7))
def test_as_many_can_be_added_as_fit_one_by_one(load, slots, capacity, need):
    capacity += needed_at_once(load, slots)
    tasks = [other for other, count in load.items() for _ in range(count)]
    most = addable(load, slots, capacity, need)

    def fits(count: int) -> bool:
        return sum(sorted([*tasks, *[need] * count], reverse=True)[:slots]) <= capacity

    if most == NO_BOUND:
        assert fits(100)
    else:
        assert fits(most)
        assert not fits(most + 1)
    # what a room looks at first
    assert fits(1) is (need <= capacity - needed_at_once(load, slots - 1))


def test_jobs_with_needs_of_their_own_do_not_look_at_all_executors_each(cluster, monkeypatch):
    for i in range(100):
        cluster.register(f"e{i}", slots=4, capacity={"cpu": 1_000})
    for i in range(100):
        cluster.submit(f"j{i}", count=9, resources={"cpu": 400 + i * 37 % 100})
    looks, takes = [], Room.takes
    monkeypatch.setattr(Room, "takes", lambda room, needs: looks.append(needs) or takes(room, needs))

    assert sum(fill(cluster).values()) == 200
    assert plan(cluster.state, cluster.now_ms, dict.fromkeys(cluster.state.executors, 4)) == []

    assert len(looks) < 8_000, "each job with each executor would be 20,000 in the last two plans alone"


# Selectors.


@pytest.mark.parametrize(
    ("op", "values", "expected", "shown"),
    [
        ("eq", ("x",), [True, False, False], "k=x"),
        ("neq", ("x",), [False, True, True], "k!=x"),
        ("in", ("x", "z"), [True, False, False], "k in x|z"),
        ("exists", (), [True, True, False], "k"),
        ("regex", ("x.*|z",), [True, False, False], "k~x.*|z"),
    ],
)
def test_selectors(op, values, expected, shown):
    selector = Selector("k", op, values)

    assert [matches((selector,), labels) for labels in ({"k": "x"}, {"k": "yx"}, {})] == expected
    assert show(selector) == shown


def test_several_selectors_must_all_match(cluster):
    selectors = (Selector("n", "regex", ("a.",)), Selector("zone", "eq", ("eu",)), Selector("gpu", "exists"))
    cluster.submit(count=9, selectors=selectors)
    for name, labels in {
        "all": {"n": "a1", "zone": "eu", "gpu": ""},
        "us": {"n": "a1", "zone": "us", "gpu": "x"},
        "b": {"n": "b1", "zone": "eu", "gpu": "x"},
        "cpu": {"n": "a2", "zone": "eu"},
    }.items():
        cluster.register(name, labels=labels)

    assert fill(cluster) == {"all": 2}


@pytest.mark.parametrize("pattern", ["(", "(.*){1,999}x", "((a{1,100}){1,10})", "a" * 257, "", r"(a)\1", "\udc80"])
def test_a_regex_that_cannot_be_used_is_refused_with_the_field(pattern):
    with pytest.raises(InvalidArgument, match=r"^groups\[0\]\.selectors\[1\]: the regex "):
        check_regex("groups[0].selectors[1]", pattern)


def test_a_regex_that_a_later_leader_cannot_compile_matches_nothing(cluster):
    job = cluster.submit(selectors=(Selector("k", "regex", ("(",)),))
    cluster.register("a", labels={"k": "("})

    assert fill(cluster) == {}
    assert reason(cluster, job).summary.endswith("needs k~(: 0 of 1 executors have it")


def test_a_hostile_regex_does_not_stall_the_leader(cluster):
    """With backtracking, one of these labels alone would take longer than the universe has."""
    check_regex("", HOSTILE)
    for i in range(20):
        cluster.submit(f"j{i}", count=10, selectors=(Selector("k", "regex", (f"{HOSTILE}{i}",)),))
    plain = cluster.submit("plain", count=10)
    random = Random(1)
    for i in range(200):
        cluster.register(f"e{i}", labels={"k": "".join(random.choices("ab", k=255)) + "!"})

    started = time.process_time()
    places = plan(cluster.state, cluster.now_ms, dict.fromkeys(cluster.state.executors, 1), looks=Looks())

    assert time.process_time() - started < 1
    assert {place.uid for place in places} == {plain.uid}


def test_what_one_plan_has_found_out_of_a_costly_regex_helps_the_next_one(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.plan.STEPS_MAX", 1_000)
    job = cluster.submit(selectors=(Selector("k", "regex", ("[ab]+7x*",)),))
    for n in range(200):
        cluster.register(f"e{n}", labels={"k": f"{'ab' * 10}{n}"})
    looks, plans = Looks(), 1

    while not (places := plan(cluster.state, cluster.now_ms, dict.fromkeys(cluster.state.executors, 1), looks=looks)):
        assert looks.cut, "there is more to find out"
        plans += 1

    assert [(place.uid, place.executor) for place in places] == [(job.uid, "uid-e7")]
    assert 10 < plans < 100


# Preferences.


def test_binpack_fills_the_fullest_first(cluster):
    policy = PlacementPolicy("binpack")
    cluster.submit("other", count=3)
    cluster.register("a", slots=4)
    assert fill(cluster) == {"a": 3}
    cluster.submit(count=3, placement=policy)
    cluster.register("b", slots=4)
    cluster.register("c", slots=8)

    assert fill(cluster) == {"a": 4, "b": 2}


def test_binpack_fills_all_slots_before_any_backlog(cluster):
    cluster.submit(count=11, placement=PlacementPolicy("binpack"))
    cluster.register("a", slots=2)
    cluster.register("b", slots=8)

    assert fill(cluster, depth=3) == {"a": 3, "b": 8}


def test_no_executor_gets_more_of_a_group_than_it_may(cluster):
    job = cluster.submit(count=9, placement=PlacementPolicy(max_per_executor=2))
    executors = [cluster.register(name, slots=8) for name in "abc"]

    assert fill(cluster, depth=DEEP) == {"a": 2, "b": 2, "c": 2}
    assert reason(cluster, job).summary.endswith("0 of 3 have fewer than 2 tasks of the group")
    place = Place(job.uid, "g", 6, 7, 1, executors[0].uid, executors[0].incarnation)
    assert cluster.apply(PlaceTasks((place,))) == ()


def test_zones_get_even_shares_whatever_their_size(cluster):
    cluster.submit(count=9, placement=PlacementPolicy(spread_over="zone"))
    for name, zone in {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "none": ""}.items():
        cluster.register(name, slots=8, labels={"zone": zone} if zone else {})

    out = fill(cluster)

    assert (out["a1"], out["a2"], out["a3"], out["b1"], out["none"]) == (1, 1, 1, 3, 3)


def test_what_is_out_counts_and_a_zone_that_is_full_passes_its_share_on(cluster):
    job = cluster.submit(count=10, placement=PlacementPolicy(spread_over="zone"))
    a = cluster.register("a", slots=8, labels={"zone": "a"})
    cluster.place(job, a, 0, 3)
    cluster.register("b", slots=2, labels={"zone": "b"})
    cluster.register("c", slots=8, labels={"zone": "c"})

    assert fill(cluster) == {"a": 4, "b": 2, "c": 4}


def test_what_is_out_on_an_executor_without_room_counts_for_its_zone(cluster):
    job = cluster.submit(count=5, placement=PlacementPolicy(spread_over="zone"))
    cluster.place(job, cluster.register("full", slots=3, labels={"zone": "a"}), 0, 3)
    cluster.register("a", slots=8, labels={"zone": "a"})
    cluster.register("b", slots=8, labels={"zone": "b"})

    assert fill(cluster) == {"full": 3, "b": 2}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 40))
def test_water_finds_its_level(totals, count):
    added = even(totals, count)
    after = Counter(total + more for total, more in zip(totals, added, strict=True) if more)

    assert sum(added) == count
    assert min(added) >= 0
    if after:  # no one who got something is more than one above anybody
        assert max(after) - min(total + more for total, more in zip(totals, added, strict=True)) <= 1


# Drained executors.


def test_a_drain_holds_for_the_name_until_it_is_taken_back(cluster):
    cluster.submit(count=9)
    old = cluster.register("a")
    cluster.apply(DrainExecutor("a"))
    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    again = cluster.apply(RegisterExecutor("another-uid", "b", "a", "a:1", 2))
    assert fill(cluster) == {}
    place = Place(1, "g", 0, 1, 1, again.uid, again.incarnation)
    assert cluster.apply(PlaceTasks((place,))) == ()
    cluster.apply(UndrainExecutor("a"))
    cluster.apply(UndrainExecutor("a"))

    assert fill(cluster) == {"a": 2}


def test_what_runs_is_recalled_at_the_deadline_which_comes_forward_and_is_never_put_off(cluster):
    job, executor = cluster.submit(count=1, retry=RetryPolicy(attempts_max=1)), cluster.register("a")
    placement = cluster.place(job, executor, 0, 1)
    start_ms = cluster.now_ms

    cluster.apply(DrainExecutor("a"))
    assert recalled(cluster.state, start_ms + 10**9) == {}, "there is no deadline yet"
    ends_ms = [cluster.apply(DrainExecutor("a", ms)).deadline_at_ms for ms in (None, 9_000, 5_000, 8_000, None)]

    assert ends_ms == [0, start_ms + 9_000, start_ms + 5_000, start_ms + 5_000, start_ms + 5_000]
    assert next_due_ms(cluster.state, start_ms) == start_ms + 5_000
    assert recalled(cluster.state, start_ms + 4_999) == {}
    cluster.now_ms = start_ms + 5_000
    assert recalled(cluster.state, cluster.now_ms) == {executor.uid: (placement.id,)}
    cluster.event(placement, "canceled")
    assert recalled(cluster.state, cluster.now_ms) == {}
    assert cluster.task(job) == ("waiting", 2), "its only try has not failed"
    cluster.register("b")
    assert fill(cluster) == {"b": 1}


def test_only_so_many_are_drained(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.executors.DRAINS_MAX", 1)
    cluster.register("a")
    cluster.register("b")
    cluster.apply(DrainExecutor("a"))
    cluster.apply(DrainExecutor("a"))

    with pytest.raises(ResourceExhausted, match="undrain those that are gone for good"):
        cluster.apply(DrainExecutor("b"))
    with pytest.raises(InvalidArgument, match="deadline_ms: -1 is not in 0 to"):
        cluster.apply(DrainExecutor("a", -1))


# Reasons.


def test_what_waits_says_why(cluster):
    job = cluster.submit(count=5, resources={"gpu": 1}, selectors=(Selector("zone", "in", ("eu", "us")),))
    said = [reason(cluster, job).summary]
    for i in range(9):
        cluster.register(f"plain{i}", labels={"zone": "eu"} if i else {})
    for name in "xyz":
        cluster.apply(DrainExecutor(cluster.register(name, labels={"zone": "eu"}).name))
    said.append(reason(cluster, job).summary)
    gpu = cluster.register("gpu", slots=3, labels={"zone": "us"}, capacity={"gpu": 2})
    said.append(reason(cluster, job).summary)
    cluster.place(job, gpu, 0, 2)
    last = reason(cluster, job)

    assert said == [
        "g: 5 of 5 tasks wait: no executor is alive",
        "g: 5 of 5 tasks wait: 3 of 12 are draining; needs zone in eu|us: 11 of 12 executors have it;"
        " needs gpu=1: 0 of 12 executors have it",
        "g: 5 of 5 tasks wait: 1 of 13 executors have room; they are about to be placed",
    ]
    assert [(one.name, one.wants, one.removes, one.leaves) for one in last.filters] == [
        ("connected", "a session with the leader", 0, 13),
        ("drain", "not drained", 3, 10),
        ("selector", "zone in eu|us", 1, 9),
        ("capacity", "gpu=1", 12, 1),
        ("slots", "a free slot", 0, 1),
        ("resource", "gpu=1 free", 1, 0),
    ]
    assert (last.executors, last.candidates, last.waiting, last.total) == (13, 0, 3, 5)


def test_one_that_has_no_session_is_told(cluster):
    job = cluster.submit()
    cluster.register("a")
    cluster.register("b")
    cluster.apply(DrainExecutor("b"))

    assert reason(cluster, job, connected="b").summary == (
        "g: 1 of 1 tasks wait: 1 of 2 have no session with the leader, or are stopping; 1 of 2 are draining"
    )
