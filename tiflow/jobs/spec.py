"""Job files: a job as TOML.

    type = "python"                              # or "command"
    function = "wordcount:count_words"
    path = ["."]                                 # relative to the file; default: the directory of the file
    items-glob = "{python-stdlib}/*.py"          # or items = [...], items-file = "paths.txt", or count = 10
    attempts = 3                                 # and backoff, backoff-max, backoff-multiplier, backoff-reset
    final-errors = ["KeyError"]                  # not tried again; for commands: final-exit-codes = [2]
    selectors = ["zone=eu"]                      # also "disk!=hdd", "zone in eu|us", "node~e[0-9]+", "gpu"
    timeout = "1m"                               # of one attempt; grace = "5s" from SIGTERM to SIGKILL

    job-timeout = "1h"                           # the job fails if it has not ended so long after it was submitted,
    queue-timeout = "10m"                        # ... or if nothing of it was placed by then,
    max-failures = 5                             # ... or as soon as so many tasks have failed for good
    retries-max = 100                            # of all tasks together
    priority = 60                                # 0 to 100; default: 50
    project = "research"                         # whose quotas and share it has; `tiflow project set` makes it

    [resources]                                  # what each task needs while it runs
    cpu = 0.5                                    # or "500m"
    memory = "512MiB"
    gpu = 1                                      # whatever executors say that they have

    [placement]                                  # on which of the executors that fit
    strategy = "binpack"                         # or "spread"
    spread-over = "zone"                         # a label
    max-per-executor = 2                         # tasks of the group

    [limits]                                     # of one attempt
    memory = "1GiB"                              # private memory of each of its processes
    open-files = 256
    output = "10MiB"                             # kept of stdout, and of stderr: the newest

With several groups, what is above the first empty line stands in [[group]] tables, as do [group.resources],
[group.placement] and [group.limits]; a [placement] above them is for all that have none. Each group has a name, and
may come after others: after = ["a", {group = "b", on = "completion"}]. With on-lost-result = "fail" above them, the
job fails if a result is lost with its executor (else: "rerun").

Any other type is a framework type (`tiflow.jobs.framework`). Its file has a [config] instead of function, argv and
items; what it says of attempts, selectors, resources and so on is meant for the job master. examples/ has more.

    type = "fake"

    [config]
    worker-count = 4
"""

import difflib
import glob
import re
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import msgspec
from msgspec import Struct

from tiflow.errors import InvalidArgument
from tiflow.jobs.check import GRACE_MS_MAX, LIMITS, TIMEOUT_MS_MAX, check_job
from tiflow.jobs.framework.submission import master_work
from tiflow.jobs.items import items_count, items_encode
from tiflow.sched.framework import advertised
from tiflow.sched.model import (
    ATTEMPTS_MAX,
    BY_MASTER,
    DEFAULT_PROJECT,
    MASTER_GROUP,
    After,
    Command,
    Framework,
    GroupSpec,
    JobSpec,
    Limits,
    PlacementPolicy,
    Python,
    RetryPolicy,
    Selector,
    Work,
)
from tiflow.sched.selectors import check_regex
from tiflow.toml import check_keys, read_toml, type_error
from tiflow.values import parse_bytes, parse_duration_ms, parse_resources


class PlacementFile(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """What may stand in a [placement] table."""

    strategy: str = "spread"
    spread_over: str = ""
    max_per_executor: int = 0


class AfterFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What may stand in `after`, beside plain names."""

    group: str
    on: str = "success"


class LimitsFile(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """What may stand in [limits]. Empty or 0: not limited."""

    memory: str = ""
    open_files: int = 0
    output: str = ""


AS_MASTERS_SAY = RetryPolicy(
    attempts_max=BY_MASTER,
    backoff_ms=BY_MASTER,
    multiplier_milli=BY_MASTER,
    backoff_ms_max=BY_MASTER,
    reset_ms=BY_MASTER,
)


class GroupFile(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """What may stand in a [[group]] table, and at the top of a file with one group."""

    name: str = "main"
    type: str = ""  #: python, command or a framework type; empty: as `function` or `argv` says
    function: str = ""  #: module:name
    path: tuple[str, ...] | None = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    items: tuple[Any, ...] | None = None
    items_glob: str | None = None  #: {python-stdlib} stands for the directory of Python's standard library
    items_file: str | None = None  #: one item per line; `-` is stdin
    count: int | None = None
    attempts: int | None = None  #: this and what begins with `backoff`: as the masters' [job-backoff] says
    backoff: str | None = None
    backoff_max: str | None = None
    backoff_multiplier: float | None = None
    backoff_reset: str | None = None
    final_exit_codes: tuple[int, ...] = ()
    final_errors: tuple[str, ...] = ()
    timeout: str = "0s"
    grace: str = "5s"
    selectors: tuple[str, ...] = ()
    resources: dict[str, Any] = {}
    placement: PlacementFile | None = None
    after: tuple[str | AfterFile, ...] = ()
    limits: LimitsFile = LimitsFile()


class JobFile(GroupFile, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """A whole file."""

    id: str = ""
    priority: int = 50
    labels: dict[str, str] = {}
    project: str = DEFAULT_PROJECT
    retries_max: int | None = None
    max_failures: int = 0
    job_timeout: str = "0s"
    queue_timeout: str = "0s"
    on_lost_result: str = "rerun"
    config: dict[str, Any] = {}  #: of a framework type
    group: tuple[GroupFile, ...] = ()


SIMPLE = ("python", "command")  #: types of which a group may be; any other is a framework type
_NAME = GroupFile().name
_JOB_KEYS = {name.replace("_", "-") for name in set(JobFile.__struct_fields__) - set(GroupFile.__struct_fields__)}


def load_job(path: str, *, id: str = "") -> JobSpec:
    """Read a job file. `id` overrides the file's; with neither, the spec's is empty and the client draws one.

    Raises:
        InvalidArgument: one line that names the file, the key, its value, and the remedy.
    """
    tree = read_toml(path, "job file")
    _check_all_keys(tree, path)
    try:
        file = msgspec.convert(tree, JobFile)
    except msgspec.ValidationError as error:
        raise type_error(error, tree, lambda key: f"{path}: {key}") from None
    directory = Path(path).resolve().parent
    if file.type not in ("", *SIMPLE) and not file.group:
        groups: tuple[GroupSpec, ...] = (_job_master(file, f"{path}: ", directory),)
    elif file.config:
        raise InvalidArgument(f"{path}: config: is for framework types; remove it, or write their type above it")
    elif file.group:
        alone = sorted(set(tree) - _JOB_KEYS - {"placement"})
        if alone:
            raise InvalidArgument(
                f"{path}: {alone[0]}: stands beside [[group]]; move it into the groups that it is meant for"
            )
        groups = tuple(
            _group(group, f"{path}: group[{at}].", directory, file.placement) for at, group in enumerate(file.group)
        )
    else:
        groups = (_group(file, f"{path}: ", directory, None),)
    spec = JobSpec(
        id=id or file.id,
        groups=groups,
        priority=file.priority,
        labels=file.labels,
        retries_max=file.retries_max,
        max_failures=file.max_failures,
        job_timeout_ms=parse_duration_ms(file.job_timeout, f"{path}: job-timeout", 0, TIMEOUT_MS_MAX),
        queue_timeout_ms=parse_duration_ms(file.queue_timeout, f"{path}: queue-timeout", 0, TIMEOUT_MS_MAX),
        project=file.project,
        on_lost_result=file.on_lost_result,
        open=isinstance(groups[0].work, Framework),
    )
    try:
        check_job(spec if spec.id else msgspec.structs.replace(spec, id="drawn-later"))
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {_in_words_of_the_file(str(error), bool(file.group))}") from None
    return spec


def parse_selector(text: str, key: str) -> Selector:
    """`zone=eu`, `disk!=hdd`, `zone in eu|us`, `node~e[0-9]+` (RE2, on the whole label), or `gpu`: it is there."""
    regex = re.fullmatch(r"\s*([\w.-]+)\s*~\s*(.*?)\s*", text, re.DOTALL)
    if regex:
        check_regex(f'{key} = "{text[:80]}"', regex[2])
        return Selector(regex[1], "regex", (regex[2],))
    name, word, values = text.partition(" in ")
    if word:
        return Selector(name.strip(), "in", tuple(value.strip() for value in values.split("|")))
    for operator, op in (("!=", "neq"), ("=", "eq")):
        name, found, value = text.partition(operator)
        if found:
            if not name.strip() or not value.strip() or "=" in value:
                break
            return Selector(name.strip(), op, (value.strip(),))
    else:
        if text.strip():
            return Selector(text.strip(), "exists")
    raise InvalidArgument(
        f'{key} = "{text}": write "zone=eu", "disk!=hdd", "zone in eu|us", "node~e[0-9]+" for a regex, or "gpu" for '
        "a label that must be there"
    )


class Where(TypedDict):
    """Where a group's tasks may run, as GroupSpec has it."""

    selectors: tuple[Selector, ...]
    resources: dict[str, int]
    placement: PlacementPolicy


def parse_where(
    selectors: Sequence[str], resources: Mapping[str, float | str] | None, placement: PlacementPolicy | None
) -> Where:
    """For the client: selectors and resources as job files have them."""
    if isinstance(selectors, str):
        raise InvalidArgument(f'selectors = "{selectors}": must be a list, as ["{selectors}"]')
    return {
        "selectors": tuple(parse_selector(text, "selectors") for text in selectors),
        "resources": parse_resources(resources or {}, "resources"),
        "placement": placement or PlacementPolicy(),
    }


def _in_words_of_the_file(text: str, several: bool) -> str:
    for ours, theirs in _FILE_WORDS.items():
        text = text.replace(ours, theirs)
    return re.sub(r"^groups\[(\d+)\]\.", r"group[\1]." if several else "", text)


_FILE_WORDS = {
    ".python.": ".",
    ".command.": ".",
    ".framework.": ".",
    ".retry.final_exit_codes": ".final-exit-codes",
    ".retry.final_errors": ".final-errors",
    "name final_exit_codes": "name final-exit-codes",
    "name final_errors": "name final-errors",
    "retries_max": "retries-max",
    ".spread_over": ".spread-over",
    ".max_per_executor": ".max-per-executor",
    "max_failures": "max-failures",
    "on_lost_result": "on-lost-result",
    "a job needs at least one group of tasks": "write at least one [[group]]",
}


def _check_all_keys(tree: dict[str, Any], path: str) -> None:
    check_keys(tree, JobFile, path)
    groups = tree.get("group")
    if isinstance(groups, dict):
        raise InvalidArgument(f"{path}: [group] is one table; write [[group]], once for each group")
    for at, group in enumerate(groups if isinstance(groups, list) else ()):
        if isinstance(group, dict):
            check_keys(group, GroupFile, path, f"group[{at}].")


def _group(file: GroupFile, at: str, directory: Path, placement: PlacementFile | None) -> GroupSpec:
    group = _group_spec(file, at, _work(file, at, directory), file.placement or placement)
    items = _items(file, at, directory)
    if file.count is not None and file.count < 1:
        raise InvalidArgument(f"{at}count = {file.count}: must be at least 1")
    return msgspec.structs.replace(group, count=items_count(items) or file.count or 1, items=items)


def _group_spec(file: GroupFile, at: str, work: Work, placement: PlacementFile | None) -> GroupSpec:
    """A group of one task."""
    placement = placement or PlacementFile()
    return GroupSpec(
        name=file.name,
        work=work,
        selectors=tuple(parse_selector(text, f"{at}selectors") for text in file.selectors),
        retry=_retry(file, at),
        timeout_ms=parse_duration_ms(file.timeout, f"{at}timeout", 0, TIMEOUT_MS_MAX),
        grace_ms=parse_duration_ms(file.grace, f"{at}grace", 0, GRACE_MS_MAX),
        resources=parse_resources(file.resources, f"{at}resources"),
        placement=PlacementPolicy(placement.strategy, placement.spread_over, placement.max_per_executor),
        after=tuple(After(one) if isinstance(one, str) else After(one.group, one.on) for one in file.after),
        limits=_limits(file.limits, f"{at}limits."),
    )


def _job_master(file: JobFile, at: str, directory: Path) -> GroupSpec:
    """The one group that a framework job begins with."""
    if near := difflib.get_close_matches(file.type, SIMPLE, n=1, cutoff=0.85):
        raise InvalidArgument(f'{at}type = "{file.type}": is not known; did you mean "{near[0]}"?')
    _refuse_others(
        at,
        file.type,
        **{
            "function": file.function,
            "argv": file.argv,
            "env": file.env,
            "cwd": file.cwd,
            "items": file.items,
            "items-glob": file.items_glob,
            "items-file": file.items_file,
            "count": file.count,
            "final-exit-codes": file.final_exit_codes,
            "after": file.after,
            "name": file.name if file.name != _NAME else "",
        },
    )
    path = tuple(str((directory / entry).resolve()) for entry in file.path or ())
    group = _group_spec(file, at, master_work(file.type, file.config, path, at=at), file.placement)
    return msgspec.structs.replace(group, name=MASTER_GROUP, selectors=(*group.selectors, advertised(file.type)))


def _limits(file: LimitsFile, at: str) -> Limits:
    bounds = {name: (low, high) for name, low, high in LIMITS}
    low, high = bounds["open_files"]
    if file.open_files and not low <= file.open_files <= high:
        raise InvalidArgument(f"{at}open-files = {file.open_files}: must be {low}..{high}")
    return Limits(
        memory_bytes=parse_bytes(file.memory, f"{at}memory", *bounds["memory_bytes"]) if file.memory else 0,
        open_files=file.open_files,
        output_bytes=parse_bytes(file.output, f"{at}output", *bounds["output_bytes"]) if file.output else 0,
    )


def _retry(file: GroupFile, at: str) -> RetryPolicy:
    def duration_ms(key: str, text: str | None, most_ms: int) -> int:
        return BY_MASTER if text is None else parse_duration_ms(text, f"{at}{key}", 0, most_ms)

    multiplier = file.backoff_multiplier
    if file.attempts is not None and not 1 <= file.attempts <= ATTEMPTS_MAX:
        raise InvalidArgument(f"{at}attempts = {file.attempts}: must be 1..{ATTEMPTS_MAX}")
    if multiplier is not None and not 1 <= multiplier <= 10:
        raise InvalidArgument(f"{at}backoff-multiplier = {multiplier:g}: must be 1..10")
    return RetryPolicy(
        attempts_max=BY_MASTER if file.attempts is None else file.attempts,
        backoff_ms=duration_ms("backoff", file.backoff, 3_600_000),
        multiplier_milli=BY_MASTER if multiplier is None else round(multiplier * 1_000),
        backoff_ms_max=duration_ms("backoff-max", file.backoff_max, 86_400_000),
        reset_ms=duration_ms("backoff-reset", file.backoff_reset, TIMEOUT_MS_MAX),
        final_exit_codes=file.final_exit_codes,
        final_errors=file.final_errors,
    )


def _work(file: GroupFile, at: str, directory: Path) -> Work:
    kind = file.type or ("python" if file.function else "command" if file.argv else "")
    if kind not in SIMPLE:
        given = f'type = "{file.type}": is not known' if file.type else "type is missing"
        more = ", or make it a job of its own, without [[group]], if it is a framework type" if file.type else ""
        raise InvalidArgument(f'{at}{given}; write type = "python" or type = "command"{more}')
    if kind == "python":
        _refuse_others(at, "python", argv=file.argv, env=file.env, cwd=file.cwd)
        if not file.function:
            raise InvalidArgument(
                f'{at}function is missing; name it as function = "module:function", as "wordcount:count_words"'
            )
        path = file.path if file.path is not None else (".",)
        return Python(function=file.function, path=tuple(str((directory / entry).resolve()) for entry in path))
    _refuse_others(at, "command", function=file.function, path=file.path)
    if not file.argv:
        raise InvalidArgument(f'{at}argv is missing; write the program and its arguments, as argv = ["sleep", "1"]')
    return Command(argv=file.argv, env=file.env, cwd=file.cwd)


def _refuse_others(at: str, kind: str, **fields: Any) -> None:
    for name, value in fields.items():
        if value:
            raise InvalidArgument(f'{at}{name}: has no meaning with type = "{kind}"; remove it, or change the type')


def _items(file: GroupFile, at: str, directory: Path) -> tuple[bytes, ...]:
    sources = {
        "items": file.items,
        "items-glob": file.items_glob,
        "items-file": file.items_file,
        "count": file.count,
    }
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise InvalidArgument(f"{at}{given[0]} and {given[1]}: both say how many tasks there are; keep one of them")
    if not given or given == ["count"]:
        return ()
    items: Sequence[Any]
    if file.items is not None:
        items, remedy = file.items, "give at least one"
    elif file.items_glob is not None:
        pattern = file.items_glob.replace("{python-stdlib}", sysconfig.get_path("stdlib"))
        items = sorted(glob.glob(str(directory / pattern), recursive=True))
        remedy = f'"{file.items_glob}" matches no file here'
    else:
        items, remedy = _lines(file.items_file or "", at, directory), "put one item on each line"
    if not items:
        raise InvalidArgument(f"{at}{given[0]} is empty: {remedy}")
    try:
        return items_encode(items)
    except InvalidArgument as error:
        raise InvalidArgument(f"{at}{error}") from None


def _lines(name: str, at: str, directory: Path) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else (directory / name).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(
            f"{at}items-file = {name}: cannot be read ({error.strerror}); it is looked for beside the job file"
        ) from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{at}items-file = {name}: is not UTF-8 text") from None
    return [line for line in text.splitlines() if line.strip()]
