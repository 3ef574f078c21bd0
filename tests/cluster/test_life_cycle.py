"""Pausing, trying again and failing in time, on a cluster of real processes."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from tests.cluster.harness import SLOWDOWN, Cluster, eventually
from tests.cluster.work import marks
from tiflow.sched.model import Command, GroupSpec, JobSpec, RetryPolicy

WORK = [str(Path(marks.__file__).parent)]
ONCE = RetryPolicy(attempts_max=1)

NewCluster = Callable[..., Cluster]


def test_a_paused_job_starts_nothing_until_it_is_resumed(cluster: Cluster, tmp_path: Path):
    client, gate = cluster.client(), tmp_path / "gate"
    job = client.run_python("marks:gated", [str(gate)] * 12, path=WORK, id="pausable")
    eventually(lambda: [task.state for task in job.tasks()].count("running") == 2)

    assert "pausable is Paus" in cluster.cli("job", "pause", "pausable", check=True).stdout
    assert job.pause().state in ("Pausing", "Paused")
    gate.touch()
    eventually(lambda: job.info().state == "Paused")
    paused = job.info()
    assert client.run_command(["true"]).wait(timeout_s=10).state == "Finished", "others go on"

    assert job.info().succeeded == paused.succeeded < 12
    assert paused.waiting == (f"main: {12 - paused.succeeded} of 12 tasks wait: the job is paused",)
    shown = cluster.cli("job", "resume", "pausable", "--json", check=True)
    assert json.loads(shown.stdout)["state"] == "Running"
    assert job.wait(timeout_s=20).succeeded == 12


def test_a_paused_job_and_one_that_waits_for_a_retry_can_be_canceled(cluster: Cluster):
    client = cluster.client()
    slow = RetryPolicy(backoff_ms=60_000, backoff_ms_max=60_000)
    paused = client.run_python("marks:slow", [0.2] * 50, path=WORK, id="paused")
    paused.pause()
    eventually(lambda: paused.info().state == "Paused")
    backing_off = client.run_python("marks:fail", ["x"], path=WORK, retry=slow)
    eventually(lambda: "the next retry is due" in "".join(backing_off.info().waiting))

    for job in (paused, backing_off):
        assert job.cancel().state == "Canceled"
    client.delete("paused")
    assert client.run_command(["true"], id="paused").wait(timeout_s=10).state == "Finished"


def test_a_cancel_ends_by_force_what_ignores_it_also_when_the_leader_dies_or_the_executor_hangs(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(executors=1, slots=2, master_config={"keepalive-ttl": "3s", "keepalive-interval": "300ms"})
    client = cluster.client()
    grace_s, lease_s = 0.5, 3 * 1.1 + 0.5

    def seconds_to_cancel(then: Callable[[], object] = lambda: None) -> float:
        ready = Path(mkdtemp(dir=tmp_path))
        ignores = Command(("sh", "-c", "trap '' TERM; : >\"$0\"; while :; do sleep 0.1; done", f"{ready}/{{index}}"))
        group = GroupSpec("main", ignores, count=2, grace_ms=int(grace_s * 1_000))
        job = client.submit(JobSpec("", (group,)))
        eventually(lambda: len(list(ready.iterdir())) == 2)
        began = time.monotonic()
        job.cancel()
        then()
        assert job.wait(timeout_s=30).state == "Canceled"
        return time.monotonic() - began

    assert grace_s < seconds_to_cancel() < grace_s + 1 * SLOWDOWN
    assert seconds_to_cancel(lambda: cluster.kill(cluster.wait_leader())) < grace_s + (1 + 2) * SLOWDOWN
    assert seconds_to_cancel(lambda: cluster.pause("e1")) < lease_s + 1 * SLOWDOWN
    cluster.resume("e1")


def test_what_is_final_is_not_tried_again(cluster: Cluster):
    client = cluster.client()
    command = client.run_command(["sh", "-c", "exit 3"], retry=RetryPolicy(5, 10, final_exit_codes=(3,)))
    python = client.run_python("marks:fail", ["x"], path=WORK, retry=RetryPolicy(5, 10, final_errors=("ValueError",)))
    other = client.run_command(["sh", "-c", "exit 4"], retry=RetryPolicy(3, 10, final_exit_codes=(3,)))

    assert [next(iter(job.results())).attempt for job in (command, python, other)] == [1, 1, 3]


def test_a_job_fails_early_and_what_runs_is_ended(cluster: Cluster):
    client = cluster.client()
    script = "test {index} = 0 && exit 1; sleep 600"
    job = client.run_command(["sh", "-c", script], count=100, retry=ONCE, max_failures=1)

    info = job.wait(timeout_s=15)

    assert (info.state, info.failed, info.canceled) == ("Failed", 1, 99)
    assert info.error == "1 tasks failed (max-failures = 1): exit code 1"


def test_a_job_has_a_budget_of_retries(cluster: Cluster):
    client = cluster.client()
    job = client.run_python("marks:fail", ["x"] * 4, path=WORK, retry=RetryPolicy(100, 1), retries_max=3)

    assert job.wait(timeout_s=15).failed == 4
    assert sorted(result.attempt for result in job.results())[-1] <= 4
    assert sum(result.attempt for result in job.results()) == 4 + 3


def test_a_job_that_takes_too_long_or_waits_too_long_fails(cluster: Cluster, tmp_path: Path):
    (tmp_path / "job.toml").write_text('argv = ["sleep", "600"]\ncount = 5\njob-timeout = "1500ms"\n')
    began = time.monotonic()

    ran = cluster.cli("job", "run", str(tmp_path / "job.toml"), "--id", "late")

    assert ran.returncode == 1
    assert time.monotonic() - began < (1.5 + 6) * SLOWDOWN
    shown = cluster.cli("job", "get", "late", check=True).stdout
    assert "Failed" in shown
    assert "timed out after 1500 ms (job-timeout)" in shown
    queued = cluster.client().run_command(["true"], id="queued", queue_timeout_s=0.5)
    assert queued.wait(timeout_s=10).state == "Finished"


def test_backoffs_and_deadlines_outlive_the_leader(new_cluster: NewCluster):
    backoff = {"initial-interval": "4s", "max-try-time": 2}
    cluster = new_cluster(executors=1, master_config={"job-backoff": backoff})
    client = cluster.client()
    failing = client.run_command(["false"])
    eventually(lambda: failing.info().waiting)
    began = time.monotonic()
    blocking = client.run_command(["sleep", "600"])
    queued = client.run_command(["true"], queue_timeout_s=2.5)
    eventually(lambda: blocking.info().running)

    cluster.kill(cluster.wait_leader())

    assert queued.wait(timeout_s=15).error == "timed out after 2500 ms in which no task was placed (queue-timeout)"
    assert time.monotonic() - began < 2.5 + 2.5 * SLOWDOWN, "a new leader starts no new count"
    blocking.cancel()
    assert failing.wait(timeout_s=15).state == "Failed"
    assert 3.0 < time.monotonic() - began < 4.4 + 2.5 * SLOWDOWN
    assert next(iter(failing.results())).attempt == 2, "as [job-backoff] says"
