"""The socket between an agent and the process of a member."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tiflow.errors import FailedPrecondition, Internal, OutcomeUnknown, Unavailable
from tiflow.exec import link
from tiflow.exec.link import Link
from tiflow.jobs.framework.port import Envelope, Report, Request, Response


class Side:
    """One end, that answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[link.Question] = []
        self.notes: list[link.Note] = []
        self.answer: link.Answer | Exception = None
        self.may = asyncio.Event()
        self.may.set()
        self.link: Link

    async def on_ask(self, what: link.Question) -> link.Answer:
        self.asked.append(what)
        await self.may.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@asynccontextmanager
async def two_sides() -> AsyncIterator[tuple[Side, Side]]:
    sides = Side(), Side()
    for side, sock in zip(sides, socket.socketpair(), strict=True):
        side.link = await Link.open(sock, side.on_ask, side.notes.append)
    running = [asyncio.create_task(side.link.run()) for side in sides]
    try:
        yield sides
    finally:
        for side in sides:
            side.link.close()
        await asyncio.gather(*running)


async def until(condition: object, within_s: float = 30.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  the other side runs in this loop
            await asyncio.sleep(0)


async def test_answers_find_their_questions_though_they_come_in_another_order():
    async with two_sides() as (one, other):
        slow = asyncio.create_task(one.link.ask(link.Get("slow"), bytes))
        other.may.clear()
        await until(lambda: other.asked)
        one.may.clear()
        back = asyncio.create_task(other.link.ask(link.Keys("a"), list[str]))
        await until(lambda: one.asked)
        one.answer, other.answer = ["a1", "a2"], b"value"
        one.may.set()
        assert await back == ["a1", "a2"]
        assert not slow.done()

        other.may.set()
        assert await slow == b"value"


async def test_an_answer_may_be_nothing_or_empty():
    async with two_sides() as (one, other):
        assert await one.link.ask(link.Get("k"), bytes) is None
        other.answer = b""
        assert await one.link.ask(link.Get("k"), bytes) == b""


async def test_notes_arrive_in_order_and_bodies_of_megabytes_whole():
    async with two_sides() as (one, other):
        body = os.urandom(8 << 20)
        other.answer = Response(201, {"a": "b"}, body)
        for number in range(100):
            one.link.tell(link.Reported(Report(b"%d" % number)))
        answer = await one.link.ask(link.Call("", Request("PUT", "/x", body=body)), Response)

        assert answer == Response(201, {"a": "b"}, body)
        assert other.asked == [link.Call("", Request("PUT", "/x", body=body))]
        assert [int(note.report.status) for note in other.notes if isinstance(note, link.Reported)] == list(
            range(100)
        )


@pytest.mark.parametrize(
    ("raised", "heard"),
    [
        (FailedPrecondition("attempt 1 was replaced"), FailedPrecondition),
        (OutcomeUnknown("perhaps"), OutcomeUnknown),
        (RuntimeError("a bug"), Internal),
    ],
)
async def test_what_the_other_side_raises_is_raised_here(raised: Exception, heard: type[Exception]):
    async with two_sides() as (one, other):
        other.answer = raised
        with pytest.raises(heard, match=str(raised)):
            await one.link.ask(link.Put("k", b"v"))


async def test_who_waits_for_an_answer_hears_when_the_other_side_is_gone():
    async with two_sides() as (one, other):
        other.may.clear()
        asking = asyncio.create_task(one.link.ask(link.Deliver(Envelope("", 1, "w", 1, (b"m",)))))
        await until(lambda: other.asked)

        other.link.close()

        with pytest.raises(Unavailable):
            await asking
        with pytest.raises(Unavailable):
            await one.link.ask(link.Get("k"))


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x04\0\0\0\xc1\xc1\xc1\xc1", b"\x05\0\0\0\x81\xa2op\xa1"])
async def test_what_cannot_be_understood_ends_the_link(garbage: bytes):
    ours, theirs = socket.socketpair()
    side = Side()
    side.link = await Link.open(ours, side.on_ask, side.notes.append)
    with theirs:
        theirs.sendall(garbage)

        async with asyncio.timeout(30):
            await side.link.run()

    assert side.link.closed
    assert not side.asked
    assert not side.notes


async def test_a_side_that_does_not_read_is_given_up_before_memory_runs_out():
    ours, theirs = socket.socketpair()
    side = Side()
    side.link = await Link.open(ours, side.on_ask, side.notes.append)
    running = asyncio.create_task(side.link.run())
    with theirs:
        for _ in range(100):
            side.link.tell(link.Reported(Report(bytes(1 << 20))))

        assert side.link.closed
        async with asyncio.timeout(30):
            await running


async def test_more_questions_than_can_be_answered_at_once_are_refused_for_now():
    async with two_sides() as (one, other):
        other.may.clear()
        asking = [asyncio.create_task(one.link.ask(link.Get(str(n)))) for n in range(link.ASKED_MAX + 10)]
        await until(lambda: sum(task.done() for task in asking) == 10)
        assert len(other.asked) == link.ASKED_MAX

        other.may.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(answer) for answer in answers[-10:]] == [Unavailable] * 10
        assert set(answers[:-10]) == {None}
        assert await one.link.ask(link.Get("again")) is None


async def test_questions_that_take_much_memory_are_refused_earlier():
    async with two_sides() as (one, other):
        other.may.clear()
        fits = link.ASKED_BYTES_MAX // (8 << 20) - 1
        call = link.Call("", Request("PUT", "/x", body=bytes(8 << 20)))
        asking = [asyncio.create_task(one.link.ask(call, Response)) for _ in range(fits + 1)]
        await until(lambda: any(task.done() for task in asking))
        assert len(other.asked) == fits

        other.may.set()
        other.answer = Response()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Response] * fits + [Unavailable]
        assert await one.link.ask(call, Response) == Response()


async def test_answers_and_notes_come_through_however_much_the_other_side_asks():
    """A job master that saves what each message says must hear that it is saved while others wait for their turn."""
    async with two_sides() as (one, other):
        other.may.clear()
        asking = [asyncio.create_task(one.link.ask(link.Get(str(n)))) for n in range(2 * link.ASKED_MAX)]
        await until(lambda: len(other.asked) >= link.ASKED_MAX)

        one.answer = b"saved"
        async with asyncio.timeout(30):
            assert await other.link.ask(link.Get("k"), bytes) == b"saved"
        one.link.tell(link.Reported(Report(b"note")))
        await until(lambda: other.notes)

        other.may.set()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_large_bodies_at_one_time_do_not_end_the_link():
    async with two_sides() as (one, other):
        other.answer = Response(body=bytes(8 << 20))
        call = link.Call("", Request("PUT", "/x", body=bytes(8 << 20)))

        answers = await asyncio.gather(*(one.link.ask(call, Response) for _ in range(8)))

        assert [len(answer.body) for answer in answers] == [8 << 20] * 8
