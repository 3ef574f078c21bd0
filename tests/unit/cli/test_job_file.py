import io
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack
from msgspec.structs import replace

from tiflow.errors import InvalidArgument
from tiflow.jobs.framework import JobMaster, types
from tiflow.jobs.spec import AS_MASTERS_SAY, load_job, parse_selector
from tiflow.sched.model import (
    After,
    Command,
    Framework,
    GroupSpec,
    Limits,
    PlacementPolicy,
    Python,
    RetryPolicy,
    Selector,
)

EXAMPLES = Path(__file__).parents[3] / "examples"


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "job.toml"
    file.write_text(text)
    return str(file)


def items(group: GroupSpec) -> list[object]:
    return [item for block in group.items for item in msgpack.decode(block)]


def test_a_python_job(tmp_path: Path):
    spec = load_job(
        write(
            tmp_path,
            """
            id = "words"
            type = "python"
            function = "wordcount:count_words"
            path = [".", "lib"]
            items = ["a", {b = 1}, [2, 3.5]]
            attempts = 5
            backoff = "2s"
            timeout = "30s"
            grace = "0s"
            priority = 60
            labels = {team = "a"}
            selectors = ["zone=eu", "disk!=hdd", "gpu"]
            """,
        )
    )

    assert (spec.id, spec.priority, spec.labels) == ("words", 60, {"team": "a"})
    (group,) = spec.groups
    assert group.work == Python("wordcount:count_words", (str(tmp_path), str(tmp_path / "lib")))
    assert (group.name, group.count, items(group)) == ("main", 3, ["a", {"b": 1}, [2, 3.5]])
    assert group.retry == replace(AS_MASTERS_SAY, attempts_max=5, backoff_ms=2_000)
    assert (group.timeout_ms, group.grace_ms) == (30_000, 0)
    assert group.selectors == (
        Selector("zone", "eq", ("eu",)),
        Selector("disk", "neq", ("hdd",)),
        Selector("gpu", "exists"),
    )


def test_groups_that_come_after_others(tmp_path: Path):
    spec = load_job(
        write(
            tmp_path,
            """
            [[group]]
            name = "a"
            argv = ["true"]
            [[group]]
            name = "b"
            argv = ["true"]
            after = ["a"]
            [[group]]
            name = "c"
            argv = ["true"]
            after = ["b", {group = "a", on = "completion"}]
            """,
        )
    )

    assert [group.after for group in spec.groups] == [(), (After("a"),), (After("b"), After("a", "completion"))]


def test_a_command_job(tmp_path: Path):
    spec = load_job(
        write(tmp_path, 'argv = ["echo", "{index}"]\nenv = {A = "b"}\ncwd = "/tmp"\ncount = 4'), id="mine"
    )

    assert spec.id == "mine"
    assert spec.groups == (
        GroupSpec("main", Command(("echo", "{index}"), {"A": "b"}, "/tmp"), 4, retry=AS_MASTERS_SAY),
    )


def test_limits_of_an_attempt(tmp_path: Path):
    limits = '[limits]\nmemory = "1.5GiB"\nopen-files = 64\noutput = "10MiB"'
    alone = load_job(write(tmp_path, f'argv = ["true"]\n{limits}'))
    several = load_job(write(tmp_path, f'[[group]]\nargv = ["true"]\n{limits.replace("[", "[group.")}'))

    for spec in (alone, several):
        assert spec.groups[0].limits == Limits(1_536 << 20, 64, 10 << 20)
    assert load_job(write(tmp_path, 'argv = ["true"]')).groups[0].limits == Limits()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ('memory = "1GB"', 'limits.memory = "1GB": is not a size; write a number and a unit, as "512MiB" or "2GiB"'),
        ('memory = "1MiB"', 'limits.memory = "1MiB": must be 16MiB to 1024TiB'),
        ("open-files = 3", "limits.open-files = 3: must be 16..1048576"),
        ('output = "10"', 'limits.output = "10": must be 64KiB to 1TiB'),
        ("files = 30", "unknown key limits.files = 30; "),
    ],
)
def test_a_limit_that_cannot_be_is_named(tmp_path: Path, limits: str, message: str):
    with pytest.raises(InvalidArgument) as refusal:
        load_job(write(tmp_path, f'argv = ["true"]\n[limits]\n{limits}'))

    assert f": {message}" in str(refusal.value)


def test_how_a_job_is_tried_again_and_when_it_fails(tmp_path: Path):
    spec = load_job(
        write(
            tmp_path,
            """
            id = "j"
            retries-max = 100
            max-failures = 5
            job-timeout = "1h"
            queue-timeout = "10m"
            on-lost-result = "fail"
            [[group]]
            name = "a"
            argv = ["true"]
            attempts = 4
            backoff = "1s"
            backoff-max = "1m"
            backoff-multiplier = 1.5
            backoff-reset = "2m"
            final-exit-codes = [2, -9]
            [[group]]
            name = "b"
            function = "a:b"
            final-errors = ["ValueError"]
            """,
        )
    )

    assert (spec.retries_max, spec.max_failures) == (100, 5)
    assert (spec.job_timeout_ms, spec.queue_timeout_ms) == (3_600_000, 600_000)
    assert spec.on_lost_result == "fail"
    assert spec.groups[0].retry == RetryPolicy(4, 1_000, 1_500, 60_000, 120_000, (2, -9))
    assert spec.groups[1].retry == replace(AS_MASTERS_SAY, final_errors=("ValueError",))


def test_a_python_job_finds_its_function_beside_the_file(tmp_path: Path):
    spec = load_job(write(tmp_path, 'function = "a:b"'))

    assert spec.groups[0].work == Python("a:b", (str(tmp_path),))


def test_several_groups(tmp_path: Path):
    spec = load_job(
        write(tmp_path, '[[group]]\nname = "a"\nargv = ["true"]\n[[group]]\nname = "b"\nfunction = "m:f"')
    )

    assert [group.name for group in spec.groups] == ["a", "b"]


def test_items_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "list").write_text("one\n\ntwo\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("three\nfour"))

    def read(key: str) -> list[object]:
        return items(load_job(write(tmp_path, f'function = "m:f"\n{key}')).groups[0])

    assert read('items-glob = "*.txt"') == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert read('items-file = "list"') == ["one", "two"]
    assert read('items-file = "-"') == ["three", "four"]
    assert str(Path(sysconfig.get_path("stdlib")) / "os.py") in read('items-glob = "{python-stdlib}/*.py"')


@pytest.mark.parametrize("name", ["wordcount", "command", "groups", "dag"])
def test_the_examples_are_good(name: str):
    assert load_job(str(EXAMPLES / f"{name}.toml")).groups


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'type is missing; write type = "python" or type = "command"'),
        ("type = 'pyton'", 'type = "pyton": is not known; did you mean "python"?'),
        ("type = 'python'", 'function is missing; name it as function = "module:function"'),
        ("type = 'command'", "argv is missing; write the program and its arguments"),
        ("function = 3", "function = 3: must be a string in quotes"),
        ("argv = ['a']\nafter = ['b']", "groups.main.after: there is no group 'b'; the job has main"),
        ("argv = ['a']\nafter = [3]", "after[0] = 3: must be a name in quotes, or a table"),
        ("function = 'f'", 'function = "f": must be MODULE:FUNCTION'),
        ("argv = 'true'", 'argv = "true": must be a list in brackets'),
        ("argv = ['a', 3]", "argv[1] = 3: must be a string in quotes"),
        ("argv = ['a']\nenv = {A = 3}", 'env = {"A": 3}: each value must be a string'),
        ("argv = ['a']\nfunction = 'm:f'\ntype = 'command'", 'function: has no meaning with type = "command"'),
        ("argv = ['a']\nfunction = 'm:f'", 'argv: has no meaning with type = "python"'),
        ("argv = ['a']\nitems = [1]\ncount = 2", "items and count: both say how many tasks there are"),
        ("argv = ['a']\ncount = 0", "count = 0: must be at least 1"),
        ("argv = ['a']\ncount = 10000001", "count = 10000001: must be 1..10000000"),
        ("argv = ['a']\nitems = []", "items is empty: give at least one"),
        ("argv = ['a']\nitems-glob = 'none*'", 'items-glob is empty: "none*" matches no file here'),
        ("argv = ['a']\nitems-file = 'none'", "items-file = none: cannot be read (No such file"),
        ("argv = ['a']\nattempts = 0", "attempts = 0: must be 1..600"),
        ("argv = ['a']\nattempts = -1", "attempts = -1: must be 1..600"),
        ("argv = ['a']\nbackoff-multiplier = 0.5", "backoff-multiplier = 0.5: must be 1..10"),
        ("argv = ['a']\nfinal-exit-codes = [0]", "final-exit-codes = 0: must be 1..255, or -1..-64"),
        ("argv = ['a']\nfinal-errors = ['E']", "final-errors: only python functions raise errors; name final-exit"),
        ("function = 'a:b'\nfinal-errors = ['a.E']", "final-errors = 'a.E': must be the name of an exception type"),
        ("argv = ['a']\nmax-failures = -1", "max-failures = -1: must be 0..10000000"),
        ("argv = ['a']\nretries-max = -1", "retries-max = -1: must be 0..1000000000"),
        ("argv = ['a']\non-lost-result = 'weep'", 'on-lost-result = "weep": must be rerun or fail'),
        ("argv = ['a']\njob-timeout = '31 w'", 'job-timeout = "31 w": is not a duration'),
        ("argv = ['a']\nqueue-timeout = '721h'", 'queue-timeout = "721h": must be 0ms to 720h'),
        ("argv = ['a']\nattempts = '3'", 'attempts = "3": must be a whole number'),
        ("argv = ['a']\nbackoff = '1 day'", 'backoff = "1 day": is not a duration'),
        ("argv = ['a']\npriority = 101", "priority = 101: must be 0..100"),
        ("argv = ['a']\nselectors = ['=eu']", 'selectors = "=eu": write "zone=eu"'),
        ("argv = ['a']\nselectors = ['n~(']", "selectors = \"n~(\": the regex '(' does not compile (RE2): missing )"),
        ("argv = ['a']\nselectors = ['n~(.*){1,999}x']", "compiles to 9993 instructions; at most 300: use fewer"),
        ("argv = ['a']\nselectors = ['n~']", 'selectors = "n~": the regex has 0 characters; 1 to 256 are wanted'),
        (f"argv = ['a']\nselectors = ['n~{'x' * 257}']", "the regex has 257 characters; 1 to 256 are wanted"),
        ("argv = ['a']\nresources = {cpu = -1}", "resources.cpu = -1: is not an amount of cpu; write cores, as 0.5"),
        ("argv = ['a']\nresources = {cpu = 0}", "resources.cpu = 0: must be more than 0"),
        ("argv = ['a']\nresources = {cpu = '0.5m'}", 'resources.cpu = "0.5m": is finer than a thousandth of a core'),
        (
            "argv = ['a']\nresources = {memory = '1 XB'}",
            'resources.memory = "1 XB": is not an amount of memory; write',
        ),
        ("argv = ['a']\nresources = {memory = '9999999GB'}", "must be more than 0, and at most 9007199254740992"),
        (
            "argv = ['a']\nresources = {gpu = 0.5}",
            "resources.gpu = 0.5: is not an amount of gpu; write a whole number",
        ),
        ("argv = ['a']\nresources = {gpu = true}", "resources.gpu = true: is not an amount of gpu"),
        ("type = 'fake'\nargv = ['a']", 'argv: has no meaning with type = "fake"'),
        ("type = 'fake'\nfunction = 'm:f'", 'function: has no meaning with type = "fake"'),
        ("type = 'fake'\nitems-glob = '*'", 'items-glob: has no meaning with type = "fake"'),
        ("type = 'fake'\ncount = 2", 'count: has no meaning with type = "fake"'),
        ("type = 'fake'\nname = 'w'", 'name: has no meaning with type = "fake"'),
        ("type = 'fake'\nfinal-exit-codes = [2]", 'final-exit-codes: has no meaning with type = "fake"'),
        ("type = 'fake'\non-lost-result = 'fail'", "on-lost-result: what job masters and workers return is not"),
        ("type = 'fake'\n[config]\nworkers = 4", "config: unknown key workers = 4; did you mean worker-count?"),
        ("type = 'a b'", "type = 'a b': must be 1 to 128 letters"),
        (f"type = '{'x' * 33}'", "33 characters; at most 32"),
        ("argv = ['a']\n[config]\na = 1", "config: is for framework types; remove it, or write their type"),
        ("[config]\na = 1\n[[group]]\nargv = ['a']", "config: is for framework types; remove it"),
        ("[[group]]\ntype = 'fake'", 'group[0].type = "fake": is not known; write type = "python"'),
        ("argv = ['a']\nresources = {'a b' = 1}", 'resources: the name "a b" must be 1 to 128 letters'),
        ("argv = ['a']\nresources = 3", "resources = 3: must be a table"),
        ("argv = ['a']\nplacement = {strategy = 'x'}", "placement.strategy = 'x': must be one of spread, binpack"),
        ("argv = ['a']\nplacement = {spread-ofer = 'x'}", "unknown key placement.spread-ofer"),
        ("argv = ['a']\nplacement = {spread-over = 'a b'}", "placement.spread-over = 'a b': must be 1 to 128"),
        ("argv = ['a']\nplacement = {max-per-executor = -1}", "placement.max-per-executor = -1: must be 0..10000000"),
        ("[[group]]\nargv = ['a']\nplacement = {spread = 'x'}", "unknown key group[0].placement.spread"),
        ("argv = ['a']\nid = 'a b'", "id = 'a b': must be 1 to 128 letters"),
        ("argv = ['a']\nagrv = 3", "unknown key agrv = 3; did you mean argv?"),
        ("[group]\nargv = ['a']", "[group] is one table; write [[group]]"),
        (
            "[[group]]\nargv = ['a']\nname = 'x'\n[[group]]\nargv = ['a']\nname = 'x'",
            "group[1].name = 'x': is there twice",
        ),
        ("[[group]]\nargs = ['a']", "unknown key group[0].args"),
        ("[[group]]\nfunction = 3", "group[0].function = 3: must be a string"),
        ("attempts = 2\n[[group]]\nargv = ['a']", "attempts: stands beside [[group]]; move it into the groups"),
        ("argv", "is not TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_key_and_remedy(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)

    with pytest.raises(InvalidArgument) as caught:
        load_job(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("zone in eu|us", Selector("zone", "in", ("eu", "us"))),
        ("node ~ e[0-9]+", Selector("node", "regex", ("e[0-9]+",))),
        ("node~a=b in c", Selector("node", "regex", ("a=b in c",))),
        ("zone=a~b", Selector("zone", "eq", ("a~b",))),
    ],
)
def test_a_selector_in_a_word(text: str, selector: Selector):
    assert parse_selector(text, "key") == selector


def test_a_framework_job(tmp_path: Path):
    spec = load_job(
        write(
            tmp_path,
            """
            id = "counts"
            type = "counting"
            path = ["lib"]
            selectors = ["zone=eu"]
            resources = { cpu = 0.5 }
            attempts = 7
            backoff = "2s"
            final-errors = ["KeyError"]
            grace = "20s"
            project = "team"
            priority = 60
            job-timeout = "1h"
            max-failures = 3
            labels = { owner = "me" }

            [config]
            parts = 2
            rates = [0.5, "x"]

            [config.more]
            deep = true
            """,
        )
    )

    assert (spec.id, spec.framework, spec.open, spec.client_ttl_ms) == ("counts", True, True, 0)
    assert (spec.project, spec.priority, spec.job_timeout_ms, spec.max_failures) == ("team", 60, 3_600_000, 3)
    (master,) = spec.groups
    assert (master.name, master.count, master.items, master.grace_ms) == ("master", 1, (), 20_000)
    assert isinstance(master.work, Framework)
    assert (master.work.type, master.work.kind, master.work.path) == ("counting", "", (str(tmp_path / "lib"),))
    assert msgpack.decode(master.work.config) == {"parts": 2, "rates": [0.5, "x"], "more": {"deep": True}}
    assert master.selectors == (Selector("zone", "eq", ("eu",)), Selector("job-type.counting", "exists"))
    assert master.retry == replace(AS_MASTERS_SAY, attempts_max=7, backoff_ms=2_000, final_errors=("KeyError",))
    assert master.resources == {"cpu": 500}


class Refusing(JobMaster):
    @classmethod
    def check(cls, config: dict[str, Any]) -> None:
        if config.get("parts", 1) < 1:
            raise ValueError(f"parts = {config['parts']}: must be at least 1")


def test_the_config_of_a_type_that_is_known_here_is_checked_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(types.OWN, "refusing", f"{__name__}:Refusing")

    with pytest.raises(InvalidArgument, match=r"job\.toml: config: parts = 0: must be at least 1"):
        load_job(write(tmp_path, "type = 'refusing'\n[config]\nparts = 0"))

    assert load_job(write(tmp_path, "type = 'refusing'\n[config]\nparts = 1")).framework


def test_a_type_that_cannot_be_imported_here_may_be_known_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(types.OWN, "elsewhere", "no_such_module:Job")

    assert load_job(write(tmp_path, "type = 'elsewhere'\n[config]\nparts = 0")).framework


def test_where_a_job_runs(tmp_path: Path):
    spec = load_job(
        write(
            tmp_path,
            """
            [placement]
            strategy = "binpack"

            [[group]]
            name = "map"
            argv = ["a"]
            resources = { memory = "512MiB", cpu = 0.5, gpu = 1 }

            [[group]]
            name = "reduce"
            argv = ["b"]
            [group.resources]
            cpu = "250m"
            memory = 1_000
            gpu = "2"
            [group.placement]
            spread-over = "zone"
            max-per-executor = 2
            """,
        )
    )

    assert [group.resources for group in spec.groups] == [
        {"cpu": 500, "gpu": 1, "memory": 512 << 20},
        {"cpu": 250, "gpu": 2, "memory": 1_000},
    ]
    assert [group.placement for group in spec.groups] == [
        PlacementPolicy("binpack"),
        PlacementPolicy("spread", "zone", 2),
    ]
