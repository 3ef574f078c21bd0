"""A leader that is asked for more than it can log: executors wait, and are not sent away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.master.test_proposer import FixedClock, LoneRaft
from tiflow.errors import ResourceExhausted, Unavailable
from tiflow.master import proposer as module
from tiflow.master.leader import BATCHES_TAKEN_MAX, Leader
from tiflow.master.proposer import Proposer
from tiflow.master.session import UNSENT_BYTES_MAX, Session
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import Place, PlaceTasks, RegisterExecutor, SubmitJob, TaskEvents, decode_entry
from tiflow.sched.machine import Machine
from tiflow.sched.model import Command, GroupSpec, JobSpec

WITHIN_S = 30.0


class SlowRaft(LoneRaft):
    """Commits when `open` is set; takes no more than `room` entries meanwhile."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.open = asyncio.Event()
        self.open.set()
        self.room = 1_000
        self.waiting = 0
        self.refused = 0
        self.cluster_id = "c1"
        self.format_of_all = None

    async def propose(self, entry: bytes) -> Any:
        if self.room <= 0:
            self.refused += 1
            raise ResourceExhausted("proposals wait for a majority")
        self.room, self.waiting = self.room - 1, self.waiting + 1
        await self.open.wait()
        self.room, self.waiting = self.room + 1, self.waiting - 1
        return await super().propose(entry)

    async def barrier(self) -> int:
        await asyncio.sleep(0)
        return 0


class Stage:
    """A leader, one executor, and a task that is out on it."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.raft = SlowRaft(self.machine)
        self.proposer = Proposer(self.raft, self.machine, FixedClock())  # type: ignore[arg-type]
        self.proposer.begin_term()
        self.leader = Leader(
            1,
            self.raft,  # type: ignore[arg-type]
            self.machine,
            self.proposer,
            ttl_s=60.0,
            keepalive_s=20.0,
            masters=(),
            archive=None,  # type: ignore[arg-type]
        )
        self.said: asyncio.Queue[pb.ExecutorMessage] = asyncio.Queue()
        self.told: list[pb.LeaderMessage] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, count: int) -> "Stage":
        executor = await self.proposer.propose(RegisterExecutor("u1", "b1", "e1", "e1:1", count))
        job = await self.proposer.propose(
            SubmitJob(JobSpec("j", (GroupSpec("g", Command(("true",)), count),)), "t", self.proposer.now_ms())
        )
        place = Place(job.uid, "g", 0, count, 1, "u1", executor.incarnation)
        (self.placement,) = await self.proposer.propose(PlaceTasks((place,)))
        self.tasks.append(asyncio.create_task(self.leader.run()))
        hello = pb.Hello(
            uid="u1", boot_id="b1", incarnation=executor.incarnation, name="e1", held=[self.placement.id]
        )
        self.session = await self.leader.open_session(hello)
        self.tasks += [
            asyncio.create_task(self.leader.read_session(self.session, self.messages())),
            asyncio.create_task(self.listen(self.session)),
        ]
        return self

    async def messages(self) -> AsyncIterator[pb.ExecutorMessage]:
        while True:
            yield await self.said.get()

    async def listen(self, session: Session) -> None:
        async for message in session.messages():
            self.told.append(message)

    def ended(self, seq: int, index: int) -> None:
        event = pb.TaskEvent(placement=self.placement.id, start=index, stop=index + 1, kind="succeeded")
        self.said.put_nowait(pb.ExecutorMessage(events=pb.Events(seq=seq, events=[event])))

    def beat(self, seq: int) -> None:
        self.said.put_nowait(pb.ExecutorMessage(heartbeat=pb.Heartbeat(seq=seq)))

    def acks(self) -> list[int]:
        return [one.events_ack.seq for one in self.told if one.WhichOneof("body") == "events_ack"]

    def leases(self) -> list[int]:
        return [one.lease_grant.seq for one in self.told if one.WhichOneof("body") == "lease_grant"]

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():  # noqa: ASYNC110  many things change it
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        self.raft.open.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def ask(stage: Stage, numbers: range) -> "list[asyncio.Task[Any]]":
    """Commands of clients."""
    return [
        asyncio.create_task(stage.proposer.propose(RegisterExecutor(f"c{n}", "b", f"c{n}", "c:1", 1)))
        for n in numbers
    ]


async def test_an_executor_waits_while_the_queue_is_full_and_keeps_its_lease(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "QUEUE_MAX", 20)
    monkeypatch.setattr(module, "COMMANDS_PER_ENTRY_MAX", 5)
    stage = await Stage().begin(2)
    stage.raft.open.clear()
    clients = ask(stage, range(20))
    await stage.until(lambda: stage.raft.waiting == 4)
    clients += ask(stage, range(20, 40))
    await asyncio.sleep(0)

    stage.beat(1)
    stage.ended(1, 0)
    stage.ended(2, 1)
    stage.beat(2)
    await stage.until(lambda: 2 in stage.leases())
    with pytest.raises(Unavailable, match=r"commands .* wait to be logged"):
        await ask(stage, range(40, 41))[0]

    assert not stage.session.closed
    assert stage.acks() == []
    stage.raft.open.set()
    await stage.until(lambda: stage.acks() == [1, 2])
    assert stage.machine.state.groups[stage.placement.uid, "g"].succeeded == 2
    assert {client.name for client in await asyncio.gather(*clients)} == {f"c{n}" for n in range(40)}
    assert not stage.tasks[0].done(), "the term goes on"
    await stage.end()


async def test_what_consensus_has_no_room_for_is_proposed_again_in_order():
    stage = await Stage().begin(7)
    await stage.until(lambda: stage.raft.room == 1_000)
    stage.raft.room = 0
    before = len(stage.raft.entries)

    for index in range(7):
        stage.ended(index + 1, index)
        await asyncio.sleep(0.001)
    stage.beat(1)
    await stage.until(lambda: stage.leases() == [1])
    assert stage.acks() == []
    assert not stage.session.closed
    refused = stage.raft.refused
    await stage.until(lambda: stage.raft.refused == refused + 1)  # all of them, in one entry
    stage.raft.room = 1

    await stage.until(lambda: len(stage.acks()) == 7)
    assert stage.acks() == list(range(1, 8))
    commands = [command for entry in stage.raft.entries[before:] for command in decode_entry(entry).commands]
    starts = [command.events[0].start for command in commands if isinstance(command, TaskEvents)]
    assert starts == list(range(7))
    await stage.end()


async def test_an_executor_that_says_more_than_can_be_logged_is_read_no_further():
    stage = await Stage().begin(100)
    stage.raft.open.clear()
    for index in range(100):
        stage.ended(index + 1, index)

    await stage.until(lambda: stage.said.qsize() < 100 - BATCHES_TAKEN_MAX)
    await asyncio.sleep(0.01)

    assert stage.said.qsize() >= 100 - BATCHES_TAKEN_MAX - 2
    stage.raft.open.set()
    await stage.until(lambda: len(stage.acks()) == 100)
    await stage.end()


async def test_what_is_too_large_for_the_log_is_dropped_and_said_once(monkeypatch: pytest.MonkeyPatch):
    """Else the executor would send it for ever."""
    stage = await Stage().begin(2)
    monkeypatch.setattr(module, "_ENTRY_ROOM", 1)

    stage.ended(1, 0)
    await stage.until(lambda: stage.acks() == [1])

    assert not stage.session.closed
    await stage.end()


async def test_clients_are_told_to_try_again_when_what_waits_is_large(monkeypatch: pytest.MonkeyPatch):
    stage = await Stage().begin(1)
    stage.raft.open.clear()
    monkeypatch.setattr(module, "_ENTRY_ROOM", 40)  # two commands
    clients = ask(stage, range(10))
    await stage.until(lambda: stage.raft.waiting == 4)
    monkeypatch.setattr(module, "QUEUE_BYTES_MAX", stage.proposer._queue_bytes)

    with pytest.raises(Unavailable, match=r"wait to be logged; try again"):
        await ask(stage, range(10, 11))[0]

    stage.raft.open.set()
    assert len(await asyncio.gather(*clients)) == 10
    assert stage.proposer._queue_bytes == 0
    await stage.end()


async def test_an_executor_that_reads_slowly_gets_no_more_tasks_until_it_has_read():
    """Else what it was told would pile up here, however large the descriptions of its tasks are."""
    stage = await Stage().begin(1)
    await stage.until(lambda: stage.told)
    stage.tasks.pop().cancel()  # who listens
    assert list(stage.leader._targets()) == ["u1"]

    stage.session.send(
        pb.LeaderMessage(assignments=pb.Assignments(assignments=[pb.Assignment(items=bytes(UNSENT_BYTES_MAX))]))
    )

    assert list(stage.leader._targets()) == []
    assert not stage.session.closed
    stage.tasks.append(asyncio.create_task(stage.listen(stage.session)))
    await stage.until(lambda: list(stage.leader._targets()) == ["u1"])
    await stage.end()
