"""One executor's stream with the leader, as the leader holds it: what was sent, what waits to be sent."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeAlias

import structlog

from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.model import Call, Placement
from tiflow.sched.state import State
from tiflow.sched.tasks import runs

Key: TypeAlias = tuple[int, str | tuple[bytes, ...]]  #: job uid, group or pickled functions

OUTBOX_MAX = 10_000  #: messages that wait for a slow executor before its session is closed
UNSENT_BYTES_MAX = 16 << 20  #: of messages that wait for a slow executor; with more it gets no more tasks
TASK_US_WEIGHT = 0.3  #: of the newest batch in the running mean of task times
BACKLOG_US = 100_000  #: work that an executor holds beyond its slots, so that no slot waits for a round trip

log = structlog.get_logger()


class Session:
    """Deltas that one stream carries. It is ordered and reliable while it lasts; a new one begins with the whole
    truth (`Hello`), so nothing here has to survive."""

    def __init__(self, executor_uid: str, incarnation: int, term: int) -> None:
        self.executor_uid = executor_uid
        self.incarnation = incarnation
        self.term = term
        self.closed = False
        self.draining = False  #: it wants nothing more
        self.unhealthy = ""  #: why it can take nothing now; empty: it can
        self.last_words = False  #: of an executor that is dead: it reports, and ends its incarnation
        self._differs: set[int] = set()  #: placements, see `agrees`
        self._outbox: list[pb.LeaderMessage] = []
        self._unsent_bytes = 0
        self._ready = asyncio.Event()
        self.room = asyncio.Event()  #: not set while a batch of events waits for room on the disk
        self.room.set()

    @property
    def congested(self) -> bool:
        """Whether it reads so slowly that it is to be told no more than it must be."""
        return self._unsent_bytes > UNSENT_BYTES_MAX

    def agrees(self, placed: Iterable[int], held: Iterable[int]) -> bool:
        """Whether what is placed on the executor and what it says that it holds are the same, but for what is on its
        way: that does not differ twice in a row."""
        before, self._differs = self._differs, set(placed) ^ set(held)
        return before.isdisjoint(self._differs)

    def send(self, message: pb.LeaderMessage) -> None:
        """Queue a message. A session that does not drain is closed; the executor comes back with a Hello, and is
        told all that it should know."""
        if self.closed:
            return
        if len(self._outbox) >= OUTBOX_MAX:
            log.warning("session_not_read", executor_uid=self.executor_uid, messages=len(self._outbox))
            self._outbox.clear()
            self.close()
            return
        self._outbox.append(message)
        self._unsent_bytes += message.ByteSize()
        self._ready.set()

    def close(self, last: pb.LeaderMessage | None = None) -> None:
        """End the stream, after `last` and whatever is queued."""
        if last is not None and not self.closed:
            self._outbox.append(last)
            self._unsent_bytes += last.ByteSize()
        self.closed = True
        self._ready.set()

    async def messages(self) -> AsyncIterator[pb.LeaderMessage]:
        """What is to be written to the stream, until the session is closed and drained."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            batch, self._outbox = self._outbox, []
            for message in batch:
                yield message
                self._unsent_bytes -= message.ByteSize()
            if self.closed and not self._outbox:
                return


def revoked_tasks(placement: Placement) -> pb.RevokedTasks:
    """Which of its tasks were withdrawn."""
    ranges = [pb.TaskRange(start=start, stop=stop) for start, stop in runs(placement.withdrawn, placement.start)]
    return pb.RevokedTasks(placement=placement.id, ranges=ranges)


def key_of(state: State, uid: int, group: str) -> Key:
    """Of tasks that take about the same time: those of a group, or the calls of one function in whatever group of a
    pool."""
    found = state.groups.get((uid, group))
    if found is None or found.spec is None or not isinstance(found.spec.work, Call):
        return uid, group
    return uid, found.spec.work.functions


class TaskTimes:
    """How long tasks of each group take, as executors measured; decides how many of them an executor gets beyond its
    slots. A group that was never measured gets none."""

    def __init__(self) -> None:
        self._mean_us: dict[Key, float] = {}  #: the least recently measured first

    def measured(self, key: Key, tasks: int, run_us: int) -> None:
        each = run_us / tasks
        old = self._mean_us.pop(key, None)
        # a slow batch counts at once, a fast one slowly: too deep a backlog keeps tasks from idle executors
        weight = 1.0 if old is None or each > old else TASK_US_WEIGHT
        self._mean_us[key] = each if old is None else old + (each - old) * weight

    def backlog(self, key: Key, per_slot_max: int) -> int:
        """Tasks of the group to hold per slot beyond the one that runs."""
        mean_us = self._mean_us.get(key)
        if mean_us is None:
            return 0
        tasks = min(per_slot_max, int(BACKLOG_US / max(mean_us, 1.0)))
        # a power of two: groups of about equal speed share their candidates in a plan
        return 1 << tasks.bit_length() - 1 if tasks else 0

    def forget_all_but(self, state: State) -> None:
        """Drop the groups that are gone, now and then."""
        if len(self._mean_us) > 2 * len(state.groups) + 100:
            living = [key for key in self._mean_us if key in state.groups or key[0] in state.job_ids]
            self._mean_us = {key: self._mean_us[key] for key in living[-len(state.groups) - 50 :]}
