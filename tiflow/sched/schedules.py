"""Schedules: a job that is started again and again, each time once.

When that is, the leader knows (`tiflow.jobs.cron`). Its commands carry the times, and are checked here against what
the schedule waits for: whoever leads, and however often it says so, a time is dealt with once.
"""

from msgspec.structs import replace

from tiflow.errors import AlreadyExists, InvalidArgument, NotFound, Rejected, ResourceExhausted
from tiflow.sched.commands import DeleteSchedule, FireSchedule, PauseSchedule, PutSchedule, TriggerSchedule
from tiflow.sched.draft import Draft
from tiflow.sched.history import HISTORY_FORMAT
from tiflow.sched.jobs import cancel, check_specs, start_job
from tiflow.sched.model import (
    CRON_CHARS_MAX,
    DELETED_MAX,
    SCHEDULE_KEEP_MAX,
    SCHEDULE_LIVE_MAX,
    SCHEDULE_NAME_CHARS_MAX,
    SCHEDULE_SPEC_BYTES_MAX,
    SCHEDULES_MAX,
    TOKEN_CHARS_MAX,
    Job,
    Pruned,
    Schedule,
    encoded_bytes,
)
from tiflow.sched.state import State
from tiflow.sched.validate import check_id, check_length, check_range, validate_spec

OVERLAP = ("skip", "allow", "replace")
MISSED = ("skip", "run-once")


def check_schedule(command: PutSchedule) -> None:
    """Raise InvalidArgument, which names field, value and bound, unless such a schedule can be. Whether its cron line
    can be read, and ever fires, is for `tiflow.jobs.cron` to say."""
    check_id("name", command.name)
    check_length("name", command.name, SCHEDULE_NAME_CHARS_MAX)
    check_length("cron", command.cron, CRON_CHARS_MAX)
    check_length("timezone", command.timezone, TOKEN_CHARS_MAX)
    check_length("token", command.token, TOKEN_CHARS_MAX)
    for field, value, known in (("overlap", command.overlap, OVERLAP), ("missed", command.missed, MISSED)):
        if value not in known:
            raise InvalidArgument(f"{field} = {value[:40]!r}: must be one of {', '.join(known)}")
    check_range("keep", command.keep, 1, SCHEDULE_KEEP_MAX)
    check_range("next_at_ms", command.next_at_ms, 1, 1 << 53)
    validate_spec(replace(command.spec, id=command.name))
    size = encoded_bytes(command.spec)
    if size > SCHEDULE_SPEC_BYTES_MAX:
        raise InvalidArgument(
            f"spec: {size} bytes; at most {SCHEDULE_SPEC_BYTES_MAX} for a schedule. Let a task read the list of items"
        )


def put_schedule(draft: Draft, command: PutSchedule) -> Schedule:
    """Returns: the new schedule, or the one that the token got before."""
    state = draft.state
    check_schedule(command)
    known = state.schedules.get(command.name)
    if known is not None:
        if known.token == command.token:
            return known
        raise AlreadyExists(f"schedule {command.name} exists; use another name, or delete it")
    if len(state.schedules) >= SCHEDULES_MAX:
        raise ResourceExhausted(f"{SCHEDULES_MAX} schedules exist; delete some")
    check_specs(state, f"schedule {command.name}", encoded_bytes(command.spec))
    schedule = Schedule(
        command.name,
        state.revision,
        command.spec,
        command.cron,
        command.timezone,
        command.token,
        command.overlap,
        command.missed,
        command.keep,
        command.next_at_ms,
        created_at_ms=state.wall_ms,
        paused=command.paused,
        mod_revision=state.revision,
    )
    draft.schedules[command.name] = schedule
    return schedule


def delete_schedule(draft: Draft, command: DeleteSchedule) -> None:
    draft.schedules[_find(draft.state, command.name).name] = None


def pause_schedule(draft: Draft, command: PauseSchedule) -> Schedule:
    """Returns: the schedule, as it is now."""
    schedule = _find(draft.state, command.name)
    if schedule.paused is not command.paused:
        schedule = replace(schedule, paused=command.paused, next_at_ms=command.next_at_ms)
        draft.schedules[schedule.name] = schedule
    return schedule


def trigger_schedule(draft: Draft, command: TriggerSchedule) -> Job | Pruned:
    """Returns: the run."""
    state, schedule = draft.state, _find(draft.state, command.name)
    spec = replace(schedule.spec, id=command.job_id)
    known = state.jobs.get(command.job_id)
    if known is None and len(live_runs(state, schedule)) >= SCHEDULE_LIVE_MAX:
        raise ResourceExhausted(f"schedule {schedule.name}: {SCHEDULE_LIVE_MAX} runs have not ended; cancel some")
    job = start_job(draft, spec, command.token, command.token_at_ms)
    if isinstance(job, Job) and job.uid == state.revision:
        draft.schedules[schedule.name] = _with_run(draft, schedule, job)
    return job


def fire_schedule(draft: Draft, command: FireSchedule) -> Job | None:
    """Returns: the run; None: there is none, now or ever."""
    state, schedule = draft.state, draft.state.schedules.get(command.name)
    if schedule is None or schedule.uid != command.uid or schedule.paused or not schedule.next_at_ms:
        return None
    if command.due_at_ms != schedule.next_at_ms or not schedule.next_at_ms <= command.at_ms <= state.wall_ms:
        return None
    if 0 < command.next_at_ms <= command.at_ms:
        return None
    job, note = _run(draft, schedule, command)
    schedule = replace(schedule, last_at_ms=command.at_ms, next_at_ms=command.next_at_ms, note=note)
    draft.schedules[schedule.name] = _with_run(draft, schedule, job) if job else schedule
    return job


def live_runs(state: State, schedule: Schedule) -> list[Job]:
    """Those of its runs that have not ended, the newest last."""
    runs = (state.job_of(uid) for uid in schedule.runs)
    return [run for run in runs if run is not None and not run.ended_at_ms]


def _run(draft: Draft, schedule: Schedule, command: FireSchedule) -> tuple[Job | None, str]:
    live = live_runs(draft.state, schedule)
    if not command.job_id:
        return None, "missed: no master led at that time"
    if live and schedule.overlap == "skip":
        return None, f"skipped: {live[-1].id} has not ended"
    if len(live) >= SCHEDULE_LIVE_MAX:
        return None, f"skipped: {len(live)} runs have not ended"
    spec = replace(schedule.spec, id=command.job_id)
    try:
        job = start_job(draft, spec, f"{schedule.uid}/{command.at_ms}", draft.state.now_ms)
    except Rejected as refusal:
        return None, f"refused: {refusal}"
    if isinstance(job, Pruned):  # somebody submitted with this very token
        return None, f"refused: its token is that of job {job.id}"
    if schedule.overlap == "replace":
        for run in live:
            cancel(draft, run)
    return job, f"started {job.id}"


def _with_run(draft: Draft, schedule: Schedule, job: Job) -> Schedule:
    """With the new run; the oldest of the ended ones are deleted. When no more notes of deletion fit, since the
    metadata database has not taken them, that is left to a later run."""
    state = draft.state
    runs = [run for uid in schedule.runs if (run := state.job_of(uid)) is not None]
    ended = [run for run in runs if run.ended_at_ms]
    gone = ended[: max(0, len(ended) - schedule.keep)]
    if state.format >= HISTORY_FORMAT:
        gone = gone[: max(0, DELETED_MAX - len(state.deleted))]
    draft.forgotten += gone
    kept = [run.uid for run in runs if run not in gone]
    return replace(schedule, runs=(*kept, job.uid))


def _find(state: State, name: str) -> Schedule:
    schedule = state.schedules.get(name)
    if schedule is None:
        raise NotFound(f"there is no schedule {name[:140]}; `tiflow schedule list` shows those that there are")
    return schedule
