"""Every mistake in a file or on the command line is one line that names the key, the value and the remedy."""

from pathlib import Path
from typing import Any

import pytest

from tiflow.config import load_executor, load_master, metadata_warning, prepare_data_dir, timings, worst_election_ms
from tiflow.errors import FailedPrecondition, InvalidArgument
from tiflow.sched.model import RetryPolicy

ROOT = Path(__file__).parents[3]


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return str(file)


def refusal(load: Any, path: str | None, **overrides: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        load(path, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_master_needs_no_settings():
    config = load_master(None)

    assert (config.addr, config.advertise_addr, config.name) == ("127.0.0.1:10240",) * 3
    assert config.raft.peers == ()
    assert (config.keepalive_ttl_ms, config.keepalive_interval_ms) == (5_000, 500)
    assert (config.raft.heartbeat_ms, config.raft.leader_fallback_ms) == (100, 1_000)
    assert (config.raft.election_timeout_min_ms, config.raft.election_timeout_max_ms) == (500, 1_000)


def test_an_executor_needs_a_master():
    config = load_executor(None, join="http://ip0:10240,ip1:10240")

    assert config.join == ("ip0:10240", "ip1:10240")
    assert (config.addr, config.name) == ("127.0.0.1:10241", "127.0.0.1-10241")


def test_the_command_line_goes_over_the_file(tmp_path: Path):
    path = write(tmp_path, 'name = "a"\naddr = "127.0.0.1:1"\n[log]\nlevel = "debug"\n[security]\ninsecure = true\n')

    config = load_master(path, name=None, addr="127.0.0.1:2", log_file="x.log", insecure=None, peers=())

    assert (config.name, config.addr, config.log.level, config.log.file) == ("a", "127.0.0.1:2", "debug", "x.log")
    assert config.security.insecure


def test_the_commands_of_the_readme_are_understood():
    engine = ROOT / "deployments/engine/docker-compose/config"

    master = load_master(str(engine / "master.toml"), addr="0.0.0.0:10240", advertise_addr="http://ip0:10240")
    executor = load_executor(
        str(engine / "executor.toml"), join=["ip0:10240"], addr="0.0.0.0:10241", advertise_addr="ip1:10241"
    )

    assert (master.addr, master.advertise_addr, master.raft.peers) == ("0.0.0.0:10240", "ip0:10240", ())
    assert (executor.join, executor.advertise_addr) == (("ip0:10240",), "ip1:10241")


def test_the_commented_files_hold_the_defaults():
    master, executor = load_master(str(ROOT / "conf/master.toml")), load_executor(str(ROOT / "conf/executor.toml"))

    assert master == load_master(None)
    assert executor == load_executor(None, join="127.0.0.1:10240")


def test_the_backoff_of_jobs_is_what_the_model_has_or_what_the_file_says(tmp_path: Path):
    text = "[job-backoff]\ninitial-interval = '2s'\nmultiplier = 2\nmax-interval = '1m'\nmax-try-time = 9"
    path = write(tmp_path, text + "\nreset-interval = '3m'\n")

    assert load_master(None).job_backoff.policy() == RetryPolicy()
    assert load_master(path).job_backoff.policy() == RetryPolicy(9, 2_000, 2_000, 60_000, 180_000)


def test_peers_come_as_one_list_or_repeated():
    own = {"addr": "127.0.0.1:1"}

    assert load_master(None, peers="127.0.0.1:1,b:2,c:3", **own).raft.peers == ("127.0.0.1:1", "b:2", "c:3")
    assert load_master(None, peers=("127.0.0.1:1", "b:2,c:3"), **own).raft.peers == ("127.0.0.1:1", "b:2", "c:3")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("adr = 1", ["unknown key adr = 1", "did you mean addr?"]),
        ("keepalive_ttl = '5s'", ["unknown key keepalive_ttl", "did you mean keepalive-ttl?"]),
        ("[raft]\nheartbeet = '1s'", ["unknown key raft.heartbeet", "did you mean raft.heartbeat?"]),
        ("[frobnicate]", ["unknown key frobnicate", "known are name, addr"]),
        ("addr = 10240", ["addr = 10240", "must be a string in quotes"]),
        ("[raft]\npeers = 'a:1'", ['raft.peers = "a:1"', "must be a list"]),
        ("[raft]\npeers = ['a:1', 2]", ["raft.peers[1] = 2", "must be a string"]),
        ("[raft]\nsnapshot-entries = 'x'", ['raft.snapshot-entries = "x"', "must be a whole number"]),
        ("[raft]\nsnapshot-entries = 1", ["raft.snapshot-entries = 1", "must be 100..10000000"]),
        ("raft = 1", ["raft = 1", "must be a table"]),
        ("[security]\ninsecure = 'yes'", ['security.insecure = "yes"', "must be true or false"]),
        ("[log]\nlevel = 'loud'", ['log.level = "loud"', "debug, info, warning, error"]),
        ("name = 'a b'", ['name = "a b"', "letters, digits"]),
        ("data-dir = ''", ["data-dir is empty"]),
        ("http-addr = '127.0.0.1:10240'", ["http-addr = 127.0.0.1:10240", "use another port"]),
        ("addr", ["is not TOML"]),
        ("[raft]\nheartbeat = '200ms'", ["raft.heartbeat = 200ms", "a third of raft.election-timeout-min = 500ms"]),
        ("[raft]\nelection-timeout-min = '1s'", ["raft.election-timeout-min = 1s", "raft.election-timeout-max = 1s"]),
        ("[raft]\nleader-fallback = '100ms'", ["raft.leader-fallback = 100ms", "raft.heartbeat = 100ms"]),
        ("keepalive-interval = '2s'", ["keepalive-interval = 2s", "a quarter of keepalive-ttl = 5s"]),
        (
            "keepalive-ttl = '2600ms'",
            ["keepalive-ttl = 2600ms", "more than 2600ms", "raft.election-timeout-max = 1s"],
        ),
        ("keepalive-ttl = '5'", ['keepalive-ttl = "5"', "is not a duration"]),
        ("[job-backoff]\nmultiplier = 0.9", ["job-backoff.multiplier = 0.9", "must be 1 to 10"]),
        ("[job-backoff]\nmax-try-time = 0", ["job-backoff.max-try-time = 0", "must be 1 to 600"]),
        ("[job-backoff]\ninitial-interval = '2h'", ['job-backoff.initial-interval = "2h"', "must be 0ms to 1h"]),
        ("[job-backoff]\ninital-interval = '2s'", ["did you mean job-backoff.initial-interval?"]),
        ("keepalive-ttl = '2h'", ['keepalive-ttl = "2h"', "must be 500ms to 1h"]),
    ],
)
def test_a_mistake_in_the_file_of_a_master(tmp_path: Path, text: str, parts: list[str]):
    path = write(tmp_path, text)

    message = refusal(load_master, path)

    assert path in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"addr": "ip0"}, ['--addr = "ip0"', "has no port", "write HOST:PORT"]),
        ({"addr": "0.0.0.0:1"}, ["--addr = 0.0.0.0:1", "others cannot dial", "--advertise-addr HOST:1"]),
        ({"advertise_addr": "[::]:1"}, ["--advertise-addr = [::]:1", "others cannot dial"]),
        ({"addr": "0.0.0.0:1", "advertise_addr": "a:1"}, ["--addr = 0.0.0.0:1", "--insecure", "insecure = true"]),
        ({"http_addr": "0.0.0.0:1"}, ["--http-addr = 0.0.0.0:1", "--insecure"]),
        ({"peers": "a:1,b:2,c:3"}, ["--peers = a:1, b:2, c:3", "own advertise-addr 127.0.0.1:10240"]),
        ({"peers": "127.0.0.1:10240,b:2"}, ["lists 2 masters", "use 1, 3, 5 or 7"]),
        ({"peers": "127.0.0.1:10240,b:2,b:2"}, ["--peers", "b:2 is there twice"]),
        ({"peers": "127.0.0.1:10240,b,c:3"}, ['--peers = "b"', "has no port"]),
        ({"log_level": "INFO"}, ['--log-level = "INFO"', "must be one of"]),
    ],
)
def test_a_mistake_on_the_command_line_of_a_master(overrides: dict[str, Any], parts: list[str]):
    message = refusal(load_master, None, **overrides)

    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("", {"join": None}, ["join is empty", "--join HOST:10240"]),
        ("", {"join": "ip0"}, ['--join = "ip0"', "has no port"]),
        ("", {"join": "127.0.0.1:10241"}, ["--join = 127.0.0.1:10241", "own address"]),
        ("", {"slots": -1}, ["--slots = -1", "must be 0"]),
        ("slots = 1.5", {}, ["slots = 1.5", "must be a whole number"]),
        ("", {"resources": ["gpu"]}, ['--resources = "gpu"', "write NAME=VALUE, as gpu=2"]),
        ("", {"resources": ["gpu=-2"]}, ['--resources.gpu = "-2"', "write a whole number"]),
        ("[resources]\nmemory = 'much'", {}, ['resources.memory = "much"', '"512MiB"']),
        ("", {"labels": ["zone"]}, ['--labels = "zone"', "write NAME=VALUE"]),
        ("[labels]\nzone = 1", {}, ['labels = {"zone": 1}', "must be a string"]),
        ("[labels]\n'a b' = 'c'", {}, ["labels: the label name"]),
        ("drain-timeout = '2d'", {}, ['drain-timeout = "2d"', "must be"]),
        ("log-bytes-max = 1", {}, ["log-bytes-max = 1", "64KiB"]),
        ("[worker]\npreload = ['a b']", {}, ['worker.preload = "a b"', "not the name of a module"]),
        ("[worker]\ntasks-max = -1", {}, ["worker.tasks-max = -1", "0 (never)"]),
        ("[worker]\ngrowth-max = '1GB'", {}, ['worker.growth-max = "1GB"', "is not a size"]),
        ("[retention]\nlogs-age = '7w'", {}, ['retention.logs-age = "7w"', "is not a duration"]),
        ("[retention]\nlogs-size = '1KiB'", {}, ['retention.logs-size = "1KiB"', "must be 1MiB to"]),
        ("[retention]\ndisk-reserve = ''", {}, ['retention.disk-reserve = ""', "is not a size"]),
        ("[env]\n'A=B' = 'c'", {}, ['env: "A=B"', "cannot be an environment variable"]),
        ("", {"name": "a:b"}, ['--name = "a:b"', "letters, digits"]),
        ("jion = ['a:1']", {}, ["unknown key jion", "did you mean join?"]),
    ],
)
def test_a_mistake_of_an_executor(tmp_path: Path, text: str, overrides: dict[str, Any], parts: list[str]):
    message = refusal(load_executor, write(tmp_path, text), **{"join": "ip0:10240", **overrides})

    assert all(part in message for part in parts), message


def test_a_file_that_is_not_there():
    assert "--config = /no/such.toml: cannot be read (No such file" in refusal(load_master, "/no/such.toml")


@pytest.mark.parametrize(
    ("peers", "url", "warning"),
    [
        ("", "", None),
        ("127.0.0.1:1", "", None),
        ("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "", "is not set, and there are 3 masters"),
        ("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "sqlite:////tmp/one", None),
        ("127.0.0.1:1,b:2,c:3", "", "is not set, and there are 3 masters"),
        ("127.0.0.1:1,b:2,c:3", "sqlite:////tmp/one", "is SQLite, but the masters are on 3 hosts"),
        ("127.0.0.1:1,b:2,c:3", "mysql+pymysql://db/tiflow", None),
    ],
)
def test_warns_when_each_master_would_have_its_own_history_and_checkpoints(
    tmp_path: Path, peers: str, url: str, warning: str | None
):
    file = write(tmp_path, f'[metadata]\nurl = "{url}"')

    said = metadata_warning(load_master(file, addr="127.0.0.1:1", peers=peers))

    assert said is None if warning is None else warning in str(said)


def test_the_timings_contain_what_the_leader_waits_for():
    config = load_master(None)

    table = {name: ms for name, ms, _ in timings(config)}

    assert table["worst election"] == worst_election_ms(config.raft) == 1_300
    assert table["lease as the leader sees it"] == 6_000


def test_a_data_directory_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()

    assert prepare_data_dir(str(tmp_path / "new/dir")).is_dir()
    with pytest.raises(FailedPrecondition, match=r"^data-dir = .*/file/x: cannot be written .*; make it writable"):
        prepare_data_dir(str(tmp_path / "file/x"))
