"""Any commands in any order: the promises hold, and the slow judge in `dumb` agrees on every task.

Rules come in pairs: what a healthy cluster says, and its stale, doubled or dishonest form. Arguments are drawn from
the living state, for random ones hit nothing: see TESTING.md 4.2. `python tests/unit/mutants.py` measures the net.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.dumb import Dumb
from tests.unit.sched.support import START_MS
from tiflow.errors import Internal, NotFound
from tiflow.sched.checks import check
from tiflow.sched.commands import (
    AddGroup,
    AnyCommand,
    CancelJob,
    CancelTasks,
    CloseGroups,
    DeleteJob,
    DeleteProject,
    DeleteSchedule,
    DrainExecutor,
    Entry,
    ExpireExecutor,
    ExpireJob,
    FireSchedule,
    PauseJob,
    PauseSchedule,
    Place,
    PlaceTasks,
    PruneJobs,
    PutSchedule,
    RegisterExecutor,
    RerunLost,
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
    encode_entry,
)
from tiflow.sched.duties import due, next_due_ms, recalled
from tiflow.sched.explain import Explanation, explain
from tiflow.sched.looks import Looks
from tiflow.sched.machine import Machine, Reply
from tiflow.sched.model import (
    JOB_TERMINAL,
    JOB_TRANSITIONS,
    LOST_RESET_MS,
    SUBMIT_WINDOW_MS,
    After,
    Command,
    Deleted,
    Executor,
    Framework,
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Placement,
    PlacementPolicy,
    RetryPolicy,
    Schedule,
    Selector,
)
from tiflow.sched.plan import plan
from tiflow.sched.schedules import OVERLAP
from tiflow.sched.state import State
from tiflow.sched.views import job_state, results

T = TypeVar("T")
NAMES = ("e1", "e2", "e3")
KINDS = ("started", "succeeded", "failed", "failed", "failed", "canceled", "released", "unheard-of")

policies = st.builds(
    RetryPolicy,
    attempts_max=st.integers(1, 4),
    backoff_ms=st.sampled_from([0, 7, 1_000]),
    multiplier_milli=st.sampled_from([1_000, 1_700]),
    backoff_ms_max=st.sampled_from([0, 1_500, 300_000]),
    reset_ms=st.sampled_from([0, 0, 500]),
    final_exit_codes=st.sampled_from([(), (), (3, -9)]),
)
#: what a job may say beside its groups; most jobs say nothing, or few would come far
limits = st.fixed_dictionaries(
    {},
    optional={
        "retries_max": st.sampled_from([0, 1, 5]),
        "max_failures": st.sampled_from([0, 1, 3]),
        "job_timeout_ms": st.sampled_from([0, 900, 20_000]),
        "queue_timeout_ms": st.sampled_from([0, 900, 5_000]),
        "on_lost_result": st.sampled_from(["rerun", "fail"]),
        "open": st.booleans(),
        "client_ttl_ms": st.sampled_from([0, 9]),
    },
)
groups = st.builds(
    GroupSpec,
    name=st.just("g"),
    work=st.just(Command(("true",))),
    count=st.sampled_from([1, 2, 5, 12, 12]),
    retry=policies,
    selectors=st.sampled_from(
        [(), (), (), (Selector("zone", "neq", ("b",)),), (Selector("zone", "regex", ("[ab]",)),)]
    ),
    resources=st.sampled_from([{}, {}, {"gpu": 1}, {"gpu": 2}, {"cpu": 700}, {"cpu": 1_000, "gpu": 1}]),
    placement=st.builds(
        PlacementPolicy,
        strategy=st.sampled_from(["spread", "binpack"]),
        spread_over=st.sampled_from(["", "zone"]),
        max_per_executor=st.sampled_from([0, 0, 2, 3]),
    ),
)
capacities = st.sampled_from([{}, {"gpu": 2}, {"gpu": 3, "cpu": 1_500}, {"cpu": 3_000}])
zones = st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[GroupSpec, ...]:
    """Groups g0, g1 …; in some jobs, some come after others, which stand before or behind them."""
    specs = draw(st.lists(groups, min_size=1, max_size=3))
    named = [replace(spec, name=f"g{i}") for i, spec in enumerate(specs)]
    if draw(st.booleans()):
        ons = st.sampled_from([None, "success", "success", "completion"])
        for i, group in enumerate(named):
            afters = [(other.name, draw(ons)) for other in named[:i]]
            named[i] = replace(group, after=tuple(After(name, on) for name, on in afters if on))
        if draw(st.booleans()):
            named.reverse()
    return tuple(named)


projects = st.sampled_from(["default", "default", "default", "p"])


def workers(name: str, count: int, **fields: Any) -> GroupSpec:
    return GroupSpec(name, Framework("copy", "worker"), count, (msgpack.encode([b""] * count),), **fields)


class MachineTest(RuleBasedStateMachine):
    plans = Bundle("plans")
    said = Bundle("said")  #: events that executors have sent

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.dumb = Dumb()
        self.now_ms = START_MS
        self.log: list[bytes] = []
        self.snapshot: tuple[int, bytes] | None = None  #: entries applied by then, and its bytes
        self.boots = 0
        self.tokens = 0
        self.mirror: dict[int, Job] = {}  #: what a projector that was told of changes has
        self.mirrored = 0  #: up to this revision
        self.stood: dict[int, JobState] = {}

    # What the rules are made of.

    def propose(self, *commands: AnyCommand) -> list[Reply]:
        entry = encode_entry(Entry(self.now_ms, self.now_ms, commands))
        self.log.append(entry)
        replies = self.machine.apply(entry)
        for command, reply in zip(commands, replies, strict=True):
            assert not isinstance(reply.error, Internal), reply.error
            event(f"{type(command).__name__}: {type(reply.error).__name__ if reply.error else 'done'}")
            if isinstance(command, TaskEvents):
                for said in command.events if reply.value == 0 else ():
                    event(f"TaskEvents: {said.kind}")
            self.dumb.hear(self.machine.state.now_ms, self.now_ms, command, reply)
        return replies

    def ask(self, command: AnyCommand) -> Any:
        (reply,) = self.propose(command)
        return reply.value

    @property
    def jobs(self) -> list[Job]:
        return list(self.machine.state.jobs.values())

    @property
    def alive(self) -> list[Executor]:
        return [executor for executor in self.machine.state.executors.values() if executor.alive]

    @property
    def placements(self) -> list[Placement]:
        return list(self.machine.state.placements.values())

    def kept_rows(self) -> list[tuple[int, int]]:
        """(uid, row) of all rows of tasks that succeeded."""
        state = self.machine.state
        return [
            (job.uid, number)
            for job in self.jobs
            for number, row in results(state, job.uid, 0, 100)
            if row.outcome == "succeeded"
        ]

    # Executors.

    @initialize(specs=graphs(), extra=st.integers(0, 6), limits=st.just({}) | limits, framework=st.booleans())
    def start(self, specs: tuple[GroupSpec, ...], extra: int, limits: dict[str, int], framework: bool) -> None:
        """Or the first half of most runs would be spent on getting here."""
        self.ask(SetFormat(3))
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
        command = StartWorkers(master.uid, attempt, workers(name, count, retry=retry))
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
        command = StopWorkers(master.uid, attempt, name, start, data.draw(st.integers(start, 3)), forget)
        gone = self.ask(command)
        assert self.ask(command) is gone

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

    # Placing.

    def targets(self, extra: int) -> dict[str, int]:
        return {executor.uid: executor.slots + extra for executor in self.alive}

    @rule(extra=st.integers(0, 6), budget=st.sampled_from([1, 7, 100]))
    def place(self, extra: int, budget: int) -> None:
        """A plan that is followed at once is accepted whole, and leaves no slot free that it could fill."""
        state = self.machine.state
        now_ms = max(self.now_ms, state.now_ms)
        targets = self.targets(extra)
        reasons = self.reasons(now_ms, targets)
        places = plan(state, now_ms, targets, budget)
        assert sum(place.stop - place.start for place in places) <= budget
        kept = self.kept_from_backlogs(reasons)
        for (uid, name), reason in reasons.items():
            planned = [place for place in places if (place.uid, place.group) == (uid, name)]
            assert not planned or (reason.candidates and not reason.held), reason
            assert places or reason.held or not reason.candidates or uid in kept, reason
        self.judge(reasons, targets, now_ms)
        accepted = self.ask(PlaceTasks(tuple(places)))
        assert len(accepted) == len(places)
        if budget == 100:
            assert not plan(state, now_ms, targets, budget)
            self.judge(left := self.reasons(now_ms, targets), targets, now_ms)
            kept = self.kept_from_backlogs(left)
            assert all(reason.held or not reason.candidates or uid in kept for (uid, _), reason in left.items())

    @rule(extra=st.integers(0, 6))
    def place_with_little_patience(self, extra: int) -> None:
        """Plans that look at next to nothing in vain fill, one after the other, what one that looks at all would."""
        state, looks = self.machine.state, Looks(cost_max=0)
        now_ms = max(self.now_ms, state.now_ms)
        targets = self.targets(extra)
        for _ in range(1_000):
            places = plan(state, now_ms, targets, looks=looks)
            if places:
                assert len(self.ask(PlaceTasks(tuple(places)))) == len(places)
            elif not looks.cut:
                break
        else:
            raise AssertionError("they never end")
        assert not plan(state, now_ms, targets)

    def kept_from_backlogs(self, reasons: dict[tuple[int, str], Explanation]) -> list[int]:
        """Jobs that may get no backlog though there is room for it: members of framework jobs wait for slots."""
        members = [uid for (uid, _), reason in reasons.items() if self.dumb.jobs[uid].framework and not reason.held]
        return [uid for uid, _ in reasons if not self.dumb.jobs[uid].framework] if members else []

    def reasons(self, now_ms: int, targets: dict[str, int]) -> dict[tuple[int, str], Explanation]:
        state = self.machine.state
        return {(job.uid, one.group): one for job in self.jobs for one in explain(state, job.uid, now_ms, targets)}

    def judge(self, reasons: dict[tuple[int, str], Explanation], targets: dict[str, int], now_ms: int) -> None:
        """The slow reference tries each executor with each group."""
        for (uid, name), reason in reasons.items():
            fitting = [one for one in self.alive if self.dumb.fits(one, uid, name, targets[one.uid])]
            assert reason.candidates == len(fitting), (reason, fitting)
            assert reason.filters[-1].leaves == reason.candidates
            assert sum(one.removes for one in reason.filters) >= reason.executors - reason.candidates
            assert not (reason.held and self.dumb.waits(uid, name, now_ms)), reason

    @rule(target=plans, extra=st.integers(0, 6))
    def think(self, extra: int) -> Any:
        places = plan(self.machine.state, self.now_ms, self.targets(extra))
        return tuple(places) if places else multiple()

    @rule(places=plans)
    def place_late(self, places: tuple[Place, ...]) -> None:
        """By now its executor may be lost, its tasks canceled, its room taken."""
        self.ask(PlaceTasks(places))

    @rule(places=plans, off=st.sampled_from([(-1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (0, -1, 0)]))
    def place_wrongly(self, places: tuple[Place, ...], off: tuple[int, int, int]) -> None:
        self.ask(
            PlaceTasks(
                tuple(
                    replace(p, start=max(0, p.start + off[0]), stop=p.stop + off[1], attempt=p.attempt + off[2])
                    for p in places
                )
            )
        )

    @rule(data=st.data(), pieces=st.integers(1, 4))
    @precondition(lambda self: self.jobs)
    def place_everything_on_one(self, data: st.DataObject, pieces: int) -> None:
        """No honest planner would: all that waits, due or not, with no thought for room."""
        executor, job = pick(data, self.alive), pick(data, self.jobs)
        places = []
        for group in self.machine.state.groups_of(job):
            retries = self.machine.state.retries.get((job.uid, group.name), {})
            runs = [(row.index, row.stop, row.attempt) for row in retries.values()]
            for start, stop, attempt in [*runs, (group.cursor, group.count, 1)]:
                step = max(1, (stop - start) // pieces)
                for at in range(start, stop, step):
                    end = min(stop, at + step)
                    place = Place(job.uid, group.name, at, end, attempt, executor.uid, executor.incarnation)
                    places.append(place)
        self.ask(PlaceTasks(tuple(places)))

    # Events.

    @rule(target=said, data=st.data(), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    @precondition(lambda self: self.placements)
    def say(self, data: st.DataObject, kinds: list[str]) -> TaskEvents:
        """An executor tells of one or more of its placements."""
        first = pick(data, self.placements)
        mine = list(self.machine.state.placements_on(first.executor))
        events = []
        for kind in kinds:
            placement = pick(data, mine)
            start = data.draw(st.integers(placement.start, placement.stop - 1))
            stop = data.draw(st.integers(start + 1, placement.stop))
            events.append(self.event_of(data, placement.id, start, stop, kind))
        command = TaskEvents(first.executor, first.incarnation, tuple(events))
        self.ask(command)
        return command

    def event_of(self, data: st.DataObject, placement: int, start: int, stop: int, kind: str) -> TaskEvent:
        if kind == "failed":
            final = data.draw(st.sampled_from([False, False, False, True]))
            code, run_ms = data.draw(st.sampled_from([(0, 0), (1, 700), (3, 0), (-9, 0)]))
            return TaskEvent(placement, start, stop, kind, error="bang", exit_code=code, final=final, run_ms=run_ms)
        if kind == "succeeded":
            kept = [9_999, "sha"]
            result: Any = data.draw(st.sampled_from([None, b"small", kept, kept, [*kept, "file:///x"]]))
            encoded = b"" if result is None else msgpack.encode([result] * (stop - start))
            return TaskEvent(placement, start, stop, kind, results=encoded)
        return TaskEvent(placement, start, stop, kind)

    @rule(data=st.data(), kind=st.sampled_from(["succeeded", "succeeded", "failed"]))
    @precondition(lambda self: self.placements)
    def end_all_of_a_job(self, data: st.DataObject, kind: str) -> None:
        """Or hardly any job would come to its end."""
        job = self.machine.state.job_of(pick(data, self.placements).uid)
        assert job is not None
        for placement in tuple(self.machine.state.placements_of(job.uid)):
            whole = self.event_of(data, placement.id, placement.start, placement.stop, kind)
            self.ask(TaskEvents(placement.executor, placement.incarnation, (whole,)))

    @rule(data=st.data())
    @precondition(lambda self: any(group.held for group in self.machine.state.groups.values()))
    def place_what_is_held(self, data: st.DataObject) -> None:
        held = pick(data, [group for group in self.machine.state.groups.values() if group.held])
        executor = pick(data, self.alive)
        place = Place(held.uid, held.name, 0, held.count, 1, executor.uid, executor.incarnation)
        assert self.ask(PlaceTasks((place,))) == ()

    @rule(command=said)
    def say_again(self, command: TaskEvents) -> None:
        self.ask(command)

    @rule(data=st.data(), older=st.integers(1, 20))
    @precondition(lambda self: self.placements)
    def say_in_the_name_of_another(self, data: st.DataObject, older: int) -> None:
        """What one executor has, another one, or an older process of the same one, has no say in."""
        placement = pick(data, self.placements)
        whole = TaskEvent(placement.id, placement.start, placement.stop, "succeeded")
        other = pick(data, [executor for executor in self.alive if executor.uid != placement.executor] or [None])
        before = self.machine.state.placements[placement.id]
        if other is not None:
            self.ask(TaskEvents(other.uid, placement.incarnation, (whole,)))
            self.ask(TaskEvents(other.uid, other.incarnation, (whole,)))
        self.ask(TaskEvents(placement.executor, placement.incarnation - older, (whole,)))
        assert self.machine.state.placements[placement.id] == before

    @rule(command=said, off=st.sampled_from([(-1, 0), (0, 1), (1, 0), (0, -1)]))
    def say_of_a_wrong_range(self, command: TaskEvents, off: tuple[int, int]) -> None:
        moved = tuple(
            replace(e, start=max(0, e.start + off[0]), stop=e.stop + off[1], results=b"") for e in command.events
        )
        self.ask(replace(command, events=moved))

    # Lost results.

    @rule(data=st.data())
    @precondition(lambda self: self.kept_rows())
    def rerun(self, data: st.DataObject) -> None:
        uid, number = pick(data, self.kept_rows())
        row = self.machine.state.results[uid, number]
        missing = data.draw(st.sampled_from([False, False, True]))
        self.ask(RerunLost(uid, number, data.draw(st.integers(row.start, row.stop - 1)), missing))

    # Time, and several things at once.

    @rule(passed_ms=st.sampled_from([1, 900, 5_000, LOST_RESET_MS]))
    def time_passes(self, passed_ms: int) -> None:
        self.now_ms += passed_ms

    @rule()
    def wait_for_the_next_retry(self) -> None:
        state = self.machine.state
        dues = [row.due_at_ms for rows in state.retries.values() for row in rows.values()]
        times = [*dues, *(at for job in self.jobs for at in (job.deadline_at_ms, job.queue_deadline_at_ms) if at)]
        times += [drain.deadline_at_ms for drain in state.drains.values() if drain.deadline_at_ms]
        now_ms = max(self.now_ms, state.now_ms)
        next_ms = next_due_ms(state, now_ms)
        assert next_ms is None or next_ms > now_ms
        for at_ms in times:
            assert at_ms <= now_ms or (next_ms is not None and next_ms < at_ms + 16), "it would come late"
        self.now_ms = max(self.now_ms, next_ms or 0)

    @rule()
    def the_clock_steps_back(self) -> None:
        self.now_ms -= 300

    @rule(data=st.data(), places=plans)
    @precondition(lambda self: len(self.jobs) > 1)
    def all_in_one_entry(self, data: st.DataObject, places: tuple[Place, ...]) -> None:
        job, executor = pick(data, self.jobs), pick(data, self.alive)
        again = RegisterExecutor(executor.uid, executor.boot_id, executor.name, "h:1", executor.slots)
        self.propose(
            PlaceTasks(places), PauseJob(job.id), PlaceTasks(places), ResumeJob(job.id), CancelJob(job.id), again
        )
        self.propose(DeleteJob(job.id), PlaceTasks(places), PauseJob(job.id))

    # Restarting.

    @rule()
    def restart(self) -> None:
        """A master that starts from a snapshot goes on where it was, to the byte."""
        data = b"".join(self.machine.snapshot())
        self.snapshot = self.snapshot or (len(self.log), data)
        before = self.machine.state
        self.machine.restore(data)
        assert tables(self.machine.state) == tables(before)
        assert b"".join(self.machine.snapshot()) == data

    # What must hold.

    @invariant()
    def promises_hold(self) -> None:
        check(self.machine.state)
        self.dumb.agree(self.machine.state)

    @invariant()
    def jobs_move_as_the_table_says(self) -> None:
        state = self.machine.state
        stand = {job.uid: job_state(state, job) for job in self.jobs}
        for uid, before in self.stood.items():
            if uid in stand and stand[uid] is not before:
                # one rule may take a job two moves on
                assert any(stand[uid] in {step, *JOB_TRANSITIONS[step]} for step in JOB_TRANSITIONS[before])
                event(f"job: {before} to {stand[uid]}")
        gone = [self.stood[uid] for uid in self.stood if uid not in stand]
        assert all(before in JOB_TERMINAL or before is not JobState.CANCELING for before in gone)
        self.stood = stand

    @invariant()
    def a_mirror_that_is_told_of_changes_is_complete(self) -> None:
        state = self.machine.state
        while changed := state.changed_since(self.mirrored, 2):
            revisions = [record.mod_revision for record in changed]
            assert revisions == sorted(revisions)
            assert revisions[0] > self.mirrored
            for record in changed:
                if isinstance(record, Deleted):
                    self.mirror.pop(record.uid, None)
                else:
                    self.mirror[record.uid] = record
            self.mirrored = revisions[-1]
        assert self.mirror == {job.uid: job for job in self.jobs}

    def teardown(self) -> None:
        """A replica that reads the log, whole or after a snapshot, ends in the same bytes."""
        expected = b"".join(self.machine.snapshot())
        whole = Machine()
        for entry in self.log:
            whole.apply(entry)
        assert b"".join(whole.snapshot()) == expected
        if self.snapshot is not None:
            applied, data = self.snapshot
            later = Machine()
            later.restore(data)
            for entry in self.log[applied:]:
                later.apply(entry)
            assert b"".join(later.snapshot()) == expected


def tables(state: State) -> dict[str, Any]:
    """All that a snapshot must hold."""
    numbers = ("format", "revision", "now_ms", "wall_ms", "next_placement")
    of_jobs = ("jobs", "groups", "placements", "ended", "retries", "results", "deleted")
    others = ("executors", "drains", "projects", "schedules")
    metadata = ("events", "pruned", "persisted", "pruned_total", "restored_from", "restored_at_ms")
    return {name: getattr(state, name) for name in (*numbers, *of_jobs, *others, *metadata)}


def pick(data: st.DataObject, choices: Sequence[T]) -> T:
    return choices[data.draw(st.integers(0, len(choices) - 1))]


EXAMPLES = int(os.environ.get("TIFLOW_HYPOTHESIS_EXAMPLES", "0"))  #: 0: the same few on every run
#: mutants.py asks whether a test fails, not what the shortest way there is
PHASES = (Phase.generate,) if os.environ.get("TIFLOW_HYPOTHESIS_NO_SHRINK") else tuple(Phase)

TestMachine = MachineTest.TestCase
TestMachine.settings = settings(
    max_examples=EXAMPLES or 400,
    stateful_step_count=50,
    deadline=None,
    phases=PHASES,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
