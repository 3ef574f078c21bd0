"""What a job and an executor must be like. Each error names the field, the value and the bound."""

import re
from collections.abc import Mapping

from tiflow.errors import InvalidArgument
from tiflow.sched.dependencies import check_after
from tiflow.sched.model import (
    AMOUNT_MAX,
    ATTEMPTS_MAX,
    CLIENT_TTL_MS_MAX,
    FINAL_MAX,
    GROUPS_PER_JOB_MAX,
    ID_CHARS,
    ITEMS_PER_BLOCK,
    MASTER_GROUP,
    ON_LOST_RESULT,
    REGEX_CHARS_MAX,
    RESOURCES_MAX,
    RETRIES_MAX,
    SELECTORS_MAX,
    SPEC_BYTES_MAX,
    TASKS_PER_JOB_MAX,
    TOKEN_CHARS_MAX,
    TYPE_CHARS_MAX,
    Call,
    Command,
    Framework,
    GroupSpec,
    JobSpec,
    PlacementPolicy,
    RetryPolicy,
    Selector,
    encoded_bytes,
)

_ID = re.compile(ID_CHARS)


def validate_spec(spec: JobSpec) -> int:
    """Raise InvalidArgument, which names field, value and bound, unless the job can be run. Returns: the bytes of its
    encoding.

    The bounds in the types are checked again here, since decoding an entry that breaks one would stop every
    master: whoever proposes a job must have called this before.
    """
    check_id("id", spec.id)
    check_range("priority", spec.priority, 0, 100)
    check_id("project", spec.project)
    if spec.retries_max is not None:
        check_range("retries_max", spec.retries_max, 0, RETRIES_MAX)
    check_range("max_failures", spec.max_failures, 0, TASKS_PER_JOB_MAX)
    check_range("job_timeout_ms", spec.job_timeout_ms, 0, DURATION_MS_MAX)
    check_range("queue_timeout_ms", spec.queue_timeout_ms, 0, DURATION_MS_MAX)
    for key in spec.labels:
        check_id("labels", key)
    check_range("client_ttl_ms", spec.client_ttl_ms, 0, CLIENT_TTL_MS_MAX)
    if spec.on_lost_result not in ON_LOST_RESULT:
        raise InvalidArgument(f"on_lost_result: {spec.on_lost_result[:40]!r} is none of {', '.join(ON_LOST_RESULT)}")
    if not (1 - spec.open) <= len(spec.groups) <= GROUPS_PER_JOB_MAX:
        raise InvalidArgument(f"groups: {len(spec.groups)} given; a job has 1 to {GROUPS_PER_JOB_MAX}")
    names: set[str] = set()
    for group in spec.groups:
        if group.name in names:
            raise InvalidArgument(f"groups: two have the name {group.name}")
        names.add(group.name)
        validate_group(group)
    check_framework(spec)
    check_after(spec.groups)
    check_range("groups: tasks in all", sum(group.count for group in spec.groups), 0, TASKS_PER_JOB_MAX)
    return check_size("spec", spec)


def check_framework(spec: JobSpec) -> None:
    """Raise InvalidArgument if there are members of a framework job in it, and it is none: an open job that begins
    with its job master alone, and does not depend on a client."""
    members = [group for group in spec.groups if isinstance(group.work, Framework)]
    if not members:
        return
    master = members[0]
    assert isinstance(master.work, Framework)
    if len(spec.groups) > 1 or master.name != MASTER_GROUP or master.count != 1 or master.work.kind:
        raise InvalidArgument(
            f"groups: a framework job begins with one group, {MASTER_GROUP}, of one task: its job master, which "
            "starts the workers"
        )
    if spec.on_lost_result != ON_LOST_RESULT[0]:
        raise InvalidArgument(
            "on_lost_result: what job masters and workers return is not computed again; leave it out"
        )
    if not spec.open or spec.client_ttl_ms:
        raise InvalidArgument("open, client_ttl_ms: a framework job is open, and needs no client")


def check_size(field: str, value: JobSpec | GroupSpec) -> int:
    """Returns: the bytes of its encoding. Raises InvalidArgument if they are too many."""
    size = encoded_bytes(value)
    if size > SPEC_BYTES_MAX:
        raise InvalidArgument(f"{field}: {size} bytes; at most {SPEC_BYTES_MAX}. Pass paths instead of contents")
    return size


def validate_group(group: GroupSpec) -> None:
    """As `validate_spec`, of a group."""
    where = f"groups.{group.name}"
    check_id("groups: name", group.name)
    check_range(f"{where}.count", group.count, 1, TASKS_PER_JOB_MAX)
    blocks = (group.count - 1) // ITEMS_PER_BLOCK + 1
    if group.items and len(group.items) != blocks:
        raise InvalidArgument(
            f"{where}.items: {len(group.items)} blocks of {ITEMS_PER_BLOCK} items each;"
            f" {group.count} tasks need {blocks}"
        )
    if isinstance(group.work, Command):
        if not group.work.argv or not group.work.argv[0]:
            raise InvalidArgument(f"{where}.work.argv: empty; it starts with the program")
    elif isinstance(group.work, Call):
        if not group.work.functions or not group.items:
            raise InvalidArgument(f"{where}.work: calls need functions and items")
    elif isinstance(group.work, Framework):
        check_id(f"{where}.work.type", group.work.type)
        check_length(f"{where}.work.type", group.work.type, TYPE_CHARS_MAX)
        check_id(f"{where}.work.kind", group.work.kind or MASTER_GROUP)
        if bool(group.items) != bool(group.work.kind):
            raise InvalidArgument(f"{where}.items: the configs of workers; a job master has none")
    elif not all(group.work.function.partition(":")):
        raise InvalidArgument(f"{where}.work.function: {group.work.function!r} is not of the form module:name")
    check_range(f"{where}.selectors: number of them", len(group.selectors), 0, SELECTORS_MAX)
    for selector in group.selectors:
        _validate_selector(where, selector)
    _validate_retry(where, group.retry)
    check_range(f"{where}.timeout_ms", group.timeout_ms, 0, DURATION_MS_MAX)
    check_range(f"{where}.grace_ms", group.grace_ms, 0, DURATION_MS_MAX)
    check_resources(f"{where}.resources", group.resources)
    _validate_placement(f"{where}.placement", group.placement)


def _validate_selector(where: str, selector: Selector) -> None:
    check_id(f"{where}.selectors: key", selector.key)
    if selector.op not in _SELECTOR_VALUES:
        raise InvalidArgument(f"{where}.selectors: op {selector.op!r} is none of {', '.join(_SELECTOR_VALUES)}")
    fewest, most = _SELECTOR_VALUES[selector.op]
    check_range(f"{where}.selectors: number of values of {selector.op}", len(selector.values), fewest, most)
    if selector.op == "regex":  # whether it compiles is asked at the edge: two releases of RE2 may differ in that
        check_length(f"{where}.selectors: regex on {selector.key}", selector.values[0], REGEX_CHARS_MAX)


def _validate_placement(where: str, policy: PlacementPolicy) -> None:
    if policy.strategy not in STRATEGIES:
        raise InvalidArgument(f"{where}.strategy: {policy.strategy!r} is none of {', '.join(STRATEGIES)}")
    if policy.spread_over:
        check_id(f"{where}.spread_over", policy.spread_over)
    check_range(f"{where}.max_per_executor", policy.max_per_executor, 0, TASKS_PER_JOB_MAX)


def _validate_retry(where: str, retry: RetryPolicy) -> None:
    check_range(f"{where}.retry.attempts_max", retry.attempts_max, 1, ATTEMPTS_MAX)
    check_range(f"{where}.retry.backoff_ms", retry.backoff_ms, 0, 3_600_000)
    check_range(f"{where}.retry.multiplier_milli", retry.multiplier_milli, 1_000, 10_000)
    check_range(f"{where}.retry.backoff_ms_max", retry.backoff_ms_max, 0, 86_400_000)
    check_range(f"{where}.retry.reset_ms", retry.reset_ms, 0, DURATION_MS_MAX)
    check_range(f"{where}.retry.final_exit_codes: number of them", len(retry.final_exit_codes), 0, FINAL_MAX)
    for code in retry.final_exit_codes:
        check_range(f"{where}.retry.final_exit_codes", code, -64, 255)
    check_range(f"{where}.retry.final_errors: number of them", len(retry.final_errors), 0, FINAL_MAX)
    for name in retry.final_errors:
        if not name.isidentifier() or len(name) > TOKEN_CHARS_MAX:
            raise InvalidArgument(f"{where}.retry.final_errors: {name[:200]!r} is not the name of an exception type")


DURATION_MS_MAX = 366 * 86_400_000
_SELECTOR_VALUES = {
    "eq": (1, 1),
    "neq": (1, 1),
    "in": (1, 1_000),
    "exists": (0, 0),
    "regex": (1, 1),
}  #: op: fewest, most values


STRATEGIES = ("spread", "binpack")


def check_resources(field: str, resources: Mapping[str, int]) -> None:
    check_range(f"{field}: number of them", len(resources), 0, RESOURCES_MAX)
    for name, amount in resources.items():
        check_id(f"{field}: name", name)
        check_range(f"{field}.{name}", amount, 1, AMOUNT_MAX)


def check_id(field: str, value: str) -> None:
    if not _ID.fullmatch(value):
        raise InvalidArgument(f"{field}: {value[:200]!r} does not match {ID_CHARS}")


def check_range(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgument(f"{field}: {value} is not in {least} to {most}")


def check_length(field: str, value: str, chars_max: int) -> None:
    if not 1 <= len(value) <= chars_max:
        raise InvalidArgument(f"{field}: {len(value)} characters; 1 to {chars_max} are wanted")
