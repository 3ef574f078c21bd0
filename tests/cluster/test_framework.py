"""Job masters and workers on real clusters: whatever dies, the workers of `fake` count exactly.

Each worker counts the changes of its key in a source outside of the cluster. After each fault the source goes on, and
every worker must come to have its last value and exactly its count.
"""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import json

from tests.cluster.fake_job import WORKERS, FakeJob
from tests.cluster.harness import SLOWDOWN, Cluster, eventually
from tests.mysql import Server

OUTAGE_S = float(os.environ.get("TIFLOW_OUTAGE_S", "4"))
IN_CHARGE_S = 2.0

NewCluster = Callable[..., Cluster]


def test_counts_are_exact_whatever_dies(new_cluster: NewCluster, tmp_path: Path):
    # one database of all masters: in it are the checkpoints
    url = f"sqlite:///{tmp_path / 'metadata.db'}"
    cluster = new_cluster(executors=3, slots=3, metadata_url=url)
    with FakeJob(cluster) as job:
        job.wait_running()
        job.assert_exact()
        begun = job.attempts()

        leaders_come_and_go(cluster, job)
        assert job.attempts() == begun, "no member is restarted by what happens to masters"

        its_process_dies(job)
        its_executor_dies(cluster, job)
        each_executor_is_restarted(cluster, job)
        everything_is_stopped_and_started(cluster, job)
        assert not {name: member.error for name, member in job.members().items() if name != "master" and member.error}


def leaders_come_and_go(cluster: Cluster, job: FakeJob) -> None:
    for name in cluster.masters:
        cluster.kill(name, signal.SIGTERM)
        cluster.restart(name)
        wait_masters(cluster)
        job.assert_exact()
    cluster.cli("raft", "transfer", check=True)
    job.assert_exact()
    leader = cluster.wait_leader()
    cluster.kill(leader)
    cluster.wait_leader(other_than=leader)
    job.assert_exact()
    cluster.restart(leader)
    wait_masters(cluster)


def wait_masters(cluster: Cluster) -> None:
    """Until all are up: two that are away at a time would cost the quorum, and with it the leases."""
    eventually(lambda: len(cluster.status()) == len(cluster.masters), within_s=20)
    cluster.wait_leader()


def its_process_dies(job: FakeJob) -> None:
    """Of the job master: the workers do not notice."""
    before = job.attempts()
    job.kill_process("master")
    eventually(lambda: job.attempts()["master"] > before["master"] and job.all_run(), within_s=20)
    job.assert_exact()
    assert job.attempts() == before | {"master": before["master"] + 1}


def its_executor_dies(cluster: Cluster, job: FakeJob) -> None:
    """Of the job master: those of the workers that are elsewhere do not notice."""
    before = job.attempts()
    host = job.executor_of("master")
    beside = {name for name, member in job.members().items() if member.executor == host}
    assert len(beside) < len(before), "some are elsewhere"
    cluster.kill(host)
    began_s = time.monotonic()
    eventually(lambda: job.attempts()["master"] > before["master"] and job.is_in_charge(), 20, every_s=0.02)
    took_s = time.monotonic() - began_s
    job.assert_exact()
    after = job.attempts()
    assert {name for name in before if after[name] != before[name]} == beside
    assert took_s < IN_CHARGE_S * SLOWDOWN * 2, "generous: others may be at work on this machine"
    cluster.restart(host)
    cluster.wait_executors(len(cluster.executors))


def each_executor_is_restarted(cluster: Cluster, job: FakeJob) -> None:
    for name in cluster.executors:
        cluster.kill(name, signal.SIGTERM)
        cluster.restart(name)
        cluster.wait_executors(len(cluster.executors))
        job.assert_exact()


def everything_is_stopped_and_started(cluster: Cluster, job: FakeJob) -> None:
    for sig in signal.SIGTERM, signal.SIGKILL:
        for name in (*cluster.executors, *cluster.masters):
            cluster.signal(name, sig)
        for name in (*cluster.executors, *cluster.masters):
            cluster.wait(name)
        for name in (*cluster.masters, *cluster.executors):
            cluster.restart(name)
        cluster.wait_leader()
        job.assert_exact()


@pytest.mark.mysql
def test_counts_are_exact_after_the_database_was_away(new_cluster: NewCluster, own_server: Server):
    own_server.start()
    url = own_server.create_database("tiflow")
    cluster = new_cluster(executors=3, slots=3, metadata_url=url)
    with FakeJob(cluster) as job:
        job.wait_running()
        job.assert_exact()
        before = job.attempts()

        own_server.kill()
        away_s = time.monotonic()
        job.change()
        eventually(job.counts_are_right, within_s=20)  # only the checkpoints wait
        leader = cluster.wait_leader()
        cluster.kill(leader)
        cluster.wait_leader(other_than=leader)
        host = job.executor_of("worker/0")
        beside = {name for name, member in job.members().items() if member.executor == host}
        cluster.kill(host)  # those that were there cannot go on before their checkpoints can be read
        while time.monotonic() - away_s < OUTAGE_S:
            job.change()
            eventually(lambda: job.counts_are_right(but=beside), within_s=20)
        own_server.start()

        job.assert_exact()
        after = job.attempts()
        assert {name for name in before if after[name] != before[name]} == beside
        cluster.restart(leader)
        cluster.restart(host)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """For tests that do not hurt it."""
    with Cluster(masters=3, executors=1, slots=WORKERS + 1) as cluster:
        yield cluster


def test_errors_of_workers_are_told_and_cost_nothing(shared: Cluster):
    with FakeJob(shared, **{"inject-error-interval": "700ms"}) as job:

        def all_failed() -> bool:
            job.change(1)
            workers = [member for name, member in job.members().items() if name != "master"]
            return len(workers) == WORKERS and all(member.attempt > 2 and member.error for member in workers)

        eventually(all_failed, within_s=30)
        assert "InjectedError: after 700ms" in job.members()["worker/0"].error
        job.assert_exact()
        assert job.attempts()["master"] == 1


def test_pause_frees_the_slots_and_resume_goes_on_where_it_was(shared: Cluster):
    with FakeJob(shared) as job:
        job.wait_running()
        job.assert_exact()

        job.handle.pause()
        eventually(lambda: job.handle.info().state == "Paused")
        assert shared.client().run_command(["true"], count=5).wait(timeout_s=20).state == "Finished"
        job.change()
        job.handle.resume()
        eventually(lambda: set(job.attempts().values()) == {2} and job.all_run(), within_s=20)

        job.assert_exact()


def test_a_job_that_reaches_its_targets_ends_with_the_sums(shared: Cluster):
    with FakeJob(shared, **{"target-tick": 20, "target-count": 10, "tick-interval": "20ms"}) as job:
        job.change(10)

        assert job.handle.wait(timeout_s=30).state == "Finished"

        (result,) = [result for result in job.handle.results() if result.group == "master"]
        assert result.value == {"workers": WORKERS, "ended": WORKERS, "tick": 20 * WORKERS, "count": 10 * WORKERS}
        assert {member.state for member in job.members().values()} == {"succeeded"}


def test_a_source_that_was_started_anew_fails_the_job_and_says_why(shared: Cluster):
    with FakeJob(shared) as job:
        job.wait_running()
        job.assert_exact()

        job.start_source_anew()

        assert job.handle.wait(timeout_s=30).state == "Failed"
        error = job.handle.info().error
        assert error.startswith("its job master failed: worker worker/")
        assert error.count("this source was started anew") == 1


def test_routes_and_metrics_are_seen_at_the_masters(shared: Cluster):
    with FakeJob(shared) as job:
        job.wait_running()
        job.assert_exact()

        for address in shared.http_addresses.values():
            url = f"http://{address}/api/v1/jobs/{job.handle.id}/workers"
            with urllib.request.urlopen(url, timeout=10) as response:
                shown = json.decode(response.read())
            assert {name: one["count"] for name, one in shown.items()} == {
                f"worker/{number}": job.changes for number in range(WORKERS)
            }
        metrics = f"http://{shared.http_addresses[shared.wait_leader()]}/metrics"

        def ticks() -> list[str]:
            with urllib.request.urlopen(metrics, timeout=10) as response:
                lines: list[str] = response.read().decode().splitlines()
            return [line for line in lines if line.startswith("tiflow_job_fake_tick{")]

        assert len(ticks()) == WORKERS
        job.handle.cancel()
        eventually(lambda: not ticks())


def test_a_type_that_nobody_knows_waits_and_says_why(shared: Cluster):
    job = shared.client().run_job("nonsense", {}, id="n")

    text = eventually(lambda: shared.cli("job", "explain", job.id).stdout)

    assert "job-type.nonsense" in text
    assert "0 of 1" in text
    job.cancel()
