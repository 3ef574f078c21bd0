"""A small revisioned source: the truth that the workers of `fake` jobs are compared with.

    PUT /keys/{key}                         the body is the new value; answers {"revision": n}
    GET /keys/{key}?after=REV&wait=SECONDS  {"events": [[revision, value], …]} after that revision, 1,000 at most;
                                            waits so long for the first
    GET /counts                             {key: {"count": n, "revision": n, "value": "…"}}
    DELETE /keys/{key}?through=REV          forgets its changes up to that revision, but the last one; the counts stay

Every change of any key has a revision of its own, one higher than the one before. Who asks for what is forgotten is
refused (409): a worker that had lost its checkpoint would otherwise count from the beginning, and it would not show.
So is who asks for what comes after a revision that never was: all is in memory, and the source was started anew.
Errors are {"message": "…"}. `python -m tiflow.jobs.fake.source --addr 127.0.0.1:8080`.
"""

import argparse
import contextlib
import json
import re
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6, socket
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tiflow.errors import InvalidArgument
from tiflow.jobs.fake.protocol import KEY, PAGE, VALUE_BYTES_MAX, Change
from tiflow.values import format_address, parse_address

KEYS_MAX = 10_000
EVENTS_MAX = 1_000_000  #: of all keys, that are not forgotten; then nothing more is taken
REVISION_MAX = 1 << 53
WAIT_S_MAX = 30.0
IDLE_S_MAX = 60.0  #: for a request to come, or go on, on a connection
CONNECTIONS_MAX = 4_000  #: beyond them, the newest is closed at once


class BadRequest(Exception):
    """It says what is wrong; the first argument is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class _History:
    """Of one key: its changes, the oldest of which may be forgotten."""

    revisions: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    forgotten: int = 0  #: how many
    forgotten_through: int = 0  #: the revision of the last of them


class Source:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._revision = 0
        self._events = 0
        self._histories: dict[str, _History] = {}

    def put(self, key: str, value: str) -> int:
        """Returns: the revision."""
        with self._changed:
            if self._events >= EVENTS_MAX or (key not in self._histories and len(self._histories) >= KEYS_MAX):
                raise BadRequest(507, f"full: at most {EVENTS_MAX} changes of {KEYS_MAX} keys; let it forget some")
            self._revision += 1
            self._events += 1
            history = self._histories.setdefault(key, _History())
            history.revisions.append(self._revision)
            history.values.append(value)
            self._changed.notify_all()
            return self._revision

    def after(self, key: str, revision: int, wait_s: float) -> list[Change]:
        """The next changes of a key, at most PAGE; none if none came within `wait_s`."""
        with self._changed:
            if revision > self._revision:
                raise BadRequest(
                    409,
                    f"after = {revision}: the newest revision is {self._revision}; this source was started anew, and "
                    "what it had before is gone",
                )
            self._changed.wait_for(lambda: self._last(key) > revision, wait_s)
            history = self._histories.get(key, _History())
            if revision < history.forgotten_through:
                raise BadRequest(
                    409, f"after = {revision}: the changes of {key} up to {history.forgotten_through} are forgotten"
                )
            start = bisect_right(history.revisions, revision)
            page = slice(start, start + PAGE)
            return list(zip(history.revisions[page], history.values[page], strict=True))

    def forget(self, key: str, through: int) -> None:
        """The changes of a key up to that revision, but the last one; they stay counted."""
        with self._changed:
            history = self._histories.get(key, _History())
            number = min(bisect_right(history.revisions, through), len(history.revisions) - 1)
            if number > 0:
                history.forgotten += number
                history.forgotten_through = history.revisions[number - 1]
                del history.revisions[:number], history.values[:number]
                self._events -= number

    def drop(self, keys: Iterable[str]) -> None:
        """Forget all about them."""
        with self._changed:
            for key in keys:
                if (history := self._histories.pop(key, None)) is not None:
                    self._events -= len(history.revisions)

    def counts(self) -> dict[str, dict[str, Any]]:
        with self._changed:
            return {
                key: {
                    "count": history.forgotten + len(history.values),
                    "revision": history.revisions[-1],
                    "value": history.values[-1],
                }
                for key, history in sorted(self._histories.items())
            }

    def _last(self, key: str) -> int:
        history = self._histories.get(key)
        return history.revisions[-1] if history is not None else 0


class SourceServer(ThreadingHTTPServer):
    """Serves a `Source` at (host, port), port 0 being any, in a thread of its own from `with` to its end."""

    daemon_threads = True
    request_queue_size = 1_024

    def __init__(self, address: tuple[str, int], source: Source | None = None) -> None:
        """Raises OSError when the address cannot be had."""
        if ":" in address[0]:
            self.address_family = AF_INET6
        super().__init__(address, _Handler)
        self.source = source or Source()
        self._room = threading.Semaphore(CONNECTIONS_MAX)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{format_address(str(host), port)}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Who asked is gone, or was silent for too long."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S_MAX
    server: SourceServer

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _put(self) -> Any:
        key = _key(urlsplit(self.path).path)
        length = self.headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or int(length) > VALUE_BYTES_MAX:
            raise BadRequest(413, f"content-length: must be given, and at most {VALUE_BYTES_MAX}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise BadRequest(400, f"{len(body)} of {length} bytes have come")
        try:
            value = body.decode()
        except UnicodeDecodeError:
            raise BadRequest(400, "the value is not UTF-8") from None
        return {"revision": self.server.source.put(key, value)}

    def _get(self) -> Any:
        url = urlsplit(self.path)
        if url.path == "/counts":
            return self.server.source.counts()
        query = parse_qs(url.query)
        after, wait_s = _number(query, "after", REVISION_MAX), _number(query, "wait", WAIT_S_MAX)
        return {"events": self.server.source.after(_key(url.path), int(after), wait_s)}

    def _delete(self) -> Any:
        url = urlsplit(self.path)
        through = _number(parse_qs(url.query), "through", REVISION_MAX)
        self.server.source.forget(_key(url.path), int(through))
        return {}

    def _answer(self, work: Callable[[], Any]) -> None:
        try:
            status, body = 200, work()
        except BadRequest as error:
            status, body = error.status, {"message": str(error)}
            self.close_connection = True  # a body may follow, which is not read
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)


def _key(path: str) -> str:
    prefix, key = path[:6], unquote(path[6:])
    if prefix != "/keys/" or not KEY.fullmatch(key):
        raise BadRequest(404, f"{path[:200]}: there are /counts and /keys/KEY, where KEY is {KEY.pattern}")
    return key


def _number(query: dict[str, list[str]], name: str, most: float) -> float:
    text = query.get(name, ["0"])[0]
    if not re.fullmatch(r"[0-9]{1,16}(\.[0-9]{1,6})?", text) or float(text) > most:
        raise BadRequest(400, f"{name} = {text[:40]!r}: must be a number from 0 to {most:g}")
    return float(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tiflow.jobs.fake.source", description="A source for fake jobs.")
    parser.add_argument("--addr", default="127.0.0.1:8080", metavar="HOST:PORT", help="default: %(default)s")
    try:
        address = parse_address(parser.parse_args().addr, "--addr")
    except InvalidArgument as error:
        parser.error(str(error))
    try:
        server = SourceServer(address)
    except OSError as error:
        print(f"--addr {format_address(*address)}: {error.strerror or error}; give another one", file=sys.stderr)
        return 5
    print(f"serving at {server.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(server.socket):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
