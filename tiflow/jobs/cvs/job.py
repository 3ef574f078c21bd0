"""The job master: lists the source, hands shards to writers, and remembers how far they have come."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, ClassVar

from msgspec import Struct, convert, to_builtins

from tiflow.jobs.cvs.config import CvsConfig, local_path
from tiflow.jobs.cvs.copying import Done
from tiflow.jobs.cvs.ends import open_source
from tiflow.jobs.cvs.members import PAGE, READER, Reader, Writer, ask_reader
from tiflow.jobs.cvs.tree import DIRECTORY, Entry, Found, Shard, Unlisted, shards, walk
from tiflow.jobs.framework import Final, JobMaster, Request, Worker, WorkerView

AHEAD = 2  #: shards that a writer has at once
READY_MAX = 16  #: shards that wait for a writer
SAVE_S = 1.0
ERRORS_MAX = 100  #: that the job tells by name
ERRORS_SHOWN = 10  #: … in its status
ATTEMPTS = 100  #: of readers and writers
WRITERS = "writer"
FILES, DIRECTORIES, ENDED = "files", "directories", "ended"


class Progress(Struct):
    """What is done: everything up to a place in the order of the tree."""

    phase: str = FILES  #: then directories (their times and permissions)
    after: bytes = b""  #: path; empty: nothing yet
    part: Entry | None = None  #: a file after that, of which ranges up to `offset` are done
    offset: int = 0
    files: int = 0  #: copied
    same: int = 0  #: left as they were
    bytes: int = 0  #: written
    failed: int = 0
    errors: list[tuple[str, str]] = []

    def add(self, shard: Shard, done: Done) -> None:
        self.files += done.files
        self.same += done.same
        self.bytes += done.bytes
        self.failed += done.failed
        self.errors = [*self.errors, *done.errors][:ERRORS_MAX]
        if shard.length >= 0:
            self.part, self.offset = shard.entries[0], shard.offset + shard.length
        elif not shard.begin:
            self.after, self.part, self.offset = shard.entries[-1].path, None, 0


class _Parts(Struct):
    """A file that is copied in ranges."""

    begun: bool = False
    under_way: int = 0  #: ranges
    end: Shard | None = None  #: it gives the file its name, when all ranges are there
    failed: Done | None = None


class Cvs(JobMaster):
    kinds: ClassVar[dict[str, type[Worker]]] = {"reader": Reader, "writer": Writer}

    @classmethod
    def check(cls, config: dict[str, Any]) -> None:
        CvsConfig.of(config)

    async def on_start(self) -> None:
        self.settings = CvsConfig.of(self.config)
        saved = await self.load("progress")
        self.progress = convert(saved, Progress) if saved else Progress(errors=[])
        self.listed = 0  #: entries
        self.all_listed = False
        self.next_number = 0  #: of a shard
        self.shards: dict[int, Shard] = {}  #: that are not done for good, in order
        self.ended: dict[int, Done] = {}  #: those of them that are done, though not all before them
        self.ready: deque[Shard] = deque()
        self.parts: dict[bytes, _Parts] = {}  #: by path
        self.assigned: dict[str, dict[int, Shard]] = {}  #: by writer
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.route("GET", "/progress", self._show)

    async def run(self) -> dict[str, Any]:
        """Returns: what was copied."""
        settings = self.settings
        if settings.source_selectors:
            config, where = {"source": settings.source}, settings.source_selectors
            await self.start_worker(READER, config, kind="reader", selectors=where, attempts=ATTEMPTS)
        configs, where = [self.config] * settings.worker_count, settings.target_selectors
        for writer in await self.start_workers(
            WRITERS, configs, kind="writer", selectors=where, attempts=ATTEMPTS, backoff_s=0.2
        ):
            self.assigned.setdefault(writer.name, {})
        saving = asyncio.create_task(self._save_now_and_then())
        try:
            for phase, next_phase in ((FILES, DIRECTORIES), (DIRECTORIES, ENDED)):
                if self.progress.phase == phase:
                    await self._copy(phase)
                    self.progress.phase, self.progress.after = next_phase, b""
        finally:
            saving.cancel()
        await self._save()
        self.report(self._summary())
        if self.progress.failed and settings.on_error == "fail":
            shown = "; ".join(f"{path}: {error}" for path, error in self.progress.errors[:5])
            raise Final(f"{self.progress.failed} could not be copied: {shown}")
        return self._summary()

    async def _copy(self, phase: str) -> None:
        self.all_listed = False
        async with asyncio.TaskGroup() as group:
            group.create_task(self._list(phase))
            while self.shards or not self.all_listed:
                await self.news.wait()
                self.news.clear()
                for writer in self.assigned:
                    await self._feed(writer)
                while self.shards and (number := next(iter(self.shards))) in self.ended:
                    self.progress.add(self.shards.pop(number), self.ended.pop(number))
                self.report(self._summary())

    # ---- what is to be done

    async def _list(self, phase: str) -> None:
        """Make shards, as long as there is room for them."""
        after = self.progress.after
        resume = (self.progress.part, self.progress.offset) if self.progress.part is not None else None
        in_ranges = phase == FILES and bool(local_path(self.settings.target))
        async for page in self._pages(after):
            entries = [one for one in self._listed(page, phase) if phase == FILES or one.kind == DIRECTORY]
            for shard in shards(entries, self.next_number, in_ranges=in_ranges, resume=resume):
                self.next_number, resume = shard.number + 1, None
                await self._offer(Shard(shard.number, shard.entries, attributes=True) if phase != FILES else shard)
        self.all_listed = True
        self.news.set()

    def _listed(self, page: list[Found], phase: str) -> list[Entry]:
        """What could not be looked at is told once."""
        self.listed += len(page) if phase == FILES else 0
        for one in page:
            if isinstance(one, Unlisted) and phase == FILES:
                shown = one.path.decode(errors="backslashreplace") or "."
                self.progress.failed += 1
                self.progress.errors = [*self.progress.errors, (shown, one.error)][:ERRORS_MAX]
        return [one for one in page if isinstance(one, Entry)]

    async def _pages(self, after: bytes) -> AsyncIterator[list[Found]]:
        if self.settings.source_selectors:
            while answer := await ask_reader(self, "/list", after):
                page = [convert(one, Entry) if is_entry else convert(one, Unlisted) for is_entry, one in answer]
                yield page
                after = page[-1].path
            return
        try:
            source = await asyncio.to_thread(open_source, self.settings.source)
        except FileNotFoundError:
            raise Final(f"source = {self.settings.source}: does not exist where the job master runs") from None
        walking = walk(source.lister, after)
        while page := await asyncio.to_thread(lambda: list(islice(walking, PAGE))):
            yield page

    async def _offer(self, shard: Shard) -> None:
        path = shard.entries[0].path
        # one that an earlier attempt has begun has parts and no beginning
        parts = self.parts.setdefault(path, _Parts(begun=not shard.begin)) if shard.is_part else None
        while len(self.ready) >= READY_MAX or (parts is not None and not parts.begun and not shard.begin):
            self.room.clear()
            await self.room.wait()
        self.shards[shard.number] = shard
        if parts is not None and shard.finish:
            parts.end = shard
            self._finish_if_whole(path)
            return
        if parts is not None and parts.failed is not None:
            self.ended[shard.number] = Done(shard.number, errors=[])
        else:
            if parts is not None:
                parts.under_way += shard.length >= 0
            self.ready.append(shard)
        self.news.set()

    def _finish_if_whole(self, path: bytes) -> None:
        parts = self.parts[path]
        if parts.end is None or parts.under_way:
            return
        del self.parts[path]
        if parts.failed is not None:
            parts.failed.number = parts.end.number
            self.ended[parts.end.number] = parts.failed
        else:
            self.ready.appendleft(parts.end)
        self.news.set()

    # ---- who does it

    async def _feed(self, writer: str) -> None:
        view, has = self.workers.get(writer), self.assigned[writer]
        if view is None or view.ended:
            return  # else it gets them as soon as it runs
        while len(has) < AHEAD and self.ready:
            shard = self.ready.popleft()
            has[shard.number] = shard
            await self._send_shard(writer, shard)
        self.room.set()

    async def _send_shard(self, writer: str, shard: Shard) -> None:
        await self.send(writer, [self.attempt, to_builtins(shard, builtin_types=(bytes,))])

    async def on_started(self, worker: WorkerView) -> None:
        """A new attempt of a writer knows nothing of what the one before was sent."""
        for shard in list(self.assigned.get(worker.name, {}).values()):
            await self._send_shard(worker.name, shard)
        self.news.set()

    async def on_failed(self, worker: WorkerView) -> None:
        if worker.state == "failed":
            raise Final(f"{worker.name} failed: {worker.error}")

    async def on_message(self, sender: str, message: Any) -> None:
        attempt, done = message[0], convert(message[1], Done)
        if attempt != self.attempt:
            return  # an earlier job master had sent it, and it was sent again since
        shard = self.assigned.get(sender, {}).pop(done.number, None)
        if shard is None:
            return  # it is told twice
        if done.gone:
            self.progress.part, self.progress.offset = None, 0
            await self._save()
            raise RuntimeError(f"{done.errors[0][0]}: {done.errors[0][1]}; it is copied anew")
        if shard.begin or shard.length >= 0:
            path = shard.entries[0].path
            parts = self.parts[path]
            parts.under_way -= shard.length >= 0
            parts.begun = True
            if done.failed:  # the file fails, once
                parts.failed, done = done, Done(done.number, bytes=done.bytes, errors=[])
            self._finish_if_whole(path)
            self.room.set()
        self.ended[done.number] = done
        self.news.set()

    # ---- what is told

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await self._save()

    async def _save(self) -> None:
        await self.save("progress", to_builtins(self.progress, builtin_types=(bytes,)))

    def _summary(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "phase": progress.phase,
            "files": progress.files,
            "same": progress.same,
            "bytes": progress.bytes,
            "failed": progress.failed,
            "listed": self.listed,
            "all-listed": self.all_listed,
            "errors": [list(error) for error in progress.errors[:ERRORS_SHOWN]],
        }

    async def _show(self, _: Request) -> dict[str, Any]:
        return self._summary() | {"errors": [list(error) for error in self.progress.errors]}
