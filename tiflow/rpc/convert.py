"""Protobuf on the wire, domain values inside: one pair of functions per message.

A field that was not set becomes the model's default. Where 0 is a value of its own, the field is `optional`.
"""

from typing import TypeAlias

from msgspec.structs import replace

from tiflow.errors import InvalidArgument
from tiflow.jobs.check import check_job
from tiflow.jobs.items import items_count, items_encode, items_slice
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.explain import Explanation
from tiflow.sched.model import (
    BY_MASTER,
    DEFAULT_PROJECT,
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
    Work,
)

__all__ = [
    "explanation_to_proto",
    "group_from_proto",
    "group_to_proto",
    "items_encode",
    "items_slice",
    "job_from_proto",
    "job_to_proto",
    "limits_from_proto",
    "limits_to_proto",
    "placement_from_proto",
    "placement_to_proto",
    "put_work",
    "retry_from_proto",
    "retry_to_proto",
    "selector_from_proto",
    "selector_to_proto",
    "work_from_proto",
]

HasWork: TypeAlias = pb.GroupSpec | pb.Assignment

_RETRY = RetryPolicy()
_NO_LIMITS = Limits()
_PRIORITY = JobSpec(id="", groups=()).priority
_GRACE_MS = GroupSpec(name="", work=Command(argv=())).grace_ms


def job_to_proto(spec: JobSpec, *, items: bool = True) -> pb.JobSpec:
    """`items=False` leaves out the items, which may be megabytes."""
    return pb.JobSpec(
        id=spec.id,
        groups=[group_to_proto(group, items=items) for group in spec.groups],
        priority=spec.priority,
        labels=spec.labels,
        retries_max=spec.retries_max,
        max_failures=spec.max_failures,
        job_timeout_ms=spec.job_timeout_ms,
        queue_timeout_ms=spec.queue_timeout_ms,
        project=spec.project,
        open=spec.open,
        client_ttl_ms=spec.client_ttl_ms,
        on_lost_result=spec.on_lost_result,
    )


def job_from_proto(spec: pb.JobSpec, *, check: bool = True, retry: RetryPolicy = _RETRY) -> JobSpec:
    """Checked (`jobs.check`) unless it is known to be good, or was sent without its items. `retry` is what holds
    where nothing was set."""
    job = JobSpec(
        id=spec.id,
        groups=tuple(group_from_proto(group, f"groups[{at}]", retry) for at, group in enumerate(spec.groups)),
        priority=spec.priority if spec.HasField("priority") else _PRIORITY,
        labels=dict(sorted(spec.labels.items())),
        retries_max=spec.retries_max if spec.HasField("retries_max") else None,
        max_failures=spec.max_failures,
        job_timeout_ms=spec.job_timeout_ms,
        queue_timeout_ms=spec.queue_timeout_ms,
        project=spec.project or DEFAULT_PROJECT,
        open=spec.open,
        client_ttl_ms=spec.client_ttl_ms,
        on_lost_result=spec.on_lost_result or "rerun",
    )
    return check_job(job) if check else job


def group_to_proto(group: GroupSpec, *, items: bool = True) -> pb.GroupSpec:
    message = pb.GroupSpec(
        name=group.name,
        count=group.count,
        items=group.items if items else (),
        selectors=[selector_to_proto(selector) for selector in group.selectors],
        retry=retry_to_proto(group.retry),
        timeout_ms=group.timeout_ms,
        grace_ms=group.grace_ms,
        resources=group.resources,
        placement=placement_to_proto(group.placement),
        after=[pb.After(group=after.group, on=after.on) for after in group.after],
        limits=limits_to_proto(group.limits),
    )
    put_work(message, group.work)
    return message


def group_from_proto(group: pb.GroupSpec, at: str = "group", retry: RetryPolicy = _RETRY) -> GroupSpec:
    """`at` names the group in an error. Without a count, there are as many tasks as items, or one."""
    items = tuple(group.items)
    return GroupSpec(
        name=group.name,
        work=work_from_proto(group, at),
        count=group.count or items_count(items) or 1,
        items=items,
        selectors=tuple(selector_from_proto(selector) for selector in group.selectors),
        retry=retry_from_proto(group.retry, retry) if group.HasField("retry") else retry,
        timeout_ms=group.timeout_ms,
        grace_ms=group.grace_ms if group.HasField("grace_ms") else _GRACE_MS,
        resources=dict(sorted(group.resources.items())),
        placement=placement_from_proto(group.placement),
        after=tuple(After(after.group, after.on or "success") for after in group.after),
        limits=limits_from_proto(group.limits),
    )


def limits_to_proto(limits: Limits) -> pb.Limits | None:
    if limits == _NO_LIMITS:
        return None
    return pb.Limits(memory_bytes=limits.memory_bytes, open_files=limits.open_files, output_bytes=limits.output_bytes)


def limits_from_proto(limits: pb.Limits) -> Limits:
    return Limits(limits.memory_bytes, limits.open_files, limits.output_bytes)


def put_work(message: HasWork, work: Work) -> None:
    """Set the `work` of a GroupSpec or an Assignment."""
    if isinstance(work, Command):
        message.command.CopyFrom(pb.Command(argv=work.argv, env=work.env, cwd=work.cwd))
    elif isinstance(work, Call):
        call = pb.Call(functions=work.functions, path=work.path, python=work.python, cloudpickle=work.cloudpickle)
        message.call.CopyFrom(call)
    elif isinstance(work, Framework):
        member = pb.Framework(type=work.type, kind=work.kind, config=work.config, path=work.path)
        message.framework.CopyFrom(member)
    else:
        message.python.CopyFrom(pb.Python(function=work.function, path=work.path))


def work_from_proto(message: HasWork, at: str = "assignment") -> Work:
    """The `work` of a GroupSpec or an Assignment."""
    match message.WhichOneof("work"):
        case "command":
            command = message.command
            return Command(argv=tuple(command.argv), env=dict(sorted(command.env.items())), cwd=command.cwd)
        case "python":
            return Python(function=message.python.function, path=tuple(message.python.path))
        case "call":
            call = message.call
            return Call(tuple(call.functions), tuple(call.path), call.python, call.cloudpickle)
        case "framework":
            member = message.framework
            return Framework(member.type, member.kind, member.config, tuple(member.path))
        case _:
            raise InvalidArgument(f"{at}.work is missing: give a command or a python function")


def selector_to_proto(selector: Selector) -> pb.Selector:
    return pb.Selector(key=selector.key, op=selector.op, values=selector.values)


def selector_from_proto(selector: pb.Selector) -> Selector:
    return Selector(key=selector.key, op=selector.op or "eq", values=tuple(selector.values))


def placement_to_proto(policy: PlacementPolicy) -> pb.PlacementPolicy:
    return pb.PlacementPolicy(
        strategy=policy.strategy, spread_over=policy.spread_over, max_per_executor=policy.max_per_executor
    )


def placement_from_proto(policy: pb.PlacementPolicy) -> PlacementPolicy:
    return PlacementPolicy(policy.strategy or "spread", policy.spread_over, policy.max_per_executor)


def explanation_to_proto(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(
        group=explanation.group,
        waiting=explanation.waiting,
        total=explanation.total,
        held=explanation.held,
        executors=explanation.executors,
        filters=[
            pb.Filter(name=one.name, wants=one.wants, removes=one.removes, leaves=one.leaves)
            for one in explanation.filters
        ],
        candidates=explanation.candidates,
        summary=explanation.summary,
    )


def retry_to_proto(retry: RetryPolicy) -> pb.RetryPolicy:
    """What is BY_MASTER stays unset."""
    numbers = {name: getattr(retry, name) for name in _RETRY_NUMBERS}
    return pb.RetryPolicy(
        final_exit_codes=retry.final_exit_codes,
        final_errors=retry.final_errors,
        **{name: number for name, number in numbers.items() if number != BY_MASTER},
    )


def retry_from_proto(retry: pb.RetryPolicy, default: RetryPolicy = _RETRY) -> RetryPolicy:
    numbers = {name: getattr(retry, name) for name in _RETRY_NUMBERS if retry.HasField(name)}
    return replace(
        default, final_exit_codes=tuple(retry.final_exit_codes), final_errors=tuple(retry.final_errors), **numbers
    )


_RETRY_NUMBERS = ("attempts_max", "backoff_ms", "multiplier_milli", "backoff_ms_max", "reset_ms")
