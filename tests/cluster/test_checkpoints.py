"""Checkpoints as a job's master and its workers use them, through whichever master they know."""

from collections.abc import Callable

import pytest

from tests.cluster.harness import Cluster, eventually
from tests.mysql import Server
from tiflow.errors import FailedPrecondition, InvalidArgument, NotFound

pytestmark = pytest.mark.mysql


def test_checkpoints_outlive_the_leader_and_go_with_the_job(new_cluster: Callable[..., Cluster], mysql: Server):
    url = mysql.create_database("checkpoints")
    cluster = new_cluster(masters=3, executors=1, metadata_url=url)
    client = cluster.client()
    job = client.run_command(["sleep", "60"], id="j")
    first = client.checkpoints("j", attempt=1, uid=job.uid)
    first.put("epoch", b"1")
    first.put("shard/0", b"x" * 100_000)
    first.put("shard/1", b"")
    assert first.get("epoch") == b"1"
    assert first.get("no-such-key") is None

    leader = cluster.wait_leader()
    cluster.kill(leader)
    first.put("epoch", b"2")
    second = client.checkpoints("j", attempt=2)
    assert second.get("epoch") == b"2"
    with pytest.raises(FailedPrecondition, match="attempt 1 of the job master has been replaced by attempt 2"):
        first.put("epoch", b"late")
    worker = client.checkpoints("j", attempt=1, holder="worker-0")
    worker.put("worker-0/offset", b"7")
    second.delete("shard/1")
    bystander = client.checkpoints("j")
    assert [(one.key, one.size) for one in bystander.list()] == [
        ("epoch", 1),
        ("shard/0", 100_000),
        ("worker-0/offset", 1),
    ]
    assert [one.key for one in bystander.list("shard/")] == ["shard/0"]
    with pytest.raises(InvalidArgument, match="attempt = 0"):
        bystander.put("epoch", b"3")
    with pytest.raises(NotFound):
        client.checkpoints("other", attempt=1).get("k")

    client.cancel("j")
    client.wait("j", timeout_s=20)
    client.delete("j")
    again = client.run_command(["true"], id="j")
    eventually(lambda: client.checkpoints("j", attempt=1, uid=again.uid).get("epoch") is None)
    with pytest.raises(NotFound):
        client.checkpoints("j", attempt=2, uid=job.uid).put("epoch", b"late")
