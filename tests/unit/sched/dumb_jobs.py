"""Jobs and tasks as `dumb` keeps them: one object for each task, whose moves the tables in `model` allow."""

import re
from dataclasses import dataclass, field

from tiflow.sched.commands import PutSchedule
from tiflow.sched.model import (
    TASK_TRANSITIONS,
    After,
    GroupSpec,
    Job,
    JobState,
    Placement,
    RetryPolicy,
    Selector,
    TaskState,
)

WAITING, PLACED, RUNNING = TaskState.WAITING, TaskState.PLACED, TaskState.RUNNING


@dataclass
class Task:
    state: TaskState = WAITING
    attempt: int = 1  #: under way, or coming
    failures: int = 0
    losses: int = 0
    due_ms: tuple[int, int] = (0, 0)  #: not before the first, and certainly at the second
    placement: int = 0  #: 0: not out
    placed: bool = False  #: ever
    placed_ms: int = 0  #: the last time, by the wall clock
    withdrawn: bool = False  #: it is to end, though its job goes on

    def move(self, state: TaskState) -> None:
        assert state in TASK_TRANSITIONS[self.state], f"{self.state} to {state}"
        self.state = state
        if state not in (PLACED, RUNNING):
            self.placement = 0

    def wait(self, since_ms: int, until_ms: int) -> None:
        if self.withdrawn:
            self.move(TaskState.CANCELED)
            return
        self.move(WAITING)
        self.attempt += 1
        self.due_ms = (since_ms, until_ms)


@dataclass
class Row:
    """A result row."""

    placement: Placement
    start: int
    stop: int
    outcome: str
    kept: bool = False  #: the executor keeps the results
    rerun: set[int] = field(default_factory=set)
    shared: bool = False  #: … in a store that outlives him
    dropped: bool = False


@dataclass
class DumbJob:
    job: Job
    tasks: dict[str, list[Task]]  #: by group
    policies: dict[str, RetryPolicy]
    specs: dict[str, GroupSpec]
    held: dict[str, tuple[After, ...]] = field(default_factory=dict)  #: groups on which is not decided yet
    submitted_ms: int = 0
    canceled: bool = False
    failed: bool = False  #: before all its tasks had ended
    paused: bool = False
    retried: int = 0
    ended_once: bool = False  #: then deadlines are over, even if a task runs again
    rows: list[Row] = field(default_factory=list)
    sealed: bool = False
    added: list[str] = field(default_factory=list)
    numbers: int = 0  #: of groups that were added
    dropped: int = 0
    dropped_failed: int = 0
    done: bool = False  #: its job master has succeeded
    settled: dict[int, int] = field(default_factory=dict)  #: by attempt of its job master

    @property
    def framework(self) -> bool:
        return self.job.spec.framework

    def follow_master(self) -> None:
        if self.framework and not self.closed:
            (master,) = self.tasks["master"]
            self.done = master.state is TaskState.SUCCEEDED
            self.failed = master.state is TaskState.FAILED
            if self.closed:
                self.cancel_the_rest()

    @property
    def open(self) -> bool:
        return self.job.spec.open and not self.sealed

    def drop(self, name: str) -> None:
        tasks = self.tasks.get(name, [])
        if name not in self.added or any(task.state in (WAITING, PLACED, RUNNING) for task in tasks):
            return
        self.dropped += len(tasks)
        self.dropped_failed += sum(task.state is TaskState.FAILED for task in tasks)
        self.tasks.pop(name, None)
        self.added.remove(name)
        for row in self.rows:
            row.dropped = row.dropped or row.placement.group == name

    def all(self) -> list[Task]:
        return [task for tasks in self.tasks.values() for task in tasks]

    @property
    def closed(self) -> bool:
        return self.canceled or self.failed or self.done

    @property
    def fresh(self) -> bool:
        """No task was ever placed."""
        return not self.dropped and not any(task.placed for task in self.all())

    @property
    def alive(self) -> bool:
        going_on = any(task.state in (WAITING, PLACED, RUNNING) for task in self.all())
        return going_on or (self.open and not self.closed)

    def cancel_the_rest(self) -> None:
        for task in self.all():
            if task.state is WAITING:
                task.move(TaskState.CANCELED)

    def decide(self) -> None:
        """Let go or skip the groups whose forerunners have all ended, until there are no more."""
        over = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SKIPPED, TaskState.CANCELED)
        for name, afters in list(self.held.items()):
            before = [task for after in afters for task in self.tasks[after.group]]
            if not all(task.state in over for task in before):
                continue
            del self.held[name]
            needed = [task for after in afters if after.on == "success" for task in self.tasks[after.group]]
            if any(task.state is not TaskState.SUCCEEDED for task in needed):
                for task in self.tasks[name]:
                    if task.state is WAITING:
                        task.move(TaskState.SKIPPED)
            self.decide()
            return

    def stands(self) -> JobState:
        states = [task.state for task in self.all()]
        out = PLACED in states or RUNNING in states
        if self.done:
            return JobState.RUNNING if out else JobState.FINISHED
        if all(state is TaskState.SUCCEEDED for state in states) and not self.open and not self.dropped_failed:
            return JobState.FINISHED
        if self.closed:
            return JobState.CANCELING if out else JobState.CANCELED if self.canceled else JobState.FAILED
        if self.paused and self.alive:
            return JobState.PAUSING if out else JobState.PAUSED
        if self.alive:
            return JobState.CREATED if self.fresh else JobState.RUNNING
        return JobState.FAILED if TaskState.FAILED in states or self.dropped_failed else JobState.FINISHED


@dataclass
class DumbSchedule:
    uid: int
    said: PutSchedule
    next_ms: int
    paused: bool
    runs: list[int] = field(default_factory=list)


def selects(selector: Selector, label: str | None) -> bool:
    match selector.op:
        case "eq" | "in":
            return label in selector.values
        case "neq":
            return label not in selector.values
        case "exists":
            return label is not None
        case _:
            return label is not None and re.fullmatch(selector.values[0], label) is not None
