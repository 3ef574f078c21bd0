"""A docker engine for `make deploy_test`, and the images on which ours rest.

The engine is that of this machine, or, for root on Debian where none answers, one of its own in private namespaces.
Where no registry can be reached, base images are made of Debian packages.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.deploy.tools import ENGINE, TOOLS

HERE: Final = Path(__file__).parent
COMPOSE: Final = ENGINE / "docker-compose"
SCRIPT: Final = str(HERE / "private-docker.sh")
IMAGE: Final = "dataflow:test"
PYTHON_IMAGE, MYSQL_IMAGE, MYSQL_OWN = "python:3.11-slim", "mysql:8.4", "tiflow-mysql:test"
DEBIAN_PACKAGES: Final = ("docker.io", "tini", "mmdebstrap", "iproute2", "iptables")
PROGRAMS: Final = ("dockerd", "tini", "mmdebstrap", "ip", "iptables")
SLIM: Final = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale")]
PLACE: Final = Path("/var/tmp")  #: overlayfs needs a real file system below it
PREFIX: Final = "tiflow-docker-"
OWNER: Final = "owner"  #: file: the pid of the test that has the engine
FREE_BYTES_MIN: Final = 4 << 30


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class Failed(Exception):
    """A promise was broken."""


class Impossible(Exception):
    """This machine cannot run what is to be tested; that says nothing about tiflow."""


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

    def try_run(
        self,
        *argv: str,
        timeout_s: float = 600,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the command. It runs where the engine's published ports are. Raises Failed
        if it takes longer than `timeout_s`."""
        prefix = [SCRIPT, "in", str(self._private)] if self._private is not None else []
        try:
            done = subprocess.run(
                [*prefix, *argv],
                env=self.environment | dict(env or {}),
                cwd=COMPOSE,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                input=input or "",  # never this process's own
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(argv)} took more than {timeout_s:g} s; it said: {error.stderr!r}") from error
        return done.returncode, done.stdout, done.stderr

    def run(
        self,
        *argv: str,
        timeout_s: float = 600,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """What the command prints. Raises Failed."""
        code, out, told = self.try_run(*argv, timeout_s=timeout_s, input=input, env=env)
        if code != 0:
            raise Failed(f"{' '.join(argv)} ended with {code}:\n{out[-2_000:]}\n{told[-4_000:]}")
        return out

    def network(self, kind: str) -> None:
        """Of an engine of our own: `host`, to build, or `own`, to run. Raises Impossible."""
        if self._private is None:
            return
        _down(self._private)
        argv = [SCRIPT, "up", str(self._private), *(["host"] if kind == "host" else [])]
        started = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if started.returncode != 0:
            raise Impossible(f"a docker engine does not start here: {' '.join(started.stderr.split())[-600:]}")

    def has(self, image: str) -> bool:
        return image in self.run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()


@contextmanager
def engine() -> Iterator[Docker]:
    """A docker engine, which is gone afterwards if it is our own. Raises Impossible."""
    if _answers():
        yield Docker(None)
        return
    _can_have_one()
    say("no docker engine here: one in private namespaces")
    _install()
    _sweep()
    kept = os.environ.get("TIFLOW_TEST_DOCKER")  # for the next run, which then finds the base images
    directory = Path(kept or tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
    directory.mkdir(exist_ok=True)
    (directory / OWNER).write_text(str(os.getpid()))
    docker = Docker(directory)
    try:
        docker.network("host")
        yield docker
    finally:
        _down(directory)
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)


def _answers() -> bool:
    if not shutil.which("docker"):
        return False
    try:
        asked = subprocess.run(
            ["docker", "info"], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=60
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _can_have_one() -> None:
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        raise Impossible("no docker engine answers, and only root on Debian can have one of its own: start docker")
    if "overlay" not in Path("/proc/filesystems").read_text():
        raise Impossible("no docker engine answers, and this kernel has no overlayfs for one of our own")
    if (free := shutil.disk_usage(PLACE).free) < FREE_BYTES_MIN:
        raise Impossible(f"{PLACE} has {free >> 20} MiB free, and the images need {FREE_BYTES_MIN >> 20}")
    spaces = ["unshare", "--mount", "--net", "--pid", "--cgroup", "--uts", "--fork", "--mount-proc"]
    tried = subprocess.run([*spaces, "true"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if tried.returncode != 0:
        raise Impossible(f"namespaces cannot be made here: {' '.join(tried.stderr.split())}")


def _install() -> None:
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if all(shutil.which(program, path=search) for program in PROGRAMS):
        return
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES],
    ):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            command, check=False, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Impossible(f"{' '.join(command[:2])} failed: {' '.join(done.stderr.split())[-600:]}")


def _sweep() -> None:
    """End the engines of tests that were killed, and remove their files."""
    for directory in PLACE.glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError):
            owner = int((directory / OWNER).read_text())
            if "tests.deploy.live" in Path(f"/proc/{owner}/cmdline").read_text():
                continue  # it runs now
        say(f"removing what an earlier test left in {directory}")
        _down(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _down(directory: Path) -> None:
    if (directory / "pid").exists():
        subprocess.run([SCRIPT, "down", str(directory)], check=False, stdin=subprocess.DEVNULL)
        (directory / "pid").unlink(missing_ok=True)


def base_images(docker: Docker) -> str:
    """See that the images are there on which ours rest. Returns: the name of MySQL's. Raises Impossible."""
    try:
        with ThreadPoolExecutor() as both:
            python = both.submit(_python_image, docker)
            mysql = both.submit(_mysql_image, docker)
            python.result()
            return mysql.result()
    except (Failed, subprocess.SubprocessError) as error:
        raise Impossible(f"the base images cannot be had: {error}") from error


def _python_image(docker: Docker) -> None:
    if docker.has(PYTHON_IMAGE) or _pull(docker, PYTHON_IMAGE):
        return
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


def _mysql_image(docker: Docker) -> str:
    if docker.has(MYSQL_OWN):
        return MYSQL_OWN
    if docker.has(MYSQL_IMAGE) or _pull(docker, MYSQL_IMAGE):
        return MYSQL_IMAGE
    say("no registry answers: MySQL's image is made of Debian's packages (the real server, another entry point)")
    _debian(docker, "tiflow-mysql-base", "sid", "mysql-server-core,mysql-client-core")
    docker.run(
        "docker", "build", "--network=host", "-t", MYSQL_OWN, str(HERE / "mysql"), env={"DOCKER_BUILDKIT": "0"}
    )
    return MYSQL_OWN


def _pull(docker: Docker, image: str) -> bool:
    try:
        return docker.try_run("docker", "pull", "--quiet", image, timeout_s=120)[0] == 0
    except Failed:
        return False


def _debian(docker: Docker, image: str, suite: str, packages: str, *options: str) -> None:
    with tempfile.TemporaryDirectory(dir=PLACE) as scratch:
        archive = f"{scratch}/root.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", *SLIM, *options]
        # a mirror may be some weeks old
        command += ['--aptopt=Acquire::Check-Valid-Until "false"', suite, archive]
        made = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
        )
        if made.returncode != 0:
            raise Failed(f"mmdebstrap of {suite} ended with {made.returncode}: {made.stderr[-1_000:]}")
        docker.run("docker", "import", "--change", 'CMD ["bash"]', archive, image)
