import pytest

from tests.unit.sched.support import Cluster
from tiflow.master.clients import Clients
from tiflow.sched.commands import CloseGroups, SubmitJob
from tiflow.sched.model import Job, JobSpec


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pool(cluster: Cluster, id: str = "pool", ttl_ms: int = 2_000) -> Job:
    return cluster.apply(
        SubmitJob(JobSpec(id, (), open=True, client_ttl_ms=ttl_ms), f"token of {id}", cluster.now_ms)
    )


def test_a_client_that_is_heard_of_is_there():
    cluster, clock = Cluster(), Clock()
    clients, job = Clients(clock), pool(cluster)
    clients.begin(job)

    clock.now_s += 1.9
    clients.renew(job.uid)
    clock.now_s += 1.9
    assert clients.gone(cluster.state) == []
    assert clients.next_s() == pytest.approx(clock.now_s + 0.1)
    clock.now_s += 0.2

    assert clients.gone(cluster.state) == [job.uid]


def test_a_new_leader_gives_each_client_a_full_ttl():
    cluster, clock = Cluster(), Clock()
    job, other = pool(cluster), cluster.submit("other")
    clients = Clients(clock)

    clients.begin_term(cluster.state)

    clients.renew(other.uid)
    assert clients.next_s() == clock.now_s + 2.0
    clock.now_s += 2.0
    assert clients.gone(cluster.state) == [job.uid]


def test_jobs_that_have_ended_need_no_client():
    cluster, clock = Cluster(), Clock()
    clients, job = Clients(clock), pool(cluster)
    clients.begin(job)
    cluster.apply(CloseGroups(job.uid))
    clock.now_s += 5

    assert clients.gone(cluster.state) == []
    assert clients.next_s() is None, "and is forgotten"
