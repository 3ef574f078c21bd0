"""One master's part of the group that is measured: RaftNode over a small store, told what to do on stdin.

Commands are lines, and each runs on its own; answers and events are JSON objects, one a line. Times are of the
monotonic clock, which all processes of a machine share.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec

from tiflow import log  # noqa: F401  first, as masters do
from tiflow.master import eventloop
from tiflow.raft.api import Member
from tiflow.raft.node import RaftConfig, RaftNode
from tiflow.raft.transport import SERVER_OPTIONS
from tiflow.rpc.tls import Tls, add_port

KEYS = 10_000
KEY_BYTES, VALUE_BYTES = 8, 92  # a record of 100 bytes
SLICE_BYTES = 256 << 10
BLOB_BYTES = 1 << 20


class Store:
    """Keys with values, and blobs that make the state large. `count` is of the entries applied."""

    def __init__(self) -> None:
        self.count = 0
        self.values: dict[bytes, bytes] = {}
        self.blobs: list[bytes] = []

    def apply(self, entry: bytes) -> int:
        if len(entry) == BLOB_BYTES:
            self.blobs.append(entry)
        elif entry[:1] == b"\x00":
            self.values.update(msgspec.msgpack.decode(entry[1:], type=dict[bytes, bytes]))
        else:
            self.values[entry[:KEY_BYTES]] = entry[KEY_BYTES:]
        self.count += 1
        return self.count

    def snapshot(self) -> Iterator[bytes]:
        yield msgspec.msgpack.encode((self.count, len(self.blobs)))
        for blob in tuple(self.blobs):
            for start in range(0, len(blob), SLICE_BYTES):
                yield blob[start : start + SLICE_BYTES]

    def restore(self, data: bytes) -> None:
        blobs = len(data) // BLOB_BYTES
        head = len(data) - blobs * BLOB_BYTES
        self.count, count = msgspec.msgpack.decode(data[:head])
        assert count == blobs
        self.blobs = [data[start : start + BLOB_BYTES] for start in range(head, len(data), BLOB_BYTES)]


def record(number: int) -> tuple[bytes, bytes]:
    return b"%08d" % (number % KEYS), b"v" * VALUE_BYTES


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Bench:
    """What the parent can ask for."""

    def __init__(self, node: RaftNode, store: Store) -> None:
        self.node = node
        self.store = store

    async def propose(self, outstanding: str, secs: str) -> None:
        await self._load(int(outstanding), float(secs), lambda n: self.node.propose(b"".join(record(n))))

    async def batch(self, records: str, outstanding: str, secs: str) -> None:
        def entry(number: int) -> bytes:
            values = dict(record(number * count + each) for each in range(count))
            return b"\x00" + msgspec.msgpack.encode(values)

        count = int(records)
        await self._load(int(outstanding), float(secs), lambda n: self.node.propose(entry(n)))

    async def barrier(self, outstanding: str, secs: str) -> None:
        await self._load(int(outstanding), float(secs), lambda _: self.node.barrier())

    async def fill(self, blobs: str, entries: str) -> None:
        """Make the state large, take a snapshot, and leave entries behind it."""
        for _ in range(int(blobs)):
            await self.node.propose(os.urandom(BLOB_BYTES))
        tell(filled=self.store.count)
        left = iter(range(int(entries)))

        async def client() -> None:
            for number in left:
                await self.node.propose(b"".join(record(number)))

        await asyncio.gather(*(client() for _ in range(256)))
        tell(entries=self.store.count)

    async def snapshot(self) -> None:
        began = time.monotonic()
        index = await self.node.snapshot()
        tell(snapshot=index, secs=time.monotonic() - began)

    async def reach(self, count: str) -> None:
        """Tell when so many entries have been applied, be it through a snapshot."""
        while self.store.count < int(count):  # noqa: ASYNC110 - a snapshot comes without a callback
            await asyncio.sleep(0.005)
        tell(reached=self.store.count, at=time.monotonic())

    async def transfer(self) -> None:
        began = time.monotonic()
        await self.node.transfer()
        tell(transfer=began)

    async def _load(self, outstanding: int, secs: float, act: Callable[[int], Coroutine[Any, Any, Any]]) -> None:
        latencies: list[float] = []
        began = time.perf_counter()
        end = began + secs
        numbers = iter(range(sys.maxsize))

        async def client() -> None:
            while (start := time.perf_counter()) < end:
                await act(next(numbers))
                latencies.append(time.perf_counter() - start)

        await asyncio.gather(*(client() for _ in range(outstanding)))
        took = time.perf_counter() - began
        latencies.sort()
        p50, p99 = (latencies[len(latencies) * percent // 100] * 1000 for percent in (50, 99))
        tell(per_s=len(latencies) / took, p50_ms=p50, p99_ms=p99, max_ms=latencies[-1] * 1000)


async def member(name: str, addresses: list[str], directory: str, tls: Tls | None, snapshot_entries: int) -> None:
    members = tuple(Member(*address.split("=")) for address in addresses)
    store = Store()
    config = RaftConfig(
        name=name,
        members=members,
        data_dir=directory,
        snapshot_entries=snapshot_entries,
        snapshot_bytes=16 << 20 if snapshot_entries < 10**6 else 1 << 40,
    )
    node = RaftNode(config, store, security=tls)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_port(server, next(member.address for member in members if member.name == name), tls)
    node.add_to_server(server)
    await server.start()
    tasks = set()

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def first_commit() -> None:
        await node.propose(b"".join(record(0)))
        tell(event="committed", at=time.monotonic())

    def role(role: str, term: int) -> None:
        if role == "leader":
            tell(event="leader", at=time.monotonic(), term=term)
            spawn(first_commit())

    node.on_role(role)
    await node.start()
    node.fatal.add_done_callback(lambda _: os._exit(70))
    bench = Bench(node, store)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        action, *arguments = line.decode().split()
        spawn(getattr(bench, action)(*arguments))
    await node.stop()
    await server.stop(0)


def main() -> None:
    name, directory, tls_directory, snapshot_entries, *addresses = sys.argv[1:]
    paths = Path(tls_directory)
    tls = (
        Tls(*(str(paths / file) for file in ("ca.pem", f"{name}.pem", f"{name}-key.pem"))) if tls_directory else None
    )
    eventloop.run(member(name, addresses, directory, tls, int(snapshot_entries)))


if __name__ == "__main__":
    main()
