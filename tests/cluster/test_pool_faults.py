"""Pools and results when leaders, executors, hosts and clients die."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tiflow
from tests.cluster.harness import REPOSITORY, SLOWDOWN, Cluster, eventually
from tests.cluster.work import marks, pooled
from tests.cluster.work.pooled import notes, slow_square
from tiflow.errors import NotFound
from tiflow.pool import BrokenPool, TaskFailed

WORK = [str(Path(marks.__file__).parent)]
CONFIG = {"keepalive-ttl": "3s", "keepalive-interval": "300ms"}
LONG_S = 60 * SLOWDOWN
SIZES = [1_000 + number for number in range(8)]

NewCluster = Callable[..., Cluster]


class Held:
    """A client that fetches no large result before it may."""

    def __init__(self, cluster: Cluster) -> None:
        self.client = cluster.client()
        self.may = threading.Event()
        fetch = self.client._executors.fetch

        def held(*args: object) -> bytes:
            assert self.may.wait(LONG_S)
            return fetch(*args)  # type: ignore[arg-type]

        self.client._executors.fetch = held  # type: ignore[method-assign,assignment]


def map_of_2000(cluster: Cluster, fault: Callable[[], None]) -> None:
    """A map in whose middle something happens."""
    with cluster.client().executor() as pool:
        results = pool.map(slow_square, range(2_000))
        values = [next(results) for _ in range(300)]

        fault()

        values += results
    assert values == [number * number for number in range(2_000)]


def test_a_map_goes_on_when_the_leader_is_killed(new_cluster: NewCluster):
    cluster = new_cluster(slots=2)

    map_of_2000(cluster, lambda: cluster.kill(cluster.wait_leader()))


def test_a_map_goes_on_when_an_executor_is_killed(new_cluster: NewCluster):
    cluster = new_cluster(slots=2)

    map_of_2000(cluster, lambda: cluster.kill("e1"))


def test_a_pool_goes_on_after_all_masters_were_away(new_cluster: NewCluster):
    cluster = new_cluster(slots=2)

    def fault() -> None:
        for name in cluster.masters:
            cluster.kill(name)
        for name in cluster.masters:
            cluster.restart(name)

    map_of_2000(cluster, fault)


CLIENT = """
import os, sys, tiflow
from tests.cluster.work import pooled
pool = tiflow.Client(os.environ["TIFLOW_MASTER_ADDRS"]).executor(id="orphan", client_ttl_s=2)
futures = [pool.submit(pooled.hold, sys.argv[1], str(number), "/nonexistent") for number in range(10)]
print("submitted", flush=True)
futures[0].result()
"""


def test_the_pool_of_a_client_that_is_killed_ends(new_cluster: NewCluster, tmp_path: Path):
    """Under a leader that has never heard of that client, too."""
    cluster = new_cluster()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TIFLOW_MASTER_ADDRS": cluster.master_addrs}
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(tmp_path / "notes")], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        eventually(lambda: len(notes(tmp_path / "notes")) == 2)

        cluster.kill(cluster.wait_leader())
        process.send_signal(signal.SIGKILL)

    client = cluster.client()
    job = eventually(lambda: (found := client.get("orphan")).ended and found, within_s=30)
    assert job.state == "Failed"
    assert "its client is gone: not heard of for 2000 ms" in job.error
    assert sorted(notes(tmp_path / "notes")) == ["0", "0-stopped", "1", "1-stopped"], "the rest never ran"


def test_a_client_that_was_stopped_for_too_long_hears_that_its_pool_is_gone(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(masters=1, executors=1)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TIFLOW_MASTER_ADDRS": cluster.master_addrs}
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(tmp_path / "notes")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: cluster.client().get("orphan").ended, within_s=30)

        process.send_signal(signal.SIGCONT)

        assert process.wait(LONG_S) == 1
        assert process.stderr is not None
        error = process.stderr.read().splitlines()[-1]  # what it had not sent yet is refused, in other words
        assert re.search(r"BrokenPool: .*orphan.* is Failed.*: not heard of for 2000 ms", error), error


# Results.


def kept_by(cluster: Cluster, executor: str) -> list[Path]:
    return [path for path in files_under(cluster.data_dir(executor) / "results") if "." in path.name]


def files_under(directory: Path) -> list[Path]:
    """As rglob, which raises when a directory goes away while it looks."""
    return [Path(where, name) for where, _, names in os.walk(directory) for name in names]


def test_results_that_were_lost_with_their_host_are_computed_again(new_cluster: NewCluster):
    cluster = new_cluster(master_config=CONFIG)
    held = Held(cluster)
    with held.client.executor() as pool:
        futures = [pool.submit(pooled.blob, size) for size in SIZES]
        eventually(lambda: held.client.get(pool.id).succeeded == len(SIZES))
        assert kept_by(cluster, "e1")

        cluster.kill_host("e1")
        held.may.set()

        assert [len(future.result(LONG_S)) for future in futures] == SIZES


def test_a_job_with_a_lost_result_fails_if_it_says_so(new_cluster: NewCluster):
    cluster = new_cluster(master_config=CONFIG)
    held = Held(cluster)
    job = held.client.run_python("marks:big", [2_560] * 8, path=WORK, on_lost_result="fail")
    with held.client.executor(on_lost_result="fail") as pool:
        futures = [pool.submit(pooled.blob, size) for size in SIZES]
        eventually(lambda: held.client.get(pool.id).succeeded == len(SIZES))
        assert job.wait(timeout_s=LONG_S).state == "Finished"
        assert kept_by(cluster, "e1")

        cluster.kill_host("e1")
        held.may.set()
        outcomes = [future.exception(LONG_S) for future in futures]

        assert any(isinstance(error, TaskFailed | BrokenPool) for error in outcomes)
    results = list(job.results())
    lost = [result for result in results if result.state == "failed"]
    assert lost
    assert all("the result was lost" in result.error or "was lost (on-lost" in result.error for result in lost)
    assert job.info().state == "Failed"
    assert held.client.get(pool.id).state == "Failed"


def test_a_result_that_is_no_longer_where_it_was_kept_is_computed_again(new_cluster: NewCluster):
    cluster = new_cluster(masters=1, executors=1)
    job = cluster.client().run_python("marks:big", [2_560, 2_560], path=WORK)
    job.wait(timeout_s=LONG_S)
    for path in kept_by(cluster, "e1"):
        path.unlink()

    results = list(job.results())

    assert [len(result.value) for result in results] == [2_560, 2_560]
    assert [result.attempt for result in results] == [2, 2]


def test_results_in_a_shared_store_outlive_their_host_and_go_with_their_job(new_cluster: NewCluster, tmp_path: Path):
    store = tmp_path / "store"
    config = {"results": {"store": f"file://{store}"}}
    cluster = new_cluster(master_config=CONFIG, executor_config=config)
    held = Held(cluster)
    held.may.set()
    job = held.client.run_python("marks:big", [2_560] * 6, path=WORK)
    job.wait(timeout_s=LONG_S)
    assert len(files_under(store)) == 6
    assert not kept_by(cluster, "e1")
    cluster.kill_host("e1")

    assert [(len(result.value), result.attempt) for result in job.results()] == [(2_560, 1)] * 6
    with held.client.executor() as pool:
        assert [len(value) for value in pool.map(pooled.blob, SIZES)] == SIZES
    job.delete()

    eventually(lambda: not files_under(store))


def test_a_shared_store_that_lost_a_result_gets_it_again(new_cluster: NewCluster, tmp_path: Path):
    config = {"results": {"store": f"file://{tmp_path}/store"}}
    cluster = new_cluster(masters=1, executors=1, executor_config=config)
    job = cluster.client().run_python("marks:big", [2_560], path=WORK)
    job.wait(timeout_s=LONG_S)
    shutil.rmtree(tmp_path / "store")

    (result,) = job.results()

    assert (len(result.value), result.attempt) == (2_560, 2)


def test_results_go_with_their_job_even_from_executors_that_were_away(new_cluster: NewCluster):
    cluster = new_cluster(masters=1)
    client = cluster.client()
    jobs = [client.run_python("marks:big", [2_560] * 4, path=WORK) for _ in range(2)]
    for job in jobs:
        job.wait(timeout_s=LONG_S)
    assert kept_by(cluster, "e1")
    assert kept_by(cluster, "e2")
    cluster.kill("e2")

    jobs[0].delete()

    stays = {str(jobs[1].uid)}
    eventually(lambda: {path.name for path in (cluster.data_dir("e1") / "results").iterdir()} <= stays)
    cluster.restart("e2")
    eventually(lambda: {path.name for path in (cluster.data_dir("e2") / "results").iterdir()} <= stays, within_s=20)
    assert [len(result.value) for result in jobs[1].results()] == [2_560] * 4
    list(client.run_python("marks:slow", [0.3] * 4, path=WORK).results())  # who is back takes part


def test_a_pool_lets_results_go_while_it_lives(new_cluster: NewCluster):
    cluster = new_cluster(masters=1, executors=1)
    with cluster.client().executor() as pool:
        for _ in range(20):
            assert len(pool.submit(pooled.blob, 2_000).result(LONG_S)) == 2_000
        pool.submit(pooled.square, 1).result(LONG_S)
        eventually(lambda: len(kept_by(cluster, "e1")) < 3)
        job = pool.id
    with pytest.raises(NotFound):
        cluster.client().get(job)
    eventually(lambda: not list((cluster.data_dir("e1") / "results").iterdir()))


def test_a_pool_needs_a_master(new_cluster: NewCluster):
    with pytest.raises(tiflow.errors.Unavailable, match="no master answered"):
        tiflow.Client("127.0.0.1:9", timeout_s=0.5).executor()
