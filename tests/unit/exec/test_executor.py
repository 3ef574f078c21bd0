"""A real executor against a fake leader: what it runs, what it reports, and that it kills in time."""

# ruff: noqa: ASYNC221, ASYNC240  a test may block

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest
from msgspec import msgpack

from tests.unit.exec.conftest import alive, descendants
from tests.unit.exec.fake_leader import command, eventually, python
from tiflow.exec import journal
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import ExecutorStub

# ---- python tasks


async def test_two_thousand_tasks_end_once_each_with_their_results(start, leader, tasks):
    await start(leader, slots=2)

    leader.assign(*(python(1 + k, "tasks:same", 500, path=[tasks], job_uid=1) for k in range(4)))
    await leader.until(lambda: len(leader.ends()) == 2_000)

    assert all(leader.results(1 + k) == {i: i for i in range(500)} for k in range(4))
    assert len(leader.events) < 100  # ranges in, ranges out


async def test_tasks_get_their_items(start, leader, tasks):
    await start(leader)

    leader.assign(python(1, "tasks:same", 13, start=10, path=[tasks], items=msgpack.encode(["a", {"b": [1]}, None])))
    await leader.until(lambda: len(leader.ends()) == 3)

    assert leader.results(1) == {10: "a", 11: {"b": [1]}, 12: None}


async def test_a_failure_says_why_and_its_log_has_the_traceback(start, leader, tasks):
    executor = await start(leader)

    leader.assign(python(1, "tasks:fail", 3, path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 3)

    assert leader.ends()[1, 2].error == "ValueError: no 2"
    assert not leader.ends()[1, 2].final
    assert 'raise ValueError(f"no {x}")' in (executor.data_dir / "logs/1/g/2.1.err").read_text()


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("tasks:nothing", "module 'tasks' has no function 'nothing'"),
        ("nowhere:f", "module 'nowhere' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("tasks", "function 'tasks' is not of the form module:function"),
        ("tasks:odd", "result of type object cannot be encoded: return numbers, strings, bytes, lists, dicts or"),
    ],
)
async def test_what_a_retry_cannot_mend_is_final(start, leader, tasks, function, error):
    await start(leader)

    leader.assign(python(1, function, path=[tasks]))
    await leader.until(lambda: leader.ends())

    (end,) = leader.ends().values()
    assert end.kind == "failed"
    assert end.final
    assert end.error.startswith(error)


async def test_a_crash_fails_only_the_task_that_crashed(start, leader, tasks):
    await start(leader)
    leader.assign(python(1, "tasks:same", 300, path=[tasks]))  # so that batches are large
    leader.assign(python(2, "tasks:die_at_5", 200, path=[tasks], job_uid=1))
    leader.assign(python(3, "tasks:leave", path=[tasks]))

    await leader.until(lambda: len(leader.ends()) == 501)

    assert {k: e.error for k, e in leader.ends().items() if e.kind == "failed"} == {
        (2, 5): "worker was killed by SIGKILL",
        (3, 0): "worker ended with exit code 3",
    }
    assert leader.results(2) == {i: i for i in range(200) if i != 5}


async def test_a_task_that_takes_too_long_fails_and_the_rest_of_its_batch_runs(start, leader, tasks):
    await start(leader)
    leader.assign(python(1, "tasks:same", 300, path=[tasks]))
    leader.assign(python(2, "tasks:hang_at_5", 100, path=[tasks], job_uid=1, timeout_ms=300))

    await leader.until(lambda: len(leader.ends()) == 400)

    assert leader.ends()[2, 5].error == "timed out after 0.3 s"
    assert leader.started(2, 5)
    assert leader.results(2) == {i: i for i in range(100) if i != 5}


async def test_what_a_task_prints_is_in_its_own_log(start, leader, tasks):
    executor = await start(leader)

    leader.assign(python(1, "tasks:print_index", 3, path=[tasks]), python(2, "tasks:same", 9, path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 12)

    logs = {path.name: path.read_text() for path in (executor.data_dir / "logs/1/g").iterdir()}
    expected = {f"{i}.1.{s[0]}": f"{s[1]} {i}\n" for i in range(3) for s in (("out", "out"), ("err", "err"))}
    assert logs == expected
    assert leader.results(1) == {i: str(i) for i in range(3)}
    assert not (executor.data_dir / "logs/2").exists()  # no file for a task that wrote nothing


async def test_a_large_result_stays_here_and_can_be_fetched(start, leader, tasks):
    executor = await start(leader)

    leader.assign(python(1, "tasks:big", path=[tasks], items=msgpack.encode([1_000_000])))
    await leader.until(lambda: leader.ends())

    data = msgpack.encode("x" * 1_000_000)
    assert leader.results(1) == {0: [len(data), hashlib.sha256(data).hexdigest()]}
    async with grpc.aio.insecure_channel(executor.address) as channel:
        stub = ExecutorStub(channel)
        request = pb.FetchRequest(job_uid=1, group="g", index=0, attempt=1)
        chunks = [chunk.data async for chunk in stub.FetchResult(request)]
        assert b"".join(chunks) == data
        for bad, code in (
            (pb.FetchRequest(job_uid=1, group="g", index=1, attempt=1), grpc.StatusCode.NOT_FOUND),
            (pb.FetchRequest(job_uid=1, group="../1/g", index=0, attempt=1), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                [chunk async for chunk in stub.FetchResult(bad)]
            assert refusal.value.code() is code


async def test_a_resubmitted_job_runs_the_code_that_is_on_disk_now(start, leader, tasks):
    await start(leader)
    leader.assign(python(1, "tasks:same", path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 1)

    (tasks / "tasks.py").write_text("def same(x): return 'new'")
    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 2)

    assert leader.results(2) == {0: "new"}


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
    await eventually(lambda: not alive(pid), 2.0)


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

    assert time.monotonic() - revoked < 1.0
    assert {e.kind for e in leader.ends().values()} == {"canceled"}
    assert (tmp_path / "mark.tidy").exists()
    await eventually(lambda: not any(alive(int(pid)) for pid in mark.read_text().split()), 2.0)
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

    assert 0.25 < time.monotonic() - revoked < 1.5
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


# ---- workers


async def test_workers_are_replaced_after_some_tasks_and_none_is_lost(start, leader, tasks):
    await start(leader, slots=2, worker={"tasks-max": 50})

    leader.assign(python(1, "tasks:pid", 1_000, path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 1_000)

    assert {end.kind for end in leader.ends().values()} == {"succeeded"}
    assert len(set(leader.results(1).values())) >= 1_000 / (50 + 256)


async def test_a_worker_that_grew_is_replaced(start, leader, tasks):
    await start(leader, worker={"growth-max": "100MiB"})

    leader.assign(python(1, "tasks:pid", path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 1)
    leader.assign(python(2, "tasks:leak", path=[tasks], items=msgpack.encode([200]), job_uid=1))
    await leader.until(lambda: len(leader.ends()) == 2)
    leader.assign(python(3, "tasks:pid", path=[tasks], job_uid=1))
    await leader.until(lambda: len(leader.ends()) == 3)

    assert leader.results(1)[0] == leader.results(2)[0] != leader.results(3)[0]


async def test_modules_are_imported_before_the_first_task(start, leader, tasks):
    executor = await start(leader, slots=2, worker={"preload": ["colorsys", "no_such_module"]})
    workers = [executor.data_dir / f"logs/worker-{slot}.log" for slot in range(2)]
    await eventually(lambda: all(log.exists() and "No module named" in log.read_text() for log in workers))

    leader.assign(python(1, "tasks:is_imported", path=[tasks], items=msgpack.encode(["colorsys"])))
    leader.assign(python(2, "tasks:is_imported", path=[tasks], items=msgpack.encode(["tabnanny"])))
    await leader.until(lambda: len(leader.ends()) == 2)

    assert (leader.results(1)[0], leader.results(2)[0]) == (True, False)


async def test_a_task_has_all_its_time_though_its_worker_takes_long_to_be_ready(start, leader, tasks, monkeypatch):
    (tasks / "slow_import.py").write_text("import time; time.sleep(1)")
    monkeypatch.setenv("PYTHONPATH", str(tasks))
    await start(leader, worker={"preload": ["slow_import"], "tasks-max": 1})

    leader.assign(python(1, "tasks:same", 2, path=[tasks], timeout_ms=300))
    leader.assign(python(2, "tasks:hang_at_5", 6, start=5, path=[tasks], timeout_ms=300))
    await leader.until(lambda: len(leader.ends()) == 3)

    assert leader.results(1) == {0: 0, 1: 1}
    assert leader.ends()[2, 5].error == "timed out after 0.3 s"


async def test_a_process_that_forks_in_a_process_that_a_task_forked_keeps_its_files(start, leader, tasks, tmp_path):
    await start(leader)

    leader.assign(python(1, "tasks:fork_twice", path=[tasks], items=msgpack.encode([str(tmp_path / "file")])))
    await leader.until(leader.ends)

    assert leader.results(1) == {0: "x" * 30}


async def test_a_sigterm_that_nobody_asked_for_stops_no_task_and_forked_processes_get_theirs(start, leader, tasks):
    await start(leader)

    leader.assign(python(1, "tasks:signal_itself", path=[tasks]), python(2, "tasks:fork_and_terminate", path=[tasks]))
    await leader.until(lambda: len(leader.ends()) == 2)

    assert (leader.results(1), leader.results(2)) == ({0: 0}, {0: -signal.SIGTERM})


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
    executor = await start(leader, data_dir=small_disk / "e", retention={"disk-reserve": "2MiB"})
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
    executor = await start(leader, data_dir=small_disk / "e", retention={"disk-reserve": "0B"})
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
    await eventually(lambda: ends(journal.read(str(executor.data_dir / "journal"))[1]) >= {(4, 0)})


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
    await leader.until(lambda: len(leader.event_seqs) == 2)
    seqs = list(leader.event_seqs)

    second = await lead(term=2)
    leader.send(redirect=pb.Redirect(leader=second.address))
    await second.until(lambda: len(second.ends()) == 100)

    assert list(second.event_seqs)[:2] == seqs
    assert all(second.event_seqs[seq] == leader.event_seqs[seq] for seq in seqs)
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


# ---- the lease, and deaths


async def test_the_children_die_at_the_ttl_when_the_lease_is_not_acknowledged(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=700)
    await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]

    leader.granting = False
    took_s = await eventually(lambda: not any(map(alive, pids)), 3.0)

    assert 0.3 < took_s < 1.0
    await leader.until(lambda: leader.hellos[-1].incarnation == 0 and len(leader.hellos) > 1)
    leader.granting = True
    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(2))
    assert not leader.ends(1)


async def test_the_guardian_kills_at_the_ttl_when_the_agent_is_stopped(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=700)
    executor = await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]

    executor.signal(signal.SIGSTOP)
    took_s = await eventually(lambda: not any(map(alive, pids)), 3.0)
    executor.signal(signal.SIGCONT)

    assert took_s < 1.2
    await leader.until(lambda: len(leader.hellos) > 1 and leader.hellos[-1].incarnation == 0)
    assert not leader.ends(1)  # what died with the lease is not reported as failed
    leader.assign(python(2, "tasks:same", path=[tasks]))
    await leader.until(lambda: leader.ends(2))


async def test_the_children_die_with_the_agent_and_a_restart_waits_for_that(start, leader, tasks, tmp_path):
    executor = await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]

    executor.signal(signal.SIGKILL)
    took_s = await eventually(lambda: not any(map(alive, pids)))
    assert took_s < 1.0

    executor.process.wait()
    hellos = len(leader.hellos)
    await start(leader, data_dir=executor.data_dir, wait=False)
    await leader.until(lambda: len(leader.hellos) > hellos)
    assert leader.hellos[-1].uid == leader.hellos[0].uid
    assert leader.hellos[-1].incarnation == 0


async def test_the_death_of_the_agent_is_reported_when_its_children_are_dead(start, lead, leader, tasks, tmp_path):
    second = await lead(term=2)
    executor = await start(leader)
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]
    leader.redirect = second.address

    executor.signal(signal.SIGKILL)
    await second.until(lambda: second.reports, 3.0)

    assert not any(map(alive, pids))
    (report,) = second.reports
    first = leader.hellos[0]
    assert (report.uid, report.boot_id, report.incarnation) == (first.uid, first.boot_id, leader.incarnation)
    assert (report.cluster_id, list(report.held)) == ("c1", [])
    executor.process.wait()


async def test_a_report_that_nobody_takes_is_given_up_and_a_restart_need_not_wait_longer(start, leader, tasks):
    executor = await start(leader)
    leader.assign(python(1, "tasks:same", path=[tasks]))  # who has read no welcome has nothing to report
    await leader.until(leader.ends)
    leader.refuse = pb.Refused(code="FAILED_PRECONDITION", reason="another cluster")
    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await leader.until(lambda: leader.reports, 3.0)
    leader.refuse = None

    started = time.monotonic()
    await start(leader, data_dir=executor.data_dir, wait=False)
    await leader.until(lambda: len(leader.hellos) == 2, 5.0)

    assert time.monotonic() - started < 3.0


async def finished_without_acknowledgement(start, leader, tasks):
    """An executor with ends of placement 1 that were sent, and of 2 that were not; none is acknowledged."""
    executor = await start(leader)
    leader.acking = False
    leader.assign(python(1, "tasks:same", 100, path=[tasks]))
    await leader.until(lambda: len(leader.event_seqs) == 2)
    leader.assign(python(2, "tasks:same", 100, path=[tasks]))
    await eventually(lambda: ends(journal.read(str(executor.data_dir / "journal"))[1]) == ALL, 10.0)
    assert not leader.ends(2)
    return executor


ALL = {(placement, index) for placement in (1, 2) for index in range(100)}


def ends(batches):
    return {(e.placement, i) for batch in batches for e in batch.events for i in range(e.start, e.stop)}


async def test_what_had_ended_is_reported_before_the_death_of_the_agent(start, leader, tasks):
    executor = await finished_without_acknowledgement(start, leader, tasks)

    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await leader.until(lambda: len(leader.left) and leader.reports)

    assert ends([pb.Events(events=leader.left)]) == ALL
    assert {event.kind for event in leader.left} == {"succeeded"}
    assert leader.reports[0].incarnation == leader.incarnation


async def test_what_the_agent_had_not_read_when_it_died_is_reported(start, lead, tasks, tmp_path):
    leader = await lead(ttl_ms=20_000)
    executor = await start(leader)
    go = tmp_path / "go"
    leader.assign(python(1, "tasks:end_after", 2, path=[tasks], items=msgpack.encode([str(go)] * 2)))
    await leader.until(lambda: leader.started(1))
    (worker,) = descendants(executor.guardian)
    mark = executor.data_dir / "work/0/mark"
    assert mark.exists()

    executor.signal(signal.SIGSTOP)
    go.touch()
    await eventually(lambda: not mark.exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] == "S", 10.0)
    executor.signal(signal.SIGKILL)
    executor.process.wait()
    await leader.until(lambda: leader.left)

    assert [(e.placement, e.start, e.stop, e.kind, e.results) for e in leader.left] == [
        (1, 0, 1, "succeeded", msgpack.encode([msgpack.encode("ended")]))
    ]


async def test_what_had_ended_is_reported_by_the_successor_before_it_registers(start, leader, tasks):
    executor = await finished_without_acknowledgement(start, leader, tasks)
    incarnation = leader.incarnation

    executor.process.send_signal(signal.SIGSTOP)  # then nobody can report
    for pid in (executor.guardian, executor.process.pid):
        os.kill(pid, signal.SIGKILL)
    executor.process.wait()
    assert not leader.reports
    await start(leader, data_dir=executor.data_dir, wait=False)
    await leader.until(lambda: len(leader.hellos) == 2)

    assert ends([pb.Events(events=leader.left)]) == ALL
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
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]
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
    mark = tmp_path / "mark"
    leader.assign(python(1, "tasks:sleep_with_child", path=[tasks], items=msgpack.encode([str(mark)])))
    await eventually(mark.exists)
    pids = [int(pid) for pid in mark.read_text().split()]
    executor.seen.update(descendants(executor.process.pid))

    os.kill(executor.guardian, signal.SIGSTOP)
    leader.granting = False

    assert await executor.wait() == 70
    await eventually(lambda: not any(map(alive, pids)), 1.0)


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


# ---- what a user gets wrong


def test_slots_for_which_there_are_not_enough_files_are_refused(monkeypatch):
    from tiflow.errors import FailedPrecondition
    from tiflow.exec import main

    monkeypatch.setattr(main.procs, "raise_open_files", lambda: (1_024, 4_096))

    with pytest.raises(FailedPrecondition, match="slots = 700: they need 5700 open files, and this process may have"):
        main._have_files_for(700)


async def test_a_port_in_use_is_named(start, leader):
    first = await start(leader)
    started = time.monotonic()

    second = await start(leader, wait=False, addr=first.address)

    assert await second.wait() == 5
    assert time.monotonic() - started < 5


async def test_a_data_directory_in_use_is_refused(start, leader, monkeypatch, tmp_path):
    from tiflow.errors import FailedPrecondition
    from tiflow.exec import main

    first = await start(leader)

    message = f"data-dir = {first.data_dir}: another executor uses it"
    with pytest.raises(FailedPrecondition, match=message), main.lock(str(first.data_dir), wait_s=0.2):
        pass
