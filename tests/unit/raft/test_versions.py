"""Masters of different releases: what they have in common they speak, and if there is nothing, both say so."""

import asyncio
import contextlib

import grpc
import pytest

from tests.unit.raft.conftest import History, until
from tiflow.raft import raft_pb2 as pb
from tiflow.raft import raft_pb2_grpc, transport
from tiflow.raft.api import Member
from tiflow.raft.node import RaftConfig, RaftNode
from tiflow.raft.transport import PROTOCOL, Greeting, refusal

OURS = Greeting("c1", "m1", ("m1=h:1", "m2=h:2"), False, 3)
TOO_NEW = {"protocol": PROTOCOL + 2, "protocol_oldest": PROTOCOL + 1}


def hello(**changed):
    usual = {"protocol": PROTOCOL, "cluster_id": "c1", "name": "m2", "members": list(OURS.members)}
    return pb.Hello(**usual | changed)


@pytest.mark.parametrize(
    ("spoken", "theirs", "says"),
    [
        ((2, 3), (3, 4), None),  # an upgrade under way: 3 is common
        ((2, 3), (1, 2), None),
        ((2, 3), (0, 3), None),  # who names no oldest speaks one
        ((2, 3), (4, 5), "m2 speaks protocol 4 to 5, m1 speaks 2 to 3: upgrade m1"),
        ((2, 3), (0, 4), "m2 speaks protocol 4, m1 speaks 2 to 3: upgrade m1"),
        ((2, 3), (0, 1), "m2 speaks protocol 1, m1 speaks 2 to 3: upgrade m2"),
        ((3, 3), (1, 2), "m2 speaks protocol 1 to 2, m1 speaks 3: upgrade m2"),
    ],
)
def test_a_protocol_in_common_is_needed(monkeypatch, spoken, theirs, says):
    monkeypatch.setattr(transport, "PROTOCOL_OLDEST", spoken[0])
    monkeypatch.setattr(transport, "PROTOCOL", spoken[1])

    reason = refusal(OURS, hello(protocol_oldest=theirs[0], protocol=theirs[1]))

    assert reason is None if says is None else reason is not None and reason.startswith(says)


class NewerServer(raft_pb2_grpc.RaftServicer):
    """A peer of a release that speaks nothing of ours, and does not mind."""

    def __init__(self, members):
        self.members = members

    async def Stream(self, _, context):
        await context.read()
        await context.write(pb.Batch(hello=hello(**TOO_NEW, members=self.members)))
        while await context.read() is not grpc.aio.EOF:
            pass


@contextlib.asynccontextmanager
async def running(name, members, directory, server):
    config = RaftConfig(name=name, members=members, data_dir=str(directory / name), fsync=False)
    node = RaftNode(config, History())
    node.add_to_server(server)
    await server.start()
    await node.start()
    try:
        yield node
    finally:
        await node.stop()
        await server.stop(0)


async def test_who_calls_with_a_newer_protocol_is_told_why_not(tmp_path):
    server = grpc.aio.server(options=transport.SERVER_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    members = (Member("m1", f"127.0.0.1:{port}"), Member("m2", "m2.example:1"))
    async with (
        running("m1", members, tmp_path, server) as node,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as peer,
    ):
        call = raft_pb2_grpc.RaftStub(peer).Stream()
        await call.write(pb.Batch(hello=hello(**TOO_NEW)))

        async with asyncio.timeout(20):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            assert await call.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "upgrade m1" in await call.details()

        assert "upgrade m1" in node._transport.refused["m2"]
        assert not node._transport.greetings()


async def test_who_answers_with_a_newer_protocol_is_left(tmp_path):
    servers = [grpc.aio.server(options=transport.SERVER_OPTIONS) for _ in range(2)]
    ports = [server.add_insecure_port("127.0.0.1:0") for server in servers]
    members = tuple(Member(f"m{place}", f"127.0.0.1:{port}") for place, port in enumerate(ports, 1))
    newer = NewerServer([f"{member.name}={member.address}" for member in members])
    raft_pb2_grpc.add_RaftServicer_to_server(newer, servers[1])
    await servers[1].start()
    try:
        async with running("m1", members, tmp_path, servers[0]) as node:
            await until(lambda: "upgrade m1" in node._transport.refused.get("m2", ""), "m1 says why", 20)

            assert not node._transport.greetings()
            assert node.status().role == "forming"
    finally:
        await servers[1].stop(0)
