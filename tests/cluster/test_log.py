"""`tiflow raft log`: what a stopped master's directory holds, and what is wrong with it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Cluster, eventually
from tiflow.raft.journal import HEADER_BYTES

NewCluster = Callable[..., Cluster]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """A cluster, and the directory of a master of it that has a snapshot and entries behind it, and was killed."""
    with Cluster(executors=1) as cluster:
        client = cluster.client()
        client.run_command(["true"], count=3).wait(timeout_s=20)
        cluster.cli("raft", "snapshot", check=True)
        eventually(lambda: all(status.snapshot_index for status in cluster.status().values()))
        for _ in range(5):
            client.run_command(["true"]).wait(timeout_s=20)
        applied = max(status.applied_index for status in cluster.status().values())
        eventually(lambda: cluster.status()["m1"].applied_index >= applied)
        cluster.kill("m1")
        yield cluster, cluster.data_dir("m1")


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def look(cluster: Cluster, directory: Path, *args: str) -> tuple[int, dict[str, Any]]:
    before = contents(directory)
    done = cluster.cli("raft", "log", str(directory), "--json", *args)
    assert contents(directory) == before, "nothing is written"
    return done.returncode, json.loads(done.stdout)


def newest(directory: Path) -> Path:
    return max((directory / "raft").glob("journal-*.log"))


def test_entries_commands_and_the_snapshot_are_shown(stopped: tuple[Cluster, Path]):
    cluster, directory = stopped
    code, found = look(cluster, directory)
    summary, entries = found["summary"], [one for one in found["records"] if one["kind"] == "entry"]
    text = cluster.cli("raft", "log", str(directory), "--limit", "5", check=True).stdout

    assert code == 0
    assert summary["damage"] == []
    assert summary["first_index"] <= summary["snapshot"]["index"] < summary["last_index"]
    assert summary["last_index"] == entries[-1]["index"]
    assert summary["members"] == sorted(cluster.addresses.values())
    assert summary["terms"][-1]["last"] == summary["last_index"]
    assert sum(one["commands"].get("SubmitJob", 0) for one in entries) >= 5
    assert {"PlaceTasks", "TaskEvents"} <= {name for one in entries for name in one["commands"]}
    assert f"{summary['first_index']}..{summary['last_index']}" in text
    assert "damage:    none" in text

    last = summary["last_index"]
    _, some = look(cluster, directory, "--from", str(last - 3), "--to", str(last - 1))
    assert [one["index"] for one in some["records"]] == [last - 3, last - 2, last - 1]
    assert some["summary"] == summary, "all is checked, whatever is shown"
    assert len(look(cluster, directory, "--limit", "2")[1]["records"]) == 2


def test_the_directory_of_a_running_master_is_refused(stopped: tuple[Cluster, Path], tmp_path: Path):
    cluster, _ = stopped
    running = cluster.cli("raft", "log", str(cluster.data_dir("m2")))
    empty = cluster.cli("raft", "log", str(tmp_path))

    assert (running.returncode, empty.returncode) == (5, 2)
    assert "in use by a running master" in running.stderr
    assert "holds no log" in empty.stderr


def test_a_torn_tail_is_told_and_is_no_damage(stopped: tuple[Cluster, Path], tmp_path: Path):
    cluster, directory = stopped
    copy = shutil.copytree(directory, tmp_path / "copy")
    size = len(newest(copy).read_bytes().rstrip(b"\0"))  # it was killed: room for more follows
    with newest(copy).open("r+b") as file:
        file.truncate(size - 3)

    code, found = look(cluster, copy)

    assert code == 0
    torn = found["summary"]["torn"]
    assert torn["file"] == str(newest(copy))
    assert size - 200 < torn["offset"] < size


def test_damage_is_told_with_file_and_offset(stopped: tuple[Cluster, Path], tmp_path: Path):
    cluster, directory = stopped
    copy = shutil.copytree(directory, tmp_path / "copy")
    entry = next(one for one in look(cluster, copy)[1]["records"] if one["kind"] == "entry")
    snapshot = copy / "raft" / "snapshot"
    for path, place in ((newest(copy), entry["offset"] + HEADER_BYTES + 1), (snapshot, snapshot.stat().st_size // 2)):
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))

    code, found = look(cluster, copy)
    told = cluster.cli("raft", "log", str(copy)).stderr

    assert code == 1
    damage = {(one["file"], one["offset"]) for one in found["summary"]["damage"]}
    assert damage >= {(str(newest(copy)), entry["offset"]), (str(snapshot), 0)}
    assert f"{newest(copy)}: damaged at offset {entry['offset']}: " in told
    assert f"{snapshot}: damaged at offset 0: does not match its checksum" in told
