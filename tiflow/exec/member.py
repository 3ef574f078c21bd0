"""The process of a job master or a worker. It talks to nobody but its agent, over a socket that it was born with."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from msgspec.structs import replace

from tiflow.exec import MEMBER_FD_VARIABLE, link, member_log
from tiflow.exec.keeping import CannotKeep
from tiflow.exec.link import Link
from tiflow.exec.member_log import MemberLog
from tiflow.jobs.framework.port import Envelope, Handler, Report, Request, Response, WorkerGroup
from tiflow.jobs.framework.runtime import Outcome, run_member
from tiflow.jobs.framework.types import find_member


class _AgentPort:
    """`tiflow.jobs.framework.port.Port`, at this end of the socket."""

    def __init__(self, agent: Link) -> None:
        self._agent = agent

    async def start_workers(self, group: WorkerGroup, once: tuple[int, int]) -> None:
        await self._agent.ask(link.StartWorkers(group, once))

    async def stop_workers(self, group: str, start: int, stop: int, once: tuple[int, int], *, forget: bool) -> None:
        await self._agent.ask(link.StopWorkers(group, start, stop, forget, once))

    async def deliver(self, envelope: Envelope) -> None:
        await self._agent.ask(link.Deliver(envelope))

    async def request(self, to: str, request: Request) -> Response:
        response: Response = await self._agent.ask(link.Call(to, request), Response)
        return response

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._agent.ask(link.Get(key), bytes)
        return value

    async def put(self, key: str, value: bytes | None) -> None:
        await self._agent.ask(link.Put(key, value))

    async def keys(self, prefix: str) -> list[str]:
        return await self._agent.ask(link.Keys(prefix), list[str]) or []

    def report(self, report: Report) -> None:
        self._agent.tell(link.Reported(report))


class _Process:
    def __init__(self) -> None:
        self._begun: asyncio.Future[link.Begin] = asyncio.get_running_loop().create_future()
        self._handler: Handler | None = None
        self._has_handler = asyncio.Event()
        self._early: list[link.Note] = []  #: what was told before there was a handler
        self._over = False

    async def run(self, sock: socket.socket) -> None:
        self._agent = await Link.open(sock, self._answer, self._heed)
        talking = asyncio.create_task(self._agent.run())
        talking.add_done_callback(self._on_silence)
        begin = await self._begun
        sys.path[:0] = begin.path
        outcome = await self._live(begin)
        self._agent.tell(_last_word(begin, outcome))
        self._over = True
        await self._agent.drain()

    def _on_silence(self, _: object) -> None:
        """The agent is gone, and the guardian kills us anyway."""
        if not self._over:
            os._exit(1)

    async def _live(self, begin: link.Begin) -> Outcome:
        about = begin.about
        log = MemberLog(job=about.job_id, task=about.name or "master", attempt=about.attempt)
        try:
            member = find_member(about.type, about.kind, begin.entry)
        except Exception as error:
            log.exception("cannot_load", type=about.type)
            return Outcome(error=str(error), final=True)
        member_log.configure_if_used()
        return await run_member(member, about, self._connect, begin.rows, log)

    def _connect(self, handler: Handler) -> _AgentPort:
        self._handler = handler
        self._has_handler.set()
        early, self._early = self._early, []
        for note in early:
            self._heed(note)
        return _AgentPort(self._agent)

    def _heed(self, note: link.Note) -> None:
        if isinstance(note, link.Begin):
            self._begin = note
            if not note.more:
                self._begun.set_result(note)
        elif isinstance(note, link.Rows) and not self._begun.done():
            rows = (*(self._begin.rows or ()), *note.rows)
            self._begin = replace(self._begin, rows=rows, more=note.more)
            if not note.more:
                self._begun.set_result(self._begin)
        elif self._handler is None:
            self._early.append(note)
        elif isinstance(note, link.Rows):
            self._handler.on_rows(note.rows, note.whole)
        elif isinstance(note, link.Stop):
            self._handler.on_stop(note.reason)

    async def _answer(self, what: link.Question) -> link.Answer:
        await self._has_handler.wait()  # who asks waits less than if it had to ask again
        assert self._handler is not None
        if isinstance(what, link.Deliver):
            await self._handler.on_envelope(what.envelope)
            return None
        if isinstance(what, link.Call):
            return await self._handler.on_request(what.request)
        raise AssertionError(f"an agent asks no {type(what).__name__}")


def _last_word(begin: link.Begin, outcome: Outcome) -> link.End:
    about = begin.about
    if outcome.result is None:
        return link.End(error=outcome.error, final=outcome.final, stopped=outcome.stopped)
    try:
        result = begin.keeper.keep_encoded(about.job_uid, begin.group, begin.index, about.attempt, outcome.result)
    except CannotKeep as error:
        return link.End(error=str(error), final=True)
    except OSError as error:
        return link.End(error=f"OSError: {error}")
    return link.End(result=result)


async def _live(sock: socket.socket) -> None:
    await _Process().run(sock)


def main() -> None:
    """Entry of the process."""
    sock = socket.socket(fileno=int(os.environ.pop(MEMBER_FD_VARIABLE)))
    sock.set_inheritable(False)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # its agent tells it to end. A handler and not SIG_IGN, which programs that it starts would inherit
        signal.signal(signum, lambda signum, frame: None)
    member_log.prepare()

    asyncio.run(_live(sock))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)  # threads that it has left must not keep it


if __name__ == "__main__":
    main()
