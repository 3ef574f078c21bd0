"""Any commands in any order: the promises hold, and the slow judge in `dumb` agrees on every task.

Rules come in pairs: what a healthy cluster says, and its stale, doubled or dishonest form. Arguments are drawn from
the living state, for random ones hit nothing: see TESTING.md 4.2. `python tests/unit/mutants.py` measures the net.
"""

import os
from typing import Any

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    invariant,
    multiple,
    precondition,
    rule,
)
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.machine_base import KINDS, pick
from tests.unit.sched.machine_rules import Rules
from tiflow.sched.checks import check
from tiflow.sched.commands import (
    CancelJob,
    DeleteJob,
    PauseJob,
    Place,
    PlaceTasks,
    RegisterExecutor,
    RerunLost,
    ResumeJob,
    TaskEvent,
    TaskEvents,
)
from tiflow.sched.duties import next_due_ms
from tiflow.sched.explain import Explanation, explain
from tiflow.sched.looks import Looks
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    JOB_TERMINAL,
    JOB_TRANSITIONS,
    LOST_RESET_MS,
    Deleted,
    JobState,
)
from tiflow.sched.plan import plan
from tiflow.sched.state import State
from tiflow.sched.views import job_state


class MachineTest(Rules):
    plans = Bundle("plans")
    said = Bundle("said")  #: events that executors have sent

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
