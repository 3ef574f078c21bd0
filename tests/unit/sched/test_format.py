"""Commands are used when every master understands them, and not before."""

import pytest

from tests.unit.sched.support import Cluster
from tiflow.errors import FailedPrecondition
from tiflow.sched import machine
from tiflow.sched.commands import FORMAT, CancelJob, SetFormat
from tiflow.sched.machine import Machine, UnreadableEntry


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
