"""`python -m tiflow.chaos` finds out a cluster that counts wrong. That one which does not passes, whatever dies, is
tested in tests/cluster."""

import random
import socket
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from tiflow import chaos as chaos_module
from tiflow.chaos import Chaos, Wrong, main
from tiflow.errors import NotFound, Unavailable
from tiflow.jobs.fake.source import Source


class Cluster:
    """What stands in for a client: its jobs see what the source has at once, unless a test bends it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.jobs: dict[str, dict[str, Any]] = {}
        self.refusals = 0  #: so many questions are not answered
        self.silent = False
        self.bend_status: Callable[[dict[str, Any]], Any] = lambda status: None
        self.bend_results: Callable[[dict[tuple[str, int], Any]], Any] = lambda results: None
        self.state = "Finished"  #: of a job that has reached its targets

    def run_job(self, type: str, config: dict[str, Any], *, id: str) -> None:
        self._answer()
        assert type == "fake"
        self.jobs[id] = config

    def get(self, id: str) -> Any:
        self._answer()
        if id not in self.jobs:
            raise NotFound(f"no job {id}")
        members = [SimpleNamespace(name="master", state="running", attempt=1, executor="e1", status={}, error="")]
        statuses = self._statuses(id)
        for number, status in enumerate(statuses):
            self.bend_status(status)
            members.append(
                SimpleNamespace(
                    name=f"worker/{number}", state="running", attempt=1, executor="e2", status=status, error=""
                )
            )
        done = all(one["count"] >= self.jobs[id]["target-count"] for one in self._statuses(id))
        state = self.state if done else "Running"
        return SimpleNamespace(id=id, state=state, ended=done, error="", members=members)

    def results(self, id: str) -> Any:
        self._answer()
        statuses = self._statuses(id)
        tick = self.jobs[id]["target-tick"]
        results: dict[tuple[str, int], Any] = {
            ("worker", number): {"tick": tick, "revision": status["revision"], "count": status["count"]}
            for number, status in enumerate(statuses)
        }
        count = sum(status["count"] for status in statuses)
        total = {"workers": len(statuses), "ended": len(statuses), "tick": tick * len(statuses), "count": count}
        results["master", 0] = total
        self.bend_results(results)
        return [SimpleNamespace(group=group, index=index, value=value) for (group, index), value in results.items()]

    def delete(self, id: str) -> None:
        self._answer()
        del self.jobs[id]

    def explain(self, id: str) -> list[Any]:
        return [SimpleNamespace(summary="why it waits")]

    def executors(self) -> list[Any]:
        self._answer()
        able = SimpleNamespace(state="alive", slots=4, labels={"job-type.fake": "yes"})
        return [able, SimpleNamespace(state="gone", slots=99, labels=able.labels)]

    def _answer(self) -> None:
        if self.refusals or self.silent:
            self.refusals -= 1
            raise Unavailable("no leader")

    def _statuses(self, id: str) -> list[dict[str, Any]]:
        truth = self.source.counts()
        keys = [f"{self.jobs[id]['key-prefix']}{number}" for number in range(self.jobs[id]["worker-count"])]
        nothing = {"count": 0, "revision": 0, "value": ""}
        seen = [{"key": key, "attempt": 2, **truth.get(key, nothing)} for key in keys]
        return [{**one, "kept": one["revision"]} for one in seen]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(chaos_module, "POLL_S", 0.001)
    monkeypatch.setattr(chaos_module, "READY_S", 0.05)
    return Cluster(Source())


def chaos(cluster: Cluster) -> Chaos:
    client: Any = cluster
    return Chaos(client, cluster.source, "http://h:1", workers=3, within_s=0.05, pause_s=0, seed=1)


def play(cluster: Cluster) -> Chaos:
    one = chaos(cluster)
    one.play("j", random.Random(0))
    return one


def test_what_counts_exactly_passes_and_leaves_nothing(cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    cluster.refusals = 3
    one = chaos(cluster)
    one.wait_ready(1)
    one.run(1, 0.2)

    assert one.tally.jobs >= 1
    assert one.tally.changes > 0
    assert cluster.jobs == {}
    assert cluster.source.counts() == {}
    assert capsys.readouterr().out.count("exactly; ") == one.tally.jobs


@pytest.mark.parametrize(
    ("bend", "text"),
    [
        (lambda status: status.update(count=status["count"] + 1), "counted"),
        (lambda status: status.update(count=status["count"] - 1), "counted"),
        (lambda status: status.update(value="another"), "counted"),
        (lambda status: status.update(kept=0), "not exact within 0.05 s"),
        (lambda status: status.update(revision=0, count=0, value="", kept=0), "not exact within 0.05 s"),
        (lambda status: status.clear(), "not exact within 0.05 s"),
    ],
)
def test_a_worker_that_counts_wrong_or_loses_its_checkpoint_is_found_out(
    cluster: Cluster, bend: Callable[[dict[str, Any]], Any], text: str
):
    cluster.bend_status = bend

    with pytest.raises(Wrong) as caught:
        play(cluster)

    assert text in str(caught.value)
    assert "worker/0: running, attempt 1, on e2" in str(caught.value), "with all that is known"
    assert "why it waits" in str(caught.value)
    assert "j" in cluster.jobs, "it is left for who looks into it"


@pytest.mark.parametrize(
    "bend",
    [
        lambda results: results["master", 0].update(count=1),
        lambda results: results["worker", 0].update(tick=1_000),
        lambda results: results["worker", 0].update(revision=1),
        lambda results: results.pop(("worker", 0)),
    ],
)
def test_a_job_that_ends_with_something_else_is_found_out(
    cluster: Cluster, bend: Callable[[dict[tuple[str, int], Any]], Any]
):
    cluster.bend_results = bend

    with pytest.raises(Wrong, match="its results are"):
        play(cluster)


def test_a_job_that_fails_is_found_out(cluster: Cluster):
    cluster.state = "Failed"

    with pytest.raises(Wrong, match="it is Failed"):
        play(cluster)


def test_a_cluster_that_forgets_a_job_or_is_silent_is_found_out(cluster: Cluster):
    one = chaos(cluster)
    with pytest.raises(Wrong, match="refused: no job j"):
        one._get("j")
    cluster.silent = True
    with pytest.raises(Wrong, match=r"no answer of the cluster within 0\.05 s: no leader"):
        one.run(2, 10)


def test_too_few_slots_are_told_before_anything_hangs(cluster: Cluster):
    chaos(cluster).wait_ready(1)

    with pytest.raises(Wrong, match="2 jobs of 3 workers need 8 slots, and 1 executors have 4"):
        chaos(cluster).wait_ready(2)


def test_the_first_that_is_wrong_stops_the_others(cluster: Cluster):
    cluster.bend_status = lambda status: status.update(value="another") if "0001-1-" in status["key"] else None

    with pytest.raises(Wrong, match="job chaos-00000001-1-0"):
        chaos(cluster).run(3, 3_600)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--duration", "soon"], 2, '--duration = "soon": is not a duration'),
        (["--addr", "0.0.0.0:1"], 2, "--advertise-host: must be given"),
        (["--jobs", "0"], 2, "--jobs"),
        (["--master-addrs", "x"], 2, "has no port"),
    ],
)
def test_bad_options_are_named(args: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]):
    assert main(args) == code
    assert text in capsys.readouterr().err


def test_an_occupied_port_is_named(capsys: pytest.CaptureFixture[str]):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        assert main(["--addr", f"127.0.0.1:{taken.getsockname()[1]}"]) == 5
    assert "error: --addr: Address already in use" in capsys.readouterr().err
