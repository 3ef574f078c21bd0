"""The command line as a user meets it. What it says of a real cluster is tested in tests/cluster."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tiflow.cli.common import size, span
from tiflow.cli.main import COMMANDS, cli, main
from tiflow.cli.progress import Rate, counts
from tiflow.cli.raft import diagnose
from tiflow.client import JobInfo
from tiflow.errors import NotFound
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.views import MasterInfo

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("TIFLOW_MASTER_ADDRS", raising=False)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(args)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def all_commands(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((*prefix, name))
        if isinstance(command, click.Group):
            found += all_commands(command, (*prefix, name))
    return found


@pytest.mark.parametrize("command", all_commands(cli), ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]):
    result = CliRunner().invoke(cli, [*command, "--help"])

    assert result.exit_code == 0
    assert f"Usage: cli {' '.join(command)}" in result.output
    needs_example = command not in [("job",), ("raft",), ("version",)]
    assert not needs_example or "tiflow " in result.output.split("Options:")[0]


def test_the_list_of_commands_is_there_without_loading_them():
    code = "import sys; from tiflow.cli.main import main; main(['--help']); assert 'msgspec' not in sys.modules"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_an_executor_starts_without_grpc(tmp_path: Path):
    """Its guardian is forked before gRPC has started any thread."""
    code = """
import sys, types
from tiflow.cli.main import main
started = types.ModuleType("tiflow.exec.main")
started.run = lambda config: 42 if "grpc" not in sys.modules and config.join == ("127.0.0.1:1",) else 43
sys.modules["tiflow.exec.main"] = started
sys.exit(main(["executor", "--join", "127.0.0.1:1"]))
"""

    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 42


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("frobnicate", 2, "No such command 'frobnicate'; see `tiflow --help`"),
        ("job get", 2, "Missing argument 'ID'; see `tiflow job get --help`"),
        ("master --adr x", 2, "No such option '--adr'"),
        ("master --addr x", 2, '--addr = "x": has no port; write HOST:PORT'),
        ("master --addr 0.0.0.0:1", 2, "others cannot dial this address; give --advertise-addr HOST:1"),
        ("master --addr 0.0.0.0:1 --advertise-addr a:1", 2, "give --insecure or set [security] insecure = true"),
        ("master --peers a:1,b:2,c:3", 2, "does not contain this master's own advertise-addr 127.0.0.1:10240"),
        ("master --config /no/such.toml", 2, "--config = /no/such.toml: cannot be read"),
        ("executor", 2, "join is empty: name at least one master"),
        ("executor --join a:1 --labels zone", 2, '--labels = "zone": has no value; write NAME=VALUE'),
        ("job run /no/such.toml", 2, "job file = /no/such.toml: cannot be read"),
        ("job results x --output /no/such/file", 2, "--output = /no/such/file: cannot be written"),
        ("dev --masters 2", 2, "--masters = 2: use 1, 3, 5 or 7"),
        ("dev --data-dir /dev/null/x", 5, "--data-dir = /dev/null/x: cannot be written"),
        ("job list --master-addrs nowhere", 2, 'master_addrs = "nowhere": has no port'),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(run: Run, args: str, code: int, message: str):
    ended, out, err = run(*args.split())

    assert (ended, out) == (code, "")
    assert err.startswith("tiflow: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_no_master_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch, before: bool):
    monkeypatch.setattr("tiflow.cli.common.REFUSED_S", 0.1)
    addresses = ["--master-addrs", "127.0.0.1:1,127.0.0.1:2"]

    code, out, err = run(*addresses, "job", "list") if before else run("job", "list", *addresses)

    assert (code, out) == (7, "")
    assert err == (
        "tiflow: error: no master answered at 127.0.0.1:1, 127.0.0.1:2: connection refused; is the cluster up? "
        "set --master-addrs or TIFLOW_MASTER_ADDRS\n"
    )


def test_the_environment_names_the_masters(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tiflow.cli.common.REFUSED_S", 0.1)
    monkeypatch.setenv("TIFLOW_MASTER_ADDRS", "127.0.0.1:3")

    assert "no master answered at 127.0.0.1:3: " in run("raft", "status")[2]


def test_errors_of_the_cluster_have_their_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch):
    def get(self: object, id: str) -> None:
        raise NotFound(f"there is no job {id}")

    monkeypatch.setattr("tiflow.client.Client.get", get)

    assert run("job", "get", "j7") == (3, "", "tiflow: error: there is no job j7\n")


def test_a_bug_is_told_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch):
    def get(self: object, id: str) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("tiflow.client.Client.get", get)
    code, _, err = run("job", "get", "j7")

    assert code == 70
    assert err.startswith("tiflow: error: a bug in tiflow: KeyError: 'oops'; TIFLOW_DEBUG=1")


def test_an_interrupt_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch):
    def get(self: object, id: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tiflow.client.Client.get", get)

    assert run("job", "get", "j7") == (130, "", "\n")


def test_shows_the_timings(run: Run):
    code, out, _ = run("master", "--print-timings", "--json")

    assert code == 0
    assert {"name": "keepalive-ttl", "ms": 5000}.items() <= json.loads(out)[7].items()
    assert "keepalive-ttl" in run("master", "--print-timings")[1]


def test_shows_the_version_and_completes(run: Run):
    assert json.loads(run("version", "--json")[1])["tiflow"] == "0.1.0"
    assert run("version")[1].startswith("tiflow 0.1.0 (Python 3.")
    assert "_TIFLOW_COMPLETE=zsh_complete" in run("completion", "zsh")[1]


def master(role: str, term: int = 1) -> MasterInfo:
    return MasterInfo.of(pb.MasterStatus(role=role, term=term))


@pytest.mark.parametrize(
    ("masters", "trouble"),
    [
        ([master("leader")], ""),
        ([master("leader"), master("follower"), master("unreachable")], ""),
        ([master("leader"), master("unreachable"), master("unreachable")], "no quorum: 1 of 3 masters answer"),
        ([master("candidate", 2), master("follower"), master("unreachable")], "no leader"),
        ([master("leader", 1), master("candidate", 2), master("unreachable")], "no leader"),
    ],
)
def test_says_what_keeps_the_masters_from_working(masters: list[MasterInfo], trouble: str):
    assert diagnose(masters).startswith(trouble)
    assert bool(diagnose(masters)) == bool(trouble)


def test_progress_counts_what_there_is():
    groups = [pb.GroupProgress(name="main", total=10, succeeded=4, failed=1, running=2)]

    assert counts(JobInfo.of(pb.JobInfo(groups=groups))) == "4 ok, 1 failed, 2 running, 3 waiting"
    assert counts(JobInfo.of(pb.JobInfo())) == "nothing yet"


def test_the_rate_is_that_of_the_last_seconds():
    rate = Rate()

    assert rate.add(0.0, 0) == 0.0
    assert rate.add(1.0, 100) == 100.0
    assert rate.add(10.0, 100) == 0.0


def test_numbers_for_people():
    assert [span(seconds) for seconds in (0.35, 2.4, 192, 18_420, 273_600)] == [
        "350ms",
        "2.4s",
        "3m12s",
        "5h07m",
        "3d04h",
    ]
    assert [size(number) for number in (0, 512, 1_536, 5 << 20)] == ["0 B", "512 B", "1.5 KiB", "5 MiB"]
