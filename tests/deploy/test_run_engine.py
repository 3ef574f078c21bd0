"""run-engine.sh: what it does with docker, and what it says when something is not as it should be.

Docker is a stand-in here, which keeps a list of what it was asked; docker-compose reads the files itself, and only
what needs an engine is a stand-in. `make deploy_test` has the real ones.
"""

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.deploy.tools import ENGINE, REPOSITORY, run, tool

COMPOSE = ENGINE / "docker-compose"
SCRIPT = str(ENGINE / "run-engine.sh")
DOCKER = r"""#!/bin/sh
echo "docker $*" >>"$FAKE/calls"
case "$1 $2" in
version*) test ! -e "$FAKE/down" ;;
"image inspect") grep -qx "$3" "$FAKE/images" ;;
"pull --quiet") echo "Error: no registry here" >&2; exit 1 ;;
"ps --all") case $* in *Ports*) cat "$FAKE/ports" ;; *) cat "$FAKE/services" ;; esac ;;
"compose version") test -e "$FAKE/plugin" ;;
compose*) shift; exec docker-compose "$@" ;;
esac
"""
DOCKER_COMPOSE = r"""#!/bin/sh
echo "docker-compose $*" >>"$FAKE/calls"
case " $* " in
*" version "*) cat "$FAKE/version" ;;
*" up --help "*) cat "$FAKE/help" ;;
*" config "*) exec "$COMPOSE_REAL" "$@" ;;
*" up "*) test ! -e "$FAKE/not-ready" ;;
*" ps --all --format "*)
    echo "prepare exited"
    echo "server-master-0 running unhealthy"
    echo "executor-0 running healthy" ;;
*" logs "*) echo "last words: $*" ;;
*" executor list --json"*) for i in 1 2 3 4; do echo '"state":"alive"'; done ;;
esac
"""


class Fake:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name, text in (("docker", DOCKER), ("docker-compose", DOCKER_COMPOSE)):
            (directory / "bin").mkdir(exist_ok=True)
            (directory / "bin" / name).write_text(text)
            (directory / "bin" / name).chmod(0o755)
        self.says(version="5.6.1", help="--wait-timeout", images="dataflow:test\nmysql:8.4", services="", ports="")
        (directory / "calls").touch()

    def says(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / name.replace("_", "-")).write_text(text + "\n" if text else "")

    def calls(self, word: str) -> list[str]:
        return [line for line in (self.directory / "calls").read_text().splitlines() if f" {word}" in line]

    def engine(self, *argv: str, cwd: Path = COMPOSE, script: str = SCRIPT, **environment: str) -> tuple[int, str]:
        """Exit code and all that is printed."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(("TIFLOW_", "COMPOSE_"))}
        own = {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(self.directory),
            "COMPOSE_REAL": tool("venv/bin/docker-compose"),
        }
        done = run("bash", script, *argv, cwd=cwd, env=known | own | environment)
        return done.returncode, done.stdout + done.stderr

    def refused(self, *argv: str, cwd: Path = COMPOSE, **environment: str) -> str:
        """The one line that says why nothing was done."""
        code, told = self.engine(*argv, cwd=cwd, **environment)
        assert code == 1, told
        assert told.startswith("run-engine.sh: "), told
        assert len(told.splitlines()) == 1, told
        assert not self.calls("up --detach")
        return told


@pytest.fixture
def docker(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_a_file_is_looked_up_here_then_in_the_repository(docker: Fake, tmp_path: Path):
    from_root = docker.engine("deploy", "./deployments/engine/docker-compose/3m3e.yaml", script="../run-engine.sh")
    here = docker.engine("deploy", "3m3e.yaml")
    nowhere = docker.engine("deploy", "3m3e.yaml", cwd=tmp_path)

    for code, told in (from_root, here):
        assert code == 0, told
        assert "The cluster is ready" in told
        assert "removing" not in told
    for call in docker.calls("up --detach"):
        assert f"-f {COMPOSE / '3m3e.yaml'} up --detach --remove-orphans --wait --wait-timeout 120" in call
    assert len(docker.calls("up --detach")) == 2
    assert nowhere[0] == 1
    assert "3m3e.yaml: there is no such file, neither here nor in" in nowhere[1]


def test_what_runs_and_is_not_in_the_file_is_removed_and_named(docker: Fake):
    docker.says(services="server-master-0\nmysql\nprepare\nexecutor-0\nexecutor-1\ngrafana")

    code, told = docker.engine("deploy", "1m1e.yaml")

    assert (code, told.splitlines()[0]) == (0, "removing what is not in 1m1e.yaml: executor-1 grafana")
    assert len(docker.calls("up --detach --remove-orphans")) == 1


@pytest.mark.parametrize("file", ["1m1e.yaml", "3m1e.yaml"])
def test_the_number_of_masters_is_not_changed(docker: Fake, file: str):
    masters = 3 if file == "1m1e.yaml" else 1
    docker.says(services="\n".join(f"server-master-{number}" for number in range(masters)))

    told = docker.refused("deploy", file)

    assert f"`run-engine.sh stop {file}`, sudo rm -rf /tmp/df/master" in told


def test_an_old_docker_compose_is_refused_unless_there_is_a_new_one_beside_it(docker: Fake):
    docker.says(version="1.29.2")
    assert "docker-compose 1.29.2 is too old, 2.17 or newer" in docker.refused("deploy", "1m1e.yaml")
    assert "docker-compose 1.29.2 is too old, 2.17 or newer" in docker.refused("stop", "1m1e.yaml")

    docker.says(version="v2.3.3", help="--wait")
    assert "is too old, 2.17 or newer" in docker.refused("deploy", "1m1e.yaml")

    docker.says(version="1.29.2", help="--wait-timeout", plugin="yes")
    code, told = docker.engine("deploy", "1m1e.yaml")
    assert code == 0, told
    assert "\n  docker compose -f " in told


def test_a_port_of_somebody_else_is_named_and_our_own_is_not_minded(docker: Fake, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = tmp_path / "own.yaml"
        service = f'{{image: "dataflow:test", ports: ["127.0.0.1:{port}:10240"]}}'
        file.write_text(f"services:\n  server-master-0: {service}\n")

        assert f"port {port} of this machine is in use: stop what listens there" in docker.refused(
            "deploy", str(file)
        )
        docker.says(services="server-master-0", ports=f"127.0.0.1:{port}->10240/tcp")
        code, told = docker.engine("deploy", str(file))

    assert code == 0, told


def test_what_is_missing_is_told_with_what_to_do(docker: Fake, tmp_path: Path):
    (tmp_path / "broken.yaml").write_text("services: [\n")
    (tmp_path / "other.yaml").write_text("services: {web: {image: nginx}}\n")
    assert "name a file" in docker.refused("deploy")
    assert "READY_S = soon: must be a whole number" in docker.refused("deploy", "1m1e.yaml", READY_S="soon")
    assert "has no service server-master-0" in docker.refused("deploy", "other.yaml", cwd=tmp_path)
    assert "cannot read broken.yaml" in docker.engine("deploy", "broken.yaml", cwd=tmp_path)[1]
    assert "no cluster is deployed: run-engine.sh deploy" in docker.refused("logs")
    docker.says(images="dataflow:test")
    code, told = docker.engine("deploy", "1m1e.yaml")
    assert code == 1
    assert "there is no image mysql:8.4, and it cannot be pulled (Error: no registry here)" in told
    assert "TIFLOW_MYSQL_IMAGE" in told
    docker.says(images="")
    assert "there is no image dataflow:test: build it with `run-engine.sh build`" in docker.refused(
        "deploy", "1m1e.yaml"
    )
    docker.says(down="yes")
    for command in (["deploy", "1m1e.yaml"], ["stop", "1m1e.yaml"], ["logs"], ["build"], ["build-local"]):
        assert "the docker daemon does not answer (unix:///none): start it" in docker.refused(
            *command, DOCKER_HOST="unix:///none"
        )
    assert docker.engine("dance")[0] == 2


def test_programs_that_are_not_installed_are_named(docker: Fake, tmp_path: Path):
    basics = tmp_path / "basics"
    basics.mkdir()
    for program in ("bash", "dirname", "readlink", "cat"):
        (basics / program).symlink_to(str(shutil.which(program)))
    without_docker = docker.refused("stop", "1m1e.yaml", PATH=str(basics))
    (basics / "docker").symlink_to(tmp_path / "bin" / "docker")
    without_compose = docker.refused("stop", "1m1e.yaml", PATH=str(basics))

    assert "docker is not installed: see https://" in without_docker
    assert "docker-compose is not installed: see https://" in without_compose


def test_a_cluster_that_does_not_become_ready_shows_the_last_words_of_what_ails(docker: Fake):
    docker.says(not_ready="yes")

    code, told = docker.engine("deploy", "1m1e.yaml", READY_S="7")

    assert code == 1
    assert "last words: " in told
    assert "--tail 3 server-master-0" in told
    assert "--tail 3 executor-0" not in told
    assert "--tail 3 prepare" not in told
    assert "READY_S = 7 s" in told.splitlines()[-1]
    assert "sudo rm -rf /tmp/df/master" in told.splitlines()[-1]


def test_logs_need_no_file(docker: Fake):
    docker.says(services="server-master-0")

    code, told = docker.engine("logs")

    assert code == 0, told
    assert docker.calls("logs --follow") == ["docker-compose -p tiflow logs --follow"]


def test_every_shell_script_is_clean():
    scripts = [*REPOSITORY.glob("scripts/*.sh"), *ENGINE.rglob("*.sh"), *(REPOSITORY / "tests").rglob("*.sh")]
    done = run(
        tool("venv/bin/shellcheck"), *map(str, scripts), str(REPOSITORY / ".ci/run"), str(ENGINE / "docker/tiflow")
    )
    assert done.returncode == 0, done.stdout
