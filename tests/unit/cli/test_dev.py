"""How `tiflow dev` lays out a cluster. That it runs one is tested in tests/cluster."""

import fcntl
from contextlib import ExitStack
from pathlib import Path

import pytest

from tiflow.cli.dev import Cluster, _plan
from tiflow.cli.main import main
from tiflow.errors import FailedPrecondition


def test_ports_follow_from_the_base(tmp_path: Path):
    children = _plan(tmp_path, 3, 2, 20_000)

    assert [child.name for child in children] == ["m0", "m1", "m2", "e0", "e1"]
    ports = [
        address.removeprefix("127.0.0.1:") for child in children for address in (child.addr, child.http) if address
    ]
    assert [int(port) for port in ports] == list(range(20_000, 20_008))


def test_free_ports_differ(tmp_path: Path):
    children = _plan(tmp_path, 3, 2, 0)

    assert len({address for child in children for address in (child.addr, child.http) if address}) == 8


def test_a_directory_keeps_its_addresses(tmp_path: Path):
    children = _plan(tmp_path, 1, 1, 0)

    assert _plan(tmp_path, 1, 1, 0) == children
    with pytest.raises(FailedPrecondition, match="holds a cluster of 1 masters and 1 executors"):
        _plan(tmp_path, 3, 1, 0)


def test_the_processes_know_each_other(tmp_path: Path):
    cluster = Cluster(tmp_path, _plan(tmp_path, 3, 1, 20_000), 4)

    master, *others, executor = (" ".join(cluster._arguments(child)) for child in cluster.children)

    addresses = "127.0.0.1:20000,127.0.0.1:20002,127.0.0.1:20004"
    assert master.startswith("master --addr 127.0.0.1:20000 --name m0")
    assert f"--http-addr 127.0.0.1:20001 --peers {addresses}" in master
    for one in master, *others:
        assert one.endswith(f"--metadata-url sqlite:///{tmp_path}/metadata.db"), "checkpoints outlive their leader"
    assert f"--join {addresses} --slots 4" in executor
    single = Cluster(tmp_path, _plan(tmp_path / "", 3, 1, 20_000)[:1], 1)
    assert "--peers" not in single._arguments(single.children[0])


def test_a_directory_has_one_cluster_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with ExitStack() as stack:
        lock = stack.enter_context((tmp_path / "lock").open("wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)

        code = main(["dev", "--data-dir", str(tmp_path)])

    assert code == 5
    assert "another tiflow dev uses it; stop that one" in capsys.readouterr().err
