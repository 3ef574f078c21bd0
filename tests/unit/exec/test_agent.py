"""The agent decides: what starts where, what is reported, and that nothing outlives the lease.

The last test drives it with events in any order against a model of an executor's slots.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from tiflow.exec.actions import Assignment, Kill, KillAll, Run, Skip, Terminate
from tiflow.exec.agent import Agent
from tiflow.exec.outbox import Report
from tiflow.sched.model import Call, Command, Framework, Python

PYTHON = Python("m:f")
COMMAND = Command(("true",))
MEMBER = Framework("fake", "worker")


def assignment(placement, stop, *, start=0, work=PYTHON, **fields):
    return Assignment(placement, "j", 1, "g", start, stop, 1, work, **fields)


def leased(slots=1, until=10.0):
    agent = Agent(slots)
    agent.grant(until, now=0.0)
    return agent


def reports(agent):
    found = []
    while agent.outbox.sendable:
        found += [(r.kind, r.placement, r.start, r.stop) for r in agent.outbox.take().reports]
    return found


def test_starts_nothing_without_a_lease():
    agent = Agent(1)

    assert agent.assign([assignment(1, 5)], now=0.0) == []
    assert agent.grant(2.0, now=0.5) == [Run(0, 1, assignment(1, 5), 0, 1, ())]


def test_a_member_runs_alone_in_its_slot_and_what_it_returned_is_its_result():
    agent = leased(slots=2)
    runs = agent.assign([assignment(1, 2, work=MEMBER)], now=0.0)
    assert [(run.slot, run.start, run.stop) for run in runs] == [(0, 0, 1), (1, 1, 2)]

    agent.command_ended(0, runs[0].number, 0, "", False, 5, now=1.0, result=b"r")
    agent.command_ended(1, runs[1].number, 0, "ValueError: x", True, 5, now=1.0)

    ended = [(r.kind, r.start, r.results, r.error, r.final) for r in agent.outbox.take().reports]
    assert ended == [("succeeded", 0, [b"r"], "", False), ("failed", 1, None, "ValueError: x", True)]


def test_a_member_is_told_why_it_is_to_end():
    agent = leased(slots=3)
    first, second, third = agent.assign([assignment(n, 1, work=MEMBER, grace_ms=100) for n in (1, 2, 3)], now=0.0)

    assert agent.revoke([1], now=1.0, why="paused") == [Skip(0, first.number), Terminate(0, "paused")]
    assert agent.revoke([1], now=1.0, why="canceled") == [], "it is told once"
    assert agent.revoke([2], now=1.0) == [Skip(1, second.number), Terminate(1, "canceled")]
    told = agent.drain(now=1.0)
    assert Terminate(2, "drained") in told
    assert [action for action in told if isinstance(action, Terminate)] == [Terminate(2, "drained")]
    assert agent.tick({}, now=1.1) == [Kill(0), Kill(1), Kill(2)]
    for slot, run in enumerate((first, second, third)):
        agent.command_ended(slot, run.number, -9, "killed by SIGKILL", False, 5, now=1.2)
    assert reports(agent) == [("canceled", 1, 0, 1), ("canceled", 2, 0, 1), ("released", 3, 0, 1)]


def test_a_function_that_runs_while_its_executor_is_drained_goes_on():
    agent = leased()
    (run,) = agent.assign([assignment(1, 1)], now=0.0)

    assert agent.drain(now=1.0) == [Skip(0, run.number)]


def test_an_acknowledgement_that_took_longer_than_the_lease_starts_nothing():
    agent = Agent(1)
    agent.assign([assignment(1, 5)], now=0.0)

    assert agent.grant(2.0, now=2.0) == []


def test_kills_everything_when_the_lease_runs_out_and_reports_nothing_of_it():
    agent = leased(until=3.0)
    agent.assign([assignment(1, 5)], now=0.1)

    assert agent.tick({}, now=2.9) == []
    assert agent.tick({}, now=3.0) == [KillAll()]
    assert agent.succeeded(0, 1, [b"x"], 5, now=3.1) == []
    assert agent.lapsed
    assert not agent.outbox
    assert agent.held() == []


def test_what_ends_after_the_lease_is_not_reported():
    agent = leased(until=3.0)
    agent.assign([assignment(1, 5)], now=0.1)

    assert agent.succeeded(0, 1, [b"x"], 5, now=3.0) == [KillAll()]
    assert not agent.outbox


def test_a_leader_that_has_not_noticed_the_end_of_an_incarnation_starts_nothing():
    agent = leased(until=3.0)
    agent.assign([assignment(1, 5)], now=0.1)
    agent.tick({}, now=3.0)
    agent.all_killed(now=3.1)

    assert agent.grant(8.0, now=3.2) == []  # both were on their way
    assert agent.assign([assignment(2, 5)], now=3.2) == []

    agent.register_anew()
    assert agent.held() == []
    assert agent.grant(9.0, now=3.3) == []


def test_batches_grow_as_the_tasks_turn_out_to_be_short():
    agent = leased()
    (run,) = agent.assign([assignment(1, 512)], now=0.0)
    sizes = []
    while run is not None:
        sizes.append(run.stop - run.start)
        agent.succeeded(0, run.number, [b"x"] * sizes[-1], 10 * sizes[-1], now=0.1)
        run = next(iter(agent.batch_ended(0, run.number, now=0.1)), None)

    assert sizes == [1, 8, 64, 256, 183]
    assert reports(agent) == [("succeeded", 1, 0, 512)]


def test_a_task_longer_than_a_batch_is_given_alone():
    agent = leased()
    (run,) = agent.assign([assignment(1, 512)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 30_000, now=0.1)

    (run,) = agent.batch_ended(0, run.number, now=0.1)

    assert (run.start, run.stop) == (1, 2)


def test_a_task_gets_its_own_item():
    agent = leased()
    items = msgpack.encode(["a", "b", "c"])

    (run,) = agent.assign([assignment(1, 12, start=9, items=items, left=b"\x06")], now=0.0)

    assert (run.start, [msgpack.decode(item) for item in run.items]) == (10, ["b"])


def test_a_repeated_assignment_starts_nothing_twice():
    agent = leased(slots=2)
    agent.assign([assignment(1, 1)], now=0.0)

    assert agent.assign([assignment(1, 1)], now=0.1) == []
    agent.succeeded(0, 1, [b"x"], 5, now=0.2)
    agent.batch_ended(0, 1, now=0.2)
    assert agent.assign([assignment(1, 1)], now=0.3) == []
    assert agent.held() == [1]


def test_a_crash_fails_only_the_task_that_ran():
    agent = leased()
    (run,) = agent.assign([assignment(1, 200)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 1, now=0.1)
    (run,) = agent.batch_ended(0, run.number, now=0.1)
    agent.succeeded(0, run.number, [b"x", b"x"], 2, now=0.2)

    (again,) = agent.worker_died(0, run.number, 3, "worker was killed by SIGSEGV", now=0.3)

    assert (again.start, again.stop) == (4, 9)
    assert reports(agent) == [("succeeded", 1, 0, 3), ("failed", 1, 3, 4)]


def test_a_task_that_took_its_worker_down_has_run_for_a_while():
    """So that it may count as healthy until then (`backoff-reset`)."""
    agent = leased()
    (run,) = agent.assign([assignment(1, 3)], now=0.0)
    agent.tick({0: (run.number, 0, 0.5)}, now=1.0)

    agent.worker_died(0, run.number, 0, "worker was killed by SIGSEGV", now=3.5)

    failed = [report for report in agent.outbox.take().reports if report.kind == "failed"]
    assert [report.run_us for report in failed] == [3_000_000]


def test_workers_that_die_before_they_start_a_task_do_not_do_so_for_ever():
    agent = leased()
    (run,) = agent.assign([assignment(1, 1)], now=0.0)
    deaths = 0
    while run is not None:
        deaths += 1
        run = next(iter(agent.worker_died(0, run.number, None, "worker ended", now=0.1)), None)

    assert deaths == 3
    assert reports(agent) == [("failed", 1, 0, 1)]


def test_only_what_was_seen_to_run_for_a_while_is_reported_as_started():
    agent = leased()
    (run,) = agent.assign([assignment(1, 1)], now=0.0)

    agent.tick({}, now=0.06)  # its worker is not up yet
    agent.tick({0: (run.number, 0, 0.1)}, now=0.11)
    agent.tick({0: (run.number, 0, 0.1)}, now=0.14)
    assert reports(agent) == []
    agent.tick({0: (run.number, 0, 0.1)}, now=0.151)
    agent.tick({0: (run.number, 0, 0.1)}, now=0.3)
    assert reports(agent) == [("started", 1, 0, 1)]


def test_a_function_that_takes_too_long_is_killed_and_the_rest_runs_on():
    agent = leased()
    (run,) = agent.assign([assignment(1, 200, timeout_ms=500)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 1, now=0.1)
    (run,) = agent.batch_ended(0, run.number, now=0.1)

    assert agent.tick({0: (run.number, 1, 0.1)}, now=0.6) == [Kill(0)]
    (again,) = agent.worker_died(0, run.number, 1, "worker was killed by SIGKILL", now=0.7)

    assert (again.start, again.stop) == (2, 9)
    failed = next(r for r in agent.outbox.take().reports if r.kind == "failed")
    assert failed.error == "timed out after 0.5 s"


def test_a_worker_that_is_getting_ready_takes_none_of_its_tasks_time():
    agent = leased()
    (run,) = agent.assign([assignment(1, 1, timeout_ms=500)], now=0.0)

    assert agent.tick({}, now=0.6) == []
    assert 0.6 < agent.next_tick() < 0.7  # the leader is to know when it has started
    assert agent.tick({0: (run.number, 0, 0.62)}, now=0.65) == []
    assert agent.tick({0: (run.number, 0, 0.62)}, now=1.11) == []
    assert agent.tick({0: (run.number, 0, 0.62)}, now=1.12) == [Kill(0)]


def test_a_function_is_asked_to_end_before_it_is_killed():
    agent = leased()
    (run,) = agent.assign([assignment(1, 200, timeout_ms=500, grace_ms=1_000)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 1, now=0.1)
    (run,) = agent.batch_ended(0, run.number, now=0.1)

    assert agent.tick({0: (run.number, 1, 0.1)}, now=0.6) == [Skip(0, run.number), Terminate(0, "timeout")]
    assert agent.stopped(0, run.number, 500_000, now=0.7) == []
    (again,) = agent.worker_died(0, run.number, 1, "worker ended with exit code 0", now=0.7)

    assert (again.start, again.stop) == (2, 9)
    assert [r for r in reports(agent) if r[0] == "failed"] == [("failed", 1, 1, 2)]


def test_a_command_is_asked_to_end_before_it_is_killed():
    agent = leased()
    agent.assign([assignment(1, 1, work=COMMAND, grace_ms=1_000)], now=0.0)

    assert agent.revoke([1], now=1.0) == [Skip(0, 1), Terminate(0, "canceled")]
    assert agent.tick({}, now=1.9) == []
    assert agent.tick({}, now=2.0) == [Kill(0)]
    agent.command_ended(0, 1, -9, "killed by SIGKILL", False, 0, now=2.1)
    assert reports(agent) == [("canceled", 1, 0, 1)]


def test_a_revoked_placement_does_not_go_on_after_a_timeout():
    agent = leased()
    (run,) = agent.assign([assignment(1, 200, timeout_ms=500)], now=0.0)
    assert agent.tick({0: (run.number, 0, 0.0)}, now=0.5) == [Kill(0)]
    agent.revoke([1], now=0.6)

    assert agent.worker_died(0, run.number, 0, "killed", now=0.7) == []
    assert reports(agent) == [("canceled", 1, 1, 200), ("failed", 1, 0, 1)]


def test_what_a_revoked_batch_finished_is_not_canceled():
    agent = leased()
    (run,) = agent.assign([assignment(1, 200)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 1, now=0.1)
    (run,) = agent.batch_ended(0, run.number, now=0.1)
    agent.succeeded(0, run.number, [b"x"] * 3, 1, now=0.1)

    agent.revoke([1], now=0.2)
    agent.batch_ended(0, run.number, now=0.3)

    assert reports(agent) == [("succeeded", 1, 0, 4), ("canceled", 1, 9, 200), ("canceled", 1, 4, 9)]


def test_single_tasks_are_withdrawn_and_the_others_of_their_batch_run():
    agent = leased()
    (run,) = agent.assign([assignment(1, 200, grace_ms=100)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 1, now=0.1)
    (run,) = agent.batch_ended(0, run.number, now=0.1)
    assert (run.start, run.stop) == (1, 9)

    assert agent.withdraw(1, [0, 4, 20, 21, 300], now=0.2) == [Skip(0, run.number)], "4 is to come back"
    agent.succeeded(0, run.number, [b"x"] * 2, 1, now=0.2)
    (run,) = agent.batch_ended(0, run.number, now=0.3)

    assert (run.start, run.stop) == (3, 4)
    assert reports(agent) == [
        ("succeeded", 1, 0, 3),
        ("canceled", 1, 20, 22),
        ("canceled", 1, 4, 5),
    ]


def test_a_task_that_runs_is_stopped_when_it_is_withdrawn_and_its_neighbours_run_on():
    agent = leased(slots=2)
    first, second = agent.assign([assignment(1, 2, grace_ms=100)], now=0.0)

    assert agent.withdraw(1, [0], now=0.2) == [Skip(0, first.number), Terminate(0, "canceled")]
    assert agent.withdraw(1, [0], now=0.2) == [], "once is enough"
    assert agent.withdraw(7, [0], now=0.2) == [], "of what is not held"
    agent.stopped(0, first.number, 10, now=0.25)
    agent.worker_died(0, first.number, 1, "", now=0.25)
    agent.succeeded(1, second.number, [b"x"], 1, now=0.3)

    assert reports(agent) == [("canceled", 1, 0, 1), ("succeeded", 1, 1, 2)]


def test_calls_of_one_function_have_one_pace_whatever_their_group():
    agent = leased()
    work = Call((b"f",))
    (run,) = agent.assign([assignment(1, 1, work=work)], now=0.0)
    agent.succeeded(0, run.number, [b"x"], 10, now=0.1)
    agent.batch_ended(0, run.number, now=0.1)

    other = Assignment(2, "j", 1, "g2", 0, 20, 1, work)
    (run,) = agent.assign([other], now=0.2)

    assert run.stop - run.start == 8


def test_drain_hands_back_what_has_not_started():
    agent = leased()
    (run,) = agent.assign([assignment(1, 5)], now=0.0)

    assert agent.drain(now=0.1) == [Skip(0, run.number)]
    agent.succeeded(0, run.number, [b"x"], 1, now=0.2)
    assert agent.batch_ended(0, run.number, now=0.2) == []
    assert reports(agent) == [("released", 1, 1, 5), ("succeeded", 1, 0, 1)]


def test_a_batch_never_changes_and_is_kept_until_it_is_acknowledged():
    agent = leased(slots=2)
    agent.assign([assignment(1, 1), assignment(2, 1)], now=0.0)
    agent.succeeded(0, 1, [b"x"], 5, now=0.1)
    first = agent.outbox.take()
    agent.succeeded(1, 2, [b"y"], 5, now=0.1)
    second = agent.outbox.take()

    assert list(agent.outbox.in_flight.values()) == [first, second]
    agent.acknowledge(first.seq)
    assert list(agent.outbox.in_flight.values()) == [second]


def test_an_agent_that_is_ill_hands_back_what_waits_and_starts_again_when_it_is_well():
    agent = leased()
    agent.assign([assignment(1, 3)], now=0)
    run_slot, number = 0, 1

    assert agent.feel("disk full", now=0.1) == [Skip(0, number)]
    agent.succeeded(run_slot, number, [b"x"], 10, now=0.2)
    assert agent.batch_ended(run_slot, number, now=0.2) == []
    assert agent.assign([assignment(2, 1)], now=0.3) == []
    assert {(r.placement, r.start, r.stop, r.kind) for r in agent.outbox.take().reports} == {
        (1, 0, 1, "succeeded"), (1, 1, 3, "released"), (2, 0, 1, "released"),
    }  # fmt: skip

    agent.feel("", now=0.4)
    (run,) = agent.assign([assignment(3, 1)], now=0.4)
    assert run.assignment.placement == 3


# ---- any order


@dataclass
class World:
    """What the agent's actions do: slots that run batches, as the runner and the guardian would."""

    agent: Agent
    slots: int
    now: float = 0.0
    running: dict[int, Run] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    killed: set[int] = field(default_factory=set)
    told: set[int] = field(default_factory=set)  #: batches whose task was told to end
    all_dying: bool = False
    reported: dict[tuple[int, int, int], str] = field(default_factory=dict)
    incarnation: int = 0
    next_placement: int = 1
    assigned: dict[int, Assignment] = field(default_factory=dict)
    started_once: set[tuple[int, int, int]] = field(default_factory=set)

    def do(self, actions):
        for action in actions:
            match action:
                case Run(slot, _, _, start, stop, _):
                    assert self.now < self.agent.lease_until, "started without a lease"
                    assert not self.agent.lapsed, "started for an incarnation that is over"
                    assert not self.agent.unhealthy, "started without room"
                    assert slot not in self.running, "two batches in a slot"
                    assert not self.all_dying
                    assert stop > start
                    self.running[slot] = action
                    self.progress[slot] = start
                case Skip(slot, number):
                    self.skipped.add(number)
                case Kill(slot):
                    self.killed.add(slot)
                case KillAll():
                    self.all_dying = True
                case Terminate(slot):
                    if slot in self.running:
                        self.told.add(self.running[slot].number)
        assert len(self.running) <= self.slots
        # the guardian holds the same deadline
        if self.now >= self.agent.lease_until and not self.all_dying:
            assert self.agent.busy_slots == 0

    def take(self):
        while self.agent.outbox.sendable:
            batch = self.agent.outbox.take()
            for r in batch.reports:
                self.check(r)

    def check(self, r: Report):
        if r.kind == "started":
            return
        for index in range(r.start, r.stop):
            key = (self.incarnation, r.placement, index)
            assert key not in self.reported, f"{key} ended twice"
            self.reported[key] = r.kind
        if r.results is not None:
            assert r.kind == "succeeded"
            assert len(r.results) == r.stop - r.start


KINDS = ("assign", "grant", "grant", "succeed", "succeed", "fail", "end", "die", "time", "repeat", "late", "register")
KINDS += ("revoke", "forget", "ack", "take", "expire", "killed", "drain", "stop", "ill", "well", "withdraw")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 3),
        st.integers(0, 40),
    ),
    min_size=20,
    max_size=120,
)


@settings(max_examples=400, deadline=None)
@given(EVENTS, st.integers(1, 3))
def test_in_any_order_nothing_outlives_the_lease_and_each_end_is_reported_once(events, slots):
    agent = Agent(slots)
    world = World(agent, slots)
    world.do(agent.grant(1.0, 0.0))
    for kind, slot, amount in events:
        slot %= slots
        run = world.running.get(slot)
        world.now += 0.01
        now = world.now
        match kind:
            case "assign":
                work = COMMAND if amount % 5 == 0 else PYTHON
                grace_ms = (amount % 2) * 100
                new = assignment(
                    world.next_placement, 1 + amount, work=work, timeout_ms=(amount % 3) * 200, grace_ms=grace_ms
                )
                world.assigned[world.next_placement] = new
                world.next_placement += 1
                world.do(agent.assign([new], now))
            case "repeat" if world.assigned:
                known = [p for p in agent.held() if p in world.assigned]
                world.do(agent.assign([world.assigned[p] for p in known], now))
            case "grant":
                world.do(agent.grant(now - 0.05 + amount / 20, now))
            case "succeed" if run and isinstance(run.assignment.work, Python):
                count = min(amount, run.stop - world.progress[slot])
                world.progress[slot] += count
                world.do(agent.succeeded(slot, run.number, [b"x"] * count, count * 10, now))
            case "fail" if run and isinstance(run.assignment.work, Python) and world.progress[slot] < run.stop:
                world.progress[slot] += 1
                world.do(agent.failed(slot, run.number, "E", False, 10, now))
            case "end" if run:
                del world.running[slot]
                if isinstance(run.assignment.work, Command):
                    world.do(agent.command_ended(slot, run.number, amount % 2, "E" * (amount % 2), False, 1, now))
                elif world.progress[slot] == run.stop or run.number in world.skipped:
                    world.do(agent.batch_ended(slot, run.number, now))
                else:
                    world.running[slot] = run
            case "die" if run:
                del world.running[slot]
                if isinstance(run.assignment.work, Command):
                    world.do(agent.command_ended(slot, run.number, -9, "killed", False, 1, now))
                else:
                    at = world.progress[slot]
                    world.do(
                        agent.worker_died(slot, run.number, at if amount % 2 and at < run.stop else None, "E", now)
                    )
            case "stop" if (
                run
                and run.number in world.told
                and isinstance(run.assignment.work, Python)
                and world.progress[slot] < run.stop
            ):
                del world.running[slot]
                world.do(agent.stopped(slot, run.number, 10, now))
                if not world.all_dying:
                    world.do(agent.worker_died(slot, run.number, world.progress[slot], "E", now))
            case "time":
                world.now += amount / 50
                positions = {s: (r.number, world.progress[s], now) for s, r in world.running.items()}
                world.do(agent.tick(positions, world.now))
            case "revoke":
                world.do(agent.revoke(list(world.assigned)[-1 - amount % 3 :], now))
            case "withdraw" if world.assigned:
                placement = list(world.assigned)[-1 - amount % min(3, len(world.assigned))]
                world.do(agent.withdraw(placement, range(amount % 7, amount), now))
            case "forget":
                known = agent.held()[:1]
                world.do(agent.forget(known, now))
            case "ack":
                agent.acknowledge(max(agent.outbox.in_flight, default=0))
            case "take":
                world.take()
            case "ill" if amount < 15:
                world.do(agent.feel("disk full", now))
            case "well":
                world.do(agent.feel("", now))
            case "drain" if amount < 5:
                world.do(agent.drain(now) if amount else agent.release(now))
            case "expire":
                world.do(agent.expire())
            case "killed" if world.all_dying:
                world.all_dying = False
                world.running.clear()
                world.do(agent.all_killed(now))
            case "register" if agent.lapsed and not world.all_dying:
                assert not world.running, "registering says that nothing runs"
                agent.register_anew()
                world.incarnation += 1
            case "late" if run:
                world.do(agent.succeeded(slot, run.number - 1, [b"x"], 1, now))  # of an earlier batch
        at = agent.next_tick()
        assert at is None or at <= agent.lease_until
    world.take()
    # liveness: with a lease and all slots at work, everything that is held ends
    world.now += 1
    if world.all_dying:
        world.all_dying = False
        world.running.clear()
        world.do(agent.all_killed(world.now))
    if agent.lapsed:
        agent.register_anew()
        world.incarnation += 1
    if agent.draining:
        world.do(agent.release(world.now))
    world.do(agent.grant(world.now + 1e6, world.now))
    if world.all_dying:
        world.all_dying = False
        world.running.clear()
        world.do(agent.all_killed(world.now))
        agent.register_anew()
        world.incarnation += 1
        world.do(agent.grant(world.now + 1e6, world.now))
    while world.running:
        for slot, run in list(world.running.items()):
            del world.running[slot]
            if isinstance(run.assignment.work, Command):
                world.do(agent.command_ended(slot, run.number, 0, "", False, 1, world.now))
            else:
                world.do(agent.succeeded(slot, run.number, [b"x"] * (run.stop - world.progress[slot]), 1, world.now))
                world.do(agent.batch_ended(slot, run.number, world.now))
        world.take()
        agent.acknowledge(1 << 60)
    for _ in range(3):  # two batches were in flight, and there may be one more behind them
        world.take()
        agent.acknowledge(1 << 60)
    assert agent.held() == []
    assert agent.busy_slots == 0
