"""What a job must be, whoever asks: the SDK before it sends, a master before it proposes."""

import re
from collections.abc import Iterable

from msgspec import msgpack

from tiflow.errors import InvalidArgument
from tiflow.jobs.items import check_items, items_count
from tiflow.sched.dependencies import check_after
from tiflow.sched.model import (
    AMOUNT_MAX,
    ATTEMPTS_MAX,
    BY_MASTER,
    CLIENT_TTL_MS_MAX,
    FINAL_MAX,
    GROUPS_PER_JOB_MAX,
    ID_CHARS,
    LABEL_CHARS_MAX,
    ON_LOST_RESULT,
    RESOURCES_MAX,
    RETRIES_MAX,
    SELECTORS_MAX,
    SPEC_BYTES_MAX,
    TASKS_PER_JOB_MAX,
    TYPE_CHARS_MAX,
    Call,
    Command,
    Framework,
    GroupSpec,
    JobSpec,
    PlacementPolicy,
    Python,
    Selector,
)
from tiflow.sched.selectors import check_regex
from tiflow.sched.validate import STRATEGIES, check_framework
from tiflow.values import ID_WORDS

TIMEOUT_MS_MAX = 30 * 86_400_000
GRACE_MS_MAX = 3_600_000
LABELS_MAX = 64
LIMITS = (
    ("memory_bytes", 16 << 20, 1 << 50),
    ("open_files", 16, 1 << 20),
    ("output_bytes", 64 << 10, 1 << 40),  # less would be a new file for each piece of it
)


def check_job(spec: JobSpec) -> JobSpec:
    """Return the spec, or raise InvalidArgument naming the field, its value, and what it must be."""
    _check_id("id", spec.id)
    _check_range("priority", spec.priority, 0, 100)
    _check_id("project", spec.project)
    if spec.retries_max is not None:
        _check_range("retries_max", spec.retries_max, 0, RETRIES_MAX)
    _check_range("max_failures", spec.max_failures, 0, TASKS_PER_JOB_MAX)
    _check_range("job_timeout_ms", spec.job_timeout_ms, 0, TIMEOUT_MS_MAX)
    _check_range("queue_timeout_ms", spec.queue_timeout_ms, 0, TIMEOUT_MS_MAX)
    _check_range("client_ttl_ms", spec.client_ttl_ms, 0, CLIENT_TTL_MS_MAX)
    if spec.on_lost_result not in ON_LOST_RESULT:
        raise InvalidArgument(f'on_lost_result = "{spec.on_lost_result[:40]}": must be rerun or fail')
    if not spec.groups and not spec.open:
        raise InvalidArgument("groups is empty: a job needs at least one group of tasks")
    if len(spec.groups) > GROUPS_PER_JOB_MAX:
        raise InvalidArgument(f"groups: {len(spec.groups)} of them; at most {GROUPS_PER_JOB_MAX} per job")
    if len(spec.labels) > LABELS_MAX:
        raise InvalidArgument(f"labels: {len(spec.labels)} of them; at most {LABELS_MAX} per job")
    for key, value in spec.labels.items():
        _check_id("labels", key)
        if len(value) > LABEL_CHARS_MAX:
            raise InvalidArgument(f"labels.{key}: {len(value)} characters; at most {LABEL_CHARS_MAX}")
    names: set[str] = set()
    for position, group in enumerate(spec.groups):
        check_group(group, f"groups[{position}]")
        if group.name in names:
            raise InvalidArgument(f"groups[{position}].name = {group.name!r}: is there twice; names must differ")
        names.add(group.name)
    check_framework(spec)
    check_after(spec.groups)
    tasks = sum(group.count for group in spec.groups)
    if tasks > TASKS_PER_JOB_MAX:
        raise InvalidArgument(f"groups: {tasks} tasks in all; at most {TASKS_PER_JOB_MAX} per job")
    size_bytes = len(msgpack.encode(spec))
    if size_bytes > SPEC_BYTES_MAX:
        raise InvalidArgument(
            f"the job's description has {size_bytes} bytes; at most {SPEC_BYTES_MAX}: "
            "put the items into files and pass their names, or submit several jobs"
        )
    return spec


def check_group(group: GroupSpec, at: str) -> None:
    """As `check_job`, of a group; `at` names it in an error."""
    _check_id(f"{at}.name", group.name)
    _check_range(f"{at}.count", group.count, 1, TASKS_PER_JOB_MAX)
    if isinstance(group.work, Command):
        _check_command(group.work, f"{at}.command")
    elif isinstance(group.work, Call):
        _check_call(group.work, f"{at}.call")
    elif isinstance(group.work, Framework):
        _check_member(group.work, f"{at}.framework")
    else:
        _check_python(group.work, f"{at}.python")
    if group.items:
        check_items(group.items, f"{at}.items")
        if items_count(group.items) != group.count:
            raise InvalidArgument(
                f"{at}.count = {group.count}: differs from the number of items, {items_count(group.items)}"
            )
    if len(group.selectors) > SELECTORS_MAX:
        raise InvalidArgument(f"{at}.selectors: {len(group.selectors)} of them; at most {SELECTORS_MAX}")
    for position, selector in enumerate(group.selectors):
        _check_selector(selector, f"{at}.selectors[{position}]")
    _check_resources(group.resources, f"{at}.resources")
    _check_placement(group.placement, f"{at}.placement")
    _check_retry(group, f"{at}.retry")
    _check_range(f"{at}.timeout_ms", group.timeout_ms, 0, TIMEOUT_MS_MAX)
    _check_range(f"{at}.grace_ms", group.grace_ms, 0, GRACE_MS_MAX)
    for name, low, high in LIMITS:
        if value := getattr(group.limits, name):
            _check_range(f"{at}.limits.{name}", value, low, high)


def _check_resources(resources: dict[str, int], at: str) -> None:
    if len(resources) > RESOURCES_MAX:
        raise InvalidArgument(f"{at}: {len(resources)} names; at most {RESOURCES_MAX}")
    for name, amount in resources.items():
        _check_id(at, name)
        _check_range(f"{at}.{name}", amount, 1, AMOUNT_MAX)


def _check_placement(policy: PlacementPolicy, at: str) -> None:
    if policy.strategy not in STRATEGIES:
        raise InvalidArgument(f"{at}.strategy = {policy.strategy[:140]!r}: must be one of {', '.join(STRATEGIES)}")
    if policy.spread_over:
        _check_id(f"{at}.spread_over", policy.spread_over)
    _check_range(f"{at}.max_per_executor", policy.max_per_executor, 0, TASKS_PER_JOB_MAX)


def _check_retry(group: GroupSpec, at: str) -> None:
    retry = group.retry
    for name, low, high in _RETRY_BOUNDS:
        value = getattr(retry, name)
        if value != BY_MASTER:
            _check_range(f"{at}.{name}", value, low, high)
    if retry.final_exit_codes and not isinstance(group.work, Command):
        raise InvalidArgument(f"{at}.final_exit_codes: only commands have exit codes; name final_errors")
    if retry.final_errors and isinstance(group.work, Command):
        raise InvalidArgument(f"{at}.final_errors: only python functions raise errors; name final_exit_codes")
    for name in ("final_exit_codes", "final_errors"):
        if len(getattr(retry, name)) > FINAL_MAX:
            raise InvalidArgument(f"{at}.{name}: {len(getattr(retry, name))} of them; at most {FINAL_MAX}")
    for code in retry.final_exit_codes:
        if not (1 <= code <= 255 or -64 <= code <= -1):
            raise InvalidArgument(f"{at}.final_exit_codes = {code}: must be 1..255, or -1..-64 for death by a signal")
    for error in retry.final_errors:
        if not error.isidentifier() or len(error) > 128:
            raise InvalidArgument(
                f"{at}.final_errors = {error[:140]!r}: must be the name of an exception type, as ValueError"
            )


_RETRY_BOUNDS = (
    ("attempts_max", 1, ATTEMPTS_MAX),
    ("backoff_ms", 0, 3_600_000),
    ("multiplier_milli", 1_000, 10_000),
    ("backoff_ms_max", 0, 86_400_000),
    ("reset_ms", 0, TIMEOUT_MS_MAX),
)


def _check_command(command: Command, at: str) -> None:
    if not command.argv or not command.argv[0]:
        raise InvalidArgument(
            f'{at}.argv is empty: name a program and its arguments, as ["sh", "-c", "echo {{index}}"]'
        )
    _check_text(f"{at}.argv", command.argv)
    _check_text(f"{at}.env", (*command.env, *command.env.values(), command.cwd))
    for name in command.env:
        if not name or "=" in name:
            raise InvalidArgument(f"{at}.env: {name!r} cannot be the name of an environment variable")


def _check_python(python: Python, at: str) -> None:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", python.function):
        raise InvalidArgument(
            f'{at}.function = "{python.function}": must be MODULE:FUNCTION, as "wordcount:count_words"'
        )
    _check_text(f"{at}.path", python.path)


def _check_call(call: Call, at: str) -> None:
    if not call.functions:
        raise InvalidArgument(f"{at}.functions is empty: calls need at least one function")
    _check_text(f"{at}.path", (*call.path, call.python, call.cloudpickle))


def _check_member(member: Framework, at: str) -> None:
    _check_id(f"{at}.type", member.type)
    if len(member.type) > TYPE_CHARS_MAX:
        raise InvalidArgument(f"{at}.type = {member.type!r}: {len(member.type)} characters; at most {TYPE_CHARS_MAX}")
    if member.kind:
        _check_id(f"{at}.kind", member.kind)
    _check_text(f"{at}.path", member.path)


_VALUES = {
    "eq": "exactly one value",
    "neq": "exactly one value",
    "in": "at least one value",
    "exists": "no value",
    "regex": "exactly one value",
}


def _check_selector(selector: Selector, at: str) -> None:
    _check_id(f"{at}.key", selector.key)
    if selector.op not in _VALUES:
        raise InvalidArgument(f"{at}.op = {selector.op!r}: must be one of {', '.join(_VALUES)}")
    values = len(selector.values)
    fits = {"eq": values == 1, "neq": values == 1, "in": values >= 1, "exists": values == 0, "regex": values == 1}
    if not fits[selector.op]:
        raise InvalidArgument(f"{at}.values: {selector.op} needs {_VALUES[selector.op]}, not {values}")
    if selector.op == "regex":
        check_regex(f"{at}.values", selector.values[0])


def _check_id(key: str, value: str) -> None:
    if not re.fullmatch(ID_CHARS, value) or value.endswith("\n"):
        raise InvalidArgument(f"{key} = {value[:140]!r}: must be {ID_WORDS}")


def _check_range(key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgument(f"{key} = {value}: must be {low}..{high}")


def _check_text(key: str, texts: Iterable[str]) -> None:
    for text in texts:
        if "\0" in text:
            raise InvalidArgument(f"{key}: {text[:80]!r} contains a NUL, which no program can be given")
