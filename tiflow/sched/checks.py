"""What is true of every state. For tests and the simulator: it costs O(n)."""

from collections.abc import Iterable

from msgspec import msgpack

from tiflow.sched.dependencies import decide
from tiflow.sched.model import (
    CHUNK_TASKS,
    DELETED_MAX,
    DRAINS_MAX,
    EVENTS_MAX,
    EXECUTORS_DEAD_MAX,
    EXECUTORS_MAX,
    JOB_TERMINAL,
    JOBS_MAX,
    LOST_MAX,
    MASTER_GROUP,
    PLACEMENT_TASKS_MAX,
    POOL_GROUPS_MAX,
    PROJECTS_MAX,
    PRUNED_MAX,
    SCHEDULE_LIVE_MAX,
    SCHEDULES_MAX,
    Deleted,
    Executor,
    Group,
    Job,
    Placement,
    Schedule,
    group_spec,
    job_state,
)
from tiflow.sched.room import capacity_of, needed_at_once, room_max
from tiflow.sched.schedules import live_runs
from tiflow.sched.state import State
from tiflow.sched.views import results

_encode = msgpack.Encoder().encode


def check(state: State) -> None:
    """Raise AssertionError if the state breaks a promise of `model` or `state`."""
    for job in state.jobs.values():
        _check_job(state, job)
    for key, group in state.groups.items():
        assert key == (group.uid, group.name), key
        _check_group(state, group)
    for id, placement in state.placements.items():
        assert id == placement.id < state.next_placement, placement
        _check_placement(state, placement)
    for uid, executor in state.executors.items():
        assert uid == executor.uid, executor
        _check_executor(state, executor)
    for name, schedule in state.schedules.items():
        assert name == schedule.name, schedule
        _check_schedule(state, schedule)
    _check_tables(state)
    _check_indexes(state)


def _check_job(state: State, job: Job) -> None:
    assert job.uid <= job.mod_revision <= state.revision, job
    groups = state.groups_of(job)
    asked = [group.position for group in groups if group.spec is None]
    assert asked == list(range(len(job.spec.groups))), job
    assert [group.position for group in groups] == sorted({group.position for group in groups}), job
    assert len(groups) - len(asked) <= min(job.added, POOL_GROUPS_MAX), job
    assert not job.added or job.spec.open, job
    assert job.added_bytes == sum(len(_encode(group.spec)) for group in groups if group.spec), job
    assert job.dropped_failed + job.dropped_canceled <= job.dropped, job
    assert all(group.closed == job.closed for group in groups), job
    if not job.closed:
        assert not decide(job, groups), f"{job.id}: a group is held for nothing"
    assert job.retries <= (job.spec.retries_max or 0), job
    assert not job.done or (job.spec.framework and state.groups[job.uid, MASTER_GROUP].succeeded == 1), job
    assert not job.done or not (job.cancel_requested or job.failure), job
    if job.spec.framework and not job.closed:
        assert not state.groups[job.uid, MASTER_GROUP].ended, job
    stands = job_state(job, groups)
    if state.wall_ms:
        assert bool(job.started_at_ms) >= any(group.cursor for group in groups), job
        assert job.dropped or bool(job.started_at_ms) == any(group.cursor for group in groups), job
        assert bool(job.ended_at_ms) == (stands in JOB_TERMINAL), (stands, job)
    if job.closed or stands in JOB_TERMINAL:
        assert (job.paused, job.deadline_at_ms, job.queue_deadline_at_ms) == (False, 0, 0), job
    if stands in JOB_TERMINAL:
        assert job.uid not in state.of_job, job
    for _, result in results(state, job.uid, 0, job.result_rows):
        assert result.stop <= state.groups[job.uid, result.group].cursor, result
        assert result.start < result.stop, result


def _check_group(state: State, group: Group) -> None:
    """A task is in one place only, so it has at most one attempt that is out, and its end is recorded
    once."""
    key = (group.uid, group.name)
    assert 0 <= group.cursor <= group.count, group
    assert group.mod_revision <= state.revision, group
    if most := state.spec_of(group).placement.max_per_executor:
        assert max(state.held(*key).values(), default=0) <= most, group
    succeeded = failed = withdrawn = out = retried = 0
    for chunk in range((group.count - 1) // CHUNK_TASKS + 1):
        ended = state.ended.get((*key, chunk))
        if ended is not None:
            succeeded |= ended.succeeded << (chunk * CHUNK_TASKS)
            failed |= ended.failed << (chunk * CHUNK_TASKS)
            withdrawn |= ended.withdrawn << (chunk * CHUNK_TASKS)
    for placement in state.placements_of(group.uid):
        if placement.group == group.name:
            out = _joined(out, placement.left << placement.start)
    for index, retry in state.retries.get(key, {}).items():
        assert index == retry.index < retry.stop, retry
        assert retry.attempt > 1, retry
        assert retry.losses < LOST_MAX, retry
        retried = _joined(retried, ((1 << (retry.stop - index)) - 1) << index)
    whole = _joined(_joined(succeeded, failed), _joined(out, retried))
    assert whole >> group.cursor == 0, f"{key}: a task at or after the cursor has been placed"
    whole = _joined(whole, withdrawn)
    assert whole >> group.count == 0, group
    counts = (group.succeeded, group.failed, group.out, group.withdrawn)
    assert counts == tuple(bits.bit_count() for bits in (succeeded, failed, out, withdrawn)), group
    if group.held or group.was_skipped:
        assert group.cursor == 0, group
        assert not (group.held and group.was_skipped), group
    if group.closed or group.was_skipped:
        assert not retried, group
    else:
        placed = (1 << group.cursor) - 1
        assert whole & placed == placed, f"{key}: a task is lost"
        assert group.waiting == group.count - (whole & ~retried).bit_count(), group


def _check_placement(state: State, placement: Placement) -> None:
    job = state.job_of(placement.uid)
    assert job is not None, placement
    assert job.id == placement.job_id, placement
    policy = group_spec(job, state.groups[placement.uid, placement.group]).retry
    assert placement.left, placement
    assert not (placement.started | placement.withdrawn) & ~placement.left, placement
    assert placement.left.bit_length() <= placement.stop - placement.start <= PLACEMENT_TASKS_MAX, placement
    assert placement.failures < policy.attempts_max, placement
    assert placement.losses < LOST_MAX, placement
    assert placement.attempt > placement.failures + placement.losses, placement
    executor = state.executors[placement.executor]
    assert executor.alive, placement
    assert executor.incarnation == placement.incarnation, placement


def _check_executor(state: State, executor: Executor) -> None:
    assert executor.incarnation <= executor.mod_revision <= state.revision, executor
    assert state.out(executor.uid) <= room_max(executor), executor
    for resource, load in state.loads.get(executor.uid, {}).items():
        assert needed_at_once(load, executor.slots) <= capacity_of(executor, resource), (resource, load, executor)
    assert not executor.alive or state.names[executor.name] == executor.uid, executor


def _check_schedule(state: State, schedule: Schedule) -> None:
    assert schedule.uid <= schedule.mod_revision <= state.revision, schedule
    assert list(schedule.runs) == sorted(set(schedule.runs)), schedule
    assert len(live_runs(state, schedule)) <= SCHEDULE_LIVE_MAX, schedule


def _check_tables(state: State) -> None:
    assert len(state.jobs) <= JOBS_MAX
    assert len(state.executors) - len(state.dead) <= EXECUTORS_MAX
    assert len(state.dead) <= EXECUTORS_DEAD_MAX
    assert len(state.deleted) <= DELETED_MAX
    assert len(state.drains) <= DRAINS_MAX
    assert all(name == drain.name and drain.mod_revision <= state.revision for name, drain in state.drains.items())
    assert len(state.schedules) <= SCHEDULES_MAX
    assert len(state.projects) <= PROJECTS_MAX
    assert all(name == project.name for name, project in state.projects.items())
    assert len(state.groups) == sum(len(state.groups_of(job)) for job in state.jobs.values())
    assert len(state.results) <= sum(job.result_rows for job in state.jobs.values())
    assert all((uid, row.group) in state.groups for (uid, _), row in state.results.items())
    assert all((uid, name) in state.groups for uid, name, _ in state.ended)
    assert all(key in state.groups and rows for key, rows in state.retries.items())
    newest = [record.events[-1].revision for record in state.events.values()]
    assert newest == sorted(newest), newest
    assert all(len(record.events) <= EVENTS_MAX for record in state.events.values())
    assert all(uid == record.uid and uid in state.job_ids for uid, record in state.events.items())
    assert len(state.pruned) <= PRUNED_MAX
    assert state.persisted <= state.revision
    for table in (state.jobs, state.executors, state.deleted):
        _check_order(table.values())


def _check_order(records: Iterable[Job | Executor | Deleted]) -> None:
    revisions = [record.mod_revision for record in records]
    assert revisions == sorted(revisions), revisions


def _check_indexes(state: State) -> None:
    """They are what a replica that starts from a snapshot computes, and in that order where it matters."""
    fresh = State()
    fresh.now_ms = state.now_ms
    for table in ("jobs", "groups", "placements", "retries", "executors", "schedules", "results"):
        setattr(fresh, table, getattr(state, table))
    fresh.rebuild_indexes()
    for index in (
        "job_ids",
        "spec_bytes",
        "spec_sizes",
        "names",
        "of_job",
        "tasks_out",
        "loads",
        "constrained",
        "waiting",
        "closing",
        "fires",
        "usage",
        "queues",
        "rows_of",
    ):
        assert getattr(state, index) == getattr(fresh, index), index
    assert list(state.dead) == list(fresh.dead)
    for job_uid, names in state.group_names.items():
        assert list(names) == list(fresh.group_names[job_uid]), job_uid
    assert state.group_names.keys() == fresh.group_names.keys()
    assert list(state.finished) == list(fresh.finished)
    assert list(state.framework) == list(fresh.framework)
    for uid, ids in state.on_executor.items():
        assert list(ids) == list(fresh.on_executor[uid]), uid
    assert fresh.alarm_set <= state.alarm_set == set(state.alarms), "an alarm is missing"
    assert set(fresh.deadlines) <= set(state.deadlines), "a deadline is missing"
    assert state.deadlines[:1] == fresh.deadlines[:1], "a void deadline on top"
    assert state.due.keys() == fresh.due.keys()
    for key, heap in state.due.items():
        assert set(fresh.due[key]) <= set(heap), key
        assert heap[0] == fresh.due[key][0], f"{key}: a void entry on top"
        assert len(heap) <= 2 * len(state.retries[key]) + 66, key


def _joined(bits: int, more: int) -> int:
    assert not bits & more, f"tasks in two places: {bits & more:#b}"
    return bits | more
