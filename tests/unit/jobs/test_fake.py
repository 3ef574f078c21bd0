"""The job type `fake` on the harness of `tiflow.testing`: whatever dies, its workers count exactly."""

import asyncio
import re
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow import testing
from tiflow.jobs.fake import Fake, job, watch
from tiflow.jobs.fake.config import FakeConfig
from tiflow.jobs.fake.judge import behind
from tiflow.jobs.fake.protocol import Change
from tiflow.jobs.fake.source import BadRequest, Source
from tiflow.jobs.framework.types import find_type

URL = "http://source:80"
POLL_S = 0.05


class Supply:
    """A source that is asked without HTTP, on the clock of the test. It may be away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = Source()
        self.away = False
        monkeypatch.setattr(watch, "changes", self._changes)

    def change(self, workers: int, times: int = 1) -> None:
        for _ in range(times):
            for number in range(workers):
                self.source.put(f"key-{number}", f"value {self.source.put('other', 'x')}")

    async def _changes(self, source: tuple[str, int], key: str, after: int, wait_s: float) -> list[Change]:
        assert source == ("source", 80)
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            if self.away:
                raise watch.SourceAway("nobody is there")
            try:
                events = self.source.after(key, after, 0)
            except BadRequest as error:
                raise watch.SourceRefuses(str(error)) from None
            if events or asyncio.get_running_loop().time() >= deadline:
                return events[:3]  # so that there are pages
            await asyncio.sleep(POLL_S)


@pytest.fixture
def supply(monkeypatch: pytest.MonkeyPatch) -> Supply:
    return Supply(monkeypatch)


def is_exact(one: testing.Job, supply: Supply, workers: int) -> bool:
    statuses = {f"key-{number}": one.worker(f"worker/{number}").status for number in range(workers)}
    truth = {key: wanted for key, wanted in supply.source.counts().items() if key in statuses}
    if behind(statuses, truth):
        return False
    for key, wanted in truth.items():
        supply.source.forget(key, wanted["revision"])  # who loses its checkpoint from now on is found out
    return True


def test_workers_tick_to_the_target_and_the_job_ends_with_the_sums():
    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 3, "target-tick": 20}) as one:
            assert await one.result() == {"workers": 3, "ended": 3, "tick": 60, "count": 0}
            assert one.status == {"workers": 3, "ended": 3, "tick": 60, "count": 0, "attempt": 1}
            assert one.worker("worker/2").result == {"tick": 20, "revision": 0, "count": 0}
            assert 20 < asyncio.get_running_loop().time() < 25

    testing.run(scenario())


def test_it_counts_the_changes_of_its_key_and_shows_the_last_value(supply: Supply):
    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 2, "source-url": URL}) as one:
            await one.until(lambda: one.worker("worker/1").state == "running" if len(one.workers) == 2 else False)
            supply.change(2, times=10)
            await one.until(lambda: is_exact(one, supply, 2), within_s=30)
            status = one.worker("worker/1").status
            assert (status["key"], status["count"], status["attempt"], status["error"]) == ("key-1", 10, 1, "")
            assert status["value"] == supply.source.counts()["key-1"]["value"]
            await one.until(lambda: one.status.get("count") == 20)
            shown = await one.request("GET", "/workers")
            assert f'"value":"{status["value"]}"'.encode() in shown.body.replace(b": ", b":")

    testing.run(scenario())


def test_a_worker_ends_when_it_has_counted_so_many(supply: Supply):
    config = {"worker-count": 2, "source-url": URL, "target-tick": 3, "target-count": 7}

    async def scenario() -> None:
        async with testing.Job(Fake, config) as one:
            supply.change(2, times=6)
            await asyncio.sleep(60)
            assert one.state == "Running"
            assert one.worker("worker/0").status["tick"] == 3, "it does not tick beyond the target"
            supply.change(2)
            assert await one.result() == {"workers": 2, "ended": 2, "tick": 6, "count": 14}

    testing.run(scenario())


def test_a_value_of_any_length_does_not_spoil_the_result(supply: Supply):
    async def scenario() -> None:
        async with testing.Job(
            Fake, {"worker-count": 1, "source-url": URL, "target-tick": 2, "target-count": 1}
        ) as one:
            supply.source.put("key-0", "v" * 1_024)
            assert (await one.result())["count"] == 1

    testing.run(scenario())


def test_injected_errors_are_told_and_workers_come_back_from_their_checkpoints(
    supply: Supply, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job, "ATTEMPTS_MAX", 2)  # though they may go on for ever
    config = {
        "worker-count": 2,
        "target-tick": 100,
        "tick-interval": "100ms",
        "inject-error-interval": "3s",
        "source-url": URL,
    }

    async def scenario() -> None:
        async with testing.Job(Fake, config) as one:
            supply.change(2, times=5)
            assert await one.result() == {"workers": 2, "ended": 2, "tick": 200, "count": 10}
            worker = one.worker("worker/0")
            assert worker.status["attempt"] >= 4
            assert "InjectedError: after 3s" in worker.error
            assert one.attempt == 1

    testing.run(scenario())


def test_a_source_that_is_away_is_told_and_waited_for(supply: Supply):
    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 1, "source-url": URL}) as one:
            supply.change(1)
            await one.until(lambda: bool(one.workers) and is_exact(one, supply, 1))
            supply.away = True
            supply.change(1, times=4)
            await one.until(lambda: one.worker("worker/0").status["error"] == f"source {URL}: nobody is there")
            await asyncio.sleep(600)
            supply.away = False
            await one.until(lambda: is_exact(one, supply, 1) and not one.worker("worker/0").status["error"], 5)
            assert one.worker("worker/0").attempt == 1

    testing.run(scenario())


def test_a_source_that_was_started_anew_fails_the_job(supply: Supply):
    """No count could be exact any more, and that must not be mistaken for a source without news."""

    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 2, "source-url": URL}) as one:
            supply.change(2)
            await one.until(lambda: len(one.workers) == 2 and is_exact(one, supply, 2))
            supply.source = Source()
            assert await one.ended() == "Failed"
            assert "started anew" in one.error

    testing.run(scenario())


def test_a_worker_that_lost_its_checkpoint_is_found_out(supply: Supply):
    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 1, "source-url": URL}) as one:
            supply.change(1, times=5)
            await one.until(lambda: bool(one.workers) and is_exact(one, supply, 1))
            one.checkpoints.clear()
            one.kill("worker/0")
            assert await one.ended() == "Failed"
            assert "are forgotten" in one.error

    testing.run(scenario())


def test_a_job_master_that_comes_after_a_worker_failed_for_good_does_not_call_it_a_success(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(job, "ATTEMPTS_MAX", 1)

    async def deaf(self: Fake, worker: Any) -> None:
        """As if the one that was told had died of it."""

    monkeypatch.setattr(Fake, "on_failed", deaf)

    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 2, "target-tick": 5}) as one:
            await one.until(lambda: len(one.workers) == 2 and one.worker("worker/0").state == "running")
            one.kill("worker/0")
            assert await one.ended() == "Failed"
            assert one.error == "worker worker/0 is failed: killed by SIGKILL"

    testing.run(scenario())


def test_a_count_goes_into_the_checkpoint_with_its_revision_or_not_at_all(supply: Supply):
    """Whenever a worker dies, what is kept of it is right for some moment."""

    async def scenario() -> None:
        async with testing.Job(Fake, {"worker-count": 1, "source-url": URL, "tick-interval": "70ms"}) as one:
            for number in range(1, 50):
                supply.change(1)
                await asyncio.sleep(0.13)
                kept = one.checkpoints.get("key-0")
                if kept is not None and kept["count"]:
                    history = supply.source.after("key-0", 0, 0)
                    assert (kept["revision"], kept["value"]) == history[kept["count"] - 1], number

    testing.run(scenario())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1 << 30))
def test_whatever_happens_counts_are_exact_in_the_end(data: st.DataObject, seed: int):
    workers = data.draw(st.integers(1, 4))
    config = {"worker-count": workers, "source-url": URL, "tick-interval": "300ms"}
    if data.draw(st.booleans()):
        config["inject-error-interval"] = data.draw(st.sampled_from(["400ms", "1700ms", "5s"]))

    async def scenario(supply: Supply) -> None:
        executors = [f"e{number}" for number in range(20)]
        async with testing.Job(
            Fake,
            config,
            executors=executors,
            faults=data.draw(st.sampled_from([0.0, 0.1, 0.3])),
            latency_s=data.draw(st.sampled_from([0.001, 0.05])),
            rng=Random(seed),
        ) as one:
            supply.change(workers)
            await one.until(lambda: len(one.workers) == workers and is_exact(one, supply, workers), within_s=60)
            for _ in range(data.draw(st.integers(0, 8))):
                await asyncio.sleep(data.draw(st.floats(0, 3)))
                supply.change(workers, data.draw(st.integers(0, 5)))
                names = ["", *one.workers]
                match data.draw(st.sampled_from(["kill", "lose", "drain", "pause", "resume", "away", "back"])):
                    case "kill":
                        one.kill(data.draw(st.sampled_from(names)))
                    case "lose":
                        one.lose(one.executors[0])
                    case "drain":
                        one.drain(one.executors[0])
                    case "pause":
                        one.pause()
                    case "resume":
                        one.resume()
                    case "away":
                        supply.away = True
                    case "back":
                        supply.away = False
            supply.away = False
            one.resume()
            supply.change(workers)
            await one.until(
                lambda: one.state == "Failed" or (len(one.workers) == workers and is_exact(one, supply, workers)),
                within_s=60,
            )
            if one.state == "Failed":
                assert "killed by SIGKILL" in one.error, "its job master was killed too often"

    with pytest.MonkeyPatch.context() as monkeypatch:
        testing.run(scenario(Supply(monkeypatch)))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"workercount": 4}, "config: unknown key workercount = 4; did you mean worker-count?"),
        ({"worker-count": "4"}, 'worker-count = "4": must be a whole number'),
        ({"worker-count": 0}, "worker-count = 0: "),
        ({"worker-count": 1_001}, "worker-count = 1001: "),
        ({"target-tick": -1}, "target-tick = -1: "),
        ({"tick-interval": "0s"}, 'tick-interval = "0s": must be 1ms to 1h'),
        ({"tick-interval": 5}, "tick-interval = 5: must be a string in quotes"),
        ({"checkpoint-interval": "soon"}, 'checkpoint-interval = "soon": is not a duration'),
        ({"inject-error-interval": "1d"}, 'inject-error-interval = "1d": must be 0ms to 1h'),
        ({"inject-error-interval": "100ms"}, 'inject-error-interval = "100ms": must be longer than checkpoint'),
        ({"source-url": "http://"}, 'source-url = "http://": is empty'),
        ({"source-url": "http://host"}, 'source-url = "http://host": has no port'),
        ({"source-url": "https://host:1"}, "the source speaks http only"),
        ({"key-prefix": "a b"}, 'key-prefix = "a b": must be letters'),
        ({"key-prefix": "k" * 126}, "key-prefix = "),
        ({"target-count": 3, "target-tick": 1}, "target-count = 3: needs target-tick and source-url too"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_key_value_and_remedy(config: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=re.escape(text)):
        Fake.check(config)


def test_a_config_may_be_empty_and_its_durations_are_read():
    assert FakeConfig.of({}).worker_count == 4
    assert FakeConfig.of({"tick-interval": "250ms"}).tick_s == 0.25
    assert FakeConfig.of({"source-url": "http://[::1]:8080/"}).source == ("::1", 8080)


def test_it_is_known_by_its_name():
    assert find_type("fake") is Fake


def test_the_reference_has_every_key_with_its_default():
    text = (Path(__file__).resolve().parents[3] / "docs" / "fake.md").read_text()
    told = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]+?) \|", text, re.MULTILINE))

    def shown(default: object) -> str:
        return "none" if default == "" else f'`"{default}"`' if isinstance(default, str) else f"{default}"

    assert told == {field.encode_name: shown(field.default) for field in msgspec.structs.fields(FakeConfig)}
