"""A leader that keeps its promises to executors, and nothing else: registers, grants leases, hands out assignments,
acknowledges reports. Tests set what it should do and wait for what they want to see."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from msgspec import msgpack

from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import SessionsServicer, add_SessionsServicer_to_server

ENDS = ("succeeded", "failed", "canceled", "released")


class FakeLeader(SessionsServicer):
    def __init__(self, *, term: int = 1, ttl_ms: int = 10_000, keepalive_ms: int = 50) -> None:
        self.term, self.ttl_ms, self.keepalive_ms = term, ttl_ms, keepalive_ms
        self.address = ""
        self.hellos: list[pb.Hello] = []
        self.events: list[pb.TaskEvent] = []
        self.event_seqs: dict[int, bytes] = {}
        self.reports: list[pb.Hello] = []  #: of agents that died
        self.left: list[pb.TaskEvent] = []  #: what they had not said
        self.unhealthy = ""
        self.kept: list[list[int]] = []
        self.goodbyes = 0
        self.drainings = 0
        self.granting = True
        self.acking = True
        self.incarnation = 100
        self.redirect: str | None = None
        self.refuse: pb.Refused | None = None
        self.refuse_reports: pb.Refused | None = None  #: likewise, of agents that died
        self.unknown: list[int] = []
        self._outbox: asyncio.Queue[pb.LeaderMessage] = asyncio.Queue()
        self._changed = asyncio.Event()  #: another one after each change
        self._server: Any = None
        self.connected = 0

    async def start(self, address: str = "127.0.0.1:0") -> "FakeLeader":
        self._server = grpc.aio.server()
        add_SessionsServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(address)}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None  # its finaliser needs the loop that is still running

    async def Session(self, requests: Any, context: Any) -> None:
        hello = (await context.read()).hello
        if hello.gone:
            self.reports.append(hello)
        else:
            self.hellos.append(hello)
        self._notify()
        if self.redirect is not None:
            await context.write(pb.LeaderMessage(redirect=pb.Redirect(leader=self.redirect)))
            return
        if self.refuse is not None:
            await context.write(pb.LeaderMessage(refused=self.refuse))
            return
        if hello.gone and self.refuse_reports is not None:
            await context.write(pb.LeaderMessage(refused=self.refuse_reports))
            return
        if hello.gone:
            while (message := await context.read()).WhichOneof("body") != "goodbye":
                self.left += message.events.events
            self._notify()
            await context.write(pb.LeaderMessage(expired=pb.Expired()))
            return
        if hello.incarnation == 0:
            self.incarnation += 1
        welcome = pb.Welcome(
            cluster_id="c1",
            incarnation=hello.incarnation or self.incarnation,
            term=self.term,
            ttl_ms=self.ttl_ms,
            keepalive_ms=self.keepalive_ms,
            masters=[self.address],
            unknown=self.unknown,
        )
        await context.write(pb.LeaderMessage(welcome=welcome))
        self.connected += 1
        self._notify()
        writer = asyncio.create_task(self._write(context))
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                self._take(message)
        finally:
            self.connected -= 1
            self._notify()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, context: Any) -> None:
        while True:
            await context.write(await self._outbox.get())

    def _take(self, message: pb.ExecutorMessage) -> None:
        match message.WhichOneof("body"):
            case "heartbeat":
                self.unhealthy = message.heartbeat.unhealthy
                if self.granting:
                    self.send(lease_grant=pb.LeaseGrant(seq=message.heartbeat.seq, term=self.term))
            case "events":
                events, data = message.events, message.events.SerializeToString()
                if events.seq not in self.event_seqs:
                    self.events += events.events
                # a batch that is sent again is the same batch
                assert self.event_seqs.setdefault(events.seq, data) == data
                if self.acking:
                    self.send(events_ack=pb.EventsAck(seq=events.seq))
            case "kept":
                self.kept.append(list(message.kept.job_uids))
            case "draining":
                self.drainings += 1
            case "goodbye":
                self.goodbyes += 1
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def send(self, **body: Any) -> None:
        self._outbox.put_nowait(pb.LeaderMessage(**body))

    def assign(self, *assignments: pb.Assignment) -> None:
        self.send(assignments=pb.Assignments(term=self.term, assignments=assignments))

    def revoke(self, *placements: int) -> None:
        self.send(revoke=pb.Revoke(term=self.term, placements=placements))

    async def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Wait until something that an executor sent makes the condition true."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not in {timeout_s} s; events: {[str(e) for e in self.events[-5:]]}") from None

    def ends(self, placement: int | None = None) -> dict[tuple[int, int], pb.TaskEvent]:
        """(placement, index) → the event that ended it. Asserts that each ended once."""
        ends: dict[tuple[int, int], pb.TaskEvent] = {}
        for event in self.events:
            if event.kind in ENDS and placement in (None, event.placement):
                for index in range(event.start, event.stop):
                    assert (event.placement, index) not in ends, f"{event.placement}/{index} ended twice"
                    ends[event.placement, index] = event
        return ends

    def started(self, placement: int, index: int = 0) -> bool:
        return any(
            e.kind == "started" and e.placement == placement and e.start <= index < e.stop for e in self.events
        )

    def results(self, placement: int) -> dict[int, Any]:
        """index → its value, or [size, sha256] of a large one."""
        results = {}
        for event in self.events:
            if event.placement == placement and event.kind == "succeeded":
                for offset, element in enumerate(msgpack.decode(event.results)):
                    value = msgpack.decode(element) if isinstance(element, bytes) else element
                    results[event.start + offset] = value
        return results


def python(placement: int, function: str, stop: int = 1, *, start: int = 0, path: Any = (), **fields: Any) -> Any:
    fields = {"job_id": "j", "job_uid": placement, "group": "g", "attempt": 1} | fields
    work = pb.Python(function=function, path=[str(p) for p in path])
    return pb.Assignment(placement=placement, start=start, stop=stop, python=work, **fields)


def command(placement: int, *argv: str, stop: int = 1, env: Any = None, **fields: Any) -> Any:
    fields = {"job_id": "j", "job_uid": placement, "group": "g", "attempt": 1} | fields
    return pb.Assignment(placement=placement, stop=stop, command=pb.Command(argv=argv, env=env or {}), **fields)


async def eventually(condition: Callable[[], Any], timeout_s: float = 30.0) -> float:
    """Wait for something outside; returns how long it took, in seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not in {timeout_s} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


def ends_of(batches: Iterable[pb.Events]) -> set[tuple[int, int]]:
    """(placement, index) of what they are about."""
    return {(e.placement, i) for batch in batches for e in batch.events for i in range(e.start, e.stop)}
