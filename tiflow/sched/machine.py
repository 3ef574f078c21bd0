"""The replicated state machine: the same entries in the same order give the same state on every master.

A handler reads the state and drafts what it would change; it neither writes, nor waits, nor asks what time it
is. `apply` alone writes, after the handler has ended, so a command that is rejected half-way has changed
nothing.

Source: Schneider, "Implementing fault-tolerant services using the state machine approach" (1990), section 2.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, TypeAlias

from msgspec import MsgspecError, Struct

from tiflow.errors import FailedPrecondition, Internal, Rejected
from tiflow.sched.commands import (
    FORMAT,
    AddGroup,
    AnyCommand,
    AskOnce,
    CancelJob,
    CancelTasks,
    CloseGroups,
    DeleteJob,
    DeleteProject,
    DeleteSchedule,
    DrainExecutor,
    ExpireExecutor,
    ExpireJob,
    FireSchedule,
    PauseJob,
    PauseSchedule,
    PlaceTasks,
    PruneJobs,
    PutSchedule,
    RegisterExecutor,
    RerunLost,
    RestoreJob,
    ResumeJob,
    SetFormat,
    SetProject,
    StartWorkers,
    StopWorkers,
    SubmitJob,
    TaskEvents,
    TriggerSchedule,
    UndrainExecutor,
    decode_entry,
    format_of,
)
from tiflow.sched.draft import Draft
from tiflow.sched.executors import drain_executor, expire_executor, register_executor, undrain_executor
from tiflow.sched.framework import ask_once, start_workers, stop_workers
from tiflow.sched.history import HISTORY_FORMAT, note
from tiflow.sched.jobs import (
    cancel_job,
    delete_job,
    expire_job,
    pause_job,
    rerun_lost,
    resume_job,
    submit_job,
)
from tiflow.sched.pools import add_group, cancel_tasks, close_groups
from tiflow.sched.projects import delete_project, set_project
from tiflow.sched.prune import prune_jobs, restore_job
from tiflow.sched.schedules import (
    delete_schedule,
    fire_schedule,
    pause_schedule,
    put_schedule,
    trigger_schedule,
)
from tiflow.sched.settle import settle
from tiflow.sched.snapshot import decode_state, encode_state
from tiflow.sched.state import State
from tiflow.sched.tasks import place_tasks, task_events

Handler: TypeAlias = Callable[[Draft, Any], Any]


class Reply(Struct, frozen=True):
    """What a command is answered.

    `value`: SubmitJob, TriggerSchedule: the Job, or the Pruned one; RegisterExecutor: the Executor; PlaceTasks: a
    tuple of the Placements that came of it; TaskEvents: how many events were void; ExpireExecutor: how many tasks
    were lost; ExpireJob: why the job fails, empty if it does not; FireSchedule: the Job, or None; PutSchedule,
    PauseSchedule: the Schedule; SetProject: the Project; AddGroup: the Job; CloseGroups: whether the job fails;
    CancelTasks: the ranges of tasks that were canceled; PruneJobs: how many jobs left; StartWorkers: the Job;
    StopWorkers: whether the group is gone; AskOnce: as what it asks, or None if it comes too late; others: None.
    """

    revision: int  #: of the command
    value: Any = None
    error: Rejected | None = None  #: the command was refused and changed nothing


class UnreadableEntry(Exception):
    """A newer tiflow wrote this. The process must stop: a master that skips an entry disagrees with the
    others."""


class Machine:
    """Holds the state and applies entries to it. Its shape is `tiflow.raft.api.StateMachine`.

    Attributes:
        state: for reading. `restore` replaces it, so do not keep it.
    """

    def __init__(self) -> None:
        self.state = State()

    def apply(self, entry: bytes) -> list[Reply]:
        """Apply one log entry. Total: it answers each command of every entry that this version can read.

        Raises:
            UnreadableEntry: and the caller must stop the process.
        """
        try:
            decoded = decode_entry(entry)
        except MsgspecError as error:
            raise UnreadableEntry(f"this log needs a newer tiflow: {error}") from error
        state = self.state
        state.now_ms = max(state.now_ms, decoded.at_ms)
        state.wall_ms = decoded.wall_ms
        for command in decoded.commands:
            if isinstance(command, SetFormat):
                _check_known(command.format)
        return [_answer(state, command) for command in decoded.commands]

    def snapshot(self) -> Iterator[bytes]:
        """Freeze the state now (copies of dicts), and encode it, slice by slice of about 1 ms, as the result
        is read."""
        return encode_state(self.state)

    def restore(self, data: bytes) -> None:
        """Replace the state by the one that `snapshot` encoded.

        Raises:
            UnreadableEntry: these bytes are damaged, or a newer tiflow wrote them. The state is as it was.
        """
        try:
            state = decode_state(data)
        except (MsgspecError, ValueError, TypeError) as error:
            raise UnreadableEntry(f"this snapshot is damaged or needs a newer tiflow: {error}") from error
        _check_known(state.format)
        self.state = state

    def digest(self) -> str:
        """Equal on two masters at the same revision. O(n): for tests and for comparing by hand."""
        hash = sha256()
        for frame in self.snapshot():
            hash.update(frame)
        return hash.hexdigest()


def check_format(state: State, command: AnyCommand) -> None:
    """Raise FailedPrecondition unless all masters are known to understand the command. Who proposes asks that before:
    to log what a master cannot read would stop it."""
    if (needed := format_of(command)) > state.format:
        what = type(command).__name__ + " of a framework job" * (needed > command.since)
        raise FailedPrecondition(
            f"{what} needs format {needed}; this is {state.format}, until all masters are upgraded"
        )


def _check_known(format: int) -> None:
    if format > FORMAT:
        raise UnreadableEntry(f"this cluster uses format {format}, and this tiflow understands {FORMAT}: upgrade it")


def _set_format(draft: Draft, command: SetFormat) -> None:
    draft.format = max(draft.format, command.format)


def _answer(state: State, command: AnyCommand) -> Reply:
    state.revision += 1
    draft = Draft(state)
    try:
        check_format(state, command)
        value = HANDLERS[type(command)](draft, command)
        settle(draft)
        if state.format >= HISTORY_FORMAT:
            note(draft, command)
    except Rejected as error:
        return Reply(state.revision, error=error)
    except (MemoryError, RecursionError):
        raise  # not the same on every replica
    except Exception as bug:  # noqa: BLE001  the same on every replica: a handler knows nothing but its arguments
        return Reply(state.revision, error=Internal(f"{type(command).__name__}: {type(bug).__name__}: {bug}"))
    state.commit(draft)
    return Reply(state.revision, value)


HANDLERS: dict[type, Handler] = {
    SubmitJob: submit_job,
    CancelJob: cancel_job,
    DeleteJob: delete_job,
    RegisterExecutor: register_executor,
    ExpireExecutor: expire_executor,
    PlaceTasks: place_tasks,
    TaskEvents: task_events,
    RerunLost: rerun_lost,
    PauseJob: pause_job,
    ResumeJob: resume_job,
    ExpireJob: expire_job,
    SetProject: set_project,
    DeleteProject: delete_project,
    PutSchedule: put_schedule,
    DeleteSchedule: delete_schedule,
    FireSchedule: fire_schedule,
    PauseSchedule: pause_schedule,
    TriggerSchedule: trigger_schedule,
    DrainExecutor: drain_executor,
    UndrainExecutor: undrain_executor,
    SetFormat: _set_format,
    AddGroup: add_group,
    CloseGroups: close_groups,
    CancelTasks: cancel_tasks,
    PruneJobs: prune_jobs,
    RestoreJob: restore_job,
    StartWorkers: start_workers,
    StopWorkers: stop_workers,
    AskOnce: ask_once,
}
