"""A real executor against a fake leader: it kills in time, and what had ended is not repeated."""

# ruff: noqa: ASYNC240  a test may block

import os
import signal
from pathlib import Path

from msgspec import msgpack

from tests.unit.exec.conftest import alive, descendants
from tests.unit.exec.fake_leader import FakeLeader, command, ends_of, eventually, python
from tiflow.exec import journal, salvage
from tiflow.exec.outbox import Report
from tiflow.rpc import tiflow_pb2 as pb


async def two_that_sleep(leader: FakeLeader, tasks: str, tmp_path: Path) -> list[int]:
    """Placement 1 runs: the pids of its worker and of what that has started."""
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    return [int(pid) for pid in mark.read_text().split()]


async def test_the_children_die_at_the_ttl_when_the_lease_is_not_acknowledged(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=700)
    await start(leader)
    pids = await two_that_sleep(leader, tasks, tmp_path)

    leader.granting = False
    took_s = await eventually(lambda: not any(map(alive, pids)))

    assert 0.3 < took_s < 5.0
    await leader.until(lambda: leader.hellos[-1].incarnation == 0 and len(leader.hellos) > 1)
    leader.granting = True
    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(2))
    assert not leader.ends(1)


async def test_the_guardian_kills_at_the_ttl_when_the_agent_is_stopped(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=700)
    executor = await start(leader)
    pids = await two_that_sleep(leader, tasks, tmp_path)

    executor.signal(signal.SIGSTOP)
    took_s = await eventually(lambda: not any(map(alive, pids)))
    executor.signal(signal.SIGCONT)

    assert took_s < 5.0
    await leader.until(lambda: len(leader.hellos) > 1 and leader.hellos[-1].incarnation == 0)
    assert not leader.ends(1)  # what died with the lease is not reported as failed
    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(2))


async def test_the_children_die_with_the_agent_and_a_restart_waits_for_that(start, leader, tasks, tmp_path):
    executor = await start(leader)
    pids = await two_that_sleep(leader, tasks, tmp_path)

    executor.signal(signal.SIGKILL)
    await eventually(lambda: not any(map(alive, pids)))

    executor.process.wait()
    hellos = len(leader.hellos)
    await start(leader, data_dir=executor.data_dir, wait=False)
    await leader.until(lambda: len(leader.hellos) > hellos)
    assert leader.hellos[-1].uid == leader.hellos[0].uid
    assert leader.hellos[-1].incarnation == 0


async def test_the_death_of_the_agent_is_reported_when_its_children_are_dead(start, lead, leader, tasks, tmp_path):
    second = await lead(term=2)
    executor = await start(leader)
    pids = await two_that_sleep(leader, tasks, tmp_path)
    leader.redirect = second.address

    executor.signal(signal.SIGKILL)
    await second.until(lambda: second.reports)

    assert not any(map(alive, pids))
    (report,) = second.reports
    first = leader.hellos[0]
    assert (report.uid, report.boot_id, report.incarnation) == (first.uid, first.boot_id, leader.incarnation)
    assert (report.cluster_id, list(report.held)) == ("c1", [])
    executor.process.wait()
    await eventually(lambda: not any(map(alive, executor.seen)))  # who reported, too


async def test_a_report_that_nobody_takes_is_given_up_and_a_restart_need_not_wait_longer(start, leader, tasks):
    executor = await start(leader)
    leader.assign(python(1, "tasks:same", path=[tasks]))  # who has read no welcome has nothing to report
    await leader.until(leader.ends)
    leader.refuse_reports = pb.Refused(code="FAILED_PRECONDITION", reason="another cluster")

    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await eventually(lambda: not any(map(alive, executor.seen)))

    assert len(leader.reports) == 1, "it did not ask again"
    await start(leader, data_dir=executor.data_dir, wait=False)
    await leader.until(lambda: len(leader.hellos) == 2)


async def finished_without_acknowledgement(start, leader, tasks):
    """An executor, and its ends: some that were sent, and those of placement 2, which were not; none is
    acknowledged."""
    executor = await start(leader)
    leader.acking = False
    ended = {(2, index) for index in range(100)}
    for placement in (11, 12):
        if len(leader.event_seqs) < 2:  # more are not on their way at one time
            ended.add((placement, 0))
            leader.assign(python(placement, "tasks:same", path=[tasks]))
            await leader.until(lambda placement=placement: len(leader.event_seqs) == 2 or leader.ends(placement))
    leader.assign(python(2, "tasks:same", 100, path=[tasks]))
    await eventually(lambda: ends_of(journal.read(str(executor.data_dir / "journal"))[1]) == ended)
    assert not leader.ends(2)
    return executor, ended


async def test_what_had_ended_is_reported_before_the_death_of_the_agent(start, leader, tasks):
    executor, ended = await finished_without_acknowledgement(start, leader, tasks)

    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await leader.until(lambda: ends_of([pb.Events(events=leader.left)]) >= ended)

    assert ends_of([pb.Events(events=leader.left)]) == ended
    assert {event.kind for event in leader.left} == {"succeeded"}
    assert leader.reports[0].incarnation == leader.incarnation


def unread_ends(worker: int) -> list[Report]:
    """What stands in the memory that a worker shares with its agent."""
    (shared,) = (fd for fd in Path(f"/proc/{worker}/fd").iterdir() if "memfd:tiflow-worker" in os.readlink(fd))
    with shared.open("rb") as memory:
        return salvage.reports(memory.fileno())


async def test_what_the_agent_had_not_read_when_it_died_is_reported(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=20_000)
    executor = await start(leader)
    go = tmp_path / "go"
    leader.assign(python(1, "tasks:end_after", 2, path=[tasks], items=msgpack.encode([str(go)] * 2)))
    await leader.until(lambda: leader.started(1))
    (worker,) = descendants(executor.guardian)

    executor.signal(signal.SIGSTOP)
    go.touch()
    await eventually(lambda: unread_ends(worker))
    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await leader.until(lambda: leader.left)

    assert [(e.placement, e.start, e.stop, e.kind, e.results) for e in leader.left] == [
        (1, 0, 1, "succeeded", msgpack.encode([msgpack.encode("ended")]))
    ]


async def test_a_command_that_ended_while_the_agent_hung_is_reported_when_that_has_died(start, lead, tmp_path):
    leader = await lead(ttl_ms=30_000)
    executor = await start(leader, slots=2)
    go = tmp_path / "go"
    wait = 'while ! [ -e "$0" ]; do sleep 0.01; done; exit $TIFLOW_INDEX'
    leader.assign(command(1, "sh", "-c", wait, str(go), stop=2))
    await leader.until(lambda: leader.started(1, 0) and leader.started(1, 1))

    executor.signal(signal.SIGSTOP)
    go.touch()
    await eventually(lambda: not descendants(executor.guardian))
    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await leader.until(lambda: len(leader.left) == 2)

    assert sorted((e.placement, e.start, e.stop, e.kind, e.error, e.exit_code) for e in leader.left) == [
        (1, 0, 1, "succeeded", "", 0),
        (1, 1, 2, "failed", "exit code 1", 1),
    ]


async def test_what_had_ended_is_reported_by_the_successor_before_it_registers(start, leader, tasks):
    executor, ended = await finished_without_acknowledgement(start, leader, tasks)
    incarnation = leader.incarnation

    executor.process.send_signal(signal.SIGSTOP)  # then nobody can report
    for pid in (executor.guardian, executor.process.pid):
        os.kill(pid, signal.SIGKILL)
    executor.process.wait()
    assert not leader.reports
    await start(leader, data_dir=executor.data_dir, wait=False)
    await leader.until(lambda: len(leader.hellos) == 2)

    assert ends_of([pb.Events(events=leader.left)]) == ended
    assert (leader.reports[0].uid, leader.reports[0].incarnation) == (leader.hellos[1].uid, incarnation)
    assert leader.hellos[1].incarnation == 0


async def test_an_executor_that_stops_in_order_reports_nothing_after_its_goodbye(start, leader):
    executor = await start(leader)

    executor.signal(signal.SIGTERM)

    assert await executor.wait() == 0
    assert (leader.goodbyes, leader.reports) == (1, [])


async def test_what_is_assigned_while_it_drains_is_handed_back_at_once(start, leader, tasks, tmp_path):
    executor = await start(leader)
    go = str(tmp_path / "go")
    leader.assign(python(1, "tasks:wait_for", path=[tasks], items=msgpack.encode([go])))
    await leader.until(lambda: leader.started(1))

    executor.signal(signal.SIGTERM)
    await leader.until(lambda: leader.drainings)
    leader.assign(python(2, "tasks:same", 3, path=[tasks]))
    await leader.until(lambda: len(leader.ends(2)) == 3)
    Path(go).touch()

    assert await executor.wait() == 0
    assert {end.kind for end in leader.ends(2).values()} == {"released"}
    assert leader.ends()[1, 0].kind == "succeeded"


async def test_the_agent_ends_when_its_guardian_dies(start, leader, tasks, tmp_path):
    executor = await start(leader)
    pids = await two_that_sleep(leader, tasks, tmp_path)
    executor.seen.update(descendants(executor.process.pid))

    os.kill(executor.guardian, signal.SIGKILL)

    await leader.until(lambda: leader.reports)
    assert not any(map(alive, pids))
    assert await executor.wait() == 70


async def test_what_ran_dies_with_agent_and_guardian_and_a_restart_waits_for_that(start, leader, tmp_path):
    executor = await start(leader)
    mark = tmp_path / "mark"
    spawn = 'sleep 60 & echo $! >"$0.tmp"; setsid sleep 60 & echo $! >>"$0.tmp"; mv "$0.tmp" "$0"; wait'
    leader.assign(command(1, "sh", "-c", spawn, str(mark)))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]
    executor.seen.update(descendants(executor.process.pid))
    reaper, guardian = executor.reaper, executor.guardian

    os.kill(reaper, signal.SIGSTOP)  # it has not got round to it when the executor is started again
    executor.process.send_signal(signal.SIGSTOP)
    for pid in (guardian, executor.process.pid):
        os.kill(pid, signal.SIGKILL)
    executor.process.wait()
    await start(leader, data_dir=executor.data_dir, wait=False)
    os.kill(reaper, signal.SIGCONT)

    await leader.until(lambda: len(leader.hellos) == 2)
    assert not any(map(alive, pids))


async def test_sigterm_lets_running_tasks_end_hands_back_the_others_and_says_goodbye(start, leader, tasks, tmp_path):
    executor = await start(leader)
    go = str(tmp_path / "go")
    leader.assign(python(1, "tasks:wait_for", 3, path=[tasks], items=msgpack.encode([go] * 3)))
    await leader.until(lambda: leader.started(1))

    executor.signal(signal.SIGTERM)
    await leader.until(lambda: len(leader.ends()) == 2)
    Path(go).touch()

    assert await executor.wait() == 0
    assert [leader.ends()[1, i].kind for i in range(3)] == ["succeeded", "released", "released"]
    assert leader.goodbyes == 1


async def test_a_guardian_that_is_stopped_is_killed_at_the_ttl_and_its_children_with_it(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=700)
    executor = await start(leader)
    pids = await two_that_sleep(leader, tasks, tmp_path)
    executor.seen.update(descendants(executor.process.pid))

    os.kill(executor.guardian, signal.SIGSTOP)
    leader.granting = False

    assert await executor.wait() == 70
    await eventually(lambda: not any(map(alive, pids)))


async def test_a_guardian_that_is_stopped_does_not_hold_up_the_agent_beyond_the_lease(start, lead, tmp_path):
    leader = await lead(ttl_ms=2_000)
    executor = await start(leader, slots=20)
    mark = tmp_path / "mark"
    leader.assign(command(1, "sh", "-c", 'echo $$ >"$0.tmp"; mv "$0.tmp" "$0"; exec sleep 60', str(mark)))
    await eventually(mark.exists)
    executor.seen.update(descendants(executor.process.pid))

    os.kill(executor.guardian, signal.SIGSTOP)
    leader.assign(command(2, "true", stop=19, env={name: name * 100_000 for name in "abcde"}))  # fills the socket
    await eventually(lambda: not alive(int(mark.read_text())), 2.0 + 0.7)  # what the leader waits at least

    assert await executor.wait() == 70
