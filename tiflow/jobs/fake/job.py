"""The job master and the workers."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from msgspec import Struct, convert, structs, to_builtins

from tiflow.jobs.fake import watch
from tiflow.jobs.fake.config import FakeConfig
from tiflow.jobs.framework import Final, JobMaster, Worker, WorkerView
from tiflow.sched.model import ATTEMPTS_MAX

WAIT_S = 2.0  #: how long the source may keep a question when it has no news
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 1.0
RETRY_S = 0.2  #: before another attempt of a worker that has failed
TELL_S = 0.2  #: between two reports of a member


class Seen(Struct, frozen=True):
    """What a worker has seen. One value, which is replaced as a whole, and one checkpoint: never are revision and
    count of two different moments."""

    tick: int = 0
    revision: int = 0  #: of the newest change of its key that is counted
    count: int = 0  #: of its changes, up to that revision
    value: str = ""  #: at that revision


class InjectedError(Exception):
    """Asked for by `inject-error-interval`."""


class FakeWorker(Worker):
    """Its checkpoint is named after its key, its config is that of the job and its `number`."""

    seen = Seen()
    kept = 0  #: the revision that its checkpoint has
    error = ""  #: what the source, or the way there, ails from

    async def run(self) -> dict[str, int]:
        """Returns: what it has seen, but the value, which may be long."""
        self.settings = FakeConfig.of({name: value for name, value in self.config.items() if name != "number"})
        self.key = f"{self.settings.key_prefix}{self.config['number']}"
        self.seen = convert(await self.load(self.key, {}), Seen)
        self.kept = self.seen.revision
        self._tell()
        helpers = [self._keep(), self._tell_on()]
        if self.settings.source_url:
            helpers.append(self._watch(self.settings.source))
        if self.settings.inject_error_s:
            helpers.append(self._fail())
        await _beside(helpers, self._tick())
        await self._save(self.seen)
        self._tell()
        return {"tick": self.seen.tick, "revision": self.seen.revision, "count": self.seen.count}

    async def _tick(self) -> None:
        """Returns when both targets are reached."""
        target = self.settings.target_tick
        while not target or self.seen.tick < target or self.seen.count < self.settings.target_count:
            await asyncio.sleep(self.settings.tick_s)
            if not target or self.seen.tick < target:
                self.seen = structs.replace(self.seen, tick=self.seen.tick + 1)

    async def _watch(self, source: tuple[str, int]) -> None:
        pause_s = BACKOFF_S_MIN
        while True:
            try:
                events = await watch.changes(source, self.key, self.seen.revision, WAIT_S)
            except watch.SourceAway as error:
                self.error = f"source {self.settings.source_url}: {error}"
                self.log.warning("source_away", url=self.settings.source_url, reason=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(BACKOFF_S_MAX, pause_s * 2)
                continue
            except watch.SourceRefuses as error:
                raise Final(str(error)) from None
            pause_s, self.error = BACKOFF_S_MIN, ""
            if events:
                revision, value = events[-1]
                count = self.seen.count + len(events)
                self.seen = structs.replace(self.seen, revision=revision, count=count, value=value)

    async def _keep(self) -> None:
        kept = self.seen
        while True:
            await asyncio.sleep(self.settings.checkpoint_s)
            if kept != self.seen:
                kept = self.seen
                await self._save(kept)

    async def _save(self, seen: Seen) -> None:
        await self.save(self.key, to_builtins(seen))
        self.kept = seen.revision

    async def _tell_on(self) -> None:
        """Beside `_keep`, which waits while the metadata database is away."""
        told = self._status()
        while True:
            await asyncio.sleep(TELL_S)
            if told != (status := self._status()):
                told = status
                self._tell()

    async def _fail(self) -> None:
        await asyncio.sleep(self.settings.inject_error_s)
        raise InjectedError(f"after {self.settings.inject_error_interval}")

    def _tell(self) -> None:
        self.report(self._status())
        self.gauge("fake_tick", self.seen.tick)

    def _status(self) -> dict[str, Any]:
        seen: dict[str, Any] = to_builtins(self.seen)
        return seen | {"key": self.key, "kept": self.kept, "attempt": self.attempt, "error": self.error}


class Fake(JobMaster):
    """Returns, and reports, sums over the workers."""

    worker = FakeWorker

    @classmethod
    def check(cls, config: dict[str, Any]) -> None:
        FakeConfig.of(config)

    async def on_start(self) -> None:
        self.route("GET", "/workers", self._show)

    async def run(self) -> dict[str, int]:
        settings = FakeConfig.of(self.config)
        configs = [{**self.config, "number": number} for number in range(settings.worker_count)]
        # errors that were asked for may go on for ever
        reset_s = settings.checkpoint_s if settings.inject_error_s else None
        await self.start_workers("worker", configs, attempts=ATTEMPTS_MAX, backoff_s=RETRY_S, backoff_reset_s=reset_s)
        await _beside([self._tell_on()], self.workers_ended())
        for worker in self.workers.values():  # of some, an earlier attempt of the job master was told
            if worker.state != "succeeded":
                raise Final(f"worker {worker.name} is {worker.state}: {worker.error}")
        sums = self._sums()
        self.report(sums | {"attempt": self.attempt})
        return sums

    async def on_failed(self, worker: WorkerView) -> None:
        if worker.state == "failed":
            raise Final(f"worker {worker.name} failed: {worker.error}")

    async def _tell_on(self) -> None:
        told: dict[str, int] = {}
        while True:
            if told != (sums := self._sums()):
                told = sums
                self.report(sums | {"attempt": self.attempt})
            await asyncio.sleep(TELL_S)

    def _sums(self) -> dict[str, int]:
        known = [_known(worker) for worker in self.workers.values()]
        ended = sum(worker.ended for worker in self.workers.values())
        sums = {name: sum(one.get(name, 0) for one in known) for name in ("tick", "count")}
        return {"workers": len(known), "ended": ended, **sums}

    async def _show(self, _: object) -> dict[str, Any]:
        return {worker.name: _known(worker) for worker in self.workers.values()}


def _known(worker: WorkerView) -> dict[str, Any]:
    """The result outlives the status."""
    return worker.status | (worker.result or {})


async def _beside(helpers: list[Coroutine[Any, Any, None]], work: Coroutine[Any, Any, None]) -> None:
    """Until `work` has returned; or raises what one of them raises."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(helper) for helper in helpers]
        await work
        for task in tasks:
            task.cancel()
