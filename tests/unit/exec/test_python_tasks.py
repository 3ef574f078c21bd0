"""A real executor against a fake leader: Python tasks, and the workers that run them."""

import hashlib
import signal

import grpc
import grpc.aio
import pytest
from msgspec import msgpack

from tests.unit.exec.fake_leader import eventually, python
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
