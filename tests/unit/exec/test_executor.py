"""A real executor against a fake leader: what it keeps, its sessions, and what a user gets wrong."""

# ruff: noqa: ASYNC221, ASYNC240  a test may block

import subprocess
from pathlib import Path

import grpc
import grpc.aio
import pytest
from msgspec import msgpack

from tests.unit.exec.conftest import alive
from tests.unit.exec.fake_leader import command, ends_of, eventually, python
from tiflow.exec import journal
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import ExecutorStub

# ---- what an executor keeps


async def test_what_is_kept_of_a_deleted_job_is_removed(start, leader, tasks):
    executor = await start(leader)
    leader.assign(python(1, "tasks:big", path=[tasks], items=msgpack.encode([1_000])))
    leader.assign(command(2, "echo", "x"))
    leader.assign(command(3, "echo", "x"))
    await leader.until(lambda: len(leader.ends()) == 3)

    leader.send(deleted=pb.Deleted(job_uids=[1, 2, 99]))

    def kept():
        return sorted(path.name for kind in ("results", "logs") for path in (executor.data_dir / kind).glob("[0-9]*"))

    await eventually(lambda: kept() == ["3"])
    leader.send(redirect=pb.Redirect(leader=leader.address))  # a new session begins with the question
    await leader.until(lambda: leader.kept[-1] == [3])


async def test_a_full_disk_is_said_and_nothing_is_started_until_there_is_room(start, leader, tasks, small_disk):
    executor = await start(
        leader, data_dir=small_disk / "e", limits={"cgroup": "off"}, retention={"disk-reserve": "2MiB"}
    )
    leader.assign(python(1, "tasks:same", path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 1)
    ballast = small_disk / "ballast"

    ballast.write_bytes(bytes(7 << 20))
    await leader.until(lambda: leader.unhealthy == "disk full")
    leader.assign(python(2, "tasks:same", 5, path=[tasks]))
    await leader.until(lambda: len(leader.ends(2)) == 5)
    assert {end.kind for end in leader.ends(2).values()} == {"released"}

    ballast.unlink()
    await leader.until(lambda: not leader.unhealthy)
    leader.assign(python(3, "tasks:same", 5, path=[tasks]))
    await leader.until(lambda: len(leader.ends(3)) == 5)
    assert {end.kind for end in leader.ends(3).values()} == {"succeeded"}
    assert executor.process.poll() is None


async def test_a_disk_without_a_byte_left_ends_nothing(start, leader, tasks, small_disk):
    executor = await start(
        leader, data_dir=small_disk / "e", limits={"cgroup": "off"}, retention={"disk-reserve": "0B"}
    )
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk}/ballast", "bs=4k"], check=False, stderr=subprocess.PIPE)

    leader.assign(python(1, "tasks:print_index", 3, path=[tasks]), command(2, "seq", "10000"))
    leader.assign(python(3, "tasks:big", path=[tasks], items=msgpack.encode([100_000])))
    await leader.until(lambda: len(leader.ends()) == 5)
    assert {key[0]: end.kind for key, end in leader.ends().items()} == {1: "succeeded", 2: "succeeded", 3: "failed"}
    assert "cannot keep this result" in leader.ends()[3, 0].error

    (small_disk / "ballast").unlink()
    leader.assign(python(4, "tasks:big", path=[tasks], items=msgpack.encode([100_000])))
    await leader.until(lambda: leader.ends(4))
    assert leader.ends(4)[4, 0].kind == "succeeded"
    await eventually(lambda: ends_of(journal.read(str(executor.data_dir / "journal"))[1]) >= {(4, 0)})


async def test_logs_are_followed_until_the_task_ends(start, leader, tmp_path):
    executor = await start(leader)
    leader.assign(command(1, "sh", "-c", f"echo one; while ! test -e {tmp_path}/go; do sleep 0.01; done; echo two"))
    await leader.until(lambda: leader.started(1))

    received = b""
    async with grpc.aio.insecure_channel(executor.address) as channel:
        async for chunk in ExecutorStub(channel).Logs(pb.LogsRequest(job_uid=1, group="g", index=0, follow=True)):
            received += chunk.data
            assert (chunk.stream, chunk.attempt) == ("stdout", 1)
            if b"one" in received:
                (tmp_path / "go").touch()

    assert received == b"one\ntwo\n"


# ---- sessions


async def test_a_new_leader_is_found_and_no_task_restarts(start, lead, leader, tasks, tmp_path):
    second = await lead(term=2)
    second.redirect = leader.address
    await start(leader, second)
    await leader.until(lambda: leader.connected)
    go = str(tmp_path / "go")
    leader.assign(python(1, "tasks:wait_for", path=[tasks], items=msgpack.encode([go])))
    await leader.until(lambda: leader.started(1))

    second.redirect = None
    await leader.stop()
    await second.until(lambda: second.connected)
    second.assign(python(1, "tasks:wait_for", path=[tasks], items=msgpack.encode([go])))  # a repeat
    Path(go).touch()
    await second.until(lambda: second.ends())

    assert (list(second.hellos[-1].held), second.hellos[-1].incarnation) == ([1], leader.incarnation)
    pids = Path(f"{go}.pid").read_text().split()
    assert second.results(1) == {0: int(pids[0])}
    assert len(pids) == 1


async def test_reports_that_were_not_acknowledged_are_sent_again_as_they_were(start, lead, leader, tasks):
    await start(leader)
    leader.acking = False
    leader.assign(python(1, "tasks:same", 100, path=[tasks]))
    await leader.until(lambda: leader.event_seqs)

    second = await lead(term=2)
    leader.send(redirect=pb.Redirect(leader=second.address))
    await second.until(lambda: len(second.ends()) == 100)

    sent = list(leader.event_seqs.items())
    assert list(second.event_seqs.items())[: len(sent)] == sent
    assert list(second.hellos[0].held) == [1]
    assert second.results(1) == {i: i for i in range(100)}


async def test_what_a_leader_of_an_earlier_term_says_is_void(start, leader, tasks):
    await start(leader)
    leader.send(assignments=pb.Assignments(term=0, assignments=[python(1, "tasks:same", path=[tasks])]))

    await leader.until(lambda: len(leader.hellos) == 2)  # it left that stream

    assert not leader.hellos[1].held
    assert not leader.events


async def test_what_the_leader_does_not_know_is_stopped_and_forgotten(start, leader, tasks, tmp_path):
    await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]

    leader.unknown = [1]
    leader.send(redirect=pb.Redirect(leader=leader.address))
    await eventually(lambda: not any(map(alive, pids)))

    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(2))
    assert not leader.ends(1)


async def test_an_ended_incarnation_kills_its_tasks_and_registers_anew(start, leader, tasks, tmp_path):
    await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]

    leader.send(expired=pb.Expired())
    await leader.until(lambda: len(leader.hellos) == 2)

    assert not any(map(alive, pids))  # registering is a proof
    assert leader.hellos[1].incarnation == 0
    assert leader.hellos[1].boot_id != leader.hellos[0].boot_id
    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(2))


async def test_a_refusal_ends_the_executor_with_its_exit_code(start, leader):
    leader.refuse = pb.Refused(code="FAILED_PRECONDITION", reason="wrong cluster")

    executor = await start(leader, wait=False)

    assert await executor.wait() == 5


async def test_a_name_that_is_taken_is_tried_again(start, leader):
    leader.refuse = pb.Refused(code="ALREADY_EXISTS", reason="e1 is alive")
    await start(leader, wait=False)
    await leader.until(lambda: len(leader.hellos) >= 2)

    leader.refuse = None

    await leader.until(lambda: leader.connected)


# ---- what a user gets wrong


def test_slots_for_which_there_are_not_enough_files_are_refused(monkeypatch):
    from tiflow.errors import FailedPrecondition
    from tiflow.exec import main

    monkeypatch.setattr(main.procs, "raise_open_files", lambda: (1_024, 4_096))

    with pytest.raises(FailedPrecondition, match="slots = 700: they need 5700 open files, and this process may have"):
        main._have_files_for(700)


async def test_a_port_in_use_is_named(start, leader):
    first = await start(leader)

    second = await start(leader, wait=False, addr=first.address)

    assert await second.wait() == 5


async def test_a_data_directory_in_use_is_refused(start, leader, monkeypatch, tmp_path):
    from tiflow.errors import FailedPrecondition
    from tiflow.exec import main

    first = await start(leader)

    message = f"data-dir = {first.data_dir}: another executor uses it"
    with pytest.raises(FailedPrecondition, match=message), main.lock(str(first.data_dir), wait_s=0.2):
        pass
