"""What a user does with a healthy cluster."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.harness import REPOSITORY, Cluster, eventually
from tests.cluster.work import marks
from tiflow.errors import AlreadyExists, FailedPrecondition, NotFound
from tiflow.jobs.spec import load_job
from tiflow.sched.model import RetryPolicy

WORK = [str(Path(__file__).parent / "work")]
ONCE = RetryPolicy(attempts_max=1)


def test_results_come_back_in_the_order_of_the_items(cluster: Cluster):
    items = [None, 1, -2.5, "three", b"four", [5, [6]], {"seven": 8}]

    job = cluster.client().run_python("marks:echo", items, path=WORK)

    assert [result.value for result in job.results()] == items
    assert job.info().state == "Finished"


def test_ten_thousand_tasks_finish_each_once(cluster: Cluster):
    client = cluster.client()
    job = client.run_python("marks:echo", range(10_000), path=WORK)

    assert [result.value for result in job.results()] == list(range(10_000))
    finishes = [index for ended in client.history(job.id) for index in range(ended.start, ended.stop)]
    assert sorted(finishes) == list(range(10_000))


def test_a_large_result_comes_from_the_executor_that_has_it(cluster: Cluster):
    job = cluster.client().run_python("marks:big", [3 << 20, 256], path=WORK)

    sizes = [len(result.value) for result in job.results()]

    assert sizes == [3 << 20, 256]


def test_a_command_runs_once_per_index_and_its_output_can_be_read(cluster: Cluster, tmp_path: Path):
    client = cluster.client()
    job = client.run_command(
        ["sh", "-c", "echo task {index}; echo $WHO > {index}"], count=3, cwd=str(tmp_path), env={"WHO": "w{index}"}
    )

    assert job.wait(timeout_s=20).state == "Finished"
    assert [(tmp_path / str(index)).read_text() for index in range(3)] == ["w0\n", "w1\n", "w2\n"]
    assert b"".join(chunk.data for chunk in client.logs(job.id, 2)) == b"task 2\n"


def test_what_a_function_prints_is_in_its_log(cluster: Cluster):
    client = cluster.client()
    job = client.run_python("marks:talk", ["a", "b"], path=WORK)
    job.wait(timeout_s=20)

    assert b"".join(chunk.data for chunk in client.logs(job.id, 1, stream="stdout")) == b"said b\n"


def test_a_task_that_fails_is_tried_again_and_then_reported(cluster: Cluster):
    client = cluster.client()
    retry = RetryPolicy(attempts_max=3, backoff_ms=10)

    again = client.run_python("marks:fail_until", [[2]], path=WORK, retry=retry)
    never = client.run_python("marks:fail", ["x"], path=WORK, retry=retry)

    assert [result.value for result in again.results()] == [2]
    result = next(iter(never.results()))
    assert (result.attempt, result.state) == (3, "failed")
    assert "ValueError: no luck with x" in result.error
    assert never.info().state == "Failed"
    assert "no luck" in never.info().error


def test_a_worker_that_dies_fails_its_own_task_only(cluster: Cluster):
    job = cluster.client().run_python("marks:die", [0], path=WORK, retry=ONCE)
    others = cluster.client().run_python("marks:echo", range(50), path=WORK)

    assert "exit code 3" in next(iter(job.results())).error
    assert [result.value for result in others.results()] == list(range(50))


def test_a_task_that_forks_and_lets_its_child_return_harms_nobody(cluster: Cluster, tmp_path: Path):
    client, file = cluster.client(), tmp_path / "marks"

    job = client.run_python("marks:fork", [str(file)] * 30, path=WORK)
    assert all(result.ok for result in job.results())
    others = client.run_python("marks:echo", ["x" * 100] * 20_000, path=WORK)
    assert all(result.ok for result in others.results())

    parents = [line["index"] for line in marks.read(file) if line["event"] == "parent"]
    assert sorted(parents) == list(range(30)), "each ran once, and no child took tasks of the batch"


def test_a_missing_function_is_not_tried_again(cluster: Cluster):
    job = cluster.client().run_python("marks:nothing", [0], path=WORK)

    result = next(iter(job.results()))

    assert result.attempt == 1
    assert "nothing" in result.error


def test_a_task_that_takes_too_long_is_ended(cluster: Cluster):
    client = cluster.client()
    python = client.run_python("marks:slow", [60], path=WORK, timeout_s=0.3, retry=ONCE)
    command = client.run_command(["sleep", "60"], timeout_s=0.3, retry=ONCE)

    assert python.wait(timeout_s=15).state == "Failed"
    assert command.wait(timeout_s=15).state == "Failed"
    assert "timed out" in python.info().error


@pytest.mark.parametrize("kind", ["python", "command"])
def test_a_job_that_is_canceled_ends_within_its_grace(cluster: Cluster, kind: str):
    client = cluster.client()
    if kind == "python":
        job = client.run_python("marks:slow", [600] * 10, path=WORK)
    else:
        job = client.run_command(["sh", "-c", "trap '' TERM; sleep 600"], count=10)
    eventually(lambda: job.info().running == 2)

    began = time.monotonic()
    job.cancel()
    state = job.wait(timeout_s=15).state

    assert state == "Canceled"
    assert time.monotonic() - began < 5 + 1 + 2, "grace_ms is 5 s by default"


def test_an_id_is_taken_until_its_job_is_deleted(cluster: Cluster):
    client = cluster.client()
    job = client.run_command(["sleep", "0.5"], id="taken")

    with pytest.raises(AlreadyExists):
        client.run_command(["true"], id="taken")
    with pytest.raises(FailedPrecondition):
        client.delete("taken")
    job.wait(timeout_s=10)
    client.delete("taken")
    with pytest.raises(NotFound):
        client.get("taken")
    assert client.run_command(["true"], id="taken").wait(timeout_s=10).state == "Finished"


def test_every_master_answers_what_only_the_leader_knows(cluster: Cluster):
    job = cluster.client().run_command(["true"])
    job.wait(timeout_s=10)

    for name in cluster.masters:
        listed = cluster.cli("--master-addrs", cluster.addresses[name], "job", "get", job.id, "--json", check=True)
        assert json.loads(listed.stdout)["state"] == "Finished"


def test_a_job_file_is_run_and_followed_to_its_end(cluster: Cluster, tmp_path: Path):
    (tmp_path / "double.py").write_text("def double(item):\n    return 2 * item\n")
    (tmp_path / "job.toml").write_text('type = "python"\nfunction = "double:double"\nitems = [1, 2, 3]\n')
    output = tmp_path / "out.jsonl"

    cluster.cli("job", "run", str(tmp_path / "job.toml"), "--id", "doubles", "--output", str(output), check=True)

    assert [json.loads(line)["value"] for line in output.read_text().splitlines()] == [2, 4, 6]
    shown = cluster.cli("job", "list", "--json", check=True)
    assert "doubles" in [job["id"] for job in json.loads(shown.stdout)]


def test_raft_status_shows_all_masters_and_one_leader(cluster: Cluster):
    shown = json.loads(cluster.cli("raft", "status", "--json", check=True).stdout)

    roles = sorted(master["role"] for master in shown["masters"])
    assert roles == ["follower", "follower", "leader"]
    assert len({master["cluster_id"] for master in shown["masters"]}) == 1


EXAMPLES = sorted((REPOSITORY / "examples").glob("*.toml"))
WITH_JOB_MASTERS = [path for path in EXAMPLES if "[config]" in path.read_text()]


@pytest.mark.parametrize("example", [path.name for path in EXAMPLES if path not in WITH_JOB_MASTERS])
def test_every_example_runs(cluster: Cluster, example: str):
    done = cluster.cli("job", "run", str(REPOSITORY / "examples" / example), "--json", check=True)

    assert json.loads(done.stdout)["state"] == "Finished"


def test_every_example_of_a_long_running_job_runs(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(masters=1, executors=1, slots=10)
    jobs = [cluster.client().submit(load_job(str(path))) for path in WITH_JOB_MASTERS]

    assert len(jobs) >= 2
    assert [job.wait(timeout_s=120).state for job in jobs] == ["Finished"] * len(jobs)
