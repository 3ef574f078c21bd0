"""Builds the image, brings clusters up with docker-compose, hurts them, and looks whether the promises hold.

    make deploy_test

What it starts, it stops. `--where-possible`: a machine that cannot run a docker engine, or not within the seconds of
`--within`, is no failure.
"""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.deploy.engine import IMAGE, Docker, Failed, Impossible, base_images, engine, say
from tests.deploy.pods import MARKS, RUN_ENGINE, Cluster, until

NEXT_IMAGE: Final = "dataflow:next"
OVER_BASE_BYTES_MAX: Final = 200_000_000
#: how pip and apt say that they do not reach what they need
NETWORK: Final = ("Could not connect", "Failed to fetch", "Max retries", "Read timed out", "Temporary failure")


def build(docker: Docker) -> None:
    environment = {"BUILD_ARGS": "--network=host", "DOCKER_BUILDKIT": "0"}
    try:
        docker.run("bash", RUN_ENGINE, "build", env=environment, timeout_s=1_200)
    except Failed as error:
        if any(words in str(error) for words in NETWORK):
            raise Impossible(f"the image cannot be built without its packages: {error}") from error
        raise
    sizes = [int(docker.run("docker", "inspect", "-f", "{{.Size}}", image)) for image in (IMAGE, "python:3.11-slim")]
    over_base = sizes[0] - sizes[1]
    say(f"built {IMAGE}: {sizes[0] / 1e6:.0f} MB, {over_base / 1e6:.0f} over its base")
    if over_base > OVER_BASE_BYTES_MAX:
        raise Failed(
            f"the image is {over_base / 1e6:.0f} MB over its base; {OVER_BASE_BYTES_MAX / 1e6:.0f} are allowed"
        )


def come_up(cluster: Cluster) -> None:
    cluster.deploy("3m1e.yaml")
    if "removing" in cluster.deploy("3m1e.yaml"):
        raise Failed("a file that is deployed twice removes something")
    refusals = {
        "the number of masters cannot change": cluster.refused("deploy", "1m1e.yaml"),
        "there is no image dataflow:none: build it": cluster.refused(
            "deploy", "3m1e.yaml", TIFLOW_IMAGE="dataflow:none"
        ),
        "and it cannot be pulled": cluster.refused("deploy", "3m1e.yaml", TIFLOW_MYSQL_IMAGE="mysql:none"),
    }
    for words, told in refusals.items():
        if words not in told:
            raise Failed(f"run-engine.sh says {told!r} instead of: {words}")


def kill_the_leader(cluster: Cluster) -> None:
    cluster.submit("leader", 60)
    leader = cluster.leader()
    cluster.docker("kill", cluster.container(leader))
    say(f"killed the container of the leader, {leader}")
    cluster.finished("leader", 60)
    cluster.docker("start", cluster.container(leader))


def pause_mysql(cluster: Cluster) -> None:
    cluster.docker("pause", cluster.container("mysql"))
    say("paused MySQL")
    cluster.submit("mysql", 40)
    cluster.finished("mysql", 40)
    cluster.docker("unpause", cluster.container("mysql"))

    def projected() -> bool:
        query = "select state from tiflow.jobs where id = 'mysql'"
        return "Finished" in cluster.compose("exec", "-T", "mysql", "mysql", "-utiflow", "-ptiflow", "-Ne", query)

    until("the job in MySQL", projected)
    until("docker takes MySQL for healthy", lambda: cluster.health("mysql") == "healthy")
    say("MySQL is back, and has the job")


def scale_out(cluster: Cluster) -> None:
    cluster.deploy("3m3e.yaml")
    if cluster.executors() != {"executor-0", "executor-1", "executor-2"}:
        raise Failed(f"these executors are alive: {cluster.executors()}")
    say("scaled from one executor to three")


def cut_an_executor_off(cluster: Cluster) -> None:
    cluster.submit("network", 80)
    container = cluster.container("executor-0")
    cluster.docker("network", "disconnect", "tiflow_default", container)
    say("cut executor-0 off its network")
    cluster.finished("network", 80)
    cluster.docker("network", "connect", "--alias", "executor-0", "tiflow_default", container)
    until("executor-0 is back", lambda: "executor-0" in cluster.executors())


def upgrade(cluster: Cluster) -> None:
    cluster.docker("tag", IMAGE, NEXT_IMAGE)
    cluster.submit("upgrade", 80)
    for master in cluster.masters:
        cluster.compose("up", "--detach", "--no-deps", "--wait", "--force-recreate", master, image=NEXT_IMAGE)
        until(f"{master} has caught up", cluster.caught_up)
    say("replaced the masters, one at a time")
    cluster.finished("upgrade", 80)


def scale_in(cluster: Cluster) -> None:
    cluster.submit("fewer", 60)
    printed = cluster.deploy("3m1e.yaml")
    if "removing what is not in" not in printed or not printed.count("executor-1 executor-2"):
        raise Failed(f"what is removed is not said: {printed}")
    left = {name for name in cluster.services() if name.startswith("executor-")}
    if left != {"executor-0"}:
        raise Failed(f"these executors run: {left}")
    cluster.finished("fewer", 60)
    say("scaled from three executors to one")


def use_tls(cluster: Cluster) -> None:
    cluster.stop()
    if cluster.services():
        raise Failed(f"still there after stop: {cluster.services()}")
    shutil.rmtree("/tmp/df/master")
    cluster.deploy("3m3e_with_tls.yaml")
    cluster.submit("tls", 30)
    cluster.finished("tls", 30)


STEPS: Final[Sequence[Callable[[Cluster], None]]] = (
    come_up,
    kill_the_leader,
    pause_mysql,
    scale_out,
    cut_an_executor_off,
    upgrade,
    scale_in,
    use_tls,
)


def _end_orderly(within_s: int) -> None:
    """Whatever ends this, the engine is stopped first."""

    def give_up(*_: object) -> None:
        raise Impossible(f"this machine has not come to the end within {within_s} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.alarm(within_s)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.live")
    parser.add_argument("--where-possible", action="store_true")
    parser.add_argument("--within", type=int, default=0, metavar="SECONDS")
    options = parser.parse_args(argv)
    _end_orderly(options.within)
    for part in ("marks", "master"):
        shutil.rmtree(Path("/tmp/df") / part, ignore_errors=True)
    MARKS.mkdir(parents=True)
    MARKS.chmod(0o1777)
    began_s = time.monotonic()
    passed = 0
    try:
        with ExitStack() as stack:
            docker = stack.enter_context(engine())
            mysql = base_images(docker)
            build(docker)
            passed += 1
            docker.network("own")
            cluster = Cluster(docker, mysql)
            stack.callback(cluster.stop)
            stack.callback(signal.alarm, 0)  # what follows is not to be interrupted
            for step in STEPS:
                step(cluster)
                passed += 1
                say(f"ok: {step.__name__.replace('_', ' ')}")
    except Impossible as reason:
        say(f"SKIPPED: {reason}")
        return 0 if options.where_possible else 1
    except Failed as broken:
        say(f"FAILED: {broken}")
        print(f"{passed} passed, 1 failed in {time.monotonic() - began_s:.0f}s")
        return 1
    finally:
        for part in ("marks", "master"):
            shutil.rmtree(Path("/tmp/df") / part, ignore_errors=True)
    say("all promises were kept")
    print(f"{passed} passed in {time.monotonic() - began_s:.0f}s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
