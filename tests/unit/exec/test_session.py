"""The session with the leader, in the test's own loop."""

import asyncio
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from tests.unit.exec.fake_leader import FakeLeader
from tiflow.exec.agent import Agent
from tiflow.exec.journal import Journal
from tiflow.exec.session import Identity, Session


def idle_runner() -> Any:
    """What a session needs of a runner on which nothing runs."""
    agent = Agent(1)
    masters = SimpleNamespace(follow=lambda *_: None)
    members = SimpleNamespace(masters=masters, tell_all_again=lambda: None, has_news=False, on_report=None)
    return SimpleNamespace(
        agent=agent, members=members, do=lambda _: None, farewell=lambda _: None, kept_jobs=list, on_change=None
    )


async def test_who_is_woken_while_the_session_is_ended_ends_it_all_the_same(lead: Any, tmp_path: Path) -> None:
    """asyncio.wait_for of Python 3.11 forgets that it was canceled when what it waits for has come as well."""
    leader: FakeLeader = await lead()
    for turns in range(8):  # of the loop, between the two
        runner = idle_runner()
        identity = Identity(uid="u1", name="e1", address="127.0.0.1:1", slots=1)
        journal = Journal(str(tmp_path / "journal"))
        session = Session(identity, (leader.address,), runner, journal, Random(1), None)
        connected = asyncio.create_task(session.run())
        await leader.until(lambda: leader.kept)  # it has said what it has to say, and waits
        leader.kept.clear()

        runner.on_change()
        for _ in range(turns):
            await asyncio.sleep(0)
        connected.cancel()
        _, pending = await asyncio.wait([connected], timeout=10)

        assert not pending, f"woken {turns} turns before it was ended, it goes on"
        await leader.until(lambda: not leader.connected)
