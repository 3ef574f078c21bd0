"""A cluster of docker-compose as `make deploy_test` drives it, and jobs whose tasks leave marks."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.deploy.engine import COMPOSE, IMAGE, Docker, Failed, say
from tests.deploy.tools import ENGINE

RUN_ENGINE: Final = str(ENGINE / "run-engine.sh")
MARKS: Final = Path("/tmp/df/marks")  #: where tasks write when they begin and end
TASK_S: Final = 0.4


class Cluster:
    """A cluster of docker-compose, from its first file to the last."""

    def __init__(self, docker: Docker, mysql: str) -> None:
        self._docker = docker
        self._environment = {"TIFLOW_MYSQL_IMAGE": mysql, "READY_S": "300"}
        self._files: list[str] = []
        self.masters: list[str] = []

    def deploy(self, file: str) -> str:
        """Start what a file says, or become it. Its executors share MARKS. Returns: what run-engine.sh printed."""
        self.masters = [f"server-master-{number}" for number in range(int(file[0]))]
        executors = {f"executor-{number}": {"volumes": [f"{MARKS}:/marks"]} for number in range(int(file[2]))}
        override = MARKS / "override.yaml"
        override.write_text(json.dumps({"services": executors}))
        self._files = [str(COMPOSE / file), str(override)]
        started_s = time.monotonic()
        printed = self._docker.run("bash", RUN_ENGINE, "deploy", *self._files, env=self._environment)
        say(f"{file} is ready, {time.monotonic() - started_s:.1f} s after its start")
        return printed

    def refused(self, *argv: str, **environment: str) -> str:
        """The one line with which run-engine.sh refuses. Raises Failed if it does not."""
        code, _, told = self._docker.try_run("bash", RUN_ENGINE, *argv, env=self._environment | environment)
        if code != 1 or not told.startswith("run-engine.sh: ") or len(told.splitlines()) != 1:
            raise Failed(f"run-engine.sh {' '.join(argv)} ended with {code}: {told}")
        return told

    def stop(self) -> None:
        if self._files:
            self._docker.run("bash", RUN_ENGINE, "stop", *self._files, env=self._environment)

    def compose(self, *argv: str, input: str | None = None, image: str = IMAGE) -> str:
        flags = [word for file in self._files for word in ("-f", file)]
        return self._docker.run(
            "docker-compose", *flags, *argv, input=input, env=self._environment | {"TIFLOW_IMAGE": image}
        )

    def docker(self, *argv: str) -> str:
        return self._docker.run("docker", *argv)

    def container(self, service: str) -> str:
        return f"tiflow-{service}-1"

    def services(self) -> set[str]:
        """Those that run, whatever file they came from."""
        names = self.docker("ps", "--format", "{{.Names}}").split()
        return {name.removeprefix("tiflow-").removesuffix("-1") for name in names}

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

    def executors(self) -> set[str]:
        """Those that are alive."""
        listed = json.loads(self.tiflow("executor", "list", "--json"))
        return {one["name"] for one in listed if one["state"] == "alive"}

    def caught_up(self) -> bool:
        lags = [peer["lag"] for one in self.status() for peer in one["peers"] if peer["connected"]]
        return len(lags) == len(self.masters) - 1 and not any(lags)

    def health(self, service: str) -> str:
        return self.docker("inspect", "-f", "{{.State.Health.Status}}", self.container(service)).strip()

    def _running(self, service: str) -> bool:
        return self.docker("inspect", "-f", "{{.State.Running}}", self.container(service)).strip() == "true"

    # ---- jobs

    def submit(self, id: str, count: int) -> None:
        """Tasks that write into MARKS when they begin and when they end."""
        mark = f"$(date +%s%N) >>/marks/{id}-{{index}}"
        script = f"echo b {mark}; sleep {TASK_S}; echo e {mark}"
        job = f'id = "{id}"\ntype = "command"\nargv = ["sh", "-c", "{script}"]\ncount = {count}\nattempts = 3\n'
        self.tiflow("job", "submit", "/dev/stdin", input=job)

    def job(self, id: str) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(self.tiflow("job", "get", id, "--json"))
        return job

    def finished(self, id: str, count: int) -> None:
        """All tasks succeeded, and no two attempts of one were alive at once."""
        job = until(f"the end of job {id}", lambda: (job := self.job(id))["ended_at_ms"] and job, within_s=300)
        succeeded = sum(group["succeeded"] for group in job["groups"])
        if (job["state"], succeeded) != ("Finished", count):
            raise Failed(f"job {id} is {job['state']}: {succeeded} of {count} tasks succeeded")
        judged = [judge((MARKS / f"{id}-{index}").read_text()) for index in range(count)]
        again, overlaps, unended = (sum(column) for column in zip(*judged, strict=True))
        if overlaps or unended:
            raise Failed(
                f"job {id}: {overlaps} attempts began while an earlier one of the same task could be alive, and "
                f"{unended} tasks have no end"
            )
        say(f"job {id}: {count} tasks succeeded, {again} attempts were made again, none overlapped")


def judge(marks: str) -> tuple[int, int, int]:
    """Of one task's marks, `b` or `e` and a time in ns in each line: attempts but the first; those that began while
    an earlier one could be alive; 1 if the last has no end."""
    begun: int | None = None
    begins = overlaps = 0
    for line in marks.splitlines():
        kind, at_ns = line.split()
        if kind == "e":
            begun = None
            continue
        begins += 1
        # an attempt without an end was killed: the next must not begin within its time
        overlaps += begun is not None and int(at_ns) - begun < TASK_S * 1e9
        begun = int(at_ns)
    return begins - 1, overlaps, int(begun is not None or not begins)


def until(what: str, condition: Callable[[], Any], within_s: float = 180.0) -> Any:
    """Wait for it, and return what it returned. Raises Failed."""
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
