"""Projects: quotas and shares that jobs have in common."""

from tiflow.errors import FailedPrecondition, NotFound, ResourceExhausted
from tiflow.sched.commands import DeleteProject, SetProject
from tiflow.sched.draft import Draft
from tiflow.sched.model import DEFAULT_PROJECT, PROJECTS_MAX, QUOTA_MAX, WEIGHT_MAX, JobSpec, Project
from tiflow.sched.state import State
from tiflow.sched.validate import check_id, check_range


def check_project(command: SetProject) -> None:
    """Raise InvalidArgument, which names field, value and bound, unless such a project can be."""
    check_id("name", command.name)
    for field in ("slots_max", "tasks_max", "jobs_max"):
        check_range(field, getattr(command, field), 0, QUOTA_MAX)
    check_range("weight", command.weight, 1, WEIGHT_MAX)


def set_project(draft: Draft, command: SetProject) -> Project:
    """Returns: the project."""
    check_project(command)
    if command.name not in draft.state.projects and len(draft.state.projects) >= PROJECTS_MAX:
        raise ResourceExhausted(f"{PROJECTS_MAX} projects exist; delete some")
    project = Project(
        command.name,
        command.slots_max,
        command.tasks_max,
        command.jobs_max,
        command.weight,
        mod_revision=draft.state.revision,
    )
    draft.projects[command.name] = project
    return project


def delete_project(draft: Draft, command: DeleteProject) -> None:
    state = draft.state
    live = state.usage_of(command.name).jobs
    if live and command.name != DEFAULT_PROJECT:
        raise FailedPrecondition(f"project {command.name}: {live} of its jobs have not ended; cancel them first")
    if command.name not in state.projects and command.name != DEFAULT_PROJECT:
        raise NotFound(f"there is no project {command.name[:140]}; `tiflow project list` shows those that there are")
    draft.projects[command.name] = None


def check_quotas(state: State, spec: JobSpec) -> None:
    """Raise ResourceExhausted, naming quota and use, if the job cannot be submitted now, and NotFound if there is no
    such project."""
    name = spec.project
    if name not in state.projects and name != DEFAULT_PROJECT:
        raise NotFound(f"there is no project {name[:140]}; `tiflow project set {name[:140]}` makes it")
    project, usage = state.project(name), state.usage_of(name)
    if project.jobs_max and usage.jobs >= project.jobs_max:
        raise ResourceExhausted(
            f"project {name}: {usage.jobs} jobs have not ended, and its quota is {project.jobs_max} jobs; wait, or "
            f"raise it with `tiflow project set {name} --jobs N`"
        )
    check_tasks_quota(state, name, sum(group.count for group in spec.groups))


def check_tasks_quota(state: State, name: str, tasks: int, whose: str = "the job") -> None:
    """Raise ResourceExhausted, naming quota and use, if the project can not have so many tasks more that wait."""
    project, usage = state.project(name), state.usage_of(name)
    if project.tasks_max and usage.waiting + tasks > project.tasks_max:
        raise ResourceExhausted(
            f"project {name}: {usage.waiting} tasks wait, {whose} has {tasks}, and its quota is {project.tasks_max} "
            f"tasks; wait, or raise it with `tiflow project set {name} --tasks N`"
        )
