"""What is promised when a process dies, hangs, or comes back."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

import tiflow
from tests.cluster.harness import SLOWDOWN, Cluster, eventually
from tests.cluster.work import marks
from tiflow.exec import journal, reporter
from tiflow.rpc import tiflow_pb2 as pb

WORK = [str(Path(marks.__file__).parent)]
TTL_S = 3.0
CONFIG = {"keepalive-ttl": "3s", "keepalive-interval": "300ms"}
LOST_S = TTL_S * 1.1 + 0.5 + 1.0  #: TTL, margin, and a second to place and start

NewCluster = Callable[..., Cluster]


def spans(file: Path) -> dict[tuple[int, int], tuple[float, float]]:
    """(index, attempt) → when it was first and last seen alive."""
    seen: dict[tuple[int, int], tuple[float, float]] = {}
    for line in marks.read(file):
        key = (line["index"], line["attempt"])
        first, _ = seen.get(key, (line["at"], 0.0))
        seen[key] = (first, line["at"])
    return seen


def assert_no_task_ran_twice_at_once(file: Path) -> None:
    by_task: dict[int, list[tuple[int, float, float]]] = {}
    for (index, attempt), (first, last) in spans(file).items():
        by_task.setdefault(index, []).append((attempt, first, last))
    for index, attempts in by_task.items():
        attempts.sort()
        for (one, _, ended), (two, began, _) in pairwise(attempts):
            assert ended < began, f"task {index}: attempt {one} was alive {ended - began:.3f} s into attempt {two}"


def test_a_leader_that_is_killed_restarts_no_task_and_the_next_is_dispatched_at_once(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(slots=2)
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 4.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)

    cluster.kill(cluster.wait_leader())
    killed = time.monotonic()
    assert client.run_command(["true"]).wait(timeout_s=20).state == "Finished"

    assert time.monotonic() - killed < 3.0 * SLOWDOWN
    assert [result.value for result in job.results()] == [1, 1], "the attempts that ran before ran to their end"
    assert set(spans(file)) == {(0, 1), (1, 1)}


def test_the_tasks_of_an_executor_that_is_killed_run_elsewhere_at_once(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster()
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 2.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)
    lost = next(task.index for task in job.tasks() if task.executor == "e1")
    cluster.add_executor("e3")
    cluster.wait_executors(3)

    cluster.kill("e1")
    killed = time.monotonic()
    eventually(lambda: (lost, 2) in spans(file), within_s=20)

    assert time.monotonic() - killed < 2.0 * SLOWDOWN
    assert sorted(result.value for result in job.results()) == [1, 2]
    assert_no_task_ran_twice_at_once(file)


def test_an_executor_that_is_killed_may_be_started_again_at_once(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(executors=1)
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 1.0]], path=WORK)
    eventually(lambda: len(spans(file)) == 1)

    cluster.kill("e1")
    cluster.restart("e1")
    restarted = time.monotonic()
    eventually(lambda: (0, 2) in spans(file), within_s=20)

    assert time.monotonic() - restarted < 3.0 * SLOWDOWN
    assert [result.value for result in job.results()] == [2]
    assert_no_task_ran_twice_at_once(file)


def finished_unheard(cluster: Cluster, client: tiflow.Client, file: Path) -> tiflow.JobHandle:
    """A job of which one task has ended on e1 while no master heard of it: the only one hangs."""
    job = client.run_python("marks:hold", [[str(file), 0.5]], path=WORK)
    eventually(lambda: len(spans(file)) == 1)
    cluster.pause("m1")
    eventually(lambda: any(line["event"] == "end" for line in marks.read(file)))
    path = str(cluster.data_dir("e1") / "journal")
    eventually(lambda: any(event.kind == "succeeded" for batch in journal.read(path)[1] for event in batch.events))
    return job


def test_a_finish_of_which_the_leader_did_not_hear_is_not_repeated_when_the_agent_dies(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(masters=1, executors=1)
    client, file = cluster.client(), tmp_path / "marks"
    job = finished_unheard(cluster, client, file)

    cluster.kill("e1")
    cluster.resume("m1")
    eventually(lambda: {executor.state for executor in client.executors()} == {"gone"})

    assert [result.value for result in job.results()] == [1]
    assert set(spans(file)) == {(0, 1)}


def test_a_finish_of_which_the_leader_did_not_hear_is_handed_over_by_the_next_agent(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(masters=1, executors=1)
    client, file = cluster.client(), tmp_path / "marks"
    job = finished_unheard(cluster, client, file)

    cluster.kill_host("e1")
    cluster.resume("m1")
    cluster.restart("e1")
    cluster.wait_executors(1)

    assert [result.value for result in job.results()] == [1]
    assert set(spans(file)) == {(0, 1)}


def test_the_report_of_an_incarnation_that_is_over_changes_nothing(new_cluster: NewCluster):
    cluster = new_cluster(masters=1, executors=1)
    client = cluster.client()
    (executor,) = client.executors()
    cluster_id = cluster.status()["m1"].cluster_id

    def report(**hello: Any) -> str:
        message = pb.Hello(uid=executor.uid, gone=True, **hello)
        text = reporter.prepared([cluster.addresses["m1"]], message, "", None)
        return reporter.deliver(msgspec.json.decode(text, type=reporter.Report), time.monotonic() + 5)

    for incarnation in (0, executor.incarnation - 1, executor.incarnation + 1):
        assert report(incarnation=incarnation, cluster_id=cluster_id) == "expired"
    assert report(incarnation=executor.incarnation, cluster_id="another").startswith("refused")

    (after,) = client.executors()
    assert (after.state, after.incarnation) == ("alive", executor.incarnation)
    assert client.run_command(["true"]).wait(timeout_s=20).state == "Finished"


def test_a_running_function_that_is_canceled_ends_long_before_its_grace(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(masters=1, executors=1)
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 60.0]], path=WORK)
    eventually(lambda: len(spans(file)) == 1)

    client.cancel(job.id)
    canceled = time.monotonic()

    assert job.wait(timeout_s=20).state == "Canceled"
    assert time.monotonic() - canceled < 1.0 * SLOWDOWN


def test_an_executor_that_drains_gets_nothing_more(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(masters=1, executors=2)
    client, file = cluster.client(), tmp_path / "marks"
    running = client.run_python("marks:hold", [[str(file), 3.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)

    cluster.signal("e1", signal.SIGTERM)
    eventually(lambda: {e.name: e.state for e in client.executors()}["e1"] == "draining")
    more = client.run_python("marks:echo", range(50), path=WORK)
    owners = {task.executor for task in more.tasks() if task.executor}

    assert owners <= {"e2"}
    assert all(result.ok and result.attempt == 1 for result in running.results())
    assert [result.value for result in more.results()] == list(range(50))
    assert cluster.wait("e1") == 0


def test_the_tasks_of_a_host_that_is_gone_run_elsewhere_after_the_lease(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(master_config=CONFIG)
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 2.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)
    lost = next(task.index for task in job.tasks() if task.executor == "e1")

    cluster.kill_host("e1")
    killed = time.monotonic()
    eventually(lambda: (lost, 2) in spans(file), within_s=20)

    assert TTL_S < time.monotonic() - killed < LOST_S * SLOWDOWN
    assert sorted(result.value for result in job.results()) == [1, 2]
    assert_no_task_ran_twice_at_once(file)


def test_an_executor_that_hangs_has_stopped_its_tasks_before_they_start_elsewhere(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(master_config=CONFIG)
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 6.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)

    cluster.pause("e1")
    eventually(lambda: any(attempt == 2 for _, attempt in spans(file)), within_s=20)
    cluster.resume("e1")

    assert sorted(result.value for result in job.results()) == [1, 2]
    assert_no_task_ran_twice_at_once(file)
    cluster.wait_executors(2)


def test_a_leader_that_hangs_is_replaced_and_does_no_harm_when_it_is_back(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(master_config=CONFIG)
    client, file = cluster.client(), tmp_path / "marks"
    old = cluster.wait_leader()
    job = client.run_python("marks:hold", [[str(file), 5.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)

    cluster.pause(old)
    cluster.wait_leader(other_than=old)
    assert client.run_python("marks:echo", range(100), path=WORK).id
    cluster.resume(old)

    assert [result.value for result in job.results()] == [1, 1]
    eventually(lambda: cluster.status()[old].role == "follower")


def test_all_masters_killed_at_once_lose_nothing(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(master_config=CONFIG)
    client, file = cluster.client(), tmp_path / "marks"
    running = client.run_python("marks:hold", [[str(file), 1.5]] * 4, path=WORK)
    finished = client.run_python("marks:echo", range(100), path=WORK)
    eventually(lambda: len(spans(file)) >= 1)

    for name in cluster.masters:
        cluster.kill(name)
    for name in cluster.masters:
        cluster.restart(name)
    cluster.wait_leader()

    assert [result.value for result in finished.results()] == list(range(100))
    assert len([result for result in running.results() if result.ok]) == 4
    assert_no_task_ran_twice_at_once(file)


def test_a_job_goes_on_while_one_process_after_the_other_is_killed(new_cluster: NewCluster):
    cluster = new_cluster(master_config=CONFIG)
    client = cluster.client()
    job = client.run_python("marks:slow", [0.01] * 600, path=WORK)

    for name in (cluster.wait_leader(), "e1"):
        eventually(lambda: job.info().running > 0)
        cluster.kill(name)
        cluster.restart(name)
    results = list(job.results())

    assert [result.index for result in results if result.ok] == list(range(600))
    finishes = [index for ended in client.history(job.id) for index in range(ended.start, ended.stop)]
    assert sorted(finishes) == list(range(600))


def test_results_that_died_with_their_executor_are_computed_again(new_cluster: NewCluster):
    cluster = new_cluster(executors=1, master_config=CONFIG)
    client = cluster.client()
    job = client.run_python("marks:big", [4_096] * 5, path=WORK)
    job.wait(timeout_s=20)

    cluster.kill("e1")
    cluster.add_executor("e2")
    values = [len(result.value) for result in job.results()]

    assert values == [4_096] * 5


def test_an_executor_that_is_told_to_stop_hands_back_what_it_has_not_started(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster()
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 0.5]] * 6, path=WORK)
    eventually(lambda: len(spans(file)) >= 2)

    assert cluster.kill("e1", signal.SIGTERM) == 0
    results = list(job.results())

    assert all(result.ok for result in results)
    assert_no_task_ran_twice_at_once(file)
    assert {executor.name: executor.state for executor in client.executors()}["e1"] == "gone"


def test_an_executor_that_stops_hands_back_what_runs_for_longer_than_it_waits(
    new_cluster: NewCluster, tmp_path: Path
):
    cluster = new_cluster(executor_config={"drain-timeout": "300ms"})
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 4.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)

    began = time.monotonic()
    assert cluster.kill("e1", signal.SIGTERM) == 0
    stopped_s = time.monotonic() - began
    results = list(job.results())

    assert stopped_s < 3.0 * SLOWDOWN
    assert sorted(result.attempt for result in results) == [1, 2]
    assert all(result.ok for result in results)
    assert_no_task_ran_twice_at_once(file)


def first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_guardian_that_hangs_is_replaced_with_all_that_it_ran(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(master_config=CONFIG)
    client, file = cluster.client(), tmp_path / "marks"
    job = client.run_python("marks:hold", [[str(file), 6.0]] * 2, path=WORK)
    eventually(lambda: len(spans(file)) == 2)
    reaper = first_child(cluster.pid("e1"))

    os.kill(first_child(reaper), signal.SIGSTOP)
    assert cluster.wait_exit("e1") == 70

    assert sorted(result.value for result in job.results()) == [1, 2]
    assert_no_task_ran_twice_at_once(file)


def test_no_quorum_is_said_and_nothing_hangs(new_cluster: NewCluster):
    cluster = new_cluster(executors=0)
    leader = cluster.wait_leader()
    for name in [name for name in cluster.masters if name != leader]:
        cluster.kill(name)

    eventually(lambda: cluster.leader() is None)
    status = cluster.cli("raft", "status", "--json")
    began = time.monotonic()
    listed = cluster.cli("--master-addrs", cluster.addresses[leader], "job", "list", timeout_s=40)

    assert status.returncode == 1
    assert listed.returncode == 7
    assert len(listed.stderr.strip().splitlines()) == 1
    assert time.monotonic() - began < 30 * SLOWDOWN


def test_the_leadership_is_handed_over_without_an_outage(new_cluster: NewCluster):
    cluster = new_cluster()
    old = cluster.wait_leader()
    to = next(name for name in cluster.masters if name != old)

    done = cluster.cli("raft", "transfer", to, check=True)

    assert cluster.addresses[to] in done.stdout
    assert cluster.wait_leader() == to
    assert cluster.client().run_command(["true"]).wait(timeout_s=20).state == "Finished"
    unknown = cluster.cli("raft", "transfer", "m9")
    assert unknown.returncode == 2
    assert "m9" in unknown.stderr


def test_a_snapshot_is_taken_by_every_master_and_serves_a_restart(new_cluster: NewCluster):
    cluster = new_cluster()
    client = cluster.client()
    job = client.run_python("marks:echo", range(1_000), path=WORK)
    job.wait(timeout_s=20)

    cluster.cli("raft", "snapshot", check=True)
    eventually(lambda: all(status.snapshot_index > 0 for status in cluster.status().values()))
    for name in cluster.masters:
        cluster.kill(name)
    for name in cluster.masters:
        cluster.restart(name)
    cluster.wait_leader()

    assert [result.value for result in job.results()] == list(range(1_000))


def test_a_wiped_master_is_brought_back_by_its_peers(new_cluster: NewCluster):
    cluster = new_cluster(executors=1)
    client = cluster.client()
    job = client.run_python("marks:echo", range(100), path=WORK)
    job.wait(timeout_s=20)
    wiped = next(name for name in cluster.masters if name != cluster.wait_leader())
    cluster.cli("raft", "snapshot", check=True)

    cluster.kill(wiped)
    shutil.rmtree(cluster.data_dir(wiped))
    cluster.restart(wiped)
    eventually(lambda: cluster.status()[wiped].role == "follower", retry=(KeyError,))
    for name in cluster.masters:
        if name != wiped and name != cluster.leader():
            cluster.kill(name)

    assert client.run_command(["true"]).wait(timeout_s=20).state == "Finished"
    assert [result.value for result in job.results()] == list(range(100))


def test_masters_are_restarted_one_by_one_under_load(new_cluster: NewCluster):
    cluster = new_cluster(master_config=CONFIG)
    client = cluster.client()
    job = client.run_python("marks:slow", [0.02] * 500, path=WORK)

    for name in cluster.masters:
        assert cluster.kill(name, signal.SIGTERM) == 0
        cluster.restart(name)
        eventually(lambda: len(cluster.status()) == 3)
        cluster.wait_leader()

    results = list(job.results())
    assert [result.value for result in results] == [None] * 500
    assert {result.attempt for result in results} == {1}
    assert all("Traceback" not in cluster.log(name) for name in cluster.masters)
