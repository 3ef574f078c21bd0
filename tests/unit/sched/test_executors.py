"""Executors come, go, and are lost; told as stories."""

import pytest
from msgspec.structs import replace

from tests.unit.sched.support import Cluster
from tiflow.errors import (
    AlreadyExists,
    InvalidArgument,
    ResourceExhausted,
)
from tiflow.sched import executors
from tiflow.sched.commands import (
    ExpireExecutor,
    RegisterExecutor,
)
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    AMOUNT_MAX,
    LOST_MAX,
    JobState,
    TaskState,
)
from tiflow.sched.views import results


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# Losing executors.


def test_what_runs_on_an_executor_that_expires_waits_again_at_once(cluster):
    job, executor = cluster.submit(count=5), cluster.register()
    cluster.place(job, executor, 0, 5)

    assert cluster.apply(ExpireExecutor(executor.uid, executor.incarnation)) == 5

    assert cluster.task(job, 4) == (TaskState.WAITING, 2)
    assert cluster.state.out(executor.uid) == 0


def test_an_expiry_of_an_older_incarnation_is_void(cluster):
    job = cluster.submit()
    old, new = cluster.register(boot_id="1"), cluster.register(boot_id="2")
    cluster.place(job, new, 0, 1)

    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    assert cluster.state.executors[new.uid].alive
    assert cluster.task(job)[0] is TaskState.PLACED


def test_a_new_process_of_an_executor_ends_what_the_old_one_had(cluster):
    job, old = cluster.submit(), cluster.register(boot_id="1")
    placement = cluster.place(job, old, 0, 1)

    new = cluster.register(boot_id="2")

    assert cluster.task(job) == (TaskState.WAITING, 2)
    assert new.incarnation > old.incarnation
    assert cluster.event(placement, "succeeded") == 1, "the old process has lost its say"


def test_what_an_executor_says_was_used_can_be_kept_however_much_it_is(cluster):
    job, executor = cluster.submit(count=3), cluster.register(slots=3)
    placement = cluster.place(job, executor, 0, 3)
    for index in range(3):
        cluster.event(placement, "succeeded", index, index + 1, cpu_us=(1 << 64) - 1)

    restored = Machine()
    restored.restore(b"".join(cluster.machine.snapshot()))

    assert restored.state.groups[job.uid, "g"].cpu_us == AMOUNT_MAX


def test_registering_twice_is_registering_once(cluster):
    assert cluster.register() == cluster.register()


def test_a_process_whose_lease_ran_out_can_come_back(cluster):
    old = cluster.register()
    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    new = cluster.register()

    assert new.alive
    assert new.incarnation > old.incarnation


def test_a_name_is_taken_only_while_its_executor_is_alive(cluster):
    old = cluster.register("e")
    newcomer = RegisterExecutor("other uid", "b", "e", "h:1", 1)

    with pytest.raises(AlreadyExists, match="e is alive on e:1"):
        cluster.apply(newcomer)
    cluster.apply(ExpireExecutor(old.uid, old.incarnation))

    assert cluster.apply(newcomer).alive


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"uid": ""}, "uid: 0"),
        ({"boot_id": ""}, "boot_id: 0"),
        ({"name": "a b"}, "name: 'a b'"),
        ({"slots": 0}, "slots: 0 is not in 1 to 10000"),
        ({"labels": {"": "x"}}, "labels: ''"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "labels: number of them: 65 is not in 0 to 64"),
        ({"labels": {"zone": "x" * 257}}, "labels.zone: characters: 257 is not in 0 to 256"),
        ({"version": "1" * 129}, "version: characters: 129 is not in 0 to 128"),
        ({"address": "x" * 301}, "address: 301 characters"),
        ({"address": ""}, "address: empty"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(fields, message):
    good = RegisterExecutor("u", "b", "e", "h:1", 1)

    with pytest.raises(InvalidArgument, match=message):
        executors.validate_registration(replace(good, **fields))


def test_a_task_that_is_lost_too_often_fails(cluster):
    job = cluster.submit()
    for attempt in range(1, LOST_MAX + 1):
        assert cluster.stands(job) is not JobState.FAILED
        executor = cluster.register(boot_id=str(attempt))
        cluster.place(job, executor, 0, 1, attempt=attempt)
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert cluster.stands(job) is JobState.FAILED
    assert "lost 5 times with its executor; the last was e" in results(cluster.state, job.uid, 0, 1)[0][1].error


def test_dead_executors_are_forgotten_oldest_first_when_there_are_many(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.state.EXECUTORS_DEAD_MAX", 2)
    found = [cluster.register(name) for name in "abcd"]

    for executor in found:
        cluster.apply(ExpireExecutor(executor.uid, executor.incarnation))

    assert list(cluster.state.executors) == ["uid-c", "uid-d"]


def test_when_all_executors_are_there_one_can_still_restart(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.executors.EXECUTORS_MAX", 1)
    cluster.register("a", boot_id="1")

    with pytest.raises(ResourceExhausted, match="1 executors are alive"):
        cluster.register("b")
    assert cluster.register("a", boot_id="2").alive


def test_there_are_only_so_many_jobs(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.sched.jobs.JOBS_MAX", 1)
    cluster.submit("a")

    with pytest.raises(ResourceExhausted, match="1 jobs exist; delete some"):
        cluster.submit("b")
