"""A client's pool keeps the promises of `concurrent.futures`. What is asked here is what CPython's own tests ask of
its executors (Lib/test/test_concurrent_futures), in our words, and what is ours beyond."""

import asyncio
import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, as_completed
from pathlib import Path
from typing import Any

import pytest

import tiflow
from tests.cluster.harness import REPOSITORY, SLOWDOWN, Cluster, eventually
from tests.cluster.work import pooled
from tests.cluster.work.pooled import notes, square
from tiflow.errors import AlreadyExists, InvalidArgument, NotFound
from tiflow.jobs import calls
from tiflow.pool import BrokenPool, PoolExecutor, TaskFailed
from tiflow.sched.model import RetryPolicy

LONG_S = 30 * SLOWDOWN  #: no future takes so long


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> tiflow.Client:
    return cluster.client()


@pytest.fixture
def pool(client: tiflow.Client) -> Iterator[PoolExecutor]:
    with client.executor() as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Opens it: what holds may end. It is open when the test has ended, or a failing one would wait for ever."""
    yield (tmp_path / "gate").touch
    (tmp_path / "gate").touch()


@pytest.fixture
def hold(pool: PoolExecutor, tmp_path: Path, gate: object) -> Callable[[str], futures.Future[str]]:
    """A call that runs until the gate is opened."""
    return lambda word: pool.submit(pooled.hold, str(tmp_path / "notes"), word, str(tmp_path / "gate"))


def fill(hold: Callable[[str], futures.Future[str]], tmp_path: Path) -> list[futures.Future[str]]:
    """Both slots of the cluster are taken by calls that are known to run."""
    running = [hold("a"), hold("b")]
    eventually(lambda: set(notes(tmp_path / "notes")) == {"a", "b"})
    eventually(lambda: all(future.running() for future in running))
    return running


# Submitting.


def test_a_call_gets_its_arguments_whatever_they_are_called(pool: PoolExecutor):
    assert pool.submit(pow, 2, 8).result(LONG_S) == 256
    assert pool.submit(pooled.capture, 1, self=2, fn=3).result(LONG_S) == ((1,), {"self": 2, "fn": 3})


def test_calls_run_in_other_processes_and_arguments_are_those_of_the_time_of_submission(pool: PoolExecutor):
    argument = [1]
    future = pool.submit(pooled.capture, argument)
    argument.append(2)

    assert future.result(LONG_S) == (([1],), {})
    assert pool.submit(pooled.pid).result(LONG_S) != pooled.pid()


def test_functions_and_classes_that_cannot_be_imported_travel_with_the_call(pool: PoolExecutor):
    factor = 7

    class Local(Exception):
        def __eq__(self, other: object) -> bool:
            return type(other) is Local and other.args == self.args

        __hash__ = None  # type: ignore[assignment]

    def local(x: int) -> Any:
        if x < 0:
            raise Local(x)
        return Local(x * factor)

    assert pool.submit(local, 6).result(LONG_S) == Local(42)
    assert list(pool.map(lambda x: x + factor, range(3))) == [7, 8, 9]
    with pytest.raises(Local):
        pool.submit(local, -1).result(LONG_S)


def test_what_is_submitted_together_is_a_few_groups_and_their_results_are_let_go(client: tiflow.Client):
    with client.executor() as pool:
        assert [future.result(LONG_S) for future in [pool.submit(square, i) for i in range(2_000)]][-1] == 1_999**2
        assert sum(pool.map(square, range(500))) == sum(i * i for i in range(500))
        pool.submit(square, 1).result(LONG_S)
        info = client.get(pool.id)
        groups = int(info.groups[-1].name[1:])

        assert info.type == "pool"
        assert info.total == info.succeeded == 2_501
        assert info.dropped.total >= 2_000, "their group was dropped"
        assert groups < 100


def test_results_and_arguments_may_be_large(pool: PoolExecutor):
    sizes = [255, 256, 257, 100_000, 3_000_000]

    assert [len(value) for value in pool.map(pooled.blob, sizes)] == sizes
    assert list(pool.map(len, [bytes(1_500_000)] * 4)) == [1_500_000] * 4
    with pytest.raises(InvalidArgument, match=r"arguments have .* bytes; at most .*: pass file names instead"):
        pool.submit(len, bytes(5_000_000)).result(LONG_S)


def test_what_cannot_be_pickled_is_told_by_the_future_and_the_pool_goes_on(pool: PoolExecutor):
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock'"):
        pool.submit(square, threading.Lock()).result(LONG_S)
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock'"):
        pool.submit(pooled.lock).result(LONG_S)

    assert pool.submit(square, 3).result(LONG_S) == 9


# Exceptions.


def test_an_exception_is_raised_again_with_the_remote_traceback_as_its_cause(pool: PoolExecutor):
    future = pool.submit(pooled.inverse, 0)

    with pytest.raises(ZeroDivisionError) as caught:
        future.result(LONG_S)

    assert future.exception() is caught.value
    trace = str(caught.value.__cause__)
    assert "in inverse" in trace
    assert "return 1 / x" in trace
    assert "calls.py" not in trace, "our own frames are of no use"


def test_an_exception_that_cannot_be_sent_is_described(pool: PoolExecutor):
    for function, words in ((pooled.heavy, "Heavy: holds a lock"), (pooled.picky, "Picky: one, other")):
        with pytest.raises(calls.RemoteError, match=words) as caught:
            pool.submit(function).result(LONG_S)
        assert "pooled.py" in str(caught.value.__cause__)


def test_an_exit_is_an_exception_of_the_call(pool: PoolExecutor):
    with pytest.raises(SystemExit):
        pool.submit(sys.exit, 3).result(LONG_S)


def test_a_process_that_dies_fails_its_call_and_not_the_pool(client: tiflow.Client):
    with client.executor(retry=RetryPolicy(attempts_max=1)) as pool:
        with pytest.raises(TaskFailed, match="worker ended with exit code 3"):
            pool.submit(pooled.die).result(LONG_S)
        assert pool.submit(square, 3).result(LONG_S) == 9
        job = pool.id
    assert client.get(job).state == "Failed", "what went wrong can be looked at"
    client.delete(job)


def test_a_call_that_takes_too_long_fails(client: tiflow.Client, tmp_path: Path):
    with client.executor(timeout_s=0.2, retry=RetryPolicy(attempts_max=1)) as pool:
        future = pool.submit(pooled.hold, str(tmp_path / "notes"), "a", str(tmp_path / "never"))
        with pytest.raises(TaskFailed, match=r"timed out after 0\.2 s"):
            future.result(LONG_S)
        assert notes(tmp_path / "notes") == ["a", "a-stopped"]


# Mapping.


def test_map_is_in_order_and_takes_several_iterables(pool: PoolExecutor):
    assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(pool.map(pow, [2, 3, 4], [1])) == [2], "as long as the shortest"
    assert list(pool.map(square, [])) == []


@pytest.mark.parametrize("chunksize", [1, 6, 50, 100])
def test_map_by_chunks_is_the_same(pool: PoolExecutor, chunksize: int):
    assert list(pool.map(pow, range(40), range(40), chunksize=chunksize)) == list(map(pow, range(40), range(40)))


def test_map_refuses_chunks_of_nothing(pool: PoolExecutor):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pool.map(square, range(3), chunksize=-1)


def test_map_yields_what_comes_before_an_exception_and_then_raises_it(pool: PoolExecutor):
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])

    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_reads_its_iterables_at_once_and_its_results_when_asked(pool: PoolExecutor):
    read = []

    def numbers() -> Iterator[int]:
        for number in range(5):
            read.append(number)
            yield number

    results = pool.map(square, numbers())

    assert read == [0, 1, 2, 3, 4]
    assert next(results) == 0
    assert list(results) == [1, 4, 9, 16]


def test_map_stops_in_time(pool: PoolExecutor, tmp_path: Path, gate: Callable[[], None]):
    file, opened = str(tmp_path / "notes"), str(tmp_path / "gate")
    results = pool.map(pooled.hold, [file] * 9, map(str, range(9)), [opened] * 9, timeout=0.5)

    with pytest.raises(TimeoutError):
        list(results)

    gate()
    pool.shutdown()
    ran = [word for word in notes(file) if word.isdigit()]
    assert len(ran) <= 4, "what had not started is canceled"


def test_whoever_stops_reading_a_map_cancels_the_rest(client, pool, gate, tmp_path: Path):
    file = str(tmp_path / "notes")
    gates = [str(REPOSITORY)] + [str(tmp_path / "gate")] * 20
    results = pool.map(pooled.hold, [file] * 21, map(str, range(21)), gates)
    assert next(results) == "0"

    results.close()

    eventually(lambda: client.get(pool.id).canceled >= 16)
    gate()
    pool.shutdown()
    assert len([word for word in notes(file) if word.isdigit()]) <= 5


# Canceling.


def test_a_call_that_waits_is_canceled_at_once_and_never_runs(pool, hold, gate, tmp_path: Path):
    running = fill(hold, tmp_path)
    called = []
    waiting = hold("c")
    waiting.add_done_callback(called.append)

    assert waiting.cancel()
    assert waiting.cancel(), "twice is no harm"
    assert waiting.cancelled()
    assert called == [waiting]
    assert futures.wait([waiting], timeout=LONG_S).done == {waiting}
    with pytest.raises(CancelledError):
        waiting.result()
    gate()
    assert [future.result(LONG_S) for future in running] == ["a", "b"]
    pool.shutdown()
    assert set(notes(tmp_path / "notes")) == {"a", "b", "a-ended", "b-ended"}


def test_some_of_many_calls_are_canceled(pool, hold, gate, tmp_path: Path):
    running = fill(hold, tmp_path)
    waiting = [pool.submit(square, i) for i in range(100)]

    canceled = [future for future in waiting[10:90:2] if future.cancel()]

    assert len(canceled) == 40
    gate()
    assert futures.wait(waiting + running, timeout=LONG_S).not_done == set()
    assert [future.result() for future in waiting if not future.cancelled()] == [
        i * i for i in range(100) if i not in range(10, 90, 2)
    ]


def test_a_call_that_runs_is_canceled_only_by_force(pool, hold, gate, tmp_path: Path):
    first, second = fill(hold, tmp_path)

    assert not first.cancel()
    assert not pool.cancel(first)
    assert pool.cancel(first, force=True)

    with pytest.raises(CancelledError, match="it ran, and was stopped"):
        first.result()
    eventually(lambda: "a-stopped" in notes(tmp_path / "notes"))
    assert pool.submit(square, 5).result(LONG_S) == 25, "its slot is free"
    gate()
    assert second.result(LONG_S) == "b", "its neighbour runs on"
    assert not pool.cancel(second, force=True), "it has ended"
    assert "b-stopped" not in notes(tmp_path / "notes")


# Shutting down.


def test_nothing_is_taken_after_the_shutdown(client: tiflow.Client):
    pool = client.executor()
    future = pool.submit(square, 2)
    pool.shutdown()

    assert future.done()
    assert future.result() == 4
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(square, 2)
    with pytest.raises(RuntimeError):
        pool.map(square, [2])
    pool.shutdown()
    with pytest.raises(NotFound):
        client.get(pool.id)


def test_a_pool_that_was_never_used_leaves_nothing(client: tiflow.Client):
    with client.executor(id="unused") as pool:
        assert client.get(pool.id).state == "Created"
        with pytest.raises(AlreadyExists):
            client.executor(id="unused")

    with pytest.raises(NotFound):
        client.get("unused")


def test_what_was_submitted_ends_even_if_nobody_waits_for_the_shutdown(pool, hold, gate, tmp_path: Path):
    fill(hold, tmp_path)
    waiting = pool.submit(square, 4)

    pool.shutdown(wait=False)

    assert not waiting.done()
    gate()
    assert waiting.result(LONG_S) == 16


@pytest.mark.parametrize("wait", [True, False])
def test_what_waits_is_canceled_by_the_shutdown_if_asked(pool, hold, gate, tmp_path: Path, wait: bool):
    running = fill(hold, tmp_path)
    waiting = [pool.submit(square, i) for i in range(50)]
    opener = threading.Timer(0.2, gate)
    opener.start()

    pool.shutdown(wait=wait, cancel_futures=True)

    assert all(future.cancelled() for future in waiting)
    assert [future.result(LONG_S) for future in running] == ["a", "b"]
    opener.join()


def test_a_pool_that_nobody_holds_any_more_ends(client: tiflow.Client):
    pool = client.executor()
    id, future = pool.id, pool.submit(square, 6)
    del pool

    assert future.result(LONG_S) == 36
    del future

    def gone() -> bool:
        try:
            client.get(id)
        except NotFound:
            return True
        return False

    eventually(gone)


# With others.


def test_futures_can_be_waited_for(pool, hold, gate, tmp_path: Path):
    running = fill(hold, tmp_path)
    gate()
    fails = pool.submit(pooled.inverse, 0)

    first = futures.wait([*running, fails], timeout=LONG_S, return_when=FIRST_COMPLETED)
    assert first.done
    failed = futures.wait([*running, fails], timeout=LONG_S, return_when=FIRST_EXCEPTION)
    assert fails in failed.done
    assert futures.wait([*running, fails], timeout=LONG_S, return_when=ALL_COMPLETED).not_done == set()
    assert set(as_completed([*running, fails], timeout=LONG_S)) == {*running, fails}


def test_waiting_ends_in_time(pool, hold, tmp_path: Path):
    first, _ = fill(hold, tmp_path)

    with pytest.raises(TimeoutError):
        first.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        list(as_completed([first], timeout=0.05))
    assert futures.wait([first], timeout=0.05).not_done == {first}


async def test_asyncio_works_with_it(pool: PoolExecutor):
    loop = asyncio.get_running_loop()

    async with asyncio.timeout(LONG_S):
        assert await loop.run_in_executor(pool, square, 8) == 64
        assert await asyncio.wrap_future(pool.submit(square, 9)) == 81
        values = await asyncio.gather(*(loop.run_in_executor(pool, square, i) for i in range(50)))
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(pool, pooled.inverse, 0)
    assert values == [i * i for i in range(50)]


def test_callbacks_may_submit(pool: PoolExecutor):
    results: list[futures.Future[int]] = []
    second = threading.Event()

    def then(future: futures.Future[int]) -> None:
        results.append(pool.submit(square, future.result()))
        second.set()

    pool.submit(square, 3).add_done_callback(then)

    assert second.wait(LONG_S)
    assert results[0].result(LONG_S) == 81


def test_many_threads_may_submit(pool: PoolExecutor):
    def work(base: int) -> int:
        return sum(pool.submit(square, base + i).result(LONG_S) for i in range(20))

    with futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [sum((b + i) ** 2 for i in range(20)) for b in range(8)]


# What breaks it.


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_pool_whose_job_is_gone_is_broken(client: tiflow.Client, tmp_path: Path, end: str):
    pool = client.executor()
    waiting = pool.submit(pooled.hold, str(tmp_path / "notes"), "a", str(tmp_path / "never"))
    eventually(lambda: notes(tmp_path / "notes"))

    client.cancel(pool.id)
    with pytest.raises(BrokenPool, match=f"the job of the pool, {pool.id}, is Cancel"):
        waiting.result(LONG_S)
    if end == "delete":
        client.delete(pool.id)

    with pytest.raises(BrokenPool):
        pool.submit(square, 2)
    pool.shutdown()
    assert isinstance(waiting.exception(), futures.BrokenExecutor)


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("PYTHON", "3.7", r"the client runs Python 3\.7, this executor Python 3\.\d+: the minor versions must be"),
        (
            "CLOUDPICKLE",
            "1.6.0",
            r"the client has cloudpickle 1\.6\.0, this executor \d.*: the major versions must be",
        ),
    ],
)
def test_a_client_whose_pickles_do_not_fit_is_refused_by_name(client, monkeypatch, name, version, words):
    monkeypatch.setattr(calls, name, version)

    with client.executor() as pool, pytest.raises(TaskFailed, match=words):
        pool.submit(square, 2).result(LONG_S)


def test_a_function_that_executors_cannot_import_is_named(client: tiflow.Client, tmp_path: Path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def function():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("only_here").function

    with (
        client.executor(path=[]) as pool,
        pytest.raises(
            TaskFailed, match="the function cannot be loaded here: ModuleNotFoundError: No module named 'only_here'"
        ),
    ):
        pool.submit(function).result(LONG_S)
    with client.executor() as pool:
        assert pool.submit(function).result(LONG_S) is None, "its directory is in the path of this process"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"client_ttl_s": 0.5}, r"client_ttl_s = 0\.5: must be 1 to 86400"),
        ({"on_lost_result": "weep"}, 'on_lost_result = "weep": must be rerun or fail'),
        ({"workers": 3}, "workers: is not an option of a pool; there are id, path, priority"),
        ({"selectors": ["a=b=c"]}, "selectors"),
    ],
)
def test_an_option_that_cannot_be_is_refused(client: tiflow.Client, options: dict[str, Any], words: str):
    with pytest.raises(InvalidArgument, match=words):
        client.executor(**options)


# Scripts and notebooks.


def run_python(cluster: Cluster, *argv: str, input: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *argv],
        input=input,
        text=True,
        capture_output=True,
        check=False,
        timeout=LONG_S,
        env={"PYTHONPATH": str(REPOSITORY), "TIFLOW_MASTER_ADDRS": cluster.master_addrs, "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs(cluster: Cluster):
    assert "the 10 longest modules" in run_python(cluster, str(REPOSITORY / "examples" / "pool.py"))


CELLS = [
    "import os, tiflow\npool = tiflow.Client(os.environ['TIFLOW_MASTER_ADDRS']).executor()",
    "class Odd(Exception):\n    pass",
    "def half(x):\n    if x % 2:\n        raise Odd(x)\n    return x // 2 + OFFSET",
    "OFFSET = 100\nprint(pool.submit(half, 8).result(30))",
    "OFFSET = 200\nprint(pool.submit(half, 8).result(30))",  # a cell that is run again sees what it would see here
    "try:\n    pool.submit(half, 7).result(30)\nexcept Odd as error:\n    print('odd', error)",
]


def test_a_notebook_can_use_it(cluster: Cluster):
    """Its cells are run one by one in __main__, which has no file."""
    notebook = (
        f"import __main__\nfor cell in {CELLS!r}:\n    exec(compile(cell, '<cell>', 'exec'), __main__.__dict__)\n"
    )

    assert run_python(cluster, "-c", notebook).split("\n") == ["104", "204", "odd 7", ""]


def test_an_interpreter_that_ends_waits_for_its_calls(cluster: Cluster):
    script = (
        "import os, time, tiflow\n"
        "def slow(x):\n    time.sleep(0.5)\n    return x\n"
        "pool = tiflow.Client(os.environ['TIFLOW_MASTER_ADDRS']).executor()\n"
        "pool.submit(slow, 42).add_done_callback(lambda future: print('got', future.result()))\n"
    )

    assert run_python(cluster, "-", input=script) == "got 42\n"


def test_what_is_sent_is_a_pickle_by_name_where_it_can_be():
    assert len(calls.dumps(square)) < 100
    assert pickle.loads(calls.dumps(lambda x: x + 1))(1) == 2
