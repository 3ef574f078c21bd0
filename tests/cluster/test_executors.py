"""What executors do beside running tasks: measure, keep, tell, and stay within what they have."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Cluster, eventually
from tests.cluster.work import marks

WORK = [str(Path(marks.__file__).parent)]
BURN = "x = bytearray(80 << 20); x[::4096] = x[::4096]; sum(range(2_000_000))"

NewCluster = Callable[..., Cluster]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", path], check=False).returncode:
        assert not os.environ.get("CI"), "CI must not skip"
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_what_tasks_used_is_in_the_job_its_tasks_and_the_metrics(cluster: Cluster):
    client = cluster.client()
    job = client.run_command([sys.executable, "-c", BURN], count=2)
    python = client.run_python("marks:burn", [80] * 2, path=WORK)
    job.wait(timeout_s=30)
    python.wait(timeout_s=30)

    for one in (job, python):
        (group,) = one.info().groups
        assert 0.02 < group.cpu_s < 20
        assert 80 << 20 < group.memory_bytes < 400 << 20
    for task in python.tasks(group="main"):
        assert task.cpu_s is not None
        assert 0.01 < task.cpu_s < 10
        assert task.memory_bytes is not None
        assert task.memory_bytes > 80 << 20
    shown = cluster.cli("job", "get", python.id, "--json", check=True)
    assert json.loads(shown.stdout)["groups"][0]["cpu_s"] > 0.02
    leader = cluster.wait_leader()
    with urllib.request.urlopen(f"http://{cluster.http_addresses[leader]}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("tiflow_tasks_cpu_seconds_total ")]
    assert float(line.split()[1]) > 0.04


def test_results_and_logs_go_with_their_job(cluster: Cluster):
    client = cluster.client()
    job = client.run_python("marks:big", [4_096] * 4, path=WORK)
    talking = client.run_python("marks:talk", ["a"] * 4, path=WORK)
    other = client.run_python("marks:big", [4_096] * 4, path=WORK)
    for one in (job, talking, other):
        assert one.wait(timeout_s=20).state == "Finished"

    def kept(uid: int) -> list[Path]:
        return [path for name in cluster.executors for path in cluster.data_dir(name).glob(f"*/{uid}")]

    assert kept(job.uid)
    assert kept(talking.uid)
    client.delete(job.id)
    client.delete(talking.id)

    eventually(lambda: not kept(job.uid) and not kept(talking.uid))
    assert kept(other.uid)
    assert [len(result.value) for result in other.results()] == [4_096] * 4


def test_what_a_task_wrote_lately_is_read_from_anywhere(cluster: Cluster, tmp_path: Path):
    client = cluster.client()
    go = tmp_path / "go"
    script = f"echo early; sleep 2; echo between; while ! test -e {go}; do sleep 0.1; done; echo late"
    job = client.run_command(["sh", "-c", script])
    eventually(lambda: "between" in cluster.cli("job", "logs", job.id).stdout)
    (task,) = job.tasks()
    log = next(cluster.data_dir(task.executor).glob(f"logs/{job.uid}/main/0.1.out"))
    eventually(lambda: Path(f"{log}.at").exists())

    lately = cluster.cli("job", "logs", job.id, "--task", "0", "--attempt", "1", "--since", "1h", check=True)
    old = log.stat().st_mtime - 3_600
    os.utime(log, (old, old))
    nothing = cluster.cli("job", "logs", job.id, "--since", "10m", check=True)
    go.touch()
    followed = cluster.cli("job", "logs", job.id, "-f", check=True)

    assert lately.stdout == "early\nbetween\n"
    assert nothing.stdout == ""
    assert followed.stdout == "early\nbetween\nlate\n"
    assert cluster.cli("job", "logs", job.id, "--since", "10").returncode == 2


def test_an_executor_whose_disk_is_full_gets_no_tasks_until_there_is_room(small_disk: Path, new_cluster: NewCluster):
    config = {"retention": {"disk-reserve": "4MiB"}}
    cluster = new_cluster(masters=1, executors=1, executor_config=config)
    cluster.add_executor("e2", data_dir=small_disk / "e2")
    cluster.wait_executors(2)
    client, ballast = cluster.client(), small_disk / "ballast"

    ballast.write_bytes(bytes(29 << 20))
    eventually(lambda: {one.name: one.unhealthy for one in client.executors()} == {"e1": "", "e2": "disk full"})
    job = client.run_python("marks:whoami", range(200), path=WORK)
    assert set(results := [result.value for result in job.results()]) == {results[0]}
    assert "unhealthy: disk full" in cluster.cli("executor", "list", check=True).stdout

    ballast.unlink()
    eventually(lambda: not any(one.unhealthy for one in client.executors()))
    more = client.run_python("marks:slow", [0.2] * 4, path=WORK)
    eventually(lambda: {task.executor for task in more.tasks()} >= {"e1", "e2"})
    assert more.wait(timeout_s=20).state == "Finished"


FORGETFUL = """
from tiflow.exec.agent import Agent

assign, forgotten = Agent.assign, []

def forget_the_first(self, assignments, now):
    return assign(self, [one for one in assignments if forgotten or forgotten.append(one)], now)

Agent.assign = forget_the_first
"""


def test_what_an_executor_has_forgotten_is_told_again(new_cluster: NewCluster):
    """As long as its session is open, the leader hears of each task only once: nothing else would tell it."""
    cluster = new_cluster(masters=1, executors=1, master_config={"keepalive-interval": "100ms"})
    cluster.patch("e1", FORGETFUL)
    cluster.restart("e1")
    cluster.wait_executors(1)

    job = cluster.client().run_command(["true"])

    assert job.wait(timeout_s=20).state == "Finished"
    assert "session_disagrees" in cluster.log("m1")
