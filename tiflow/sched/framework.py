"""Framework jobs: a job master, itself a task, asks for workers as the job runs, and the job ends with it.

Of its attempts only the one that is out has a say (`_check_in_charge`): an older one, which may yet live on an
executor that nobody can reach, is refused. Workers do not depend on the attempt that has started them, so a new one
finds them as they are.
"""

from msgspec.structs import replace

from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tiflow.sched.commands import AskOnce, StartWorkers, StopWorkers
from tiflow.sched.draft import Draft
from tiflow.sched.jobs import close_job
from tiflow.sched.model import MASTER_GROUP, TYPE_LABEL, Framework, GroupSpec, Job, Selector, job_state
from tiflow.sched.pools import check_after_none, drop_groups, insert_group, withdraw
from tiflow.sched.state import State
from tiflow.sched.validate import validate_group


def advertised(type: str) -> Selector:
    """What members of a job of that type ask of an executor: that it knows the type."""
    return Selector(TYPE_LABEL + type, "exists")


def start_workers(draft: Draft, command: StartWorkers) -> Job:
    """Returns: the job."""
    state, spec = draft.state, command.group
    job = _check_in_charge(state, command.uid, command.attempt)
    if not job.takes_groups:
        raise FailedPrecondition(f"job {job.id} takes no more workers: it is {job_state(job, state.groups_of(job))}")
    check_workers(job, spec)
    known = state.groups.get((job.uid, spec.name))
    if known is None:
        return insert_group(draft, job, spec)
    # what a policy leaves open, masters fill in from settings, which may have changed since
    if known.spec is None or replace(known.spec, retry=spec.retry) != spec:
        raise AlreadyExists(
            f"workers {spec.name} of job {job.id} exist, and are not as asked; use another name, or forget them first"
        )
    return job


def check_workers(job: Job, group: GroupSpec) -> None:
    """Raise InvalidArgument, which names field and remedy, unless the job's master can start such workers."""
    validate_group(group)
    check_after_none(group)
    master, work = job.spec.groups[0].work, group.work
    assert isinstance(master, Framework)
    if group.name == MASTER_GROUP:
        raise InvalidArgument(f"groups: {MASTER_GROUP} is the job master; give workers another name")
    if not isinstance(work, Framework) or not work.kind or work.type != master.type:
        raise InvalidArgument(f"groups.{group.name}.work: workers of this job are of a kind of {master.type}")


def stop_workers(draft: Draft, command: StopWorkers) -> bool:
    """Returns: whether there is no such group, or not any more."""
    job = _check_in_charge(draft.state, command.uid, command.attempt)
    key = (job.uid, command.group)
    if command.group == MASTER_GROUP:
        raise InvalidArgument(f"group: {MASTER_GROUP} is the job master; it ends when it returns")
    withdraw(draft, key, command.start, command.stop, force=True)
    if command.forget:
        dropped = drop_groups(draft, job, (command.group,))
        if dropped is not job:
            draft.jobs[job.id] = dropped
    return key not in draft.state.groups or key in draft.dropped


def ask_once(draft: Draft, command: AskOnce) -> Job | bool | None:
    """Returns: what the command that is asked does; None if it comes too late."""
    asked = command.command
    job = _check_in_charge(draft.state, asked.uid, asked.attempt)
    settled = job.settled if job.asked_attempt == asked.attempt else 0
    if command.number < settled:
        return None
    answer = start_workers(draft, asked) if isinstance(asked, StartWorkers) else stop_workers(draft, asked)
    if (changed := draft.jobs.get(job.id)) is not None:  # a group has come or gone: only then it matters
        settled = max(settled, command.settled)
        draft.jobs[job.id] = replace(changed, asked_attempt=asked.attempt, settled=settled)
    return answer


def follow_master(draft: Draft, job: Job) -> Job:
    """A framework job that is not closed ends with its job master. Returns: the job."""
    master = draft.group((job.uid, MASTER_GROUP))
    assert master is not None, f"job {job.id} has no job master"
    if master.succeeded:
        job = replace(job, done=True, sealed=True)
    elif master.failed:
        job = replace(job, failure=f"its job master failed: {_error(draft, job)}")
    else:
        return job
    close_job(draft, job)
    return draft.jobs[job.id]


def _error(draft: Draft, job: Job) -> str:
    """Of its job master, which this command has let fail."""
    rows = (row for (uid, _), row in draft.results.items() if uid == job.uid and row.group == MASTER_GROUP)
    return next((row.error for row in rows), "")


def _check_in_charge(state: State, uid: int, attempt: int) -> Job:
    """The job; unless that attempt of its job master is out right now, raise FailedPrecondition (NotFound if there is
    no such job)."""
    job = state.job_of(uid)
    if job is None:
        raise NotFound(f"no job with uid {uid}")
    if not job.spec.framework:
        raise FailedPrecondition(f"job {job.id} has no job master")
    out = [row.attempt for row in state.placements_of(uid) if row.group == MASTER_GROUP]
    if out == [attempt]:
        return job
    whose = f"attempt {attempt} of the job master of job {job.id}"
    if out and out[0] > attempt:
        raise FailedPrecondition(f"{whose} has been replaced by attempt {out[0]}")
    raise FailedPrecondition(f"{whose} is not running")
