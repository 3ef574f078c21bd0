"""Real nodes over loopback gRPC, in one process and on ports that the kernel chooses."""

import asyncio
import json
import logging
import random
import time

import grpc
import pytest

from tests.unit.raft.groups import OurGroup, PlainGroup, patch_clock
from tiflow.raft.api import Member
from tiflow.raft.node import RaftConfig, RaftNode
from tiflow.raft.transport import SERVER_OPTIONS

#: the nodes of a test share one loop: while it, or the machine, is busy, none hears another, and an impatient
#: one would depose a healthy leader
HEARTBEAT_MS, ELECTION_MS, FALLBACK_MS = 50, (5000, 6000), 6000
#: for tests that wait until a leader is given up, and do little else
IMPATIENT = {"election_timeout_ms": (400, 600), "leader_fallback_ms": 600}


class History:
    """The state machine: everything that was applied, in order."""

    def __init__(self):
        self.entries = []
        self.restored = 0

    def apply(self, entry):
        if entry == b"poison":
            raise ValueError("can not apply this")
        self.entries.append(entry.decode())
        return len(self.entries)

    def snapshot(self):
        text = json.dumps(self.entries).encode()
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    def restore(self, data):
        self.entries = json.loads(data)
        self.restored += 1


async def until(condition, what, timeout_s=30.0):
    """Wait for a condition, looking each millisecond."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        await asyncio.sleep(0.001)


class Cluster:
    """Members that start, stop and come back on the same port."""

    def __init__(self, directory, names, **settings):
        self.directory = directory
        self.settings = settings
        self.names = list(names)
        self.ports = {}
        self.nodes = {}
        self.servers = {}
        self.machines = {}
        self.roles = {name: [] for name in names}

    @property
    def members(self):
        return tuple(Member(name, f"127.0.0.1:{self.ports[name]}") for name in self.names)

    def bind(self, name):
        server = self.servers[name] = grpc.aio.server(options=SERVER_OPTIONS)
        self.ports[name] = server.add_insecure_port(f"127.0.0.1:{self.ports.get(name, 0)}")

    def make(self, name, **settings):
        options = {
            "heartbeat_ms": HEARTBEAT_MS,
            "election_timeout_ms": ELECTION_MS,
            "leader_fallback_ms": FALLBACK_MS,
            "members": self.members,
            "data_dir": str(self.directory / name),
            "fsync": False,
        }
        config = RaftConfig(name=name, **(options | self.settings | settings))
        self.machines[name] = History()
        node = RaftNode(config, self.machines[name])
        node.on_role(lambda role, term: self.roles[name].append((role, term)))
        return node

    async def start(self, *names, **settings):
        for name in names or self.names:
            if name not in self.servers:
                self.bind(name)
        for name in names or self.names:
            node = self.make(name, **settings)
            node.add_to_server(self.servers[name])
            await self.servers[name].start()
            await node.start()
            self.nodes[name] = node
        if set(self.nodes) == set(self.names):
            self.nodes[self.names[0]]._core._deadline = 0.0  # the first election need not be waited for

    async def stop(self, *names):
        for name in names or list(self.servers):
            if name in self.nodes:
                await self.nodes.pop(name).stop()
            await self.servers.pop(name).stop(0)

    @property
    def leaders(self):
        return [node for node in self.nodes.values() if node.is_leader]

    async def leader(self):
        """The one leader that all living members agree on."""

        def agreed():
            names = {node.leader.name if node.leader else None for node in self.nodes.values()}
            return len(self.leaders) == 1 and names == {self.leaders[0].status().name}

        await until(agreed, "one leader known to all")
        return self.leaders[0]

    def name_of(self, node):
        return node.status().name

    async def followers(self):
        leader = await self.leader()
        return [name for name, node in self.nodes.items() if node is not leader]

    async def agree(self, count):
        """Wait until every living member has applied `count` entries, and check that they are the same."""
        await until(
            lambda: all(len(self.machines[name].entries) == count for name in self.nodes),
            f"{count} entries applied everywhere, not { {n: len(m.entries) for n, m in self.machines.items()} }",
        )
        first, *others = (self.machines[name].entries for name in self.nodes)
        assert all(other == first for other in others)


@pytest.fixture
async def make_cluster(tmp_path):
    clusters = []

    def make(names=("m1", "m2", "m3"), **settings):
        clusters.append(Cluster(tmp_path, names, **settings))
        return clusters[-1]

    yield make
    for cluster in clusters:
        await cluster.stop()


@pytest.fixture(autouse=True)
def library_level():
    """Tests silence the plain library, for themselves alone."""
    logger = logging.getLogger("pysyncobj")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
async def cluster(make_cluster):
    cluster = make_cluster()
    await cluster.start()
    return cluster


@pytest.fixture(params=[PlainGroup, OurGroup], ids=["plain", "ours"])
def make_group(request, tmp_path, monkeypatch):
    """Makes a group of the plain library, then one of ours, for a test that asks both the same."""
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
    clock = patch_clock(monkeypatch)
    random.seed(1)  # the library's own dice
    groups = []

    def make(names="ABC", machine=None, **options):
        kind = request.param
        if machine is not None:
            kind = type(kind.__name__, (kind,), {"machine": machine[kind.plain]})
        groups.append(kind(tmp_path, clock, names, **options))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


@pytest.fixture
def group(make_group):
    return make_group()
