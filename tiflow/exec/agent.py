"""What an executor does next, as a pure state machine: each method takes what happened and returns what to do.

The leader assigns placements (ranges of tasks of one group); the agent cuts them into batches for its slots and
reports how they end. The lease is the other half of the bargain: an agent that has not heard from the leader for a
TTL stops its tasks, so that the leader may start them elsewhere a little later.

    waiting ──fill──▶ in a slot ──succeeded, failed──▶ reported ──acknowledged──▶ forgotten
       │                  └──skipped, worker died──▶ waiting again (it had not started)
       └──revoked──▶ canceled        └──drained──▶ released

Invariants: nothing is in a slot once the lease has run out; at most `slots` batches run; each task of a placement
is reported as ended once.

`now` is in seconds of a clock that only moves forward, and counts the time of a suspended machine.

Source: Gray & Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
consistency" (1989).
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

from msgspec import Raw, Struct, msgpack

from tiflow.exec.actions import Action, Assignment, Kill, KillAll, Run, Skip, Terminate
from tiflow.exec.outbox import Outbox, Result, Used
from tiflow.exec.pace import Key, Paces
from tiflow.sched.model import Call, Command, Framework

STARTED_AFTER_S = 0.05  #: a task that runs this long is reported as started; a shorter one only as ended
BLAMELESS_DEATHS_MAX = 3  #: of workers before the first task of a batch started; then that task fails


class _Held(Struct):
    assignment: Assignment
    items: tuple[Raw, ...]
    waiting: deque[tuple[int, int]]  #: ranges that are in no slot, ascending
    ending: str = ""  #: canceled, released or forgotten: nothing of it starts any more; empty: it goes on
    why: str = ""  #: what a member is told of that: canceled, paused or drained
    withdrawn: frozenset[int] = frozenset()  #: tasks that are canceled, while the others go on


class _Busy(Struct):
    """A batch in a slot."""

    number: int
    held: _Held
    start: int
    next: int  #: the first task of which no end is known
    stop: int
    current: int  #: the task that runs, as far as is known
    since: float  #: when it started
    look_at: float  #: when to look whether it runs for so long that it is to be reported as started
    seen: bool = False  #: whether `current` was seen to run; else it follows from the ends before it
    announced: int = -1  #: the task that was reported as started
    reason: str = ""  #: why it is being stopped: timeout, or the `ending` of its placement; empty: it is not
    kill_at: float | None = None
    run_us: int = 0  #: of the tasks that ended

    @property
    def timeout_s(self) -> float:
        return self.held.assignment.timeout_ms / 1_000


class Agent:
    def __init__(self, slots: int) -> None:
        self.outbox = Outbox()
        self.lease_until = float("-inf")  #: nothing runs from then on
        self.lapsed = False  #: the incarnation is over: register anew
        self.draining = False
        self.unhealthy = ""  #: why nothing may be started now; empty: it may
        self._killing = False  #: KillAll was asked for and is not done
        self._busy: list[_Busy | None] = [None] * slots
        self._held: dict[int, _Held] = {}
        self._paces = Paces()
        self._deaths: dict[int, int] = {}  #: placement → workers that died before a task started
        self._number = 0

    # ---- what the leader says

    def grant(self, until: float, now: float) -> list[Action]:
        """The lease runs until `until`: a TTL from when the acknowledged heartbeat was sent."""
        actions = self._check_lease(now)
        if not (self._killing or self.lapsed):  # of an incarnation that is over: nothing starts under it any more
            self.lease_until = max(self.lease_until, until)
        return actions + self._fill(now)

    def assign(self, assignments: Iterable[Assignment], now: float) -> list[Action]:
        """Take placements over. One that is known already is a repeat."""
        actions = self._check_lease(now)
        if self.lapsed:
            return actions
        reported = self.outbox.placements()
        for assignment in assignments:
            if assignment.placement not in self._held and assignment.placement not in reported:
                items = msgpack.decode(assignment.items, type=tuple[Raw, ...]) if assignment.items else ()
                waiting = deque(_left(assignment))
                if waiting:
                    held = self._held[assignment.placement] = _Held(assignment, items, waiting)
                    if self.draining or self.unhealthy:  # it crossed with our word that we take no more
                        self._end_waiting(held, "released")
        return actions + self._fill(now)

    def revoke(self, placements: Iterable[int], now: float, why: str = "canceled") -> list[Action]:
        """Cancel what has not started, stop what runs. `why`: canceled, paused or drained, for a member."""
        actions = self._check_lease(now)
        for placement in placements:
            held = self._held.get(placement)
            if held is not None:
                held.ending, held.why = held.ending or "canceled", held.why or why
                self._end_waiting(held, "canceled")
                actions += self._stop(held, held.assignment.grace_ms / 1_000, now)
        return actions + self._fill(now)

    def withdraw(self, placement: int, indexes: Iterable[int], now: float) -> list[Action]:
        """Cancel these tasks of a placement, and let the others go on. A task that happens to run in the place of one
        that is to be stopped is handed back."""
        actions = self._check_lease(now)
        held = self._held.get(placement)
        if held is None:
            return actions + self._fill(now)
        held.withdrawn |= frozenset(indexes)
        self._sift(held)
        grace_s = held.assignment.grace_ms / 1_000
        for slot, busy in enumerate(self._busy):
            if busy is None or busy.held is not held or held.withdrawn.isdisjoint(range(busy.next, busy.stop)):
                continue
            if busy.current in held.withdrawn:
                actions += self._stop_slot(slot, busy, "canceled", grace_s, now)
            else:
                actions.append(Skip(slot, busy.number))  # what it has not started comes back, and is sifted
        return actions + self._fill(now)

    def forget(self, placements: Sequence[int], now: float) -> list[Action]:
        """Kill and forget what the leader does not know; nothing more is reported of it."""
        actions = self._check_lease(now)
        self.outbox.forget(placements)
        for placement in placements:
            held = self._held.pop(placement, None)
            if held is not None:
                held.ending = "forgotten"
                held.waiting.clear()
                actions += self._stop(held, 0, now)
        return actions + self._fill(now)

    def acknowledge(self, seq: int) -> None:
        """Reports up to this batch are committed."""
        self.outbox.acknowledge(seq)

    def register_anew(self) -> None:
        """A new incarnation begins, of which nothing runs yet."""
        assert not self._killing, "registering is a proof that nothing runs"
        self.lapsed = False

    def expire(self) -> list[Action]:
        """The incarnation is over: kill everything, forget everything."""
        self.lapsed = True
        self.lease_until = float("-inf")
        self._held.clear()
        self._deaths.clear()
        self.outbox.clear()
        self._busy = [None] * len(self._busy)
        if self._killing:
            return []
        self._killing = True
        return [KillAll()]

    def feel(self, unhealthy: str, now: float) -> list[Action]:
        """While there is a reason in `unhealthy`, start nothing more and hand back what has not started."""
        actions = self._check_lease(now)
        fell_ill, self.unhealthy = bool(unhealthy and not self.unhealthy), unhealthy
        return actions + (self._hand_back() if fell_ill else self._fill(now))

    # ---- what the slots say; `used` is what they used: cpu_us of all the tasks, memory_bytes of the largest

    def succeeded(
        self, slot: int, number: int, results: Sequence[Result], run_us: int, now: float, **used: Unpack[Used]
    ) -> list[Action]:
        """The next `len(results)` tasks of the batch succeeded, in `run_us` together."""
        actions = self._check_lease(now)
        busy = self._in(slot, number)
        if busy is not None and results:
            if busy.held.ending != "forgotten":
                self.outbox.succeeded(busy.held.assignment.placement, busy.next, results, run_us, **used)
            self._advance(busy, len(results), run_us, now)
        return actions

    def failed(
        self, slot: int, number: int, error: str, final: bool, run_us: int, now: float, **used: Unpack[Used]
    ) -> list[Action]:
        """The next task of the batch failed."""
        actions = self._check_lease(now)
        busy = self._in(slot, number)
        if busy is not None:
            self._report(busy, busy.next, busy.next + 1, "failed", error=error, final=final, run_us=run_us, **used)
            self._advance(busy, 1, run_us, now)
        return actions

    def stopped(self, slot: int, number: int, run_us: int, now: float, **used: Unpack[Used]) -> list[Action]:
        """The next task of the batch ended because it was told to; its worker ends too."""
        actions = self._check_lease(now)
        busy = self._in(slot, number)
        if busy is not None:
            kind, error = _verdict(busy, "stopped")
            self._report(busy, busy.next, busy.next + 1, kind, error=error, run_us=run_us, **used)
            self._advance(busy, 1, run_us, now)
        return actions

    def batch_ended(self, slot: int, number: int, now: float) -> list[Action]:
        """The worker is through with its batch, or skipped the rest of it; it waits for another."""
        actions = self._check_lease(now)
        busy = self._in(slot, number)
        if busy is not None:
            self._paces.measure(pace_key(busy.held.assignment), busy.next - busy.start, busy.run_us)
            self._vacate(slot, busy)
        return actions + self._fill(now)

    def worker_died(
        self, slot: int, number: int, running: int | None, error: str, now: float, **used: Unpack[Used]
    ) -> list[Action]:
        """A worker is gone, during the task `running` or between tasks. The rest of its batch had not started."""
        actions = self._check_lease(now)
        busy = self._in(slot, number)
        if busy is not None:
            placement = busy.held.assignment.placement
            if running is None and not busy.reason:
                self._deaths[placement] = self._deaths.get(placement, 0) + 1
                if self._deaths[placement] >= BLAMELESS_DEATHS_MAX:
                    running = busy.next
            else:
                self._deaths.pop(placement, None)
            if running is not None and running == busy.next < busy.stop:
                kind, text = _verdict(busy, error)
                ran_s = now - busy.since if busy.seen and busy.current == busy.next else 0.0
                self._report(busy, busy.next, busy.next + 1, kind, error=text, run_us=int(ran_s * 1e6), **used)
                busy.next += 1
            self._vacate(slot, busy)
        return actions + self._fill(now)

    def command_ended(
        self,
        slot: int,
        number: int,
        exit_code: int,
        error: str,
        final: bool,
        run_us: int,
        now: float,
        *,
        result: Result | None = None,
        **used: Unpack[Used],
    ) -> list[Action]:
        """A command or a member is gone; an empty `error` means success, and a member's has a `result`."""
        actions = self._check_lease(now)
        busy = self._in(slot, number)
        if busy is not None:
            kind, text = _verdict(busy, error) if error or busy.reason else ("succeeded", "")
            if kind == "succeeded" and result is not None:
                self.outbox.succeeded(busy.held.assignment.placement, busy.next, [result], run_us, **used)
            else:
                self._report(
                    busy,
                    busy.next,
                    busy.next + 1,
                    kind,
                    error=text,
                    exit_code=exit_code,
                    final=final,
                    run_us=run_us,
                    **used,
                )
            busy.next += 1
            self._vacate(slot, busy)
        return actions + self._fill(now)

    def all_killed(self, now: float) -> list[Action]:
        """What KillAll asked for is done."""
        self._killing = False
        return self._fill(now)

    # ---- time

    def tick(self, positions: Mapping[int, tuple[int, int, float]], now: float) -> list[Action]:
        """Look at the time. `positions`: slot → (batch number, task that runs, when it started)."""
        actions = self._check_lease(now)
        for slot, (number, current, since) in positions.items():
            busy = self._in(slot, number)
            if busy is not None and busy.next <= current < busy.stop:
                busy.current, busy.since, busy.seen = current, since, True
        for slot, busy in enumerate(self._busy):
            if busy is not None:
                actions += self._look(slot, busy, now)
        return actions + self._fill(now)

    def next_tick(self) -> float | None:
        """When `tick` must be called at the latest, if nothing else happens; None: never."""
        times = []
        for busy in self._busy:
            if busy is not None:
                times.append(self.lease_until)
                if busy.announced != busy.current and not busy.reason:
                    times.append(busy.look_at)
                if busy.timeout_s and busy.seen and not busy.reason:
                    times.append(busy.since + busy.timeout_s)
                if busy.kill_at is not None:
                    times.append(busy.kill_at)
        return min(times, default=None)

    # ---- the end

    def drain(self, now: float) -> list[Action]:
        """Start nothing more; hand back what has not started, and members, which do not end by themselves."""
        actions = self._check_lease(now)
        self.draining = True
        actions += self._hand_back()
        for held in list(self._held.values()):
            if isinstance(held.assignment.work, Framework):
                held.ending, held.why = held.ending or "released", held.why or "drained"
                actions += self._stop(held, held.assignment.grace_ms / 1_000, now)
        return actions

    def release(self, now: float) -> list[Action]:
        """Drain, and stop what still runs; it is handed back too."""
        actions = self.drain(now)
        for held in list(self._held.values()):
            held.ending = held.ending or "released"
            actions += self._stop(held, 0, now)
        return actions

    # ---- what can be seen

    @property
    def slots(self) -> int:
        return len(self._busy)

    @property
    def busy_slots(self) -> int:
        return sum(busy is not None for busy in self._busy)

    @property
    def killing(self) -> bool:
        return self._killing

    def held(self) -> list[int]:
        """Every placement that there is still work of, or reports that are not yet committed."""
        return list(dict.fromkeys([*self._held, *self.outbox.placements()]))

    def jobs(self) -> set[int]:
        """The uids of the jobs that there is work of."""
        held = {held.assignment.job_uid for held in self._held.values()}
        return held | {busy.held.assignment.job_uid for busy in self._busy if busy is not None}

    def runs(self, job_uid: int, group: str, index: int, attempt: int) -> bool:
        """Whether this attempt may still write to its log."""
        return any(
            busy is not None
            and busy.next <= index < busy.stop
            and (busy.held.assignment.job_uid, busy.held.assignment.group, busy.held.assignment.attempt)
            == (job_uid, group, attempt)
            for busy in self._busy
        )

    # ---- the parts

    def _hand_back(self) -> list[Action]:
        for held in list(self._held.values()):
            self._end_waiting(held, "released")
        return [Skip(slot, busy.number) for slot, busy in enumerate(self._busy) if busy is not None]

    def _check_lease(self, now: float) -> list[Action]:
        """What is in the slots must not outlive the lease, nor be reported: the leader may run it elsewhere."""
        return self.expire() if now >= self.lease_until and self.busy_slots else []

    def _fill(self, now: float) -> list[Action]:
        if self._killing or self.draining or self.unhealthy or now >= self.lease_until:
            return []
        actions: list[Action] = []
        waiting = (held for held in self._held.values() if held.waiting)
        held = next(waiting, None)
        for slot, busy in enumerate(self._busy):
            if held is None:
                break
            if busy is None:
                actions.append(self._start(slot, held, now))
                if not held.waiting:
                    held = next(waiting, None)
        return actions

    def _start(self, slot: int, held: _Held, now: float) -> Run:
        start, end = held.waiting.popleft()
        stop = min(end, start + self._batch_tasks(held.assignment))
        if stop < end:
            held.waiting.appendleft((stop, end))
        self._number += 1
        self._busy[slot] = _Busy(self._number, held, start, start, stop, start, now, now + STARTED_AFTER_S)
        offset = held.assignment.start
        items = held.items[start - offset : stop - offset]
        return Run(slot, self._number, held.assignment, start, stop, items)

    def _batch_tasks(self, assignment: Assignment) -> int:
        if isinstance(assignment.work, Command | Framework):
            return 1
        return self._paces.batch_tasks(pace_key(assignment))

    def _in(self, slot: int, number: int) -> _Busy | None:
        busy = self._busy[slot]
        return busy if busy is not None and busy.number == number else None

    def _advance(self, busy: _Busy, tasks: int, run_us: int, now: float) -> None:
        busy.next += tasks
        busy.run_us += run_us
        assert busy.next <= busy.stop, f"batch {busy.number} ended more tasks than it has"
        if busy.current < busy.next:
            busy.current, busy.since, busy.seen = busy.next, now, False
            busy.look_at = now + STARTED_AFTER_S

    def _vacate(self, slot: int, busy: _Busy) -> None:
        """The batch is over; what it did not start waits again, or is handed back."""
        self._busy[slot] = None
        held, placement = busy.held, busy.held.assignment.placement
        if busy.next < busy.stop:
            ending = held.ending or ("released" if self.draining or self.unhealthy else "")
            if ending:
                self._report(busy, busy.next, busy.stop, ending)
            else:
                held.waiting.appendleft((busy.next, busy.stop))
                self._sift(held)
        self._drop_if_over(placement)

    def _drop_if_over(self, placement: int) -> None:
        held = self._held.get(placement)
        if held is None or held.waiting:
            return
        if not any(busy is not None and busy.held is held for busy in self._busy):
            del self._held[placement]
            self._deaths.pop(placement, None)

    def _end_waiting(self, held: _Held, kind: str) -> None:
        for start, stop in held.waiting:
            self.outbox.ended(held.assignment.placement, start, stop, kind)
        held.waiting.clear()
        self._drop_if_over(held.assignment.placement)

    def _stop(self, held: _Held, grace_s: float, now: float) -> list[Action]:
        """Stop what runs of a placement: no further task starts, and after the grace it is killed."""
        actions: list[Action] = []
        for slot, busy in enumerate(self._busy):
            if busy is not None and busy.held is held:
                actions += self._stop_slot(slot, busy, held.ending, grace_s, now)
        return actions

    def _stop_slot(self, slot: int, busy: _Busy, reason: str, grace_s: float, now: float) -> list[Action]:
        if busy.reason and grace_s > 0:
            return []  # it is being stopped already
        busy.reason = busy.reason or reason
        if grace_s <= 0:
            return [Skip(slot, busy.number), Kill(slot)]
        busy.kill_at = now + grace_s
        return [Skip(slot, busy.number), Terminate(slot, busy.held.why or busy.reason)]

    def _sift(self, held: _Held) -> None:
        """End the tasks that wait and were withdrawn."""
        if held.withdrawn.isdisjoint(index for start, stop in held.waiting for index in range(start, stop)):
            return
        waiting, held.waiting = held.waiting, deque()
        for start, stop in waiting:
            for index in range(start, stop):
                if index in held.withdrawn:
                    self.outbox.ended(held.assignment.placement, index, index + 1, "canceled")
                elif held.waiting and held.waiting[-1][1] == index:
                    held.waiting[-1] = (held.waiting[-1][0], index + 1)
                else:
                    held.waiting.append((index, index + 1))
        self._drop_if_over(held.assignment.placement)

    def _look(self, slot: int, busy: _Busy, now: float) -> list[Action]:
        if busy.kill_at is not None and now >= busy.kill_at:
            busy.kill_at = None
            return [Kill(slot)]
        if busy.reason:
            return []
        if busy.announced != busy.current and now >= busy.look_at:
            if busy.seen and now >= busy.since + STARTED_AFTER_S:
                busy.announced = busy.current
                self.outbox.started(busy.held.assignment.placement, busy.current)
            else:
                busy.look_at = (busy.since if busy.seen else now) + STARTED_AFTER_S
        # a worker that is still getting ready takes none of its task's time
        if busy.timeout_s and busy.seen and now >= busy.since + busy.timeout_s:
            busy.reason = "timeout"
            grace_s = busy.held.assignment.grace_ms / 1_000
            if grace_s > 0:
                busy.kill_at = now + grace_s
                return [Skip(slot, busy.number), Terminate(slot, busy.reason)]
            return [Kill(slot)]
        return []

    def _report(
        self,
        busy: _Busy,
        start: int,
        stop: int,
        kind: str,
        *,
        error: str = "",
        exit_code: int = 0,
        final: bool = False,
        run_us: int = 0,
        **used: Unpack[Used],
    ) -> None:
        if busy.held.ending != "forgotten":
            self.outbox.ended(
                busy.held.assignment.placement,
                start,
                stop,
                kind,
                error=error,
                exit_code=exit_code,
                final=final,
                run_us=run_us,
                **used,
            )


def pace_key(assignment: Assignment) -> Key:
    """Of what takes about the same time: a group, or the calls of one function in whatever group of a pool."""
    work = assignment.work
    return (assignment.job_uid, work.functions if isinstance(work, Call) else assignment.group)


def _verdict(busy: _Busy, error: str) -> tuple[str, str]:
    """How a task that was stopped, or died, is reported: kind and error."""
    match busy.reason:
        case "canceled" | "released" | "forgotten":
            return busy.reason, ""
        case "timeout":
            return "failed", f"timed out after {busy.timeout_s:g} s"
        case _:
            return "failed", error


def _left(assignment: Assignment) -> Iterable[tuple[int, int]]:
    """The ranges of tasks that have not ended."""
    if not assignment.left:
        return [(assignment.start, assignment.stop)]
    mask = int.from_bytes(assignment.left, "little")
    ranges: list[tuple[int, int]] = []
    for offset in range(assignment.stop - assignment.start):
        if mask >> offset & 1:
            index = assignment.start + offset
            if ranges and ranges[-1][1] == index:
                ranges[-1] = (ranges[-1][0], index + 1)
            else:
                ranges.append((index, index + 1))
    return ranges
