"""Checkpoints through the leader: small puts per second, durable each, into a private MariaDB.

make bench-meta                          # or: python -m tests.bench.bench_meta --puts 20000 --callers 256
"""

import argparse
import asyncio
import time
from uuid import uuid4

import grpc

from tests.cluster.harness import Cluster, eventually
from tests.mysql import new_server
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puts", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=256, help="that wait for an answer at the same time")
    parser.add_argument("--bytes", type=int, default=100, help="of a value")
    options = parser.parse_args()
    server = new_server(sync=True)
    try:
        server.start()
        url = server.create_database(f"tiflow_{uuid4().hex[:12]}")
        with Cluster(masters=3, executors=1, metadata_url=url) as cluster:
            client = cluster.client()
            job = client.run_command(["sleep", "600"], id="bench")
            client.checkpoints("bench", attempt=1).put("first", b"")
            address = cluster.addresses[cluster.wait_leader()]
            took_s, waits_s = asyncio.run(drive(address, job.uid, options.puts, options.callers, options.bytes))
            stored = sum(1 for _ in client.checkpoints("bench").list("k"))
            client.cancel("bench")
            eventually(lambda: client.get("bench").ended)
        waits_s.sort()
        print(
            f"{options.puts:,} puts of {options.bytes} B by {options.callers} callers in {took_s:.2f} s: "
            f"{options.puts / took_s:,.0f} puts/s, p50 {waits_s[len(waits_s) // 2] * 1e3:.0f} ms, "
            f"p99 {waits_s[len(waits_s) * 99 // 100] * 1e3:.0f} ms; {stored:,} keys"
        )
    finally:
        server.remove()


async def drive(address: str, uid: int, puts: int, callers: int, size: int) -> tuple[float, list[float]]:
    holder = pb.Holder(job_id="bench", uid=uid, attempt=1)
    waits_s: list[float] = []
    numbers = iter(range(puts))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.TiflowStub(channel)

        async def caller() -> None:
            for number in numbers:
                began_s = time.perf_counter()
                request = pb.PutCheckpointRequest(holder=holder, key=f"k{number % 5_000}", value=bytes(size))
                await stub.PutCheckpoint(request, timeout=60)
                waits_s.append(time.perf_counter() - began_s)

        began_s = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.perf_counter() - began_s, waits_s


if __name__ == "__main__":
    main()
