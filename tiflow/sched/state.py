"""All that is replicated, and what can be computed from it.

`State` holds tables of frozen values. A handler works on a `Draft`, which reads through to the state and
keeps what it would write; `State.commit` writes it all, or, when the handler raised, nobody does. So there is
no half change.

Tables are dicts in order of insertion, and that order is part of the state: it is kept by snapshots, so
iteration is the same on every replica. Indexes are computed from the tables, are not in snapshots, and are
kept by `commit`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tiflow.sched.model import (
    CHUNK_TASKS,
    DELETED_MAX,
    EXECUTORS_DEAD_MAX,
    SUBMIT_WINDOW_MS,
    Deleted,
    Drain,
    Ended,
    Executor,
    Group,
    GroupSpec,
    Job,
    JobEvents,
    Millis,
    Placement,
    Project,
    Pruned,
    ResultRow,
    Retry,
    Schedule,
    encoded_bytes,
    group_spec,
)

if TYPE_CHECKING:
    from tiflow.sched.draft import Draft

GroupKey: TypeAlias = tuple[int, str]  #: job uid, group name
ChunkKey: TypeAlias = tuple[int, str, int]  #: job uid, group name, number of the chunk
RowKey: TypeAlias = tuple[int, int]  #: job uid, row

TRIM_MAX = 1_000  #: rows of a table that one PruneJobs drops besides jobs
ALARM_STEP_MS = 16  #: the leader looks for retries that are due so much later at most
_STALE_DUES_MAX = 64  #: entries of a due heap that may be void before it is rebuilt, beyond as many as are valid


class Usage(Struct):
    """What a project has."""

    jobs: int = 0  #: that have not ended
    waiting: int = 0  #: tasks
    out: int = 0  #: tasks


class State:
    """Only `commit` writes to it (and `Machine`, the three numbers of time); everyone else reads.

    Attributes:
        format: feature level of the cluster; a command with a higher `since` is refused.
        revision: commands applied.
        now_ms: log time, in ms. It never falls. All durations use it.
        wall_ms: wall clock of the newest entry's leader, for display and schedules.
        next_placement: id of the next placement.
        jobs: by id, in order of last write.
        executors: by uid, in order of last write.
        groups, placements, ended, results: by key.
        retries: by group, then by first index.
        deleted: by uid, in order of deletion.
        drains: by name of the executor.
        schedules: by name, in order of creation.
        projects: by name, in order of creation; those that were never set are not here.
        events: by job uid, in order of the newest event; what the metadata database is not known to have.
        pruned: by token, in order of pruning.
        persisted: revision that the metadata database is known to have reached.
        pruned_total: jobs that ever left for the database alone.
        restored_from: id of the lost cluster whose jobs these are; empty: of none.
        restored_at_ms: when that began, in log time: its executors may hold their leases a while longer.
    """

    def __init__(self) -> None:
        self.format = 1
        self.revision = 0
        self.now_ms: Millis = 0
        self.wall_ms: Millis = 0
        self.next_placement = 1
        self.jobs: dict[str, Job] = {}
        self.groups: dict[GroupKey, Group] = {}
        self.placements: dict[int, Placement] = {}
        self.ended: dict[ChunkKey, Ended] = {}
        self.retries: dict[GroupKey, dict[int, Retry]] = {}
        self.results: dict[RowKey, ResultRow] = {}
        self.executors: dict[str, Executor] = {}
        self.deleted: dict[int, Deleted] = {}
        self.drains: dict[str, Drain] = {}
        self.schedules: dict[str, Schedule] = {}
        self.projects: dict[str, Project] = {}
        self.events: dict[int, JobEvents] = {}
        self.pruned: dict[str, Pruned] = {}
        self.persisted = 0
        self.pruned_total = 0
        self.restored_from = ""
        self.restored_at_ms: Millis = 0
        self._clear_indexes()

    # What follows from the tables.

    def job_of(self, uid: int) -> Job | None:
        """The job with that uid."""
        job_id = self.job_ids.get(uid)
        return None if job_id is None else self.jobs[job_id]

    def groups_of(self, job: Job) -> tuple[Group, ...]:
        """The groups of a living job, in the order of its spec, and then those that were added."""
        return tuple(self.groups[job.uid, name] for name in self.group_names.get(job.uid, ()))

    def placements_on(self, executor: str) -> Iterator[Placement]:
        """What is out on the executor with that uid, oldest first."""
        return (self.placements[id] for id in self.on_executor.get(executor, ()))

    def placements_of(self, uid: int) -> Iterator[Placement]:
        """What is out of the job with that uid, oldest first."""
        return (self.placements[id] for id in self.of_job.get(uid, ()))

    def held(self, uid: int, group: str) -> dict[str, int]:
        """How many tasks of a group are out on each executor, by its uid. O(placements of the job)."""
        found: dict[str, int] = {}
        for placement in self.placements_of(uid):
            if placement.group == group:
                found[placement.executor] = found.get(placement.executor, 0) + placement.left.bit_count()
        return found

    def spec_of(self, group: Group) -> GroupSpec:
        """What was asked of a group of a living job."""
        return group_spec(self.jobs[self.job_ids[group.uid]], group)

    def project(self, name: str) -> Project:
        """With defaults if it was never set, or is deleted."""
        return self.projects.get(name) or Project(name)

    def usage_of(self, project: str) -> Usage:
        """For reading."""
        return self.usage.get(project) or Usage()

    def out(self, executor: str) -> int:
        """How many tasks are out on the executor with that uid."""
        return self.tasks_out.get(executor, 0)

    def job_revision(self, job: Job) -> int:
        """The revision at which anything that can be seen of the job changed last."""
        return max(job.mod_revision, *(group.mod_revision for group in self.groups_of(job)), 0)

    def changed_since(self, revision: int, limit: int) -> list[Job | Deleted]:
        """Jobs written and jobs deleted after `revision`, each once, in order of `mod_revision`.

        Args:
            revision: what the caller has seen, that is, the `mod_revision` of the last record it was given.
            limit: about how many; records of one revision are never parted, so there may be a few more.
        """
        changed: list[Job | Deleted] = [*_newer(self.jobs, revision, limit), *_newer(self.deleted, revision, limit)]
        changed.sort(key=_mod_revision)
        stop = min(limit, len(changed))
        while 0 < stop < len(changed) and changed[stop].mod_revision == changed[stop - 1].mod_revision:
            stop += 1
        return changed[:stop]

    # Writing.

    def commit(self, draft: "Draft") -> None:
        """Write what a handler drafted, stamped with the revision of its command."""
        revision = self.revision = max(self.revision, draft.revision)
        self.format = draft.format
        self.next_placement = draft.next_placement
        for job in draft.jobs.values():
            self._write_job(replace(job, mod_revision=revision))
        for key in draft.closed:
            self.retries.pop(key, None)
            self.due.pop(key, None)
        for (uid, name, index), retry in draft.retries.items():
            self._write_retry((uid, name), index, retry)
        for id, placement in draft.placements.items():
            self._write_placement(id, placement)
        for key, group in draft.groups.items():
            self._write_group(key, replace(group, mod_revision=revision))
        self.closing.update((uid, None) for uid, _ in draft.closed if uid in self.of_job)
        self.ended.update(draft.ended)
        for row, result in draft.results.items():
            if row not in self.results:
                self.rows_of.setdefault((row[0], result.group), []).append(row[1])
            self.results[row] = result
        for key in draft.dropped:
            self._drop_group(key)
        for executor in draft.executors.values():
            self._write_executor(replace(executor, mod_revision=revision))
        for name, drain in draft.drains.items():
            if drain is None:
                self.drains.pop(name, None)
            else:
                self.drains[name] = replace(drain, mod_revision=revision)
        for name, project in draft.projects.items():
            if project is None:
                self.projects.pop(name, None)
            else:
                self.projects[name] = project
        for name, schedule in draft.schedules.items():
            self._write_schedule(name, replace(schedule, mod_revision=revision) if schedule else None)
        for uid, events in draft.events.items():
            self.events.pop(uid, None)  # so that it moves to the end
            self.events[uid] = events
        for job in draft.forgotten:
            self._forget(job)
            self._note_deletion(job)
        if draft.persisted or draft.restored_from:
            self._write_persisted(draft)
        self._drop_old_times()

    def _write_job(self, job: Job) -> None:
        old = self.jobs.pop(job.id, None)  # so that it moves to the end
        self.jobs[job.id] = job
        self.job_ids[job.uid] = job.id
        self._change_usage(job.spec.project, jobs=_lives(job) - _lives(old))
        if old is None:
            self._add_spec(job)
        else:
            self.spec_bytes += job.added_bytes - old.added_bytes
        self.finished.pop(job.uid, None)
        if job.ended_at_ms:
            self.finished[job.uid] = None
            self.framework.pop(job.uid, None)
        elif old is None and job.spec.framework:
            self.framework[job.uid] = None
        if old is None:
            for at_ms in _deadlines(job):
                heappush(self.deadlines, (at_ms, job.uid))

    def _add_spec(self, job: Job) -> None:
        size = self.spec_sizes[job.uid] = encoded_bytes(job.spec)
        self.spec_bytes += size + job.added_bytes

    def _write_group(self, key: GroupKey, group: Group) -> None:
        old = self.groups.get(key)
        self.groups[key] = group
        if old is None:
            self._index_group(key, group)
        self._use(group, old)
        self._queue(group)

    def _index_group(self, key: GroupKey, group: Group) -> None:
        self.group_names.setdefault(group.uid, {})[group.name] = None
        if _constrained(self.spec_of(group)):
            self.constrained[key] = None

    def _write_executor(self, executor: Executor) -> None:
        old = self.executors.pop(executor.uid, None)
        self.executors[executor.uid] = executor
        if old is not None and self.names.get(old.name) == old.uid:
            del self.names[old.name]
        self.dead.pop(executor.uid, None)
        if executor.alive:
            self.names[executor.name] = executor.uid
            return
        self.dead[executor.uid] = None
        if len(self.dead) > EXECUTORS_DEAD_MAX:
            oldest = next(iter(self.dead))
            del self.dead[oldest], self.executors[oldest]

    def _write_schedule(self, name: str, schedule: Schedule | None) -> None:
        old = self.schedules.get(name)
        self.spec_bytes += _spec_bytes(schedule) - _spec_bytes(old)
        if old is not None and (time := _fire_time(old)) is not None:
            del self.fires[bisect_left(self.fires, time)]
        if schedule is None:
            del self.schedules[name]
            return
        self.schedules[name] = schedule
        if (time := _fire_time(schedule)) is not None:
            insort(self.fires, time)

    def _write_placement(self, id: int, placement: Placement | None) -> None:
        old = self.placements.get(id)
        row = placement or old
        if row is None:  # it came and went within one command
            return
        change = (placement.left.bit_count() if placement else 0) - (old.left.bit_count() if old else 0)
        if change:
            self._count(row, change)
        if placement is None:
            del self.placements[id]
            _remove(self.on_executor, row.executor, id)
            _remove(self.of_job, row.uid, id)
            if row.uid not in self.of_job:
                self.closing.pop(row.uid, None)
            return
        self.placements[id] = placement
        if old is None:
            self.on_executor.setdefault(row.executor, {})[id] = None
            self.of_job.setdefault(row.uid, {})[id] = None

    def _count(self, placement: Placement, change: int) -> None:
        """So many tasks more are out, or fewer."""
        executor = placement.executor
        out = self.tasks_out.get(executor, 0) + change
        if out:
            self.tasks_out[executor] = out
        else:
            del self.tasks_out[executor]
        if (placement.uid, placement.group) not in self.constrained:
            return
        resources = self.spec_of(self.groups[placement.uid, placement.group]).resources
        loads = self.loads.setdefault(executor, {})
        for name, amount in resources.items():
            load = loads.setdefault(name, {})
            load[amount] = load.get(amount, 0) + change
            if not load[amount]:
                del load[amount]
            if not load:
                del loads[name]
        if not loads:
            del self.loads[executor]

    def _write_retry(self, key: GroupKey, index: int, retry: Retry | None) -> None:
        if retry is not None:
            self.retries.setdefault(key, {})[index] = retry
            heappush(self.due.setdefault(key, []), (retry.due_at_ms, index))
            self._set_alarm(retry.due_at_ms)
            return
        rows = self.retries.get(key)
        if rows is None or rows.pop(index, None) is None:
            return
        if not rows:
            del self.retries[key], self.due[key]
            return
        heap = self.due[key]
        while not _valid(rows, heap[0]):
            heappop(heap)
        if len(heap) > 2 * len(rows) + _STALE_DUES_MAX:
            self.due[key] = _heap(rows)

    def _set_alarm(self, at_ms: Millis) -> None:
        at_ms = -(-at_ms // ALARM_STEP_MS) * ALARM_STEP_MS
        if at_ms > self.now_ms and at_ms not in self.alarm_set:
            self.alarm_set.add(at_ms)
            heappush(self.alarms, at_ms)

    def _drop_old_times(self) -> None:
        """Each is put in once and taken out once, so this costs what putting in does."""
        while self.alarms and self.alarms[0] <= self.now_ms:
            self.alarm_set.discard(heappop(self.alarms))
        while self.deadlines and not self.is_deadline(*self.deadlines[0]):
            heappop(self.deadlines)
        if len(self.deadlines) > 4 * len(self.jobs) + _STALE_DUES_MAX:
            self.deadlines[:] = [entry for entry in self.deadlines if self.is_deadline(*entry)]
            heapify(self.deadlines)

    def is_deadline(self, at_ms: Millis, uid: int) -> bool:
        """Whether that job still has that deadline; one that has ended, or is about to, has none."""
        job = self.job_of(uid)
        return job is not None and at_ms in _deadlines(job)

    def _use(self, group: Group, old: Group | None) -> None:
        waiting = group.waiting - (old.waiting if old else 0)
        out = group.out - (old.out if old else 0)
        if waiting or out:
            self._change_usage(self.jobs[self.job_ids[group.uid]].spec.project, waiting=waiting, out=out)

    def _change_usage(self, project: str, *, jobs: int = 0, waiting: int = 0, out: int = 0) -> None:
        if not (jobs or waiting or out):
            return
        usage = self.usage.setdefault(project, Usage())
        usage.jobs += jobs
        usage.waiting += waiting
        usage.out += out
        if not (usage.jobs or usage.waiting or usage.out):
            del self.usage[project]

    def _queue(self, group: Group) -> None:
        """Keep `queues` and `waiting` as the group's new version wants them."""
        names = self.waiting.get(group.uid)
        waits = group.waiting > 0 and not group.held and not self.jobs[self.job_ids[group.uid]].paused
        if waits == (names is not None and group.name in names):
            return
        spec = self.jobs[self.job_ids[group.uid]].spec
        projects = self.queues.setdefault(spec.priority, {})
        queue = projects.setdefault(spec.project, [])
        if names is None:
            names = self.waiting[group.uid] = {}
            insort(queue, group.uid)
        if waits:
            names[group.name] = None
            return
        del names[group.name]
        if not names:
            del self.waiting[group.uid], queue[bisect_left(queue, group.uid)]
            if not queue:
                del projects[spec.project]
                if not projects:
                    del self.queues[spec.priority]

    def _drop_group(self, key: GroupKey) -> None:
        """A group that has ended, and all that is known of it."""
        group = self.groups.pop(key)
        self.constrained.pop(key, None)
        names = self.group_names[group.uid]
        del names[group.name]
        if not names:
            del self.group_names[group.uid]
        for chunk in range((group.count - 1) // CHUNK_TASKS + 1):
            self.ended.pop((*key, chunk), None)
        for row in self.rows_of.pop(key, ()):
            del self.results[group.uid, row]

    def _forget(self, job: Job) -> None:
        for group in self.groups_of(job):
            self._drop_group((job.uid, group.name))
        self.spec_bytes -= self.spec_sizes.pop(job.uid) + self.jobs[job.id].added_bytes
        del self.jobs[job.id], self.job_ids[job.uid]
        self.finished.pop(job.uid, None)
        self.events.pop(job.uid, None)

    def _note_deletion(self, job: Job) -> None:
        self.deleted[job.uid] = Deleted(job.id, job.uid, self.revision)
        if len(self.deleted) > DELETED_MAX:
            del self.deleted[next(iter(self.deleted))]

    def _write_persisted(self, draft: "Draft") -> None:
        if draft.restored_from:
            self.restored_from, self.restored_at_ms = draft.restored_from, self.now_ms
        self.persisted = max(self.persisted, draft.persisted)
        for job, note in draft.pruned:
            self._forget(job)
            self.pruned_total += 1
            if note is not None:
                self.pruned[note.token] = note
        for _ in range(TRIM_MAX):
            oldest = next(iter(self.events.values()), None)
            if oldest is None or oldest.events[-1].revision > self.persisted:
                break
            del self.events[oldest.uid]
        for _ in range(TRIM_MAX):
            gone = next(iter(self.deleted.values()), None)
            if gone is None or gone.mod_revision > self.persisted:
                break
            del self.deleted[gone.uid]
        for _ in range(TRIM_MAX):
            note = next(iter(self.pruned.values()), None)
            if note is None or self.now_ms - note.pruned_at_ms <= SUBMIT_WINDOW_MS:
                break
            del self.pruned[note.token]

    # Indexes.

    def _clear_indexes(self) -> None:
        self.job_ids: dict[int, str] = {}  #: by uid, in order of submission
        self.spec_bytes = 0  #: of the specs of all jobs, of groups that were added to them, and of schedules
        self.spec_sizes: dict[int, int] = {}  #: bytes, by job uid, without the groups that were added
        self.constrained: dict[GroupKey, None] = {}  #: groups of whose tasks not all fit wherever a slot is
        self.group_names: dict[int, dict[str, None]] = {}  #: by job uid, in the order in which they came; none empty
        self.rows_of: dict[GroupKey, list[int]] = {}  #: numbers of the result rows of a group, ascending; none empty
        self.finished: dict[int, None] = {}  #: uids of the jobs that have ended, longest ago first
        #: uids of the framework jobs that have not ended, in order of submission
        self.framework: dict[int, None] = {}
        self.names: dict[str, str] = {}  #: uid of the living executor with that name
        self.dead: dict[str, None] = {}  #: executors that are not alive, longest dead first
        self.on_executor: dict[str, dict[int, None]] = {}  #: placement ids by executor uid
        self.of_job: dict[int, dict[int, None]] = {}  #: placement ids by job uid
        self.tasks_out: dict[str, int] = {}  #: by executor uid; no zeros
        #: by executor uid and resource: need of a task -> tasks that are out; no zeros
        self.loads: dict[str, dict[str, dict[int, int]]] = {}
        self.closing: dict[int, None] = {}  #: uids of the jobs that are closed and have tasks out
        #: by priority, by project: sorted uids of the jobs with tasks that can be placed; none is empty
        self.queues: dict[int, dict[str, list[int]]] = {}
        self.usage: dict[str, Usage] = {}  #: by project; no zeros
        self.waiting: dict[int, dict[str, None]] = {}  #: by uid, of the same jobs: names of the groups with such
        self.alarms: list[Millis] = []  #: heap of the times after `now_ms` at which retries fall due, rounded up
        self.alarm_set: set[Millis] = set()  #: the same; only asked, never iterated
        self.deadlines: list[tuple[Millis, int]] = []  #: heap of (at_ms, job uid); some are void, the first is not
        self.fires: list[tuple[Millis, str]] = []  #: sorted (next_at_ms, name) of the schedules that wait for a time
        self.due: dict[GroupKey, list[tuple[Millis, int]]] = {}  #: heaps of (due_at_ms, index); some are void

    def rebuild_indexes(self) -> None:
        """Compute all indexes anew from the tables, after these were replaced."""
        self._clear_indexes()
        self.job_ids = dict(sorted((job.uid, job.id) for job in self.jobs.values()))
        for key, group in self.groups.items():
            self._index_group(key, group)
        for (uid, row), result in self.results.items():
            self.rows_of.setdefault((uid, result.group), []).append(row)
        self.finished = {job.uid: None for job in self.jobs.values() if job.ended_at_ms}
        in_order = (self.jobs[job_id] for job_id in self.job_ids.values())
        self.framework = {job.uid: None for job in in_order if job.spec.framework and not job.ended_at_ms}
        for executor in self.executors.values():
            if executor.alive:
                self.names[executor.name] = executor.uid
            else:
                self.dead[executor.uid] = None
        for id, placement in self.placements.items():
            self.on_executor.setdefault(placement.executor, {})[id] = None
            self.of_job.setdefault(placement.uid, {})[id] = None
            self._count(placement, placement.left.bit_count())
        self.due = {key: _heap(rows) for key, rows in self.retries.items()}
        for heap in self.due.values():
            for due_at_ms, _ in heap:
                self._set_alarm(due_at_ms)
        self.deadlines = [(at_ms, job.uid) for job in self.jobs.values() for at_ms in _deadlines(job)]
        heapify(self.deadlines)
        self.fires = sorted(time for one in self.schedules.values() if (time := _fire_time(one)) is not None)
        self.closing = {job.uid: None for job in self.jobs.values() if job.closed and job.uid in self.of_job}
        for job in self.jobs.values():
            self._change_usage(job.spec.project, jobs=_lives(job))
            self._add_spec(job)
        self.spec_bytes += sum(map(_spec_bytes, self.schedules.values()))
        for group in self.groups.values():
            self._use(group, None)
            self._queue(group)


_Key = TypeVar("_Key", int, str)
_Changed = TypeVar("_Changed", Job, Deleted)


def _newer(table: "dict[Any, _Changed]", revision: int, limit: int) -> "list[_Changed]":
    """The `limit` oldest after `revision`, and those of the same revision as the last of them. A plain loop: after an
    outage there may be a hundred thousand, again for each batch of them."""
    newer = []  # the newest first
    for record in reversed(table.values()):
        if record.mod_revision <= revision:
            break
        newer.append(record)
    start = max(0, len(newer) - limit)
    while 0 < start < len(newer) and newer[start - 1].mod_revision == newer[start].mod_revision:
        start -= 1
    return newer[start:]


def _mod_revision(record: Job | Deleted) -> int:
    return record.mod_revision


def _remove(index: dict[_Key, dict[int, None]], key: _Key, id: int) -> None:
    ids = index[key]
    del ids[id]
    if not ids:
        del index[key]


def _lives(job: Job | None) -> bool:
    return job is not None and not job.ended_at_ms


def _spec_bytes(schedule: Schedule | None) -> int:
    return encoded_bytes(schedule.spec) if schedule else 0


def _fire_time(schedule: Schedule) -> tuple[Millis, str] | None:
    return (schedule.next_at_ms, schedule.name) if schedule.next_at_ms and not schedule.paused else None


def _deadlines(job: Job) -> list[Millis]:
    return [at_ms for at_ms in (job.deadline_at_ms, job.queue_deadline_at_ms) if at_ms]


def _constrained(spec: GroupSpec) -> bool:
    return bool(spec.resources or spec.placement.max_per_executor)


def _valid(rows: dict[int, Retry], entry: tuple[Millis, int]) -> bool:
    row = rows.get(entry[1])
    return row is not None and row.due_at_ms == entry[0]


def _heap(rows: dict[int, Retry]) -> list[tuple[Millis, int]]:
    heap = [(row.due_at_ms, row.index) for row in rows.values()]
    heapify(heap)
    return heap
