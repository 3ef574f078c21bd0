"""Groups that come after other groups of their job, on a cluster of real processes."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cluster.harness import REPOSITORY, Cluster, eventually
from tests.cluster.work import marks
from tiflow.jobs.items import items_encode
from tiflow.sched.model import After, Command, GroupSpec, JobSpec, Python, RetryPolicy

WORK = str(Path(marks.__file__).parent)


def held(name: str, path: Path, seconds: float, count: int, *after: str) -> GroupSpec:
    items = items_encode([[str(path), seconds]] * count)
    return GroupSpec(
        name, Python("marks:hold", (WORK,)), count, items, retry=RetryPolicy(5, 10), after=tuple(map(After, after))
    )


def test_the_example_adds_up_and_cleans_up(cluster: Cluster):
    ran = cluster.cli("job", "run", str(REPOSITORY / "examples" / "dag.toml"), "--id", "sums", "--json", check=True)

    info = json.loads(ran.stdout)
    assert (info["state"], [group["succeeded"] for group in info["groups"]]) == ("Finished", [3, 3, 1, 1])
    assert cluster.cli("job", "logs", "sums", "--group", "add", check=True).stdout == "60 lines\n"
    assert not Path("/tmp/tiflow-dag-sums").exists()


def test_what_waits_for_other_groups_or_is_skipped_says_so(cluster: Cluster, tmp_path: Path):
    gate = tmp_path / "gate"
    script = f"until test -e {gate}; do sleep 0.05; done; exit 1"
    once = RetryPolicy(attempts_max=1)
    job = cluster.client().submit(
        JobSpec(
            "",
            (
                GroupSpec("first", Command(("sh", "-c", script)), retry=once),
                GroupSpec("second", Command(("true",)), 2, after=(After("first"),)),
                GroupSpec("last", Command(("true",)), after=(After("second", "completion"),)),
            ),
        )
    )

    eventually(lambda: job.info().running)
    shown = cluster.cli("job", "get", job.id, check=True).stdout
    assert "second: 2 of 2 tasks wait: after first\n" in shown
    assert "last: 1 of 1 tasks wait: after second (completion)\n" in shown
    assert [task.reason for task in job.tasks(group="second")] == ["after first"] * 2
    gate.touch()

    info = job.wait(timeout_s=20)
    assert (info.state, info.failed, info.skipped, info.succeeded) == ("Failed", 1, 2, 1)
    assert [result.state for result in job.results()] == ["failed", "skipped", "skipped", "succeeded"]
    told = cluster.cli("job", "tasks", job.id, "--group", "second", check=True).stdout
    assert told.count("skipped, for not all of first succeeded") == 2


def test_the_order_of_groups_outlives_an_executor_and_the_leader(new_cluster: Callable[..., Cluster], tmp_path: Path):
    cluster = new_cluster(executors=3)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    job = cluster.client().submit(
        JobSpec(
            "",
            (
                held("third", third, 0.1, 4, "second"),
                held("second", second, 0.5, 6, "first"),
                held("first", first, 0.5, 6),
            ),
        )
    )

    eventually(lambda: len(marks.read(first)) > 3)
    cluster.kill("e1")
    eventually(lambda: any(mark["event"] == "start" for mark in marks.read(second)), within_s=30)
    cluster.kill("e2")
    cluster.kill(cluster.wait_leader())

    info = job.wait(timeout_s=60)
    assert (info.state, info.succeeded) == ("Finished", 16)
    for earlier, later in ((first, second), (second, third)):
        ends = {mark["index"]: mark["at"] for mark in marks.read(earlier) if mark["event"] == "end"}
        starts = [mark["at"] for mark in marks.read(later) if mark["event"] == "start"]
        assert len(ends) == 6
        assert max(ends.values()) <= min(starts)
