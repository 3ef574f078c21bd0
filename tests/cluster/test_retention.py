"""Jobs that have left the masters for the database are there as before, for who asks."""

import urllib.request
from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.cluster.harness import Cluster, eventually
from tests.mysql import Server
from tiflow.client import Client
from tiflow.errors import FailedPrecondition, NotFound
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.callers import own_name
from tiflow.sched.model import Command, GroupSpec, JobSpec


def pruned(client: Client) -> int:
    return client.cluster_status().pruned


@pytest.mark.mysql
def test_nobody_notices_that_a_job_has_left(new_cluster: Callable[..., Cluster], mysql: Server):
    url = mysql.create_database(f"tiflow_{uuid4().hex[:12]}")
    config = {"metadata": {"retention": "1s"}}
    cluster = new_cluster(masters=1, executors=1, slots=2, metadata_url=url, master_config=config)
    client = cluster.client()
    values = list(range(700))
    good = client.run_python("operator:neg", values, id="good")
    bad = client.run_python("operator:index", ["no", 1], id="bad")
    command = client.run_command(["true"], count=5, id="command")
    token = uuid4().hex
    spec = JobSpec("repeated", (GroupSpec("main", Command(("true",))),))
    submission = pb.SubmitJobRequest(spec=convert.job_to_proto(spec), token=token, token_at_ms=1_000 * 2**40)
    repeated = client._masters.call("SubmitJob", submission, write=True)
    client.wait("repeated", timeout_s=20)
    before = {id: client.wait(id, timeout_s=20) for id in ("good", "bad", "command")}
    assert [result.value for result in client.results("good")] == [-value for value in values]
    failures = client.failures("bad")
    waiting = client.run_command(["sleep", "60"], id="waiting")

    eventually(lambda: pruned(client) == 4, within_s=20)

    assert client.cluster_status().jobs == {"Running": 1}
    for id, info in before.items():
        now = client.get(id)
        assert (now.uid, now.state, now.groups) == (info.uid, info.state, info.groups)
        assert client.cancel(id).state == info.state, "a job that has ended stays as it is"
    assert client.get("bad").error.endswith(failures[0].error)
    assert [result.value for result in client.results("good")] == [-value for value in values]
    assert good.wait(timeout_s=5).state == "Finished"
    assert client.failures("bad") == failures
    assert bad.tasks()[0].state == "failed"
    assert [result.state for result in command.results()] == ["succeeded"] * 5
    history = [(event.kind, event.by) for event in client.events("good")]
    assert history == [("submitted", own_name()), ("started", ""), ("ended", "")]
    assert [job.id for job in client.list()] == ["waiting", "repeated", "command", "bad", "good"]
    assert [job.id for job in client.list(state="failed")] == ["bad"]
    pages, before_uid = [], 0
    while not pages or before_uid:
        page = client.list(limit=2, before_uid=before_uid)
        pages.append([job.id for job in page])
        before_uid = page.next
    assert [id for page in pages for id in page] == ["waiting", "repeated", "command", "bad", "good"]
    assert client._masters.call("SubmitJob", submission, write=True).uid == repeated.uid, "it does not run again"
    assert pruned(client) == 4

    client.delete("good")
    with pytest.raises(NotFound):
        client.get("good")
    with pytest.raises(NotFound):
        list(good.results())
    with pytest.raises(NotFound):
        client.delete("no-such-job")
    again = client.run_command(["true"], id="good")
    assert again.uid != good.uid
    with pytest.raises(FailedPrecondition):
        client.delete("waiting")
    waiting.cancel()
    assert again.wait(timeout_s=20).state == "Finished"

    shown = client.cluster_status()
    assert (shown.metadata.state, shown.pruned >= 4) == ("available", True)
    assert "left for the database:" in cluster.cli("cluster", "status", check=True).stdout
    assert f"submitted  {own_name()}  2 tasks" in cluster.cli("job", "events", "bad", check=True).stdout
    with urllib.request.urlopen(f"http://{cluster.http_addresses['m1']}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert "tiflow_metadata_available 1.0" in metrics
    assert "tiflow_metadata_lag " in metrics
