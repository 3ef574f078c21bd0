"""What follows from a command for the jobs that it has touched: groups that are let go, and jobs that end."""

from msgspec.structs import replace

from tiflow.sched.dependencies import decide
from tiflow.sched.draft import Draft
from tiflow.sched.framework import follow_master
from tiflow.sched.jobs import close_job
from tiflow.sched.model import Job


def settle(draft: Draft) -> None:
    """End each job of which too many tasks, or the job master, have failed, and note the end of each whose last task
    has just ended."""
    for uid in draft.touched:
        job = draft.job(uid)
        assert job is not None
        if uid in draft.state.framework and not job.closed:
            job = follow_master(draft, job)
        failed = _failed(draft, job) if job.spec.max_failures else 0
        if failed and failed >= job.spec.max_failures and not job.closed:
            job = replace(job, failure=f"{failed} tasks failed (max-failures = {job.spec.max_failures})")
            close_job(draft, job)
        if not job.closed:
            _decide_on_held(draft, job)
        if job.takes_groups and not job.paused:
            continue  # it goes on, and a pool may have a thousand groups
        groups = draft.groups_of(job)
        if job.paused and not any(group.out for group in groups):
            draft.jobs.setdefault(job.id, job)  # Pausing has become Paused: written again, for who mirrors jobs
        if not job.takes_groups and not any(group.out or group.waiting for group in groups):
            draft.jobs[job.id] = replace(
                draft.jobs.get(job.id, job),
                ended_at_ms=draft.state.wall_ms,
                paused=False,
                deadline_at_ms=0,
                queue_deadline_at_ms=0,
            )


def _failed(draft: Draft, job: Job) -> int:
    return job.dropped_failed + sum(group.failed for group in draft.groups_of(job))


def _decide_on_held(draft: Draft, job: Job) -> None:
    """Only when one of its groups has just ended: to look at all groups for every event would be dear. Groups that
    were added to an open job come after none."""
    if not any(spec.after for spec in job.spec.groups):
        return
    if any(group.ended for (uid, _), group in draft.groups.items() if uid == job.uid):
        for group in decide(job, draft.groups_of(job)):
            draft.groups[job.uid, group.name] = group
