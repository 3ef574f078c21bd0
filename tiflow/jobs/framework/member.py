"""The base classes of job masters and workers. A subclass overrides `run`, and what it needs of the `on_…` hooks.

A member is a process of its own on some executor. It may die at any time, and another attempt of it begins anew with
`run`, on any executor: what must not be lost goes into checkpoints (`save`), and `run` begins by loading it. Workers
live on when their job master dies or the masters change their leader; a new attempt of the job master finds them in
`workers`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from msgspec import Struct

from tiflow.jobs.framework.port import MASTER, Request, Response, StopReason

if TYPE_CHECKING:
    from tiflow.jobs.framework.runtime import Runtime

#: what answers a request: a Response, or what becomes one (JSON of a dict or list, bytes, text, None: 204)
Route: TypeAlias = Callable[[Request], Awaitable[Response | dict[str, Any] | list[Any] | bytes | str | None]]

DEFAULT_KIND = "worker"


class Final(Exception):
    """Raised in `run` or in a hook where another attempt cannot help: the member has failed for good."""


class Member:
    """What job masters and workers have in common.

    Attributes, all set before `run`: job_id, name (of a worker; "" of the job master), attempt (from 1), config (what
    the job file, or the job master, gave), log (structlog, bound with job, task and attempt).
    """

    job_id: str
    name: str
    attempt: int
    config: dict[str, Any]
    log: Any
    _runtime: "Runtime"

    async def on_start(self) -> None:
        """Comes before `run`, and before any other hook, message or request: load what these need (`load`), and say
        what is answered (`route`)."""

    async def run(self) -> Any:
        """The whole life. What it returns ends the member with success; what it raises, ends this attempt. Raise
        `Final` where another attempt cannot help. What a worker returns has 256 bytes at most in msgpack."""
        raise NotImplementedError

    async def on_stop(self, reason: StopReason) -> None:
        """The member is to end: its job is canceled or over ("canceled"), paused ("paused"), its executor is drained
        ("drained"), it ran too long ("timeout"). After this hook `run` is canceled; all must end within the grace.
        After a pause or a drain another attempt goes on, later or elsewhere."""

    async def on_message(self, sender: str, message: Any) -> None:
        """A message has come. They come in the order in which they were sent; after a failure some come twice. One is
        handled after the other; returning acknowledges."""

    def report(self, status: Mapping[str, Any]) -> None:
        """How it goes: the newest is kept, shown by `tiflow job get`, and told to the job master. 16 KiB at most."""
        self._runtime.report(status)

    async def save(self, key: str, value: Any) -> None:
        """A checkpoint of the job: durable when this returns. Waits while the metadata database is away. Keys are
        shared by all members of the job; a value has 4 MiB at most in msgpack."""
        await self._runtime.save(key, value)

    async def load(self, key: str, default: Any = None) -> Any:
        """What was saved last under that key, by whatever member of the job and attempt."""
        return await self._runtime.load(key, default)

    async def discard(self, key: str) -> None:
        """Remove a checkpoint. No error if there is none."""
        await self._runtime.discard(key)

    async def saved(self, prefix: str = "") -> list[str]:
        """The keys of checkpoints, sorted."""
        return await self._runtime.saved(prefix)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """A metric of the masters' /metrics until this attempt ends: tiflow_job_<name>{job, worker, …}."""
        self._runtime.metrics.set(name, value, labels)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """As `gauge`, of what only grows: tiflow_job_<name>_total{job, worker, …}."""
        self._runtime.metrics.add(name, by, labels)

    def route(self, method: str, path: str, handler: Route) -> None:
        """Answer HTTP requests: of the job master at /api/v1/jobs/{id}{path} of any master, of a worker at
        /api/v1/jobs/{id}/workers/{name}{path}, and those of other members (`request`). Call it in `on_start`."""
        self._runtime.routes.add(method, path, handler)

    async def request(self, to: str, method: str, path: str, body: bytes = b"", query: str = "") -> Response:
        """Ask another member of the job: "" is the job master. Raises Unavailable when it cannot be reached now,
        NotFound when it has ended; 8 MiB at most each way."""
        return await self._runtime.request(to, Request(method, path, query, {}, body))

    async def flush(self) -> None:
        """Returns when all messages that were sent are acknowledged."""
        await self._runtime.flush()


class Worker(Member):
    async def send(self, message: Any) -> None:
        """To the job master, whichever attempt of it is there. Returns when it is in the queue; waits while 1,000
        messages or 8 MiB are on their way. A worker ends when all that it sent is acknowledged; what is not goes with
        an attempt that dies, so `flush` before a checkpoint that says that it was sent."""
        await self._runtime.send(MASTER, message)


class WorkerView(Struct):
    """How a worker stands, for its job master; kept up to date in place."""

    name: str
    kind: str = DEFAULT_KIND
    state: str = "waiting"  #: waiting, placed, running, succeeded, failed, canceled
    attempt: int = 1  #: the one that is under way, or that comes next; of one that has ended: 0
    failures: int = 0  #: tries that failed, from 1 again after one that ran for long (`backoff_reset_s`)
    losses: int = 0  #: tries that were lost with their executor, from 1 again after one that ran for a minute
    executor: str = ""  #: name of the one that it is on
    error: str = ""  #: of its newest failure
    status: dict[str, Any] = {}  #: its newest report
    result: Any = None  #: what it returned

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "canceled")


class JobMaster(Member):
    """`worker` is the class of its workers; `kinds` names several."""

    worker: ClassVar[type[Worker] | None] = None
    kinds: ClassVar[Mapping[str, type[Worker]]] = {}

    @classmethod
    def check(cls, config: dict[str, Any]) -> None:
        """Raise ValueError, naming key, value and remedy, unless a job can be run with that config. Called before
        submission where the type is installed, and before `run`."""

    @classmethod
    def kinds_by_name(cls) -> dict[str, type[Worker]]:
        """Of all its workers; `worker` is the kind of that name."""
        return ({DEFAULT_KIND: cls.worker} if cls.worker is not None else {}) | dict(cls.kinds)

    @property
    def workers(self) -> Mapping[str, WorkerView]:
        """All that exist, by name, those of earlier attempts of the job master too. Complete from `on_start` on."""
        return self._runtime.views

    async def start_worker(self, name: str, config: Mapping[str, Any], **options: Any) -> WorkerView:
        """One that exists already is left as it is: so a new attempt may simply start them all again. Options: as
        `start_workers`."""
        (view,) = await self.start_workers(name, [config], **options)
        return view

    async def start_workers(
        self,
        name: str,
        configs: Sequence[Mapping[str, Any]],
        *,
        kind: str = "",
        selectors: Sequence[str] = (),
        resources: Mapping[str, float | str] | None = None,
        strategy: str = "spread",
        spread_over: str = "",
        max_per_executor: int = 0,
        attempts: int = 0,
        backoff_s: float | None = None,
        backoff_reset_s: float | None = None,
        grace_s: float = 5.0,
    ) -> list[WorkerView]:
        """One for each config: `name/0`, `name/1` …; of one config just `name`.

        Args:
            kind: of `kinds`; empty: the class `worker`.
            selectors, resources: as in a job file: ["zone=eu"], {"cpu": 0.5, "memory": "1GiB", "gpu": 1}.
            strategy, spread_over, max_per_executor: as in [placement] of a job file; `max_per_executor=1` keeps them
                apart.
            attempts: tries that may fail; 0: as the masters' [job-backoff] says. Tries that were lost with their
                executor, paused or drained do not count.
            backoff_s: before the second try; None: as the masters say.
            backoff_reset_s: after a try that ran so long before it failed, the count of failures starts over, for
                workers that run for ever; 0: never; None: as the masters say.
            grace_s: between the word that it is to end and SIGKILL.

        Raises:
            AlreadyExists: other workers have that name.
            InvalidArgument, ValueError: it names the field, its value, and what it must be.
        """
        return await self._runtime.start_workers(
            name,
            configs,
            kind=kind or DEFAULT_KIND,
            selectors=selectors if isinstance(selectors, str) else tuple(selectors),
            resources=dict(resources or {}),
            strategy=strategy,
            spread_over=spread_over,
            max_per_executor=max_per_executor,
            attempts=attempts,
            backoff_ms=_ms("backoff_s", backoff_s),
            reset_ms=_ms("backoff_reset_s", backoff_reset_s),
            grace_ms=_ms("grace_s", grace_s),
        )

    async def stop_worker(self, name: str) -> None:
        """It is told to end, and is not tried again. Idempotent."""
        await self._runtime.stop_worker(name)

    async def forget_workers(self, name: str) -> None:
        """Drop what is known of workers that were started together, and have all ended; their name is free then. A
        job may have 1,000 such names at one time. Raises ValueError while one of them has not ended."""
        await self._runtime.forget_workers(name)

    async def workers_ended(self) -> None:
        """Returns when every worker has ended."""
        await self._runtime.workers_ended()

    async def send(self, to: str, message: Any) -> None:
        """As Worker.send, to a worker; a message to one that has ended is dropped. Raises ValueError if there is no
        such worker."""
        if to not in self.workers:
            raise ValueError(f"to: there is no worker {to[:128]!r}")
        await self._runtime.send(to, message)

    # What happens to workers after `on_start`. Hooks and `on_message` run one after the other, in order, beside
    # `run`; `worker` is as it stands when the hook runs. What one raises ends the attempt.

    async def on_started(self, worker: WorkerView) -> None:
        """A try runs."""

    async def on_finished(self, worker: WorkerView) -> None:
        """It has returned, as `worker.result` says."""

    async def on_failed(self, worker: WorkerView) -> None:
        """A try has failed: `worker.error` says why. It is not tried again if `worker.state` is failed."""

    async def on_lost(self, worker: WorkerView) -> None:
        """Its executor is gone; it is placed elsewhere."""

    async def on_status(self, worker: WorkerView) -> None:
        """It has reported. Of reports that come faster than the hook returns, the newest is enough."""


def _ms(name: str, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise ValueError(f"{name} = {seconds!r}: must be a number of seconds, 0 or more")
    return round(seconds * 1_000)
