"""Three etcd processes of Debian's etcd-server, beside ours, and load from etcd's own Go client."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.bench.raft.group import Child, cpu_s, free_ports, rss_mib

PACKAGES = ("etcd-server", "etcd-client", "golang-go", "golang-etcd-server-dev")
PROGRAMS = ("etcd", "etcdctl", "go")
SOURCE = Path(__file__).with_name("etcd_load.go")
TXN_OPS_MAX = 2000


def prepare(directory: Path) -> str | None:
    """Have etcd and the program that loads it. Why not, or None; packages are installed if this is root on Debian."""
    if not all(shutil.which(program) for program in PROGRAMS):
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            return f"needs root on Debian, or {', '.join(PACKAGES)} installed"
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            return f"`{' '.join(command)}` failed"
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(directory / "go-cache"),
    }
    command = ["go", "build", "-o", str(directory / "etcd_load"), str(SOURCE)]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return f"{SOURCE.name} does not build: {built.stderr.strip()}" if built.returncode else None


class Etcd:
    """etcd with its defaults but a larger limit of transactions. `directory` has the program that `prepare` built."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clients = free_ports(3)
        self.peers = free_ports(3)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @classmethod
    async def started(cls, directory: Path) -> Self:
        etcd = cls(directory)
        for place in range(3):
            etcd.start(place)
        await etcd.leader()
        return etcd

    def start(self, place: int) -> None:
        name, client, peer = f"e{place}", self.clients[place], self.peers[place]
        cluster = ",".join(f"e{other}=http://127.0.0.1:{port}" for other, port in enumerate(self.peers))
        options = {
            "name": name,
            "data-dir": str(self.directory / name),
            "listen-client-urls": f"http://127.0.0.1:{client}",
            "advertise-client-urls": f"http://127.0.0.1:{client}",
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-cluster": cluster,
            "max-txn-ops": str(TXN_OPS_MAX),
            "logger": "zap",
            "log-level": "error",
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        self.processes[place] = subprocess.Popen(
            ["etcd", *(f"--{key}={value}" for key, value in options.items())],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def leader(self, timeout_s: float = 30) -> int:
        """The place of the one that all living members name."""
        async with asyncio.timeout(timeout_s):
            while True:
                states = [state for place in self.processes if (state := self._status(place))]
                leaders = {state["leader"] for state in states}
                if len(states) == len(self.processes) and len(leaders) == 1 and leaders != {0}:
                    return self._ids(states).index(leaders.pop())
                await asyncio.sleep(0.1)

    def ids(self) -> list[int]:
        """Of the members, in the order of their places; all must live."""
        return [self._status(place)["header"]["member_id"] for place in range(3)]

    def _ids(self, states: list[dict[str, Any]]) -> list[int]:
        ids = {place: state["header"]["member_id"] for place, state in zip(self.processes, states, strict=True)}
        return [ids.get(place, 0) for place in range(3)]

    def _status(self, place: int) -> dict[str, Any]:
        command = ["etcdctl", "--endpoints", self.endpoint(place), "--command-timeout=2s", "endpoint", "status"]
        result = subprocess.run(
            [*command, "-w", "json"],
            env=os.environ | {"ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(result.stdout)[0]["Status"] if result.returncode == 0 else {}

    def endpoint(self, place: int) -> str:
        return f"127.0.0.1:{self.clients[place]}"

    async def load(self, *, records: int, outstanding: int, secs: float) -> dict[str, float]:
        arguments = (self.endpoint(await self.leader()), str(records), str(outstanding), str(secs))
        return await self._run("load", *arguments)

    async def transfer(self) -> float:
        """Seconds from the request until the new leader has committed something."""
        leader = await self.leader()
        target = (leader + 1) % 3
        result = await self._run("transfer", self.endpoint(leader), str(self.ids()[target]), self.endpoint(target))
        return result["secs"]

    async def kill_leader(self) -> float:
        """Seconds until another has committed something. The killed one is started again."""
        leader = await self.leader()
        survivors = [self.endpoint(place) for place in range(3) if place != leader]
        watcher = Child("first", [str(self.directory / "etcd_load"), "first", *survivors])
        assert watcher.process.stdout is not None
        await asyncio.to_thread(watcher.process.stdout.readline)
        process = self.processes.pop(leader)
        process.kill()
        watcher.send("now")
        result = json.loads(await asyncio.to_thread(watcher.process.stdout.readline))
        watcher.kill()
        process.wait()
        self.start(leader)
        self.processes = dict(sorted(self.processes.items()))
        return float(result["secs"])

    async def idle(self, secs: float) -> tuple[float, float]:
        """CPU % and MiB of the busiest member."""
        before = {place: cpu_s(process.pid) for place, process in self.processes.items()}
        await asyncio.sleep(secs)
        used = (cpu_s(process.pid) - before[place] for place, process in self.processes.items())
        return max(used) / secs * 100, max(rss_mib(process.pid) for process in self.processes.values())

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    async def _run(self, *arguments: str) -> dict[str, float]:
        process = await asyncio.create_subprocess_exec(
            str(self.directory / "etcd_load"), *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, f"etcd_load {' '.join(arguments)} failed"
        return dict(json.loads(output))
