"""`cvs` on a real cluster: from one executor to another, with one that dies in the middle."""

import filecmp
import os
from collections.abc import Callable
from pathlib import Path

from tests.cluster.harness import Cluster, eventually

NewCluster = Callable[..., Cluster]


def plant(root: Path, files: int, large_bytes: int) -> None:
    for number in range(files):
        path = root / f"d{number % 20}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1_000))
    (root / "large").write_bytes(os.urandom(large_bytes))


def assert_equal(source: Path, target: Path) -> None:
    names = sorted(path.relative_to(source) for path in source.rglob("*"))
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == names
    files = [str(name) for name in names if (source / name).is_file()]
    assert filecmp.cmpfiles(source, target, files, shallow=False)[1:] == ([], [])


def test_a_tree_goes_from_one_executor_to_another_though_the_writers_die(new_cluster: NewCluster, tmp_path: Path):
    cluster = new_cluster(executors=0, slots=4, master_config={"keepalive-ttl": "3s", "keepalive-interval": "300ms"})
    for name, zone in (("e1", "a"), ("e2", "b"), ("e3", "b")):
        cluster.add_executor(name, labels={"zone": zone})
    cluster.wait_executors(3)
    source, target = tmp_path / "source", tmp_path / "target"
    plant(source, 2_000, 200 << 20)
    config = {
        "source": str(source),
        "target": str(target),
        "source-selectors": ["zone=a"],
        "target-selectors": ["zone=b"],
    }
    job = cluster.client().run_job("cvs", config)

    def members() -> dict[str, str]:
        return {member.name: member.executor for member in job.info().members if member.executor}

    where = eventually(lambda: found if len(found := members()) == 4 else None, within_s=20)
    assert where["reader"] == "e1"
    assert {where["writer/0"], where["writer/1"]} <= {"e2", "e3"}
    victim = next(name for name in ("e2", "e3") if name in (where["writer/0"], where["writer/1"]))
    eventually(lambda: any(target.rglob("f*")), within_s=20)
    cluster.kill(victim)

    assert job.wait(timeout_s=90).state == "Finished"

    assert_equal(source, target)
    (result,) = [result.value for result in job.results() if result.group == "master"]
    assert result["failed"] == 0
    assert result["files"] + result["same"] >= 2_001
