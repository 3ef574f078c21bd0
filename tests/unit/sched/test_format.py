"""Commands are used when every master understands them, and not before."""

from typing import Any

import pytest
from msgspec import msgpack

from tests.unit.sched.support import Cluster
from tiflow.errors import FailedPrecondition
from tiflow.sched import machine
from tiflow.sched.commands import (
    FORMAT,
    WHO_FORMAT,
    CancelJob,
    FireSchedule,
    PauseJob,
    PutSchedule,
    ResumeJob,
    SetFormat,
    SubmitJob,
    TriggerSchedule,
    encode_command,
)
from tiflow.sched.machine import Machine, UnreadableEntry
from tiflow.sched.model import Command, GroupSpec, JobSpec


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiflow whose CancelJob is of format 2."""
    monkeypatch.setattr(machine, "FORMAT", FORMAT + 1)
    monkeypatch.setattr(CancelJob, "since", FORMAT + 1)


@pytest.mark.usefixtures("newer")
def test_a_command_is_refused_until_all_masters_understand_its_format():
    cluster = Cluster()
    cluster.submit("j")
    with pytest.raises(FailedPrecondition, match=f"needs format {FORMAT + 1}"):
        cluster.apply(CancelJob("j"))

    cluster.apply(SetFormat(FORMAT + 1))

    cluster.apply(CancelJob("j"))


@pytest.mark.usefixtures("newer")
def test_a_format_never_falls_and_survives_a_snapshot():
    cluster = Cluster()
    cluster.apply(SetFormat(FORMAT + 1))
    cluster.apply(SetFormat(FORMAT))
    again = Machine()
    again.restore(b"".join(cluster.machine.snapshot()))
    assert again.state.format == FORMAT + 1


def test_a_master_that_does_not_understand_the_format_stops(monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster()
    with pytest.raises(UnreadableEntry, match="upgrade it"):
        cluster.apply(SetFormat(FORMAT + 1))
    monkeypatch.setattr(machine, "FORMAT", FORMAT + 1)
    cluster.apply(SetFormat(FORMAT + 1))
    snapshot = b"".join(cluster.machine.snapshot())
    monkeypatch.undo()
    older = Machine()
    with pytest.raises(UnreadableEntry, match="upgrade it"):
        older.restore(snapshot)
    assert older.state.revision == 0


SPEC = JobSpec("j", (GroupSpec("g", Command(("true",))),))
TOLD = (SubmitJob(SPEC, "t", 0, "ada"), CancelJob("j", by="ada"), PauseJob("j", by="ada"), ResumeJob("j", by="ada"))


def histories(cluster: Cluster) -> dict[str, list[tuple[str, str]]]:
    state = cluster.state
    return {state.job_ids[uid]: [(one.kind, one.by) for one in of.events] for uid, of in state.events.items()}


def tell(cluster: Cluster) -> None:
    """Whatever can be said to a job, and by a schedule."""
    now_ms = cluster.now_ms
    cluster.apply(SubmitJob(SPEC, "t", now_ms, "ada@home"))
    cluster.apply(SubmitJob(SPEC, "t", now_ms, "somebody else, with the same token"))
    cluster.apply(PauseJob("j", by="löwe"))
    cluster.apply(ResumeJob("j", by="ada"))
    cluster.apply(ResumeJob("j", by="in vain"))
    placement = cluster.place(cluster.state.jobs["j"], cluster.register(), 0, 1)
    cluster.apply(CancelJob("j", by="x" * 1_000))
    cluster.event(placement, "canceled")
    schedule = cluster.apply(
        PutSchedule("nightly", SPEC, "* * * * *", "UTC", "s", "replace", "skip", 9, next_at_ms=now_ms)
    )
    cluster.apply(TriggerSchedule("nightly", "by-hand", "t2", now_ms, "ada"))
    cluster.apply(FireSchedule("nightly", schedule.uid, now_ms, now_ms, "by-itself", 0))


def test_the_history_of_a_job_says_who_gave_the_command_that_it_came_of():
    cluster = Cluster()
    cluster.apply(SetFormat(FORMAT))
    tell(cluster)
    again = Machine()
    again.restore(b"".join(cluster.machine.snapshot()))

    assert histories(cluster) == {
        "j": [
            ("submitted", "ada@home"),
            ("paused", "löwe"),
            ("resumed", "ada"),
            ("started", ""),
            ("canceling", "x" * 255),
            ("ended", ""),
        ],
        "by-hand": [
            ("submitted", "schedule nightly, by ada"),
            ("canceling", "schedule nightly"),
            ("ended", "schedule nightly"),
        ],
        "by-itself": [("submitted", "schedule nightly")],
    }
    assert again.state.events == cluster.state.events


def test_masters_that_do_not_know_who_can_read_all_that_is_said_before_everybody_does():
    cluster = Cluster()
    cluster.apply(SetFormat(WHO_FORMAT - 1))
    tell(cluster)
    frames = list(cluster.machine.snapshot())
    (events,) = [rows for table, rows in (msgpack.decode(frame[4:]) for frame in frames) if table == "events"]

    assert {by for history in histories(cluster).values() for _, by in history} == {""}
    assert {len(event) for _, history, _ in events for event in history} == {4}
    for command in (*TOLD, TriggerSchedule("s", "j", "t", 0, "ada")):
        fields: Any = msgpack.decode(encode_command(command, WHO_FORMAT - 1))
        assert len(fields) == len(command.__struct_fields__), "with its tag, and without who"
        assert msgpack.decode(encode_command(command, WHO_FORMAT)) == [*fields, "ada"]
