"""What an executor tells the leader of the members that run on it."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from tiflow.exec.members import Members, MemberSlot
from tiflow.jobs.framework.port import Report
from tiflow.rpc import tiflow_pb2 as pb


def member(placement: int, index: int) -> MemberSlot:
    assignment = SimpleNamespace(placement=placement, job_uid=7, group="worker")
    run = SimpleNamespace(assignment=assignment, start=index)
    return cast(MemberSlot, SimpleNamespace(run=run, key=(7, "worker", index)))


def told(members: Members) -> dict[tuple[int, int], bytes]:
    return {(report.placement, report.index): report.status for report in members.fresh_reports()}


def nothing() -> Any:
    return None


async def test_a_job_master_begins_when_all_parts_of_what_is_told_of_its_workers_have_come():
    members, master = Members(nothing(), {}, nothing(), nothing()), member(3, 0)
    rows = [pb.Member(name=f"w/{index}", state="running") for index in range(3)]
    members.take_rows(pb.Members(placement=3, whole=True, more=True, members=rows[:1]))
    waiting = asyncio.create_task(members._rows_for(master))
    members.take_rows(pb.Members(placement=3, more=True, members=rows[1:2]))
    await asyncio.sleep(0)
    assert not waiting.done()

    members.take_rows(pb.Members(placement=3, members=rows[2:]))

    assert [row.name for row in await waiting] == ["w/0", "w/1", "w/2"]
    assert len(await members._rows_for(master)) == 3, "one that begins later"


def test_the_reports_of_workers_that_were_placed_together_are_kept_apart():
    members = Members(nothing(), {}, nothing(), nothing())
    first, second = member(3, 0), member(3, 1)

    members._take_report(first, Report(b"a"))
    members._take_report(second, Report(b"b"))
    members._take_report(first, Report(b"newer"))

    assert told(members) == {(3, 0): b"newer", (3, 1): b"b"}
    assert not members.has_news
    members.tell_all_again()
    assert told(members) == {(3, 0): b"newer", (3, 1): b"b"}, "a new leader hears of all"


def test_who_has_ended_is_told_of_once_and_not_again():
    members = Members(nothing(), {}, nothing(), nothing())
    first, second = member(3, 0), member(3, 1)
    members._take_report(first, Report(b"its last"))
    members._take_report(second, Report(b"b"))

    members.forget(first)

    assert told(members) == {(3, 0): b"its last", (3, 1): b"b"}
    members.tell_all_again()
    assert told(members) == {(3, 1): b"b"}
