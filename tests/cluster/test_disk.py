"""Disks that are full, that fail, and that hang, under real masters: what was acknowledged stays."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import strace
from tests.cluster.harness import Cluster, eventually
from tests.cluster.submissions import Submissions, assert_all_are_there
from tests.cluster.volumes import MIB, Ballast, small_disks
from tiflow.errors import NoSpace, TiflowError

NewCluster = Callable[..., Cluster]
Disks = dict[str, Ballast]
MASTERS = ["m1", "m2", "m3"]
RESERVE = {"raft": {"disk-reserve-bytes": 8 * MIB}}


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """A small file system for each master below `tmp_path`. Asked for first, so that it outlives the cluster."""
    with small_disks(tmp_path, MASTERS, 32 * MIB) as disks:
        yield disks


def journals(cluster: Cluster, name: str) -> list[Path]:
    return sorted((cluster.data_dir(name) / "raft").glob("journal-*.log"))


def catch_up(cluster: Cluster, name: str) -> None:
    """Wait until a master has applied what any of them has applied by now; they may go on meanwhile."""
    applied = max(status.applied_index for status in cluster.status().values())

    def caught_up() -> bool:
        statuses = cluster.status()
        return name in statuses and statuses[name].applied_index >= applied

    eventually(caught_up)


def test_a_leader_whose_disk_is_nearly_full_gives_the_lead_away(
    disks: Disks, new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(executors=0, data_dir=tmp_path, master_config=RESERVE)
    submissions = Submissions(cluster.client())
    submissions.more()
    old = cluster.wait_leader()

    disks[old].leave(4 * MIB)
    cluster.wait_leader(other_than=old)
    submissions.more()

    assert cluster.status()[old].disk == "low"
    assert "low: " in cluster.cli("raft", "status", check=True).stdout
    disks[old].remove()
    eventually(lambda: cluster.status()[old].disk == "ok")
    assert_all_are_there(cluster, submissions)


def test_masters_that_all_have_no_room_say_so_and_go_on_by_themselves(
    disks: Disks, new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(executors=1, data_dir=tmp_path, master_config=RESERVE | {"keepalive-ttl": "3s"})
    client = cluster.client(timeout_s=3.0)
    running = client.run_command(["sleep", "8"])
    eventually(lambda: running.info().running == 1)
    submissions = Submissions(client)
    submissions.more()

    for disk in disks.values():
        disk.leave(4 * MIB)
    eventually(lambda: all(status.disk == "low" for status in cluster.status().values()))
    leader = cluster.wait_leader()

    def refusal() -> str:
        with pytest.raises(TiflowError) as caught:
            client.run_command(["true"])
        return str(caught.value) if caught.type is NoSpace else ""

    text = eventually(refusal, within_s=20, retry=())
    assert str(cluster.data_dir(leader)) in text or "data-dir" in text
    assert "8,388,608 are needed" in text
    status = cluster.cli("raft", "status")
    assert (status.returncode, "takes no commands" in status.stderr) == (1, True)
    assert cluster.cli("job", "list", check=True).stdout, "reads go on"
    for disk in disks.values():
        disk.remove()

    submissions.more()
    assert_all_are_there(cluster, submissions)
    assert running.wait(timeout_s=30).state == "Finished"
    assert "lease_lost" not in cluster.log("e1")


def test_a_disk_that_is_full_in_the_middle_of_a_write_loses_nothing(new_cluster: NewCluster):
    strace.require()
    cluster = new_cluster(executors=0)
    submissions = Submissions(cluster.client())
    submissions.more()
    old = cluster.wait_leader()

    with strace.inject(cluster.pid(old), "pwrite64", "error=ENOSPC", journals(cluster, old)):
        cluster.wait_leader(other_than=old)
        submissions.more()
        eventually(lambda: cluster.status()[old].disk == "full", retry=(KeyError, AssertionError))

    eventually(lambda: cluster.status()[old].disk == "ok")
    catch_up(cluster, old)
    assert "raft_disk_full" in cluster.log(old)
    assert_all_are_there(cluster, submissions)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("pwrite64", "EIO", "Input/output error"),
        ("fdatasync", "EIO", "Input/output error"),
        ("fdatasync", "ENOSPC", "No space left on device"),
    ],
)
def test_a_disk_that_fails_ends_its_master_and_a_restart_works(
    new_cluster: NewCluster, call: str, error: str, words: str
):
    strace.require()
    cluster = new_cluster(executors=0)
    submissions = Submissions(cluster.client())
    submissions.more()
    old = cluster.wait_leader()

    with strace.inject(cluster.pid(old), call, f"error={error}:when=1", journals(cluster, old)):
        assert cluster.wait(old) == 5
    cluster.wait_leader(other_than=old)
    submissions.more()

    message = cluster.log(old).strip().splitlines()[-1]
    assert message.startswith(f"tiflow: error: data-dir {cluster.data_dir(old)}: {words}"), message
    cluster.restart(old)
    catch_up(cluster, old)
    assert_all_are_there(cluster, submissions)


def test_a_leader_whose_fsync_hangs_is_replaced_before_it_returns(new_cluster: NewCluster):
    strace.require()
    cluster = new_cluster(executors=0)
    submissions = Submissions(cluster.client())
    submissions.more()
    old = cluster.wait_leader()

    with strace.inject(cluster.pid(old), "fdatasync", "delay_enter=60000000", journals(cluster, old)):
        cluster.wait_leader(other_than=old)
        submissions.more()
        assert "raft_disk_silent" in cluster.log(old)

    catch_up(cluster, old)
    assert_all_are_there(cluster, submissions)
