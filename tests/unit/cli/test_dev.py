"""How `tiflow dev` lays out a cluster. That it runs one is tested in tests/cluster."""

import fcntl
import socket
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiflow.cli import dev
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


def addresses(directory: Path) -> list[str]:
    return [address for child in _plan(directory, 3, 2, None) for address in (child.addr, child.http) if address]


def test_the_first_master_is_where_clients_look_unless_something_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usual = [10240, 10250, 11240, 11250, 12240, 12250, 10301, 10302]
    if all(map(is_free, usual)):
        assert addresses(tmp_path) == [f"127.0.0.1:{port}" for port in usual]
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
            one.listen()
        master, executor = (one.getsockname()[1] for one in taken)
        monkeypatch.setattr(dev, "PORT", master)
        monkeypatch.setattr(dev, "EXECUTOR_PORT", executor)
        (tmp_path / "2").mkdir()

        found = addresses(tmp_path / "2")

    assert not {f"127.0.0.1:{master}", f"127.0.0.1:{executor}"} & set(found)
    assert len(set(found)) == 8


def is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_what_to_type_next_needs_no_address_where_clients_find_the_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = []
    for base, masters in (10_240, 3), (10_240, 1), (20_000, 3):
        directory = tmp_path / f"{base}-{masters}"
        directory.mkdir()
        dev._welcome(Cluster(directory, _plan(directory, masters, 1, base), 1))
        told.append(capsys.readouterr().out)

    assert "while that master is down:\n\n    export TIFLOW_MASTER_ADDRS=127.0.0.1:10240," in told[0]
    assert "export" not in told[1]
    addresses = "127.0.0.1:20000,127.0.0.1:20002,127.0.0.1:20004"
    assert f"    export TIFLOW_MASTER_ADDRS={addresses}\n    {dev._program()} job run" in told[2]


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


def test_another_cluster_at_the_same_ports_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(tmp_path, _plan(tmp_path, 1, 0, 20_000), 1)
    ended: list[int] = []
    process = SimpleNamespace(pid=7, returncode=5, poll=lambda: ended[0] if ended else None)
    cluster.children[0].process = process
    (tmp_path / "m0.log").write_text("127.0.0.1:20000 is in use")

    class Other(nullcontext):
        """Answers before our process has found that the port is taken."""

        def executors(self) -> list[object]:
            return []

        def raft_status(self) -> list[object]:
            ended.append(5)
            return [SimpleNamespace(pid=8, reachable=True)]

    monkeypatch.setattr("tiflow.client.Client", lambda *_, **__: Other(Other()))

    with pytest.raises(FailedPrecondition, match=r"m0 ended with code 5: 127\.0\.0\.1:20000 is in use"):
        cluster.wait_ready(SimpleNamespace(asked=False))

    ended.clear()
    process.pid = 8
    assert cluster.wait_ready(SimpleNamespace(asked=False))
