"""Tests of job types: a job master and its workers in one process, on a clock that jumps.

    def test_goes_on_after_its_job_master_died():
        async def scenario():
            async with testing.Job(Count, {"parts": 3}) as job:
                await job.until(lambda: job.worker("part-0").status.get("done", 0) > 3)
                job.kill()
                assert await job.result() == 30

        testing.run(scenario())

The members are the real ones, with the real runtime; around them are no masters, executors and sockets, but a few
dictionaries that keep the same promises. Hours pass in milliseconds: `run` has an event loop whose time goes on when
there is nothing else to do. What `asyncio.to_thread` does takes real time, and no other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import structlog
from msgspec import Struct, msgpack

from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutcomeUnknown, Unavailable
from tiflow.jobs.framework.jumping import JumpingLoop
from tiflow.jobs.framework.member import JobMaster, Member, WorkerView
from tiflow.jobs.framework.port import (
    CANCELED,
    DRAINED,
    MASTER,
    MASTER_GROUP,
    PAUSED,
    About,
    Envelope,
    Handler,
    Port,
    Report,
    Request,
    Response,
    Sample,
    WorkerGroup,
    WorkerRow,
    name_of,
    place_of,
)
from tiflow.jobs.framework.runtime import Outcome, run_member

START_S = 0.2  #: from being placed to `run`
ATTEMPTS, BACKOFF_MS = 3, 1_000  #: where workers say nothing, as the masters' [job-backoff]
WITHIN_S = 3_600.0  #: of the clock that jumps

T = TypeVar("T")
_OVER = ("succeeded", "failed", "canceled")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a clock that jumps. Raises RuntimeError if it waits for what will never come."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scenario)


class Job:
    """A job whose type is `master`, from `async with` to its end; whatever still runs then is killed.

    Attributes:
        state: Running, Pausing, Paused, Canceling, Finished, Failed or Canceled.
        error: why it failed.
        checkpoints: by key, as Python values; a scenario may change them.
        executors: names; members go to the one that has fewest. `lose` takes one away.
        log: what happened, a line each, with its time.
    """

    def __init__(
        self,
        master: type[JobMaster],
        config: Mapping[str, Any] | None = None,
        *,
        executors: Sequence[str] = ("e1", "e2", "e3"),
        latency_s: float = 0.001,
        faults: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        """`latency_s`: of everything that members ask. `faults`: how likely it is that a question, or its answer, is
        lost (then it is asked again); `rng` decides which."""
        self.error = ""
        self.log: list[str] = []
        self.executors = list(executors)
        self.checkpoints = _Checkpoints()
        self._master = master
        self._latency_s = latency_s
        self._faults = faults
        self._rng = rng or Random(0)
        self._tasks: dict[tuple[str, int], _Task] = {}
        self._groups: dict[str, WorkerGroup] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._paused = self._closing = False
        self._changed = asyncio.Condition()
        self.state = "Running"
        group = WorkerGroup(name=MASTER_GROUP, kind="", configs=(msgpack.encode(dict(config or {})),))
        self._add(group)

    async def __aenter__(self) -> Self:
        self._place_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for task in self._tasks.values():
            self._kill_process(task)
        for work in list(self._background):
            work.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # ---- what can be seen

    def worker(self, name: str) -> WorkerView:
        """How a worker stands now, as its job master is told. Raises KeyError if there is none."""
        row = self._row(self._tasks[place_of(name)])
        return WorkerView(
            row.name,
            row.kind,
            row.state,
            row.attempt,
            row.failures,
            row.losses,
            row.executor,
            row.error,
            msgpack.decode(row.status) if row.status else {},
            msgpack.decode(row.result) if row.result else None,
        )

    @property
    def workers(self) -> dict[str, WorkerView]:
        return {task.name: self.worker(task.name) for task in self._tasks.values() if task.group != MASTER_GROUP}

    @property
    def attempt(self) -> int:
        """Of the job master."""
        return self._tasks[MASTER_GROUP, 0].attempt

    @property
    def status(self) -> dict[str, Any]:
        """What the job master reported last."""
        report = self._tasks[MASTER_GROUP, 0].report
        return msgpack.decode(report.status) if report is not None and report.status else {}

    def samples(self, name: str = MASTER) -> tuple[Sample, ...]:
        """The metrics of a member that runs."""
        task = self._tasks[place_of(name)]
        return task.report.samples if task.report is not None and task.process is not None else ()

    # ---- waiting

    async def until(self, condition: Callable[[], Any], within_s: float = WITHIN_S) -> None:
        """Returns when `condition()` is true. Raises AssertionError, with the log, if it is not in time."""
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"not within {within_s:g} s\n" + "\n".join(self.log)) from None

    async def ended(self, within_s: float = WITHIN_S) -> str:
        """Returns: the state that it ended in."""
        await self.until(lambda: self.state in ("Finished", "Failed", "Canceled"), within_s)
        return self.state

    async def result(self, within_s: float = WITHIN_S) -> Any:
        """What the job master returned. Raises AssertionError if the job does not finish."""
        state = await self.ended(within_s)
        assert state == "Finished", f"{state}: {self.error}\n" + "\n".join(self.log)
        return msgpack.decode(self._tasks[MASTER_GROUP, 0].result)

    async def request(self, method: str, path: str, to: str = MASTER, body: bytes = b"", query: str = "") -> Response:
        """As a user's HTTP request through a master. Raises Unavailable when that member does not run."""
        process = self._process(to)
        asked = Request(method, path, query, {}, body)
        response: Response = await process.hear(process.handler.on_request(asked))
        return response

    # ---- what happens to it

    def kill(self, name: str = MASTER) -> None:
        """The process of a member dies (SIGKILL): a failed try."""
        self._end(self._tasks[place_of(name)], Outcome(error="killed by SIGKILL"))

    def lose(self, executor: str) -> None:
        """An executor is gone with all that runs there; these tries do not count as failed."""
        self.executors.remove(executor)
        for task in [task for task in self._tasks.values() if task.executor == executor]:
            self._lose(task)

    def drain(self, executor: str) -> None:
        """Members there are told to end, and go on elsewhere."""
        self.executors.remove(executor)
        for task in [task for task in self._tasks.values() if task.executor == executor]:
            self._tell_to_stop(task, DRAINED)

    def pause(self) -> None:
        self._paused, self.state = True, "Pausing"
        for task in self._tasks.values():
            self._tell_to_stop(task, PAUSED)
        self._settle()

    def resume(self) -> None:
        self._paused, self.state = False, "Running"
        self._place_all()

    def cancel(self) -> None:
        self._close("Canceled")

    # ---- life of a task

    def _add(self, group: WorkerGroup) -> None:
        self._groups[group.name] = group
        for index in range(len(group.configs)):
            self._tasks[group.name, index] = _Task(group.name, index, len(group.configs), group.kind)

    def _place_all(self) -> None:
        for task in self._tasks.values():
            self._place(task)

    def _place(self, task: "_Task") -> None:
        if task.state != "waiting" or self._paused or self._closed or not self.executors or task.due:
            return
        load = {name: sum(other.executor == name for other in self._tasks.values()) for name in self.executors}
        task.state, task.executor = "placed", min(self.executors, key=lambda name: (load[name], name))
        self._note(f"{task.shown} placed on {task.executor}, attempt {task.attempt}")
        self._spawn(self._live(task, task.attempt))
        self._tell_master(task)

    async def _live(self, task: "_Task", attempt: int) -> None:
        """One attempt."""
        await asyncio.sleep(START_S)
        if task.attempt != attempt or task.state != "placed":
            return
        config = self._groups[task.group].configs[task.index]
        about = About("job", 1, "test", task.kind, task.name, attempt, config)
        process = _Process(self, task, attempt)
        task.process, task.state, task.started_s = process, "running", asyncio.get_running_loop().time()
        rows = [self._row(other) for other in self._tasks.values() if other is not task] if not task.kind else None
        log = structlog.get_logger().bind(job="job", task=task.shown, attempt=attempt)
        process.work = asyncio.create_task(run_member(self._class_of(task), about, process.connect, rows, log))
        process.told = {row.name: row for row in rows or ()}
        self._tell_master(task)
        try:
            outcome = await process.work
        except asyncio.CancelledError:
            if task.process is not process:
                return  # it was killed, and that is known
            raise
        if task.process is process:
            self._end(task, outcome)

    def _class_of(self, task: "_Task") -> type[Member]:
        return self._master.kinds_by_name()[task.kind] if task.kind else self._master

    def _end(self, task: "_Task", outcome: Outcome) -> None:
        """An attempt has ended."""
        if task.state not in ("placed", "running"):
            return
        self._kill_process(task)
        stopping, task.stopping, task.executor = task.stopping, "", ""
        group = self._groups[task.group]
        if stopping and outcome.result is None:
            self._note(f"{task.shown} stopped: {stopping}")
            self._again(task) if stopping in (PAUSED, DRAINED) else self._over(task, "canceled")
        elif outcome.result is not None:
            self._note(f"{task.shown} succeeded")
            task.result = outcome.result
            self._over(task, "succeeded")
        else:
            ran_ms = 1_000 * (asyncio.get_running_loop().time() - task.started_s)
            task.failures = 1 if group.reset_ms and ran_ms >= group.reset_ms else task.failures + 1
            task.error = outcome.error
            self._note(f"{task.shown} failed: {outcome.error}")
            if outcome.final or task.failures >= (group.attempts or ATTEMPTS):
                self._over(task, "failed")
            else:
                self._again(task, BACKOFF_MS if group.backoff_ms is None else group.backoff_ms)
        self._settle()

    def _lose(self, task: "_Task") -> None:
        self._kill_process(task)
        task.losses, task.executor, task.stopping = task.losses + 1, "", ""
        self._note(f"{task.shown} lost with its executor")
        self._again(task)
        self._settle()

    def _again(self, task: "_Task", after_ms: int = 0) -> None:
        task.state, task.attempt, task.due = "waiting", task.attempt + 1, bool(after_ms)
        if after_ms:
            self._spawn(self._let_go(task, after_ms / 1_000))
        else:
            self._place(task)

    async def _let_go(self, task: "_Task", after_s: float) -> None:
        await asyncio.sleep(after_s)
        task.due = False
        self._place(task)

    def _over(self, task: "_Task", state: str) -> None:
        task.state = state
        if task.group != MASTER_GROUP:
            return
        if state == "failed":
            self.error = task.error
        self._close({"succeeded": "Finished", "failed": "Failed"}.get(state, "Canceled"))

    @property
    def _closed(self) -> bool:
        return self._closing or self._ends_as != ""

    _ends_as = ""  #: what the job becomes when nothing of it runs any more

    def _close(self, state: str) -> None:
        if self._ends_as:
            return
        self._ends_as = state
        self.state = "Canceling" if state == "Canceled" else self.state
        for task in self._tasks.values():
            if task.state == "waiting":
                task.state = "canceled"
            self._tell_to_stop(task, CANCELED)
        self._settle()

    def _settle(self) -> None:
        runs = any(task.state in ("placed", "running") for task in self._tasks.values())
        if self._ends_as and not runs:
            self.state = self._ends_as
        elif self._paused and not runs:
            self.state = "Paused"
        for task in self._tasks.values():
            self._tell_master(task)

    def _tell_to_stop(self, task: "_Task", reason: str) -> None:
        if task.state not in ("placed", "running"):
            return
        task.stopping = reason
        if task.process is None:
            self._end(task, Outcome(stopped=True))
            return
        if task.process.handler is not None:
            task.process.handler.on_stop(reason)
        self._spawn(self._kill_late(task, task.process))

    async def _kill_late(self, task: "_Task", process: "_Process") -> None:
        await asyncio.sleep(self._groups[task.group].grace_ms / 1_000)
        if task.process is process:
            self._end(task, Outcome(error="killed by SIGKILL"))

    def _kill_process(self, task: "_Task") -> None:
        process, task.process = task.process, None
        if process is not None:
            process.die()

    # ---- what the members ask

    async def _travel(self) -> None:
        """There and back; either way may fail."""
        await asyncio.sleep(self._latency_s)
        if self._rng.random() < self._faults:
            raise Unavailable("lost on its way")

    async def _return(self) -> None:
        if self._rng.random() < self._faults:
            raise OutcomeUnknown("the answer was lost")

    def _in_charge(self, process: "_Process") -> None:
        if process.task.process is not process:
            raise FailedPrecondition(f"attempt {process.attempt} of {process.task.shown} has been replaced")

    def _start(self, group: WorkerGroup) -> None:
        known = self._groups.get(group.name)
        if known is not None and known != group:
            raise AlreadyExists(f"workers {group.name} exist, and are not as asked")
        if group.name == MASTER_GROUP:
            raise InvalidArgument(f"name: {MASTER_GROUP} is the job master")
        if known is None:
            self._add(group)
            self._place_all()
            self._settle()

    def _stop(self, name: str, start: int, stop: int, *, forget: bool) -> None:
        theirs = [task for (group, _), task in self._tasks.items() if group == name]
        for task in theirs[start:stop]:
            if task.state == "waiting":
                self._over(task, "canceled")
            self._tell_to_stop(task, CANCELED)
        if forget and all(task.state in _OVER for task in theirs):
            self._groups.pop(name, None)
            for task in theirs:
                del self._tasks[task.group, task.index]
        self._settle()

    def _process(self, name: str) -> "_Begun":
        task = self._tasks.get(place_of(name))
        if task is None or task.state in _OVER:
            raise NotFound(f"{name or 'the job master'} has ended")
        if task.process is None or task.process.handler is None:
            raise Unavailable(f"{task.shown} does not run now")
        return _Begun(task.process.handler, task.process.hear)

    # ---- what is told

    def _row(self, task: "_Task") -> WorkerRow:
        return WorkerRow(
            name=task.name,
            kind=task.kind,
            state=task.state,
            attempt=0 if task.state in _OVER else task.attempt,
            failures=task.failures,
            losses=task.losses,
            executor=task.executor,
            error=task.error,
            status=task.report.status if task.report is not None else b"",
            result=task.result if task.kind else b"",
        )

    def _tell_master(self, task: "_Task") -> None:
        master = self._tasks[MASTER_GROUP, 0].process
        if task.kind and master is not None and master.handler is not None:
            row = self._row(task)
            if master.told.get(row.name) != row:
                master.told[row.name] = row
                master.handler.on_rows((row,), False)
        self._spawn(self._notify())

    def _catch_up(self, process: "_Process") -> None:
        """It has begun: what has happened since it was started?"""
        if process.task.process is not process or process.handler is None:
            return
        if process.task.stopping:
            process.handler.on_stop(process.task.stopping)
        if not process.task.kind:
            for task in self._tasks.values():
                self._tell_master(task)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _note(self, text: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time():10.3f}  {text}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closing:
            work.close()
            return
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "the harness failed", "exception": error})


class _Task(Struct, eq=False):
    group: str
    index: int
    count: int
    kind: str
    state: str = "waiting"
    attempt: int = 1
    failures: int = 0
    losses: int = 0
    executor: str = ""
    error: str = ""
    result: bytes = b""
    report: Report | None = None
    stopping: str = ""  #: why it was told to end
    due: bool = False  #: it waits for its backoff
    started_s: float = 0.0
    process: "_Process | None" = None

    @property
    def name(self) -> str:
        return name_of(self.group, self.index, self.count)

    @property
    def shown(self) -> str:
        return self.name or "job master"


class _Begun(NamedTuple):
    handler: Handler
    hear: Callable[[Awaitable[Any]], Awaitable[Any]]


class _Process:
    """One attempt of a member, and its port. A dead one gets no answers."""

    work: "asyncio.Task[Outcome]"

    def __init__(self, job: Job, task: _Task, attempt: int) -> None:
        self.task = task
        self.attempt = attempt
        self.told: dict[str, WorkerRow] = {}
        self.handler: Handler | None = None  #: None: it has not begun yet
        self._job = job
        self._dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connect(self, handler: Handler) -> Port:
        self.handler = handler
        asyncio.get_running_loop().call_soon(self._job._catch_up, self)
        return self

    def die(self) -> None:
        if not self._dead.done():
            self._dead.set_result(None)
            self.work.cancel()

    async def start_workers(self, group: WorkerGroup, once: tuple[int, int]) -> None:
        await self._ask(lambda: self._job._start(group))

    async def stop_workers(self, group: str, start: int, stop: int, once: tuple[int, int], *, forget: bool) -> None:
        await self._ask(lambda: self._job._stop(group, start, stop, forget=forget))

    async def get(self, key: str) -> bytes | None:
        return await self._ask(lambda: self._job.checkpoints.encoded(key))

    async def put(self, key: str, value: bytes | None) -> None:
        await self._ask(lambda: self._job.checkpoints.put(key, value))

    async def keys(self, prefix: str) -> list[str]:
        return await self._ask(lambda: sorted(key for key in self._job.checkpoints if key.startswith(prefix)))

    async def deliver(self, envelope: Envelope) -> None:
        await self._job._travel()
        receiver = self._job._process(envelope.to)
        await receiver.hear(receiver.handler.on_envelope(envelope))
        await self._job._return()

    async def request(self, to: str, request: Request) -> Response:
        await self._job._travel()
        receiver = self._job._process(to)
        response: Response = await receiver.hear(receiver.handler.on_request(request))
        return response

    def report(self, report: Report) -> None:
        if not self._dead.done():
            self.task.report = report
            self._job._tell_master(self.task)

    async def hear(self, handling: Awaitable[T]) -> T:
        """What it answers. Raises Unavailable if it dies meanwhile."""
        work = asyncio.ensure_future(handling)
        await asyncio.wait((work, self._dead), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            raise Unavailable(f"{self.task.shown} has died")
        return work.result()

    async def _ask(self, what: Callable[[], T]) -> T:
        await self._job._travel()
        if self._dead.done():
            await asyncio.get_running_loop().create_future()  # until canceled
        self._job._in_charge(self)
        answer = what()
        self._job._spawn(self._job._notify())
        await self._job._return()
        return answer


class _Checkpoints(dict[str, Any]):
    """By key, as Python values."""

    def encoded(self, key: str) -> bytes | None:
        return msgpack.encode(self[key]) if key in self else None

    def put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.pop(key, None)
        else:
            self[key] = msgpack.decode(value)
