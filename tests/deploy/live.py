"""Builds the image, brings clusters up with docker-compose, hurts them, and looks whether the promises hold.

    make deploy_test

It takes a docker engine: the one of this machine, or, for root on Debian where none answers, one of its own in
private namespaces (in the directory TIFLOW_TEST_DOCKER, which is kept then). Where no registry can be reached, base
images are made of Debian packages. What it starts, it stops.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.deploy.tools import ENGINE, TOOLS

HERE: Final = Path(__file__).parent
COMPOSE: Final = ENGINE / "docker-compose"
IMAGE, NEXT_IMAGE = "dataflow:test", "dataflow:next"
PYTHON_IMAGE, MYSQL_IMAGE, MYSQL_OWN = "python:3.11-slim", "mysql:8.4", "tiflow-mysql:test"
DEBIAN_PACKAGES: Final = ("docker.io", "tini", "mmdebstrap", "iproute2")
SLIM: Final = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale")]
MARKS: Final = Path("/tmp/df/marks")  #: where tasks write when they begin and end; see marks.yaml
TASK_S: Final = 0.4


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class Failed(Exception):
    """A promise was broken."""


class Docker:
    """An engine, and how commands reach it."""

    def __init__(self, private: Path | None) -> None:
        self._private = private
        self.environment = {
            **os.environ,
            "PATH": f"{TOOLS / 'venv' / 'bin'}:{os.environ['PATH']}:/usr/sbin",
            "TIFLOW_IMAGE": IMAGE,
        }
        if private is not None:
            self.environment["DOCKER_HOST"] = f"unix://{private / 'docker.sock'}"

    def run(
        self,
        *argv: str,
        timeout_s: float = 600,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """What the command prints. It runs where the engine's published ports are. Raises Failed."""
        prefix = [str(HERE / "private-docker.sh"), "in", str(self._private)] if self._private is not None else []
        done = subprocess.run(
            [*prefix, *argv],
            env=self.environment | dict(env or {}),
            cwd=COMPOSE,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            input=input,
        )
        if done.returncode != 0:
            told = f"{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}"
            raise Failed(f"{' '.join(argv)} ended with {done.returncode}:\n{told}")
        return done.stdout


@contextmanager
def engine() -> Iterator[tuple[Docker, Callable[[str], None]]]:
    """A docker engine; and what builds an image's base, for which it may have to change the engine's network."""
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    ):
        yield Docker(None), lambda network: None
        return
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        raise SystemExit("no docker engine answers, and only root on Debian can have one of its own: start docker")
    say("no docker engine here: one in private namespaces")
    missing = [name for name in ("dockerd", "tini", "mmdebstrap", "ip") if not shutil.which(name)]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES],
        ):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    script = str(HERE / "private-docker.sh")
    kept = os.environ.get("TIFLOW_TEST_DOCKER")
    directory = Path(kept or tempfile.mkdtemp(prefix="tiflow-docker-", dir="/var/tmp"))
    directory.mkdir(exist_ok=True)

    def network(kind: str) -> None:
        if (directory / "pid").exists():
            subprocess.run([script, "down", str(directory)], check=True)
        subprocess.run([script, "up", str(directory), *(["host"] if kind == "host" else [])], check=True)

    try:
        network("host")
        yield Docker(directory), network
    finally:
        subprocess.run([script, "down", str(directory)], check=False)
        (directory / "pid").unlink(missing_ok=True)
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)


def base_images(docker: Docker) -> str:
    """See that the images are there on which ours rest. Returns: the name of MySQL's."""
    if not _has(docker, PYTHON_IMAGE) and not _pull(docker, PYTHON_IMAGE):
        say(f"no registry answers: {PYTHON_IMAGE} is made of Debian's packages")
        certificates = "/etc/ssl/certs/ca-certificates.crt"
        hook = (
            'ln -sf python3 "$1/usr/bin/python"; ln -sf pip3 "$1/usr/bin/pip"; '
            'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED; '
            # this machine may trust a proxy of its own
            f'cp {certificates} "$1{certificates}"; printf "[global]\\ncert={certificates}\\n" >"$1/etc/pip.conf"'
        )
        packages = "python3,python3-pip,python3-venv,ca-certificates"
        _debian(docker, PYTHON_IMAGE, "bookworm", packages, f"--customize-hook={hook}")
    if _has(docker, MYSQL_OWN):
        return MYSQL_OWN
    if _has(docker, MYSQL_IMAGE) or _pull(docker, MYSQL_IMAGE):
        return MYSQL_IMAGE
    say("no registry answers: MySQL's image is made of Debian's packages (the real server, another entry point)")
    _debian(docker, "tiflow-mysql-base", "sid", "mysql-server-core,mysql-client-core")
    docker.run(
        "docker", "build", "--network=host", "-t", MYSQL_OWN, str(HERE / "mysql"), env={"DOCKER_BUILDKIT": "0"}
    )
    return MYSQL_OWN


def _has(docker: Docker, image: str) -> bool:
    return image in docker.run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()


def _pull(docker: Docker, image: str) -> bool:
    try:
        docker.run("docker", "pull", "--quiet", image, timeout_s=120)
    except (Failed, subprocess.TimeoutExpired):
        return False
    return True


def _debian(docker: Docker, image: str, suite: str, packages: str, *options: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        archive = f"{scratch}/root.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", *SLIM, *options]
        subprocess.run([*command, '--aptopt=Acquire::Check-Valid-Until "false"', suite, archive], check=True)
        docker.run("docker", "import", "--change", 'CMD ["bash"]', archive, image)


class Cluster:
    """A cluster of docker-compose, from its first file to the last."""

    def __init__(self, docker: Docker, mysql: str) -> None:
        self._docker = docker
        self._mysql = {"TIFLOW_MYSQL_IMAGE": mysql}
        self._files: list[str] = []
        self.masters: list[str] = []

    def deploy(self, file: str) -> None:
        """Start what a file says, or become it. Its executors share MARKS."""
        self.masters = [f"server-master-{number}" for number in range(int(file[0]))]
        executors = {f"executor-{number}": {"volumes": [f"{MARKS}:/marks"]} for number in range(int(file[2]))}
        override = MARKS / "override.yaml"
        override.write_text(json.dumps({"services": executors}))
        self._files = [str(COMPOSE / file), str(override)]
        started_s = time.monotonic()
        self._engine("deploy")
        say(f"{file} is ready, {time.monotonic() - started_s:.1f} s after its start")

    def stop(self) -> None:
        if self._files:
            self._engine("stop")

    def _engine(self, verb: str) -> None:
        self._docker.run("bash", str(ENGINE / "run-engine.sh"), verb, *self._files, env=self._mysql)

    def compose(self, *argv: str, input: str | None = None, image: str = IMAGE) -> str:
        flags = [word for file in self._files for word in ("-f", file)]
        env = self._mysql | {"TIFLOW_IMAGE": image}
        return self._docker.run("docker-compose", *flags, *argv, input=input, env=env)

    def docker(self, *argv: str) -> str:
        return self._docker.run("docker", *argv)

    def container(self, service: str) -> str:
        return f"tiflow-{service}-1"

    def tiflow(self, *argv: str, input: str | None = None) -> str:
        """`tiflow ARGV` in the container of a master that runs."""
        service = next(name for name in self.masters if self._running(name))
        peers = "TIFLOW_MASTER_ADDRS=" + ",".join(f"{name}:10240" for name in self.masters)
        return self.compose("exec", "-T", "-e", peers, service, "/tiflow", *argv, input=input)

    def status(self) -> list[dict[str, Any]]:
        masters: list[dict[str, Any]] = json.loads(self.tiflow("raft", "status", "--json"))["masters"]
        return masters

    def leader(self) -> str:
        leaders: list[str] = until(
            "a leader", lambda: [one["name"] for one in self.status() if one["role"] == "leader"]
        )
        return leaders[0]

    def job(self, id: str) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(self.tiflow("job", "get", id, "--json"))
        return job

    def health(self, service: str) -> str:
        return self.docker("inspect", "-f", "{{.State.Health.Status}}", self.container(service)).strip()

    def _running(self, service: str) -> bool:
        return self.docker("inspect", "-f", "{{.State.Running}}", self.container(service)).strip() == "true"


def until(what: str, condition: Callable[[], Any], within_s: float = 90.0) -> Any:
    """Wait for it, and return what it returned."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            if value := condition():
                return value
            last: object = value
        except Failed as error:
            last = error
        if time.monotonic() > deadline_s:
            raise Failed(f"not within {within_s:g} s: {what}; last: {last}")
        time.sleep(0.3)


def submit(cluster: Cluster, id: str, count: int) -> None:
    """Tasks that write into MARKS when they begin and when they end."""
    mark = f"$(date +%s%N) >>/marks/{id}-{{index}}"
    script = f"echo b {mark}; sleep {TASK_S}; echo e {mark}"
    job = f'id = "{id}"\ntype = "command"\nargv = ["sh", "-c", "{script}"]\ncount = {count}\nattempts = 3\n'
    cluster.tiflow("job", "submit", "/dev/stdin", input=job)


def finished(cluster: Cluster, id: str, count: int) -> None:
    """All tasks succeeded, and no two attempts of one were alive at once."""
    job = until(f"the end of job {id}", lambda: (job := cluster.job(id))["ended_at_ms"] and job, within_s=180)
    succeeded = sum(group["succeeded"] for group in job["groups"])
    if (job["state"], succeeded) != ("Finished", count):
        raise Failed(f"job {id} is {job['state']}: {succeeded} of {count} tasks succeeded")
    overlaps = 0
    again = 0
    for index in range(count):
        marks = [line.split() for line in (MARKS / f"{id}-{index}").read_text().splitlines()]
        kinds = "".join(mark[0] for mark in marks)
        again += kinds.count("b") - 1
        begun: int | None = None
        for mark in marks:
            if mark[0] == "b":
                # an attempt without an end was killed: the next must not begin within its time
                if begun is not None and int(mark[1]) - begun < TASK_S * 1e9:
                    overlaps += 1
                begun = int(mark[1])
            else:
                begun = None
    if overlaps:
        raise Failed(f"job {id}: {overlaps} attempts began while an earlier one of the same task could be alive")
    say(f"job {id}: {count} tasks succeeded, {again} attempts were made again, none overlapped")


def kill_the_leader(cluster: Cluster) -> None:
    submit(cluster, "leader", 60)
    leader = cluster.leader()
    cluster.docker("kill", cluster.container(leader))
    say(f"killed the container of the leader, {leader}")
    finished(cluster, "leader", 60)
    cluster.docker("start", cluster.container(leader))


def pause_mysql(cluster: Cluster) -> None:
    cluster.docker("pause", cluster.container("mysql"))
    say("paused MySQL")
    submit(cluster, "mysql", 40)
    finished(cluster, "mysql", 40)
    cluster.docker("unpause", cluster.container("mysql"))

    def projected() -> bool:
        query = "select state from tiflow.jobs where id = 'mysql'"
        return "Finished" in cluster.compose("exec", "-T", "mysql", "mysql", "-utiflow", "-ptiflow", "-Ne", query)

    until("the job in MySQL", projected)
    until("docker takes MySQL for healthy", lambda: cluster.health("mysql") == "healthy")
    say("MySQL is back, and has the job")


def cut_an_executor_off(cluster: Cluster) -> None:
    submit(cluster, "network", 80)
    container = cluster.container("executor-0")
    cluster.docker("network", "disconnect", "tiflow_default", container)
    say("cut executor-0 off its network")
    finished(cluster, "network", 80)
    cluster.docker("network", "connect", "--alias", "executor-0", "tiflow_default", container)

    def back() -> bool:
        executors = json.loads(cluster.tiflow("executor", "list", "--json"))
        return any(one["name"] == "executor-0" and one["state"] == "alive" for one in executors)

    until("executor-0 is back", back)


def caught_up(cluster: Cluster) -> bool:
    lags = [peer["lag"] for one in cluster.status() for peer in one["peers"] if peer["connected"]]
    return len(lags) == len(cluster.masters) - 1 and not any(lags)


def upgrade(cluster: Cluster) -> None:
    cluster.docker("tag", IMAGE, NEXT_IMAGE)
    submit(cluster, "upgrade", 80)
    for master in cluster.masters:
        cluster.compose("up", "--detach", "--no-deps", "--wait", "--force-recreate", master, image=NEXT_IMAGE)
        until(f"{master} has caught up", lambda: caught_up(cluster))
    say("replaced the masters, one at a time")
    finished(cluster, "upgrade", 80)


def main() -> int:
    for part in ("marks", "master"):
        path = Path("/tmp/df") / part
        shutil.rmtree(path, ignore_errors=True)
    MARKS.mkdir(parents=True)
    MARKS.chmod(0o1777)
    began_s = time.monotonic()
    try:
        with ExitStack() as stack:
            docker, network = stack.enter_context(engine())
            mysql = base_images(docker)
            environment = {"BUILD_ARGS": "--network=host", "DOCKER_BUILDKIT": "0"}
            docker.run("bash", str(ENGINE / "run-engine.sh"), "build", env=environment, timeout_s=1_200)
            say(f"built {IMAGE}: {docker.run('docker', 'images', '--format', '{{.Size}}', IMAGE).strip()}")
            network("own")
            cluster = Cluster(docker, mysql)
            stack.callback(cluster.stop)
            cluster.deploy("3m1e.yaml")
            kill_the_leader(cluster)
            pause_mysql(cluster)
            cluster.deploy("3m3e.yaml")
            say("scaled from one executor to three")
            cut_an_executor_off(cluster)
            upgrade(cluster)
            cluster.stop()
            shutil.rmtree("/tmp/df/master")
            cluster.deploy("3m3e_with_tls.yaml")
            submit(cluster, "tls", 30)
            finished(cluster, "tls", 30)
            cluster.stop()
            shutil.rmtree("/tmp/df/master")
    except Failed as broken:
        say(f"FAILED: {broken}")
        return 1
    say(f"all promises were kept; {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
