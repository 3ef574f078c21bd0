"""Links between members: sessions that break, and directed wires that stall, or, if the weather is wild, lose, double
and shuffle messages.

A session is what one gRPC stream is: messages of an older one never arrive in a newer one.
"""

import heapq
import itertools
from collections import deque
from random import Random
from typing import Any

from tests.sim.raft.ledger import Ledger
from tests.sim.raft.loop import Clock
from tests.sim.raft.weather import Weather
from tiflow.raft import raft_pb2 as pb
from tiflow.raft.library import Peer
from tiflow.raft.replication import BACKLOG_BYTES_MAX
from tiflow.raft.transport import GrpcTransport

Wire = tuple[str, str]

WINDOW_MESSAGES = 20  # on the way to one peer, then its leader waits
LATE_S = 5.0
END = None  # the last item of a session


class Session:
    """One stream between two members; stands for transport._Session at both ends."""

    def __init__(self, number: int) -> None:
        self.number = number

    def end(self) -> None: ...  # the transport calls it for one that is already replaced


class SimTransport(GrpcTransport):
    """The real transport, up to where bytes would leave."""

    network: "Network"  # set by the member that makes it

    def start(self) -> None: ...  # the world connects

    def emit(self, node: Peer, message: pb.Message) -> None:
        session = self._links[str(node.id)].session
        if session is not None:
            self.network.send((self._name, str(node.id)), session, message)  # type: ignore[arg-type]

    def backlog_bytes(self, node: Peer) -> int:
        waiting = self.network.wires.get((self._name, str(node.id)), ())
        return BACKLOG_BYTES_MAX if len(waiting) >= WINDOW_MESSAGES else 0

    def greet_again(self) -> None:
        for name, link in self._links.items():
            if link.session is not None:
                self.network.send((self._name, name), link.session, self._hello(link.session.number))  # type: ignore[arg-type]
                self._join(link)

    # --- for the network

    def open(self, peer: str, session: Session) -> None:
        """Each side says Hello first."""
        link = self._links[peer]
        if link.session is not None:
            self._disconnect(link)
        link.session, link.number = session, session.number  # type: ignore[assignment]
        self.network.send((self._name, peer), session, self._hello(session.number))

    def close_session(self, peer: str) -> None:
        self._disconnect(self._links[peer])

    def session_of(self, peer: str) -> Any:
        """The session in which both take one another for members of one cluster."""
        link = self._links[peer]
        return link.session if link.joined else None

    def take(self, peer: str, item: "pb.Hello | bytes") -> None:
        """As a reader of the stream does."""
        link = self._links[peer]
        if isinstance(item, pb.Hello):
            self._take_hello(link, item)
        elif link.joined:
            try:
                self.receive(link.peer, pb.Message.FromString(item))
            except Exception as error:  # noqa: BLE001 - as the real one
                self._failed(error)
                return
            self._received()


class Network:
    """`weather` has the chances of a message to be dropped, doubled, shuffled or late."""

    def __init__(self, rng: Random, clock: Clock, ledger: Ledger, weather: Weather) -> None:
        self.rng = rng
        self.clock = clock
        self.ledger = ledger
        self.drop, self.double, self.shuffle, self.late = weather.drop, weather.double, weather.shuffle, weather.late
        self._late: list[tuple[float, int, Wire, Session, bytes]] = []  # a heap, by when it arrives
        self.wires: dict[Wire, deque[pb.Hello | bytes | None]] = {}
        self.cuts: set[frozenset[str]] = set()
        self.stalls: dict[Wire, float] = {}  # until when nothing arrives
        self._sessions: dict[frozenset[str], Session] = {}
        self._count = 0
        self._order = itertools.count()

    def calm(self) -> None:
        self.drop = self.double = self.shuffle = self.late = 0.0
        self._late.clear()
        self.cuts.clear()
        self.stalls.clear()

    def connected(self, pair: frozenset[str]) -> bool:
        return pair in self._sessions

    def connect(self, a: str, b: str) -> Session:
        """A new session between the two, empty yet."""
        self._count += 1
        session = self._sessions[frozenset((a, b))] = Session(self._count)
        self.wires[a, b], self.wires[b, a] = deque(), deque()
        return session

    def send(self, wire: Wire, session: Session, message: pb.Message | pb.Hello) -> None:
        if self._sessions.get(frozenset(wire)) is not session:
            return  # the other end has hung up
        queue = self.wires[wire]
        if isinstance(message, pb.Hello):
            queue.append(message)
            return
        self.ledger.sent(*wire, message)
        if self.drop and self.rng.random() < self.drop:
            return
        data = message.SerializeToString()
        if self.late and self.rng.random() < self.late:
            due = self.clock.now + self.rng.uniform(0.0, LATE_S)
            heapq.heappush(self._late, (due, next(self._order), wire, session, data))
            return
        queue.append(data)
        if self.double and self.rng.random() < self.double:
            queue.append(data)

    def deliverable(self) -> list[Wire]:
        """Wires on which something can arrive now."""
        now = self.clock.now
        while self._late and self._late[0][0] <= now:
            _, _, wire, session, data = heapq.heappop(self._late)
            if self._sessions.get(frozenset(wire)) is session:
                self.wires[wire].append(data)
        return [wire for wire, queue in self.wires.items() if queue and self.stalls.get(wire, 0.0) <= now]

    def receive(self, wire: Wire) -> "pb.Hello | bytes | None":
        queue = self.wires[wire]
        place = 0
        if self.shuffle and len(queue) > 1 and self.rng.random() < self.shuffle:
            place = self.rng.randrange(len(queue))
            if not isinstance(queue[place], bytes) or isinstance(queue[0], pb.Hello):
                place = 0  # a Hello comes first, the end last
        item = queue[place]
        del queue[place]
        if not queue and frozenset(wire) not in self._sessions:
            del self.wires[wire]
        return item

    def break_session(self, a: str, b: str, *, keep: bool, told: tuple[str, ...]) -> None:
        """End it for those in `told`, after what was on its way to them if `keep`."""
        if self._sessions.pop(frozenset((a, b)), None) is None:
            return
        for src, dst in ((a, b), (b, a)):
            queue = self.wires.pop((src, dst))
            if dst in told:
                self.wires[src, dst] = deque([*(queue if keep else ()), END])

    def forget(self, name: str) -> None:
        """Nothing arrives at who has died."""
        for wire in [wire for wire in self.wires if wire[1] == name]:
            del self.wires[wire]
