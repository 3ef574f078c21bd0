"""Jobs: submit, pause, resume, cancel, delete, fail in time, and run a task again whose result was lost."""

from msgspec import msgpack
from msgspec.structs import replace

from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tiflow.sched.commands import (
    CancelJob,
    DeleteJob,
    ExpireJob,
    PauseJob,
    RerunLost,
    ResumeJob,
    SubmitJob,
)
from tiflow.sched.draft import Draft
from tiflow.sched.history import HISTORY_FORMAT
from tiflow.sched.model import (
    CHUNK_TASKS,
    DELETED_MAX,
    JOB_TERMINAL,
    JOBS_MAX,
    SPECS_BYTES_MAX,
    SUBMIT_WINDOW_MS,
    TOKEN_CHARS_MAX,
    Group,
    Job,
    JobSpec,
    Millis,
    Pruned,
    ResultRow,
    Retry,
    job_state,
)
from tiflow.sched.projects import check_quotas
from tiflow.sched.state import State
from tiflow.sched.tasks import restore_bits
from tiflow.sched.validate import check_length, validate_spec

SPECS_FORMAT = 4  #: of the cluster, from which on all specs together are bounded


def submit_job(draft: Draft, command: SubmitJob) -> Job | Pruned:
    """Returns: the new job, or the one that the token got before."""
    return start_job(draft, command.spec, command.token, command.token_at_ms)


def start_job(draft: Draft, spec: JobSpec, token: str, token_at_ms: Millis) -> Job | Pruned:
    """Returns: the new job, or the one that the token got before. Drafts nothing if it raises."""
    state = draft.state
    spec_bytes = validate_spec(spec)
    check_length("token", token, TOKEN_CHARS_MAX)
    living = state.jobs.get(spec.id)
    if living is not None:
        if living.token == token:
            return living
        raise AlreadyExists(f"job {spec.id} exists; use another id, or delete it once it has ended")
    if (pruned := state.pruned.get(token)) is not None:
        return pruned
    if state.now_ms - token_at_ms > SUBMIT_WINDOW_MS:
        # A job of that token may have run and been deleted since: to run it again would break the promise.
        raise FailedPrecondition(
            f"job {spec.id}: its token is older than {SUBMIT_WINDOW_MS // 3_600_000} h; submit it with a new one"
        )
    if len(state.jobs) >= JOBS_MAX:
        raise ResourceExhausted(f"{JOBS_MAX} jobs exist; delete some that have ended")
    check_specs(state, f"job {spec.id}", spec_bytes)
    check_quotas(state, spec)
    uid = state.revision
    job = Job(
        spec.id,
        uid,
        spec,
        token,
        submitted_at_ms=state.wall_ms,
        mod_revision=uid,
        deadline_at_ms=state.now_ms + spec.job_timeout_ms if spec.job_timeout_ms else 0,
        queue_deadline_at_ms=state.now_ms + spec.queue_timeout_ms if spec.queue_timeout_ms else 0,
    )
    draft.jobs[job.id] = job
    for position, group in enumerate(spec.groups):
        draft.groups[uid, group.name] = Group(uid, group.name, position, group.count, held=bool(group.after))
    return job


def check_specs(state: State, what: str, more_bytes: int) -> None:
    """Raise ResourceExhausted, which names the bound and the remedy, if there is no room for so much more of specs:
    masters hold them in memory and in each snapshot."""
    if state.format >= SPECS_FORMAT and state.spec_bytes + more_bytes > SPECS_BYTES_MAX:
        raise ResourceExhausted(
            f"{what}: its description has {more_bytes} bytes, and those of all jobs, pools and schedules "
            f"{state.spec_bytes}; at most {SPECS_BYTES_MAX} together. Delete jobs that have ended, or let them leave "
            "sooner ([metadata] retention); pass long lists of items by the URL of a file or in the result store"
        )


def cancel_job(draft: Draft, command: CancelJob) -> None:
    """What waits is canceled now; what is out stays out until its executor, or the executor's end, says how
    it ended."""
    cancel(draft, _find(draft.state, command.job_id, command.uid))


def cancel(draft: Draft, job: Job) -> None:
    """Void for a job that has ended, or is about to."""
    if not job.closed and job_state(job, draft.state.groups_of(job)) not in JOB_TERMINAL:
        close_job(draft, replace(job, cancel_requested=True))


def pause_job(draft: Draft, command: PauseJob) -> None:
    """What is out, though it may not have started, goes on to its end."""
    job = _find(draft.state, command.job_id, command.uid)
    if not job.closed and job_state(job, draft.state.groups_of(job)) not in JOB_TERMINAL:
        _set_paused(draft, job, paused=True)


def resume_job(draft: Draft, command: ResumeJob) -> None:
    job = _find(draft.state, command.job_id, command.uid)
    if not job.closed:
        _set_paused(draft, job, paused=False)


def expire_job(draft: Draft, command: ExpireJob) -> str:
    """Returns: why the job fails; empty: it does not."""
    now_ms, job = draft.state.now_ms, draft.job(command.uid)
    if job is None:
        return ""
    if 0 < job.deadline_at_ms <= now_ms:
        failure = f"timed out after {job.spec.job_timeout_ms} ms (job-timeout)"
    elif 0 < job.queue_deadline_at_ms <= now_ms:
        failure = f"timed out after {job.spec.queue_timeout_ms} ms in which no task was placed (queue-timeout)"
    else:
        return ""
    close_job(draft, replace(job, failure=failure))
    return failure


def delete_job(draft: Draft, command: DeleteJob) -> None:
    if command.uid in draft.state.deleted:
        return
    job = _find(draft.state, command.job_id, command.uid)
    stands = job_state(job, draft.state.groups_of(job))
    if stands not in JOB_TERMINAL:
        raise FailedPrecondition(f"job {job.id} is {stands}; cancel it, and delete it when it has ended")
    if draft.state.format >= HISTORY_FORMAT and len(draft.state.deleted) >= DELETED_MAX:
        raise ResourceExhausted(
            f"{DELETED_MAX} jobs were deleted that the metadata database still has; see that it can be reached "
            "(`tiflow cluster status`)"
        )
    draft.forgotten.append(job)


def rerun_lost(draft: Draft, command: RerunLost) -> None:
    state = draft.state
    job = state.job_of(command.uid)
    row = state.results.get((command.uid, command.row))
    if job is None or row is None:
        raise NotFound(f"no result row {command.row} of a job with uid {command.uid}")
    if job.spec.framework:
        raise FailedPrecondition(f"job {job.id}: what its job master and its workers returned is not computed again")
    if row.outcome != "succeeded" or not row.start <= command.index < row.stop:
        raise InvalidArgument(f"index: row {command.row} of job {job.id} says nothing good of task {command.index}")
    executor = state.executors.get(row.executor)
    bit = 1 << (command.index - row.start)
    rerun = int.from_bytes(row.rerun, "little")
    if rerun & bit or job.closed:
        return
    result = msgpack.decode(row.results)[command.index - row.start]
    if isinstance(result, bytes):
        return  # it is in the row itself
    alive = executor is not None and executor.alive and executor.incarnation == row.incarnation
    if not command.missing and (alive or len(result) > 2):
        return  # who has it can still be asked
    key = (job.uid, row.group)
    group = state.groups[key]
    restore_bits(draft, key, command.index)
    draft.results[command.uid, command.row] = _with_rerun(row, rerun | bit)
    if job.spec.on_lost_result == "fail":
        _fail_lost(draft, job, row, command.index)
        return
    draft.retries[(*key, command.index)] = Retry(command.index, row.attempt + 1, state.now_ms, stop=command.index + 1)
    draft.groups[key] = replace(group, succeeded=group.succeeded - 1)
    draft.jobs[job.id] = replace(job, ended_at_ms=0)


def _fail_lost(draft: Draft, job: Job, row: ResultRow, index: int) -> None:
    """The task has not succeeded after all, and the job fails with it."""
    key = (job.uid, row.group)
    error = f"the result of task {index} of group {row.group} was lost (on-lost-result = fail)"
    chunk, bit = (*key, index // CHUNK_TASKS), 1 << (index % CHUNK_TASKS)
    ended = draft.chunk(chunk)
    draft.ended[chunk] = replace(ended, failed=ended.failed | bit)
    group = draft.state.groups[key]
    draft.groups[key] = replace(group, succeeded=group.succeeded - 1, failed=group.failed + 1)
    draft.results[job.uid, job.result_rows] = ResultRow(
        row.group,
        index,
        index + 1,
        row.attempt,
        row.executor,
        row.incarnation,
        "failed",
        error=error,
        ended_at_ms=draft.state.wall_ms,
    )
    close_job(draft, replace(job, failure=error, ended_at_ms=0, result_rows=job.result_rows + 1))


def close_job(draft: Draft, job: Job) -> None:
    """What waits is canceled now; what is out, when its executor, or the executor's end, says so."""
    draft.jobs[job.id] = replace(job, paused=False, deadline_at_ms=0, queue_deadline_at_ms=0)
    for group in draft.groups_of(job):
        key = (job.uid, group.name)
        draft.groups[key] = replace(group, closed=True)
        draft.closed.append(key)
    # those that this very command has put there; the others are dropped when it is committed
    draft.retries = {key: retry for key, retry in draft.retries.items() if key[0] != job.uid}
    draft.touched[job.uid] = None


def _set_paused(draft: Draft, job: Job, *, paused: bool) -> None:
    if job.paused is paused:
        return
    draft.jobs[job.id] = replace(job, paused=paused)
    for group in draft.state.groups_of(job):
        draft.groups[job.uid, group.name] = group  # written again, for what is queued depends on both


def _find(state: State, job_id: str, uid: int) -> Job:
    job = state.jobs.get(job_id)
    if job is None or uid not in (0, job.uid):
        raise NotFound(f"no job {job_id}" + (f" with uid {uid}" if uid else ""))
    return job


def _with_rerun(row: ResultRow, bits: int) -> ResultRow:
    return replace(row, rerun=bits.to_bytes((row.stop - row.start + 7) // 8, "little"))
