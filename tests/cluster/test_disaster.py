"""All masters' disks are lost, and the metadata database is not."""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.cluster.harness import Cluster, eventually
from tests.cluster.test_outage import metadata
from tests.mysql import Server
from tiflow.errors import NotFound
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc

#: tells that it ran, and goes on only once the file is there
MARK = """
import os, sys, time
open(sys.argv[1], 'a').write('x')
while not os.path.exists(sys.argv[2]): time.sleep(0.05)
"""


def lose_all_disks(cluster: Cluster) -> None:
    for name in cluster.masters:
        cluster.signal(name, signal.SIGSTOP)  # or the others would elect one meanwhile
    for name in cluster.masters:
        cluster.kill(name)
        shutil.rmtree(cluster.data_dir(name))


def restore(cluster: Cluster) -> None:
    for name in cluster.masters:
        cluster._processes[name].argv = [*cluster._processes[name].argv, "--restore-from-metadata"]
        cluster.restart(name)
    cluster.wait_leader(within_s=40)


def logs(cluster: Cluster) -> str:
    return "".join(cluster.log(name) for name in cluster.masters)


@pytest.mark.mysql
def test_a_new_cluster_takes_over_the_jobs(new_cluster: Callable[..., Cluster], own_server: Server, tmp_path: Path):
    """And waits for the database, which is away at first."""
    own_server.start()
    url = own_server.create_database("disaster")
    config = {"keepalive-ttl": "3s"}
    cluster = new_cluster(masters=3, executors=1, slots=2, metadata_url=url, master_config=config)
    client = cluster.client()
    ran, go = tmp_path / "ran", tmp_path / "go"
    done = client.run_python("operator:neg", [1, 2, 3], id="done")
    assert [result.value for result in done.results()] == [-1, -2, -3]
    half = client.run_command([sys.executable, "-c", MARK, str(ran), str(go)], id="half")
    eventually(ran.exists)
    client.checkpoints("half", attempt=3).put("epoch", b"7")
    client.run_command(["sleep", "0.3"], count=5, id="paused")
    client.pause("paused")
    client.run_command(["sleep", "60"], count=5, id="canceled")
    client.cancel("canceled")
    client.run_command(["true"], id="gone")
    client.wait("gone", timeout_s=20)
    client.delete("gone")
    lost_id = client.cluster_status().cluster_id
    eventually(lambda: metadata(client).state == "available" and metadata(client).behind == 0, within_s=30)

    lose_all_disks(cluster)
    own_server.kill()
    restore(cluster)
    eventually(lambda: "restore_waits_for_the_database" in logs(cluster), within_s=30)
    own_server.start()

    eventually(lambda: "restored_from_metadata" in logs(cluster), within_s=30)
    eventually(lambda: client.cluster_status().metadata.state == "available", within_s=30)
    assert client.cluster_status().cluster_id != lost_id
    assert [result.value for result in client.results("done")] == [-1, -2, -3]
    assert client.get("done").uid == done.uid
    assert client.get("half").uid > half.uid + 1_000_000
    assert client.get("paused").state == "Paused"
    with pytest.raises(NotFound):
        client.get("gone")
    cluster.wait_executors(1, within_s=30)
    eventually(lambda: len(ran.read_text()) == 2, within_s=40)
    assert client.checkpoints("half", attempt=1).get("epoch") == b"7", "attempts begin anew"
    go.write_text("")
    assert client.wait("half", timeout_s=40).state == "Finished"
    assert len(ran.read_text()) == 2, "it ran again, and once"
    assert client.wait("canceled", timeout_s=20).state == "Canceled"
    client.resume("paused")
    assert client.wait("paused", timeout_s=20).state == "Finished"
    kinds = [event.kind for event in client.events("half")]
    assert kinds == ["submitted", "started", "restored", "started", "ended"]
    assert client.run_command(["true"]).wait(timeout_s=20).state == "Finished"

    leader = cluster.wait_leader()
    cluster.kill(leader)
    cluster.restart(leader)  # it still says --restore-from-metadata
    cluster.wait_leader()
    assert client.get("half").state == "Finished"
    eventually(lambda: metadata(client).state == "available" and metadata(client).behind == 0, within_s=30)


def test_a_running_cluster_is_backed_up_and_restored_as_another(new_cluster: Callable[..., Cluster], tmp_path: Path):
    one = new_cluster(masters=3, executors=1)
    client = one.client()
    client.run_python("operator:neg", [1, 2], id="done").wait(timeout_s=20)
    client.run_command(["sleep", "60"], count=2, id="running")
    eventually(lambda: client.get("running").running)
    file = str(tmp_path / "online.backup")
    follower = next(name for name in one.masters if name != one.wait_leader())
    asked = one.addresses[follower]
    shown = one.cli("cluster", "backup", file, "--master-addrs", asked, "--json", check=True).stdout
    again = one.cli("cluster", "backup", file)
    assert (again.returncode, "name another file" in again.stderr) == (4, True)
    client.run_command(["true"], id="later")
    assert json.loads(shown)["jobs"] == 2

    two = Cluster(masters=1, executors=0)
    for name, address in two.addresses.items():
        where = ["--data-dir", str(two.data_dir(name)), "--advertise-addr", address, "--peers", two.master_addrs]
        two.cli("cluster", "restore", file, *where, check=True)
    with two:
        clone = two.client()
        assert clone.cluster_status().cluster_id != client.cluster_status().cluster_id
        assert [result.value for result in clone.results("done")] == [-1, -2]
        with pytest.raises(NotFound):
            clone.get("later")
        assert clone.get("running").uid == client.get("running").uid
        # the executor of the first cluster has not noticed anything
        assert [(executor.state, executor.running) for executor in client.executors()] == [("alive", 1)]
        refuses_strangers(two.master_addrs)
        assert "stray" not in [executor.name for executor in clone.executors()]
        two.add_executor("e9")
        clone.cancel("running")
        assert clone.run_command(["true"], id="new").wait(timeout_s=30).state == "Finished"
    assert client.get("running").state == "Running"
    client.cancel("running")
    client.wait("running", timeout_s=20)


def refuses_strangers(address: str) -> None:
    hello = pb.Hello(uid="u", boot_id="b", name="stray", address="127.0.0.1:1", slots=1, cluster_id="other")
    with grpc.insecure_channel(address) as channel:
        for incarnation, gone in ((0, False), (7, False), (7, True)):
            hello.incarnation, hello.gone = incarnation, gone
            answer = next(rpc.SessionsStub(channel).Session(iter([pb.ExecutorMessage(hello=hello)]), timeout=10))
            assert answer.WhichOneof("body") == "refused"
            assert "the executor is of other" in answer.refused.reason
