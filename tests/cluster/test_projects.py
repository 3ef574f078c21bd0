"""Quotas and shares of projects on a cluster of real processes."""

import json
from pathlib import Path

from tests.cluster.harness import Cluster, eventually
from tests.cluster.work import marks
from tiflow.jobs.items import items_encode
from tiflow.sched.model import Command, GroupSpec, JobSpec, Python, RetryPolicy

WORK = str(Path(marks.__file__).parent)


def test_quotas_are_set_shown_and_kept(cluster: Cluster, tmp_path: Path):
    shown = cluster.cli(
        "project", "set", "team", "--slots", "1", "--jobs", "1", "--weight", "3", "--json", check=True
    )
    assert json.loads(shown.stdout)["slots_max"] == 1
    cluster.cli("project", "set", "team", "--tasks", "50", check=True)
    row = next(line for line in cluster.cli("project", "list", check=True).stdout.splitlines() if "team" in line)
    assert row.split() == ["team", "3", "0", "1", "0", "50", "0", "1"], "what is not given stays as it is"

    file = tmp_path / "job.toml"
    file.write_text('argv = ["sleep", "600"]\ncount = 20\nproject = "team"\n')
    cluster.cli("job", "submit", str(file), "--id", "first", check=True)
    client = cluster.client()
    eventually(lambda: client.get("first").running)
    assert client.get("first").running == 1, "there are two slots, and the quota is one"
    assert "project team has its quota of 1 slots" in cluster.cli("job", "get", "first", check=True).stdout

    refused = cluster.cli("job", "submit", str(file), "--id", "second")
    assert (refused.returncode, "1 jobs have not ended, and its quota is 1 jobs" in refused.stderr) == (6, True)
    unknown = file.read_text().replace("team", "nobody")
    file.write_text(unknown)
    assert cluster.cli("job", "submit", str(file)).returncode == 3
    assert cluster.cli("project", "delete", "team").returncode == 5
    client.cancel("first")
    eventually(lambda: client.get("first").ended)
    cluster.cli("project", "delete", "team", check=True)
    assert [one.name for one in client.projects.list()] == ["default"]


def test_a_job_of_one_does_not_wait_for_a_job_of_very_many(cluster: Cluster):
    """Whose short tasks fill the backlogs of all executors, and are topped up whenever they get shorter."""
    client = cluster.client()
    items = items_encode([0.002] * 100_000)
    work = GroupSpec("main", Python("marks:slow", (WORK,)), 100_000, items, retry=RetryPolicy(1))
    many = client.submit(JobSpec("many", (work,)))
    eventually(lambda: many.info().succeeded > 500, within_s=30)

    one = client.submit(JobSpec("one", (GroupSpec("main", Command(("true",))),)))

    assert one.wait(timeout_s=15).state == "Finished"
    assert not many.info().ended
    many.cancel()
    eventually(lambda: many.info().ended, within_s=30)
