"""A machine that is told things, for tests that read as stories."""

from typing import Any

from msgspec import msgpack

from tiflow.errors import Internal
from tiflow.sched.checks import check
from tiflow.sched.commands import (
    AnyCommand,
    Entry,
    Place,
    PlaceTasks,
    RegisterExecutor,
    SubmitJob,
    TaskEvent,
    TaskEvents,
    encode_entry,
)
from tiflow.sched.machine import Machine, Reply
from tiflow.sched.model import (
    Command,
    Executor,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Placement,
    RetryPolicy,
    TaskState,
)
from tiflow.sched.state import State
from tiflow.sched.views import job_state, task_state

START_MS = 1_000_000
POLICY = RetryPolicy(attempts_max=3, backoff_ms=1_000, multiplier_milli=2_000)
KEPT = msgpack.encode([[1_000_000, b"sha"]])  #: the results of one task, whose value the executor keeps


class Cluster:
    """One machine, one clock. `check` runs after each entry."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now_ms = START_MS
        self.log: list[bytes] = []

    @property
    def state(self) -> State:
        return self.machine.state

    def replies(self, *commands: AnyCommand) -> list[Reply]:
        entry = encode_entry(Entry(self.now_ms, self.now_ms, commands))
        self.log.append(entry)
        replies = self.machine.apply(entry)
        check(self.state)
        for reply in replies:
            assert not isinstance(reply.error, Internal), reply.error
        return replies

    def apply(self, command: AnyCommand) -> Any:
        """Returns: the reply's value. Raises: its error."""
        (reply,) = self.replies(command)
        if reply.error is not None:
            raise reply.error
        return reply.value

    def submit(self, id: str = "j", *, count: int = 1, **fields: Any) -> Job:
        priority = fields.pop("priority", 50)
        group = GroupSpec("g", Command(("true",)), **{"count": count, "retry": POLICY, **fields})
        return self.apply(SubmitJob(JobSpec(id, (group,), priority), f"token of {id}", self.now_ms))

    def register(self, name: str = "e", *, boot_id: str = "b", **fields: Any) -> Executor:
        return self.apply(RegisterExecutor(f"uid-{name}", boot_id, name, f"{name}:1", **{"slots": 2, **fields}))

    def place(self, job: Job, executor: Executor, start: int, stop: int, *, attempt: int = 1) -> Placement:
        place = Place(job.uid, "g", start, stop, attempt, executor.uid, executor.incarnation)
        (placement,) = self.apply(PlaceTasks((place,)))
        return placement

    def event(self, placement: Placement, kind: str, start: int = 0, stop: int = 0, **fields: Any) -> int:
        """Tasks [start, stop), or all of the placement. Returns: how many events were void."""
        if not stop:
            start, stop = placement.start, placement.stop
        event = TaskEvent(placement.id, start, stop, kind, **fields)
        return self.apply(TaskEvents(placement.executor, placement.incarnation, (event,)))

    def stands(self, job: Job) -> JobState:
        return job_state(self.state, self.state.jobs[job.id])

    def task(self, job: Job, index: int = 0) -> tuple[TaskState, int]:
        return task_state(self.state, job, "g", index)[:2]
