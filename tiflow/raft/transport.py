"""Messages between masters: what may leave when, and one gRPC stream for each pair.

Of a pair, the member whose name sorts first opens the stream, and opens it again for as long as both live.
Each side first says Hello; a member that is unknown, of another cluster or with other peers in its
configuration is refused, with a line in both logs.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import structlog
from msgspec import Struct
from pysyncobj.transport import Transport

from tiflow.errors import TiflowError
from tiflow.raft import raft_pb2 as pb
from tiflow.raft import raft_pb2_grpc
from tiflow.raft.api import Member, Security
from tiflow.raft.codec import BadMessage, Message, decode, encode
from tiflow.raft.journal import Journal
from tiflow.raft.library import Peer

log = structlog.get_logger()

#: what we speak. A field that others may ignore needs no new number; a message that they must understand does, and
#: for one release we speak the old one, too, to those who know no other
PROTOCOL: Final = 1
PROTOCOL_OLDEST: Final = 1
MESSAGE_BYTES_MAX: Final = 32 << 20
QUEUE_BYTES_MAX: Final = 64 << 20
BATCH_BYTES_MAX: Final = 4 << 20
PING_S: Final = 0.5
SILENCE_S: Final = 3.0
HELLO_TIMEOUT_S: Final = 5.0
HELLO_BYTES_MAX: Final = 64 << 10  # what strangers say is kept, and logged
STRANGERS_MAX: Final = 100
RECONNECT_MIN_S: Final = 0.05
RECONNECT_MAX_S: Final = 0.5

CHANNEL_OPTIONS: Final = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would share the dead connection's backoff
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
]
#: what the server that carries us must be made with
SERVER_OPTIONS: Final = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
]

_REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED)

# : they promise what the disk must hold first. A leader's appends promise nothing: it counts itself by its
# disk
_PROMISES = frozenset({"request_vote", "response_vote", "next_node_idx"})


class HeldTransport(Transport):  # type: ignore[misc]
    """Holds votes, requests for votes and acknowledgements back until the journal they rest on is on disk."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(None, None, [])
        self._journal = journal
        self._held: deque[tuple[int, Peer, pb.Message]] = deque()

    def send(self, node: Peer, message: Message) -> bool:
        # the term of now: a leader must be able to tell an answer to another leadership
        encoded = encode(message, message.get("term") or self._journal.term)
        if message["type"] in _PROMISES and self._journal.durable_position < self._journal.position:
            self._held.append((self._journal.position, node, encoded))
        else:
            self.emit(node, encoded)
        return True

    def release(self) -> None:
        """Send what has become true on disk."""
        while self._held and self._held[0][0] <= self._journal.durable_position:
            _, node, encoded = self._held.popleft()
            self.emit(node, encoded)

    def forget_held(self, node: Peer) -> None:
        """The stream for which they were meant is gone."""
        self._held = deque(item for item in self._held if item[1] != node)

    def receive(self, node: Peer, message: pb.Message) -> None:
        """Hand a message to pysyncobj. Raises BadMessage."""
        self._onMessageReceived(node, decode(message))

    def emit(self, node: Peer, message: pb.Message) -> None:
        """Put on the wire, in order."""
        raise NotImplementedError

    def backlog_bytes(self, node: Peer) -> int:
        """What waits to be written to `node`."""
        raise NotImplementedError


class Greeting(Struct, frozen=True):
    """What a member says of itself first."""

    cluster_id: str
    name: str
    members: tuple[str, ...]
    fresh: bool
    term: int
    origin: str = ""
    format: int = 1


def refusal(ours: Greeting, theirs: pb.Hello) -> str | None:
    """Why we do not talk to who says `theirs`, or None."""
    oldest = theirs.protocol_oldest or theirs.protocol
    if theirs.protocol < PROTOCOL_OLDEST or oldest > PROTOCOL:
        behind = theirs.name if theirs.protocol < PROTOCOL_OLDEST else ours.name
        return (
            f"{theirs.name} speaks protocol {_span(oldest, theirs.protocol)}, {ours.name} speaks "
            f"{_span(PROTOCOL_OLDEST, PROTOCOL)}: upgrade {behind} by way of the releases between"
        )
    if theirs.cluster_id and ours.cluster_id and theirs.cluster_id != ours.cluster_id:
        return f"{theirs.name} is of cluster {theirs.cluster_id}, {ours.name} of cluster {ours.cluster_id}"
    if theirs.cluster_id and ours.cluster_id and theirs.origin != ours.origin:
        return (
            f"{theirs.name} and {ours.name} were not restored of the same backup ({theirs.origin or 'none'}, "
            f"{ours.origin or 'none'}): restore all members anew, of the same files"
        )
    if tuple(theirs.members) != ours.members:
        return f"{theirs.name} has the peers {', '.join(theirs.members)}; {ours.name} has {', '.join(ours.members)}"
    if theirs.name == ours.name:
        return f"two members call themselves {ours.name}"
    return None


def _span(oldest: int, newest: int) -> str:
    return str(newest) if oldest == newest else f"{oldest} to {newest}"


class _Session:
    """One stream, from our side. Client calls and server contexts read and write alike."""

    def __init__(
        self, number: int, read: Callable[[], Awaitable[Any]], write: Callable[[pb.Batch], Awaitable[None]]
    ) -> None:
        self.number = number
        self.read = read
        self.write = write
        self.queue: deque[tuple[pb.Message, int]] = deque()
        self.queued_bytes = 0
        self.hello: pb.Hello | None = None  # ours, to be said again
        self.something = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard_at = time.monotonic()
        self.wrote = False  # since the last look of the watch

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class _Link:
    """What we know of one peer."""

    def __init__(self, member: Member, peer: Peer) -> None:
        self.member = member
        self.peer = peer
        self.session: _Session | None = None
        self.number = 0
        self.greeting: pb.Hello | None = None  # of the living session
        self.joined = False  # both of one cluster: pysyncobj takes the peer for connected


class GrpcTransport(HeldTransport):
    """Everything runs in the loop. `greet` gives our Hello; `greeted` is called when a peer's Hello came,
    `received` after each batch, and `failed` with what pysyncobj raised."""

    def __init__(
        self,
        *,
        name: str,
        members: tuple[Member, ...],
        peers: dict[str, Peer],
        journal: Journal,
        greet: Callable[[], Greeting],
        greeted: Callable[[], None],
        received: Callable[[], None],
        failed: Callable[[BaseException], None],
        security: Security | None,
    ) -> None:
        super().__init__(journal)
        self._name = name
        self._links = {m.name: _Link(m, peers[m.name]) for m in members if m.name != name}
        self._greet = greet
        self._greeted = greeted
        self._received = received
        self._failed = failed
        self._security = security
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self.refused: dict[str, str] = {}  #: why, by peer
        self._accounts: dict[str, str] = {}  #: gRPC's last of a connection that failed, by peer

    # --- for the node

    def start(self) -> None:
        """Open the streams that are ours to open."""
        self._tasks.append(asyncio.create_task(self._watch(), name="raft-watch"))
        for link in self._links.values():
            if self._name < link.member.name:
                self._tasks.append(asyncio.create_task(self._dial(link), name=f"raft-{link.member.name}"))

    def hang_up(self) -> None:
        """End every stream, and open none: the peers notice at once."""
        self._closed = True
        for link in self._links.values():
            if link.session is not None:
                link.session.end()

    async def close(self) -> None:
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def greetings(self) -> dict[str, pb.Hello]:
        """The Hello of each peer that is connected now."""
        return {name: link.greeting for name, link in self._links.items() if link.greeting is not None}

    def connected(self, name: str) -> bool:
        return self._links[name].session is not None

    def greet_again(self) -> None:
        """Our Hello has changed: tell the peers, and join those who are of our cluster now."""
        for link in self._links.values():
            if link.session is not None:
                link.session.hello = self._hello(link.session.number)
                link.session.something.set()
                self._join(link)

    # --- HeldTransport

    def emit(self, node: Peer, message: pb.Message) -> None:
        session = self._links[str(node.id)].session
        if session is None:
            return
        size = message.ByteSize()
        if session.queued_bytes + size > QUEUE_BYTES_MAX:
            log.warning("raft_peer_too_slow", peer=node.id, queued_bytes=session.queued_bytes)
            session.end()
            return
        session.queue.append((message, size))
        session.queued_bytes += size
        session.something.set()

    def backlog_bytes(self, node: Peer) -> int:
        session = self._links[str(node.id)].session
        return session.queued_bytes if session is not None else 0

    # --- streams

    async def serve(self, context: Any) -> None:
        """One incoming stream, until it ends."""

        async def read() -> Any:
            return await context.read()

        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await read()
        except TimeoutError:
            return
        if not isinstance(first, pb.Batch) or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with a Hello")
            return
        if first.ByteSize() > HELLO_BYTES_MAX:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a Hello has {HELLO_BYTES_MAX} bytes at most")
            return
        hello = first.hello
        link = self._links.get(hello.name)
        if link is None:
            reason: str | None = f"{hello.name} is none of {self._name}'s peers: {', '.join(self._greet().members)}"
        elif self._is_impostor(context, link.member):
            reason = f"who calls itself {hello.name} has no certificate for the host of {link.member.address}"
        else:
            reason = refusal(self._greet(), hello)
        if link is None or reason is not None:
            self._note_refusal(hello.name, reason or "")
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
            return
        if (link.session is not None and hello.session < link.number) or self._closed:
            # overtaken by a newer stream. When that has ended, it is a peer whose clock was set back
            return
        session = _Session(hello.session, read, context.write)
        await context.write(pb.Batch(hello=self._hello(session.number)))
        await self._talk(link, session, hello)

    def _is_impostor(self, context: Any, member: Member) -> bool:
        """Whom we dial, TLS has checked in the same way."""
        host = member.address.rpartition(":")[0].strip("[]")
        return self._security is not None and not self._security.is_for(context, host)

    async def _dial(self, link: _Link) -> None:
        pause = RECONNECT_MIN_S
        while not self._closed:
            began = time.monotonic()
            try:
                await self._call(link)
            except grpc.aio.AioRpcError as error:
                await self._note_failure(link.member, error.code(), error.details() or "")
            except TiflowError as error:
                self._note_refusal(link.member.name, str(error))
            except (TimeoutError, ConnectionError, asyncio.InvalidStateError) as error:
                log.debug("raft_peer_unreachable", peer=link.member.name, error=repr(error))
            except Exception:  # whatever it was, a peer that is never dialled again is worse
                log.exception("raft_dialling_failed", peer=link.member.name)
            if time.monotonic() - began > 1.0:
                pause = RECONNECT_MIN_S
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
            pause = min(pause * 2, RECONNECT_MAX_S)

    async def _call(self, link: _Link) -> None:
        # a channel for each try: it resolves the name again
        address = link.member.address
        channel = (
            grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
            if self._security is None
            else grpc.aio.secure_channel(address, self._security.channel_credentials(), CHANNEL_OPTIONS)
        )
        async with channel:
            call = raft_pb2_grpc.RaftStub(channel).Stream()  # type: ignore[no-untyped-call]
            try:
                number = max(link.number + 1, time.time_ns())
                session = _Session(number, call.read, call.write)
                try:
                    await call.write(pb.Batch(hello=self._hello(number)))
                    async with asyncio.timeout(HELLO_TIMEOUT_S):
                        first = await call.read()
                except asyncio.InvalidStateError:  # what grpc.aio raises for a write to a call that has ended
                    first = None
                if not isinstance(first, pb.Batch):
                    await self._note_failure(link.member, await call.code(), await call.details() or "")
                    return
                hello = first.hello
                reason = refusal(self._greet(), hello)
                if hello.name != link.member.name:
                    reason = f"{address} is {hello.name}, not {link.member.name}"
                if reason is not None:
                    self._note_refusal(link.member.name, reason)
                    return
                await self._talk(link, session, hello)
            finally:
                call.cancel()

    async def _talk(self, link: _Link, session: _Session, hello: pb.Hello) -> None:
        if link.session is not None:
            link.session.end()
            self._disconnect(link)
        link.session, link.number = session, session.number
        self.refused.pop(link.member.name, None)
        self._accounts.pop(link.member.name, None)
        log.info("raft_peer_connected", peer=link.member.name)
        tasks = [
            asyncio.create_task(self._reader(link, session)),
            asyncio.create_task(self._writer(session)),
        ]
        try:
            self._take_hello(link, hello)
            await asyncio.wait([*tasks, session.ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            session.end()
            if link.session is session:
                log.info("raft_peer_disconnected", peer=link.member.name)
                self._disconnect(link)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _reader(self, link: _Link, session: _Session) -> None:
        while not session.ended.done():
            batch = await session.read()
            if not isinstance(batch, pb.Batch) or session.ended.done():
                return  # the peer has ended the stream
            session.heard_at = time.monotonic()
            if batch.HasField("hello"):
                self._take_hello(link, batch.hello)
            if not batch.messages or not link.joined:
                continue
            try:
                for message in batch.messages:
                    self.receive(link.peer, message)
            except BadMessage as error:
                log.error("raft_bad_message", peer=link.member.name, error=str(error))
                return
            except Exception as error:  # noqa: BLE001 - a node that failed in the middle must stop
                self._failed(error)
                return
            self._received()

    async def _writer(self, session: _Session) -> None:
        while True:
            if not session.queue and session.hello is None:
                session.something.clear()
                await session.something.wait()
            hello, session.hello = session.hello, None
            batch = pb.Batch(hello=hello) if hello is not None else pb.Batch()
            size = 0
            while session.queue and size < BATCH_BYTES_MAX:
                message, length = session.queue.popleft()
                batch.messages.append(message)
                size += length
            session.wrote = True
            await session.write(batch)
            session.queued_bytes -= size

    async def _watch(self) -> None:
        """Between followers nothing is said for hours: an empty batch now and then shows that both are
        there."""
        while True:
            await asyncio.sleep(PING_S)
            now = time.monotonic()
            for link in self._links.values():
                session = link.session
                if session is None:
                    continue
                if now - session.heard_at > SILENCE_S:
                    log.warning("raft_peer_silent", peer=link.member.name, silent_s=round(now - session.heard_at, 1))
                    session.end()
                elif not session.wrote:
                    session.something.set()
                session.wrote = False

    def _hello(self, number: int) -> pb.Hello:
        ours = self._greet()
        return pb.Hello(
            protocol=PROTOCOL,
            protocol_oldest=PROTOCOL_OLDEST,
            cluster_id=ours.cluster_id,
            name=ours.name,
            members=ours.members,
            fresh=ours.fresh,
            term=ours.term,
            session=number,
            origin=ours.origin,
            format=ours.format,
        )

    def _take_hello(self, link: _Link, hello: pb.Hello) -> None:
        link.greeting = hello
        self._greeted()
        self._join(link)

    def _join(self, link: _Link) -> None:
        ours = self._greet().cluster_id
        if link.greeting is not None and not link.joined and ours and link.greeting.cluster_id == ours:
            link.joined = True
            self._onNodeConnected(link.peer)
            self._received()

    def _disconnect(self, link: _Link) -> None:
        link.session = link.greeting = None
        self.forget_held(link.peer)
        if link.joined:
            link.joined = False
            self._onNodeDisconnected(link.peer)
            self._received()

    async def _note_failure(self, member: Member, code: grpc.StatusCode, details: str) -> None:
        """What ails a certificate is no refusal for gRPC: it calls the peer UNAVAILABLE, or UNAUTHENTICATED."""
        if code in _REFUSED:
            self._note_refusal(member.name, details)
        elif self._security is not None and self._accounts.get(member.name) != details:
            self._accounts[member.name] = details
            reason = await asyncio.to_thread(self._security.explain, member.address, details)
            if reason:
                self._note_refusal(member.name, reason)

    def _note_refusal(self, peer: str, reason: str) -> None:
        if self.refused.get(peer) != reason:  # once, not at each retry
            log.error("raft_peer_refused", peer=peer, reason=reason)
        if peer in self._links or len(self.refused) < STRANGERS_MAX:
            self.refused[peer] = reason


class RaftServicer(raft_pb2_grpc.RaftServicer):
    """The server's half. It is made before the transport, which `attach`es itself when it starts."""

    def __init__(self) -> None:
        self._transport: GrpcTransport | None = None

    def attach(self, transport: GrpcTransport | None) -> None:
        self._transport = transport

    async def Stream(self, _: Any, context: Any) -> None:
        if self._transport is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this master is starting or stopping")
            return
        await self._transport.serve(context)
