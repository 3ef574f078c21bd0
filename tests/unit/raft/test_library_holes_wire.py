"""What anybody who reaches the port of the plain library can do, and cannot do to ours. Real sockets, on loopback.

As in test_library_holes_log, but with a test for each of the two, since what is sent differs.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import pickle
import random
import socket
import struct
import threading
import time
import warnings
import zlib
from collections import deque

import grpc
import pysyncobj.tcp_connection
import pytest
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.poller import createPoller
from pysyncobj.tcp_connection import CONNECTION_STATE, TcpConnection

from tests.unit.raft.conftest import History, until
from tests.unit.raft.groups import Clock, PlainGroup, patch_clock
from tiflow.errors import ResourceExhausted
from tiflow.raft import raft_pb2 as pb
from tiflow.raft import transport
from tiflow.raft.api import Member
from tiflow.raft.node import PROPOSALS_MAX, RaftConfig, RaftNode
from tiflow.raft.raft_pb2_grpc import RaftStub
from tiflow.rpc import certificates
from tiflow.rpc.tls import Tls, add_port

WAIT_S = 20.0


# --- a member of each kind, alone, at a port


def _frame(data):
    data = zlib.compress(data, 3)
    return struct.pack("i", len(data)) + data


def _said(message):
    return _frame(pickle.dumps(message, 2))


class Plain:
    """A lone member of the plain library, whose ticks the test makes."""

    def __init__(self, peers, **conf):
        logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
        options = {"autoTick": False, "bindAddress": "127.0.0.1:0"} | conf
        self.core = PlainCounter("127.0.0.1:1", peers, SyncObjConf(**options))
        self.core.doTick(0.0)
        self.port = self._transport._server._TcpServer__socket.getsockname()[1]

    @property
    def _transport(self):
        return self.core._SyncObj__transport

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.port))
        client.settimeout(WAIT_S)
        return client

    def until(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline
            self.core.doTick(0.01)

    def answer(self, client):
        """The next message to `client`."""
        client.setblocking(False)
        received = b""
        deadline = time.monotonic() + WAIT_S
        while len(received) < 4 or len(received) < 4 + struct.unpack("i", received[:4])[0]:
            assert time.monotonic() < deadline
            self.core.doTick(0.01)
            with contextlib.suppress(BlockingIOError):
                received += client.recv(1 << 16)
        return pickle.loads(zlib.decompress(received[4:]))


class PlainCounter(SyncObj):
    def __init__(self, *args):
        super().__init__(*args)
        self.entries = []

    @replicated
    def apply(self, entry):
        self.entries.append(entry.decode())


@pytest.fixture
def plain():
    with contextlib.ExitStack() as stack:

        def make(peers=(), **conf):
            member = Plain(list(peers), **conf)
            stack.callback(member.core.destroy)
            return member

        yield make
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del make
        gc.collect()  # the library leaves its sockets to it


class Ours:
    """A member m2 of a group whose m1, the one that opens the stream, the test plays."""

    def __init__(self, node, port, members):
        self.node = node
        self.port = port
        self.members = [f"{member.name}={member.address}" for member in members]

    def hello(self, name="m1", session=1):
        return pb.Batch(hello=pb.Hello(protocol=transport.PROTOCOL, name=name, members=self.members, session=session))


@pytest.fixture
async def ours(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        async def make(tls=None):
            server = grpc.aio.server(options=transport.SERVER_OPTIONS)
            port = add_port(server, "127.0.0.1:0", tls)
            members = (Member("m1", "m1.example:1"), Member("m2", f"127.0.0.1:{port}"))
            config = RaftConfig(name="m2", members=members, data_dir=str(tmp_path / "m2"), fsync=False)
            node = RaftNode(config, History(), security=tls)
            node.add_to_server(server)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            await node.start()
            stack.push_async_callback(node.stop)
            return Ours(node, port, members)

        yield make


@contextlib.asynccontextmanager
async def _stream(port, credentials=None, **options):
    arguments = [(f"grpc.{name}", value) for name, value in options.items()]
    target = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.insecure_channel(target, arguments)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, arguments)
    )
    async with channel:
        call = RaftStub(channel).Stream(compression=grpc.Compression.Gzip)
        try:
            yield call
        finally:
            call.cancel()


async def _refusal(call):
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code(), await call.details()


class _Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


# --- bytes


def test_plain_runs_what_a_stranger_sends(plain, tmp_path):
    member = plain()
    marker = tmp_path / "ran"
    with member.connect() as client:
        client.sendall(_said(_Evil(marker)))

        member.until(marker.exists)


async def test_bytes_from_a_stranger_run_nowhere(ours, tmp_path):
    member = await ours()
    marker = tmp_path / "ran"
    reader, writer = await asyncio.open_connection("127.0.0.1", member.port)
    writer.write(_said(_Evil(marker)))
    writer.write_eof()

    async with asyncio.timeout(WAIT_S):
        await reader.read()  # gRPC closes what does not speak HTTP/2
    writer.close()

    assert not marker.exists()
    async with _stream(member.port) as call:
        await call.write(member.hello())
        assert (await call.read()).hello.name == "m2"  # and it still answers a peer


def test_plain_inflates_a_small_message_without_a_limit():
    bomb = _frame(pickle.dumps(bytes(64 << 20), 2))
    assert len(bomb) < 1 << 19
    got = []
    connection = TcpConnection(createPoller("auto"), onMessageReceived=got.append)
    connection._TcpConnection__readBuffer = bomb

    assert len(connection._TcpConnection__processParseMessage()) == 64 << 20


def test_plain_takes_in_a_message_of_any_announced_size(plain):
    member = plain()
    with member.connect() as client:
        client.sendall(struct.pack("i", 2**31 - 1))
        client.setblocking(False)
        member.until(lambda: member._transport._unknownConnections)
        (connection,) = member._transport._unknownConnections

        def taken_in():
            with contextlib.suppress(BlockingIOError):
                client.send(bytes(1 << 20))
            return len(connection._TcpConnection__readBuffer) > 8 << 20

        member.until(taken_in)  # it would go on to 2 GiB

        assert connection.state == CONNECTION_STATE.CONNECTED


@pytest.mark.parametrize("fill", ["zeros that are small when compressed", "noise"])
async def test_a_message_above_the_limit_is_refused(ours, fill):
    member = await ours()
    length = transport.MESSAGE_BYTES_MAX + 1
    data = bytes(length) if fill.startswith("zeros") else random.Random(1).randbytes(length)
    large = pb.Batch(messages=[pb.Message(term=1, snapshot_chunk=pb.SnapshotChunk(data=data))])
    async with _stream(member.port, max_send_message_length=-1) as call:
        await call.write(member.hello())
        await call.read()

        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(large)

        code, _ = await _refusal(call)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    await until(lambda: not member.node._transport.connected("m1"), "the stream has ended", WAIT_S)


# --- strangers


def test_plain_tells_a_stranger_everything_and_takes_its_commands(plain):
    member = plain()
    member.core.apply(b"secret")
    member.until(lambda: member.core.entries == ["secret"])
    with member.connect() as client:
        client.sendall(_said(["status"]))
        assert member.answer(client)["log_len"] > 1
    with member.connect() as client:
        client.sendall(_said("readonly"))
        client.sendall(_said({"type": "next_node_idx", "next_node_idx": 2, "reset": True, "success": False}))
        entries = []
        while not any(b"secret" in entry[0] for entry in entries):
            entries = member.answer(client).get("entries", [])
        command = next(entry[0] for entry in entries if b"secret" in entry[0])

        client.setblocking(True)
        client.sendall(_said({"type": "apply_command", "command": command.replace(b"secret", b"forged")}))
        member.until(lambda: member.core.entries == ["secret", "forged"])


async def test_a_stranger_is_refused_and_told_nothing(ours):
    member = await ours()
    async with _stream(member.port) as call:
        await call.write(member.hello(name="readonly"))

        code, details = await _refusal(call)

    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "readonly is none of m2's peers" in details


async def test_of_what_a_stranger_says_little_is_kept(ours):
    member = await ours()
    async with _stream(member.port) as call:
        await call.write(member.hello(name="x" * (1 << 20)))

        code, _ = await _refusal(call)

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert member.node._transport.refused == {}


def test_plain_takes_anybody_for_the_peer_he_says_he_is(plain):
    member = plain(["127.0.0.1:2", "127.0.0.1:3"])
    (peer,) = [node for node in member.core.otherNodes if node.id == "127.0.0.1:3"]
    connections = member._transport._connections
    with member.connect() as older, member.connect() as newer:
        older.sendall(_said("127.0.0.1:3"))
        member.until(lambda: member.core.isNodeConnected(peer))
        first = connections[peer]
        newer.sendall(_said("127.0.0.1:3"))
        member.until(lambda: connections[peer] is not first)
        heard = []
        member._transport.setOnMessageReceivedCallback(lambda node, message: heard.append((node, message["type"])))

        older.sendall(_said({"type": "late"}))

        member.until(lambda: heard == [(peer, "late")])  # from a connection that was replaced


async def test_a_peer_shows_a_certificate_for_its_host(ours, tmp_path):
    certificates.create_authority(tmp_path, days=1)
    tls = Tls(*certificates.issue(tmp_path, "m2", ["127.0.0.1"], days=1))
    executor = Tls(*certificates.issue(tmp_path, "e1", ["127.0.0.1"], days=1))
    genuine = Tls(*certificates.issue(tmp_path, "m1", ["m1.example"], days=1))
    member = await ours(tls)

    async with _stream(member.port, executor.channel_credentials()) as call:
        await call.write(member.hello())
        code, details = await _refusal(call)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "has no certificate for the host of m1.example:1" in details

    async with _stream(member.port, genuine.channel_credentials()) as call:
        await call.write(member.hello())
        assert (await call.read()).hello.name == "m2"


async def test_a_peer_whose_certificate_is_for_another_host_is_refused_with_the_hosts_that_it_has(ours, tmp_path):
    certificates.create_authority(tmp_path, days=1)
    elsewhere = Tls(*certificates.issue(tmp_path, "m2", ["elsewhere.example", "10.9.8.7"], days=1))
    member = await ours(elsewhere)
    members = (Member("m1", "127.0.0.1:1"), Member("m2", f"127.0.0.1:{member.port}"))
    config = RaftConfig(name="m1", members=members, data_dir=str(tmp_path / "m1"), fsync=False)
    tls = Tls(*certificates.issue(tmp_path, "m1", ["127.0.0.1"], days=1))
    dialler = RaftNode(config, History(), security=tls)

    await dialler.start()
    try:
        refused = dialler._transport.refused
        await until(lambda: refused, "it is refused, whatever gRPC calls that", WAIT_S)
    finally:
        await dialler.stop()

    assert (
        f"127.0.0.1:{member.port} shows a certificate for elsewhere.example, 10.9.8.7, not for 127.0.0.1"
        in (refused["m2"])
    )


async def test_a_newer_stream_ends_the_older(ours):
    member = await ours()
    async with _stream(member.port) as older, _stream(member.port) as newer:
        await older.write(member.hello(session=1))
        await older.read()
        await newer.write(member.hello(session=2))
        await newer.read()

        async with asyncio.timeout(WAIT_S):
            while await older.read() is not grpc.aio.EOF:
                pass
        assert member.node._transport.connected("m1")

        async with _stream(member.port) as late:  # one that was on its way for long
            await late.write(member.hello(session=1))
            async with asyncio.timeout(WAIT_S):
                assert await late.read() is grpc.aio.EOF
        assert member.node._transport.connected("m1")


async def test_a_peer_whose_clock_was_set_back_comes_in_again(ours):
    member = await ours()
    async with _stream(member.port) as before:
        await before.write(member.hello(session=2_000))
        await before.read()
    await until(lambda: not member.node._transport.connected("m1"), "the stream has ended", WAIT_S)

    async with _stream(member.port) as after, asyncio.timeout(WAIT_S):
        await after.write(member.hello(session=1_000))
        assert (await after.read()).hello.name == "m2"


def test_plain_listens_to_the_whole_world_by_default(plain):
    member = plain(bindAddress=None)

    assert member._transport._server._TcpServer__socket.getsockname()[0] == "0.0.0.0"


# --- idle links


def test_plain_closes_an_idle_link_when_it_is_needed(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pysyncobj.tcp_connection, "monotonicTime", clock)
    near, far = socket.socketpair()
    with near, far:
        connection = TcpConnection(createPoller("auto"), socket=near, timeout=3.5)
        clock.now += 4

        connection.send({"type": "request_vote"})

        assert connection.state == CONNECTION_STATE.DISCONNECTED  # and the request is lost
        assert far.recv(100) == b""


async def test_an_idle_link_is_kept_alive(ours, monkeypatch):
    monkeypatch.setattr(transport, "PING_S", 0.01)
    member = await ours()
    async with _stream(member.port) as call, asyncio.timeout(WAIT_S):
        await call.write(member.hello())
        assert (await call.read()).HasField("hello")

        for _ in range(3):
            assert not (await call.read()).messages  # nothing to say, and says it


# --- threads and queues


def test_plain_raises_for_a_command_that_it_keeps(tmp_path, monkeypatch):
    group = PlainGroup(tmp_path, patch_clock(monkeypatch), conf={"appendEntriesUseBatch": False})
    try:
        tries = itertools.count()
        with pytest.raises(BlockingIOError):
            deque((group.propose("A", str(number)) for number in itertools.islice(tries, 80_000)), maxlen=0)

        assert len(group.cores["A"]._SyncObj__commandsQueue._FastQueue__queue) == next(tries)
    finally:
        group.close()


async def test_what_is_refused_is_never_applied(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    node = await cluster.leader()

    results = await asyncio.gather(
        *(node.propose(b"%d" % number) for number in range(PROPOSALS_MAX + 10)), return_exceptions=True
    )

    refused = {str(place) for place, result in enumerate(results) if isinstance(result, ResourceExhausted)}
    assert len(refused) == 10
    assert not refused & set(cluster.machines["m1"].entries)


def test_plain_stops_in_silence_with_the_thread_that_made_it():
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
    made = []

    def make():
        conf = SyncObjConf(bindAddress="127.0.0.1:0")
        made.append(PlainCounter("127.0.0.1:1", [], conf))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    deadline = time.monotonic() + WAIT_S
    while made[0].tick_thread_alive():
        assert time.monotonic() < deadline
        made[0]._SyncObj__thread.join(0.05)
    made[0]._doDestroy()


def test_the_loop_and_nothing_else_moves_ours(make_group):
    group = make_group()

    threads = {core._SyncObj__thread for core in group.cores.values()}

    assert threads == {None}
