"""Starting: what is refused, in one line that names the thing and the remedy; and the commands of the README."""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.cluster.harness import REPOSITORY, SLOWDOWN, Cluster, eventually
from tests.mysql import Server

ENV = {name: value for name, value in os.environ.items() if not name.startswith("TIFLOW_")}


def tiflow(*args: str, cwd: Path, timeout_s: float = 20.0) -> tuple[int, str]:
    """Exit code and stderr of `tiflow ARGS`."""
    done = subprocess.run(
        [sys.executable, "-m", "tiflow", *args],
        cwd=cwd,
        env=ENV | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s * SLOWDOWN,
    )
    return done.returncode, done.stderr


def config_file(directory: Path, text: str) -> str:
    file = directory / "bad.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("args", "toml", "code", "words"),
    [
        (["master"], 'adr = "127.0.0.1:1"', 2, ["adr", "addr"]),
        (["master"], "[raft]\nheartbeat = 100", 2, ["raft.heartbeat", "100"]),
        (["master"], "[raft]\ndisk-reserve-bytes = -1", 2, ["raft.disk-reserve-bytes", "-1"]),
        (["master", "--addr", "nowhere"], "", 2, ["--addr", "nowhere"]),
        (["master", "--addr", "0.0.0.0:10240"], "", 2, ["advertise-addr"]),
        (["master", "--addr", "127.0.0.1:1", "--peers", "a:1,b:1,c:1"], "", 2, ["peers", "127.0.0.1:1"]),
        (["master"], '[metadata]\nurl = "no url"', 2, ["metadata", "url"]),
        (["executor"], "", 2, ["join"]),
        (["executor", "--join", "127.0.0.1:1", "--labels", "zone"], "", 2, ["labels", "zone"]),
        (["executor", "--join", "127.0.0.1:1", "--slots", "-1"], "", 2, ["slots", "-1"]),
    ],
)
def test_bad_settings_are_one_line_that_names_them(
    tmp_path: Path, args: list[str], toml: str, code: int, words: list[str]
):
    if toml:
        args = [*args, "--config", config_file(tmp_path, toml)]

    ended, stderr = tiflow(*args, cwd=tmp_path)

    assert ended == code, stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert all(word in stderr for word in words), stderr


@pytest.mark.parametrize("option", ["--addr", "--http-addr"])
def test_an_occupied_port_is_named(tmp_path: Path, option: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        other = {"--addr": "127.0.0.1:23456", "--http-addr": "127.0.0.1:23457"} | {option: address}

        code, stderr = tiflow("master", *(word for pair in other.items() for word in pair), cwd=tmp_path)

    assert code == 5, stderr
    assert address in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("args", [["master", "--http-addr", ""], ["executor", "--join", "127.0.0.1:1"]])
def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path, args: list[str]):
    (tmp_path / "file").write_text("not a directory")
    directory = tmp_path / "file" / "data"
    code, stderr = tiflow(*args, "--data-dir", str(directory), cwd=tmp_path)

    assert code == 5, stderr
    assert str(directory) in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_a_data_directory_has_one_master_at_a_time(tmp_path: Path):
    with Cluster(masters=1, executors=0, data_dir=tmp_path) as cluster:
        code, stderr = tiflow(
            "master",
            "--addr",
            "127.0.0.1:23458",
            "--http-addr",
            "",
            "--data-dir",
            str(cluster.data_dir("m1")),
            cwd=tmp_path,
        )

    assert code == 5, stderr
    assert str(cluster.data_dir("m1")) in stderr.splitlines()[-1]


def test_no_master_at_the_address_is_said_at_once(tmp_path: Path):
    code, stderr = tiflow("--master-addrs", "127.0.0.1:1", "job", "list", cwd=tmp_path)

    assert code == 7
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "127.0.0.1:1" in stderr
    assert "TIFLOW_MASTER_ADDRS" in stderr


def test_an_unknown_job_and_a_bad_job_file_are_named(cluster: Cluster):
    (cluster.directory / "bad.toml").write_text('type = "pyton"\ncount = 3\n')
    (cluster.directory / "none.toml").write_text('type = "python"\ncount = 3\n')

    unknown = cluster.cli("job", "get", "nope")
    typo = cluster.cli("job", "run", "bad.toml")
    missing = cluster.cli("job", "run", "none.toml")
    absent = cluster.cli("job", "run", "absent.toml")

    assert (unknown.returncode, typo.returncode, missing.returncode, absent.returncode) == (3, 2, 2, 2)
    assert "nope" in unknown.stderr
    assert "pyton" in typo.stderr
    assert "function" in missing.stderr
    assert "absent.toml" in absent.stderr
    for done in (unknown, typo, missing, absent):
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_two_executors_cannot_have_one_name(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(
        masters=1, executors=1, master_config={"keepalive-ttl": "3s", "keepalive-interval": "300ms"}
    )

    code, stderr = tiflow(
        "executor",
        "--join",
        cluster.master_addrs,
        "--name",
        "e1",
        "--addr",
        "127.0.0.1:23459",
        "--data-dir",
        str(cluster.directory / "other"),
        cwd=cluster.directory,
    )

    assert code == 4, stderr
    assert "e1" in stderr.splitlines()[-1]


@pytest.mark.mysql
def test_jobs_are_in_mysql_with_their_counts(new_cluster: Callable[..., Cluster], mysql: Server):
    url = mysql.create_database("cluster")
    cluster = new_cluster(metadata_url=url)
    client = cluster.client()
    good = client.run_command(["true"], count=5, id="good")
    bad = client.run_command(["false"], count=1, id="bad")
    client.cancel("bad")
    good.wait(timeout_s=20)
    cluster.kill(cluster.wait_leader())
    bad.wait(timeout_s=20)
    engine = sa.create_engine(url)

    def rows() -> dict[str, tuple[str, int, int]]:
        with engine.connect() as connection:
            found = connection.execute(sa.text("SELECT id, state, total, succeeded FROM jobs"))
            return {id: (state, total, succeeded) for id, state, total, succeeded in found}

    eventually(lambda: rows() == {"good": ("Finished", 5, 5), "bad": (bad.info().state, 1, 0)})
    engine.dispose()


def test_a_database_that_does_not_answer_stops_nothing(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(masters=1, executors=1, metadata_url="mysql+pymysql://tiflow:secret@127.0.0.1:1/tiflow")

    assert cluster.client().run_command(["true"]).wait(timeout_s=20).state == "Finished"

    eventually(lambda: "metadata_unavailable" in cluster.log("m1"))
    assert "secret" not in cluster.log("m1")


def seed_commands() -> list[list[str]]:
    """The `./bin/tiflow …` lines of the README's deployment chapter."""
    text = (REPOSITORY / "README.md").read_text()
    lines = re.findall(r"^\./bin/tiflow .*--config=.*$", text, re.MULTILINE)
    return [shlex.split(re.sub(r"\$\{ip\d\}", "127.0.0.1", line)) for line in lines]


@pytest.mark.skipif(os.getuid() != 0, reason="a network namespace of its own, for the fixed ports, takes root")
def test_the_readmes_deployment_commands_work_verbatim(tmp_path: Path):
    master, executor, again = seed_commands()
    assert master[1] == again[1] == "master"
    assert executor[1] == "executor"
    config = "deployments/engine/docker-compose/config"
    (tmp_path / config).mkdir(parents=True)
    for name in ("master.toml", "executor.toml"):
        (tmp_path / config / name).write_text((REPOSITORY / config / name).read_text())
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "tiflow"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m tiflow "$@"\n')
    launcher.chmod(0o755)
    script = f"""
        ip link set lo up
        mkdir -p /tmp/df && mount -t tmpfs tmpfs /tmp/df  # the config files keep their data there
        {shlex.join(master)} > master.log 2>&1 & M=$!
        {shlex.join(executor)} > executor.log 2>&1 & E=$!
        for i in $(seq 100); do
            ./bin/tiflow executor list --json 2>/dev/null | grep -q '"connected": *true' && break
            sleep 0.2
        done
        ./bin/tiflow job run job.toml; code=$?
        kill $M $E; wait
        exit $code
    """
    (tmp_path / "job.toml").write_text('type = "command"\nargv = ["echo", "{index}"]\ncount = 3\n')

    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        env=ENV | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=90 * SLOWDOWN,
    )

    logs = [(tmp_path / name).read_text() for name in ("master.log", "executor.log")]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
    assert "insecure" in logs[0], "a warning says that the traffic is open"
