"""The SDK's projects: `client.projects`."""

from tiflow.errors import NotFound
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channel import MasterChannel
from tiflow.views import ProjectInfo


class Projects:
    """Quotas and shares that jobs have in common."""

    def __init__(self, masters: MasterChannel) -> None:
        self._masters = masters

    def set(
        self,
        name: str,
        *,
        slots: int | None = None,
        tasks: int | None = None,
        jobs: int | None = None,
        weight: int | None = None,
    ) -> ProjectInfo:
        """Make a project, or change it; what is None stays as it is. Of the quotas 0 is no bound.

        `slots`: tasks that are out at one time; more wait. `tasks`, `jobs`: tasks that wait, and jobs that have not
        ended; a job that would exceed them is refused. `weight`: of its share when projects compete, 1 to 1000.
        """
        request = pb.SetProjectRequest(name=name, slots_max=slots, tasks_max=tasks, jobs_max=jobs, weight=weight)
        return ProjectInfo.of(self._masters.call("SetProject", request, write=True))

    def list(self) -> tuple[ProjectInfo, ...]:
        """All of them, by name."""
        response = self._masters.call("ListProjects", pb.ListProjectsRequest())
        return tuple(ProjectInfo.of(project) for project in response.projects)

    def get(self, name: str) -> ProjectInfo:
        """Raises NotFound."""
        for project in self.list():
            if project.name == name:
                return project
        raise NotFound(f"there is no project {name}; `tiflow project list` shows those that there are")

    def delete(self, name: str) -> None:
        """Raises FailedPrecondition while jobs of it have not ended. The default project gets its defaults back."""
        self._masters.call("DeleteProject", pb.DeleteProjectRequest(name=name), write=True, done_if=NotFound)
