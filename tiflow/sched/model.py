"""What the scheduler knows: jobs, groups of tasks, placements, executors.

Records are values: frozen, compared by content, replaced and never edited. A record's `mod_revision` is the
revision of the command that wrote it last, as in etcd, so "what changed since r" is a filter and not a log.

A million tasks are not a million objects. A `Group` (a task array) keeps a cursor of what was never placed;
`Ended` holds bit sets of what ended how, 4,096 tasks at a time; ranges that wait to be placed again are
`Retry` rows; tasks that are out (placed or running) are ranges in `Placement` rows. Cost follows the live
tasks, not the total.

Bit sets are ints: bit i stands for the i-th task of the record's range.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct, msgpack

Millis: TypeAlias = int  #: ms since the Unix epoch when the name ends in `_at_ms` or is `now_ms`, else a duration.

ID_CHARS = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  #: job ids, group names, executor names, label keys

JOBS_MAX = 100_000
GROUPS_PER_JOB_MAX = 100
TASKS_PER_JOB_MAX = 10_000_000
SPEC_BYTES_MAX = 4 << 20
SPECS_BYTES_MAX = 512 << 20  #: of all specs together: of jobs, of groups that were added to them, of schedules
ENTRY_BYTES_MAX = 8 << 20
ATTEMPTS_MAX = 600
ITEMS_PER_BLOCK = 256  #: items of one encoded block of `GroupSpec.items`
PLACEMENT_TASKS_MAX = 512  #: tasks of one placement (the bit sets of a row stay small)
BACKLOG_PER_SLOT_MAX = 512  #: tasks placed on an executor beyond its slots, per slot
RESULT_INLINE_BYTES_MAX = 256  #: a larger result stays in the executor's store
ERROR_CHARS_MAX = 1_000
ERRORS_WHOLE_MAX = 1_000  #: failed tasks of a group whose errors are kept whole
ERROR_CHARS_LATER = 100  #: of those of the others: millions of them are kept in memory
LOST_MAX = 5  #: a task that was lost this often with its executor fails: it may be what kills them
LOST_RESET_MS = 60_000  #: a member of a framework job that was out for so long did not kill its executor
EXECUTORS_MAX = 10_000  #: alive at one time
EXECUTORS_DEAD_MAX = 10_000  #: remembered after their end; the oldest goes first
SLOTS_MAX = 10_000  #: of one executor
DRAINS_MAX = 10_000  #: names of executors that are drained at one time
RESOURCES_MAX = 32  #: names of resources that a group needs, or an executor has
AMOUNT_MAX = 1 << 53  #: of one resource, and of what is said to have been used
LABELS_MAX = 64  #: of one executor
LABEL_CHARS_MAX = 256  #: of the value of one
ADDRESS_CHARS_MAX = 300
REGEX_CHARS_MAX = 256
SELECTORS_MAX = 32  #: of one group
DELETED_MAX = 100_000  #: tombstones of deleted jobs; the oldest goes first
TOKEN_CHARS_MAX = 128  #: submission tokens, executor uids, boot ids
CHUNK_TASKS = 4_096  #: tasks of one `Ended` row
BY_MASTER = -1  #: in a RetryPolicy on its way to a master: as its [job-backoff] says. Never in the replicated state
AFTER_PER_JOB_MAX = 1_000  #: all `GroupSpec.after` of a job together
FINAL_MAX = 100  #: exit codes, and error types, that a retry policy may call final
RETRIES_MAX = 1_000_000_000  #: of a job's budget
DEFAULT_PROJECT = "default"
PROJECTS_MAX = 1_000
WEIGHT_MAX = 1_000
QUOTA_MAX = 1_000_000_000
SCHEDULES_MAX = 1_000
SCHEDULE_NAME_CHARS_MAX = 100  #: the ids of its runs are longer
SCHEDULE_SPEC_BYTES_MAX = 256 << 10
SCHEDULE_KEEP_MAX = 100  #: ended runs of a schedule that are kept
SCHEDULE_LIVE_MAX = 100  #: runs of a schedule at one time
CRON_CHARS_MAX = 256
POOL_GROUPS_MAX = 1_000  #: of an open job at one time; those whose results were taken are dropped
POOL_BYTES_MAX = 64 << 20  #: of the specs of these groups
CLIENT_TTL_MS_MAX = 86_400_000
ON_LOST_RESULT = ("rerun", "fail")
SUBMIT_WINDOW_MS = 24 * 3_600_000  #: a submission token older than this is refused
EVENTS_MAX = 64  #: of one job that the database is not known to have; the oldest go first, and are counted
BY_CHARS_MAX = 128  #: of the name of who gives a command
EVENT_BY_CHARS_MAX = 255  #: the same in a job's history, where a schedule's name may precede it
PRUNED_MAX = 1_000_000  #: remembered tokens of jobs that left the state within SUBMIT_WINDOW_MS of their submission


class Record(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value of the replicated state. Its type is its schema on disk: fields are only ever added at the end,
    with a default."""


class Selector(Record, frozen=True):
    """A condition on an executor's labels."""

    key: str
    op: str = "eq"  #: eq, neq, in, exists, regex (RE2's syntax; it must match the whole label)
    values: tuple[str, ...] = ()


class Command(Record, frozen=True, tag="command", tag_field="work"):
    """A program per task. `{index}` and `{item}` in argv, env values and cwd stand for the task's own."""

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = ""


class Python(Record, frozen=True, tag="python", tag_field="work"):
    """A function called in a warm worker: with the task's item, or with its index when the group has no
    items."""

    function: str  #: module:qualified.name
    path: tuple[str, ...] = ()  #: put in front of sys.path


class Call(Record, frozen=True, tag="call", tag_field="work"):
    """Calls that a client's pool makes: functions, arguments and outcomes are pickles. Only the client and the
    workers load them (`tiflow.jobs.calls`)."""

    functions: tuple[bytes, ...]  #: an item names one by its position
    path: tuple[str, ...] = ()  #: put in front of sys.path
    python: str = ""  #: minor version of the client's Python, as 3.11: the worker's must be the same
    cloudpickle: str = ""  #: the client's version of it; the worker's must have the same major number


class Framework(Record, frozen=True, tag="framework", tag_field="work"):
    """A member of a framework job, in a process of its own on an executor that knows the job type: the job master, or
    a worker that it has started (`tiflow.jobs.framework`)."""

    type: str
    kind: str = ""  #: of a worker, as its job master calls it; empty: this is the job master
    config: bytes = b""  #: of the job master, in msgpack; those of workers are the items of their group
    path: tuple[str, ...] = ()  #: put in front of sys.path


Work: TypeAlias = Command | Python | Call | Framework
MASTER_GROUP = "master"  #: of a framework job: the group whose one task is the job master
TYPE_CHARS_MAX = 32  #: of the name of a job type; the metadata database has room for so many
TYPE_LABEL = "job-type."  #: executors that know a job type have a label of this and the type's name


class RetryPolicy(Record, frozen=True):
    attempts_max: Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX)] = 3
    backoff_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 1_000  #: before attempt 2
    multiplier_milli: Annotated[int, Meta(ge=1_000, le=10_000)] = 1_200  #: thousandths
    backoff_ms_max: Annotated[int, Meta(ge=0, le=86_400_000)] = 300_000
    #: an attempt that ran so long before it failed was healthy: the count of failures starts over; 0: never
    reset_ms: Millis = 0
    final_exit_codes: tuple[int, ...] = ()  #: of commands: not tried again; -N is death by signal N
    final_errors: tuple[str, ...] = ()  #: names of exception types of Python functions: not tried again


class PlacementPolicy(Record, frozen=True):
    """On which of the executors that fit tasks are to be. `max_per_executor` is a bound; the rest are preferences,
    which keep no task waiting."""

    #: spread: an even share to each, those with most free slots first; binpack: fill up those with fewest first
    strategy: str = "spread"
    spread_over: str = ""  #: label over whose values the tasks are spread evenly (no such label is a value, too)
    max_per_executor: int = 0  #: tasks of the group that are out on one executor; 0: no bound


class After(Record, frozen=True):
    """A group of the same job that has to end first."""

    group: str
    on: str = "success"  #: success: every task of it has to succeed; completion: however it ends


class Limits(Record, frozen=True):
    """What one attempt may use; 0: as much as there is."""

    #: of all its processes together, and who has more is killed, where executors may make cgroups; else private
    #: memory of each (RLIMIT_DATA), and more cannot be had (MemoryError, ENOMEM)
    memory_bytes: int = 0
    open_files: int = 0
    output_bytes: int = 0  #: kept of stdout, and of stderr; the oldest goes first


class GroupSpec(Record, frozen=True):
    """A task array: `count` tasks of one description."""

    name: str
    work: Work
    count: Annotated[int, Meta(ge=1, le=TASKS_PER_JOB_MAX)] = 1
    #: msgpack arrays of ITEMS_PER_BLOCK items each (the last one shorter); empty: tasks get their index
    items: tuple[bytes, ...] = ()
    selectors: tuple[Selector, ...] = ()
    retry: RetryPolicy = RetryPolicy()
    timeout_ms: Millis = 0  #: run time of one attempt; 0: unlimited
    grace_ms: Millis = 5_000  #: between SIGTERM and SIGKILL
    #: what each of its tasks needs while it runs: cpu in thousandths, memory in bytes, others in whole units
    resources: dict[str, int] = {}
    placement: PlacementPolicy = PlacementPolicy()
    after: tuple[After, ...] = ()  #: nothing of it is placed before these have ended
    limits: Limits = Limits()


class JobSpec(Record, frozen=True):
    """What the user asked for. Never changes."""

    id: str
    groups: tuple[GroupSpec, ...]
    priority: Annotated[int, Meta(ge=0, le=100)] = 50
    labels: dict[str, str] = {}
    retries_max: int | None = None  #: failed attempts of all tasks that are followed by another; None: no bound
    max_failures: int = 0  #: the job fails as soon as so many tasks have failed for good; 0: when all have ended
    job_timeout_ms: Millis = 0  #: from submission to the end of the job; 0: unlimited
    queue_timeout_ms: Millis = 0  #: from submission to the first placement; 0: unlimited
    project: str = DEFAULT_PROJECT
    open: bool = False  #: takes more groups (AddGroup) until it is sealed (CloseGroups); it may begin with none
    client_ttl_ms: Millis = 0  #: it fails when its client was not heard of for so long; 0: it needs none
    on_lost_result: str = "rerun"  #: or fail: what becomes of a task whose result was lost with its executor

    @property
    def framework(self) -> bool:
        """Whether a job master decides on its groups (`validate_spec`: it is its first and only one then)."""
        return bool(self.groups) and isinstance(self.groups[0].work, Framework)


class JobState(StrEnum):
    CREATED = "Created"  #: nothing has been placed yet
    RUNNING = "Running"
    PAUSING = "Pausing"  #: nothing more is placed; tasks are still out
    PAUSED = "Paused"  #: nothing is out
    CANCELING = "Canceling"  #: cancel was asked, or the job failed early; tasks are still out
    CANCELED = "Canceled"
    FINISHED = "Finished"  #: every task succeeded; of a framework job: its job master did
    FAILED = "Failed"  #: every task ended, and at least one failed; or a limit of the job was reached


class TaskState(StrEnum):
    WAITING = "waiting"  #: for its first or its next try
    PLACED = "placed"  #: an executor has been chosen, and may or may not know it yet
    RUNNING = "running"  #: the executor said that it started
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"  #: a group that had to succeed before it did not


#: The life of a job, command by command. The tests hold every command to it; the docs draw it.
JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.CREATED: frozenset(
        {JobState.RUNNING, JobState.PAUSED, JobState.CANCELED, JobState.FINISHED, JobState.FAILED}
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.PAUSING,
            JobState.PAUSED,
            JobState.CANCELING,
            JobState.CANCELED,
            JobState.FINISHED,
            JobState.FAILED,
        }
    ),
    JobState.PAUSING: frozenset(
        {JobState.PAUSED, JobState.RUNNING, JobState.CANCELING, JobState.FINISHED, JobState.FAILED}
    ),
    JobState.PAUSED: frozenset(
        {JobState.CREATED, JobState.RUNNING, JobState.CANCELED, JobState.FINISHED, JobState.FAILED}
    ),
    JobState.CANCELING: frozenset({JobState.CANCELED, JobState.FINISHED, JobState.FAILED}),
    JobState.CANCELED: frozenset(),
    JobState.FINISHED: frozenset({JobState.RUNNING, JobState.FAILED}),  # a result was lost with its executor
    JobState.FAILED: frozenset({JobState.RUNNING}),
}
#: The life of a task.
TASK_TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.PLACED, TaskState.CANCELED, TaskState.SKIPPED}),
    TaskState.PLACED: frozenset(
        {TaskState.RUNNING, TaskState.WAITING, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}
    ),
    TaskState.RUNNING: frozenset({TaskState.WAITING, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}),
    TaskState.SUCCEEDED: frozenset({TaskState.WAITING, TaskState.FAILED}),  # its result was lost with its executor
    TaskState.FAILED: frozenset(),
    TaskState.CANCELED: frozenset(),
    TaskState.SKIPPED: frozenset(),
}
JOB_TERMINAL = frozenset({JobState.CANCELED, JobState.FINISHED, JobState.FAILED})


class Job(Record, frozen=True):
    """A submission. Its state and counters are computed from its groups (`job_state`, `progress`).

    Times are the leader's wall clock, for people; durations are measured in log time (`State.now_ms`).
    """

    id: str
    uid: int  #: revision of its SubmitJob
    spec: JobSpec
    token: str  #: drawn by the client; the same token gets the same job
    submitted_at_ms: Millis
    started_at_ms: Millis = 0  #: first placement; 0: not yet
    ended_at_ms: Millis = 0  #: 0: not yet
    cancel_requested: bool = False
    result_rows: int = 0  #: rows (uid, 0) … (uid, result_rows - 1) of State.results exist
    mod_revision: int = 0
    paused: bool = False  #: nothing is placed; never true of a job that has ended
    failure: str = ""  #: why it failed before all its tasks had ended
    retries: int = 0  #: what is spent of spec.retries_max; not counted without it
    deadline_at_ms: Millis = 0  #: in log time, when it fails; 0: never, or it has ended
    queue_deadline_at_ms: Millis = 0  #: in log time, when it fails unless a task was placed; 0: never, or one was
    sealed: bool = False  #: no more groups come (of an open job)
    added: int = 0  #: groups that were added to it so far, dropped ones among them
    added_bytes: int = 0  #: of the specs of those that were not dropped
    dropped: int = 0  #: tasks of groups that were dropped: they had ended, and their results were taken
    dropped_failed: int = 0  #: those of them that failed for good
    dropped_canceled: int = 0  #: those of them that were canceled
    done: bool = False  #: its job master has succeeded (of a framework job): workers that are still out are to end
    asked_attempt: int = 0  #: the attempt of its job master that `settled` is of
    settled: int = 0  #: requests of the job master below that number were answered: such a one is a late duplicate

    @property
    def takes_groups(self) -> bool:
        return self.spec.open and not self.sealed and not self.closed

    @property
    def closed(self) -> bool:
        """Nothing of it is placed any more, for good."""
        return self.cancel_requested or bool(self.failure) or self.done


class Group(Record, frozen=True, gc=False):
    """Where the tasks of a group stand.

    Invariants: 0 <= cursor <= count; tasks at and after `cursor` were never placed; of those before it `out`
    are in placements, `succeeded` and `failed` have ended, and the rest are in `Retry` rows, or canceled if
    `closed`. While `held`, and if `skipped`, the cursor is 0.
    """

    uid: int  #: of the job
    name: str
    position: int  #: its spec is `job.spec.groups[position]`, unless it has one of its own
    count: int  #: tasks
    cursor: int = 0
    out: int = 0
    succeeded: int = 0
    failed: int = 0
    closed: bool = False  #: the job is (`Job.closed`): what is neither out nor succeeded nor failed is canceled
    mod_revision: int = 0
    held: bool = False  #: groups that it comes after have not all ended: nothing of it is placed
    was_skipped: bool = False  #: one of them that had to succeed did not: nothing of it ever runs
    cpu_us: int = 0  #: of all attempts that were reported as ended
    memory_bytes: int = 0  #: the most that one of them had resident
    spec: GroupSpec | None = None  #: of a group that was added to an open job
    withdrawn: int = 0  #: tasks that were canceled one by one (CancelTasks), before or after the cursor

    @property
    def waiting(self) -> int:
        """Tasks that wait for their first or their next try, or for other groups."""
        if self.closed or self.was_skipped:
            return 0
        return self.count - self.succeeded - self.failed - self.out - self.withdrawn

    @property
    def canceled(self) -> int:
        if self.closed and not self.was_skipped:
            return self.count - self.succeeded - self.failed - self.out
        return self.withdrawn

    @property
    def skipped(self) -> int:
        return self.count - self.withdrawn if self.was_skipped else 0

    @property
    def fresh(self) -> int:
        """Tasks that were never placed and still can be, though perhaps not yet, but for those of them that were
        withdrawn."""
        return 0 if self.closed or self.was_skipped else self.count - self.cursor

    @property
    def ended(self) -> bool:
        """All its tasks have."""
        return not self.out and not self.waiting


class Ended(Record, frozen=True, gc=False):
    """Which tasks [n * CHUNK_TASKS, (n + 1) * CHUNK_TASKS) of a group ended how. The bit sets are
    disjoint."""

    succeeded: int = 0
    failed: int = 0
    withdrawn: int = 0


class Placement(Record, frozen=True, gc=False):
    """Tasks [start, stop) of a group, out on an executor, all in the same attempt. Gone when the last has
    ended.

    Invariants: `started` is a part of `left`, and `left` is not empty.
    """

    id: int
    uid: int  #: of the job
    job_id: str
    group: str
    start: int
    stop: int
    attempt: int
    executor: str  #: uid
    incarnation: int
    left: int  #: bit set of the tasks that have not ended; bit i is task start + i
    started: int = 0  #: bit set of those that the executor has started
    failures: int = 0  #: earlier tries that ended in failure; the same for all its tasks
    losses: int = 0  #: earlier tries that were lost
    placed_at_ms: Millis = 0
    withdrawn: int = 0  #: bit set, a part of `left`: tasks that are to end (CancelTasks)


class Retry(Record, frozen=True, gc=False):
    """Tasks [index, stop) of a group that wait to be placed again."""

    index: int
    attempt: int  #: of the coming try
    due_at_ms: Millis  #: in log time
    failures: int = 0  #: tries that ended in failure
    losses: int = 0  #: tries that were lost with their executor
    stop: int = 0


class Project(Record, frozen=True):
    """Jobs that have quotas and a share of the slots in common. Of a quota 0 is no bound."""

    name: str
    slots_max: int = 0  #: tasks that are out at one time; more of them wait
    tasks_max: int = 0  #: tasks that wait when a job is submitted, its own among them; else it is refused
    jobs_max: int = 0  #: jobs that have not ended, when one is submitted; else it is refused
    weight: int = 1  #: of its share, when projects compete for slots
    mod_revision: int = 0


class Schedule(Record, frozen=True):
    """A job that is started again and again. Its times are those of the wall clock, as the leader reads it and the
    commands carry it; the core knows neither cron lines nor time zones."""

    name: str
    uid: int  #: revision of its PutSchedule
    spec: JobSpec  #: of its runs, but for the id
    cron: str
    timezone: str
    token: str  #: drawn by the client; the same token gets the same schedule
    overlap: str  #: at its time while a run has not ended: skip (no new one), allow, replace (cancel the old one)
    missed: str  #: times at which no master led: skip, run-once (one run for all of them)
    keep: int  #: runs that have ended and are kept; the oldest is deleted when a new one starts
    next_at_ms: Millis  #: the time that it waits for; 0: there is none
    created_at_ms: Millis
    paused: bool = False
    last_at_ms: Millis = 0  #: the last time that came; 0: none yet
    note: str = ""  #: what became of that
    runs: tuple[int, ...] = ()  #: uids of its newest jobs, the newest last; some may be deleted
    mod_revision: int = 0


class Deleted(Record, frozen=True, gc=False):
    """A job that was deleted, for whoever keeps a copy of the jobs elsewhere."""

    job_id: str
    uid: int
    mod_revision: int = 0


class Executor(Record, frozen=True):
    """A process that runs tasks. Each registration is a new incarnation."""

    uid: str  #: drawn once, kept in its data directory
    name: str
    address: str  #: host:port of its gRPC port (results, logs)
    slots: int
    incarnation: int  #: revision of its RegisterExecutor
    labels: dict[str, str] = {}
    version: str = ""
    registered_at_ms: Millis = 0
    alive: bool = True  #: False: its lease ran out or it said goodbye; a new registration makes it alive
    ended_at_ms: Millis = 0  #: when it ceased to be alive
    mod_revision: int = 0
    boot_id: str = ""  #: drawn by the process when it starts
    #: what its tasks may need together while they run; cpu and memory that are not given are not limited by it
    capacity: dict[str, int] = {}


class Drain(Record, frozen=True, gc=False):
    """Executors with that name get nothing more, whatever uid and incarnation they have, until this is taken back."""

    name: str
    since_ms: Millis  #: wall clock, for people
    deadline_at_ms: Millis = 0  #: in log time: then what still runs there is stopped and handed elsewhere; 0: never
    mod_revision: int = 0


class ResultRow(Record, frozen=True, gc=False):
    """What tasks [start, stop) of a group ended with. Rows of a job are numbered in order of arrival, so a
    reader's position is one number."""

    group: str
    start: int
    stop: int
    attempt: int
    executor: str  #: uid
    incarnation: int
    outcome: str  #: succeeded or failed
    results: bytes = b""  #: see commands.TaskEvent.results
    error: str = ""
    ended_at_ms: Millis = 0
    rerun: bytes = b""  #: bit set, little endian, of the tasks that ran again since their result was lost
    cpu_us: int = 0  #: of the whole range
    memory_bytes: int = 0  #: the most that one of them had resident


class Progress(Record, frozen=True):
    """How many tasks of a job stand where. `total` is the sum of the others."""

    total: int = 0
    waiting: int = 0
    out: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    skipped: int = 0


def progress(groups: Iterable[Group]) -> Progress:
    """The sums over `groups`, which are those of one job."""
    total = waiting = out = succeeded = failed = canceled = skipped = 0
    for group in groups:
        total += group.count
        waiting += group.waiting
        out += group.out
        succeeded += group.succeeded
        failed += group.failed
        canceled += group.canceled
        skipped += group.skipped
    return Progress(total, waiting, out, succeeded, failed, canceled, skipped)


def job_state(job: Job, groups: Iterable[Group]) -> JobState:
    """Where a job stands, which follows from where its tasks stand.

    Args:
        job: the submission.
        groups: all of its groups.
    """
    groups = tuple(groups)
    sums = progress(groups)
    if job.done:
        return JobState.RUNNING if sums.out else JobState.FINISHED
    whole = job.sealed or not job.spec.open
    if whole and not job.dropped_failed and sums.succeeded == sums.total:
        return JobState.FINISHED
    if job.closed:
        return JobState.CANCELING if sums.out else JobState.FAILED if job.failure else JobState.CANCELED
    if sums.waiting or sums.out or not whole:
        if job.paused:
            return JobState.PAUSING if sums.out else JobState.PAUSED
        return JobState.RUNNING if job.dropped or any(group.cursor for group in groups) else JobState.CREATED
    return JobState.FAILED if sums.failed or job.dropped_failed else JobState.FINISHED


_encode = msgpack.Encoder().encode


def encoded_bytes(spec: JobSpec | GroupSpec) -> int:
    """How large it is in the log and in snapshots."""
    return len(_encode(spec))


def group_spec(job: Job, group: Group) -> GroupSpec:
    """What was asked for that group of the job."""
    return group.spec or job.spec.groups[group.position]


class JobEvent(Record, frozen=True, gc=False):
    """What happened to a job, for its history."""

    revision: int
    at_ms: Millis  #: wall clock of the leader
    kind: str  #: submitted, started, paused, resumed, canceling, failing, failures, rerun, restored, ended
    message: str = ""
    by: str = ""  #: who gave the command that this came of; empty: tiflow itself


class JobEvents(Record, frozen=True, gc=False):
    """The events of a job that the metadata database is not known to have."""

    uid: int
    events: tuple[JobEvent, ...]  #: in order
    omitted: int = 0  #: older ones for which there was no room


class Pruned(Record, frozen=True, gc=False):
    """A job that left the state for the database so soon that its submission may yet be repeated."""

    token: str
    id: str
    uid: int
    pruned_at_ms: Millis  #: in log time
    state: str
