"""Random schedules over real nodes: fixed seeds here, fresh ones with `make sim N=2000`."""

import os
import subprocess
import sys
from multiprocessing import get_context

import pytest
import structlog

from tests.sim.raft.ledger import Violation
from tests.sim.raft.planted import PLANTS, Edit, _edited, planted
from tests.sim.raft.runner import Task, attempt, be_quiet
from tests.sim.raft.schedule import run
from tests.sim.raft.stories import STORIES
from tiflow.raft.core import Core

SEEDS = range(2000)
#: schedules that once broke a promise, and what that was
REGRESSIONS = {}


@pytest.fixture(autouse=True)
def _quiet():
    be_quiet()
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def pool():
    with get_context("spawn").Pool(os.cpu_count(), be_quiet) as processes:
        yield processes


def _findings(pool, tasks):
    return [(task, what) for task, what in pool.imap_unordered(attempt, tasks, chunksize=8) if what is not None]


def test_keeps_its_promises_under_any_schedule(pool):
    assert _findings(pool, [Task(seed) for seed in (*SEEDS, *REGRESSIONS)]) == []


def test_much_happens_in_a_schedule(pool):
    """One in which nobody is served proves nothing."""
    outcomes = pool.map(run, range(20))

    assert sum(outcome.acknowledged for outcome in outcomes) > 100
    assert sum(outcome.reads for outcome in outcomes) > 20
    assert sum(outcome.renewals for outcome in outcomes) > 20
    assert sum(outcome.terms for outcome in outcomes) > 2 * len(outcomes)


def test_finds_every_planted_bug(pool):
    """A pinned seed finds it, and none finds anything when it is not there: else they would prove nothing.

    A change of tiflow/raft leads seeds elsewhere: `python -m tests.sim.raft --planted NAME --base 0` finds others.
    """
    tasks = [Task(seed, weather=name, bug=name) for name, plant in PLANTS.items() for seed in plant.seeds]
    assert {task.bug for task in tasks} | set(STORIES) == set(PLANTS), "each planted bug has a seed or a story"

    found = {task.bug for task, _ in _findings(pool, tasks)}

    assert {task.bug for task in tasks} - found == set()
    assert _findings(pool, [task._replace(bug=None) for task in tasks]) == []


@pytest.mark.parametrize("name", STORIES)
def test_a_story_finds_its_planted_bug(name):
    STORIES[name]()

    with planted(name), pytest.raises(Violation):
        STORIES[name]()


def test_an_edit_of_what_is_no_longer_there_is_an_error():
    with pytest.raises(LookupError, match="has not one"):
        _edited(Core, Core.join, [Edit(Core, "join", "no such text", "")])


def test_a_seed_is_one_schedule():
    """In every process and with any order of hashes."""
    script = (
        "from tests.sim.raft.runner import be_quiet; from tests.sim.raft.schedule import run; be_quiet(); "
        "[run(seed, trace=lambda *event: print(*event)) for seed in (3, 48, 184)]"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": salt}, stdout=subprocess.PIPE
        )
        for salt in ("1", "2")
    ]

    one, other = (process.communicate()[0] for process in processes)

    assert [process.returncode for process in processes] == [0, 0]
    assert len(one.splitlines()) > 1000
    assert one == other
