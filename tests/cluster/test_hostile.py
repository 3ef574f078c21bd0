"""Hostile bytes on every port of masters and executors: nothing crashes, nothing is unpickled, memory stays bounded,
and the cluster goes on."""

import pickle
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from tests.cluster.harness import Cluster, eventually
from tiflow.raft import raft_pb2 as raft
from tiflow.rpc import tiflow_pb2 as pb

GROWTH_BYTES_MAX = 96 << 20  #: of one process, over all that a test does to it
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HALF_OPEN = 100


class Canary:
    """What is called when its pickle is loaded."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self._file), "w")


@pytest.fixture(scope="module")
def attacked() -> Iterator[Cluster]:
    with Cluster(masters=3, executors=1) as cluster:
        yield cluster


@pytest.fixture
def canary(tmp_path: Path) -> tuple[bytes, Path]:
    file = tmp_path / "unpickled"
    return pickle.dumps(Canary(file)), file


def grpc_addresses(cluster: Cluster) -> dict[str, str]:
    executors = {one.name: one.address for one in cluster.client().executors()}
    return cluster.addresses | executors


def memory_bytes(cluster: Cluster) -> dict[str, int]:
    found = {}
    for name in (*cluster.masters, *cluster.executors):
        status = Path(f"/proc/{cluster.pid(name)}/status").read_text()
        found[name] = int(status.split("VmRSS:")[1].split()[0]) * 1024
    return found


@pytest.fixture(autouse=True)
def unharmed(attacked: Cluster, canary: tuple[bytes, Path]) -> Iterator[None]:
    before = memory_bytes(attacked)
    yield
    assert attacked.crashed() == {}
    attacked.wait_leader()
    attacked.wait_executors(1)
    assert attacked.client().run_python("operator:neg", [1, 2]).wait(timeout_s=20).state == "Finished"
    eventually(lambda: all(status.leader for status in attacked.status().values()))
    after = memory_bytes(attacked)
    assert {name: size for name, size in after.items() if size - before[name] > GROWTH_BYTES_MAX} == {}
    assert not canary[1].exists(), "something was unpickled"
    for name in after:
        assert "Traceback" not in attacked.log(name)


def frame(length: int, kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def test_bytes_that_are_no_grpc_and_no_http(attacked: Cluster, canary: tuple[bytes, Path]):
    rng = random.Random(7)
    speeches = [
        rng.randbytes(100_000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(600),  # the beginning of a TLS handshake
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * 4_000_000,
        canary[0],
        struct.pack("!i", len(canary[0])) + canary[0],  # as pysyncobj's own transport would frame it
        PREFACE + rng.randbytes(50_000),
        PREFACE + frame(0, 4, 0, 0) + frame(0xFFFFFF, 0, 0, 1, b"\0" * 200_000),  # data larger than any frame may be
        PREFACE + frame(0, 4, 0, 0) + frame(50_000, 1, 4, 1, rng.randbytes(50_000)),  # headers that are none
        PREFACE + frame(0, 4, 0, 0) + b"".join(frame(8, 6, 0, 0, b"pingpong") for _ in range(20_000)),
    ]
    for address in (*grpc_addresses(attacked).values(), *attacked.http_addresses.values()):
        host, _, port = address.rpartition(":")
        for speech in speeches:
            with socket.create_connection((host, int(port)), timeout=5) as connection, suppress(OSError):
                connection.sendall(speech)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                while connection.recv(65_536):
                    pass


def test_connections_that_say_nothing_keep_nobody_out(attacked: Cluster):
    with ExitStack() as stack:
        for address in (*grpc_addresses(attacked).values(), *attacked.http_addresses.values()):
            host, _, port = address.rpartition(":")
            for number in range(HALF_OPEN):
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
                connection.sendall((PREFACE if number % 2 else b"GET ")[: number % 24])

        assert attacked.client().run_command(["true"]).wait(timeout_s=20).state == "Finished"


def methods() -> list[tuple[str, bool, bool]]:
    """All methods of all services: path, whether requests and whether answers are a stream."""
    return [
        (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
        for file in (pb.DESCRIPTOR, raft.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def call(channel: grpc.Channel, method: tuple[str, bool, bool], bodies: list[bytes]) -> grpc.StatusCode | None:
    """How it ended; None: with an answer."""
    path, streams_in, streams_out = method
    try:
        if streams_in:
            list(channel.stream_stream(path)(iter(bodies), timeout=5))
        elif streams_out:
            list(channel.unary_stream(path)(bodies[0], timeout=1))
        else:
            channel.unary_unary(path)(bodies[0], timeout=5)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def test_garbage_for_each_method(attacked: Cluster, canary: tuple[bytes, Path]):
    rng = random.Random(8)
    garbage = [rng.randbytes(size) for size in (1, 10, 1_000, 1_000_000)]
    garbage += [b"\xff" * 100, canary[0], b"\x0a" + b"\xff" * 9 + b"\x7f" + canary[0]]
    codes: set[grpc.StatusCode | None] = set()
    for address in grpc_addresses(attacked).values():
        with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
            for method in methods():
                for body in garbage:
                    codes.add(call(channel, method, [body]))
            # gRPC itself refuses it, whatever the method: once for each port will do
            codes.add(call(channel, methods()[0], [b"\0" * (40 << 20)]))

    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes, "what is too large is refused"
    assert grpc.StatusCode.UNIMPLEMENTED in codes, "masters and executors have methods of their own"


def test_strangers_on_the_stream_of_the_masters(attacked: Cluster, canary: tuple[bytes, Path]):
    members = sorted(f"{one}={one}" for one in attacked.addresses.values())
    entry = raft.AppendEntries(
        commit_index=1 << 60, previous_index=1, previous_term=1, commands=[canary[0]], terms=[9]
    )
    append = raft.Message(term=1 << 60, append_entries=entry)
    first, second = list(attacked.addresses.values())[:2]
    openings = [
        raft.Batch(messages=[append]),  # without a Hello
        raft.Batch(hello=raft.Hello(protocol=99, name=first, members=members)),
        raft.Batch(hello=raft.Hello(protocol=1, name="stranger", members=members)),
        raft.Batch(hello=raft.Hello(protocol=1, name="x" * 1_000_000, members=["y" * 1_000_000])),
        raft.Batch(hello=raft.Hello(protocol=1, name=first, members=members, cluster_id="another")),
        raft.Batch(hello=raft.Hello(protocol=1, name=second, members=members[:1])),
    ]
    (method,) = [one for one in methods() if one[0].endswith("Raft/Stream")]
    for address in attacked.addresses.values():
        with grpc.insecure_channel(address) as channel:
            for opening in openings:
                bodies = [opening.SerializeToString(), raft.Batch(messages=[append]).SerializeToString()]
                assert call(channel, method, bodies) is not None

    assert max(status.term for status in attacked.status().values()) < 1 << 59, "nobody believed them"
