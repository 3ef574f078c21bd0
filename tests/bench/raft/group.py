"""Three processes of ours, driven from here."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tiflow.master.eventloop import GRPC_EXPERIMENTS
from tiflow.rpc import certificates

NAMES = ("m1", "m2", "m3")
NEVER = 10**9
ROOT = Path(__file__).parents[3]


class Child:
    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | os.environ,  # as masters have it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> float:
        """When it was."""
        at = time.monotonic()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return at

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)

    @property
    def rss_mib(self) -> float:
        return rss_mib(self.process.pid)


class Group:
    """Members m1, m2, m3 on loopback, with mutual TLS unless `plain`."""

    def __init__(self, directory: Path, *, plain: bool = False, snapshot_entries: int = 50_000) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.addresses = [f"{name}=127.0.0.1:{port}" for name, port in zip(NAMES, free_ports(3), strict=True)]
        self.snapshot_entries = snapshot_entries
        self.children: dict[str, Child] = {}
        self.events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.readers: set[asyncio.Task[None]] = set()
        self.tls = ""
        if not plain:
            self.tls = str(directory / "tls")
            certificates.create_authority(Path(self.tls), days=1)
            for name in NAMES:
                certificates.issue(Path(self.tls), name, ["127.0.0.1"], days=1)

    def start(self, name: str) -> float:
        """When it was."""
        at = time.monotonic()
        arguments = [name, str(self.directory / name), self.tls, str(self.snapshot_entries), *self.addresses]
        child = self.children[name] = Child(name, [sys.executable, "-m", "tests.bench.raft.member", *arguments])
        self.readers.add(asyncio.ensure_future(self._read(child)))
        return at

    async def start_all(self) -> str:
        """The first leader."""
        for name in NAMES:
            self.start(name)
        leader, _ = await self.expect("event", "committed")
        return leader

    def wipe(self, name: str) -> None:
        shutil.rmtree(self.directory / name)

    async def ask(self, name: str, line: str, key: str, timeout_s: float = 60) -> dict[str, Any]:
        """Send a command, and wait for the answer that has `key`."""
        self.children[name].send(line)
        _, answer = await self.expect(key, of=name, timeout_s=timeout_s)
        return answer

    async def expect(
        self, key: str, value: Any = None, *, of: str | None = None, timeout_s: float = 60
    ) -> tuple[str, dict[str, Any]]:
        """The next event that has `key` (with `value`, of member `of`); others before it are dropped."""
        async with asyncio.timeout(timeout_s):
            while True:
                name, event = await self.events.get()
                if of in (None, name) and key in event and value in (None, event[key]):
                    return name, event

    async def expect_any(self, *keys: str, timeout_s: float = 60) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(timeout_s):
            while True:
                name, event = await self.events.get()
                if any(key in event for key in keys):
                    return name, event

    async def _read(self, child: Child) -> None:
        assert child.process.stdout is not None
        while line := await asyncio.to_thread(child.process.stdout.readline):
            if line.startswith("{"):
                await self.events.put((child.name, json.loads(line)))

    def stop(self) -> None:
        for child in self.children.values():
            child.kill()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
