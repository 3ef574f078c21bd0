"""Groups that come after other groups of their job: which are let go, which are skipped, what the others wait for.

A group is decided on once all groups that it names in `after` have ended. It is let go if each ended as the group
wants it, else it is skipped, and has thereby ended itself. So when a group has ended, all that comes before it has,
too. Groups that are added to an open job come after none. What was let go is not held again when an earlier group
runs again since a result of it was lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from msgspec.structs import replace

from tiflow.errors import InvalidArgument
from tiflow.sched.model import AFTER_PER_JOB_MAX, After, Group, GroupSpec, Job, group_spec

ON = ("success", "completion")


def check_after(groups: Sequence[GroupSpec]) -> None:
    """Raise InvalidArgument, which names the group and the remedy, unless each group can have its turn. Their names
    differ."""
    names = {group.name for group in groups}
    for group in groups:
        where = f"groups.{group.name}.after"
        befores = [after.group for after in group.after]
        for after in group.after:
            if after.on not in ON:
                raise InvalidArgument(f"{where}: on = {after.on[:40]!r}: must be one of {', '.join(ON)}")
            if after.group not in names:
                raise InvalidArgument(
                    f"{where}: there is no group {after.group[:140]!r}; the job has {', '.join(sorted(names))}"
                )
            if after.group == group.name:
                raise InvalidArgument(f"{where}: the group comes after itself; remove {group.name}")
        if len(set(befores)) < len(befores):
            raise InvalidArgument(f"{where}: names a group twice: {', '.join(befores)}")
    total = sum(len(group.after) for group in groups)
    if total > AFTER_PER_JOB_MAX:
        raise InvalidArgument(f"groups: after: {total} groups named in all; at most {AFTER_PER_JOB_MAX} per job")
    try:
        TopologicalSorter({group.name: [after.group for after in group.after] for group in groups}).prepare()
    except CycleError as error:
        cycle = " before ".join(error.args[1])
        raise InvalidArgument(f"groups: after: a cycle, {cycle}; remove one of these from an `after`") from None


def decide(job: Job, groups: Iterable[Group]) -> list[Group]:
    """Those of the held groups on which can be decided now, as they are then: let go, or skipped.

    Args:
        job: a submission that is not closed.
        groups: all of its groups.
    """
    by_name = {group.name: group for group in groups}
    decided: list[Group] = []
    while True:
        ready = [
            group
            for group in by_name.values()
            if group.held and not _not_ended(group_spec(job, group).after, by_name)
        ]
        if not ready:
            return decided
        for group in ready:
            skipped = bool(_failed(group_spec(job, group).after, by_name))
            by_name[group.name] = replace(group, held=False, was_skipped=skipped)
            decided.append(by_name[group.name])


def why_not(job: Job, group: Group, groups: Iterable[Group]) -> str:
    """What a held group waits for, or why a skipped one was: one phrase; empty for any other group."""
    by_name = {one.name: one for one in groups}
    afters = group_spec(job, group).after
    if group.held and not group.closed:
        return "after " + ", ".join(_text(after) for after in _not_ended(afters, by_name))
    if group.was_skipped:
        return (
            "skipped, for not all of " + ", ".join(after.group for after in _failed(afters, by_name)) + " succeeded"
        )
    return ""


def _not_ended(afters: Iterable[After], groups: Mapping[str, Group]) -> list[After]:
    return [after for after in afters if not groups[after.group].ended]


def _failed(afters: Iterable[After], groups: Mapping[str, Group]) -> list[After]:
    return [
        after
        for after in afters
        if after.on == "success" and groups[after.group].succeeded < groups[after.group].count
    ]


def _text(after: After) -> str:
    return after.group if after.on == "success" else f"{after.group} (completion)"
