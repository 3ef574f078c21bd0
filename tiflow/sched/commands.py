"""What can be said to the state machine.

A command is an order ("submit this job"), never an observation ("time passed"), and is idempotent: its
docstring says by what. To change what a command means, add a command; these classes are a format on disk for
ever.
"""

from typing import ClassVar, Final, TypeAlias

from msgspec import msgpack
from msgspec.structs import astuple

from tiflow.sched.model import GroupSpec, JobSpec, Millis, Record

#: the highest format that this code understands: all commands with `since` up to it, and what they mean from it on
FORMAT: Final = 5
WHO_FORMAT: Final = 5  #: from which on commands, and events, say who gave them


class SubmitJob(Record, frozen=True, tag=1):
    """Idempotent by `token`, which the client draws once per submission: the same token gets the same job,
    another token under a living id is refused. `token_at_ms` bounds how late a repeat may come
    (SUBMIT_WINDOW_MS)."""

    since: ClassVar[int] = 1
    spec: JobSpec
    token: str
    token_at_ms: Millis
    by: str = ""  #: who gave the command, BY_CHARS_MAX at most; here and below


class CancelJob(Record, frozen=True, tag=2):
    """Idempotent by nature."""

    since: ClassVar[int] = 1
    job_id: str
    uid: int = 0  #: 0: whichever job has the id
    by: str = ""


class DeleteJob(Record, frozen=True, tag=3):
    """Idempotent by nature: forget a job that has ended."""

    since: ClassVar[int] = 1
    job_id: str
    uid: int = 0


class RegisterExecutor(Record, frozen=True, tag=4):
    """Idempotent by (`uid`, `boot_id`): a process registers once. All placements of an older incarnation of
    the `uid` end as lost: the executor's data directory is locked by one process at a time, so the older one
    is gone. The same `name` under another uid is refused while that executor is alive."""

    since: ClassVar[int] = 1
    uid: str
    boot_id: str  #: drawn by the process when it starts
    name: str
    address: str
    slots: int
    labels: dict[str, str] = {}  # noqa: RUF012  msgspec copies it
    version: str = ""
    capacity: dict[str, int] = {}  # noqa: RUF012


class ExpireExecutor(Record, frozen=True, tag=5):
    """The lease of this incarnation ran out, or it said goodbye: its placements end as lost. Void for another
    incarnation, so a repeat is harmless."""

    since: ClassVar[int] = 1
    uid: str
    incarnation: int
    reason: str = ""


class Place(Record, frozen=True):
    """Tasks [start, stop) of a group go to an executor, all as the same attempt."""

    uid: int  #: of the job
    group: str
    start: int
    stop: int
    attempt: int
    executor: str
    incarnation: int


class PlaceTasks(Record, frozen=True, tag=6):
    """A plan. Made from an older state, so each part is checked again and a stale one is left out. Idempotent
    because a task that is out, or past that attempt, is not placed again."""

    since: ClassVar[int] = 1
    places: tuple[Place, ...]


class TaskEvent(Record, frozen=True):
    """Tasks [start, stop) of one placement went the same way.

    `results` (succeeded `python` tasks) is a msgpack array with one element per task: bytes (the msgpack
    encoding of the value, RESULT_INLINE_BYTES_MAX at most), or `[size, sha256]` of a value that the executor
    keeps, or `[size, sha256, url]` of one in a shared store.
    """

    placement: int
    start: int
    stop: int
    #: started, succeeded, failed, canceled (killed on request), released (never started; handed back)
    kind: str
    results: bytes = b""
    error: str = ""
    exit_code: int = 0
    final: bool = False  #: failed in a way that a retry cannot mend (a function that does not exist)
    run_ms: Millis = 0  #: how long each of them ran, about; 0: unknown
    cpu_us: int = 0  #: processor time of all of them
    memory_bytes: int = 0  #: the most that one of them had resident


class TaskEvents(Record, frozen=True, tag=7):
    """An executor says how tasks go. Idempotent by (`placement`, index): an end is recorded once, and a
    placement that is over takes nothing."""

    since: ClassVar[int] = 1
    executor: str
    incarnation: int
    events: tuple[TaskEvent, ...]


class RerunLost(Record, frozen=True, tag=8):
    """The result of a task that succeeded was kept by an executor that is gone: the task runs again, or it fails and
    its job with it, as the job says (`on_lost_result`). Idempotent by `row`, the number of the result row among the
    job's; void while that executor's incarnation is alive, or the result is in a shared store, unless it is
    `missing` there."""

    since: ClassVar[int] = 1
    uid: int
    row: int
    index: int
    missing: bool = False  #: who should have it was asked, and does not


class PauseJob(Record, frozen=True, tag=9):
    """Idempotent by nature: nothing more of the job is placed until ResumeJob. What is out goes on to its end. Void
    for a job that has ended, or is about to."""

    since: ClassVar[int] = 1
    job_id: str
    uid: int = 0
    by: str = ""


class ResumeJob(Record, frozen=True, tag=10):
    """Idempotent by nature: void for a job that is not paused."""

    since: ClassVar[int] = 1
    job_id: str
    uid: int = 0
    by: str = ""


class ExpireJob(Record, frozen=True, tag=11):
    """A deadline of the job has passed in log time: it fails. Void unless one has, so a repeat is harmless."""

    since: ClassVar[int] = 1
    uid: int


class SetProject(Record, frozen=True, tag=14):
    """Idempotent by nature: what holds for a project from now on. Jobs that were submitted are not refused later."""

    since: ClassVar[int] = 1
    name: str
    slots_max: int = 0
    tasks_max: int = 0
    jobs_max: int = 0
    weight: int = 1


class DeleteProject(Record, frozen=True, tag=23):
    """Idempotent by nature. Refused while jobs of it have not ended; the default project gets its defaults back."""

    since: ClassVar[int] = 1
    name: str


class PutSchedule(Record, frozen=True, tag=15):
    """Idempotent by `token`, which the client draws once per schedule: the same token gets the same schedule, another
    token under its name is refused."""

    since: ClassVar[int] = 1
    name: str
    spec: JobSpec
    cron: str
    timezone: str
    token: str
    overlap: str
    missed: str
    keep: int
    next_at_ms: Millis
    paused: bool = False


class DeleteSchedule(Record, frozen=True, tag=16):
    """Idempotent by nature: nothing more is started; what runs goes on."""

    since: ClassVar[int] = 1
    name: str


class FireSchedule(Record, frozen=True, tag=17):
    """A time of a schedule has come. Idempotent by `due_at_ms`: void unless the schedule still waits for that time.
    So each time is dealt with once, whoever leads."""

    since: ClassVar[int] = 1
    name: str
    uid: int
    due_at_ms: Millis  #: Schedule.next_at_ms, as it was seen
    at_ms: Millis  #: the time that the run is for: this one, or a later one if this one was missed
    job_id: str  #: of the run, from the name and `at_ms`; empty: no run, for the time was missed
    next_at_ms: Millis  #: what it waits for next; 0: nothing


class PauseSchedule(Record, frozen=True, tag=21):
    """Idempotent by nature: nothing is started while it is paused. `next_at_ms` is what it waits for then: once it is
    resumed, for its next time."""

    since: ClassVar[int] = 1
    name: str
    paused: bool
    next_at_ms: Millis


class TriggerSchedule(Record, frozen=True, tag=22):
    """A user wants a run now, whatever else runs. Idempotent by `token`, as SubmitJob."""

    since: ClassVar[int] = 1
    name: str
    job_id: str
    token: str
    token_at_ms: Millis
    by: str = ""


class DrainExecutor(Record, frozen=True, tag=12):
    """Nothing more is placed on executors with that name, those that register later too, until UndrainExecutor. What
    runs there `deadline_ms` after the command is applied is stopped and placed elsewhere; None: it goes on to its
    end. Idempotent by `name`: a repeat can bring the deadline forward, and never puts it off."""

    since: ClassVar[int] = 1
    name: str
    deadline_ms: Millis | None = None


class UndrainExecutor(Record, frozen=True, tag=13):
    """Idempotent by nature."""

    since: ClassVar[int] = 1
    name: str


class SetFormat(Record, frozen=True, tag=20):
    """Commands up to this format may be used from now on: the leader says so when all configured masters understand
    it. Idempotent by nature; a lower one is void. A master that does not understand it stops."""

    since: ClassVar[int] = 1
    format: int


class AddGroup(Record, frozen=True, tag=18):
    """A group more for an open job. Idempotent by `number`: the groups of a job come as 1, 2, 3 …, and one whose
    number has come before is not added again. Those named by `drop` are forgotten if they have ended: their results
    were taken."""

    since: ClassVar[int] = 1
    uid: int  #: of the job
    number: int
    group: GroupSpec
    drop: tuple[str, ...] = ()


class CloseGroups(Record, frozen=True, tag=19):
    """Idempotent by nature: no more groups come, so that the job ends with its last task. With a `failure` (its
    client is gone), the job fails. Void for a job that has ended, or is about to."""

    since: ClassVar[int] = 1
    uid: int
    failure: str = ""


class CancelTasks(Record, frozen=True, tag=24):
    """Tasks of a group that wait, [start, stop), are canceled, and the group goes on. With `force`, those that are
    out are to end too: as canceled, unless they succeed first. Idempotent by nature."""

    since: ClassVar[int] = 1
    uid: int
    group: str
    start: int
    stop: int
    force: bool = False


class PruneJobs(Record, frozen=True, tag=25):
    """The metadata database has everything up to revision `persisted`: events and notes of deletion up to there are
    dropped, and the named jobs, which are kept in the database alone from now on. Idempotent by nature: a job that
    has been written since the given revision, or has not ended, stays."""

    since: ClassVar[int] = 2
    persisted: int
    jobs: tuple[tuple[int, int], ...] = ()  #: (uid, mod_revision)


class RestoreJob(Record, frozen=True, tag=26):
    """A job of another cluster, which is lost, begins anew here. The first has no `spec`: it raises the revision to
    `revision`, and is refused unless nothing was ever submitted. Idempotent by (`cluster_id`, `token`, id)."""

    since: ClassVar[int] = 2
    cluster_id: str  #: of the lost cluster
    revision: int
    spec: JobSpec | None = None
    token: str = ""
    submitted_at_ms: Millis = 0
    paused: bool = False


class StartWorkers(Record, frozen=True, tag=27):
    """A job master, in its `attempt`, wants workers: a group whose work names their kind and whose items are their
    configs. Void unless that attempt is out. Idempotent by the group's name: one that exists stays as it is."""

    since: ClassVar[int] = 3
    uid: int  #: of the job
    attempt: int
    group: GroupSpec


class StopWorkers(Record, frozen=True, tag=28):
    """A job master, in its `attempt`, wants workers [start, stop) of a group to end, whether they wait or are out,
    and to be tried no more. With `forget`, a group whose workers have all ended is dropped, and its name is free.
    Void unless that attempt is out. Idempotent by nature."""

    since: ClassVar[int] = 3
    uid: int
    attempt: int
    group: str
    start: int
    stop: int
    forget: bool = False


class AskOnce(Record, frozen=True, tag=29):
    """What a job master asks, told from a late duplicate of it, which does nothing: names of workers that were
    forgotten are free, so that it could start them again, or stop others of that name. Idempotent by `number`."""

    since: ClassVar[int] = 4
    number: int  #: from 1 on in an attempt of the job master; one that is asked again keeps it
    settled: int  #: of this attempt, all requests below that number were answered, or given up
    command: StartWorkers | StopWorkers


AnyCommand: TypeAlias = (
    SubmitJob
    | CancelJob
    | DeleteJob
    | RegisterExecutor
    | ExpireExecutor
    | PlaceTasks
    | TaskEvents
    | RerunLost
    | PauseJob
    | ResumeJob
    | ExpireJob
    | SetProject
    | DeleteProject
    | PutSchedule
    | DeleteSchedule
    | FireSchedule
    | PauseSchedule
    | TriggerSchedule
    | DrainExecutor
    | UndrainExecutor
    | SetFormat
    | AddGroup
    | CloseGroups
    | CancelTasks
    | PruneJobs
    | RestoreJob
    | StartWorkers
    | StopWorkers
    | AskOnce
)


def format_of(command: AnyCommand) -> int:
    """The format from which on every master can read the command: it must not be logged before."""
    if isinstance(command, _WITH_SPEC) and command.spec is not None and command.spec.framework:
        return max(command.since, StartWorkers.since)
    return command.since


def encode_command(command: AnyCommand, format: int) -> bytes:
    """For the log of a cluster of that format: before WHO_FORMAT without `by`, which would stop older masters."""
    if format < WHO_FORMAT and isinstance(command, _WITH_BY):
        return _encode((command.__struct_config__.tag, *astuple(command)[:-1]))
    return _encode(command)


_encode = msgpack.Encoder().encode
_WITH_BY = (SubmitJob, CancelJob, PauseJob, ResumeJob, TriggerSchedule)
_WITH_SPEC = (SubmitJob, PutSchedule, RestoreJob)


class Entry(Record, frozen=True):
    """What one Raft log entry holds: the commands that had gathered when it was proposed (group commit)."""

    at_ms: Millis  #: the leader's advance of log time, see model; the machine's only notion of time
    wall_ms: Millis  #: the leader's wall clock, for display and for schedules
    commands: tuple[AnyCommand, ...]


encode_entry = msgpack.Encoder().encode
decode_entry = msgpack.Decoder(Entry).decode
