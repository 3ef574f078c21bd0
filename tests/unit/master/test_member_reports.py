"""What the leader keeps of what members report."""

import pytest

from tests.unit.sched.support import Cluster
from tests.unit.sched.test_framework import place, start, submit
from tiflow.master.members import MemberDesk
from tiflow.master.session import Session
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import SetFormat
from tiflow.sched.model import Placement


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(SetFormat(3))
    return cluster


def report(placement: Placement, index: int, status: bytes = b"") -> pb.Report:
    sample = pb.Sample(name="done", value=index)
    return pb.Report(placement=placement.id, index=index, status=status, samples=[sample])


def test_metrics_are_shown_until_the_attempt_ends_also_of_workers_that_were_placed_together(cluster: Cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    place(cluster, job, executor)
    start(cluster, job)
    out = place(cluster, job, executor, "w")
    desk = MemberDesk(1, cluster.machine, {})
    session = Session(executor.uid, executor.incarnation, 1)
    for index in range(2):
        desk.take_report(session, report(out, index))
    assert [(job_id, name, sample.value) for job_id, name, sample in desk.samples()] == [
        ("j", "w/0", 0),
        ("j", "w/1", 1),
    ]

    cluster.event(out, "failed", 0, 1)

    assert [name for _, name, _ in desk.samples()] == ["w/1"]


def test_only_the_executor_that_has_the_attempt_is_heard(cluster: Cluster):
    job, executor = submit(cluster), cluster.register(slots=9)
    out = place(cluster, job, executor)
    desk = MemberDesk(1, cluster.machine, {})

    desk.take_report(Session("uid-other", executor.incarnation, 1), report(out, 0, b"lie"))
    desk.take_report(Session(executor.uid, executor.incarnation - 1, 1), report(out, 0, b"late"))
    desk.take_report(Session(executor.uid, executor.incarnation, 1), report(out, 1, b"of nobody"))

    assert [member.status for member in desk.status(cluster.state.jobs["j"])] == [b""]
    assert list(desk.samples()) == []
