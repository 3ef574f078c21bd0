"""The stream between the executor and the leader: finds the leader, keeps the lease, hands over reports.

The lease runs a TTL from when the acknowledged heartbeat was *sent*: the leader counts from its receipt, and so
always waits longer than we do. A stream that is cut changes nothing as long as the lease runs: the next leader is
told what is held here, and no task restarts.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from random import Random
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from msgspec import Struct

from tiflow import errors
from tiflow.exec import convert, journal, reporter
from tiflow.exec.agent import Agent
from tiflow.exec.journal import Journal
from tiflow.exec.runner import Runner, now
from tiflow.ids import new_uid
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import SessionsStub
from tiflow.rpc.tls import Tls, open_aio_channel

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 0.25
CONNECT_S_MAX = 1.0
FAILURES_USUAL = 20  #: some 3 s of attempts
WELCOME_S_MAX = 3.0  #: a new leader answers only after its term's first entry is applied
GOODBYE_S_MAX = 0.5
HELD_BEATS = 20  #: of these one comes with all that is held
KEPT_S = 60.0  #: between two questions which of the jobs that something is kept of were deleted
FLUSH_S = 0.005  #: reports gather this long while an earlier batch is on its way
STATUS_S = 0.1  #: between what members report of themselves; of one member only the newest
TTL_S_DEFAULT = 5.0  #: before a leader named one
GIVE_UP_TTLS, GIVE_UP_EXTRA_S = (
    1.1,
    0.5,
)  #: how long the leader waits for a lease that it no longer renews, and
#: so how long a name may still be taken by an executor that is gone
MESSAGE_BYTES_MAX = 16 << 20

_Stream: TypeAlias = Any  #: grpc.aio.StreamStreamCall[pb.ExecutorMessage, pb.LeaderMessage]; gRPC has no types

log = structlog.get_logger()

_REFUSALS: dict[str, type[errors.TiflowError]] = {
    leaf.code: leaf
    for leaf in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.ResourceExhausted,
        errors.PermissionDenied,
        errors.Unauthenticated,
        errors.Internal,
    )
}


class Identity(Struct, frozen=True):
    """What an executor says of itself."""

    uid: str
    name: str
    address: str
    slots: int
    labels: Mapping[str, str] = {}
    capacity: Mapping[str, int] = {}
    version: str = ""


class _Elsewhere(Exception):
    """This master does not lead; `str` is the address of the one that does, or empty."""


class _Cut(Exception):
    """The stream is of no use any more: connect again."""


async def _decided(channel: grpc.aio.Channel) -> None:
    """Wait until the channel is up, or is known to fail, as with a port that nobody listens on: a call then says why
    at once."""
    state = channel.get_state(try_to_connect=True)
    while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


class Session:
    """Keeps one stream with the leader until `close`. `run` returns after that, or raises what cannot be mended."""

    def __init__(
        self, identity: Identity, join: tuple[str, ...], runner: Runner, kept: Journal, rng: Random, tls: Tls | None
    ) -> None:
        self._identity = identity
        self._journal = kept
        self._left = journal.read(kept.path)  #: of an incarnation that is over, and was not reported
        self._runner = runner
        self._agent: Agent = runner.agent
        self._rng = rng
        self._tls = tls
        self._masters = list(join)
        self._hint = ""  #: who is said to lead
        self._boot_id = new_uid(self._rng)
        self._incarnation = 0
        self._cluster_id = ""
        self._term = 0  #: the highest that was seen
        self._ttl_s = TTL_S_DEFAULT
        self._keepalive_s = 0.5
        self._told: dict[str, str] = {}  #: by master: the last reason for which it could not be talked to
        self._looked_into: dict[str, tuple[str, str]] = {}  #: by master: gRPC's account, and what it meant
        self._seq = 0  #: of heartbeats
        self._sent: dict[int, float] = {}  #: heartbeat → when it was sent
        self._wake = asyncio.Event()
        self._flushed_at = 0.0
        self._refused_since: float | None = None
        self._heard_at = 0.0
        self._closing = False
        runner.on_change = runner.members.on_report = self._wake.set

    async def run(self) -> None:
        """Stay connected. Raises a TiflowError when the leader will not have this executor."""
        turn = 0
        failures = 0
        while not self._closing:
            if self._agent.lapsed:
                await self._register_anew()
            address = self._hint or self._masters[turn % len(self._masters)]
            turn += 0 if self._hint else 1
            self._hint = ""
            try:
                await self._connect(address)
                failures = 0
            except _Elsewhere as leader:
                self._hint = str(leader)
                failures += 1
                if self._hint and failures == 1:
                    continue  # at once
            except _Cut as cut:
                failures += 1
                self._tell_of_failure(address, str(cut), failures)
            if not self._closing:
                await asyncio.sleep(self._backoff_s(failures))

    def _tell_of_failure(self, address: str, reason: str, failures: int) -> None:
        """An election makes a few failures; what goes on is told, once per master and reason."""
        news = failures >= FAILURES_USUAL and self._told.get(address) != reason
        if news:
            self._told[address] = reason
        (log.warning if news else log.debug)("executor_session_failed", address=address, reason=reason)

    async def close(self) -> None:
        """Say goodbye when the reports are handed over (for which the caller waits), and end."""
        self._closing = True
        self._wake.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until every report is committed; False if that takes longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._agent.outbox:  # noqa: ASYNC110  once, at the end
                    await asyncio.sleep(0.005)
        return not self._agent.outbox

    def _backoff_s(self, failures: int) -> float:
        ceiling = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** min(failures, 5))
        return self._rng.uniform(BACKOFF_S_MIN, ceiling)

    async def _register_anew(self) -> None:
        """The incarnation is over. A new boot id says so, also to a leader that has not noticed: all that was
        placed here ends as lost, which is true once everything is killed."""
        await self._runner.all_killed()
        log.warning("lease_lost", incarnation=self._incarnation)
        self._agent.register_anew()
        self._left = journal.read(self._journal.path)  # what had ended in time may still count
        self._incarnation = 0
        self._boot_id = new_uid(self._rng)

    # ---- one stream

    async def _connect(self, address: str) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # no memory of an earlier failure: our backoff is shorter
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ]
        try:
            opened = open_aio_channel(address, self._tls, options)
        except errors.InvalidArgument as error:
            raise _Cut(str(error)) from None
        async with opened as channel:
            try:
                async with asyncio.timeout(CONNECT_S_MAX):
                    await _decided(channel)
                stream = SessionsStub(channel).Session()
                try:
                    await self._converse(address, stream)
                finally:
                    stream.cancel()
            except TimeoutError:
                raise _Cut("no connection") from None
            except grpc.aio.AioRpcError as error:
                raise _Cut(await self._why(address, error.code().name, error.details() or "")) from None
            except asyncio.InvalidStateError:  # what grpc.aio raises for a write to a call that has ended
                raise _Cut("the stream has ended") from None

    async def _why(self, address: str, code: str, details: str) -> str:
        """Why there is no stream. The same account is looked into once, however often we try."""
        if self._tls is None:
            return f"{code}: {details}"
        if self._looked_into.get(address, ("", ""))[0] != details:
            self._looked_into[address] = details, await asyncio.to_thread(self._tls.explain, address, details)
        return self._looked_into[address][1] or f"{code}: {details}"

    async def _bury(self, address: str, stream: _Stream, hello: pb.Hello, batches: list[pb.Events]) -> None:
        """Hand over what an earlier incarnation left in its journal, before registering ends all that it had."""
        for words in reporter.last_words(hello, batches):
            await stream.write(words)
        async with asyncio.timeout(WELCOME_S_MAX):
            while (message := await stream.read()) is not grpc.aio.EOF:
                match message.WhichOneof("body"):
                    case "events_ack":
                        continue
                    case "redirect":
                        raise _Elsewhere(message.redirect.leader)
                    case "expired" | "refused":
                        events = sum(len(batch.events) for batch in batches)
                        log.info("executor_journal_reported", events=events, refused=message.refused.reason)
                        self._left = None, []
                        raise _Elsewhere(address)  # and now as what we are
        raise _Cut("no answer to the journal")

    async def _converse(self, address: str, stream: _Stream) -> None:
        hello, batches = self._left
        if hello is not None and batches:
            await self._bury(address, stream, hello, batches)
        self._sent.clear()
        await stream.write(pb.ExecutorMessage(hello=self._hello()))
        async with asyncio.timeout(WELCOME_S_MAX):
            welcome = await self._read_welcome(stream)
        self._welcome(address, welcome)
        receiving = asyncio.create_task(self._receive(stream))
        tasks = [receiving, asyncio.create_task(self._send(stream)), asyncio.create_task(self._watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            # goodbye was said: the leader closes the stream when it has it
            await asyncio.wait([receiving], timeout=GOODBYE_S_MAX)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.info("executor_session_closed", address=address)

    def _hello(self) -> pb.Hello:
        identity = self._identity
        return pb.Hello(
            uid=identity.uid,
            boot_id=self._boot_id,
            incarnation=self._incarnation,
            name=identity.name,
            address=identity.address,
            slots=identity.slots,
            labels=dict(identity.labels),
            capacity=dict(identity.capacity),
            version=identity.version,
            held=self._agent.held(),
            cluster_id=self._cluster_id,
            draining=self._agent.draining,
        )

    def _last_hello(self) -> pb.Hello:
        """What the guardian says when this process has died: the incarnation ends with it."""
        hello = self._hello()
        hello.ClearField("held")
        hello.gone = True
        return hello

    async def _read_welcome(self, stream: _Stream) -> pb.Welcome:
        message = await stream.read()
        if message is grpc.aio.EOF:
            raise _Cut("no welcome")
        answer: pb.LeaderMessage = message
        if answer.WhichOneof("body") == "welcome":
            return answer.welcome
        self._obey(answer)
        raise _Cut("no welcome")

    def _welcome(self, address: str, welcome: pb.Welcome) -> None:
        if self._cluster_id and self._cluster_id == welcome.replaces:
            self._term = 0  # of the lost cluster: that of the new one counts anew
        self._check_term(welcome.term)
        if self._cluster_id not in ("", welcome.cluster_id, welcome.replaces):
            raise errors.FailedPrecondition(
                f"{address} belongs to cluster {welcome.cluster_id}, and this executor to {self._cluster_id}:"
                " let join name the masters of one cluster only"
            )
        anew = not self._incarnation
        if anew:
            log.info("executor_registered", address=address, incarnation=welcome.incarnation)
        self._refused_since = None
        self._told.clear()
        self._cluster_id = welcome.cluster_id
        self._incarnation = welcome.incarnation
        self._ttl_s = welcome.ttl_ms / 1_000
        self._keepalive_s = welcome.keepalive_ms / 1_000
        self._masters = list(dict.fromkeys([*self._masters, *welcome.masters]))
        self._heard_at = now()
        self._runner.members.masters.follow(address, welcome.masters)
        self._runner.members.tell_all_again()
        if anew:
            self._journal.begin(self._last_hello())
        self._runner.farewell(
            reporter.prepared([address, *self._masters], self._last_hello(), self._journal.path, self._tls)
        )
        log.info("executor_session_open", address=address, term=welcome.term, incarnation=welcome.incarnation)
        self._runner.do(self._agent.forget(list(welcome.unknown), now()))

    # ---- upwards

    async def _send(self, stream: _Stream) -> None:
        """Heartbeats, and reports: what is in flight first, as it was."""
        for batch in list(self._agent.outbox.in_flight.values()):
            await stream.write(pb.ExecutorMessage(events=convert.events(batch)))
        beat_at = kept_at = status_at = now()
        held_at = beat_at + HELD_BEATS * self._keepalive_s  # the hello said it
        said_draining, said_unhealthy = False, ""
        members = self._runner.members
        while True:
            if self._agent.draining and not said_draining:
                said_draining = True
                await stream.write(pb.ExecutorMessage(draining=pb.Draining()))
            if now() >= held_at:
                held_at = now() + HELD_BEATS * self._keepalive_s
                await stream.write(pb.ExecutorMessage(held=pb.Held(placements=self._agent.held())))
            if now() >= beat_at or said_unhealthy != self._agent.unhealthy:
                beat_at = now() + self._keepalive_s
                said_unhealthy = self._agent.unhealthy
                await self._beat(stream)
            if now() >= kept_at:
                kept_at = now() + KEPT_S
                kept = await asyncio.to_thread(self._runner.kept_jobs)
                await stream.write(pb.ExecutorMessage(kept=pb.Kept(job_uids=kept)))
            outbox = self._agent.outbox
            # also before the end of a member, which makes the leader forget it
            if members.has_news and (now() >= status_at or outbox.sendable):
                status_at = now() + STATUS_S
                for report in members.fresh_reports():
                    await stream.write(pb.ExecutorMessage(report=report))
            wait_s = min(beat_at, status_at if members.has_news else beat_at) - now()
            if outbox.sendable and not self._agent.lapsed:
                flush_at = self._flushed_at + FLUSH_S if outbox.in_flight else 0.0
                if now() >= flush_at:
                    self._flushed_at = now()
                    await stream.write(pb.ExecutorMessage(events=convert.events(outbox.take())))
                    continue
                wait_s = min(wait_s, flush_at - now())
            if self._closing:
                await stream.write(pb.ExecutorMessage(goodbye=pb.Goodbye()))
                await stream.done_writing()
                return
            if self._agent.lapsed:
                raise _Cut("the lease is lost")
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0005, wait_s)):
                    await self._wake.wait()

    async def _beat(self, stream: _Stream) -> None:
        self._seq += 1
        self._sent[self._seq] = now()  # before it is sent: the lease must end here before it ends there
        beat = pb.Heartbeat(seq=self._seq, unhealthy=self._agent.unhealthy)
        await stream.write(pb.ExecutorMessage(heartbeat=beat))

    async def _watch(self) -> None:
        """A leader that is gone without a word is left while there is time to find another one."""
        silence_s_max = max(2.5 * self._keepalive_s, self._ttl_s / 4)
        while now() - self._heard_at <= silence_s_max:  # noqa: ASYNC110  time is the event
            await asyncio.sleep(self._keepalive_s)
        self._hint = ""
        raise _Cut("the leader is silent")

    # ---- downwards

    async def _receive(self, stream: _Stream) -> None:
        while True:
            message = await stream.read()
            if message is grpc.aio.EOF:
                if self._closing:
                    return
                raise _Cut("the leader closed the stream")
            self._heard_at = now()
            self._obey(message)

    def _obey(self, message: pb.LeaderMessage) -> None:
        match message.WhichOneof("body"):
            case "lease_grant":
                self._check_term(message.lease_grant.term)
                sent = self._sent.get(message.lease_grant.seq)
                if sent is not None:
                    self._sent = {seq: at for seq, at in self._sent.items() if seq > message.lease_grant.seq}
                    self._runner.do(self._agent.grant(sent + self._ttl_s, now()))
            case "assignments":
                self._check_term(message.assignments.term)
                assignments = [convert.assignment(a) for a in message.assignments.assignments]
                self._runner.do(self._agent.assign(assignments, now()))
            case "revoke":
                self._check_term(message.revoke.term)
                why = message.revoke.reason or "canceled"
                self._runner.do(self._agent.revoke(list(message.revoke.placements), now(), why))
                for tasks in message.revoke.tasks:
                    indexes = [i for part in tasks.ranges for i in range(part.start, part.stop)]
                    self._runner.do(self._agent.withdraw(tasks.placement, indexes, now()))
            case "events_ack":
                self._agent.acknowledge(message.events_ack.seq)
                self._journal.trim(self._agent.outbox)
                self._wake.set()
            case "members":
                self._check_term(message.members.term)
                self._runner.members.take_rows(message.members)
            case "deleted":
                groups = [convert.check_group(group) for group in message.deleted.groups]
                self._runner.remove_jobs(list(message.deleted.job_uids), groups)
            case "expired":
                self._runner.do(self._agent.expire())
                raise _Cut("the leader ended this incarnation")
            case "redirect":
                raise _Elsewhere(message.redirect.leader)
            case "refused":
                self._refused(message.refused)
            case "welcome" | None:
                raise _Cut("a message that was not expected")

    def _check_term(self, term: int) -> None:
        """What an earlier leader says is void: a later one may have decided otherwise."""
        if term < self._term:
            raise _Cut(f"term {term} is over, {self._term} was seen")
        self._term = term

    def _refused(self, refused: pb.Refused) -> None:
        leaf = _REFUSALS.get(refused.code)
        if leaf is None:  # UNAVAILABLE and the like
            raise _Cut(f"{refused.code}: {refused.reason}")
        if leaf is errors.AlreadyExists:
            self._refused_since = self._refused_since or now()
            if now() - self._refused_since < self._ttl_s * GIVE_UP_TTLS + GIVE_UP_EXTRA_S:
                log.warning("executor_name_taken", name=self._identity.name, reason=refused.reason)
                raise _Cut(refused.reason)
        raise leaf(refused.reason)
