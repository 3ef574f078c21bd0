"""The state machine once more, task by task and without any index: slow, short, and the judge of the fast one.

`Dumb` is told each command and what the machine answered. It decides by itself what must have become of each task,
and holds every move to the tables in `model`.
"""

from msgspec import msgpack

from tests.unit.sched.dumb_jobs import PLACED, RUNNING, WAITING, DumbJob, DumbSchedule, Row, Task, selects
from tiflow.errors import AlreadyExists, FailedPrecondition, NotFound, Rejected, ResourceExhausted
from tiflow.sched.commands import (
    AddGroup,
    AnyCommand,
    AskOnce,
    CancelJob,
    CancelTasks,
    CloseGroups,
    DeleteJob,
    DeleteProject,
    DeleteSchedule,
    DrainExecutor,
    ExpireExecutor,
    ExpireJob,
    FireSchedule,
    PauseJob,
    PauseSchedule,
    PlaceTasks,
    PutSchedule,
    RegisterExecutor,
    RerunLost,
    ResumeJob,
    SetProject,
    StartWorkers,
    StopWorkers,
    SubmitJob,
    TaskEvent,
    TaskEvents,
    TriggerSchedule,
    UndrainExecutor,
)
from tiflow.sched.machine import Reply
from tiflow.sched.model import (
    BACKLOG_PER_SLOT_MAX,
    LOST_MAX,
    LOST_RESET_MS,
    Executor,
    GroupSpec,
    Job,
    JobSpec,
    Placement,
    RetryPolicy,
    TaskState,
)
from tiflow.sched.state import State
from tiflow.sched.views import Tasks, job_state, results, task_state
from tiflow.sched.views import tasks as show_tasks


class Dumb:
    def __init__(self) -> None:
        self.schedules: dict[str, DumbSchedule] = {}
        self.projects: dict[str, SetProject] = {"default": SetProject("default")}
        self.fired: set[tuple[int, int]] = set()  #: (uid of the schedule, time) of each run
        self.jobs: dict[int, DumbJob] = {}
        self.placements: dict[int, Placement] = {}  #: all that ever were
        self.executors: dict[str, Executor] = {}  #: that are alive
        self.drained: dict[str, int] = {}  #: names of executors: when they are drained by; 0: never
        self.wall_ms = 0

    def hear(self, now_ms: int, wall_ms: int, command: AnyCommand, reply: Reply) -> None:
        """One command, and what it was answered."""
        self.wall_ms = wall_ms
        if isinstance(command, FireSchedule):
            self._fire(command, now_ms, wall_ms, reply)
        else:
            self._hear(now_ms, command, reply)
        for job in self.jobs.values():
            job.follow_master()
            failed = sum(task.state is TaskState.FAILED for task in job.all()) + job.dropped_failed
            if job.job.spec.max_failures and failed >= job.job.spec.max_failures and not job.closed:
                job.failed = True
                job.cancel_the_rest()
            if not job.closed:
                job.decide()
            job.paused = job.paused and job.alive and not job.closed
            job.ended_once = job.ended_once or not job.alive

    def _hear(self, now_ms: int, command: AnyCommand, reply: Reply) -> None:
        match command:
            case AskOnce():
                self._ask_once(now_ms, command, reply)
            case StartWorkers():
                self._start_workers(command, reply)
            case StopWorkers():
                self._stop_workers(command, reply)
            case SubmitJob() if isinstance(reply.error, ResourceExhausted):
                assert not self.lets_in(command.spec), "refused, though no quota is reached"
            case AddGroup() if isinstance(reply.error, ResourceExhausted):
                assert not self.has_room(self.jobs[command.uid].job.spec.project, command.group.count)
            case _ if reply.error is not None:
                assert isinstance(reply.error, Rejected)
            case SubmitJob():
                assert reply.value.token == command.token
                self._start(reply.value, now_ms)
            case CancelJob():
                self._cancel(self._by_id(command.job_id))
            case PauseJob():
                job = self._by_id(command.job_id)
                job.paused = job.alive and not job.closed
            case ResumeJob():
                self._by_id(command.job_id).paused = False
            case ExpireJob():
                self._expire(command, now_ms, reply)
            case DeleteJob():
                for uid, job in list(self.jobs.items()):
                    if job.job.id == command.job_id and command.uid in (0, uid):
                        assert not job.alive
                        del self.jobs[uid]
            case RegisterExecutor():
                executor = reply.value
                old = self.executors.get(command.uid)
                if old is not None and old.incarnation != executor.incarnation:
                    assert old.boot_id != command.boot_id
                    self._lose(old, now_ms)
                assert all(e.name != command.name or e.uid == command.uid for e in self.executors.values())
                self.executors[command.uid] = executor
            case ExpireExecutor():
                executor = self.executors.get(command.uid)
                if executor is not None and executor.incarnation == command.incarnation:
                    del self.executors[command.uid]
                    self._lose(executor, now_ms)
            case PlaceTasks():
                for placement in reply.value:
                    self._place(placement, now_ms)
            case TaskEvents():
                void = sum(not self._event(command, event, now_ms) for event in command.events)
                assert reply.value == void
            case RerunLost():
                self._rerun(command, now_ms)
            case DrainExecutor():
                ends_ms = [] if command.deadline_ms is None else [max(1, now_ms + command.deadline_ms)]
                ends_ms += [self.drained[command.name]] if self.drained.get(command.name) else []
                self.drained[command.name] = min(ends_ms, default=0)
            case UndrainExecutor():
                self.drained.pop(command.name, None)
            case SetProject():
                self.projects[command.name] = command
            case DeleteProject():
                assert command.name == "default" or not self.use(command.name)[0]
                self.projects.pop(command.name)
                self.projects.setdefault("default", SetProject("default"))
            case PutSchedule():
                uid = reply.value.uid
                known = self.schedules.setdefault(
                    command.name, DumbSchedule(uid, command, command.next_at_ms, command.paused)
                )
                assert (known.uid, known.said.token) == (uid, command.token)
            case PauseSchedule():
                schedule = self.schedules[command.name]
                if schedule.paused != command.paused:
                    schedule.paused, schedule.next_ms = command.paused, command.next_at_ms
            case DeleteSchedule():
                del self.schedules[command.name]
            case TriggerSchedule():
                if self._start(reply.value, now_ms):
                    self._add_run(self.schedules[command.name], reply.value)
            case AddGroup():
                self._add(command, reply)
            case CloseGroups():
                self._seal(command, reply)
            case CancelTasks():
                self._withdraw(command, reply)

    def _start(self, job: Job, now_ms: int) -> bool:
        """Returns: whether it is a new one."""
        if job.uid in self.jobs:
            return False
        spec = job.spec
        assert self.lets_in(spec)
        assert all(other.job.id != spec.id for other in self.jobs.values())
        tasks = {group.name: [Task() for _ in range(group.count)] for group in spec.groups}
        policies = {group.name: group.retry for group in spec.groups}
        held = {group.name: group.after for group in spec.groups if group.after}
        self.jobs[job.uid] = DumbJob(job, tasks, policies, {group.name: group for group in spec.groups}, held, now_ms)
        return True

    def use(self, project: str) -> tuple[int, int, int]:
        """Jobs that have not ended, tasks that wait, tasks that are out."""
        jobs = [job for job in self.jobs.values() if job.job.spec.project == project]
        states = [task.state for job in jobs for task in job.all()]
        return sum(job.alive for job in jobs), states.count(WAITING), states.count(PLACED) + states.count(RUNNING)

    def lets_in(self, spec: JobSpec) -> bool:
        """Whether the quotas of its project do."""
        project, (jobs, _, _) = self.projects[spec.project], self.use(spec.project)
        tasks = sum(group.count for group in spec.groups)
        return not (0 < project.jobs_max <= jobs) and self.has_room(spec.project, tasks)

    def has_room(self, name: str, tasks: int) -> bool:
        """Whether so many tasks more may wait."""
        return not 0 < self.projects.get(name, SetProject(name)).tasks_max < self.use(name)[1] + tasks

    def has_slots(self, project: str) -> bool:
        known = self.projects.get(project, SetProject(project))
        return not 0 < known.slots_max <= self.use(project)[2]

    def _cancel(self, job: DumbJob) -> None:
        if job.alive and not job.closed:
            job.canceled = True
            job.cancel_the_rest()

    def _fire(self, command: FireSchedule, now_ms: int, wall_ms: int, reply: Reply) -> None:
        assert reply.error is None
        schedule = self.schedules.get(command.name)
        if (
            schedule is None
            or (schedule.uid, schedule.next_ms) != (command.uid, command.due_at_ms)
            or schedule.paused
            or not schedule.next_ms
            or not command.due_at_ms <= command.at_ms <= wall_ms
            or 0 < command.next_at_ms <= command.at_ms
        ):
            assert reply.value is None
            return
        schedule.next_ms = command.next_at_ms
        live = [self.jobs[uid] for uid in schedule.runs if uid in self.jobs and self.jobs[uid].alive]
        taken = any(job.job.id == command.job_id for job in self.jobs.values())
        overlap = schedule.said.overlap
        full = schedule.said.spec.project not in self.projects or not self.lets_in(schedule.said.spec)
        if not command.job_id or taken or full or (live and overlap == "skip"):
            assert reply.value is None
            return
        assert (schedule.uid, command.at_ms) not in self.fired, "a time is dealt with once"
        self.fired.add((schedule.uid, command.at_ms))
        assert reply.value.id == command.job_id
        assert self._start(reply.value, now_ms)
        self._add_run(schedule, reply.value)
        for job in live if overlap == "replace" else ():
            self._cancel(job)

    def _add_run(self, schedule: DumbSchedule, job: Job) -> None:
        ended = [uid for uid in schedule.runs if uid in self.jobs and not self.jobs[uid].alive]
        for uid in ended[: max(0, len(ended) - schedule.said.keep)]:
            del self.jobs[uid]
        schedule.runs.append(job.uid)

    def _add(self, command: AddGroup, reply: Reply) -> None:
        job, group = self.jobs[command.uid], command.group
        assert reply.value.uid == command.uid
        assert not job.framework
        if command.number == job.numbers + 1:
            job.numbers += 1
            for name in command.drop:
                job.drop(name)
            assert not group.after
            self._insert(job, group)

    def _insert(self, job: DumbJob, group: GroupSpec) -> None:
        assert job.open
        assert not job.closed
        job.tasks[group.name] = [Task() for _ in range(group.count)]
        job.policies[group.name] = group.retry
        job.specs[group.name] = group
        job.added.append(group.name)

    def in_charge(self, uid: int, attempt: int) -> bool:
        """Whether that attempt of the job's master is out."""
        job = self.jobs.get(uid)
        if job is None or not job.framework:
            return False
        (master,) = job.tasks["master"]
        return bool(master.placement) and master.attempt == attempt

    def _ask_once(self, now_ms: int, command: AskOnce, reply: Reply) -> None:
        asked = command.command
        if not self.in_charge(asked.uid, asked.attempt):
            assert isinstance(reply.error, FailedPrecondition | NotFound)
            return
        job = self.jobs[asked.uid]
        settled = job.settled.get(asked.attempt, 0)
        if command.number < settled:
            assert reply.error is None
            assert reply.value is None
            return
        before = set(job.tasks)
        self._hear(now_ms, asked, reply)
        if set(job.tasks) != before:
            job.settled[asked.attempt] = max(settled, command.settled)

    def _start_workers(self, command: StartWorkers, reply: Reply) -> None:
        if not self.in_charge(command.uid, command.attempt) or self.jobs[command.uid].closed:
            assert isinstance(reply.error, FailedPrecondition | NotFound)
            return
        job, group = self.jobs[command.uid], command.group
        if group.name in job.tasks:
            known = job.specs[group.name]
            same = (known.work, known.count, known.items) == (group.work, group.count, group.items)
            assert isinstance(reply.error, AlreadyExists) is not same
        elif not self.has_room(job.job.spec.project, group.count):
            assert isinstance(reply.error, ResourceExhausted)
        else:
            assert reply.error is None
            self._insert(job, group)

    def _stop_workers(self, command: StopWorkers, reply: Reply) -> None:
        if not self.in_charge(command.uid, command.attempt):
            assert isinstance(reply.error, FailedPrecondition | NotFound)
            return
        job = self.jobs[command.uid]
        for task in job.tasks.get(command.group, [])[command.start : command.stop]:
            if task.state is WAITING:
                task.move(TaskState.CANCELED)
            task.withdrawn = task.withdrawn or (bool(task.placement) and not job.closed)
        if command.forget:
            job.drop(command.group)
        assert reply.error is None
        assert reply.value is (command.group not in job.tasks)

    def _seal(self, command: CloseGroups, reply: Reply) -> None:
        job = self.jobs.get(command.uid)
        fails = job is not None and job.alive and not job.closed and bool(command.failure)
        assert reply.value is fails
        if job is not None and fails:
            job.failed = True
            job.cancel_the_rest()
        elif job is not None and job.open and not job.closed:
            assert not job.framework
            job.sealed = True

    def _withdraw(self, command: CancelTasks, reply: Reply) -> None:
        job = self.jobs.get(command.uid)
        assert job is None or not job.framework
        tasks = job.tasks.get(command.group, []) if job is not None and not job.closed else []
        named = dict(list(enumerate(tasks))[command.start : command.stop])
        withdrawn = [i for i, task in named.items() if task.state is WAITING]
        assert [i for start, stop in reply.value for i in range(start, stop)] == withdrawn
        for task in named.values():
            if task.state is WAITING:
                task.move(TaskState.CANCELED)
            elif command.force and task.placement:
                task.withdrawn = True

    def _by_id(self, id: str) -> DumbJob:
        return next(job for job in self.jobs.values() if job.job.id == id)

    def _expire(self, command: ExpireJob, now_ms: int, reply: Reply) -> None:
        job = self.jobs.get(command.uid)
        if job is None or job.closed or not job.alive or job.ended_once:
            assert not reply.value
            return
        spec, waited_ms = job.job.spec, now_ms - job.submitted_ms
        late = bool(spec.job_timeout_ms) and waited_ms >= spec.job_timeout_ms
        late = late or (bool(spec.queue_timeout_ms) and job.fresh and waited_ms >= spec.queue_timeout_ms)
        assert bool(reply.value) is late
        if late:
            job.failed = True
            job.cancel_the_rest()

    def _place(self, placement: Placement, now_ms: int) -> None:
        executor = self.executors[placement.executor]
        assert executor.incarnation == placement.incarnation
        assert executor.name not in self.drained
        assert placement.id not in self.placements, "ids are not used again"
        self.placements[placement.id] = placement
        job = self.jobs[placement.uid]
        assert not job.paused
        assert not job.closed
        assert placement.group not in job.held
        tasks = job.tasks[placement.group]
        for i in range(placement.start, placement.stop):
            task = tasks[i]
            left = placement.left >> (i - placement.start) & 1
            assert bool(left) is (task.state is not TaskState.CANCELED)
            if not left:
                continue
            assert (task.attempt, task.failures, task.losses) == (
                placement.attempt,
                placement.failures,
                placement.losses,
            )
            assert now_ms >= task.due_ms[0], "not due yet"
            task.move(PLACED)
            task.placed = True
            task.placed_ms = self.wall_ms
            task.placement = placement.id
            known = self.projects.get(job.job.spec.project, SetProject(job.job.spec.project))
            assert not 0 < known.slots_max < self.use(known.name)[2], "beyond the quota"
        assert not self.overloads(executor, placement.uid, placement.group, 0)

    def overloads(self, executor: Executor, uid: int, group: str, more: int) -> str:
        """What an executor would have too much of with so many tasks more of a group; empty: nothing."""
        spec = self._spec(uid, group)
        out = self._tasks_on(executor) + [(uid, group)] * more
        if len(out) > executor.slots * (1 + BACKLOG_PER_SLOT_MAX):
            return "tasks"
        most = spec.placement.max_per_executor
        if most and out.count((uid, group)) > most:
            return "tasks of the group"
        for name in spec.resources:
            needs = sorted((self._spec(*key).resources.get(name, 0) for key in out), reverse=True)
            limit = executor.capacity.get(name, 10**30 if name in ("cpu", "memory") else 0)
            if sum(needs[: executor.slots]) > limit:  # the worst that can run at once
                return name
        return ""

    def _spec(self, uid: int, group: str) -> GroupSpec:
        return self.jobs[uid].specs[group]

    def _tasks_on(self, executor: Executor) -> list[tuple[int, str]]:
        return [
            (uid, name)
            for uid, job in self.jobs.items()
            for name, tasks in job.tasks.items()
            for task in tasks
            if task.placement and self.placements[task.placement].incarnation == executor.incarnation
        ]

    def fits(self, executor: Executor, uid: int, group: str, target: int) -> bool:
        """Whether one task more of the group may go there, if so many may be out on it."""
        labels, out = executor.labels, self._tasks_on(executor)
        members = min(executor.slots, sum(self.jobs[other].framework for other, _ in out))
        depth = 0 if self.jobs[uid].framework else BACKLOG_PER_SLOT_MAX
        room = executor.slots + (executor.slots - members) * depth  # nothing lies behind those that run for long
        wanted = all(selects(selector, labels.get(selector.key)) for selector in self._spec(uid, group).selectors)
        return (
            wanted
            and executor.name not in self.drained
            and len(out) < min(target, room)
            and not self.overloads(executor, uid, group, 1)
        )

    def waits(self, uid: int, group: str, now_ms: int) -> bool:
        """Whether a task of the group is certainly to be placed now, if there is room for it."""
        job = self.jobs[uid]
        due = any(task.state is WAITING and task.due_ms[1] <= now_ms for task in job.tasks[group])
        ready = not job.paused and not job.closed and group not in job.held
        return due and ready and self.has_slots(job.job.spec.project)

    def _out(self, placement: Placement, start: int, stop: int) -> dict[int, Task]:
        """Those of the tasks [start, stop) that are out in this placement, by index."""
        tasks = self.jobs[placement.uid].tasks.get(placement.group, [])
        return {i: task for i, task in enumerate(tasks) if start <= i < stop and task.placement == placement.id}

    def _event(self, command: TaskEvents, event: TaskEvent, now_ms: int) -> bool:
        """Returns: whether it changed anything."""
        placement = self.placements.get(event.placement)
        if placement is None or placement.uid not in self.jobs:
            return False
        if (placement.executor, placement.incarnation) != (command.executor, command.incarnation):
            return False
        if not placement.start <= event.start < event.stop <= placement.stop:
            return False
        if event.kind not in ("started", "succeeded", "failed", "canceled", "released"):
            return False
        job = self.jobs[placement.uid]
        tasks = self._out(placement, event.start, event.stop)
        if event.kind == "started":
            tasks = {i: task for i, task in tasks.items() if task.state is PLACED}
            for task in tasks.values():
                task.move(RUNNING)
            return bool(tasks)
        if not tasks or (event.results and len(tasks) < event.stop - event.start):
            return False
        for task in tasks.values():
            self._end(job, job.policies[placement.group], task, event, now_ms)
        if event.kind == "succeeded" and event.results:
            result = msgpack.decode(event.results)[0]
            kept = not isinstance(result, bytes)
            row = Row(placement, event.start, event.stop, "succeeded", kept, shared=kept and len(result) == 3)
            job.rows.append(row)
        self._failed_rows(job, placement, tasks)
        return True

    def _failed_rows(self, job: DumbJob, placement: Placement, tasks: dict[int, Task]) -> None:
        """A row for each range of those that failed for good."""
        for i, task in tasks.items():
            if task.state is not TaskState.FAILED:
                continue
            if i - 1 in tasks and tasks[i - 1].state is TaskState.FAILED:
                job.rows[-1].stop = i + 1
            else:
                job.rows.append(Row(placement, i, i + 1, "failed"))

    def _end(self, job: DumbJob, policy: RetryPolicy, task: Task, event: TaskEvent, now_ms: int) -> None:
        if event.kind == "succeeded":
            task.move(TaskState.SUCCEEDED)
        elif event.kind == "failed":
            if policy.reset_ms and event.run_ms >= policy.reset_ms:
                task.failures = 0
            task.failures += 1
            named = event.exit_code in policy.final_exit_codes or event.error.split(":")[0] in policy.final_errors
            budget = job.job.spec.retries_max
            final = job.closed or event.final or named or task.failures >= policy.attempts_max
            if task.withdrawn:
                task.move(TaskState.CANCELED)
            elif final or (budget is not None and job.retried >= budget):
                task.move(TaskState.FAILED)
            else:
                job.retried += 1
                wait_ms = min(
                    policy.backoff_ms * (policy.multiplier_milli / 1_000) ** (task.failures - 1),
                    policy.backoff_ms_max,
                )
                task.wait(now_ms + int(wait_ms * 0.89), now_ms + int(wait_ms * 1.11) + 1)
        elif job.closed:
            task.move(TaskState.CANCELED)
        else:
            task.wait(now_ms, now_ms)

    def _lose(self, executor: Executor, now_ms: int) -> None:
        for placement in self.placements.values():
            if placement.incarnation != executor.incarnation or placement.uid not in self.jobs:
                continue
            job = self.jobs[placement.uid]
            tasks = self._out(placement, placement.start, placement.stop)
            for task in tasks.values():
                ran_long = job.framework and self.wall_ms - task.placed_ms >= LOST_RESET_MS
                task.losses = 1 if ran_long else task.losses + 1
                if job.closed or task.withdrawn:
                    task.move(TaskState.CANCELED)
                elif task.losses >= LOST_MAX:
                    task.move(TaskState.FAILED)
                else:
                    task.wait(now_ms, now_ms)
            self._failed_rows(job, placement, tasks)

    def _rerun(self, command: RerunLost, now_ms: int) -> None:
        job = self.jobs[command.uid]
        row = job.rows[command.row]
        assert row.outcome == "succeeded"
        assert not job.framework
        keeper = self.executors.get(row.placement.executor)
        alive = keeper is not None and keeper.incarnation == row.placement.incarnation
        assert not row.dropped
        if job.closed or not row.kept or command.index in row.rerun:
            return
        if (alive or row.shared) and not command.missing:
            return
        row.rerun.add(command.index)
        task = job.tasks[row.placement.group][command.index]
        if job.job.spec.on_lost_result == "fail":
            task.move(TaskState.FAILED)
            job.rows.append(Row(row.placement, command.index, command.index + 1, "failed"))
            job.failed = True
            job.cancel_the_rest()
            return
        task.withdrawn = False
        task.failures = task.losses = 0
        task.wait(now_ms, now_ms)

    def agree(self, state: State) -> None:
        """Raise AssertionError unless every task stands in the machine as it stands here."""
        assert {job.uid for job in state.jobs.values()} == set(self.jobs)
        for uid, mine in self.jobs.items():
            job = state.job_of(uid)
            assert job is not None
            assert job_state(state, job) is mine.stands()
            for name, tasks in mine.tasks.items():
                self._agree_on_tasks(state, job, name, tasks)
            rows = [row for _, row in results(state, uid, 0, 1_000)]
            kept = [row for row in mine.rows if not row.dropped]
            assert len(rows) == len(kept)
            for row, my in zip(rows, kept, strict=True):
                assert (row.group, row.start, row.stop, row.outcome, row.attempt, row.executor) == (
                    my.placement.group,
                    my.start,
                    my.stop,
                    my.outcome,
                    my.placement.attempt,
                    my.placement.executor,
                )
        alive = {executor.uid: executor.incarnation for executor in state.executors.values() if executor.alive}
        for name, schedule in self.schedules.items():
            mine = state.schedules[name]
            assert (mine.uid, mine.next_at_ms, mine.paused) == (schedule.uid, schedule.next_ms, schedule.paused)
            assert [uid for uid in mine.runs if uid in self.jobs] == [
                uid for uid in schedule.runs if uid in self.jobs
            ]
        assert state.schedules.keys() == self.schedules.keys()
        assert alive == {uid: executor.incarnation for uid, executor in self.executors.items()}
        assert {name: drain.deadline_at_ms for name, drain in state.drains.items()} == self.drained

    def _agree_on_tasks(self, state: State, job: Job, name: str, tasks: list[Task]) -> None:
        shown: dict[int, Tasks] = {}
        for row in show_tasks(state, job, 10_000):
            if row.group == name:
                for index in range(row.start, row.stop):
                    assert index not in shown, f"task {index} is shown twice"
                    shown[index] = row
        for index, task in enumerate(tasks):
            row = shown[index]
            executor = self.placements[task.placement].executor if task.placement else None
            assert (row.state, row.executor) == (task.state, executor), index
            assert task_state(state, job, name, index) == (row.state, row.attempt, row.executor)
            if task.state in (WAITING, PLACED, RUNNING):
                assert row.attempt == task.attempt, index
            if task.state is WAITING:
                assert task.due_ms[0] <= row.due_at_ms <= task.due_ms[1], index
