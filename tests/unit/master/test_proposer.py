import asyncio
from typing import Any

import pytest
from msgspec import msgpack

from tiflow.errors import FailedPrecondition, NotFound, NotLeader, OutcomeUnknown
from tiflow.master.proposer import WALL_STEP_MAX_MS, LogTime, Proposer
from tiflow.raft.api import Member
from tiflow.sched.commands import (
    WHO_FORMAT,
    CancelJob,
    RegisterExecutor,
    SetFormat,
    StopWorkers,
    SubmitJob,
    decode_entry,
)
from tiflow.sched.machine import Machine
from tiflow.sched.model import Command, Framework, GroupSpec, JobSpec


class LoneRaft:
    """Commits at once what is proposed, unless told otherwise; keeps the entries."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.is_leader = True
        self.leader: Member | None = None
        self.entries: list[bytes] = []
        self.fail: Exception | None = None

    async def propose(self, entry: bytes) -> Any:
        await asyncio.sleep(0)
        if self.fail is not None:
            raise self.fail
        self.entries.append(entry)
        return self.machine.apply(entry)


class FixedClock:
    def now_ms(self) -> int:
        return 1_000_000


def _executor(number: int) -> RegisterExecutor:
    return RegisterExecutor(f"u{number}", "boot", f"e{number}", "127.0.0.1:1", 1)


async def _proposer() -> tuple[Proposer, LoneRaft]:
    machine = Machine()
    raft = LoneRaft(machine)
    proposer = Proposer(raft, machine, FixedClock())  # type: ignore[arg-type]
    proposer.begin_term()
    return proposer, raft


async def test_what_is_asked_at_once_shares_an_entry_and_each_caller_gets_its_own_reply():
    proposer, raft = await _proposer()

    replies = await asyncio.gather(*(proposer.propose(_executor(n)) for n in range(100)))

    assert [reply.name for reply in replies] == [f"e{n}" for n in range(100)]
    assert sum(len(decode_entry(entry).commands) for entry in raft.entries) == 100
    assert len(raft.entries) <= 4


async def test_a_refusal_reaches_its_own_caller_only():
    proposer, _ = await _proposer()

    refused, accepted = await asyncio.gather(
        proposer.propose(CancelJob("nope")), proposer.propose(_executor(1)), return_exceptions=True
    )

    assert isinstance(refused, NotFound)
    assert accepted.name == "e1"


async def test_what_some_master_may_not_understand_is_not_logged():
    """It would stop that master."""
    proposer, raft = await _proposer()
    job = JobSpec("j", (GroupSpec("master", Framework("copy")),), open=True)
    commands = StopWorkers(1, 1, "w", 0, 1), SubmitJob(job, "t", 0)

    for command in commands:
        with pytest.raises(FailedPrecondition, match="needs format 3; this is 1, until all masters are upgraded"):
            await proposer.propose(command)
    assert raft.entries == []

    await proposer.propose(SetFormat(3))
    assert (await proposer.propose(commands[1])).id == "j"


async def test_who_gives_a_command_is_not_logged_before_all_masters_can_read_it():
    proposer, raft = await _proposer()
    spec = JobSpec("j", (GroupSpec("g", Command(("true",))),))
    await proposer.propose(SubmitJob(spec, "t", 0, "ada"))
    await proposer.propose(SetFormat(WHO_FORMAT))
    await proposer.propose(CancelJob("j", by="ada"))

    logged = [command for entry in raft.entries for command in decode_entry(entry).commands]
    assert logged == [SubmitJob(spec, "t", 0), SetFormat(WHO_FORMAT), CancelJob("j", by="ada")]
    assert len(msgpack.decode(raft.entries[0])[2][0]) == 4, "the tag, the job, its token and that token's time"


async def test_an_unknown_outcome_is_said_to_every_caller_of_the_entry():
    proposer, raft = await _proposer()
    raft.fail = OutcomeUnknown("leadership was lost")

    replies = await asyncio.gather(*(proposer.propose(_executor(n)) for n in range(3)), return_exceptions=True)

    assert [type(reply) for reply in replies] == [OutcomeUnknown] * 3


async def test_a_follower_says_where_the_leader_is():
    proposer, raft = await _proposer()
    raft.is_leader, raft.leader = False, Member("m2", "127.0.0.1:2")

    with pytest.raises(NotLeader) as caught:
        await proposer.propose(_executor(1))

    assert caught.value.leader == "127.0.0.1:2"


@pytest.mark.parametrize(
    ("state_ms", "wall_ms", "at_start_ms"),
    [
        (0, 5_000, 5_000),  # a new cluster begins at the wall clock
        (5_000, 7_000, 7_000),  # a new term catches up with it
        (5_000, 3_600_000, 5_000 + WALL_STEP_MAX_MS),  # but not with a clock that is an hour ahead
        (5_000, 1_000, 5_000),  # and never goes back
    ],
)
def test_log_time_begins_between_the_state_and_the_wall_clock(state_ms: int, wall_ms: int, at_start_ms: int):
    time = LogTime(state_ms, wall_ms, monotonic_s=10.0)

    assert time.now_ms(10.0) == at_start_ms
    assert time.now_ms(11.5) == at_start_ms + 1_500
