"""What the leader tells the executor of a job master: everything once, and then what changes."""

from typing import Any

import pytest
from msgspec import msgpack

from tests.unit.sched.support import Cluster
from tiflow.master.members import MemberDesk
from tiflow.master.session import Session
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import (
    ExpireExecutor,
    Place,
    PlaceTasks,
    SetFormat,
    StartWorkers,
    StopWorkers,
    SubmitJob,
    TaskEvent,
    TaskEvents,
)
from tiflow.sched.model import MASTER_GROUP, Executor, Framework, GroupSpec, Job, JobSpec, Placement

CONFIGS = (b"\x92\x80\x80",)  #: two empty ones


class Desk:
    """A desk, its cluster, and what the sessions were told. The job master and two workers run on executor a."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.cluster.apply(SetFormat(3))
        self.executor: Executor = self.cluster.register("a", slots=9)
        self.sessions: dict[str, Session] = {}
        self.desk = MemberDesk(7, self.cluster.machine, self.sessions)
        spec = JobSpec("j", (GroupSpec(MASTER_GROUP, Framework("t")),), open=True)
        self.job: Job = self.cluster.apply(SubmitJob(spec, "token", self.cluster.now_ms))
        self.master = self.place(MASTER_GROUP, 0, 1)
        self.start("w")
        self.worker = self.place("w", 0, 2)
        self.session = self.connect()

    def start(self, name: str) -> None:
        self.cluster.apply(StartWorkers(self.job.uid, 1, GroupSpec(name, Framework("t", "kind"), 2, CONFIGS)))

    def place(self, group: str, start: int, stop: int, attempt: int = 1) -> Placement:
        one = self.executor
        place = Place(self.job.uid, group, start, stop, attempt, one.uid, one.incarnation)
        (placement,) = self.cluster.apply(PlaceTasks((place,)))
        return placement

    def connect(self) -> Session:
        session = self.sessions[self.executor.uid] = Session(self.executor.uid, self.executor.incarnation, 7)
        return session

    def say(self, kind: str, index: int, **fields: Any) -> None:
        event = TaskEvent(self.worker.id, index, index + 1, kind, **fields)
        self.cluster.apply(TaskEvents(self.executor.uid, self.executor.incarnation, (event,)))

    def report(self, index: int, status: dict[str, Any], *samples: pb.Sample) -> None:
        message = pb.Report(placement=self.worker.id, index=index, status=msgpack.encode(status), samples=samples)
        self.desk.take_report(self.session, message)

    def told(self) -> list[tuple[bool, dict[str, pb.Member]]]:
        self.desk._tell()
        messages, self.session._outbox = self.session._outbox, []
        assert all((m.members.term, m.members.placement) == (7, self.master.id) for m in messages)
        return [(m.members.whole, {one.name: one for one in m.members.members}) for m in messages]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_everything_once_and_then_what_changes(desk: Desk):
    ((whole, rows),) = desk.told()
    assert whole
    assert {name: (row.state, row.kind, row.executor) for name, row in rows.items()} == {
        "w/0": ("placed", "kind", "a"),
        "w/1": ("placed", "kind", "a"),
    }
    assert desk.told() == []

    desk.say("started", 1)
    desk.report(0, {"n": 1})

    ((whole, rows),) = desk.told()
    assert not whole
    assert rows["w/1"].state == "running"
    assert msgpack.decode(rows["w/0"].status) == {"n": 1}
    desk.report(0, {"n": 1})
    assert desk.told() == [], "the same once more is no news"


def test_why_a_try_failed_is_told_though_another_follows(desk: Desk):
    desk.told()
    event = pb.TaskEvent(placement=desk.worker.id, start=0, stop=1, kind="failed", error="ValueError: x")
    desk.desk.take_ends([event])
    desk.say("failed", 0, error="ValueError: x")

    ((_, rows),) = desk.told()

    row = rows["w/0"]
    assert (row.state, row.attempt, row.failures, row.error) == ("waiting", 2, 1, "ValueError: x")


def test_an_end_is_told_with_what_was_returned(desk: Desk):
    desk.told()
    desk.say("succeeded", 0, results=msgpack.encode([msgpack.encode(42)]))

    ((_, rows),) = desk.told()

    assert (rows["w/0"].state, msgpack.decode(rows["w/0"].result)) == ("succeeded", 42)


def test_a_new_session_is_told_everything(desk: Desk):
    desk.told()
    desk.session = desk.connect()

    ((whole, rows),) = desk.told()

    assert whole
    assert set(rows) == {"w/0", "w/1"}


def test_what_is_too_much_for_one_message_comes_in_parts(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """An executor that is sent more than a message may have loses its session, and is sent the same again."""
    monkeypatch.setattr("tiflow.master.members.PART_BYTES_MAX", 1_000)
    desk.report(0, {"n": "x" * 800})
    desk.report(1, {"n": "y" * 800})

    desk.desk._tell()

    first, last = [message.members for message in desk.session._outbox]
    assert [(part.whole, part.more, [row.name for row in part.members]) for part in (first, last)] == [
        (True, True, ["w/0"]),
        (False, False, ["w/1"]),
    ]


def test_what_was_forgotten_is_not_there_any_more(desk: Desk):
    desk.start("other")
    desk.told()
    desk.cluster.apply(StopWorkers(desk.job.uid, 1, "other", 0, 2, forget=True))

    ((whole, rows),) = desk.told()

    assert whole
    assert set(rows) == {"w/0", "w/1"}


def test_who_does_not_run_is_told_nothing_and_its_reports_are_void(desk: Desk):
    desk.told()
    desk.cluster.apply(ExpireExecutor(desk.executor.uid, desk.executor.incarnation))
    desk.report(0, {"n": 9})

    assert desk.told() == []
    assert all(not member.status for member in desk.desk.status(desk.cluster.state.jobs["j"]))


def test_metrics_are_those_of_attempts_that_run_and_that_prometheus_takes(desk: Desk):
    good, bad = pb.Sample(name="n", value=2.0, labels={"part": "a"}), pb.Sample(name="no-dash", value=1)
    desk.report(1, {}, good, bad, pb.Sample(name="n", labels={"a b": "c"}), pb.Sample(name="n", kind="untold"))

    assert list(desk.desk.samples()) == [("j", "w/1", good)]
    desk.say("succeeded", 1)
    desk.say("succeeded", 0)
    assert list(desk.desk.samples()) == []


def test_a_report_of_somebody_else_is_void(desk: Desk):
    stranger = Session("uid-x", 1, 7)
    desk.desk.take_report(stranger, pb.Report(placement=desk.worker.id, index=0, status=b"\x80"))
    desk.report(5, {"n": 1})
    desk.report(0, {"n": "x" * 20_000})

    assert all(not member.status for member in desk.desk.status(desk.cluster.state.jobs["j"]))
