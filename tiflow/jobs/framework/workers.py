"""Workers, as a job master asks for them, in the words of the scheduler."""

from msgspec import Raw
from msgspec.structs import replace

from tiflow.jobs.framework.port import WorkerGroup
from tiflow.jobs.items import items_encode
from tiflow.jobs.spec import AS_MASTERS_SAY, parse_where
from tiflow.sched.framework import advertised
from tiflow.sched.model import Framework, GroupSpec, PlacementPolicy


def workers_spec(master: Framework, group: WorkerGroup) -> GroupSpec:
    """Raises InvalidArgument for what cannot be read; bounds are for `check_group` to check."""
    retry = AS_MASTERS_SAY
    if group.attempts:
        retry = replace(retry, attempts_max=group.attempts)
    if group.backoff_ms is not None:
        retry = replace(retry, backoff_ms=group.backoff_ms)
    if group.reset_ms is not None:
        retry = replace(retry, reset_ms=group.reset_ms)
    placement = PlacementPolicy(group.strategy, group.spread_over, group.max_per_executor)
    where = parse_where(group.selectors, group.resources, placement)
    return GroupSpec(
        name=group.name,
        work=Framework(master.type, group.kind, b"", master.path),
        count=len(group.configs),
        items=items_encode([Raw(config) for config in group.configs]),
        selectors=(*where["selectors"], advertised(master.type)),
        grace_ms=group.grace_ms,
        retry=retry,
        resources=where["resources"],
        placement=placement,
    )
