"""Jobs that leave the replicated state for the metadata database, and those of a lost cluster that come from it."""

from collections.abc import Collection
from heapq import merge
from itertools import islice

from msgspec.structs import replace

from tiflow.errors import AlreadyExists, FailedPrecondition
from tiflow.sched.commands import PruneJobs, RestoreJob
from tiflow.sched.draft import Draft
from tiflow.sched.model import (
    CHUNK_TASKS,
    JOB_TERMINAL,
    PRUNED_MAX,
    SUBMIT_WINDOW_MS,
    Call,
    Command,
    Framework,
    Group,
    GroupSpec,
    Job,
    JobSpec,
    Millis,
    Pruned,
    job_state,
)
from tiflow.sched.state import State
from tiflow.sched.validate import validate_spec

JOBS_KEPT_MAX = 50_000  #: jobs in the state; beyond that the finished ones leave before their time
ARCHIVE_ROWS_MAX = 20_000  #: result rows that an archived job keeps
ARCHIVE_BYTES_MAX = 4 << 20  #: of results and errors in them
ARCHIVE_SPECS_BYTES_MAX = 4 << 20  #: of the specs of groups that were added to it; of the rest no arguments are kept
PRUNE_MAX = 1_000  #: jobs in one command
CLOCK_SLACK_MS = 3_600_000  #: how far a client's clock, which stamps tokens, may be ahead


def prunable(
    state: State, persisted: int, wall_ms: Millis, retention_ms: Millis, without: Collection[int] = ()
) -> PruneJobs | None:
    """What can leave the state now that the database stands at revision `persisted`; None: nothing. `without`: uids
    of jobs of which it does not have all."""
    jobs: list[tuple[int, int]] = []
    crowded = len(state.jobs) - JOBS_KEPT_MAX
    for uid in state.finished:
        job = state.jobs[state.job_ids[uid]]
        kept = wall_ms - job.ended_at_ms < retention_ms and len(jobs) >= crowded
        if kept or job.mod_revision > persisted or len(jobs) == PRUNE_MAX:
            break
        if uid not in without:
            jobs.append((uid, job.mod_revision))
    events = next(iter(state.events.values()), None)
    gone = next(iter(state.deleted.values()), None)
    idle = (events is None or events.events[-1].revision > persisted) and (
        gone is None or gone.mod_revision > persisted
    )
    return PruneJobs(persisted, tuple(jobs)) if jobs or not idle else None


def prune_jobs(draft: Draft, command: PruneJobs) -> int:
    """Returns: how many jobs left."""
    state = draft.state
    draft.persisted = min(command.persisted, state.revision)
    notes = 0
    for uid, mod_revision in dict(command.jobs).items():
        job = state.job_of(uid)
        if job is None or job.mod_revision != mod_revision or mod_revision > draft.persisted:
            continue
        stands = job_state(job, state.groups_of(job))
        recent = state.now_ms - job.submitted_at_ms <= SUBMIT_WINDOW_MS + CLOCK_SLACK_MS
        if stands not in JOB_TERMINAL or (recent and len(state.pruned) + notes >= PRUNED_MAX):
            continue
        note = Pruned(job.token, job.id, job.uid, state.now_ms, str(stands)) if recent and job.token else None
        notes += note is not None
        draft.pruned.append((job, note))
    return len(draft.pruned)


def restore_job(draft: Draft, command: RestoreJob) -> None:
    state = draft.state
    if command.spec is None:
        if state.restored_from == command.cluster_id:
            return
        if state.restored_from or state.jobs or state.persisted or state.deleted:
            raise FailedPrecondition(
                "this cluster has jobs of its own; only an empty one can take over those of another"
            )
        draft.restored_from, draft.revision = command.cluster_id, command.revision
        return
    if state.restored_from != command.cluster_id:
        raise FailedPrecondition(f"this cluster does not take over the jobs of {command.cluster_id}")
    validate_spec(command.spec)
    living = state.jobs.get(command.spec.id)
    if living is not None:
        if living.token == command.token:
            return
        raise AlreadyExists(f"job {command.spec.id} exists")
    spec, uid, now_ms = command.spec, state.revision, state.now_ms
    draft.jobs[spec.id] = Job(
        spec.id,
        uid,
        spec,
        command.token,
        submitted_at_ms=command.submitted_at_ms,
        mod_revision=uid,
        paused=command.paused,
        deadline_at_ms=now_ms + spec.job_timeout_ms if spec.job_timeout_ms else 0,
        queue_deadline_at_ms=now_ms + spec.queue_timeout_ms if spec.queue_timeout_ms else 0,
    )
    for position, group in enumerate(spec.groups):
        draft.groups[uid, group.name] = Group(uid, group.name, position, group.count, held=bool(group.after))


def spec_size(spec: JobSpec) -> int:
    """Bytes of what can be large in it."""
    return sum(map(group_size, spec.groups))


def group_size(spec: GroupSpec) -> int:
    """Bytes of what can be large in it."""
    size = sum(map(len, spec.items))
    match spec.work:
        case Command(argv, env):
            size += sum(map(len, argv)) + sum(len(name) + len(value) for name, value in env.items())
        case Call(functions):
            size += sum(map(len, functions))
        case Framework(config=config):
            size += len(config)
    return size


def _without_arguments(spec: GroupSpec) -> GroupSpec:
    match work := spec.work:
        case Command():
            work = Command(())
        case Call():
            work = replace(work, functions=())
        case Framework():
            work = replace(work, config=b"")
    return replace(spec, work=work, items=())


def alone(state: State, job: Job) -> State:
    """A state that has this job only, with as many of its result rows, and of the specs of groups that were added, as
    an archive keeps. O(its rows and chunks)."""
    archive = State()
    archive.format, archive.revision = state.format, job.mod_revision  # whenever it is made, it is the same
    rows: list[list[int]] = []
    room = ARCHIVE_SPECS_BYTES_MAX
    for group in state.groups_of(job):
        key = (job.uid, group.name)
        rows.append(state.rows_of.get(key, []))
        if group.spec is not None:
            room -= group_size(group.spec)
            group = group if room >= 0 else replace(group, spec=_without_arguments(group.spec))
        archive.groups[key] = group
        for chunk in range((group.count - 1) // CHUNK_TASKS + 1):
            if (ended := state.ended.get((*key, chunk))) is not None:
                archive.ended[*key, chunk] = ended
    # up to the last row that is there: those of dropped groups are awaited by nobody
    archive.jobs[job.id] = replace(job, result_rows=max((numbers[-1] + 1 for numbers in rows if numbers), default=0))
    size = 0
    for row in islice(merge(*rows), ARCHIVE_ROWS_MAX):
        result = state.results[job.uid, row]
        size += len(result.results) + len(result.error.encode())
        if size > ARCHIVE_BYTES_MAX:
            break
        archive.results[job.uid, row] = result
    return archive
