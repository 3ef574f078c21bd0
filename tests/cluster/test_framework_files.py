"""Framework jobs as a user runs them: from a file, or by the client."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.harness import Cluster, eventually
from tiflow.errors import FailedPrecondition

NewCluster = Callable[..., Cluster]

FAKE = """
type = "fake"
attempts = 5

[config]
worker-count = 2
target-tick = 5
tick-interval = "50ms"
"""


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster(masters=1, executors=2, slots=2)


def test_a_job_file_is_run_and_its_members_are_shown(cluster: Cluster, tmp_path: Path):
    file = tmp_path / "fake.toml"
    file.write_text(FAKE)

    done = cluster.cli("job", "run", str(file), "--id", "fake", check=True)

    assert "job fake is Finished: 3 of 3 tasks succeeded" in done.stderr
    assert "'tick': 10" in done.stdout, "what the job master returned"
    info = json.loads(cluster.cli("job", "get", "fake", "--json", check=True).stdout)
    assert (info["type"], [one["name"] for one in info["members"]]) == ("fake", ["master", "worker/0", "worker/1"])
    assert [one["status"]["tick"] for one in info["members"]] == [10, 5, 5]
    values = {(one.group, one.index): one.value["tick"] for one in cluster.client().results("fake")}
    assert values == {("master", 0): 10, ("worker", 0): 5, ("worker", 1): 5}


def test_a_type_that_no_executor_knows_waits_and_says_so(cluster: Cluster):
    client = cluster.client()

    client.run_job("fakee", id="misspelt")

    (reason,) = client.explain("misspelt")
    assert reason.summary == "master: 1 of 1 tasks wait: needs job-type.fakee: 0 of 2 executors have it"
    assert client.cancel("misspelt").state == "Canceled"


def test_a_job_is_paused_and_resumed_with_its_members_and_a_client_has_no_say_in_its_workers(cluster: Cluster):
    client = cluster.client()
    job = client.run_job("fake", {"worker-count": 2, "tick-interval": "50ms"}, id="fake")

    def states() -> list[str]:
        return [member.state for member in client.get("fake").members]

    def ticks() -> int:
        return min(member.status.get("tick", 0) for member in client.get("fake").members)

    eventually(lambda: ticks() > 0, within_s=20)
    assert states() == ["running"] * 3

    job.pause()
    eventually(lambda: job.info().state == "Paused", within_s=20)
    assert states() == ["waiting"] * 3
    before = ticks()
    job.resume()

    eventually(lambda: ticks() > before, within_s=20)
    assert states() == ["running"] * 3
    assert [member.attempt for member in client.get("fake").members] == [2] * 3
    with pytest.raises(FailedPrecondition, match="has a job master, which alone decides"):
        client._masters.call("CancelTasks", cancel_tasks(job.uid), write=True)
    job.cancel()
    assert job.wait(timeout_s=20).state == "Canceled"


def cancel_tasks(uid: int):
    from tiflow.rpc import tiflow_pb2 as pb

    return pb.CancelTasksRequest(uid=uid, group="worker", start=0, stop=2, force=True)
