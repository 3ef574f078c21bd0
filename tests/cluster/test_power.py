"""Power cuts: all masters lose it at one instant, with everything that they had not synced."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import REPOSITORY, Cluster
from tests.cluster.submissions import Submissions, assert_all_are_there
from tests.cluster.volumes import MIB, PowerCut
from tiflow.errors import NotFound

NewCluster = Callable[..., Cluster]
MASTERS = ["m1", "m2", "m3"]
CONFIG = {"raft": {"disk-reserve-bytes": 4 * MIB}}


@pytest.fixture
def power(tmp_path: Path) -> Iterator[PowerCut]:
    """Asked for first, so that it outlives the cluster."""
    power = PowerCut(tmp_path, MASTERS)
    yield power
    power.close()


def cut_power(cluster: Cluster, power: PowerCut) -> None:
    for name in cluster.masters:
        cluster.pause(name)
    power.cut()
    for name in cluster.masters:
        cluster.kill(name, signal.SIGKILL)
    power.restore()
    for name in cluster.masters:
        cluster.restart(name)


def test_a_power_cut_loses_nothing_that_was_acknowledged(power: PowerCut, new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(executors=0, data_dir=tmp_path, master_config=CONFIG)
    submissions = Submissions(cluster.client())
    submissions.more(50)

    cut_power(cluster, power)
    cluster.wait_leader()
    submissions.more()

    assert_all_are_there(cluster, submissions)


def test_masters_that_sync_nothing_are_found_out(power: PowerCut, new_cluster: NewCluster, tmp_path: Path):
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text("import os\nos.fdatasync = lambda fd: None\n")
    environment = {"PYTHONPATH": f"{planted}:{REPOSITORY}"}
    cluster = new_cluster(executors=0, data_dir=tmp_path, master_config=CONFIG, env=environment)
    submissions = Submissions(cluster.client())
    submissions.more(50)

    cut_power(cluster, power)
    cluster.wait_leader()

    with pytest.raises(NotFound):
        assert_all_are_there(cluster, submissions)
