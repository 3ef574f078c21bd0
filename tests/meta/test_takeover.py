"""What becomes of the rows of a lost cluster whose database another one takes over."""

import pytest
import sqlalchemy as sa
from msgspec import msgpack
from structlog.testing import capture_logs

from tests.meta.conftest import State
from tests.meta.test_history import write
from tests.meta.test_projector import in_database
from tiflow.errors import FailedPrecondition
from tiflow.master import takeover
from tiflow.meta.checkpoints import Checkpoints, Foreign, Holder, Write
from tiflow.meta.tables import JOB_FENCES, open_engine
from tiflow.meta.takeover import adopt, find
from tiflow.sched.commands import RestoreJob
from tiflow.sched.model import Command, GroupSpec, JobSpec


class Proposals(list[RestoreJob]):
    async def propose(self, command: RestoreJob) -> None:
        self.append(command)


async def test_a_job_that_cannot_be_restored_does_not_keep_back_the_others(url: str) -> None:
    spec = JobSpec("good", (GroupSpec("g", Command(("true",))),))
    state = State("lost")
    good = state.put("good", state="Running", spec=msgpack.encode(spec))
    bare = state.put("bare", state="Running", spec=b"")
    odd = state.put("odd", spec=b"\xc1")
    write(url, state)
    engine = open_engine(url)
    lost_leader, holder = Checkpoints(engine, "lost", 1), Holder(good, "", 1)
    lost_leader.hold(holder)
    assert lost_leader.write([Write(holder, "k", b"v", 7)]) == [None]
    lost = find(engine, "new")
    assert lost is not None
    proposals = Proposals()
    with capture_logs() as logs:
        for row in lost.jobs:
            await takeover._restore(row, lost, proposals)  # type: ignore[arg-type]
    assert [proposal.spec for proposal in proposals] == [spec]
    assert [entry["job_id"] for entry in logs if entry["event"] == "restore_refused"] == ["bare", "odd"]

    assert adopt(engine, lost, "new", {good: lost.floor + 1})

    assert find(engine, "new") is None
    assert not adopt(engine, lost, "newer", {}), "somebody else was faster"
    assert {uid: row.state for uid, row in in_database(url).items()} == {bare: "Failed", odd: "Failed"}
    assert Checkpoints(engine, "new", 1).get(lost.floor + 1, "k").value == b"v"  # type: ignore[union-attr]
    with engine.connect() as connection:
        assert connection.execute(sa.select(JOB_FENCES)).all() == []
    with pytest.raises(Foreign, match="belongs to cluster new, and this is lost"):
        lost_leader.write([Write(holder, "k", b"late", 7)])
    engine.dispose()


def test_a_database_that_was_nobodys_cannot_be_taken_over(url: str) -> None:
    engine = open_engine(url)
    with pytest.raises(FailedPrecondition, match="has never been a cluster's"):
        find(engine, "new")
    engine.dispose()
