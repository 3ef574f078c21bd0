"""Job specs from what the client's methods are given."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from tiflow.errors import InvalidArgument
from tiflow.jobs.spec import AS_MASTERS_SAY, Where
from tiflow.sched.model import GroupSpec, JobSpec, RetryPolicy, Work


class JobLimits(TypedDict, total=False):
    """What ends a job early, whatever it consists of; nothing does by default."""

    job_timeout_s: float  #: it fails if it has not ended so long after it was submitted
    queue_timeout_s: float  #: it fails if none of its tasks was placed so long after it was submitted
    max_failures: int  #: it fails as soon as so many tasks have failed for good
    retries_max: int  #: failed attempts of all its tasks that are tried again; the next ones are final
    on_lost_result: str  #: "fail": it fails if a result is lost with its executor; "rerun": the task runs again


def group_spec(
    name: str,
    work: Work,
    count: int,
    items: tuple[bytes, ...],
    retry: RetryPolicy | None,
    timeout_s: float,
    where: Where,
) -> GroupSpec:
    return GroupSpec(
        name=name,
        work=work,
        count=count,
        items=items,
        retry=retry or AS_MASTERS_SAY,
        timeout_ms=round(timeout_s * 1_000),
        **where,
    )


def job_spec(id: str, group: GroupSpec, priority: int, limits: JobLimits) -> JobSpec:
    """Of a job with one group. Raises TypeError if there is no such limit."""
    if unknown := sorted(limits.keys() - JobLimits.__annotations__.keys()):
        raise TypeError(
            f"unknown arguments: {', '.join(unknown)}; known limits: {', '.join(JobLimits.__annotations__)}"
        )
    return JobSpec(
        id=id,
        groups=(group,),
        priority=priority,
        retries_max=limits.get("retries_max"),
        max_failures=limits.get("max_failures", 0),
        job_timeout_ms=round(limits.get("job_timeout_s", 0) * 1_000),
        queue_timeout_ms=round(limits.get("queue_timeout_s", 0) * 1_000),
        on_lost_result=limits.get("on_lost_result", "rerun"),
    )


def reference(function: str | Callable[..., Any]) -> tuple[str, list[str]]:
    """`module:name` of a function, and the directories from which executors import it."""
    if isinstance(function, str):
        return function, [os.getcwd()]
    name = getattr(function, "__qualname__", "")
    module_name = getattr(function, "__module__", "") or ""
    if not name or "<" in name or not module_name:
        raise InvalidArgument(
            f"function = {function!r}: executors import it by its name, so it must be defined at the top level of a "
            "module (no lambda, no local function)"
        )
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if module_name == "__main__":
        if not file:
            raise InvalidArgument(f"function = {name}: is defined interactively; put it into a module")
        return f"{Path(file).stem}:{name}", [str(Path(file).resolve().parent)]
    if not file:
        return f"{module_name}:{name}", []
    depth = module_name.count(".") + (Path(file).name == "__init__.py")
    return f"{module_name}:{name}", [str(Path(file).resolve().parents[depth])]
