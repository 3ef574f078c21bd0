import math
import os.path
import socket
import subprocess
import sys
import time
from typing import Any

import grpc
import pytest
from msgspec import msgpack

import tiflow
from tiflow.client import Client, MemberInfo
from tiflow.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    ResourceExhausted,
    Unavailable,
)
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.status import trailing_metadata
from tiflow.sched.model import RetryPolicy

encode = msgpack.encode


def values(*results: Any) -> bytes:
    """The results of a row: small ones as they are, kept ones as [size, sha256]."""
    return encode([result if isinstance(result, list) else encode(result) for result in results])


def lost(context: Any) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


# ---- submitting


def test_submits_calls_of_a_function(client: Client, master: Any):
    job = client.run_python(
        "wordcount:count_words", range(300), path="examples", id="wc", retry=RetryPolicy(5), timeout_s=1.5
    )

    assert (job.id, job.uid) == ("wc", 1)
    group = master.specs["wc"].groups[0]
    assert (group.python.function, group.count, group.timeout_ms) == ("wordcount:count_words", 300, 1_500)
    assert group.python.path == [os.path.abspath("examples")]
    assert group.retry.attempts_max == 5
    assert [len(msgpack.decode(block)) for block in group.items] == [256, 44]


def test_submits_commands(client: Client, master: Any):
    job = client.run_command(["echo", "{index}"], count=4, env={"A": "b"}, cwd="/tmp")

    group = master.specs[job.id].groups[0]
    assert job.id.startswith("j-")
    command = group.command
    assert (list(command.argv), dict(command.env), command.cwd) == (["echo", "{index}"], {"A": "b"}, "/tmp")
    assert group.count == 4


def test_submits_framework_jobs(client: Client, master: Any):
    job = client.run_job("counting", {"parts": 2}, id="c", path=["lib"], selectors=["zone=eu"], max_failures=3)

    spec = master.specs["c"]
    assert (job.id, spec.open, spec.client_ttl_ms, spec.max_failures) == ("c", True, 0, 3)
    (group,) = spec.groups
    assert (group.name, group.count, list(group.items)) == ("master", 1, [])
    assert (group.framework.type, group.framework.kind) == ("counting", "")
    assert group.framework.path == [os.path.abspath("lib")]
    assert msgpack.decode(group.framework.config) == {"parts": 2}
    selectors = [(one.key, one.op, list(one.values)) for one in group.selectors]
    assert selectors == [("zone", "eq", ["eu"]), ("job-type.counting", "exists", [])]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"worker-count": 0}, "worker-count"),
        ({"parts": object()}, "config cannot be sent"),
        ({1: 2}, "config: must be a table whose keys are strings"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_it_is_sent(client: Client, master: Any, config: Any, message: str):
    with pytest.raises(InvalidArgument, match=message):
        client.run_job("fake", config)
    assert not master.specs


def test_shows_how_members_go(client: Client, master: Any):
    client.run_job("counting", id="c")
    master.jobs["c"].members.extend(
        [
            pb.MemberStatus(name="master", state="running", attempt=2, executor="e", status=msgpack.encode({"a": 3})),
            pb.MemberStatus(name="w/0", state="waiting", error="ValueError: 1", status=b"\xc1"),
            pb.MemberStatus(name="w/1", state="succeeded", status=msgpack.encode([1])),
        ]
    )

    shown = client.get("c").members

    assert shown[0] == MemberInfo("master", "running", 2, "e", {"a": 3}, "")
    assert (shown[1].error, shown[1].attempt) == ("ValueError: 1", 0)
    assert "unreadable" in shown[1].status
    assert shown[2].status == {"status": [1]}


def test_what_a_job_does_not_say_is_left_to_the_masters(client: Client, master: Any):
    plain = master.specs[client.run_command(["true"]).id]
    limited = master.specs[
        client.run_command(
            ["true"],
            retry=RetryPolicy(final_exit_codes=(2, -9)),
            job_timeout_s=60,
            queue_timeout_s=0.5,
            max_failures=3,
            retries_max=0,
        ).id
    ]

    assert not any(plain.groups[0].retry.HasField(name) for name in ("attempts_max", "backoff_ms", "reset_ms"))
    assert not plain.HasField("retries_max")
    assert (limited.job_timeout_ms, limited.queue_timeout_ms, limited.max_failures) == (60_000, 500, 3)
    assert limited.HasField("retries_max")
    assert limited.groups[0].retry.attempts_max == 3
    assert list(limited.groups[0].retry.final_exit_codes) == [2, -9]


def test_a_function_is_sent_by_its_name_and_place(client: Client, master: Any):
    job = client.run_python(os.path.join, ["a"])

    python = master.specs[job.id].groups[0].python
    assert (python.function, list(python.path)) == ("posixpath:join", [os.path.dirname(os.__file__)])
    assert client.run_python(math.floor, [1.5]), "a builtin module has no place"


def test_a_function_that_executors_cannot_import_is_refused(client: Client):
    with pytest.raises(InvalidArgument, match="no lambda, no local function"):
        client.run_python(lambda item: item, [1])


def test_no_items_are_refused(client: Client, master: Any):
    for run in (
        lambda: client.run_python("a:b", []),
        lambda: client.run_command(["a"], items=[]),
        lambda: client.run_command(["a"], count=0),
    ):
        with pytest.raises(InvalidArgument):
            run()
    assert master.calls == []


def test_argv_is_a_list(client: Client):
    with pytest.raises(InvalidArgument, match="must be a list"):
        client.run_command("echo a")


def test_a_submission_is_repeated_with_its_token(client: Client, master: Any):
    master.errors = [lost, lost]

    job = client.run_command(["true"], id="once")

    assert job.id == "once"
    assert master.calls == ["SubmitJob"] * 3


def test_a_refusal_is_not_repeated(client: Client, master: Any):
    master.errors = [AlreadyExists("job a exists")]

    with pytest.raises(AlreadyExists, match="job a exists"):
        client.run_command(["true"], id="a")
    assert master.calls == ["SubmitJob"]


# ---- finding a master


def test_tries_each_master_until_one_answers(master: Any):
    master.add_job("a", 1)

    with Client(f"127.0.0.1:1,{master.address}") as client:
        assert client.get("a").id == "a"


def test_follows_the_hint_to_the_leader(master: Any, other_master: Any):
    other_master.add_job("a", 1)
    master.errors = [NotLeader(other_master.address)] * 9

    with Client(master.address) as client:
        assert client.get("a").id == "a"
        assert client.get("a").id == "a"
    assert master.calls == ["GetJob"], "the one that answered is asked first from then on"


def test_waits_for_a_leader(client: Client, master: Any):
    master.add_job("a", 1)
    master.errors = [NotLeader(None)] * 3

    assert client.get("a").id == "a"


def test_a_silent_master_does_not_hide_the_others(master: Any):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a host that is down behind a name: no refusal
        host, port = silent.getsockname()
        with Client(f"{host}:{port},{master.address}", refused_s=0.2) as client:
            assert client.list() == ()


def test_no_master_is_told_with_all_addresses_and_the_remedy():
    began_s = time.monotonic()
    with Client("127.0.0.1:1,127.0.0.1:2", refused_s=0.2) as client, pytest.raises(Unavailable) as caught:
        client.list()

    assert str(caught.value) == (
        "no master answered at 127.0.0.1:1, 127.0.0.1:2: connection refused; is the cluster up? set --master-addrs "
        "or TIFLOW_MASTER_ADDRS"
    )
    assert time.monotonic() - began_s < 2


def test_no_leader_is_told_otherwise(master: Any):
    master.errors = [NotLeader(None)] * 100

    with Client(master.address, timeout_s=0.3) as client, pytest.raises(Unavailable, match="no leader is known yet"):
        client.list()


def test_a_write_without_an_answer_may_have_happened(master: Any):
    master.errors = [lost] * 100

    with Client(master.address, timeout_s=0.3) as client, pytest.raises(OutcomeUnknown, match="it may have happened"):
        client.run_command(["true"])


def test_a_deletion_that_is_repeated_has_happened(client: Client, master: Any):
    master.add_job("a", 1)
    master.errors = [lost]

    client.delete("a")

    with pytest.raises(NotFound):
        client.delete("a")


def test_bad_addresses_are_refused_at_once():
    with pytest.raises(InvalidArgument, match="master_addrs is empty"):
        Client("")
    with pytest.raises(InvalidArgument, match="has no port"):
        Client("ip0")


# ---- jobs


def test_shows_pauses_and_cancels_jobs(client: Client, master: Any):
    master.add_job("a", 3)
    master.add_job("b", 1)

    assert [job.id for job in client.list()] == ["a", "b"]
    assert client.pause("a").state == "Paused"
    assert client.resume("a").state == "Running"
    assert client.cancel("a").state == "Canceled"
    assert [job.id for job in client.list(state="Running")] == ["b"]
    assert client.get("a").ended
    with pytest.raises(NotFound, match="there is no job c"):
        client.get("c")


def test_waits_for_the_end(client: Client, master: Any, after: Any):
    master.add_job("a", 1)
    after(0.2, lambda: master.end("a", "Failed", failed=1))

    job = client.wait("a", timeout_s=5)

    assert (job.state, job.failed) == ("Failed", 1)
    assert client.wait("a").state == "Failed"


def test_a_wait_that_is_too_long_says_where_the_job_stands(client: Client, master: Any):
    master.add_job("a", 3)

    with pytest.raises(OutcomeUnknown, match=r"job a is still Running after 0\.2 s \(0 of 3 tasks have ended\)"):
        client.wait("a", timeout_s=0.2)


def test_failures_are_told_without_the_rest(client: Client, master: Any):
    master.add_job("a", 30)
    master.add_row("a", 0, 10, values(*range(10)))
    master.add_row("a", 10, 30, outcome="failed", error="boom")
    master.jobs["a"].result_rows = 2
    master.end("a", "Failed")

    failures = client.failures("a", limit=3)

    assert [(one.index, one.error, one.ok) for one in failures] == [
        (10, "boom", False),
        (11, "boom", False),
        (12, "boom", False),
    ]


# ---- results


def test_results_come_in_the_order_of_the_tasks(client: Client, master: Any, after: Any):
    master.add_job("a", 5)
    master.add_row("a", 3, 5, values("d", "e"))
    after(0.1, lambda: master.add_row("a", 0, 2, values("a", {"b": [1, None]})))
    after(0.2, lambda: master.add_row("a", 2, 3, outcome="failed", error="boom", attempt=3))
    after(0.3, lambda: master.end("a", "Failed"))

    results = list(client.results("a"))

    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    assert [result.value for result in results] == ["a", {"b": [1, None]}, None, "d", "e"]
    assert [(result.error, result.attempt) for result in results if not result.ok] == [("boom", 3)]


def test_results_come_as_they_end(client: Client, master: Any, after: Any):
    master.add_job("a", 3)
    master.add_row("a", 2, 3, values("c"))
    after(0.3, lambda: (master.add_row("a", 0, 2, values("a", "b")), master.end("a")))

    results = client.results("a", ordered=False)

    assert next(results).value == "c", "before the job has ended"
    assert [result.value for result in results] == ["a", "b"]


@pytest.mark.parametrize("ordered", [True, False])
def test_tasks_without_a_row_are_as_the_job_says(client: Client, master: Any, ordered: bool):
    master.add_job("commands", 3)
    master.end("commands", succeeded=3)
    master.add_job("canceled", 3)
    master.tasks["canceled"] = [pb.TaskInfo(index=0, state="succeeded"), pb.TaskInfo(index=2, state="canceled")]
    master.add_row("canceled", 1, 2, outcome="failed", error="boom")
    master.end("canceled", "Canceled", canceled=1)

    assert [result.state for result in client.results("commands", ordered=ordered)] == ["succeeded"] * 3
    states = {result.index: result.state for result in client.results("canceled", ordered=ordered)}
    assert states == {0: "succeeded", 1: "failed", 2: "canceled"}


def test_results_of_groups_that_grow_and_go(client: Client, master: Any):
    """As those of a job master that forgets workers, and gives their name to others."""
    master.add_job("c", 1, group="master")
    job = master.jobs["c"]
    job.groups.add(name="w", total=1)
    rows = client.results("c", ordered=False)
    master.add_row("c", 0, 1, msgpack.encode([b"\x01"]), group="w")
    assert next(rows).value == 1

    job.groups[1].total, job.groups[1].canceled = 3, 1
    master.add_row("c", 1, 2, msgpack.encode([b"\x02"]), group="w")
    assert next(rows).value == 2
    del job.groups[1]
    master.end("c")

    assert {(one.group, one.index): one.state for one in rows} == {("master", 0): "succeeded", ("w", 2): "canceled"}


def test_a_broken_stream_goes_on_where_it_was(client: Client, master: Any):
    master.add_job("a", 10)
    for index in range(10):
        master.add_row("a", index, index + 1, values(index))
    master.end("a")
    master.break_stream_after = 4

    assert [result.value for result in client.results("a")] == list(range(10))
    assert master.calls.count("WatchJob") == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_large_results_come_from_their_executor(client: Client, master: Any, executor: Any, ordered: bool):
    big = ["x" * 5_000 + str(index) for index in range(50)]
    master.add_job("a", 50)
    kept = [executor.keep(index, encode(value)) for index, value in enumerate(big)]
    master.add_row("a", 0, 50, values(*kept), executor="u", address=executor.address)
    master.end("a")

    assert [result.value for result in sorted(client.results("a", ordered=ordered), key=lambda one: one.index)] == big


def test_a_damaged_result_is_fetched_again(client: Client, master: Any, executor: Any):
    master.add_job("a", 1)
    master.add_row("a", 0, 1, values(executor.keep(0, encode("good"))), executor="u", address=executor.address)
    master.end("a")
    master.executors = [pb.ExecutorInfo(uid="u", name="e0", address=executor.address, state="alive")]
    executor.damaged = 2

    assert [result.value for result in client.results("a")] == ["good"]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_result_that_died_with_its_executor_is_computed_again(
    client: Client, master: Any, executor: Any, ordered: bool
):
    master.add_job("a", 2)
    master.add_row("a", 0, 2, values([4, "0" * 64], "small"), executor="dead", address="127.0.0.1:1")
    master.end("a")
    master.executors = [pb.ExecutorInfo(uid="dead", name="e0", address="127.0.0.1:1", state="gone")]

    def rerun(request: pb.RerunLostRequest) -> None:
        assert (request.id, request.uid, request.row, request.index) == ("a", 7, 0, 0)
        again = values(executor.keep(0, encode("again"), attempt=2))
        master.add_row("a", 0, 1, again, executor="u", address=executor.address, attempt=2)

    master.on_rerun = rerun

    results = sorted(client.results("a", ordered=ordered), key=lambda one: one.index)

    assert [(result.value, result.attempt) for result in results] == [("again", 2), ("small", 1)]
    assert master.calls.count("RerunLost") == 1


def test_an_executor_that_came_back_elsewhere_still_has_the_result(client: Client, master: Any, executor: Any):
    master.add_job("a", 1)
    master.add_row("a", 0, 1, values(executor.keep(0, encode("v"))), executor="u", address="127.0.0.1:1")
    master.end("a")
    master.executors = [pb.ExecutorInfo(uid="u", name="e0", address=executor.address, state="alive")]

    assert [result.value for result in client.results("a")] == ["v"]
    assert "RerunLost" not in master.calls


def test_a_result_that_cannot_be_computed_again_is_a_failure(client: Client, master: Any):
    master.add_job("a", 1)
    master.add_row("a", 0, 1, values([4, "0" * 64]), executor="dead")
    master.end("a")

    master.enter = _refuse_rerun

    (result,) = client.results("a")

    assert not result.ok
    assert result.error == "the result was lost with its executor, and the task cannot run again: too many losses"


def _refuse_rerun(method: str, context: Any) -> None:
    if method == "RerunLost":
        context.set_trailing_metadata(trailing_metadata(ResourceExhausted()))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many losses")


def test_reading_results_may_be_given_up(client: Client, master: Any):
    master.add_job("a", 5)
    master.add_row("a", 0, 1, values("a"))

    results = client.results("a")

    assert next(results).value == "a"
    results.close()


# ---- the rest


def test_logs_come_from_the_executor_that_has_them(client: Client, master: Any, executor: Any):
    master.add_job("a", 3)
    master.executors = [
        pb.ExecutorInfo(uid="v", address="127.0.0.1:1", state="alive"),
        pb.ExecutorInfo(uid="u", address=executor.address, state="alive"),
    ]
    executor.written["main", 2] = [
        pb.LogChunk(stream="stdout", data=b"out\n", attempt=1),
        pb.LogChunk(stream="stderr", data=b"err\n", attempt=1),
    ]

    assert [chunk.data for chunk in client.logs("a", 2)] == [b"out\n", b"err\n"]
    assert [chunk.data for chunk in client.logs("a", 2, stream="stderr")] == [b"err\n"]
    with pytest.raises(NotFound, match="has not started, wrote nothing, or ran on an executor that is gone"):
        list(client.logs("a", 1))
    with pytest.raises(NotFound, match="job a has no task 3 in group main; it has 3, counted from 0"):
        client.logs("a", 3)
    with pytest.raises(NotFound, match="job a has no group other; it has main"):
        client.logs("a", group="other")


def test_shows_the_masters(client: Client):
    leader, follower, silent = client.raft_status()

    assert (leader.role, leader.snapshot_age_s, leader.peers[0].last_contact_ms) == ("leader", None, 20)
    assert (follower.snapshot_age_s, silent.reachable) == (90, False)


def test_importing_tiflow_does_not_load_grpc():
    code = "import sys, tiflow; assert 'grpc' not in sys.modules; tiflow.Client; assert 'grpc' in sys.modules"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert tiflow.Client is Client
    with pytest.raises(AttributeError):
        _ = tiflow.Frobnicate
