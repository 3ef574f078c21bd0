"""Logs that an older tiflow wrote lead to the states that it had.

`sched-format-N.log` holds entries, and `sched-format-N.snapshot` what that release made of them. The states are
compared, not the bytes on disk: a record may have got a field with a default since. A pair is never changed once
its release is out; `python tests/golden/test_sched_log.py --rewrite` writes the pair of the format in development.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from msgspec import msgpack

from tiflow.sched.checks import check
from tiflow.sched.commands import (
    FORMAT,
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
    PlaceTasks,
    PutSchedule,
    RegisterExecutor,
    RerunLost,
    RestoreJob,
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
from tiflow.sched.duties import due
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    After,
    Call,
    Command,
    Framework,
    GroupSpec,
    JobSpec,
    Placement,
    PlacementPolicy,
    Python,
    RetryPolicy,
    Selector,
    job_state,
)
from tiflow.sched.plan import plan
from tiflow.sched.prune import prunable

HERE = Path(__file__).parent


@pytest.mark.parametrize("log", sorted(HERE.glob("sched-format-*.log")), ids=lambda path: path.stem)
def test_an_old_log_leads_to_the_state_that_it_led_to(log: Path) -> None:
    replayed, restored = Machine(), Machine()

    for entry in entries(log.read_bytes()):
        replayed.apply(entry)
    restored.restore(log.with_suffix(".snapshot").read_bytes())

    check(replayed.state)
    assert replayed.state.revision > 100
    assert b"".join(replayed.snapshot()) == b"".join(restored.snapshot())


def test_there_is_a_log_of_each_format_that_was_released_and_of_the_one_in_development() -> None:
    assert [path.name for path in sorted(HERE.glob("*.log"))] == [
        f"sched-format-{format}.log" for format in (1, 3, 4, FORMAT)
    ]


def entries(data: bytes) -> Iterator[bytes]:
    while data:
        stop = 4 + int.from_bytes(data[:4], "big")
        yield data[4:stop]
        data = data[stop:]


def rewrite() -> None:
    """Record a cluster that sees everything: failures, losses, cancels, pauses, timeouts, lost results, pools, job
    masters, jobs that leave."""
    recorder = Recorder()
    recorder.run()
    print(f"{recorder.machine.state.revision} commands; {recorder.seen}")
    stem = f"sched-format-{recorder.machine.state.format}"
    (HERE / f"{stem}.log").write_bytes(b"".join(len(entry).to_bytes(4, "big") + entry for entry in recorder.log))
    (HERE / f"{stem}.snapshot").write_bytes(b"".join(recorder.machine.snapshot()))


class Recorder:
    def __init__(self) -> None:
        self.machine = Machine()
        self.log: list[bytes] = []
        self.now_ms = 1_700_000_000_000
        self.random = Random(1)
        self.seen: Counter[str] = Counter()  #: states and failures of jobs: what this log covers

    def propose(self, *commands: AnyCommand) -> None:
        self.now_ms += 250
        entry = encode_entry(Entry(self.now_ms, self.now_ms + 7, commands))
        self.log.append(entry)
        self.machine.apply(entry)
        for job in self.machine.state.jobs.values():
            self.seen[job_state(job, self.machine.state.groups_of(job))] += 1
            self.seen[job.failure] += 1

    def run(self) -> None:
        self.propose(SetFormat(FORMAT))
        for number in range(4):
            self.register(number, boot=0)
        self.propose(SetProject("team", 90, 5_000, 50, 3), SetProject("gone"), DeleteProject("gone"))
        for name in ("tick", "tock", "gone"):
            self.propose(self.schedule(name))
        self.propose(DeleteSchedule("gone"))
        for number in range(12):
            self.propose(self.submission(number), self.submission(number))
        for turn in range(60):
            self.turn(turn)
            self.pool(turn)
            self.members(turn)
            if turn % 12 == 11:
                self.leave()
        for number in range(12, 20):  # so that the state has some of everything
            self.propose(self.submission(number))
        for executor in tuple(self.machine.state.executors.values()):
            self.propose(UndrainExecutor(executor.name))
            self.register(int(executor.uid[-1]), boot=100)
        for turn in (60, 64, 68):
            self.members(turn)
            self.turn(turn)
        self.propose(DrainExecutor("e1", 60_000), RestoreJob("lost", 5))

    def register(self, number: int, boot: int) -> None:
        labels = {"gpu": "a100"} if number == 0 else {}
        self.propose(
            RegisterExecutor(
                f"uid-{number}", f"boot-{boot}", f"e{number}", f"h{number}:1", 2, labels, "0.1", {"gpu": 1, "cpu": 90}
            )
        )

    def submission(self, number: int) -> SubmitJob:
        limited = number % 3 == 2
        retry = RetryPolicy(
            attempts_max=9 if number % 4 == 3 else 1 + number % 3,
            backoff_ms=100,
            reset_ms=500 * limited,
            final_exit_codes=(7,) if limited else (),
        )
        selectors = (Selector("gpu", "exists"),) if number % 4 == 0 else ()
        items = (msgpack.encode(list(range(256))), msgpack.encode(list(range(44)))) if number % 2 else ()
        groups = (
            GroupSpec("map", Python("m:f", ("/p",)), 300, items, selectors, retry),
            GroupSpec(
                "reduce",
                Command(("sh", "-c", "{index}"), {"A": "b"}, "/"),
                5,
                retry=retry,
                timeout_ms=9,
                resources={"cpu": 50, "gpu": 1} if limited else {},
                placement=PlacementPolicy("binpack", "gpu", 3) if number % 4 == 1 else PlacementPolicy(),
            ),
            GroupSpec("last", Command(("true",)), 2, after=(After("reduce"), After("map", "completion"))),
        )[: 2 + (number % 4 != 1)]
        spec = JobSpec(
            f"job-{number}",
            groups,
            50 + number % 2,
            {"team": "x"},
            retries_max=40 if limited else None,
            max_failures=9 * (number % 4 == 1),
            job_timeout_ms=50_000 * limited,
            queue_timeout_ms=7_000 * (number == 6),
            project="team" if number % 3 == 0 else "default",
        )
        return SubmitJob(spec, f"token-{number}", self.now_ms, "ada@analytical" * (number % 5 > 0))

    def schedule(self, name: str) -> PutSchedule:
        overlap = "replace" if name == "tock" else "skip"
        spec = JobSpec("", (GroupSpec("g", Command(("true",)), 3),), project="team")
        next_ms = self.now_ms + 5_000
        return PutSchedule(name, spec, "*/5 * * * * *", "UTC", f"token-{name}", overlap, "run-once", 2, next_ms)

    def fire(self, turn: int) -> None:
        for at_ms, name in tuple(self.machine.state.fires):
            if at_ms <= self.now_ms:
                uid, missed = self.machine.state.schedules[name].uid, turn % 9 == 0
                job_id = "" if missed else f"{name}-{at_ms}"
                fire = FireSchedule(name, uid, at_ms, at_ms, job_id, self.now_ms + 5_000)
                self.propose(fire, fire)
        if turn % 10 == 4:
            trigger = TriggerSchedule("tick", f"t{turn}", f"t{turn}", self.now_ms, "ada@analytical")
            self.propose(PauseSchedule("tick", True, 0), trigger)
        if turn % 10 == 7:
            self.propose(PauseSchedule("tick", False, self.now_ms + 1_000))

    def turn(self, turn: int) -> None:
        self.fire(turn)
        state, random = self.machine.state, self.random
        targets = {executor.uid: 150 for executor in state.executors.values()}
        self.propose(PlaceTasks(tuple(plan(state, self.now_ms, targets))))
        for placement in tuple(state.placements.values()):
            if random.random() < 0.6:
                self.propose(self.events(placement))
        executor = random.choice(list(state.executors.values()))
        if turn % 7 == 3:
            self.propose(ExpireExecutor(executor.uid, executor.incarnation, "test"))
        if turn % 7 == 5:
            self.register(int(executor.uid[-1]), boot=turn)
        if turn % 8 == 2:
            self.propose(DrainExecutor(executor.name, (None, 700)[turn % 16 // 8]), DrainExecutor("nobody"))
        if turn % 8 == 6:
            self.propose(*(UndrainExecutor(name) for name in state.drains))
        if turn % 15 == 9 and state.jobs:
            alive = [job.id for job in state.jobs.values() if not job.ended_at_ms and not job.closed]
            self.propose(CancelJob(random.choice(alive or list(state.jobs)), by="löwe"))
        if turn % 4 == 2 and state.jobs:
            self.propose(DeleteJob(random.choice(list(state.jobs))))
        if turn % 6 == 1 and state.jobs:
            self.propose(PauseJob(random.choice(list(state.jobs)), by="ada@analytical"))
        if turn % 6 == 5:
            self.propose(*(ResumeJob(job.id, job.uid, "löwe") for job in state.jobs.values() if job.paused))
        late = due(state, (), self.now_ms)
        self.propose(*late, *(ExpireJob(command.uid) for command in late if isinstance(command, ExpireJob)))
        lost = [key for key, row in state.results.items() if row.outcome == "succeeded"]
        if turn % 5 == 4 and lost:
            uid, row = random.choice(lost)
            self.propose(RerunLost(uid, row, state.results[uid, row].start))

    def pool(self, turn: int) -> None:
        """Groups come, are withdrawn in part, and go; the pool is sealed, or its client is gone."""
        if turn % 20 == 0:
            spec = JobSpec(f"pool-{turn}", (), open=True, client_ttl_ms=9_000, on_lost_result="fail")
            self.propose(SubmitJob(spec, f"token-{spec.id}", self.now_ms))
        job = self.machine.state.jobs.get(f"pool-{turn // 20 * 20}")
        if job is None:
            return
        items = (msgpack.encode([b"x"] * 5),)
        group = GroupSpec(f"call-{turn}", Call((b"f",), ("/p",), "3.11", "3"), 5, items, retry=RetryPolicy(1))
        old = tuple(name for name in self.machine.state.group_names.get(job.uid, ()))
        add = AddGroup(job.uid, job.added + 1, group, old[:2])
        self.propose(add, add)
        if turn % 3 == 1:
            self.propose(
                CancelTasks(job.uid, group.name, 1, 3), CancelTasks(job.uid, old[0] if old else "", 0, 9, True)
            )
        if turn % 20 == 19:
            self.propose(CloseGroups(job.uid, "its client is gone" * (turn % 40 == 39)))

    def members(self, turn: int) -> None:
        """Job masters start and stop workers; earlier attempts, and later ones, say so in vain."""
        if turn % 4 == 0:
            work = Framework("copy", "", msgpack.encode({"parts": 3}), ("/p",))
            master = GroupSpec("master", work, retry=RetryPolicy(2, backoff_ms=100))
            spec = JobSpec(f"copy-{turn}", (master,), open=True, max_failures=4 * (turn % 8 == 0))
            self.propose(SubmitJob(spec, f"token-{spec.id}", self.now_ms))
        for row in tuple(self.machine.state.placements.values()):
            if row.group != "master":
                continue
            for count, name in enumerate(("one", f"many-{turn % 3}"), start=1):
                items = (msgpack.encode([{"part": part} for part in range(count)]),)
                spec = GroupSpec(
                    name, Framework("copy", "worker"), count, items, retry=RetryPolicy(2, backoff_ms=100)
                )
                start = StartWorkers(row.uid, row.attempt, spec)
                self.propose(start, start, StartWorkers(row.uid, row.attempt - 1, spec))
            stop = StopWorkers(row.uid, row.attempt, f"many-{(turn + 1) % 3}", turn % 2, 2, forget=turn % 4 != 1)
            self.propose(stop, stop, StopWorkers(row.uid, row.attempt + 1, "one", 0, 1))

    def leave(self) -> None:
        """What ended a while ago is in the database alone from now on."""
        state = self.machine.state
        prune = prunable(state, state.revision - 20, self.now_ms, 5_000)
        if prune is not None:
            self.propose(prune, prune)

    def events(self, placement: Placement) -> TaskEvents:
        middle = self.random.randint(placement.start, placement.stop)
        kinds = self.random.choices(("succeeded", "failed", "released", "canceled"), (12, 3, 1, 1), k=2)
        events = [TaskEvent(placement.id, placement.start, placement.stop, "started")]
        for kind, start, stop in zip(kinds, (placement.start, middle), (middle, placement.stop), strict=True):
            results = msgpack.encode([self.random.choice((b"r", [9_999, b"sha"]))] * (stop - start))
            if start < stop:
                succeeded = kind == "succeeded"
                text = "" if succeeded else "it was so"
                code, run_ms = self.random.choice(((1, 0), (1, 900), (7, 0)))
                results = results if succeeded else b""
                events.append(TaskEvent(placement.id, start, stop, kind, results, text, code, run_ms=run_ms))
        return TaskEvents(placement.executor, placement.incarnation, tuple(events))


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        sys.exit(__doc__)
    rewrite()
