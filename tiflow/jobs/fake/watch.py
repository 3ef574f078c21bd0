"""Asks a source for the changes of a key: HTTP as far as `tiflow.jobs.fake.source` speaks it.

A coroutine and not a thread, so that a worker that is told to end does not wait for the source.
"""

import asyncio
import contextlib
import re
from urllib.parse import quote

import msgspec
from msgspec import Struct

from tiflow.jobs.fake.protocol import BODY_BYTES_MAX, Change
from tiflow.values import format_address

ANSWER_S = 5.0  #: beyond what the source was allowed to wait
HEAD_BYTES_MAX = 16 << 10


class SourceAway(Exception):
    """No answer that makes sense: to be asked again."""


class SourceRefuses(Exception):
    """It has answered that it never will: another source, or one that was started anew."""


class _Changes(Struct):
    events: list[Change]


async def changes(source: tuple[str, int], key: str, after: int, wait_s: float) -> list[Change]:
    """The next changes of a key after a revision, in order; none if none came within `wait_s`.

    Raises:
        SourceAway, SourceRefuses.
    """
    path = f"/keys/{quote(key)}?after={after}&wait={wait_s:g}"
    try:
        async with asyncio.timeout(wait_s + ANSWER_S):
            status, body = await _get(source, path)
    except TimeoutError:
        raise SourceAway(f"no answer within {wait_s + ANSWER_S:g} s") from None
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise SourceAway(f"{type(error).__name__}: {error}") from None
    if 400 <= status < 500:
        text = body[:300].decode(errors="replace")
        raise SourceRefuses(f"http://{format_address(*source)}{path}: {status} {text}")
    if status != 200:
        raise SourceAway(f"it answers with status {status}")
    try:
        return msgspec.json.decode(body, type=_Changes).events
    except msgspec.MsgspecError as error:
        raise SourceAway(f"its answer is not ours: {error}") from None


async def _get(source: tuple[str, int], path: str) -> tuple[int, bytes]:
    """Status and body. Raises ValueError for what is not HTTP."""
    reader, writer = await asyncio.open_connection(*source, limit=HEAD_BYTES_MAX)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {format_address(*source)}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = re.match(r"HTTP/1\.[01] (\d{3})[ \r]", head)
        length = re.search(r"\r\ncontent-length: *(\d{1,9})\r\n", head, re.IGNORECASE)
        if status is None or length is None or int(length[1]) > BODY_BYTES_MAX:
            raise ValueError(f"it answers {head[:80]!r}")
        return int(status[1]), await reader.readexactly(int(length[1]))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
