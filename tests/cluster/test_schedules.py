"""Schedules on a cluster of real processes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cluster.harness import Cluster, eventually
from tiflow.errors import AlreadyExists, NotFound
from tiflow.rpc.callers import own_name
from tiflow.sched.model import Command, GroupSpec, JobSpec

TRUE = JobSpec("", (GroupSpec("g", Command(("true",))),))


def test_each_time_starts_one_job_whoever_leads(new_cluster: Callable[..., Cluster], tmp_path: Path):
    """The leader is killed three times; of every second there is one job, which ran once."""
    cluster = new_cluster()
    client, ran = cluster.client(), tmp_path / "ran"
    ran.touch()
    spec = JobSpec("", (GroupSpec("g", Command(("sh", "-c", f"echo $TIFLOW_JOB_ID >> {ran}"))),))
    client.schedules.create("tick", spec, "* * * * * *", overlap="allow", keep=100)

    for _ in range(3):
        seen = len(ran.read_text().splitlines())
        eventually(lambda seen=seen: len(ran.read_text().splitlines()) >= seen + 2, within_s=30)
        leader = cluster.wait_leader()
        cluster.kill(leader)
        cluster.wait_leader(other_than=leader)
        cluster.restart(leader)
    seen = len(ran.read_text().splitlines())
    eventually(lambda: len(ran.read_text().splitlines()) >= seen + 2, within_s=30)
    client.schedules.pause("tick")

    runs = client.schedules.get("tick").runs
    ids = [run.id for run in reversed(runs)]
    eventually(lambda: all(client.get(id).state == "Finished" for id in ids), within_s=30)
    assert sorted(ran.read_text().splitlines()) == sorted(ids)
    times = [datetime.strptime(id, "tick-%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) for id in ids]
    assert times == [times[0] + timedelta(seconds=number) for number in range(len(times))]
    assert len(times) >= 8


def test_what_a_user_does_with_a_schedule(cluster: Cluster, tmp_path: Path):
    (tmp_path / "job.toml").write_text('argv = ["true"]\nid = "not used"\n'.replace("not used", "other"))
    file = str(tmp_path / "job.toml")

    created = cluster.cli(
        "schedule", "create", "nightly", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--file", file
    )
    assert created.returncode == 0, created.stderr
    assert created.stdout.startswith("schedule nightly is created; next at ")
    listed = cluster.cli("schedule", "list", check=True).stdout
    assert "30 2 * * *  Europe/Berlin  in " in listed
    times = cluster.cli("schedule", "next", "nightly", "--count", "3", check=True).stdout.splitlines()
    assert len(times) == 3
    assert all(" 02:30:00 CE" in time or " 03:00:00 CE" in time for time in times)

    run = cluster.cli("schedule", "trigger", "nightly", check=True).stdout.strip()
    assert run.startswith("nightly-")
    assert cluster.cli("job", "wait", run).returncode == 0
    assert cluster.cli("schedule", "pause", "nightly", check=True).stdout == "schedule nightly is paused\n"
    shown = json.loads(cluster.cli("schedule", "get", "nightly", "--json", check=True).stdout)
    assert (shown["paused"], shown["next_at_ms"], [one["id"] for one in shown["runs"]]) == (True, None, [run])
    assert run in cluster.cli("schedule", "get", "nightly", check=True).stdout
    assert cluster.cli("schedule", "next", "nightly", check=True).stdout == "paused\n"
    assert "next at " in cluster.cli("schedule", "resume", "nightly", check=True).stdout
    cluster.cli("schedule", "delete", "nightly", check=True)
    gone = cluster.cli("schedule", "get", "nightly")
    assert (gone.returncode, "there is no schedule nightly" in gone.stderr) == (3, True)
    assert cluster.client().get(run).state == "Finished", "its runs stay"


def test_a_schedule_that_cannot_be_is_refused(cluster: Cluster, tmp_path: Path):
    (tmp_path / "job.toml").write_text('argv = ["true"]\n')
    for words, message in (
        (["--cron", "0 0 30 2 *"], 'cron = "0 0 30 2 *": bad day-of-month'),
        (["--cron", "0 0 */30 2 FRI#5"], "never fires"),
        (["--cron", "* * * * *", "--timezone", "Mars"], 'timezone = "Mars": is not known'),
    ):
        done = cluster.cli("schedule", "create", "s", *words, "--file", str(tmp_path / "job.toml"))
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_the_sdk_has_schedules(cluster: Cluster):
    client = cluster.client()
    schedules = client.schedules
    made = schedules.create("sdk", TRUE, "0 0 1 1 *", timezone="Asia/Kathmandu", missed="run-once", paused=True)

    assert (made.timezone, made.missed, made.next_at_ms, made.paused) == ("Asia/Kathmandu", "run-once", None, True)
    with pytest.raises(AlreadyExists):
        schedules.create("sdk", TRUE, "* * * * *")
    handle = schedules.trigger("sdk")
    assert handle.wait(timeout_s=20).state == "Finished"
    assert next(client.events(handle.id)).by == f"schedule sdk, by {own_name()}"
    assert [one.name for one in schedules.list()] == ["sdk"]
    resumed = schedules.resume("sdk")
    assert resumed.next_at_ms is not None
    assert schedules.get("sdk", times=3).times_ms[0] == resumed.next_at_ms
    schedules.delete("sdk")
    with pytest.raises(NotFound):
        schedules.pause("sdk")
