"""The history of a job: what happened to it, as far as the metadata database is not known to have it."""

from collections.abc import Iterator

from tiflow.sched.commands import WHO_FORMAT, AnyCommand, FireSchedule, TriggerSchedule
from tiflow.sched.draft import Draft
from tiflow.sched.model import EVENT_BY_CHARS_MAX, EVENTS_MAX, Group, Job, JobEvent, JobEvents, job_state, progress

HISTORY_FORMAT = 2  #: of the cluster, from which on history is kept
MESSAGE_CHARS_MAX = 1_000


def note(draft: Draft, command: AnyCommand) -> None:
    """Add to the history of each job what this command did to it."""
    state = draft.state
    by = _who(command) if state.format >= WHO_FORMAT else ""
    for job in draft.jobs.values():
        old = state.job_of(job.uid)
        events = [
            JobEvent(state.revision, state.wall_ms, kind, message[:MESSAGE_CHARS_MAX], by)
            for kind, message in _changes(draft, old, job)
        ]
        if events:
            draft.events[job.uid] = _with(state.events.get(job.uid), job.uid, events)


def _who(command: AnyCommand) -> str:
    by: str = getattr(command, "by", "")
    if isinstance(command, FireSchedule | TriggerSchedule):
        by = f"schedule {command.name}, by {by}" if by else f"schedule {command.name}"
    return by[:EVENT_BY_CHARS_MAX]


def _with(before: JobEvents | None, uid: int, events: list[JobEvent]) -> JobEvents:
    whole = (*(before.events if before else ()), *events)
    omitted = max(0, len(whole) - EVENTS_MAX)
    return JobEvents(uid, whole[omitted:], (before.omitted if before else 0) + omitted)


def _changes(draft: Draft, old: Job | None, job: Job) -> Iterator[tuple[str, str]]:
    if old is None:
        kind = "restored" if draft.state.restored_from else "submitted"
        yield kind, f"{sum(group.count for group in _groups(draft, job))} tasks"
        old = Job(job.id, job.uid, job.spec, job.token, job.submitted_at_ms)
    if job.started_at_ms and not old.started_at_ms:
        yield "started", ""
    if job.result_rows != old.result_rows:
        yield from _failures(draft, old, job)
    if job.failure != old.failure:
        yield "failing", job.failure
    if job.cancel_requested and not old.cancel_requested:
        yield "canceling", ""
    if job.paused != old.paused and not (job.closed or job.ended_at_ms):
        yield ("paused" if job.paused else "resumed"), ""
    if job.ended_at_ms and not old.ended_at_ms:
        groups = _groups(draft, job)
        sums = progress(groups)
        failed, canceled = sums.failed + job.dropped_failed, sums.canceled + job.dropped_canceled
        succeeded = sums.succeeded + job.dropped - job.dropped_failed - job.dropped_canceled
        counts = f"{succeeded} succeeded, {failed} failed, {canceled} canceled"
        counts += f", {sums.skipped} skipped" if sums.skipped else ""
        yield "ended", f"{job_state(job, groups)}: {counts}"
    if old.ended_at_ms and not job.ended_at_ms:
        yield "rerun", "a result was lost with its executor"


def _failures(draft: Draft, old: Job, job: Job) -> Iterator[tuple[str, str]]:
    """Told when their number passes a power of two: 1, 2, 4 … So a million of them are twenty events."""
    rows = (draft.results.get((job.uid, row)) for row in range(old.result_rows, job.result_rows))
    error = next((row.error for row in rows if row is not None and row.outcome == "failed"), None)
    if error is None:
        return
    failed = job.dropped_failed + sum(group.failed for group in _groups(draft, job))
    before = old.dropped_failed + sum(group.failed for group in draft.state.groups_of(old))
    if failed.bit_length() > before.bit_length():
        yield "failures", f"{failed} tasks have failed; the last: {error}"


def _groups(draft: Draft, job: Job) -> list[Group]:
    """Those of a new job are only in the draft."""
    known = draft.state.group_names.get(job.uid, ())
    return draft.groups_of(job) if known else [group for key, group in draft.groups.items() if key[0] == job.uid]
