"""What a job master asks, and late duplicates of it."""

from typing import Any

import pytest

from tests.unit.sched.support import Cluster
from tests.unit.sched.test_framework import place, stand, submit, workers
from tiflow.errors import FailedPrecondition
from tiflow.sched.commands import AskOnce, SetFormat, StartWorkers, StopWorkers
from tiflow.sched.model import TaskState


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(SetFormat(AskOnce.since))
    return cluster


def test_late_duplicates_of_what_a_job_master_asked_do_nothing(cluster: Cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    place(cluster, job, executor)
    asked: list[AskOnce] = []

    def ask(command: StartWorkers | StopWorkers, settled: int | None = None) -> Any:
        number = len(asked) + 1
        asked.append(AskOnce(number, number if settled is None else settled, command))
        return cluster.apply(asked[-1])

    ask(StartWorkers(job.uid, 1, workers("w")))
    ask(StopWorkers(job.uid, 1, "w", 0, 2))
    assert ask(StopWorkers(job.uid, 1, "w", 0, 2, True)) is True
    assert cluster.apply(asked[2]) is True, "its answer was lost: nothing was asked since"
    assert cluster.apply(asked[0]) is None, "nothing that was forgotten comes back"
    assert (job.uid, "w") not in cluster.state.groups

    ask(StartWorkers(job.uid, 1, workers("w", 1)))
    for late in asked[:3]:
        assert cluster.apply(late) is None
    assert stand(cluster, job, "w") is TaskState.WAITING
    cluster.machine.restore(b"".join(cluster.machine.snapshot()))
    assert cluster.apply(asked[0]) is None, "a snapshot keeps it"

    ask(StartWorkers(job.uid, 1, workers("v")), settled=5)
    ask(StartWorkers(job.uid, 1, workers("u")), settled=5)
    assert cluster.apply(asked[4]).added == 4, "requests that were under way together come in any order"


def test_the_next_attempt_of_a_job_master_counts_anew(cluster: Cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    master = place(cluster, job, executor)
    cluster.apply(AskOnce(7, 7, StartWorkers(job.uid, 1, workers("w"))))
    cluster.event(master, "failed")
    cluster.now_ms += 60_000
    place(cluster, job, executor, attempt=2)

    cluster.apply(AskOnce(1, 1, StartWorkers(job.uid, 2, workers("v"))))

    assert (job.uid, "v") in cluster.state.groups
    with pytest.raises(FailedPrecondition):
        cluster.apply(AskOnce(8, 8, StartWorkers(job.uid, 1, workers("u"))))
