"""The job masters and workers that run here, as their agent sees them: it asks for them, and is asked for them.

A member talks to nobody but its agent, which speaks for it: to the masters (start workers, checkpoints), to the
executors of other members (messages, requests). So a member needs no certificate, and cannot say that it is another:
name and attempt are what the leader has placed here.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import structlog

from tiflow.errors import InvalidArgument, NotFound, Unavailable
from tiflow.exec import link
from tiflow.exec.actions import Run
from tiflow.exec.keeping import Keeper
from tiflow.exec.link import Link
from tiflow.exec.masters import Masters
from tiflow.exec.slots import CommandSlot
from tiflow.jobs.framework.port import (
    BODY_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    MASTER,
    SAMPLES_MAX,
    STATUS_BYTES_MAX,
    About,
    Envelope,
    Report,
    Request,
    Response,
    WorkerGroup,
    WorkerRow,
    name_of,
    place_of,
)
from tiflow.jobs.framework.types import settled
from tiflow.jobs.framework.workers import workers_spec
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channels import Channels
from tiflow.rpc.status import from_rpc_error
from tiflow.sched.model import Framework

DELIVER_S = 30.0  #: for the other side to handle what it is sent
KEYS_PAGE = 1_000
FOUND_MAX = 10_000
TABLES_MAX = 1_000  #: of workers, for job masters that were placed here and have not begun

Key: TypeAlias = tuple[int, str, int]  #: job uid, group, index

log = structlog.get_logger()


class MemberSlot(CommandSlot):
    """The process of a member, the pipes of its output, and the socket by which it talks to us."""

    def __init__(self, token: str, run: Run, started: float, data_dir: str, log_bytes_max: int) -> None:
        super().__init__(token, run, started, data_dir, log_bytes_max)
        self.sock, theirs = socket.socketpair()
        self.child_fds.append(theirs.detach())
        self.link: Link | None = None
        self.end: link.End | None = None  #: its last word
        self.stopping = ""  #: why it was told to end
        self.talking: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        assignment = self.run.assignment
        return assignment.job_uid, assignment.group, self.run.start

    @property
    def work(self) -> Framework:
        work = self.run.assignment.work
        assert isinstance(work, Framework)
        return work

    @property
    def name(self) -> str:
        assignment = self.run.assignment
        return name_of(assignment.group, self.run.start, assignment.count)

    @property
    def is_master(self) -> bool:
        return not self.work.kind

    def close(self) -> None:
        super().close()
        if self.talking is not None:
            self.talking.cancel()
        if self.link is not None:
            self.link.close()
        else:
            self.sock.close()


class Members:
    """`entries`: `module:Class` of job types that the executor's settings name. `on_report` is called when there are
    reports to send."""

    def __init__(self, keeper: Keeper, entries: Mapping[str, str], masters: Masters, channels: Channels) -> None:
        self.masters = masters
        self.on_report: Callable[[], None] = lambda: None
        self._keeper = keeper
        self._entries = settled(entries)
        self._channels = channels
        self._here: dict[Key, MemberSlot] = {}
        self._tables: dict[int, dict[str, WorkerRow]] = {}  #: by the placement of a job master: its workers
        self._partial: set[int] = set()  #: … of which only a part has come
        self._waiting: dict[int, asyncio.Future[None]] = {}  #: … those that have not begun for want of one
        self._found: dict[Key, str] = {}  #: addresses of the executors of other members, as they were told last
        self._reports: dict[tuple[int, int], pb.Report] = {}  #: by placement and index, of those that run
        self._fresh: dict[tuple[int, int], pb.Report] = {}

    # ---- life of a member here

    def begin(self, slot: MemberSlot) -> None:
        """Its process was started."""
        self._here[slot.key] = slot
        slot.talking = asyncio.get_running_loop().create_task(self._talk(slot))

    def stop(self, slot: MemberSlot, reason: str) -> None:
        slot.stopping = reason
        if slot.link is not None:
            slot.link.tell(link.Stop(reason))

    async def ended(self, slot: MemberSlot) -> None:
        """Its process is gone; returns when all that it said is known."""
        if slot.talking is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(1.0):
                    await slot.talking
        self.forget(slot)

    def forget(self, slot: MemberSlot) -> None:
        if self._here.get(slot.key) is slot:
            del self._here[slot.key]
        placement = slot.run.assignment.placement
        self._reports.pop((placement, slot.run.start), None)
        self._tables.pop(placement, None)
        self._waiting.pop(placement, None)
        self._partial.discard(placement)

    async def _talk(self, slot: MemberSlot) -> None:
        async def on_ask(what: link.Question) -> link.Answer:
            return await self._answer(slot, what)

        def on_note(note: link.Note) -> None:
            if isinstance(note, link.Reported):
                self._take_report(slot, note.report)
            elif isinstance(note, link.End):
                slot.end = note

        opened = await Link.open(slot.sock, on_ask, on_note)
        rows = await self._rows_for(slot) if slot.is_master else None
        slot.link = opened
        for note in link.in_frames(self._begin(slot, rows)):
            opened.tell(note)
        if slot.stopping:
            opened.tell(link.Stop(slot.stopping))
        await opened.run()

    def _begin(self, slot: MemberSlot, rows: tuple[WorkerRow, ...] | None) -> link.Begin:
        assignment, work = slot.run.assignment, slot.work
        return link.Begin(
            about=About(
                job_id=assignment.job_id,
                job_uid=assignment.job_uid,
                type=work.type,
                kind=work.kind,
                name=slot.name,
                attempt=assignment.attempt,
                config=bytes(slot.run.items[0]) if slot.run.items else work.config,
            ),
            group=assignment.group,
            index=slot.run.start,
            entry=self._entries.get(work.type, ""),
            path=work.path,
            keeper=self._keeper,
            rows=rows,
        )

    async def _rows_for(self, slot: MemberSlot) -> tuple[WorkerRow, ...]:
        """All workers of a job master, as soon as the leader has told."""
        placement = slot.run.assignment.placement
        if placement not in self._tables or placement in self._partial:
            told = self._waiting[placement] = asyncio.get_running_loop().create_future()
            await told
        return tuple(self._tables[placement].values())

    # ---- what the leader says

    def take_rows(self, members: pb.Members) -> None:
        """How the workers of a job master that was placed here stand."""
        rows = {member.name: _row(member) for member in members.members}
        placement = members.placement
        if members.whole:
            self._tables[placement] = rows
            if len(self._tables) > TABLES_MAX:
                oldest = next(iter(self._tables))
                del self._tables[oldest]
                self._partial.discard(oldest)
        elif placement in self._tables:
            self._tables[placement] |= rows
        if members.more:
            self._partial.add(placement)
        else:
            self._partial.discard(placement)
        if placement in self._waiting:
            if not members.more:  # it begins with all of them
                told = self._waiting.pop(placement)
                if not told.done():
                    told.set_result(None)
            return
        slot = next((slot for slot in self._here.values() if slot.run.assignment.placement == placement), None)
        if slot is not None and slot.link is not None:
            slot.link.tell(link.Rows(tuple(rows.values()), members.whole))

    # ---- what the leader is told

    def fresh_reports(self) -> list[pb.Report]:
        """Those that were not sent yet; they count as sent."""
        fresh, self._fresh = list(self._fresh.values()), {}
        return fresh

    def tell_all_again(self) -> None:
        """A session has begun: its leader knows nothing of what was reported before."""
        self._fresh = self._reports | self._fresh

    @property
    def has_news(self) -> bool:
        return bool(self._fresh)

    def _take_report(self, slot: MemberSlot, report: Report) -> None:
        if len(report.status) > STATUS_BYTES_MAX or len(report.samples) > SAMPLES_MAX:
            return  # the member's side refuses it with a reason; who goes round that is not heard
        message = pb.Report(placement=slot.run.assignment.placement, index=slot.run.start, status=report.status)
        for sample in report.samples:
            message.samples.add(name=sample.name, value=sample.value, labels=sample.labels, kind=sample.kind)
        key = (message.placement, message.index)
        self._reports[key] = self._fresh[key] = message
        self.on_report()

    # ---- what members ask

    async def _answer(self, slot: MemberSlot, what: link.Question) -> link.Answer:
        match what:
            case link.StartWorkers(group, once):
                await self._start_workers(slot, group, once)
            case link.StopWorkers(group, start, stop, forget, (number, settled)):
                uid, attempt = slot.run.assignment.job_uid, slot.run.assignment.attempt
                stopping = pb.StopWorkersRequest(
                    uid=uid,
                    attempt=attempt,
                    group=group,
                    start=start,
                    stop=stop,
                    forget=forget,
                    number=number,
                    settled=settled,
                )
                await self.masters.call("StopWorkers", stopping, write=True)
            case link.Get(key):
                getting = pb.GetCheckpointRequest(holder=_holder(slot), key=key)
                reply = await self.masters.call("GetCheckpoint", getting, write=False)
                return bytes(reply.value) if reply.found else None
            case link.Put(key, None):
                deleting = pb.DeleteCheckpointRequest(holder=_holder(slot), key=key)
                await self.masters.call("DeleteCheckpoint", deleting, write=True)
            case link.Put(key, value):
                putting = pb.PutCheckpointRequest(holder=_holder(slot), key=key, value=value)
                await self.masters.call("PutCheckpoint", putting, write=True)
            case link.Keys(prefix):
                return await self._keys(slot, prefix)
            case link.Deliver(envelope):
                await self._deliver(slot, envelope)
            case link.Call(to, request):
                return await self._call(slot, to, request)
        return None

    async def _start_workers(self, slot: MemberSlot, group: WorkerGroup, once: tuple[int, int]) -> None:
        uid, attempt = slot.run.assignment.job_uid, slot.run.assignment.attempt
        message = convert.group_to_proto(workers_spec(slot.work, group))
        number, settled = once
        starting = pb.StartWorkersRequest(uid=uid, attempt=attempt, group=message, number=number, settled=settled)
        await self.masters.call("StartWorkers", starting, write=True)

    async def _keys(self, slot: MemberSlot, prefix: str) -> list[str]:
        keys: list[str] = []
        while True:
            after = keys[-1] if keys else ""
            request = pb.ListCheckpointsRequest(holder=_holder(slot), prefix=prefix, after=after, limit=KEYS_PAGE)
            page = (await self.masters.call("ListCheckpoints", request, write=False)).checkpoints
            keys += [one.key for one in page]
            if len(page) < KEYS_PAGE:
                return keys

    async def _deliver(self, slot: MemberSlot, envelope: Envelope) -> None:
        key = _key(slot, envelope.to)
        request = pb.DeliverRequest(
            job_uid=key[0],
            sender=slot.name,
            attempt=slot.run.assignment.attempt,
            to=envelope.to,
            first=envelope.first,
            messages=envelope.messages,
        )
        if key in self._here:
            await self.deliver(request)
            return
        address = await self._find(slot, key)
        await self._ask(key, self._channels.executor(address).Deliver(request, timeout=DELIVER_S))

    async def _call(self, slot: MemberSlot, to: str, request: Request) -> Response:
        key = _key(slot, to)
        asking = ask_request(key[0], to, request)
        if key in self._here:
            return response_of(await self.ask(asking))
        address = await self._find(slot, key)
        return response_of(
            await self._ask(key, self._channels.executor(address).AskMember(asking, timeout=DELIVER_S))
        )

    async def _ask(self, key: Key, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.RpcError as failure:
            error = from_rpc_error(failure, write=True)
        self._found.pop(key, None)  # it may have moved
        raise Unavailable(str(error)) if isinstance(error, NotFound) else error

    async def _find(self, slot: MemberSlot, key: Key) -> str:
        """The address of the executor that a member runs on. Raises NotFound when it has ended, or never was;
        Unavailable when it waits to be placed."""
        if (address := self._found.get(key)) is not None:
            return address
        _, group, index = key
        request = pb.ListTasksRequest(id=slot.run.assignment.job_id, group=group, start=index, limit=1)
        tasks = (await self.masters.call("ListTasks", request, write=False)).tasks
        task = tasks[0] if tasks else None
        if task is None or task.state in ("succeeded", "failed", "canceled", "skipped"):
            raise NotFound(f"{group}/{index} has ended" if task else f"there is no {group}/{index}")
        if not task.address:
            raise Unavailable(f"{group}/{index} is {task.state}: it has no executor now")
        if len(self._found) >= FOUND_MAX:
            self._found.clear()
        self._found[key] = address = str(task.address)
        return address

    # ---- what other executors, and masters, ask of the members here

    async def deliver(self, request: pb.DeliverRequest) -> None:
        """Returns when the member has acknowledged. Raises Unavailable when it does not run here."""
        if sum(len(message) for message in request.messages) > ENVELOPE_BYTES_MAX:
            raise InvalidArgument(f"messages: more than {ENVELOPE_BYTES_MAX} bytes at once")
        envelope = Envelope(request.sender, request.attempt, request.to, request.first, tuple(request.messages))
        await self._link_of(request.job_uid, request.to).ask(link.Deliver(envelope))

    async def ask(self, request: pb.AskMemberRequest) -> pb.AskMemberReply:
        """Raises as `deliver`."""
        if len(request.body) > BODY_BYTES_MAX:
            raise InvalidArgument(f"body: {len(request.body)} bytes; at most {BODY_BYTES_MAX}")
        asked = Request(request.method, request.path, request.query, dict(request.headers), request.body)
        call = link.Call(request.to, asked)
        response = await self._link_of(request.job_uid, request.to).ask(call, Response)
        return pb.AskMemberReply(status=response.status, headers=response.headers, body=response.body)

    def _link_of(self, job_uid: int, name: str) -> Link:
        try:
            group, index = place_of(name)
        except ValueError as error:
            raise InvalidArgument(f"to: {error}") from None
        slot = self._here.get((job_uid, group, index))
        if slot is None or slot.link is None:
            raise Unavailable(f"{name or 'the job master'} of the job with uid {job_uid} does not run here now")
        return slot.link


def ask_request(job_uid: int, to: str, request: Request) -> pb.AskMemberRequest:
    return pb.AskMemberRequest(
        job_uid=job_uid,
        to=to,
        method=request.method,
        path=request.path,
        query=request.query,
        headers=request.headers,
        body=request.body,
    )


def response_of(reply: pb.AskMemberReply) -> Response:
    return Response(reply.status, dict(reply.headers), reply.body)


def _key(slot: MemberSlot, name: str) -> Key:
    try:
        return (slot.run.assignment.job_uid, *place_of(name))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _holder(slot: MemberSlot) -> pb.Holder:
    assignment = slot.run.assignment
    name = MASTER if slot.is_master else f"{assignment.group}/{slot.run.start}"
    return pb.Holder(job_id=assignment.job_id, uid=assignment.job_uid, name=name, attempt=assignment.attempt)


def _row(member: pb.Member) -> WorkerRow:
    return WorkerRow(
        name=member.name,
        kind=member.kind,
        state=member.state,
        attempt=member.attempt,
        failures=member.failures,
        losses=member.losses,
        last_end=member.last_end,
        executor=member.executor,
        error=member.error,
        status=member.status,
        result=member.result,
    )
