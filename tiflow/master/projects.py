"""Projects, as a master shows them."""

from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import SetProject
from tiflow.sched.model import DEFAULT_PROJECT
from tiflow.sched.state import State


def project_info(state: State, name: str) -> pb.ProjectInfo:
    """Its quotas, and what it uses of them."""
    project, usage = state.project(name), state.usage_of(name)
    return pb.ProjectInfo(
        name=name,
        slots_max=project.slots_max,
        tasks_max=project.tasks_max,
        jobs_max=project.jobs_max,
        weight=project.weight,
        running=usage.out,
        waiting=usage.waiting,
        jobs=usage.jobs,
    )


def list_projects(state: State) -> pb.ListProjectsResponse:
    """By name: the default one, those that were set, and deleted ones with tasks that run again."""
    names = sorted({DEFAULT_PROJECT: None, **state.projects, **state.usage})
    return pb.ListProjectsResponse(projects=[project_info(state, name) for name in names])


def changed(state: State, request: pb.SetProjectRequest) -> SetProject:
    """What holds once the request is granted: what it does not name stays."""
    known = state.project(request.name)
    fields = ("slots_max", "tasks_max", "jobs_max", "weight")
    values = {name: getattr(request if request.HasField(name) else known, name) for name in fields}
    return SetProject(request.name, **values)
