"""Job masters and workers with the real runtime, on the harness of `tiflow.testing`."""

import asyncio
import subprocess
import sys
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from tiflow import testing
from tiflow.errors import NotFound, OutcomeUnknown, Unavailable
from tiflow.jobs.framework import Final, JobMaster, Request, Worker, WorkerView, runtime
from tiflow.jobs.framework.mailbox import QUEUE_MESSAGES_MAX


class Counter(Worker):
    """Counts to `to`, one a second, and tells the job master each number."""

    async def run(self) -> int:
        done = await self.load(self.name, 0)
        while done < self.config["to"]:
            await asyncio.sleep(1)
            await self.send(done + 1)
            await self.flush()  # before the checkpoint that says that it was sent
            done += 1
            await self.save(self.name, done)
            self.report({"done": done})
            self.gauge("done", done, part=self.name)
        return int(done)


class Count(JobMaster):
    worker = Counter
    happened: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def check(cls, config: dict[str, Any]) -> None:
        if config.get("to", 0) < 1:
            raise ValueError("to: must be 1 or more")

    async def on_start(self) -> None:
        self.heard: dict[str, set[int]] = {}

    async def run(self) -> int:
        await self.start_workers("part", [{"to": self.config["to"]}] * self.config.get("parts", 2), attempts=1_000)
        await self.workers_ended()
        return sum(worker.result for worker in self.workers.values())

    async def on_message(self, sender: str, message: Any) -> None:
        self.heard.setdefault(sender, set()).add(message)

    async def on_started(self, worker: WorkerView) -> None:
        self.happened.append(("started", worker.name))

    async def on_finished(self, worker: WorkerView) -> None:
        self.happened.append(("finished", worker.name))

    async def on_failed(self, worker: WorkerView) -> None:
        self.happened.append(("failed", f"{worker.name}: {worker.error}"))

    async def on_lost(self, worker: WorkerView) -> None:
        self.happened.append(("lost", worker.name))


@pytest.fixture(autouse=True)
def _nothing_happened() -> None:
    Count.happened.clear()


def test_workers_run_to_their_end_and_the_master_returns_their_sum():
    async def scenario() -> None:
        async with testing.Job(Count, {"to": 10, "parts": 3}) as job:
            assert await job.result() == 30
            assert {name: worker.state for name, worker in job.workers.items()} == {
                f"part/{n}": "succeeded" for n in range(3)
            }
            assert asyncio.get_running_loop().time() < 15

    testing.run(scenario())
    assert sorted(Count.happened) == sorted((what, f"part/{n}") for what in ("started", "finished") for n in range(3))


def test_a_new_job_master_finds_its_workers_with_their_status_and_restarts_none():
    seen: list[dict[str, Any]] = []

    class Watching(Count):
        async def run(self) -> int:
            seen.append({name: worker.status for name, worker in self.workers.items()})
            return await super().run()

    async def scenario() -> None:
        async with testing.Job(Watching, {"to": 20}) as job:
            await job.until(lambda: len(job.workers) == 2 and job.worker("part/1").status.get("done", 0) >= 5)
            job.kill()
            assert await job.result() == 40
            assert job.attempt == 2

    testing.run(scenario())
    assert seen[0] == {}
    assert min(status["done"] for status in seen[1].values()) >= 4
    assert [what for what, _ in Count.happened if what in ("failed", "lost")] == []


def test_workers_that_die_go_on_from_their_checkpoints_and_the_master_is_told():
    async def scenario() -> None:
        async with testing.Job(Count, {"to": 10}) as job:
            await job.until(lambda: job.checkpoints.get("part/0", 0) >= 4)
            job.kill("part/0")
            job.lose(job.worker("part/1").executor)
            assert await job.result() == 20
            assert (job.worker("part/0").failures, job.worker("part/1").losses) == (1, 1)

    testing.run(scenario())
    assert ("failed", "part/0: killed by SIGKILL") in Count.happened
    assert ("lost", "part/1") in Count.happened
    assert Count.happened.count(("started", "part/0")) == 2


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1 << 30))
def test_whatever_is_lost_or_dies_each_number_is_heard_and_none_is_skipped(data: st.DataObject, seed: int):
    """A worker ends when all that it sent is acknowledged; what an attempt of the job master has acknowledged, it
    keeps in checkpoints."""

    class Keeping(Count):
        async def on_start(self) -> None:
            self.heard = {name: set(numbers) for name, numbers in (await self.load("heard", {})).items()}

        async def run(self) -> dict[str, list[int]]:
            await self.start_workers("part", [{"to": 8}] * 2, attempts=1_000)
            await self.workers_ended()
            return {name: sorted(numbers) for name, numbers in self.heard.items()}

        async def on_message(self, sender: str, message: Any) -> None:
            await super().on_message(sender, message)
            await self.save("heard", {name: sorted(numbers) for name, numbers in self.heard.items()})

    async def scenario() -> None:
        faults = data.draw(st.sampled_from([0.0, 0.1, 0.4]))
        executors = [f"e{number}" for number in range(20)]
        async with testing.Job(
            Keeping, {"to": 8}, faults=faults, rng=Random(seed), latency_s=0.02, executors=executors
        ) as job:
            for _ in range(data.draw(st.integers(0, 6))):
                await asyncio.sleep(data.draw(st.floats(0, 4)))
                if job.state != "Running" or not job.workers:
                    break
                what = data.draw(st.sampled_from(["worker", "executor", "drain", "pause", "master"]))
                victim = job.worker(data.draw(st.sampled_from(["part/0", "part/1"])))
                match what:
                    case "worker" if victim.state == "running":
                        job.kill(victim.name)
                    case "executor" if victim.executor in job.executors:
                        job.lose(victim.executor)
                    case "drain" if victim.executor in job.executors:
                        job.drain(victim.executor)
                    case "pause":
                        job.pause()
                        await job.until(lambda: job.state in ("Paused", "Finished"))
                        if job.state == "Paused":
                            job.resume()
                    case "master" if job.attempt == 1:
                        job.kill()
            assert await job.result() == {f"part/{n}": list(range(1, 9)) for n in range(2)}

    testing.run(scenario())


class Echo(Worker):
    async def on_start(self) -> None:
        self.got: list[Any] = []
        self.route("GET", "/got", self._show)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def _show(self, request: Request) -> list[Any]:
        return self.got

    async def on_message(self, sender: str, message: Any) -> None:
        self.got.append(message)
        await asyncio.sleep(0.01)


class Talk(JobMaster):
    worker = Echo

    async def run(self) -> list[Any]:
        await self.start_worker("echo", {})
        for number in range(self.config["messages"]):
            await self.send("echo", number)
            self.report({"sent": number + 1})
        await self.flush()
        got: list[Any] = json.decode((await self.request("echo", "GET", "/got")).body)
        return got


@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_messages_come_in_order_and_not_twice_while_nobody_dies(faults: float):
    async def scenario() -> None:
        async with testing.Job(Talk, {"messages": 500}, faults=faults) as job:
            assert await job.result() == list(range(500))

    testing.run(scenario())


def test_who_sends_faster_than_the_other_can_hear_waits():
    async def scenario() -> None:
        async with testing.Job(Talk, {"messages": 3 * QUEUE_MESSAGES_MAX}) as job:
            await job.until(lambda: job.status.get("sent", 0) >= QUEUE_MESSAGES_MAX)
            sent = job.status["sent"]
            await asyncio.sleep(0.005)
            assert sent <= job.status["sent"] <= QUEUE_MESSAGES_MAX + 64 * 2, "not more than a few envelopes ahead"
            assert await job.result() == list(range(3 * QUEUE_MESSAGES_MAX))

    testing.run(scenario())


def test_workers_are_not_forgotten_while_the_request_for_them_has_no_answer(monkeypatch: pytest.MonkeyPatch):
    """It is asked again, and would start them once more. They are told of before that answer comes."""
    asked: list[tuple[str, tuple[int, int]]] = []
    start, stop = testing._Process.start_workers, testing._Process.stop_workers

    async def slow_start(self: Any, group: Any, once: tuple[int, int]) -> None:
        asked.append((f"start {group.name}", once))
        await start(self, group, once)
        if len(asked) < 2:
            raise OutcomeUnknown("the answer was lost")

    async def told_stop(self: Any, group: str, *args: Any, **options: Any) -> None:
        asked.append((f"forget {group}", args[-1]))
        await stop(self, group, *args, **options)

    monkeypatch.setattr(testing._Process, "start_workers", slow_start)
    monkeypatch.setattr(testing._Process, "stop_workers", told_stop)
    monkeypatch.setattr(runtime, "BACKOFF_S_MIN", 5.0)

    class Short(Worker):
        async def run(self) -> None: ...

    class Forgets(JobMaster):
        worker = Short

        async def on_start(self) -> None:
            self.gone = asyncio.Event()

        async def run(self) -> list[str]:
            await self.start_worker("w", {})
            await self.gone.wait()
            await asyncio.gather(self.start_worker("a", {}), self.start_worker("b", {}))
            return sorted(self.workers)

        async def on_finished(self, worker: WorkerView) -> None:
            if worker.name == "w":
                await self.forget_workers("w")
                self.gone.set()

    async def scenario() -> None:
        async with testing.Job(Forgets, {}) as job:
            assert await job.result() == ["a", "b"]

    testing.run(scenario())
    assert asked == [
        ("start w", (1, 1)),
        ("start w", (1, 1)),
        ("forget w", (2, 2)),
        ("start a", (3, 3)),
        ("start b", (4, 3)),
    ]


def test_what_was_sent_ahead_comes_as_soon_as_the_worker_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(testing, "START_S", 7.0)

    class Hears(Worker):
        async def on_message(self, sender: str, message: Any) -> None:
            self.waited.set_result(asyncio.get_running_loop().time() - self.began_s)

        async def on_start(self) -> None:
            self.began_s = asyncio.get_running_loop().time()
            self.waited: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def run(self) -> float:
            return await self.waited

    class Tells(JobMaster):
        worker = Hears

        async def run(self) -> Any:
            await self.start_worker("w", {})
            await self.send("w", "go")
            await self.workers_ended()
            return self.workers["w"].result

    async def scenario() -> None:
        async with testing.Job(Tells, {}) as job:
            assert await job.result() < 0.01

    testing.run(scenario())


def test_messages_to_a_worker_that_has_ended_are_dropped():
    class Short(Worker):
        async def run(self) -> None: ...

    class Master(JobMaster):
        worker = Short

        async def run(self) -> str:
            await self.start_worker("short", {})
            await self.workers_ended()
            for _ in range(2 * QUEUE_MESSAGES_MAX):
                await self.send("short", "late")
            await self.flush()
            with pytest.raises(NotFound):
                await self.request("short", "GET", "/")
            return "went on"

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            assert await job.result() == "went on"

    testing.run(scenario())


class Stopping(Worker):
    stops: ClassVar[list[str]] = []

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def on_stop(self, reason: str) -> None:
        self.stops.append(reason)
        await asyncio.sleep(self.config.get("takes", 0))
        self.stops.append("done")


class Holds(JobMaster):
    worker = Stopping

    async def run(self) -> None:
        await self.start_worker("w", self.config)
        await self.workers_ended()


@pytest.mark.parametrize(("takes", "heard"), [(2, ["canceled", "done"]), (100, ["canceled"])])
def test_canceling_tells_members_and_kills_them_after_the_grace(takes: float, heard: list[str]):
    Stopping.stops.clear()

    async def scenario() -> None:
        async with testing.Job(Holds, {"takes": takes}) as job:
            await job.until(lambda: "w" in job.workers and job.worker("w").state == "running")
            before = asyncio.get_running_loop().time()
            job.cancel()
            assert await job.ended() == "Canceled"
            assert asyncio.get_running_loop().time() - before <= 5.1

    testing.run(scenario())
    assert Stopping.stops == heard


def test_pause_hands_back_and_resume_goes_on_with_another_attempt():
    async def scenario() -> None:
        async with testing.Job(Count, {"to": 10}) as job:
            await job.until(lambda: job.checkpoints.get("part/0", 0) >= 3)
            job.pause()
            await job.until(lambda: job.state == "Paused")
            await asyncio.sleep(1_000)
            assert job.checkpoints["part/0"] <= 5
            job.resume()
            assert await job.result() == 20
            assert (job.attempt, job.worker("part/0").failures) == (2, 0)

    testing.run(scenario())


def test_a_worker_can_be_stopped_and_forgotten_and_its_name_used_again():
    class Master(JobMaster):
        worker = Stopping

        async def run(self) -> list[str]:
            await self.start_worker("w", {})
            await asyncio.sleep(10)
            with pytest.raises(ValueError, match="is running"):
                await self.forget_workers("w")
            await self.stop_worker("w")
            await self.workers_ended()
            first = self.workers["w"].state
            await self.forget_workers("w")
            assert "w" not in self.workers
            again = await self.start_worker("w", {"takes": 1})
            await asyncio.sleep(10)
            return [first, again.state]

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            assert await job.result() == ["canceled", "running"]

    testing.run(scenario())


def test_a_worker_that_fails_too_often_has_failed_and_the_master_decides():
    class Broken(Worker):
        async def run(self) -> None:
            raise RuntimeError("no luck")

    class Master(JobMaster):
        worker = Broken

        async def run(self) -> None:
            await self.start_worker("w", {}, attempts=3, backoff_s=10)
            await self.workers_ended()

        async def on_failed(self, worker: WorkerView) -> None:
            if worker.state == "failed":
                raise Final(f"{worker.name}: {worker.error}")

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            assert await job.ended() == "Failed"
            assert job.error == "w: RuntimeError: no luck"
            assert job.worker("w").failures == 3
            assert asyncio.get_running_loop().time() >= 20

    testing.run(scenario())


BAD_RUNS = [
    (lambda self: self.send("nobody", 1), "there is no worker 'nobody'"),
    (lambda self: self.start_worker("w", {"x": object()}), "configs of workers 'w' cannot be encoded"),
    (lambda self: self.start_worker("w", {}, kind="other"), "kind = 'other': is none of worker"),
    (lambda self: self.start_workers("w", []), "configs of workers 'w': empty"),
    (lambda self: self.stop_worker("nobody"), "there is no worker 'nobody'"),
    (lambda self: self.save("k", object()), "checkpoint 'k' cannot be encoded"),
]


@pytest.mark.parametrize(("call", "text"), BAD_RUNS)
def test_what_cannot_be_is_said_by_name(call: Any, text: str):
    class Master(JobMaster):
        worker = Stopping

        async def run(self) -> None:
            await call(self)

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            assert await job.ended() == "Failed"
            assert text in job.error

    testing.run(scenario())


@pytest.mark.parametrize(
    ("show", "text"),
    [
        (lambda m: m.report({"x": object()}), "status cannot be encoded"),
        (lambda m: m.report({"x": "y" * 20_000}), "at most 16384"),
        (lambda m: m.gauge("no-dash", 1), "metric 'no-dash'"),
        (lambda m: m.gauge("n", 1, job="mine"), "label job is set by tiflow"),
        (lambda m: [m.gauge(f"n{i}", i) for i in range(100)], "a member may have 64"),
        (lambda m: m.route("GET", "x", None), "path 'x': begins with /"),
        (lambda m: m.route("FETCH", "/x", None), "method 'FETCH'"),
    ],
)
def test_what_cannot_be_shown_is_refused_where_it_is_said(show: Any, text: str):
    class Master(JobMaster):
        async def run(self) -> None:
            show(self)

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            assert await job.ended() == "Failed"
            assert text in job.error

    testing.run(scenario())


def test_a_config_that_does_not_fit_fails_at_once_and_is_not_tried_again():
    async def scenario() -> None:
        async with testing.Job(Count, {"to": 0}) as job:
            assert await job.ended() == "Failed"
            assert job.error == "ValueError: to: must be 1 or more"
            assert job.attempt == 1

    testing.run(scenario())


def test_a_worker_returns_little():
    class Much(Worker):
        async def run(self) -> str:
            return "x" * 300

    class Master(JobMaster):
        worker = Much

        async def run(self) -> str:
            await self.start_worker("w", {})
            await self.workers_ended()
            return self.workers["w"].error

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            assert "a worker returns at most 256" in await job.result()

    testing.run(scenario())


def test_requests_find_their_handlers_and_errors_are_answers():
    class Master(JobMaster):
        async def run(self) -> None:
            async def fails(request: Request) -> None:
                raise {"value": ValueError, "away": Unavailable}.get(request.query, RuntimeError)("why")

            async def text(request: Request) -> str:
                return f"{request.method} {request.query} {request.body.decode()}"

            self.route("POST", "/fails", fails)
            self.route("GET", "/text", text)
            self.route("PUT", "/text", text)
            await asyncio.Event().wait()

    async def scenario() -> None:
        async with testing.Job(Master) as job:
            with pytest.raises(Unavailable):
                await job.request("GET", "/text")
            await asyncio.sleep(1)
            answer = await job.request("PUT", "/text", body=b"body", query="a=b")
            assert (answer.status, answer.body) == (200, b"PUT a=b body")
            assert (await job.request("HEAD", "/text")).status == 200
            assert (await job.request("DELETE", "/text")).status == 405
            assert (await job.request("GET", "/nothing")).status == 404
            for query, status in (("value", 400), ("away", 503), ("", 500)):
                answer = await job.request("POST", "/fails", query=query)
                assert answer.status == status
                assert "why" in answer.body.decode()

    testing.run(scenario())


def test_metrics_are_those_of_the_attempt_that_runs():
    async def scenario() -> None:
        async with testing.Job(Count, {"to": 5}) as job:
            await job.until(lambda: job.checkpoints.get("part/0", 0) >= 2)
            await asyncio.sleep(0.5)
            (sample,) = job.samples("part/0")
            assert (sample.name, sample.labels, sample.kind) == ("done", {"part": "part/0"}, "gauge")
            await job.ended()
            assert job.samples("part/0") == ()

    testing.run(scenario())


def test_a_scenario_that_waits_for_nothing_is_told_so():
    async def scenario() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing will happen"):
        testing.run(scenario())


def test_a_member_needs_no_grpc():
    """Its process must start fast, and be small."""
    code = (
        "import sys, tiflow.exec.member; "
        "print([m for m in ('grpc', 'google.protobuf', 'sqlalchemy', 'starlette') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
