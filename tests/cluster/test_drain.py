"""Draining executors, and saying why tasks wait, on a cluster of real processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.harness import Cluster, eventually
from tests.cluster.work import marks
from tiflow.sched.model import PlacementPolicy, RetryPolicy

WORK = [str(Path(marks.__file__).parent)]
ONCE = RetryPolicy(attempts_max=1)

NewCluster = Callable[..., Cluster]


def listed(cluster: Cluster, name: str) -> dict[str, Any]:
    executors = json.loads(cluster.cli("executor", "list", "--json", check=True).stdout)
    found: dict[str, Any] = next(one for one in executors if one["name"] == name)
    return found


def where(cluster: Cluster, id: str) -> dict[str, int]:
    """How many tasks of the job are out on each executor."""
    found: dict[str, int] = {}
    for task in cluster.client().tasks(id):
        if task.executor:
            found[task.executor] = found.get(task.executor, 0) + 1
    return found


def test_a_drained_executor_gets_nothing_until_it_is_undrained_whoever_leads_and_however_often_it_starts(
    new_cluster: NewCluster,
):
    cluster = new_cluster(masters=3, executors=2, slots=2)
    client = cluster.client()
    spread = PlacementPolicy(max_per_executor=2)
    job = client.run_python("marks:slow", [600] * 4, path=WORK, placement=spread, id="long")
    eventually(lambda: where(cluster, "long") == {"e1": 2, "e2": 2})

    drained = json.loads(cluster.cli("executor", "drain", "e1", "--json", check=True).stdout)
    assert (drained["state"], drained["running"], drained["drain_left_ms"]) == ("draining", 2, None)
    assert "draining" in cluster.cli("executor", "list", check=True).stdout

    cluster.kill(cluster.wait_leader())
    cluster.wait_leader()
    assert eventually(lambda: listed(cluster, "e1")["connected"])
    assert listed(cluster, "e1")["state"] == "draining", "the next leader knows it"
    cluster.restart("e1")  # all that it ran is lost
    eventually(lambda: listed(cluster, "e1")["connected"] and listed(cluster, "e1")["state"] == "drained")
    eventually(lambda: where(cluster, "long") == {"e2": 2})
    (reason,) = client.explain("long")
    assert (reason.waiting, reason.candidates) == (2, 0)
    assert "1 of 2 are draining" in reason.summary
    shown = cluster.cli("job", "explain", "long", check=True).stdout
    assert "max-per-executor" in shown
    assert reason.summary in shown.replace("\n", " ")

    assert client.undrain("e1").state == "alive"
    eventually(lambda: where(cluster, "long") == {"e1": 2, "e2": 2})
    assert client.explain("long") == ()
    job.cancel()


def test_what_runs_at_the_deadline_is_stopped_and_runs_elsewhere_and_has_not_failed(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(masters=1, executors=2, slots=2)
    client, path = cluster.client(), str(tmp_path / "marks")
    one_each = PlacementPolicy(max_per_executor=1)
    stubborn = client.run_command(
        ["sh", "-c", "trap '' TERM; echo on; sleep 600 & wait; sleep 600"], count=2, retry=ONCE, placement=one_each
    )
    polite = client.run_python("marks:hold", [[path, 600]] * 2, path=WORK, retry=ONCE)
    eventually(lambda: where(cluster, stubborn.id) == {"e1": 1, "e2": 1})
    eventually(lambda: where(cluster, polite.id) == {"e1": 1, "e2": 1})

    done = cluster.cli("executor", "drain", "e1", "--deadline", "1s", "--wait", check=True, timeout_s=60)

    assert "executor e1 is drained; 0 tasks are out on it" in done.stdout
    assert client.drain("e1", deadline_s=3_600).drain_left_ms == 0, "it cannot be put off"
    assert where(cluster, polite.id) == {"e2": 1}
    assert (polite.info().failed, stubborn.info().failed) == (0, 0)
    assert client.undrain("e1").drain is False
    eventually(lambda: where(cluster, polite.id) == {"e1": 1, "e2": 1})
    eventually(lambda: where(cluster, stubborn.id) == {"e1": 1, "e2": 1})
    attempts = sorted(task.attempt for job in (polite, stubborn) for task in client.tasks(job.id))
    assert attempts == [1, 1, 2, 2]
    for job in (polite, stubborn):
        job.cancel()
        assert job.wait(timeout_s=30).state == "Canceled"


def test_an_idle_executor_is_drained_at_once_and_nobody_is_told(cluster: Cluster):
    client = cluster.client()

    assert "is drained" in cluster.cli("executor", "drain", "e1", "--deadline", "0s", "--wait", check=True).stdout
    assert client.run_command(["true"], count=4).wait(timeout_s=20).succeeded == 4
    assert client.executors()[0].running == 0
    assert json.loads(cluster.cli("executor", "undrain", "e1", "--json", check=True).stdout)["state"] == "alive"
    assert client.undrain("e1").state == "alive"
    missing = cluster.cli("executor", "drain", "e9")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "there is no executor e9; `tiflow executor list` shows" in missing.stderr
    wrong = cluster.cli("executor", "drain", "e1", "--deadline", "soon")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert '--deadline = "soon": is not a duration' in wrong.stderr


def test_tasks_wait_for_the_resources_that_they_need(new_cluster: NewCluster):
    cluster = new_cluster(masters=1, executors=2, slots=4, executor_config={"resources": {"gpu": 2, "cpu": "1500m"}})
    client = cluster.client()
    hungry = client.run_python("marks:slow", [0.1] * 8, path=WORK, resources={"gpu": 3}, id="hungry")
    fitting = client.run_python("marks:slow", [600] * 9, path=WORK, resources={"gpu": 1, "cpu": 0.5}, id="fitting")

    eventually(lambda: where(cluster, "fitting") == {"e1": 2, "e2": 2})
    assert client.run_python("marks:echo", [1, 2], path=WORK).wait(timeout_s=20).succeeded == 2, "slots are left"

    reasons = json.loads(cluster.cli("job", "explain", "hungry", "--json", check=True).stdout)
    assert reasons[0]["summary"] == "main: 8 of 8 tasks wait: needs gpu=3: 0 of 2 executors have it"
    assert client.get("fitting").waiting == ("main: 5 of 9 tasks wait: 2 of 2 have no gpu=1 free",)
    capacity = listed(cluster, "e1")["capacity"]
    assert (capacity["cpu"], capacity["gpu"]) == (1_500, 2)
    assert capacity["memory"] > 1 << 20, "that of this machine"
    for job in (hungry, fitting):
        job.cancel()
