"""Schedules, as a master serves them: when they fire, and what can be asked of them."""

from tiflow.errors import InvalidArgument, NotFound
from tiflow.jobs.cron import last_fire_ms, next_fire_ms, run_id
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import FireSchedule
from tiflow.sched.model import Millis, Schedule, job_state
from tiflow.sched.state import State

MISSED_AFTER_MS = 60_000  #: a run that could not start so long after its time was missed; an election is shorter
FIRES_MAX = 100  #: at once, which bounds the size of their log entry


def due_fires(state: State, wall_ms: Millis) -> list[FireSchedule]:
    """The schedules whose time has come by the leader's wall clock, and what is to become of them.

    Pure. After a clock that was ahead was put back, a schedule waits until the clock has caught up with it: no time
    is dealt with twice.
    """
    due = []
    for at_ms, name in state.fires[:FIRES_MAX]:
        if at_ms > wall_ms:
            break
        due.append(_fire(state.schedules[name], wall_ms))
    return due


def next_fire_in_ms(state: State, wall_ms: Millis) -> Millis | None:
    """How long until the next one; None: there is none."""
    return max(0, state.fires[0][0] - wall_ms) if state.fires else None


def schedule_info(state: State, schedule: Schedule) -> pb.ScheduleInfo:
    """What is shown of a schedule: its newest runs come first."""
    info = pb.ScheduleInfo(
        name=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        overlap=schedule.overlap,
        missed=schedule.missed,
        keep=schedule.keep,
        paused=schedule.paused,
        next_at_ms=0 if schedule.paused else schedule.next_at_ms,
        last_at_ms=schedule.last_at_ms,
        note=schedule.note,
        created_at_ms=schedule.created_at_ms,
    )
    for uid in reversed(schedule.runs):
        job = state.job_of(uid)
        if job is not None:
            stands = job_state(job, state.groups_of(job))
            info.runs.add(id=job.id, state=stands, submitted_at_ms=job.submitted_at_ms, ended_at_ms=job.ended_at_ms)
    return info


def find_schedule(state: State, name: str) -> Schedule:
    """Raises NotFound."""
    schedule = state.schedules.get(name)
    if schedule is None:
        raise NotFound(f"there is no schedule {name[:140]}; `tiflow schedule list` shows those that there are")
    return schedule


def put_spec(info: pb.ScheduleInfo, schedule: Schedule) -> pb.ScheduleInfo:
    """With what its runs are, but for their items."""
    info.spec.CopyFrom(convert.job_to_proto(schedule.spec, items=False))
    return info


def _fire(schedule: Schedule, wall_ms: Millis) -> FireSchedule:
    due_ms = at_ms = schedule.next_at_ms
    from_ms, job_id = at_ms, run_id(schedule.name, at_ms)
    try:
        if wall_ms - due_ms > MISSED_AFTER_MS and schedule.missed == "run-once":
            from_ms = at_ms = max(due_ms, last_fire_ms(schedule.cron, schedule.timezone, wall_ms) or 0)
            job_id = run_id(schedule.name, at_ms)
        elif wall_ms - due_ms > MISSED_AFTER_MS:
            from_ms, job_id = wall_ms - MISSED_AFTER_MS, ""
        next_ms = next_fire_ms(schedule.cron, schedule.timezone, from_ms)
    except InvalidArgument:  # it fires no more, or this master's time zones are older
        next_ms = 0
    return FireSchedule(schedule.name, schedule.uid, due_ms, at_ms, job_id, next_ms)
