"""The source of `fake` jobs, and how its workers ask it: real HTTP on loopback."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from tiflow.jobs.fake import source as source_module
from tiflow.jobs.fake.protocol import PAGE, VALUE_BYTES_MAX
from tiflow.jobs.fake.source import Source, SourceServer
from tiflow.jobs.fake.watch import SourceAway, SourceRefuses, changes

LOOPBACK = "127.0.0.1"


@pytest.fixture
def server() -> Iterator[SourceServer]:
    with SourceServer((LOOPBACK, 0)) as server:
        yield server


def address(server: SourceServer) -> tuple[str, int]:
    return LOOPBACK, server.server_address[1]


def ask(server: SourceServer, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(*address(server), timeout=10)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_every_change_has_a_revision_and_each_key_its_own_history(server: SourceServer):
    assert ask(server, "PUT", "/keys/a", b"one") == (200, {"revision": 1})
    assert ask(server, "PUT", "/keys/b", b"two") == (200, {"revision": 2})
    assert ask(server, "PUT", "/keys/a", "drei€".encode()) == (200, {"revision": 3})

    assert ask(server, "GET", "/keys/a") == (200, {"events": [[1, "one"], [3, "drei€"]]})
    assert ask(server, "GET", "/keys/a?after=1") == (200, {"events": [[3, "drei€"]]})
    assert ask(server, "GET", "/keys/b?after=2") == (200, {"events": []})
    assert ask(server, "GET", "/keys/unknown") == (200, {"events": []})
    assert ask(server, "GET", "/counts") == (
        200,
        {"a": {"count": 2, "revision": 3, "value": "drei€"}, "b": {"count": 1, "revision": 2, "value": "two"}},
    )


def test_what_is_forgotten_is_counted_and_told_to_nobody(server: SourceServer):
    for key in "aabab":
        server.source.put(key, f"{key}x")
    before = server.source.counts()

    assert ask(server, "DELETE", "/keys/a?through=4") == (200, {})
    assert ask(server, "DELETE", "/keys/unknown?through=4") == (200, {})
    assert ask(server, "DELETE", "/keys/b?through=4") == (200, {})

    assert server.source.counts() == before
    assert ask(server, "GET", "/keys/a?after=2") == (200, {"events": [[4, "ax"]]})
    assert ask(server, "GET", "/keys/b?after=3") == (200, {"events": [[5, "bx"]]})
    for path in "/keys/a?after=1", "/keys/a", "/keys/b?after=2":
        status, answer = ask(server, "GET", path)
        assert (status, "are forgotten" in answer["message"]) == (409, True)
    server.source.put("a", "more")
    assert ask(server, "DELETE", "/keys/a?through=99") == (200, {})
    assert ask(server, "GET", "/keys/a?after=4") == (200, {"events": [[6, "more"]]})
    assert server.source.counts()["a"] == {"count": 4, "revision": 6, "value": "more"}


def test_a_connection_serves_many_requests(server: SourceServer):
    with closing(http.client.HTTPConnection(*address(server), timeout=10)) as connection:
        for number in range(1, 4):
            connection.request("PUT", "/keys/a", b"x")
            assert json.loads(connection.getresponse().read()) == {"revision": number}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/", None, 404, "/counts and /keys/KEY"),
        ("GET", "/keys/", None, 404, "/keys/KEY"),
        ("GET", "/keys/a%20b", None, 404, "/keys/KEY"),
        ("GET", "/keys/" + "k" * 129, None, 404, "/keys/KEY"),
        ("PUT", "/counts", b"x", 404, "/keys/KEY"),
        ("GET", "/keys/a?after=-1", None, 400, "after = '-1': must be a number"),
        ("GET", "/keys/a?after=1e9", None, 400, "after = '1e9'"),
        ("GET", "/keys/a?wait=31", None, 400, "wait = '31': must be a number from 0 to 30"),
        ("GET", "/keys/a?after=1", None, 409, "started anew"),
        ("DELETE", "/counts", None, 404, "/keys/KEY"),
        ("DELETE", "/keys/a?through=x", None, 400, "through = 'x'"),
        ("PUT", "/keys/a", b"x" * (VALUE_BYTES_MAX + 1), 413, "at most 1024"),
        ("PUT", "/keys/a", b"\xff", 400, "not UTF-8"),
    ],
)
def test_nonsense_is_refused_with_a_reason(
    server: SourceServer, method: str, path: str, body: bytes | None, status: int, text: str
):
    got, answer = ask(server, method, path, body)

    assert (got, text in answer["message"]) == (status, True), answer
    assert server.source.counts() == {}


def test_a_body_that_was_not_read_is_not_taken_for_a_request(server: SourceServer):
    with closing(socket.create_connection(address(server), timeout=10)) as sock:
        smuggled = b"PUT /keys/b HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
        sock.sendall(b"PUT /nowhere HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(smuggled) + smuggled)
        answer = b""
        while more := sock.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert server.source.counts() == {}


def test_half_a_value_is_none(server: SourceServer):
    with closing(socket.create_connection(address(server), timeout=10)) as sock:
        sock.sendall(b"PUT /keys/a HTTP/1.1\r\ncontent-length: 10\r\n\r\nhalf")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert server.source.counts() == {}


def test_it_has_bounds_and_room_again_when_it_has_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source_module, "KEYS_MAX", 2)
    monkeypatch.setattr(source_module, "EVENTS_MAX", 3)
    source = Source()
    source.put("a", "1"), source.put("b", "1")

    with pytest.raises(source_module.BadRequest, match="full"):
        source.put("c", "1")
    source.put("a", "2")
    with pytest.raises(source_module.BadRequest, match="full"):
        source.put("a", "3")
    source.forget("a", 3)
    source.put("a", "3")
    with pytest.raises(source_module.BadRequest, match="full"):
        source.put("a", "4")
    source.drop(["a", "unknown"])
    source.put("c", "1")
    assert {key: one["count"] for key, one in source.counts().items()} == {"b": 1, "c": 1}


def test_connections_beyond_the_bound_are_closed_and_others_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source_module, "CONNECTIONS_MAX", 2)
    with SourceServer((LOOPBACK, 0)) as server:
        idle = [socket.create_connection(address(server), timeout=10) for _ in range(2)]
        with closing(socket.create_connection(address(server), timeout=10)) as refused:
            assert refused.recv(1) == b""
        idle[0].close()
        deadline = time.monotonic() + 10
        while True:  # its place is free when its thread has noticed
            try:
                assert ask(server, "PUT", "/keys/a", b"x")[0] == 200
                break
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < deadline
        idle[1].close()


async def test_a_worker_gets_what_is_there_at_once_and_pages_through_the_rest(server: SourceServer):
    for number in range(PAGE + 5):
        server.source.put("a", f"{number}")

    first = await changes(address(server), "a", 0, 5)
    rest = await changes(address(server), "a", first[-1][0], 5)

    assert [value for _, value in first + rest] == [f"{number}" for number in range(PAGE + 5)]
    assert len(first) == PAGE


async def test_the_longest_values_fit_into_an_answer(server: SourceServer):
    value = "\x01" * VALUE_BYTES_MAX  # JSON takes six bytes for each
    for _ in range(PAGE):
        server.source.put("a", value)

    got = await changes(address(server), "a", 0, 1)

    assert got == [(number + 1, value) for number in range(PAGE)]


async def test_a_worker_waits_for_news_and_only_of_its_key(server: SourceServer):
    asking = asyncio.create_task(changes(address(server), "a", 0, 20))
    server.source.put("b", "not this")
    done, _ = await asyncio.wait((asking,), timeout=0.2)
    assert not done

    server.source.put("a", "this")

    assert await asking == [(2, "this")]


async def test_without_news_a_worker_gets_nothing_after_the_time_that_it_gave(server: SourceServer):
    assert await changes(address(server), "a", 0, 0.05) == []


async def test_a_source_that_was_started_anew_is_told_from_one_without_news(server: SourceServer):
    server.source.put("a", "x")

    with pytest.raises(SourceRefuses, match=r"409 .*the newest revision is 1; this source was started anew"):
        await changes(address(server), "a", 2, 0)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[str, int]]:
    """Something that says this to whoever connects, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    async with server:
        yield server.sockets[0].getsockname()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "IncompleteReadError"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it answers 'SSH-2.0"),
        (b"x" * 20_000, "it answers|Separator|limit"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "it answers 'HTTP/1.1 200"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", "it answers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "IncompleteReadError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not ours"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status 503"),
    ],
)
async def test_whatever_else_answers_is_asked_again(answer: bytes, reason: str):
    async with answering(answer) as where:
        with pytest.raises(SourceAway, match=reason):
            await changes(where, "a", 0, 0)


async def test_a_source_that_is_away_is_asked_again():
    with closing(socket.socket()) as sock:
        sock.bind((LOOPBACK, 0))
        with pytest.raises(SourceAway, match="ConnectionRefusedError"):
            await changes(sock.getsockname(), "a", 0, 0)


async def test_a_source_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tiflow.jobs.fake.watch.ANSWER_S", 0.05)
    with closing(socket.create_server((LOOPBACK, 0))) as silent, pytest.raises(SourceAway, match=r"within 0\.15 s"):
        await changes(silent.getsockname(), "a", 0, 0.1)


def test_changes_by_many_at_once_are_all_counted(server: SourceServer):
    def put(key: str) -> None:
        for _ in range(50):
            assert ask(server, "PUT", f"/keys/{key}", b"x")[0] == 200

    threads = [threading.Thread(target=put, args=(key,)) for key in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    counts = server.source.counts()
    assert {key: one["count"] for key, one in counts.items()} == {"a": 100, "b": 100}
    assert max(one["revision"] for one in counts.values()) == 200


def test_it_runs_by_itself_and_says_where():
    program = [sys.executable, "-m", "tiflow.jobs.fake.source", "--addr"]
    with closing(socket.create_server((LOOPBACK, 0))) as taken:
        where = f"{LOOPBACK}:{taken.getsockname()[1]}"
        refused = subprocess.run([*program, where], capture_output=True, text=True, check=False, timeout=30)
    assert refused.returncode == 5
    assert refused.stderr.startswith(f"--addr {where}: Address already in use")
    wrong = subprocess.run([*program, "nonsense"], capture_output=True, text=True, check=False, timeout=30)
    assert (wrong.returncode, "has no port" in wrong.stderr) == (2, True)

    with subprocess.Popen([*program, where], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == f"serving at http://{where}\n"
            with closing(http.client.HTTPConnection(where, timeout=10)) as connection:
                connection.request("GET", "/counts")
                assert connection.getresponse().read() == b"{}"
        finally:
            running.terminate()
