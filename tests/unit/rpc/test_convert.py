from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack
from msgspec.structs import replace

from tiflow.errors import InvalidArgument
from tiflow.jobs.items import items_count
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.model import (
    BY_MASTER,
    ITEMS_PER_BLOCK,
    After,
    Call,
    Command,
    Framework,
    GroupSpec,
    JobSpec,
    Limits,
    PlacementPolicy,
    Python,
    RetryPolicy,
    Selector,
)

ids = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
commands = st.builds(
    Command,
    argv=st.lists(texts.filter(bool), min_size=1, max_size=3).map(tuple),
    env=st.dictionaries(ids, texts, max_size=2).map(lambda env: dict(sorted(env.items()))),
    cwd=texts,
)
pythons = st.builds(
    Python, function=st.sampled_from(["a:b", "pkg.mod:Class.method"]), path=st.lists(texts, max_size=2).map(tuple)
)
pool_calls = st.builds(
    Call,
    functions=st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=2).map(tuple),
    path=st.lists(texts, max_size=2).map(tuple),
    python=st.sampled_from(["", "3.11"]),
    cloudpickle=st.sampled_from(["", "3.1.2"]),
)
selectors = st.one_of(
    st.builds(Selector, key=ids, op=st.sampled_from(["eq", "neq"]), values=st.tuples(texts)),
    st.builds(Selector, key=ids, op=st.just("in"), values=st.lists(texts, min_size=1, max_size=3).map(tuple)),
    st.builds(Selector, key=ids, op=st.just("exists"), values=st.just(())),
    st.builds(Selector, key=ids, op=st.just("regex"), values=st.tuples(st.sampled_from(["e[0-9]+", "a|b"]))),
)
retries = st.builds(
    RetryPolicy,
    attempts_max=st.integers(1, 600),
    backoff_ms=st.integers(0, 3_600_000),
    multiplier_milli=st.integers(1_000, 10_000),
    backoff_ms_max=st.integers(0, 86_400_000),
    reset_ms=st.integers(0, 86_400_000),
)


placements = st.builds(
    PlacementPolicy,
    strategy=st.sampled_from(["spread", "binpack"]),
    spread_over=st.just("") | ids,
    max_per_executor=st.integers(0, 10_000_000),
)
resources = st.dictionaries(ids, st.integers(1, 1 << 53), max_size=3).map(lambda found: dict(sorted(found.items())))


@st.composite
def groups(draw: st.DrawFn, name: str, before: list[str]) -> GroupSpec:
    items = convert.items_encode(draw(st.lists(texts, max_size=300)))
    work = draw(commands | pythons | pool_calls)
    names = (
        ("final_exit_codes", st.sampled_from([1, 255, -9]))
        if isinstance(work, Command)
        else ("final_errors", st.sampled_from(["ValueError", "E"]))
    )
    return GroupSpec(
        name=name,
        work=work,
        count=items_count(items) or draw(st.integers(1, 1_000_000)),
        items=items,
        selectors=tuple(draw(st.lists(selectors, max_size=2))),
        retry=replace(draw(retries), **{names[0]: draw(st.lists(names[1], max_size=2).map(tuple))}),
        timeout_ms=draw(st.integers(0, 86_400_000)),
        grace_ms=draw(st.integers(0, 3_600_000)),
        resources=draw(resources),
        placement=draw(placements),
        after=tuple(After(other, draw(st.sampled_from(["success", "completion"]))) for other in before),
        limits=draw(st.sampled_from([Limits(), Limits(16 << 20, 16, 64 << 10), Limits(1 << 50, 1 << 20, 1 << 40)])),
    )


@st.composite
def jobs(draw: st.DrawFn) -> JobSpec:
    names = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    return JobSpec(
        id=draw(ids),
        groups=tuple(draw(groups(name, names[:position])) for position, name in enumerate(names)),
        priority=draw(st.integers(0, 100)),
        labels=dict(sorted(draw(st.dictionaries(ids, texts, max_size=2)).items())),
        retries_max=draw(st.none() | st.integers(0, 1_000_000_000)),
        max_failures=draw(st.integers(0, 10_000_000)),
        open=draw(st.booleans()),
        client_ttl_ms=draw(st.integers(0, 86_400_000)),
        on_lost_result=draw(st.sampled_from(["rerun", "fail"])),
        job_timeout_ms=draw(st.integers(0, 86_400_000)),
        queue_timeout_ms=draw(st.integers(0, 86_400_000)),
    )


@settings(max_examples=50, deadline=None)
@given(jobs())
def test_a_job_comes_back_as_it_was_sent(job: JobSpec):
    wire = convert.job_to_proto(job).SerializeToString()

    assert convert.job_from_proto(pb.JobSpec.FromString(wire)) == job


@settings(max_examples=20, deadline=None)
@given(groups("master", []), ids, st.binary(max_size=9), st.lists(texts, max_size=2).map(tuple))
def test_a_framework_job_comes_back_as_it_was_sent(group: GroupSpec, type: str, config: bytes, path: tuple[str, ...]):
    retry = replace(group.retry, final_exit_codes=())
    master = replace(group, work=Framework(type, "", config, path), count=1, items=(), retry=retry)
    job = JobSpec("j", (master,), open=True)

    assert convert.job_from_proto(pb.JobSpec.FromString(convert.job_to_proto(job).SerializeToString())) == job


def test_workers_come_back_as_they_were_sent():
    items = convert.items_encode([{"part": 1}, {"part": 2}])
    group = GroupSpec("w", Framework("copy", "reader", path=("lib",)), 2, items)

    assert convert.group_from_proto(convert.group_to_proto(group)) == group


def minimal(**fields: Any) -> pb.GroupSpec:
    return pb.GroupSpec(**{"name": "main", "command": pb.Command(argv=["true"]), **fields})


def test_what_is_not_set_is_the_models_default():
    job = convert.job_from_proto(pb.JobSpec(id="j", groups=[minimal()]))

    assert job == JobSpec(id="j", groups=(GroupSpec(name="main", work=Command(argv=("true",))),))


def test_a_master_fills_in_what_was_left_to_it():
    masters = RetryPolicy(9, 2_000, 2_000, 60_000, 180_000)
    sent = convert.retry_to_proto(RetryPolicy(BY_MASTER, 7, BY_MASTER, BY_MASTER, 0, (2,)))

    job = convert.job_from_proto(pb.JobSpec(id="j", groups=[minimal(retry=sent)]), retry=masters)
    plain = convert.job_from_proto(pb.JobSpec(id="j", groups=[minimal()]), retry=masters)

    assert job.groups[0].retry == RetryPolicy(9, 7, 2_000, 60_000, 0, (2,))
    assert plain.groups[0].retry == masters


def test_there_are_as_many_tasks_as_items():
    items = convert.items_encode(range(300))

    job = convert.job_from_proto(pb.JobSpec(id="j", groups=[minimal(items=items)]))

    assert job.groups[0].count == 300


def test_items_may_be_left_out():
    job = JobSpec(id="j", groups=(GroupSpec("main", Command(("true",)), 3, convert.items_encode("abc")),))

    assert not convert.job_to_proto(job, items=False).groups[0].items


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (minimal(name="a b"), "groups[0].name = 'a b': must be 1 to 128 letters"),
        (minimal(name=""), "groups[0].name = '': must be"),
        (minimal(command=pb.Command()), "groups[0].command.argv is empty"),
        (minimal(command=pb.Command(argv=["a\0b"])), "groups[0].command.argv: 'a\\x00b' contains a NUL"),
        (pb.GroupSpec(name="main"), "groups[0].work is missing"),
        (pb.GroupSpec(name="master", framework=pb.Framework()), "groups[0].framework.type = '': must be 1 to 128"),
        (pb.GroupSpec(name="master", framework=pb.Framework(type="x" * 33)), "33 characters; at most 32"),
        (pb.GroupSpec(name="master", framework=pb.Framework(type="a", kind="b c")), "framework.kind = 'b c': must"),
        (pb.GroupSpec(name="master", framework=pb.Framework(type="a", path=["\0"])), "path: '\\x00' contains a NUL"),
        (pb.GroupSpec(name="master", framework=pb.Framework(type="a")), "a framework job is open"),
        (pb.GroupSpec(name="w", framework=pb.Framework(type="a")), "groups: a framework job begins with one group"),
        (
            pb.GroupSpec(name="main", python=pb.Python(function="f")),
            'groups[0].python.function = "f": must be MODULE',
        ),
        (minimal(count=10_000_001), "groups[0].count = 10000001: must be 1..10000000"),
        (
            minimal(count=2, items=convert.items_encode([1])),
            "groups[0].count = 2: differs from the number of items, 1",
        ),
        (minimal(count=1, items=[b"\xff"]), "groups[0].items[0]: is not a msgpack array"),
        (minimal(items=[*convert.items_encode([1]), *convert.items_encode([2])]), "groups[0].items[0]: has 1 items"),
        (minimal(retry=pb.RetryPolicy(attempts_max=0)), "groups[0].retry.attempts_max = 0: must be 1..600"),
        (minimal(retry=pb.RetryPolicy(attempts_max=601)), "groups[0].retry.attempts_max = 601: must be 1..600"),
        (
            minimal(selectors=[pb.Selector(key="a", op="like")]),
            "groups[0].selectors[0].op = 'like': must be one of eq",
        ),
        (
            minimal(selectors=[pb.Selector(key="a")]),
            "groups[0].selectors[0].values: eq needs exactly one value, not 0",
        ),
        (
            minimal(selectors=[pb.Selector(key="a", op="regex", values=["("])]),
            "groups[0].selectors[0].values: the regex '(' does not compile (RE2): missing )",
        ),
        (minimal(selectors=[pb.Selector(key="a", op="exists")] * 33), "groups[0].selectors: 33 of them; at most 32"),
        (minimal(resources={"gpu": 0}), "groups[0].resources.gpu = 0: must be 1..9007199254740992"),
        (minimal(resources={"gpu": (1 << 64) - 1}), "groups[0].resources.gpu = 18446744073709551615: must be 1.."),
        (minimal(resources={"a b": 1}), "groups[0].resources = 'a b': must be 1 to 128 letters"),
        (minimal(resources={f"r{i}": 1 for i in range(33)}), "groups[0].resources: 33 names; at most 32"),
        (
            minimal(placement=pb.PlacementPolicy(strategy="x")),
            "groups[0].placement.strategy = 'x': must be one of spread, binpack",
        ),
        (
            minimal(placement=pb.PlacementPolicy(max_per_executor=10_000_001)),
            "groups[0].placement.max_per_executor = 10000001: must be 0..10000000",
        ),
        (minimal(grace_ms=3_600_001), "groups[0].grace_ms = 3600001: must be 0..3600000"),
    ],
)
def test_an_error_names_the_field_the_value_and_what_it_must_be(group: pb.GroupSpec, message: str):
    with pytest.raises(InvalidArgument) as caught:
        convert.job_from_proto(pb.JobSpec(id="j", groups=[group]))

    assert message in str(caught.value)


def test_a_job_needs_groups_with_names_of_their_own():
    with pytest.raises(InvalidArgument, match="groups is empty"):
        convert.job_from_proto(pb.JobSpec(id="j"))
    with pytest.raises(InvalidArgument, match=r"groups\[1\]\.name = 'main': is there twice"):
        convert.job_from_proto(pb.JobSpec(id="j", groups=[minimal(), minimal()]))


def test_a_job_that_is_too_large_is_told_what_to_do():
    items = convert.items_encode(["x" * 10_000] * 500)

    with pytest.raises(InvalidArgument, match="at most 4194304: put the items into files"):
        convert.job_from_proto(pb.JobSpec(id="j", groups=[minimal(items=items)]))


@given(st.integers(1, 1_000), st.data())
def test_a_slice_has_exactly_its_items(count: int, data: st.DataObject):
    blocks = convert.items_encode({"n": number} for number in range(count))
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))

    assert msgpack.decode(convert.items_slice(blocks, start, stop)) == [{"n": n} for n in range(start, stop)]


def test_items_are_encoded_in_blocks():
    blocks = convert.items_encode(range(600))

    assert [len(msgpack.decode(block)) for block in blocks] == [ITEMS_PER_BLOCK, ITEMS_PER_BLOCK, 88]


def test_an_item_that_cannot_be_sent_is_named():
    with pytest.raises(InvalidArgument, match=r"^items\[300\] cannot be sent .*; use None, bool"):
        convert.items_encode([*range(300), object()])


def test_an_assignment_carries_the_work():
    for work in (Command(("echo", "{index}"), {"A": "b"}, "/tmp"), Python("a:b", ("/x",))):
        message = pb.Assignment()
        convert.put_work(message, work)

        assert convert.work_from_proto(message) == work
