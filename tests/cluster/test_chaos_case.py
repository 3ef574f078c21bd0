"""`python -m tiflow.chaos` against a cluster that is hurt meanwhile."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.harness import REPOSITORY, SLOWDOWN, Cluster, eventually
from tests.ports import free_port

NewCluster = Callable[..., Cluster]


def start(cluster: Cluster, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TIFLOW_MASTER_ADDRS": cluster.master_addrs, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "tiflow.chaos", "--addr", f"127.0.0.1:{free_port()}", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_all_counts_are_exact_though_a_leader_and_an_executor_die(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(executors=2, slots=4, metadata_url=f"sqlite:///{tmp_path / 'metadata.db'}")
    with start(cluster, "--duration", "1s", "--pause", "60ms", "--workers", "2", "--seed", "1855") as running:
        try:
            eventually(lambda: len(cluster.client().list(state="Running")) == 2, within_s=20)
            leader = cluster.wait_leader()
            cluster.kill(leader)
            cluster.wait_leader(other_than=leader)
            cluster.restart(leader)
            cluster.kill("e1")
            cluster.restart("e1")
            out, err = running.communicate(timeout=90 * SLOWDOWN)
        finally:
            running.kill()

    assert (running.returncode, err) == (0, "")
    assert "\nall exact: " in out
    assert not cluster.client().list(), "what was right is deleted"
