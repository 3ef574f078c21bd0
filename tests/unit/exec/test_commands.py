"""A real executor against a fake leader: commands, what a task finds, and what it may use."""

# ruff: noqa: ASYNC240  a test may block

import os
import resource
import sys
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest
from msgspec import msgpack

from tests.unit.exec.conftest import alive
from tests.unit.exec.fake_leader import command, eventually, python
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import ExecutorStub

# ---- commands


async def test_a_command_gets_its_index_item_and_environment(start, leader):
    executor = await start(leader)

    script = 'echo "$1 $2 $TIFLOW_INDEX $TIFLOW_JOB_ID $MINE"; echo oops >&2; exit $TIFLOW_INDEX'
    leader.assign(
        command(1, "sh", "-c", script, "-", "{index}", "{item}", stop=2, env={"MINE": "m{index}"}, job_id="j7",
                items=msgpack.encode(["{index}", {"k": 1}])),
    )  # fmt: skip
    await leader.until(lambda: len(leader.ends()) == 2)

    assert leader.ends()[1, 0].kind == "succeeded"
    assert (leader.ends()[1, 1].error, leader.ends()[1, 1].exit_code) == ("exit code 1", 1)
    assert (executor.data_dir / "logs/1/g/0.1.out").read_text() == "0 {index} 0 j7 m0\n"
    assert (executor.data_dir / "logs/1/g/1.1.out").read_text() == '1 {"k":1} 1 j7 m1\n'
    assert (executor.data_dir / "logs/1/g/1.1.err").read_text() == "oops\n"


async def test_commands_that_cannot_run_or_are_killed_say_so(start, leader):
    await start(leader)

    leader.assign(
        command(1, "no-such-program"), command(2, "sh", "-c", "kill -TERM $$"),
        command(3, "sleep", "60", timeout_ms=200, grace_ms=5_000),
    )  # fmt: skip
    await leader.until(lambda: len(leader.ends()) == 3)

    assert {p: (e.error, e.final) for (p, _), e in leader.ends().items()} == {
        1: ("program 'no-such-program' was not found on this executor", True),
        2: ("killed by SIGTERM", False),
        3: ("timed out after 0.2 s", False),
    }


async def test_of_what_a_chatty_command_writes_the_newest_is_kept(start, leader):
    executor = await start(leader, **{"log-bytes-max": 200_000})

    leader.assign(
        command(1, "sh", "-c", "seq 100000; exit 0"),
        command(2, "seq", "100000", limits=pb.Limits(output_bytes=100_000)),
    )
    await leader.until(lambda: len(leader.ends()) == 2)

    assert {end.kind for end in leader.ends().values()} == {"succeeded"}
    whole = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
    async with grpc.aio.insecure_channel(executor.address) as channel:
        for job_uid, most in ((1, 200_000), (2, 100_000)):
            request = pb.LogsRequest(job_uid=job_uid, group="g", index=0, stream="stdout")
            data = b"".join([chunk.data async for chunk in ExecutorStub(channel).Logs(request)])
            note, _, log = data.partition(b"\n")
            assert note == b"[tiflow: %d bytes of older output are gone]" % (len(whole) - len(log))
            assert whole.endswith(log)
            assert most / 2 <= len(log) <= most


async def test_what_a_command_leaves_behind_ends_with_it(start, leader, tmp_path):
    await start(leader)

    leader.assign(command(1, "sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/pid"))
    await leader.until(lambda: leader.ends())

    pid = int((tmp_path / "pid").read_text())
    await eventually(lambda: not alive(pid))


async def test_revoked_tasks_are_canceled(start, leader, tasks):
    await start(leader, slots=2)
    leader.assign(command(1, "sh", "-c", "trap '' TERM; sleep 60", stop=3, grace_ms=300))
    leader.assign(python(2, "tasks:hang_at_5", 8, start=5, path=[tasks], grace_ms=100))
    await leader.until(lambda: leader.started(1, 0) and leader.started(1, 1))

    leader.revoke(1, 2)
    await leader.until(lambda: len(leader.ends()) == 6)

    assert {e.kind for e in leader.ends().values()} == {"canceled"}


async def test_a_function_that_is_canceled_runs_its_finally_and_ends_at_once(start, leader, tasks, tmp_path):
    await start(leader)
    mark = tmp_path / "mark"
    items = msgpack.encode([str(mark)] * 3)
    leader.assign(python(2, "tasks:tidy_at_5", 8, start=5, path=[tasks], grace_ms=60_000, items=items))
    await leader.until(lambda: leader.started(2, 5))
    await eventually(mark.exists)

    leader.revoke(2)
    revoked = time.monotonic()
    await leader.until(lambda: len(leader.ends()) == 3)

    assert time.monotonic() - revoked < 30.0, "it did not wait for the grace to pass"
    assert {e.kind for e in leader.ends().values()} == {"canceled"}
    assert (tmp_path / "mark.tidy").exists()
    await eventually(lambda: not any(alive(int(pid)) for pid in mark.read_text().split()))
    leader.assign(python(3, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(3))


async def test_a_function_that_holds_on_is_killed_after_the_grace(start, leader, tasks, tmp_path):
    await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(2, "tasks:hold_on", path=[tasks], grace_ms=300, items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)

    leader.revoke(2)
    revoked = time.monotonic()
    await leader.until(lambda: leader.ends())

    assert 0.25 < time.monotonic() - revoked < 30.0
    assert {e.kind for e in leader.ends().values()} == {"canceled"}


async def test_a_function_that_takes_too_long_runs_its_finally_and_the_rest_of_its_batch_runs(
    start, leader, tasks, tmp_path
):
    await start(leader)
    mark = tmp_path / "mark"
    items = msgpack.encode([str(mark)] * 100)
    leader.assign(
        python(2, "tasks:tidy_at_5", 100, path=[tasks], timeout_ms=300, grace_ms=60_000, items=items),
    )
    await leader.until(lambda: len(leader.ends()) == 100)

    assert leader.ends()[2, 5].error == "timed out after 0.3 s"
    assert (tmp_path / "mark.tidy").exists()
    assert sum(e.stop - e.start for e in leader.events if e.kind == "succeeded") == 99
    before, after = leader.results(2)[4], leader.results(2)[99]
    assert before != after  # what the task left in its worker is gone


# ---- what a task finds, and what it may use


async def test_each_attempt_has_an_empty_working_directory_of_its_own(start, leader, tasks):
    executor = await start(leader, slots=2)

    leader.assign(python(1, "tasks:litter", 20, path=[tasks]))
    script = "ls -A; pwd; touch a; mkdir -p b/c"
    leader.assign(command(2, "sh", "-c", script, stop=4))
    await leader.until(lambda: len(leader.ends()) == 24)

    places = leader.results(1)
    assert [names for names, _ in places.values()] == [[]] * 20
    work = executor.data_dir / "work"
    assert {str(Path(place).parent) for _, place in places.values()} == {str(work)}
    shown = [(executor.data_dir / f"logs/2/g/{i}.1.out").read_text().splitlines() for i in range(4)]
    assert all(len(lines) == 1 and lines[0].startswith(f"{work}/c") for lines in shown), shown
    assert len({lines[0] for lines in shown}) == 4
    await eventually(lambda: not [at for at, *inside in os.walk(work) if at != str(work) and any(inside)])
    assert not list(work.glob("c*"))


async def test_the_environment_of_tasks_is_what_was_named(start, leader, tasks, monkeypatch):
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.setenv("MINE_A", "a")
    await start(leader, **{"pass-env": ["PATH", "MINE_*"], "env": {"GIVEN": "g"}})

    leader.assign(python(1, "tasks:set_variable", path=[tasks]))
    leader.assign(python(2, "tasks:environment", path=[tasks]))
    leader.assign(command(3, "sh", "-c", 'test "$SECRET$MINE_A$GIVEN$OWN" = ago', env={"OWN": "o"}))
    await leader.until(lambda: len(leader.ends()) == 3)

    assert leader.results(2)[0] == {"MINE_A": "a", "GIVEN": "g"}
    assert leader.ends()[3, 0].kind == "succeeded"


async def test_an_attempt_has_no_more_memory_and_files_than_it_may(start, leader, tasks):
    await start(leader)
    limits = pb.Limits(memory_bytes=256 << 20, open_files=40)

    leader.assign(python(1, "tasks:allocate", 2, path=[tasks], items=msgpack.encode([64, 512]), limits=limits))
    leader.assign(python(2, "tasks:allocate", path=[tasks], items=msgpack.encode([512])))  # the same worker
    leader.assign(python(3, "tasks:open_many", path=[tasks], items=msgpack.encode([100]), limits=limits))
    leader.assign(python(4, "tasks:open_many", path=[tasks], items=msgpack.encode([100])))
    leader.assign(command(5, "sh", "-c", "ulimit -n; ulimit -d", limits=limits))
    await leader.until(lambda: len(leader.ends()) == 6)

    ends = {key: (end.kind, end.error.partition(":")[0]) for key, end in leader.ends().items()}
    assert ends == {
        (1, 0): ("succeeded", ""), (1, 1): ("failed", "MemoryError"), (2, 0): ("succeeded", ""),
        (3, 0): ("failed", "OSError"), (4, 0): ("succeeded", ""), (5, 0): ("succeeded", ""),
    }  # fmt: skip


async def test_a_segfault_is_named_and_fails_only_its_attempt(start, leader, tasks):
    await start(leader)

    leader.assign(python(1, "tasks:segfault_at_1", 3, path=[tasks]), command(2, "sh", "-c", "kill -SEGV $$"))
    await leader.until(lambda: len(leader.ends()) == 4)

    assert {key: end.error for key, end in leader.ends().items() if end.kind == "failed"} == {
        (1, 1): "worker was killed by SIGSEGV",
        (2, 0): "killed by SIGSEGV",
    }


async def test_what_an_attempt_used_is_reported(start, leader, tasks):
    await start(leader)

    leader.assign(python(1, "tasks:burn", path=[tasks], items=msgpack.encode([100])))
    leader.assign(
        command(2, sys.executable, "-c", "x = bytearray(100 << 20); x[::4096] = x[::4096]; sum(range(10**6))")
    )
    leader.assign(python(3, "tasks:same", path=[tasks], job_uid=1))
    await leader.until(lambda: len(leader.ends()) == 3)

    ends = leader.ends()
    for placement in (1, 2):
        assert 5_000 < ends[placement, 0].cpu_us < 10_000_000
        assert 100 << 20 < ends[placement, 0].memory_bytes < 300 << 20
    assert ends[3, 0].memory_bytes < 100 << 20, "the peak is that of the attempt, not of its worker"


# ---- files


@pytest.mark.parametrize("kind", ["python", "command"])
async def test_many_slots_have_files_enough_and_tasks_the_usual_limit(start, leader, tasks, tmp_path, kind):
    go = str(tmp_path / "go")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        executor = await start(leader, slots=60)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if kind == "command":
        wait = 'ulimit -Sn; ulimit -Sn >&2; while ! [ -e "$0" ]; do sleep 0.2; done'
        leader.assign(command(1, "sh", "-c", wait, go, stop=60))
    else:
        leader.assign(python(1, "tasks:print_files_and_wait", 60, path=[tasks], items=msgpack.encode([go] * 60)))
    await leader.until(lambda: all(leader.started(1, index) for index in range(60)), 30.0)
    Path(go).touch()
    await leader.until(lambda: len(leader.ends(1)) == 60, 30.0)

    assert {end.kind for end in leader.ends(1).values()} == {"succeeded"}
    logs = [path.read_text() for path in (executor.data_dir / "logs/1/g").iterdir()]
    assert logs == ["128\n"] * 120
