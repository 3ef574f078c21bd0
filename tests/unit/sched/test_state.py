"""The machine, results that are lost, and what can be seen of the state; told as stories."""

import pytest
from msgspec import msgpack

from tests.unit.sched.support import KEPT, Cluster
from tiflow.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    Rejected,
)
from tiflow.sched import machine
from tiflow.sched.commands import (
    CancelJob,
    DeleteJob,
    ExpireExecutor,
    RerunLost,
)
from tiflow.sched.machine import Machine, UnreadableEntry
from tiflow.sched.model import (
    Job,
    JobState,
    TaskState,
)
from tiflow.sched.tasks import runs
from tiflow.sched.views import results, task_state, tasks


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# Lost results.


def lost_result(cluster: Cluster) -> Job:
    """A finished job, whose only result was on an executor that is gone."""
    job, executor = cluster.submit(), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    return job


def test_a_task_whose_result_was_lost_runs_again(cluster):
    job = lost_result(cluster)
    assert cluster.stands(job) is JobState.FINISHED

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.stands(job) is JobState.RUNNING
    assert cluster.task(job) == (TaskState.WAITING, 2)
    assert cluster.state.jobs["j"].ended_at_ms == 0


def test_a_repeat_of_a_rerun_is_void_even_after_the_task_succeeded_again(cluster):
    job = lost_result(cluster)
    cluster.apply(RerunLost(job.uid, 0, 0))
    cluster.apply(RerunLost(job.uid, 0, 0))
    cluster.event(cluster.place(job, cluster.register("f"), 0, 1, attempt=2), "succeeded", results=KEPT)

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.stands(job) is JobState.FINISHED


def test_a_result_that_can_be_had_is_not_computed_again(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    inline = msgpack.encode([b"small"])
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.event(cluster.place(job, executor, 1, 2), "succeeded", results=inline)

    cluster.apply(RerunLost(job.uid, 0, 0))  # its executor is alive
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    cluster.apply(RerunLost(job.uid, 1, 1))  # it is in the row

    assert cluster.stands(job) is JobState.FINISHED


def test_each_result_of_a_row_can_be_lost_once(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    both = msgpack.encode([[9_999, b"a"], [9_999, b"b"]])
    cluster.event(cluster.place(job, executor, 0, 2), "succeeded", results=both)
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))
    for index in (0, 1):
        cluster.apply(RerunLost(job.uid, 0, index))
    other = cluster.register("f")
    cluster.event(cluster.place(job, other, 0, 2, attempt=2), "succeeded", results=both)

    for index in (0, 1):
        cluster.apply(RerunLost(job.uid, 0, index))

    assert cluster.stands(job) is JobState.FINISHED


def test_a_canceled_job_computes_nothing_again(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    cluster.event(cluster.place(job, executor, 0, 1), "succeeded", results=KEPT)
    cluster.apply(CancelJob("j"))
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    cluster.apply(RerunLost(job.uid, 0, 0))

    assert cluster.task(job, 0)[0] is TaskState.SUCCEEDED
    assert cluster.stands(job) is JobState.CANCELED


def test_a_rerun_of_nothing_is_refused(cluster):
    job = lost_result(cluster)

    with pytest.raises(NotFound):
        cluster.apply(RerunLost(job.uid, 1, 0))
    with pytest.raises(InvalidArgument, match="says nothing good of task 1"):
        cluster.apply(RerunLost(job.uid, 0, 1))


# The machine.


def test_an_entry_that_cannot_be_read_stops_the_process():
    with pytest.raises(UnreadableEntry, match="needs a newer tiflow"):
        Machine().apply(b"\xff")


def test_a_snapshot_that_cannot_be_read_leaves_the_state(cluster):
    cluster.submit()
    data = b"".join(cluster.machine.snapshot())
    before = cluster.machine.digest()

    for damaged in (data[:-1], data[:3], b"\0\0\0\0", b"\0\0\0\x06" + b"\x92\xa3new\x90"):
        with pytest.raises(UnreadableEntry):
            cluster.machine.restore(damaged)

    assert cluster.machine.digest() == before


def test_a_bug_in_a_handler_is_an_answer_and_changes_nothing(cluster, monkeypatch):
    def buggy(draft, command):
        draft.closed.append(1 / 0)

    monkeypatch.setitem(machine.HANDLERS, CancelJob, buggy)

    reply = machine._answer(cluster.state, CancelJob("j"))

    assert isinstance(reply.error, Internal)
    assert str(reply.error) == "CancelJob: ZeroDivisionError: division by zero"


def test_running_out_of_memory_is_not_an_answer(cluster, monkeypatch):
    def hungry(draft, command):
        raise MemoryError

    monkeypatch.setitem(machine.HANDLERS, CancelJob, hungry)

    with pytest.raises(MemoryError):
        machine._answer(cluster.state, CancelJob("j"))


def test_a_command_of_a_later_format_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(CancelJob, "since", 2)

    with pytest.raises(Rejected, match="needs format 2; this is 1"):
        cluster.apply(CancelJob("j"))


def test_a_snapshot_is_of_the_moment_when_it_was_asked_for(cluster):
    cluster.submit("a")
    expected = b"".join(cluster.machine.snapshot())

    frames = cluster.machine.snapshot()
    cluster.submit("b")

    assert b"".join(frames) == expected


def test_log_time_never_falls(cluster):
    cluster.submit("a")
    cluster.now_ms -= 500
    cluster.submit("b")

    assert cluster.state.now_ms == cluster.now_ms + 500
    assert cluster.state.wall_ms == cluster.now_ms


# What changed.


def test_changes_come_in_the_order_of_their_last_write_and_each_once(cluster):
    a, b, c = (cluster.submit(id) for id in "abc")
    cluster.apply(CancelJob("a"))
    cluster.apply(DeleteJob("a"))
    cluster.apply(CancelJob("b"))

    changed = cluster.state.changed_since(0, 9)

    assert [(record.mod_revision, record.uid) for record in changed] == [(3, c.uid), (5, a.uid), (6, b.uid)]
    assert cluster.state.changed_since(0, 1) == changed[:1]
    assert cluster.state.changed_since(5, 9) == changed[2:]


def test_changes_of_one_revision_are_not_parted(cluster):
    jobs, executor = [cluster.submit(id) for id in "abc"], cluster.register()
    for job in jobs:
        cluster.place(job, executor, 0, 1)
    revision = cluster.state.revision
    for job in jobs:
        cluster.apply(CancelJob(job.id))
    cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert len(cluster.state.changed_since(revision, 1)) == 3


def test_a_jobs_revision_moves_with_its_counters(cluster):
    job, executor = cluster.submit(count=2), cluster.register()
    placement = cluster.place(job, executor, 0, 2)
    record = cluster.state.jobs["j"]

    cluster.event(placement, "succeeded", 0, 1)

    assert cluster.state.jobs["j"] == record
    assert cluster.state.job_revision(record) == cluster.state.revision


# Views.


def test_tasks_are_shown_as_ranges(cluster):
    job, executor = cluster.submit(count=10), cluster.register()
    placement = cluster.place(job, executor, 0, 8)
    cluster.event(placement, "started", 0, 2)
    cluster.event(placement, "succeeded", 1, 3)
    cluster.event(placement, "failed", 6, 7, final=True)
    cluster.event(placement, "released", 7, 8)

    shown = [(row.start, row.stop, row.state, row.attempt) for row in tasks(cluster.state, job, 9)]

    assert shown == [
        (0, 1, "running", 1),
        (3, 6, "placed", 1),
        (7, 8, "waiting", 2),
        (6, 7, "failed", 0),
        (1, 3, "succeeded", 0),
        (8, 10, "waiting", 1),
    ]
    assert len(tasks(cluster.state, job, 2)) == 2


def test_a_task_that_is_not_there_is_an_index_error(cluster):
    job = cluster.submit(count=2)

    with pytest.raises(IndexError, match="has tasks 0 to 1, not 2"):
        task_state(cluster.state, job, "g", 2)


def test_results_are_read_from_a_position(cluster):
    job, executor = cluster.submit(count=3), cluster.register()
    for index in range(3):
        cluster.event(cluster.place(job, executor, index, index + 1), "succeeded", results=KEPT)

    assert [row.start for _, row in results(cluster.state, job.uid, 1, 1)] == [1]
    assert [row.start for _, row in results(cluster.state, job.uid, 1, 9)] == [1, 2]
    assert results(cluster.state, 999, 0, 9) == []


def test_runs_of_a_bit_set():
    assert list(runs(0b1011_0011, 10)) == [(10, 12), (14, 16), (17, 18)]
    assert list(runs(0, 10)) == []
    assert list(runs((1 << 512) - 1, 5)) == [(5, 517)]
