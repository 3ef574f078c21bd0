"""The rules of `test_machine` about what users, executors and clocks ask for; placing and ends are there."""

from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
)
from msgspec.structs import replace

from tests.unit.sched.machine_base import (
    NAMES,
    Base,
    capacities,
    graphs,
    groups,
    limits,
    pick,
    policies,
    projects,
    workers,
    zones,
)
from tiflow.errors import NotFound
from tiflow.sched.commands import (
    FORMAT,
    AddGroup,
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
    PruneJobs,
    PutSchedule,
    RegisterExecutor,
    ResumeJob,
    SetFormat,
    SetProject,
    StartWorkers,
    StopWorkers,
    SubmitJob,
    TaskEvent,
    TaskEvents,
    TriggerSchedule,
    UndrainExecutor,
)
from tiflow.sched.duties import due, recalled
from tiflow.sched.model import (
    JOB_TERMINAL,
    SUBMIT_WINDOW_MS,
    Command,
    Framework,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Placement,
    RetryPolicy,
    Schedule,
)
from tiflow.sched.schedules import OVERLAP
from tiflow.sched.views import job_state


class Rules(Base):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[AskOnce] = []

    # Executors.

    @initialize(specs=graphs(), extra=st.integers(0, 6), limits=st.just({}) | limits, framework=st.booleans())
    def start(self, specs: tuple[GroupSpec, ...], extra: int, limits: dict[str, int], framework: bool) -> None:
        """Or the first half of most runs would be spent on getting here."""
        self.ask(SetFormat(FORMAT))
        self.register(NAMES[0], 1, {"gpu": 1, "cpu": 1_000}, {"zone": "a"})
        self.register(NAMES[1], 3, {"gpu": 2}, {})
        if framework:
            self.submit_framework("a", RetryPolicy(attempts_max=3, backoff_ms=7), {}, "default", placed=True)
            (master,) = self.masters
            self.ask(StartWorkers(master.uid, 1, workers("w", 2)))
        self.submit("b" if framework else "a", specs, 50, limits)
        self.place(extra, 100)

    @rule(name=st.sampled_from(NAMES), slots=st.integers(1, 3), capacity=capacities, labels=zones)
    def register(self, name: str, slots: int, capacity: dict[str, int], labels: dict[str, str]) -> None:
        """A process starts; if its executor was alive, the old process is gone."""
        self.boots += 1
        boot = f"boot-{self.boots}"
        self.ask(RegisterExecutor(f"uid-{name}", boot, name, "h:1", slots, labels, capacity=capacity))

    @rule(data=st.data())
    @precondition(lambda self: self.machine.state.executors)
    def register_doubled(self, data: st.DataObject) -> None:
        """Once more from the same process: harmless if it is alive, and its return if its lease had run out."""
        executor = pick(data, list(self.machine.state.executors.values()))
        registered = self.ask(RegisterExecutor(executor.uid, executor.boot_id, executor.name, "h:1", executor.slots))
        assert not executor.alive or registered == executor

    @rule(data=st.data())
    def register_under_a_taken_name(self, data: st.DataObject) -> None:
        executor = pick(data, self.alive)
        assert self.ask(RegisterExecutor("another uid", "b", executor.name, "h:1", 1)) is None

    @rule(data=st.data())
    @precondition(lambda self: len(self.alive) > 1)  # or most runs end with nobody to run anything
    def expire(self, data: st.DataObject) -> None:
        executor = pick(data, self.alive)
        self.ask(ExpireExecutor(executor.uid, executor.incarnation))

    @rule(data=st.data(), older=st.integers(1, 20))
    def expire_an_older_incarnation(self, data: st.DataObject, older: int) -> None:
        executor = pick(data, self.alive)
        self.ask(ExpireExecutor(executor.uid, executor.incarnation - older))
        assert self.machine.state.executors[executor.uid] == executor

    @rule(data=st.data(), deadline_ms=st.sampled_from([None, None, 0, 3_000]))
    @precondition(lambda self: self.alive)
    def drain(self, data: st.DataObject, deadline_ms: int | None) -> None:
        """Said again, as by a client that heard no answer, it puts nothing off."""
        names = [executor.name for executor in self.machine.state.executors.values()]
        command = DrainExecutor(pick(data, names), deadline_ms)
        drain = self.ask(command)
        self.now_ms += 1
        assert self.ask(command).deadline_at_ms == drain.deadline_at_ms

    @rule(data=st.data())
    @precondition(lambda self: self.machine.state.executors)
    def undrain(self, data: st.DataObject) -> None:
        drained = list(self.machine.state.drains)
        self.ask(UndrainExecutor(pick(data, drained or [self.alive[0].name])))

    @rule()
    def drain_an_unknown_one(self) -> None:
        replies = self.propose(DrainExecutor("nobody"), UndrainExecutor("nobody"))
        assert all(isinstance(reply.error, NotFound) for reply in replies)
        assert "nobody" not in self.machine.state.drains

    @rule()
    @precondition(lambda self: self.machine.state.drains)
    def hand_over_what_a_drain_recalls(self) -> None:
        """As executors do that were told to stop."""
        state = self.machine.state
        for uid, ids in recalled(state, max(self.now_ms, state.now_ms)).items():
            deadline_ms = self.dumb.drained[state.executors[uid].name]
            late = 0 < deadline_ms <= max(self.now_ms, state.now_ms)
            mine = list(state.placements_on(uid))
            assert ids == tuple(row.id for row in mine if late or self.dumb.jobs[row.uid].framework)
            for row in [row for row in mine if row.id in ids]:
                stopped = TaskEvent(row.id, row.start, row.stop, "canceled")
                self.ask(TaskEvents(row.executor, row.incarnation, (stopped,)))
        assert not recalled(state, max(self.now_ms, state.now_ms))

    # Jobs.

    @rule(
        id=st.sampled_from("abcd"),
        specs=graphs(),
        priority=st.sampled_from([50, 50, 60]),
        limits=st.just({}) | limits,
        project=projects,
    )
    def submit(
        self,
        id: str,
        specs: tuple[GroupSpec, ...],
        priority: int,
        limits: dict[str, int],
        project: str = "default",
    ) -> None:
        self.tokens += 1
        self.ask(
            SubmitJob(JobSpec(id, specs, priority, project=project, **limits), f"token-{self.tokens}", self.now_ms)
        )

    @rule(data=st.data())
    @precondition(lambda self: self.jobs)
    def submit_doubled(self, data: st.DataObject) -> None:
        job = pick(data, self.jobs)
        assert self.ask(SubmitJob(job.spec, job.token, job.submitted_at_ms)) == job

    @rule(id=st.sampled_from("abcd"))
    def submit_too_late(self, id: str) -> None:
        spec = JobSpec(id, (GroupSpec("g", Command(("true",))),))
        stale_ms = self.machine.state.now_ms - SUBMIT_WINDOW_MS - 1
        assert self.ask(SubmitJob(spec, "late", stale_ms)) is None

    @rule(data=st.data())
    @precondition(lambda self: len(self.jobs) > 1)
    def cancel(self, data: st.DataObject) -> None:
        self.ask(CancelJob(pick(data, self.jobs).id))

    @rule(data=st.data(), exact=st.booleans())
    @precondition(lambda self: self.jobs)
    def pause(self, data: st.DataObject, exact: bool) -> None:
        """Twice, as a client does that heard no answer."""
        job = pick(data, self.jobs)
        command = PauseJob(job.id, job.uid if exact else 0)
        self.ask(command)
        paused = self.machine.state.jobs[job.id]
        self.ask(command)
        assert self.machine.state.jobs[job.id] == paused

    @rule(data=st.data(), uid=st.sampled_from([0, 0, 10_000]))
    @precondition(lambda self: self.jobs)
    def resume(self, data: st.DataObject, uid: int) -> None:
        """Also of another job, which the id had before or will have."""
        paused = [job for job in self.jobs if job.paused]
        self.ask(ResumeJob(pick(data, paused or self.jobs).id, uid))

    @rule(gone=st.booleans())
    def what_is_late_fails(self, gone: bool) -> None:
        """As the leader proposes it; afterwards nothing is late."""
        now_ms = max(self.now_ms, self.machine.state.now_ms)
        uids = [0, *(job.uid for job in self.jobs)] if gone else []
        for command in due(self.machine.state, (), now_ms, uids):
            fails = self.ask(command)
            assert fails or isinstance(command, CloseGroups), "its deadline may have come first"
        assert not due(self.machine.state, (), now_ms, uids)

    @rule(data=st.data())
    @precondition(lambda self: self.jobs)
    def fail_in_vain(self, data: st.DataObject) -> None:
        """A leader whose clock was ahead, or who says it twice."""
        self.ask(ExpireJob(pick(data, self.jobs).uid))

    @rule(data=st.data(), exact=st.booleans())
    @precondition(lambda self: len(self.jobs) > 2)
    def delete(self, data: st.DataObject, exact: bool) -> None:
        job = pick(data, self.jobs)
        self.ask(DeleteJob(job.id, job.uid if exact else 0))

    # Projects.

    @rule(
        name=projects,
        slots=st.sampled_from([0, 1, 5]),
        tasks=st.sampled_from([0, 0, 9]),
        jobs=st.sampled_from([0, 0, 2]),
        weight=st.integers(1, 3),
    )
    def set_project(self, name: str, slots: int, tasks: int, jobs: int, weight: int) -> None:
        self.ask(SetProject(name, slots, tasks, jobs, weight))

    @rule(name=projects)
    def delete_project(self, name: str) -> None:
        self.ask(DeleteProject(name))

    # Schedules. Their times are those of the wall clock, which is `now_ms` here, and may step back.

    @property
    def schedules(self) -> list[Schedule]:
        return list(self.machine.state.schedules.values())

    @rule(
        name=st.sampled_from("st"),
        specs=graphs(),
        overlap=st.sampled_from(OVERLAP),
        keep=st.integers(1, 2),
        in_ms=st.sampled_from([1, 900]),
        paused=st.sampled_from([False, False, False, True]),
        project=projects,
    )
    def put_schedule(
        self,
        name: str,
        specs: tuple[GroupSpec, ...],
        overlap: str,
        keep: int,
        in_ms: int,
        paused: bool,
        project: str,
    ) -> None:
        """Twice, as a client does that heard no answer."""
        self.tokens += 1
        command = PutSchedule(
            name,
            JobSpec("", specs, project=project),
            "* * * * *",
            "UTC",
            f"token-{self.tokens}",
            overlap,
            "skip",
            keep,
            self.now_ms + in_ms,
            paused,
        )
        assert self.ask(command) == self.ask(command)

    @rule(data=st.data(), late_ms=st.sampled_from([0, 0, 900]), missed=st.sampled_from([False, False, True]))
    @precondition(lambda self: self.machine.state.fires)
    def fire(self, data: st.DataObject, late_ms: int, missed: bool) -> None:
        """As a leader does; another one says it again, in its own words."""
        at_ms, name = pick(data, self.machine.state.fires)
        self.now_ms = max(self.now_ms, at_ms + late_ms)
        schedule = self.machine.state.schedules[name]
        job_id = "" if missed else f"{name}-{at_ms + late_ms}"
        next_ms = data.draw(st.sampled_from([at_ms + late_ms + 1_000] * 3 + [0]))
        command = FireSchedule(name, schedule.uid, at_ms, at_ms + late_ms, job_id, next_ms)
        self.propose(command, replace(command, job_id=f"{name}-again", next_at_ms=next_ms + 5))
        assert self.machine.state.schedules[name].next_at_ms == next_ms

    @rule(data=st.data(), off=st.sampled_from([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1_000_000), (0, 0, -1)]))
    @precondition(lambda self: self.schedules)
    def fire_in_vain(self, data: st.DataObject, off: tuple[int, int, int]) -> None:
        """Of another schedule of that name, of another time, too early; or it is paused."""
        one = pick(data, self.schedules)
        due_ms = one.next_at_ms or self.now_ms
        command = FireSchedule(
            one.name, one.uid + off[0], due_ms + off[1], due_ms + off[2], "vain", due_ms + off[2] + 1
        )
        assert self.ask(command) is None
        if one.paused or not one.next_at_ms:
            assert self.ask(FireSchedule(one.name, one.uid, one.next_at_ms, self.now_ms, "vain", 0)) is None
        assert self.machine.state.schedules[one.name] == one

    @rule(data=st.data(), paused=st.booleans(), in_ms=st.sampled_from([1, 900]))
    @precondition(lambda self: self.schedules)
    def pause_schedule(self, data: st.DataObject, paused: bool, in_ms: int) -> None:
        self.ask(PauseSchedule(pick(data, self.schedules).name, paused, 0 if paused else self.now_ms + in_ms))

    @rule(data=st.data())
    @precondition(lambda self: self.schedules)
    def trigger_schedule(self, data: st.DataObject) -> None:
        self.tokens += 1
        name = pick(data, self.schedules).name
        command = TriggerSchedule(name, f"{name}-t{self.tokens}", f"token-{self.tokens}", self.now_ms)
        job = self.ask(command)
        assert self.ask(command) == job

    @rule(data=st.data())
    @precondition(lambda self: len(self.schedules) > 1)
    def delete_schedule(self, data: st.DataObject) -> None:
        name = pick(data, self.schedules).name
        self.propose(DeleteSchedule(name), DeleteSchedule(name))

    # Open jobs.

    @rule(id=st.sampled_from("abcd"), specs=st.lists(groups, max_size=1))
    def submit_open(self, id: str, specs: list[GroupSpec]) -> None:
        self.submit(id, specs, 50, {"open": True})

    @rule(data=st.data(), spec=groups, off=st.sampled_from([1, 1, 1, 1, 0, -1, 2]), drop=st.booleans())
    @precondition(lambda self: any(job.spec.open for job in self.jobs))
    def add_group(self, data: st.DataObject, spec: GroupSpec, off: int, drop: bool) -> None:
        """With a number that is the next one, or has come before, or leaves one out; some name what has not ended."""
        job = pick(data, [job for job in self.jobs if job.spec.open])
        names = tuple(group.name for group in self.machine.state.groups_of(job)) if drop else ()
        number = job.added + off
        self.ask(AddGroup(job.uid, number, replace(spec, name=f"x{number % 3}"), names))

    @rule(data=st.data(), failure=st.sampled_from(["", "", "its client is gone"]))
    @precondition(lambda self: self.jobs)
    def seal(self, data: st.DataObject, failure: str) -> None:
        job = pick(data, [job for job in self.jobs if job.spec.open] or self.jobs)
        self.ask(CloseGroups(job.uid, failure))

    @rule(data=st.data(), force=st.booleans(), off=st.sampled_from([0, 0, 1]))
    @precondition(lambda self: self.machine.state.groups)
    def withdraw(self, data: st.DataObject, force: bool, off: int) -> None:
        """Some tasks of a group; or of none, or beyond its end."""
        group = pick(data, list(self.machine.state.groups.values()))
        start = data.draw(st.integers(0, group.count - 1))
        stop = data.draw(st.integers(start + 1, group.count)) + off
        self.ask(CancelTasks(group.uid + off, group.name, start, stop, force))

    # Framework jobs.

    @property
    def framework_jobs(self) -> list[Job]:
        return [job for job in self.jobs if job.spec.framework]

    @property
    def masters(self) -> list[Placement]:
        return [row for row in self.placements if row.group == "master"]

    @rule(
        id=st.sampled_from("abcd"),
        retry=policies,
        limits=st.just({}) | limits,
        project=projects,
        placed=st.booleans(),
    )
    def submit_framework(
        self, id: str, retry: RetryPolicy, limits: dict[str, int], project: str, placed: bool
    ) -> None:
        """Mostly of an id that is free, and placed at once, or few would come to start workers."""
        free = [one for one in "abcd" if one not in self.machine.state.jobs]
        spec = JobSpec(
            free[0] if free else id,
            (GroupSpec("master", Framework("copy"), retry=retry),),
            project=project,
            **{**limits, "open": True, "client_ttl_ms": 0},
        )
        self.tokens += 1
        self.ask(SubmitJob(spec, f"token-{self.tokens}", self.now_ms))
        if placed:
            self.place(0, 100)

    @rule(data=st.data(), name=st.sampled_from(["w", "v"]), count=st.sampled_from([1, 3]), retry=policies)
    @precondition(lambda self: self.masters)
    def start_workers(self, data: st.DataObject, name: str, count: int, retry: RetryPolicy) -> None:
        """Twice, as one does that heard no answer; also in the name of an attempt that was, or will be."""
        master = pick(data, self.masters)
        attempt = master.attempt + data.draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
        command = self.once(data, StartWorkers(master.uid, attempt, workers(name, count, retry=retry)))
        self.ask(command)
        before = self.machine.state.groups.get((master.uid, name))
        self.ask(command)
        assert self.machine.state.groups.get((master.uid, name)) == before

    @rule(data=st.data(), name=st.sampled_from(["w", "v"]), forget=st.booleans())
    @precondition(lambda self: self.masters)
    def stop_workers(self, data: st.DataObject, name: str, forget: bool) -> None:
        master = pick(data, self.masters)
        attempt = master.attempt + data.draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
        start = data.draw(st.integers(0, 2))
        stop = StopWorkers(master.uid, attempt, name, start, data.draw(st.integers(start, 3)), forget)
        command = self.once(data, stop)
        gone = self.ask(command)
        assert self.ask(command) is gone

    def once(self, data: st.DataObject, command: StartWorkers | StopWorkers) -> AskOnce | StartWorkers | StopWorkers:
        """As masters of the newest format ask, or as older ones."""
        if not data.draw(st.booleans()):
            return command
        number = 1 + len(self.asked)
        self.asked.append(AskOnce(number, data.draw(st.sampled_from([number, 1])), command))
        return self.asked[-1]

    @rule(data=st.data())
    @precondition(lambda self: self.asked)
    def ask_once_more(self, data: st.DataObject) -> None:
        """Late, or of an attempt that is over."""
        self.ask(pick(data, self.asked))

    @rule(data=st.data(), attempt=st.integers(1, 3))
    @precondition(lambda self: self.jobs)
    def decide_without_being_in_charge(self, data: st.DataObject, attempt: int) -> None:
        """Of any job, whether its master is out or not, or has none."""
        job = pick(data, self.framework_jobs or self.jobs)
        if not self.dumb.in_charge(job.uid, attempt):
            commands = StartWorkers(job.uid, attempt, workers("late", 1)), StopWorkers(job.uid, attempt, "w", 0, 9)
            replies = self.propose(*commands)
            assert all(reply.error for reply in replies)

    @rule(data=st.data(), kind=st.sampled_from(["succeeded", "failed", "failed", "canceled"]), final=st.booleans())
    @precondition(lambda self: self.masters)
    def end_a_job_master(self, data: st.DataObject, kind: str, final: bool) -> None:
        """Or hardly any would, while its workers are out."""
        row = pick(data, self.masters)
        ended = TaskEvent(row.id, 0, 1, kind, error="bang" * (kind == "failed"), final=final and kind == "failed")
        self.ask(TaskEvents(row.executor, row.incarnation, (ended,)))

    @rule(data=st.data())
    @precondition(lambda self: any(job.paused or job.closed for job in self.framework_jobs))
    def hand_over_what_is_revoked(self, data: st.DataObject) -> None:
        """As executors do of members of a job that is pausing, or over."""
        job = pick(data, [job for job in self.framework_jobs if job.paused or job.closed])
        for row in tuple(self.machine.state.placements_of(job.uid)):
            stopped = TaskEvent(row.id, row.start, row.stop, "canceled")
            self.ask(TaskEvents(row.executor, row.incarnation, (stopped,)))
        assert job_state(self.machine.state, self.machine.state.jobs[job.id]) in {*JOB_TERMINAL, JobState.PAUSED}

    # Leaving for the database.

    @rule(behind=st.sampled_from([0, 0, 9]), stale=st.booleans())
    def prune(self, behind: int, stale: bool) -> None:
        """The mirror is the database: what it has may leave."""
        persisted = max(0, self.mirrored - behind)
        named = tuple((job.uid, job.mod_revision - stale) for job in self.jobs)
        left = self.ask(PruneJobs(persisted, named))
        gone = [uid for uid in self.mirror if uid not in self.machine.state.job_ids]
        assert left == len(gone) <= len(named) * (not stale)
        for uid in gone:
            assert self.mirror[uid].ended_at_ms
            assert self.mirror[uid].mod_revision <= persisted
            assert not self.dumb.jobs[uid].alive
            del self.mirror[uid], self.dumb.jobs[uid]
