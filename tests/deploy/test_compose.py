"""The files of docker-compose, as docker-compose itself reads them; run-engine.sh where docker is not as wished."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.deploy.tools import ENGINE, REPOSITORY, run, tool

COMPOSE = ENGINE / "docker-compose"
CLUSTERS = {"1m1e": (1, 1), "1m3e": (1, 3), "3m1e": (3, 1), "3m3e": (3, 3), "3m3e_with_tls": (3, 3)}
SCRIPT = str(ENGINE / "run-engine.sh")


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_has_what_its_name_says(name: str):
    done = run(tool("venv/bin/docker-compose"), "-f", str(COMPOSE / f"{name}.yaml"), "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    masters = [service for service in services if service.startswith("server-master-")]
    executors = [service for service in services if service.startswith("executor-")]
    assert (len(masters), len(executors)) == CLUSTERS[name]
    peers = ",".join(f"{master}:10240" for master in masters)
    published: list[str] = []
    for service in (*masters, *executors):
        command = services[service]["command"]
        assert f"{service}:{10240 if service in masters else 10241}" == command[command.index("--advertise-addr") + 1]
        if service in executors or len(masters) > 1:
            assert peers == command[command.index("--peers" if service in masters else "--join") + 1]
        assert services[service]["read_only"]
        published += [port["published"] for port in services[service].get("ports", [])]
    assert len(set(published)) == len(published) == 2 * len(masters)
    data = {services[master]["volumes"][-1 if name != "3m3e_with_tls" else -2]["source"] for master in masters}
    assert data == {f"/tmp/df/master/{number}" for number in range(1, len(masters) + 1)}


def engine(*args: str, cwd: Path = COMPOSE, **environment: str) -> tuple[int, str]:
    done = run("bash", SCRIPT, *args, cwd=cwd, env=os.environ | environment)
    return done.returncode, done.stdout + done.stderr


def only(tmp_path: Path, *programs: str) -> str:
    """A PATH with these programs and nothing else."""
    for program in programs:
        found = shutil.which(program)
        assert found, program
        (tmp_path / program).symlink_to(found)
    return str(tmp_path)


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path):
    basics = only(tmp_path, "bash", "dirname", "readlink", "cat")
    for args, environment, words in (
        (["deploy", "none.yaml"], {}, ["none.yaml", "no such file"]),
        (["deploy"], {}, ["name a file"]),
        (["deploy", "3m1e.yaml"], {"PATH": basics}, ["docker is not installed"]),
        (["build"], {"PATH": basics}, ["docker is not installed"]),
        (["logs", "./deployments/engine/docker-compose/3m1e.yaml"], {"PATH": basics}, ["docker is not installed"]),
    ):
        code, told = engine(*args, **environment)
        assert code == 1, told
        assert all(word in told for word in words), told
        assert len(told.strip().splitlines()) == 1
    assert engine("dance")[0] == 2


@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not installed")
def test_a_daemon_that_does_not_answer_is_told(tmp_path: Path):
    code, told = engine(
        "stop", "1m1e.yaml", cwd=REPOSITORY / "deployments/engine/docker-compose", DOCKER_HOST="unix:///none"
    )
    assert (code, "does not answer (unix:///none)" in told) == (1, True)
