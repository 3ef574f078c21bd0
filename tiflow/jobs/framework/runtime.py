"""Lives the life of one member: `run_member`.

Everything of it happens in one event loop. `run` is a task; hooks and messages take turns beside it; what is sent has
a task per receiver. What comes first decides: `run` returns, something raises, the member is told to stop, or a later
attempt is in charge.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from msgspec import Struct, msgpack

from tiflow.errors import FailedPrecondition, OutcomeUnknown, TiflowError, Unavailable
from tiflow.jobs.failures import cause_of, cut, describe, traceback_of
from tiflow.jobs.framework.mailbox import Inbox, Outbox, encode_message
from tiflow.jobs.framework.member import Final, JobMaster, Member, WorkerView
from tiflow.jobs.framework.port import (
    BODY_BYTES_MAX,
    CHECKPOINT_BYTES_MAX,
    STATUS_BYTES_MAX,
    About,
    Envelope,
    Handler,
    Port,
    Report,
    Request,
    Response,
    StopReason,
    WorkerGroup,
    WorkerRow,
    name_of,
    place_of,
)
from tiflow.jobs.framework.shown import Metrics, Routes
from tiflow.jobs.framework.team import Change, Team
from tiflow.sched.model import RESULT_INLINE_BYTES_MAX

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 1.0
CANCEL_S = 5.0  #: for what was canceled to end; then the process ends with it
REPORT_S = 0.1  #: between two reports; the newest counts

T = TypeVar("T")
_encode = msgpack.Encoder().encode
_is_key = re.compile(r"[!-~]{1,255}").fullmatch
_CANNOT = (TypeError, ValueError, OverflowError, RecursionError)  #: be encoded


_CANCELED_ITSELF = "CancelledError: it was canceled, though nobody had told it to end"


class Outcome(Struct, frozen=True):
    """How an attempt ended: with a `result` (msgpack), an `error` (`final`: another attempt cannot help), or it was
    `stopped` since it was told to."""

    result: bytes | None = None
    error: str = ""
    final: bool = False
    stopped: bool = False


async def run_member(
    cls: type[Member],
    about: About,
    connect: Callable[[Handler], Port],
    rows: Sequence[WorkerRow] | None,
    log: Any,
) -> Outcome:
    """Live until the attempt ends.

    Args:
        connect: gives the port; the handler may be called from then on.
        rows: of a job master: all its workers.
        log: bound with who the member is.
    """
    return await Runtime(cls, about, rows or (), connect, log).live()


class Runtime:
    """`tiflow.jobs.framework.port.Handler`, and what stands behind the methods of `Member`."""

    def __init__(
        self,
        cls: type[Member],
        about: About,
        rows: Sequence[WorkerRow],
        connect: Callable[[Handler], Port],
        log: Any,
    ) -> None:
        self.metrics = Metrics(self._report_soon)
        self.routes = Routes()
        self._cls = cls
        self._about = about
        self._log = log
        self._is_master = not about.kind
        self._over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._stop_reason: asyncio.Future[StopReason] = asyncio.get_running_loop().create_future()
        self._changes: asyncio.Queue[Change] = asyncio.Queue()  #: of which the hooks have not heard
        self._news: set[str] = set()  #: workers whose status is in there: the newest is enough
        self._started = asyncio.Event()  #: `on_start` has returned
        self._turn = asyncio.Lock()  #: of hooks and messages
        self._in_turn: asyncio.Task[Any] | None = None  #: what runs the one whose turn it is
        self._changed = asyncio.Condition()  #: what is known of the workers
        self._tasks: set[asyncio.Task[Any]] = set()
        self._inbox = Inbox(self._hear)
        self._outboxes: dict[str, Outbox] = {}
        self._carrying: dict[str, asyncio.Task[None]] = {}
        self._came: dict[str, asyncio.Event] = {}  #: by receiver that is away: it runs now
        self._putting: dict[str, asyncio.Task[None]] = {}  #: by key: its newest checkpoint that is not yet durable
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  #: by group
        self._asked = 0  #: requests about groups
        self._unsettled: set[int] = set()  #: numbers of those that were neither answered nor given up
        self._status = b""
        self._reporting: asyncio.TimerHandle | None = None
        self._reported_at = float("-inf")
        self._member: Member | None = None
        self._team = Team(rows)  # before it is told what has changed since
        self._port = connect(self)

    @property
    def views(self) -> dict[str, WorkerView]:
        return self._team.views

    # ---- the life

    async def live(self) -> Outcome:
        try:
            self._end(await self._live())
            return self._over.result()
        finally:
            if left := list(self._tasks):
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=CANCEL_S)
            if self._reporting is not None:
                self._reporting.cancel()
                self._report_now()

    async def _live(self) -> Outcome:
        try:
            member = self._member = self._make()
        except Exception as error:  # noqa: BLE001  the user's __init__ and check
            return self._failed(error, final=True)
        running = self._spawn(self._life(member))
        self._spawn(self._run_hooks(member))
        await self._first(running, self._over, self._stop_reason)
        if self._over.done():
            return self._over.result()
        if running.done():
            return await self._returned(running)
        return await self._stop(member, running)

    async def _life(self, member: Member) -> Any:
        await member.on_start()
        self._started.set()
        return await member.run()

    def _make(self) -> Member:
        about = self._about
        config = msgpack.decode(about.config) if about.config else {}
        if not isinstance(config, dict):
            raise ValueError(f"config is of type {type(config).__name__}: must be a table of keys and values")
        if issubclass(self._cls, JobMaster):
            self._cls.check(config)
        member = self._cls()
        member.job_id, member.name, member.attempt = about.job_id, about.name, about.attempt
        member.config, member.log, member._runtime = config, self._log, self
        return member

    async def _returned(self, running: "asyncio.Task[Any]") -> Outcome:
        if running.cancelled():
            return Outcome(error=_CANCELED_ITSELF)
        if (error := running.exception()) is not None:
            return self._failed(error)
        try:
            result = _encode(running.result())
        except _CANNOT as error:
            kind = type(running.result()).__name__
            text = (
                f"result of type {kind} cannot be encoded: return numbers, strings, bytes, lists or dicts ({error})"
            )
            return Outcome(error=text, final=True)
        if not self._is_master and len(result) > RESULT_INLINE_BYTES_MAX:
            return Outcome(
                error=f"result of {len(result)} bytes: a worker returns at most {RESULT_INLINE_BYTES_MAX}; put more "
                "into a checkpoint, or send it",
                final=True,
            )
        if self._is_master:  # its workers end with it: nobody waits for what is on its way to them
            return Outcome(result=result)
        flushing = self._spawn(self.flush())
        await self._first(flushing, self._over, self._stop_reason)
        return Outcome(result=result) if flushing.done() else Outcome(stopped=True)

    async def _stop(self, member: Member, running: "asyncio.Task[Any]") -> Outcome:
        if self._started.is_set():
            stopping = self._spawn(member.on_stop(self._stop_reason.result()))
            await self._first(stopping, self._over)
            if stopping.done():
                self._log_what_it_raised(stopping, "on_stop_failed")
        running.cancel()
        await asyncio.wait((running,))
        self._log_what_it_raised(running, "run_failed_at_its_end")
        return Outcome(stopped=True)

    async def _first(self, *ends: "asyncio.Future[Any]") -> None:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    def _log_what_it_raised(self, task: "asyncio.Task[Any]", event: str) -> None:
        """It is to end all the same."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error(event, error=describe(error), trace=traceback_of(error))

    def _failed(self, error: BaseException, *, final: bool = False) -> Outcome:
        trace, error = traceback_of(error), cause_of(error)
        self._log.error("attempt_failed", error=describe(error), trace=trace)
        if isinstance(error, Final):
            return Outcome(error=cut(str(error) or "Final"), final=True)
        return Outcome(error=cut(describe(error)), final=final)

    async def _run_hooks(self, member: Member) -> None:
        await self._started.wait()
        while True:
            change = await self._changes.get()
            if change.hook == "on_status":
                self._news.discard(change.worker.name)
            async with self._turns():
                if self._stop_reason.done():
                    return
                if not await self._returns(getattr(member, change.hook)(change.worker)):
                    return
            self._changes.task_done()

    async def _returns(self, work: Awaitable[object]) -> bool:
        """Whether it does. What it raises ends the attempt, unless that is to end anyway."""
        try:
            await work
            return True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            outcome = Outcome(error=_CANCELED_ITSELF)
        except Exception as error:  # noqa: BLE001  the user's
            outcome = self._failed(error)
        if not self._stop_reason.done():
            self._end(outcome)
        return False

    @asynccontextmanager
    async def _turns(self) -> AsyncIterator[None]:
        async with self._turn:
            self._in_turn = asyncio.current_task()
            try:
                yield
            finally:
                self._in_turn = None

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self, outcome: Outcome) -> None:
        if not self._over.done():
            self._over.set_result(outcome)

    async def _patiently(self, ask: Callable[[], Awaitable[T]], again: asyncio.Event | None = None) -> T:
        """Ask until there is an answer. That a later attempt is in charge ends this one, here. `again`: set when it
        is worth asking at once."""
        pause_s, again = BACKOFF_S_MIN, again or asyncio.Event()
        while True:
            again.clear()
            try:
                return await ask()
            except (Unavailable, OutcomeUnknown) as error:
                self._log.debug("asked_again", reason=str(error))
            except FailedPrecondition as error:
                self._log.warning("not_in_charge", reason=str(error))
                self._end(Outcome(error=cut(str(error))))
                await asyncio.get_running_loop().create_future()  # until canceled
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await again.wait()
            pause_s = min(BACKOFF_S_MAX, pause_s * 2)

    # ---- what the member asks

    def report(self, status: Mapping[str, Any]) -> None:
        try:
            data = _encode(dict(status))
        except _CANNOT as error:
            raise ValueError(f"status cannot be encoded: {error}") from None
        if len(data) > STATUS_BYTES_MAX:
            raise ValueError(f"status of {len(data)} bytes; at most {STATUS_BYTES_MAX}")
        self._status = data
        self._report_soon()

    def _report_soon(self) -> None:
        if self._reporting is None:
            loop = asyncio.get_running_loop()
            self._reporting = loop.call_at(max(loop.time(), self._reported_at + REPORT_S), self._report_now)

    def _report_now(self) -> None:
        self._reporting = None
        self._reported_at = asyncio.get_running_loop().time()
        self._port.report(Report(self._status, self.metrics.samples()))

    async def save(self, key: str, value: Any) -> None:
        try:
            data = _encode(value)
        except _CANNOT as error:
            raise ValueError(f"checkpoint {key!r} cannot be encoded: {error}") from None
        if len(data) > CHECKPOINT_BYTES_MAX:
            raise ValueError(
                f"checkpoint {key!r} of {len(data)} bytes; at most {CHECKPOINT_BYTES_MAX}: use several keys"
            )
        await self._put(_key(key), data)

    async def load(self, key: str, default: Any) -> Any:
        data = await self._patiently(lambda: self._port.get(_key(key)))
        return default if data is None else msgpack.decode(data)

    async def discard(self, key: str) -> None:
        await self._put(_key(key), None)

    async def _put(self, key: str, data: bytes | None) -> None:
        """One after the other of a key, in order, even if who waits for it is canceled: an older value must not land
        after a newer one."""
        before = self._putting.get(key)

        async def put() -> None:
            if before is not None:
                await asyncio.wait((before,))
            await self._patiently(lambda: self._port.put(key, data))

        task = self._putting[key] = self._spawn(put())
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and self._putting.get(key) is task:
                del self._putting[key]

    async def saved(self, prefix: str) -> list[str]:
        return await self._patiently(lambda: self._port.keys(prefix))

    async def request(self, to: str, request: Request) -> Response:
        if not request.path.startswith("/"):
            raise ValueError(f"path {request.path[:128]!r}: begins with /")
        if not isinstance(request.body, bytes) or len(request.body) > BODY_BYTES_MAX:
            raise ValueError(f"body: must be bytes, at most {BODY_BYTES_MAX} of them")
        return await self._port.request(to, request)

    async def send(self, to: str, message: Any) -> None:
        data = encode_message(message)
        outbox = self._outboxes.get(to)
        if outbox is None:
            outbox = self._outboxes[to] = Outbox(self._about.name, self._about.attempt, to, self._deliver)
            self._carrying[to] = self._spawn(self._carry(outbox))
        await outbox.put(data)

    async def _carry(self, outbox: Outbox) -> None:
        await self._returns(outbox.run())

    async def _deliver(self, envelope: Envelope) -> None:
        came = self._came.setdefault(envelope.to, asyncio.Event())
        try:
            await self._patiently(lambda: self._port.deliver(envelope), came)
        finally:
            self._came.pop(envelope.to, None)

    async def flush(self) -> None:
        for outbox in list(self._outboxes.values()):
            await outbox.flush()

    async def start_workers(
        self, name: str, configs: Sequence[Mapping[str, Any]], **options: Any
    ) -> list[WorkerView]:
        assert issubclass(self._cls, JobMaster), "a method of job masters"
        kinds = self._cls.kinds_by_name()
        if options["kind"] not in kinds:
            raise ValueError(
                f"kind = {options['kind']!r}: is none of {', '.join(sorted(kinds)) or 'no kinds at all'}"
            )
        if isinstance(options["selectors"], str):
            raise ValueError(f'selectors = "{options["selectors"]}": must be a list, as ["{options["selectors"]}"]')
        if isinstance(configs, Mapping | str):
            raise ValueError(f"configs of workers {name!r}: must be a list, one table for each worker")
        if not configs:
            raise ValueError(f"configs of workers {name!r}: empty; give one for each worker")
        try:
            encoded = tuple(_encode(dict(config)) for config in configs)
        except _CANNOT as error:
            raise ValueError(f"configs of workers {name!r} cannot be encoded: {error}") from None
        group = WorkerGroup(name=name, configs=encoded, **options)
        names = [name_of(name, index, len(configs)) for index in range(len(configs))]
        self._team.expect(names)
        try:
            async with self._once(name) as once:
                await self._patiently(lambda: self._port.start_workers(group, once))
        except TiflowError:
            self._team.refused(names)
            raise
        return self._team.add(names, options["kind"])

    async def stop_worker(self, name: str) -> None:
        if name not in self.views:
            raise ValueError(f"there is no worker {name[:128]!r}; there are {_listed(self.views)}")
        group, index = place_of(name)
        async with self._once(group) as once:
            await self._patiently(lambda: self._port.stop_workers(group, index, index + 1, once, forget=False))

    async def forget_workers(self, name: str) -> None:
        theirs = self._team.of_group(name)
        for view in theirs:
            if not view.ended:
                raise ValueError(f"worker {view.name} is {view.state}: stop it, and forget it when it has ended")
        if not theirs:
            return
        async with self._once(name) as once:
            await self._patiently(lambda: self._port.stop_workers(name, 0, len(theirs), once, forget=True))
        for view in theirs:  # others of that name may come, and count from 1
            self._inbox.forget(view.name)
            self._outboxes.pop(view.name, None)
            if (carrying := self._carrying.pop(view.name, None)) is not None:
                carrying.cancel()
        self._team.forget(name)

    @asynccontextmanager
    async def _once(self, group: str) -> AsyncIterator[tuple[int, int]]:
        """A request about a group: its number, and the one below which all are settled. One after the other of a
        group: workers that are told of before the request for them is answered are not forgotten before that."""
        async with self._asking.setdefault(group, asyncio.Lock()):
            self._asked += 1
            number = self._asked
            self._unsettled.add(number)
            try:
                yield number, min(self._unsettled)
            finally:
                self._unsettled.discard(number)

    async def workers_ended(self) -> None:
        if asyncio.current_task() is self._in_turn:
            raise RuntimeError("workers_ended waits for hooks and messages, also for this one: await it in `run`")
        async with self._changed:
            await self._changed.wait_for(lambda: self._team.ended)
        await self._changes.join()  # what `run` does next may need what the hooks have done

    # ---- what the member is told: `Handler`

    def on_rows(self, rows: Sequence[WorkerRow], whole: bool) -> None:
        changes = self._team.see(rows)
        for row in rows:
            if row.state == "running" and (came := self._came.get(row.name)) is not None:
                came.set()
        if self._member is not None:  # else it begins with what it finds
            for change in changes:
                self._tell(change)
        self._spawn(self._say_changed())

    async def on_envelope(self, envelope: Envelope) -> None:
        await self._started.wait()
        await self._inbox.take(envelope)

    async def on_request(self, request: Request) -> Response:
        await self._started.wait()
        return await self.routes.answer(request)

    def on_stop(self, reason: StopReason) -> None:
        if not self._stop_reason.done():
            self._stop_reason.set_result(reason)

    def _tell(self, change: Change) -> None:
        if change.hook == "on_status":
            if change.worker.name in self._news:
                return
            self._news.add(change.worker.name)
        self._changes.put_nowait(change)

    async def _say_changed(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _hear(self, sender: str, message: Any) -> None:
        """Returning acknowledges. What the hook raises ends this attempt, and the next one gets the message again."""
        async with self._turns():
            if self._member is None or self._over.done() or self._stop_reason.done():
                raise Unavailable("it is ending")
            if not await self._returns(self._member.on_message(sender, message)):
                raise Unavailable("it failed with this message")


def _key(key: str) -> str:
    if not _is_key(key):
        raise ValueError(f"checkpoint {key[:300]!r}: keys are 1 to 255 printable ASCII characters without spaces")
    return key


def _listed(names: Mapping[str, object]) -> str:
    shown = sorted(names)[:10]
    return ", ".join(shown + ["…"] * (len(names) > len(shown))) or "none"
