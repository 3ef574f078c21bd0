"""The two kinds of workers: writers copy shards; a reader serves a source that they cannot open."""

import asyncio
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from msgspec import convert, msgpack, to_builtins

from tiflow.errors import NotFound, OutcomeUnknown, Unavailable
from tiflow.jobs.cvs.config import CvsConfig
from tiflow.jobs.cvs.copying import check_path, copy_shard
from tiflow.jobs.cvs.ends import Fetched, Source, open_source, open_target
from tiflow.jobs.cvs.tree import FILE, Entry, Found, Shard, walk
from tiflow.jobs.framework import Member, Request, Response, Worker
from tiflow.parts import in_parts

PAGE = 2_000  #: entries that a reader lists at once
FETCH_BYTES = 4 << 20  #: that are asked of a reader at once
FETCHES = 4  #: requests of a writer that are under way
READER = "reader"

_encode = msgpack.Encoder().encode


class Reader(Worker):
    """Lists and reads a source for others."""

    async def on_start(self) -> None:
        self.source = await asyncio.to_thread(open_source, self.config["source"])
        self.listing: tuple[bytes, Iterator[Found]] = (b"", iter(()))
        self.turn = asyncio.Lock()
        self.route("POST", "/list", self._list)
        self.route("POST", "/read", self._read)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def _list(self, request: Request) -> Response:
        """The next page after a path."""
        after = request.body
        async with self.turn:
            where, listing = self.listing
            if where != after or not after:
                listing = walk(self.source.lister, after)
            page = await asyncio.to_thread(lambda: list(islice(listing, PAGE)))
            self.listing = (page[-1].path if page else b"", listing)
        return _answer([(isinstance(one, Entry), to_builtins(one, builtin_types=(bytes,))) for one in page])

    async def _read(self, request: Request) -> Response:
        """Contents of entries, or a range of one; what cannot be read is said instead."""
        wanted, offset, length = convert(msgpack.decode(request.body), tuple[tuple[Entry, ...], int, int])

        def read() -> list[bytes | str]:
            contents: list[bytes | str] = []
            for entry in wanted:
                try:
                    check_path(entry)
                    contents.append(b"".join(bytes(piece) for piece in self.source.read(entry, offset, length)))
                except (OSError, ValueError) as error:
                    contents.append(str(error))
            return contents

        return _answer(await asyncio.to_thread(read))


def _answer(value: Any) -> Response:
    """Its checksum goes with it: what arrives is compared."""
    body = _encode(value)
    return Response(200, {"x-crc32": str(zlib.crc32(body))}, body)


async def ask_reader(member: Member, path: str, body: bytes) -> Any:
    """The reader's answer, whichever attempt of it gives it. Raises RuntimeError if it is an error."""
    pause_s = 0.05
    while True:
        try:
            response = await member.request(READER, "POST", path, body)
        except (Unavailable, OutcomeUnknown, NotFound) as error:
            member.log.debug("reader_away", reason=str(error))
        else:
            if response.status != 200:
                raise RuntimeError(f"reader: {response.status} {response.body[:300].decode(errors='replace')}")
            if str(zlib.crc32(response.body)) == response.headers.get("x-crc32"):
                return msgpack.decode(response.body)
            member.log.warning("damaged_on_its_way", path=path, bytes=len(response.body))
        await asyncio.sleep(pause_s)
        pause_s = min(1.0, pause_s * 2)


class Writer(Worker):
    """Copies the shards that it is sent, one after the other."""

    async def on_start(self) -> None:
        self.settings = CvsConfig.of(self.config)
        self.todo: deque[Shard] = deque()
        self.news = asyncio.Event()
        self.master = 0  #: attempt of the job master
        self.known: set[int] = set()  #: numbers of its shards that have come

    async def on_message(self, sender: str, message: Any) -> None:
        """A shard, of an attempt of the job master. What an earlier one had sent is void: it is sent again."""
        attempt, shard = message
        if attempt > self.master:
            self.master = attempt
            self.todo.clear()
            self.known.clear()
        if attempt == self.master and shard["number"] not in self.known:
            self.known.add(shard["number"])
            self.todo.append(convert(shard, Shard))
            self.news.set()

    async def run(self) -> None:
        settings = self.settings
        target = await asyncio.to_thread(open_target, settings.target, f"{self.job_id}")
        local = None if settings.source_selectors else await asyncio.to_thread(open_source, settings.source)
        options = {"compare": settings.existing == "compare", "verify": settings.verify}
        files = written = failed = 0
        while True:
            while not self.todo:
                self.news.clear()
                await self.news.wait()
            attempt, shard = self.master, self.todo.popleft()
            source: Source = local or await self._fetch(shard, target.has if options["compare"] else lambda _: False)
            done = await asyncio.to_thread(copy_shard, shard, source, target, **options)
            files, written, failed = files + done.files, written + done.bytes, failed + done.failed
            self.report({"files": files, "bytes": written, "failed": failed})
            await self.send([attempt, to_builtins(done)])

    async def _fetch(self, shard: Shard, has: Any) -> Fetched:
        """What the reader has of a shard."""
        if shard.begin or shard.finish or shard.attributes:
            return Fetched({})
        contents: dict[bytes, bytes | str] = {}
        room = asyncio.Semaphore(FETCHES)

        async def fetch(entries: list[Entry], offset: int, length: int) -> list[bytes | str]:
            async with room:
                found: list[bytes | str] = await ask_reader(self, "/read", _encode((entries, offset, length)))
                return found

        if shard.length >= 0:
            (entry,) = shard.entries
            if await asyncio.to_thread(has, entry):
                return Fetched({})
            starts = range(shard.offset, shard.offset + shard.length, FETCH_BYTES)
            ends = shard.offset + shard.length
            parts = await asyncio.gather(*(fetch([entry], start, min(FETCH_BYTES, ends - start)) for start in starts))
            contents[entry.path] = _joined([part for (part,) in parts])
            return Fetched(contents)
        wanted = [entry for entry in shard.entries if entry.kind == FILE]
        wanted = await asyncio.to_thread(lambda: [entry for entry in wanted if not has(entry)])
        batches = list(in_parts(wanted, lambda entry: entry.size, FETCH_BYTES))
        for entries, found in zip(
            batches, await asyncio.gather(*(self._whole(b, fetch) for b in batches)), strict=True
        ):
            contents |= {entry.path: content for entry, content in zip(entries, found, strict=True)}
        return Fetched(contents)

    @staticmethod
    async def _whole(entries: list[Entry], fetch: Any) -> list[bytes | str]:
        """Of entries that are asked for at once; a large one in pieces."""
        (first, *others) = entries
        if others or first.size <= FETCH_BYTES:
            found: list[bytes | str] = await fetch(entries, 0, -1)
            return found
        starts = range(0, first.size, FETCH_BYTES)
        parts = await asyncio.gather(
            *(fetch([first], start, min(FETCH_BYTES, first.size - start)) for start in starts)
        )
        return [_joined([part for (part,) in parts])]


def _joined(parts: list[bytes | str]) -> bytes | str:
    for part in parts:
        if isinstance(part, str):
            return part
    return b"".join(part for part in parts if isinstance(part, bytes))
