"""What the SDK returns: values, made from what masters say."""

from dataclasses import dataclass
from typing import Any, Self

import msgspec

from tiflow.rpc import tiflow_pb2 as pb

ENDED = ("Finished", "Failed", "Canceled")


@dataclass(frozen=True)
class GroupProgress:
    name: str
    total: int
    succeeded: int
    failed: int
    canceled: int
    running: int  #: placed or running
    waiting: int
    skipped: int  #: a group that had to succeed before this one did not
    cpu_s: float = 0.0  #: of all attempts that have ended
    memory_bytes: int = 0  #: the most that one of them had resident; 0: not known

    @classmethod
    def of(cls, group: pb.GroupProgress) -> Self:
        return cls(
            name=group.name,
            total=group.total,
            succeeded=group.succeeded,
            failed=group.failed,
            canceled=group.canceled,
            running=group.running,
            waiting=group.waiting,
            skipped=group.skipped,
            cpu_s=group.cpu_us / 1e6,
            memory_bytes=group.memory_bytes,
        )


@dataclass(frozen=True)
class MemberInfo:
    """How the job master, or a worker, of a framework job goes."""

    name: str  #: "master"; of a worker its group's, and "group/index" where there are several
    state: str  #: as of a task
    attempt: int  #: that is under way, or comes next; 0: it has ended
    executor: str  #: name of the one that it is on
    status: dict[str, Any]  #: what it reported last
    error: str  #: of its newest failure

    @classmethod
    def of(cls, member: pb.MemberStatus) -> Self:
        return cls(
            name=member.name,
            state=member.state,
            attempt=member.attempt,
            executor=member.executor,
            status=_status(member.status),
            error=member.error,
        )


def _status(report: bytes) -> dict[str, Any]:
    """A report is bytes until here; what is no table is shown as one."""
    try:
        status = msgspec.msgpack.decode(report) if report else {}
    except msgspec.MsgspecError as error:
        return {"unreadable": str(error)}
    return status if isinstance(status, dict) else {"status": status}


@dataclass(frozen=True)
class JobInfo:
    """Where a job stands."""

    id: str
    uid: int  #: another job that is submitted under the same id later has another uid
    state: str  #: Created, Running, Pausing, Paused, Canceling, Canceled, Finished or Failed
    type: str  #: command, python or pool, or a framework type
    project: str
    groups: tuple[GroupProgress, ...]
    submitted_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    waiting: tuple[str, ...]  #: why waiting tasks wait; only from `Client.get`
    error: str  #: why it failed early; from `Client.get` also that of the first task that failed
    dropped: GroupProgress  #: of a pool: tasks of groups that it forgot, since their results were taken
    members: tuple[MemberInfo, ...] = ()  #: of a framework job; only from `Client.get`

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def total(self) -> int:
        return sum(group.total for group in self.groups) + self.dropped.total

    @property
    def succeeded(self) -> int:
        return sum(group.succeeded for group in self.groups) + self.dropped.succeeded

    @property
    def failed(self) -> int:
        return sum(group.failed for group in self.groups) + self.dropped.failed

    @property
    def canceled(self) -> int:
        return sum(group.canceled for group in self.groups) + self.dropped.canceled

    @property
    def skipped(self) -> int:
        return sum(group.skipped for group in self.groups)

    @property
    def running(self) -> int:
        return sum(group.running for group in self.groups)

    @classmethod
    def of(cls, job: pb.JobInfo) -> Self:
        return cls(
            id=job.id,
            uid=job.uid,
            state=job.state,
            type=job.type,
            project=job.project,
            groups=tuple(GroupProgress.of(group) for group in job.groups),
            submitted_at_ms=job.submitted_at_ms,
            started_at_ms=job.started_at_ms or None,
            ended_at_ms=job.ended_at_ms or None,
            waiting=tuple(job.waiting),
            error=job.error,
            dropped=GroupProgress.of(job.dropped),
            members=tuple(MemberInfo.of(member) for member in job.members),
        )


@dataclass(frozen=True)
class Filter:
    """A condition on executors."""

    name: str  #: connected, drain, selector, capacity, slots, resource or max-per-executor
    wants: str
    removes: int  #: executors that it alone removes
    leaves: int  #: executors that it and those before it leave


@dataclass(frozen=True)
class Explanation:
    """Why the waiting tasks of a group wait."""

    group: str
    waiting: int
    total: int
    held: str  #: what keeps them back, wherever there is room; empty: nothing
    executors: int  #: alive
    filters: tuple[Filter, ...]
    candidates: int  #: executors that could take a task now
    summary: str  #: one sentence

    @classmethod
    def of(cls, explanation: pb.Explanation) -> Self:
        return cls(
            group=explanation.group,
            waiting=explanation.waiting,
            total=explanation.total,
            held=explanation.held,
            executors=explanation.executors,
            filters=tuple(Filter(one.name, one.wants, one.removes, one.leaves) for one in explanation.filters),
            candidates=explanation.candidates,
            summary=explanation.summary,
        )


@dataclass(frozen=True)
class ProjectInfo:
    """The quotas of a project, 0 being no bound, and what it uses of them."""

    name: str
    slots_max: int
    tasks_max: int
    jobs_max: int
    weight: int
    running: int  #: tasks placed or running
    waiting: int  #: tasks
    jobs: int  #: that have not ended

    @classmethod
    def of(cls, project: pb.ProjectInfo) -> Self:
        return cls(
            name=project.name,
            slots_max=project.slots_max,
            tasks_max=project.tasks_max,
            jobs_max=project.jobs_max,
            weight=project.weight,
            running=project.running,
            waiting=project.waiting,
            jobs=project.jobs,
        )


@dataclass(frozen=True)
class RunInfo:
    """A job that a schedule has started."""

    id: str
    state: str
    submitted_at_ms: int
    ended_at_ms: int | None


@dataclass(frozen=True)
class ScheduleInfo:
    name: str
    cron: str
    timezone: str
    overlap: str  #: skip, allow or replace
    missed: str  #: skip or run-once
    keep: int
    paused: bool
    next_at_ms: int | None  #: None: it is paused, or fires no more
    last_at_ms: int | None  #: the last time that came
    note: str  #: what became of that
    created_at_ms: int
    runs: tuple[RunInfo, ...]  #: the newest first
    times_ms: tuple[int, ...]  #: the next ones, if they were asked for

    @classmethod
    def of(cls, schedule: pb.ScheduleInfo) -> Self:
        return cls(
            name=schedule.name,
            cron=schedule.cron,
            timezone=schedule.timezone,
            overlap=schedule.overlap,
            missed=schedule.missed,
            keep=schedule.keep,
            paused=schedule.paused,
            next_at_ms=schedule.next_at_ms or None,
            last_at_ms=schedule.last_at_ms or None,
            note=schedule.note,
            created_at_ms=schedule.created_at_ms,
            runs=tuple(
                RunInfo(run.id, run.state, run.submitted_at_ms, run.ended_at_ms or None) for run in schedule.runs
            ),
            times_ms=tuple(schedule.times_ms),
        )


@dataclass(frozen=True)
class TaskInfo:
    group: str
    index: int
    state: str
    attempt: int
    executor: str  #: its name; empty: none
    address: str
    reason: str  #: which groups it waits for, or why it was skipped; empty: neither
    cpu_s: float | None = None  #: of the attempt that ended it; None: not kept. Short tasks share what was measured
    memory_bytes: int | None = None  #: the most that it, or its batch of short tasks, had resident

    @classmethod
    def of(cls, task: pb.TaskInfo) -> Self:
        return cls(
            group=task.group,
            index=task.index,
            state=task.state,
            attempt=task.attempt,
            executor=task.executor,
            address=task.address,
            reason=task.reason,
            cpu_s=task.cpu_us / 1e6 if task.cpu_us or task.memory_bytes else None,
            memory_bytes=task.memory_bytes or None,
        )


@dataclass(frozen=True)
class Ended:
    """Tasks [start, stop) of a group ended, as the log has it."""

    group: str
    start: int
    stop: int
    attempt: int
    outcome: str  #: succeeded or failed
    executor: str  #: uid
    ended_at_ms: int
    error: str
    cpu_s: float = 0.0  #: of all of them
    memory_bytes: int = 0  #: the most that one of them had resident; 0: not known

    @classmethod
    def of(cls, row: pb.ResultRow) -> Self:
        return cls(
            group=row.group,
            start=row.start,
            stop=row.stop,
            attempt=row.attempt,
            outcome=row.outcome,
            executor=row.executor,
            ended_at_ms=row.ended_at_ms,
            error=row.error,
            cpu_s=row.cpu_us / 1e6,
            memory_bytes=row.memory_bytes,
        )


@dataclass(frozen=True)
class ExecutorInfo:
    uid: str
    name: str
    address: str
    state: str  #: alive, draining, drained (and nothing is out on it any more) or gone
    connected: bool  #: holds a session with the leader
    slots: int
    running: int  #: tasks placed on it
    labels: dict[str, str]
    incarnation: int
    registered_at_ms: int
    version: str
    capacity: dict[str, int]  #: cpu in thousandths, memory in bytes, others in whole units
    drain: bool  #: it gets nothing until it is undrained; true of a gone one, too
    drain_left_ms: int | None  #: until what runs on it is stopped and placed elsewhere; None: never
    unhealthy: str = ""  #: why it takes no tasks now; empty: it does

    @classmethod
    def of(cls, executor: pb.ExecutorInfo) -> Self:
        return cls(
            uid=executor.uid,
            name=executor.name,
            address=executor.address,
            state=executor.state,
            connected=executor.connected,
            slots=executor.slots,
            running=executor.running,
            labels=dict(sorted(executor.labels.items())),
            incarnation=executor.incarnation,
            registered_at_ms=executor.registered_at_ms,
            version=executor.version,
            capacity=dict(sorted(executor.capacity.items())),
            drain=executor.drain,
            drain_left_ms=executor.drain_left_ms if executor.HasField("drain_left_ms") else None,
            unhealthy=executor.unhealthy,
        )


@dataclass(frozen=True)
class PeerInfo:
    """A follower as its leader sees it."""

    name: str
    match_index: int
    lag: int
    connected: bool
    last_contact_ms: int | None

    @classmethod
    def of(cls, peer: pb.RaftPeer) -> Self:
        return cls(
            name=peer.name,
            match_index=peer.match_index,
            lag=peer.lag,
            connected=peer.connected,
            last_contact_ms=None if peer.last_contact_ms < 0 else peer.last_contact_ms,
        )


@dataclass(frozen=True)
class MasterInfo:
    """What a master says of itself; role `unreachable` and `error` when it said nothing."""

    name: str
    address: str
    cluster_id: str
    role: str
    term: int
    leader: str
    commit_index: int
    applied_index: int
    last_index: int
    first_index: int
    durable_index: int
    log_bytes: int
    snapshot_index: int
    snapshot_age_s: float | None
    peers: tuple[PeerInfo, ...]
    error: str
    version: str
    http_address: str
    pid: int
    learner: bool = False  #: it lost its disk, and votes again when it has caught up
    disk: str = "ok"  #: ok; low: less than the reserve is free; full: a write waits for room
    disk_free_bytes: int = 0
    disk_reserve_bytes: int = 0

    @property
    def reachable(self) -> bool:
        return self.role != "unreachable"

    @classmethod
    def of(cls, master: pb.MasterStatus) -> Self:
        return cls(
            name=master.name,
            address=master.address,
            cluster_id=master.cluster_id,
            role=master.role,
            term=master.term,
            leader=master.leader,
            commit_index=master.commit_index,
            applied_index=master.applied_index,
            last_index=master.last_index,
            first_index=master.first_index,
            durable_index=master.durable_index,
            log_bytes=master.log_bytes,
            snapshot_index=master.snapshot_index,
            snapshot_age_s=None if master.snapshot_age_s < 0 else master.snapshot_age_s,
            peers=tuple(PeerInfo.of(peer) for peer in master.peers),
            error=master.error,
            version=master.version,
            http_address=master.http_address,
            pid=master.pid,
            learner=master.learner,
            disk=master.disk,
            disk_free_bytes=master.disk_free_bytes,
            disk_reserve_bytes=master.disk_reserve_bytes,
        )


@dataclass(frozen=True)
class LogChunk:
    """A piece of what an attempt wrote, as it was written: it may end in the middle of a line."""

    stream: str  #: stdout or stderr
    data: bytes
    attempt: int


class JobList(tuple[JobInfo, ...]):
    """A page of jobs."""

    next: int = 0  #: `before_uid` of the next page; 0: there is none
    warning: str = ""  #: why jobs are missing that have left the masters

    @classmethod
    def of(cls, response: pb.ListJobsResponse) -> Self:
        page = cls(JobInfo.of(job) for job in response.jobs)
        page.next, page.warning = response.next, response.warning
        return page


@dataclass(frozen=True)
class JobEvent:
    """What happened to a job."""

    revision: int
    at_ms: int
    kind: str  #: submitted, started, paused, resumed, canceling, failing, failures, rerun, restored, ended, omitted
    message: str
    by: str = ""  #: who gave the command that this came of; empty: tiflow itself

    @classmethod
    def of(cls, event: pb.JobEvent) -> Self:
        return cls(revision=event.revision, at_ms=event.at_ms, kind=event.kind, message=event.message, by=event.by)


@dataclass(frozen=True)
class MetadataInfo:
    """The metadata database, as the leader sees it."""

    state: str  #: available, unavailable, starting; empty: there is no leader
    url: str
    revision: int
    behind: int  #: revisions
    error: str
    note: str


@dataclass(frozen=True)
class ClusterInfo:
    """The whole at a glance."""

    cluster_id: str
    revision: int
    format: int
    masters: tuple[MasterInfo, ...]
    executors: dict[str, int]  #: by state
    jobs: dict[str, int]  #: by state; those that the masters hold
    pruned: int  #: jobs that have left the masters for the database
    metadata: MetadataInfo

    @classmethod
    def of(cls, response: pb.ClusterStatusResponse) -> Self:
        database = response.metadata
        return cls(
            cluster_id=response.cluster_id,
            revision=response.revision,
            format=response.format,
            masters=tuple(MasterInfo.of(master) for master in response.masters),
            executors=dict(sorted(response.executors.items())),
            jobs=dict(sorted(response.jobs.items())),
            pruned=response.pruned,
            metadata=MetadataInfo(
                state=database.state,
                url=database.url,
                revision=database.revision,
                behind=database.behind,
                error=database.error,
                note=database.note,
            ),
        )
