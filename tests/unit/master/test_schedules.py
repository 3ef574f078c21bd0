"""What a leader makes of the times that have come."""

from datetime import UTC, datetime
from itertools import pairwise, takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sched.support import Cluster
from tiflow.jobs.cron import fire_times, next_fire_ms, run_id
from tiflow.master.schedules import FIRES_MAX, MISSED_AFTER_MS, due_fires, next_fire_in_ms
from tiflow.sched.commands import FireSchedule, PauseSchedule, PutSchedule
from tiflow.sched.model import Command, GroupSpec, JobSpec

SPEC = JobSpec("", (GroupSpec("g", Command(("true",))),))
NOON_MS = round(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp() * 1_000)
HOUR_MS = 3_600_000


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.now_ms = NOON_MS
    return cluster


def put(cluster: Cluster, name: str = "s", cron: str = "*/5 * * * *", **fields: Any) -> None:
    next_ms = next_fire_ms(cron, "UTC", cluster.now_ms)
    defaults = {"overlap": "allow", "missed": "skip", "keep": 100, "next_at_ms": next_ms}
    cluster.apply(PutSchedule(name, SPEC, cron, "UTC", f"token {name}", **{**defaults, **fields}))


def lead(cluster: Cluster) -> list[str]:
    """All that a leader does about schedules now. Returns: the jobs that it starts."""
    started = []
    while commands := due_fires(cluster.state, cluster.now_ms):
        for command in commands:
            job = cluster.apply(command)
            started += [job.id] if job else []
    return started


def test_nothing_is_due_before_its_time(cluster):
    put(cluster)
    assert next_fire_in_ms(cluster.state, cluster.now_ms) == 300_000

    cluster.now_ms += 299_999

    assert due_fires(cluster.state, cluster.now_ms) == []
    cluster.now_ms += 1
    assert lead(cluster) == ["s-20261125T120500Z"]
    assert next_fire_in_ms(cluster.state, cluster.now_ms) == 300_000


def test_times_that_passed_during_an_election_are_all_made_up_for(cluster):
    put(cluster, cron="*/10 * * * * *")

    cluster.now_ms += 35_000

    assert lead(cluster) == [run_id("s", NOON_MS + 10_000 * n) for n in (1, 2, 3)]


@pytest.mark.parametrize(("missed", "runs"), [("skip", []), ("run-once", ["s-20261125T143500Z"])])
def test_times_that_passed_while_nobody_led_are_left_out_or_run_once(cluster, missed, runs):
    put(cluster, missed=missed)

    cluster.now_ms += 2 * HOUR_MS + 37 * 60_000

    assert lead(cluster) == runs
    assert cluster.state.schedules["s"].next_at_ms == NOON_MS + 2 * HOUR_MS + 40 * 60_000


def test_after_an_outage_a_time_within_the_last_minute_is_not_missed(cluster):
    put(cluster)

    cluster.now_ms += HOUR_MS + 30_000

    assert lead(cluster) == ["s-20261125T130000Z"]


def test_a_clock_that_jumps_ahead_and_back_fires_nothing_twice(cluster):
    put(cluster)
    started = []
    for step_ms in (300_000, HOUR_MS, -HOUR_MS, 300_000, 300_000, HOUR_MS):
        cluster.now_ms += step_ms
        started += lead(cluster)

    assert len(started) == len(set(started)) >= 3


def test_a_schedule_whose_times_end_fires_its_last_one(cluster):
    """Or whose zone this master does not know: it must not keep the leader from the others."""
    put(cluster)
    schedule = cluster.state.schedules["s"]
    strange = PutSchedule("t", SPEC, "* * * * *", "Europe/Atlantis", "t", "skip", "skip", 1, NOON_MS + 1)
    cluster.apply(strange)
    cluster.now_ms = schedule.next_at_ms

    assert sorted(lead(cluster)) == ["s-20261125T120500Z"], "the other one was missed"
    assert cluster.state.schedules["t"].next_at_ms == 0


def test_many_that_are_due_at_once_go_in_portions(cluster):
    for number in range(FIRES_MAX + 5):
        put(cluster, f"s{number}")
    cluster.now_ms += 300_000

    assert len(due_fires(cluster.state, cluster.now_ms)) == FIRES_MAX
    assert len(lead(cluster)) == FIRES_MAX + 5


@given(
    steps=st.lists(st.sampled_from([1_000, 7_000, 45_000, 90_000, -5_000, -90_000]), max_size=30),
    missed=st.sampled_from(["skip", "run-once"]),
    cron=st.sampled_from(["* * * * *", "*/7 * * * * *", "30 * * * * *"]),
)
@settings(deadline=None)
def test_every_time_is_run_once_or_was_missed(steps, missed, cron):
    """Whatever the clocks of the leaders show, two of which see the same state each time."""
    cluster = Cluster()
    cluster.now_ms = NOON_MS
    put(cluster, cron=cron, missed=missed)
    ran: list[int] = []
    latest_ms = NOON_MS
    for step_ms in steps:
        cluster.now_ms += step_ms
        latest_ms = max(latest_ms, cluster.now_ms)
        while commands := due_fires(cluster.state, cluster.now_ms):
            ahead = due_fires(cluster.state, cluster.now_ms + 100_000)
            for command in (*commands, *ahead, *commands):
                if (job := cluster.apply(command)) is not None:
                    assert isinstance(command, FireSchedule)
                    assert job.id == run_id("s", command.at_ms)
                    ran.append(command.at_ms)

    times = list(takewhile(lambda at_ms: at_ms <= latest_ms, fire_times(cron, "UTC", NOON_MS)))
    if max(steps, default=0) <= MISSED_AFTER_MS:
        assert ran == times
    else:
        assert set(ran) <= set(times)
        assert all(earlier < later for earlier, later in pairwise(ran))


def test_what_is_paused_is_not_due(cluster):
    put(cluster)
    cluster.apply(PauseSchedule("s", True, 0))
    cluster.now_ms += HOUR_MS

    assert due_fires(cluster.state, cluster.now_ms) == []
    assert next_fire_in_ms(cluster.state, cluster.now_ms) is None
