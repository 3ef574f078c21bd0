"""The metadata database, as the leader of one term uses it: written, read, and trusted with what has ended."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from tiflow.clock import Clock
from tiflow.errors import TiflowError, Unavailable
from tiflow.master.checkpoints import CheckpointService
from tiflow.master.metadata import StateSource
from tiflow.master.proposer import Proposer
from tiflow.master.threads import Threads
from tiflow.meta.history import History
from tiflow.meta.projector import Projector
from tiflow.meta.tables import open_engine
from tiflow.sched.commands import PruneJobs
from tiflow.sched.machine import Machine
from tiflow.sched.model import JobEvent, Millis
from tiflow.sched.prune import prunable
from tiflow.sched.state import State

RETAIN_EVERY_S = 1.0
READS_AT_ONCE = 2  #: threads that a database which hangs may hold

T = TypeVar("T")
log = structlog.get_logger()


class Archive:
    """Belongs to the event loop's thread; SQL runs in others."""

    def __init__(
        self,
        url: str,
        cluster_id: str,
        machine: Machine,
        proposer: Proposer,
        clock: Clock,
        *,
        term: int,
        retention_ms: Millis,
    ) -> None:
        """Raises InvalidArgument if `url` can never work. Does not connect."""
        self._engine = open_engine(url)
        self.checkpoints = CheckpointService(self._engine, cluster_id, machine, clock, term)
        self.projector = Projector(url, cluster_id, StateSource(machine, cluster_id), guard=self.checkpoints)
        self.checkpoints.projector = self.projector
        self._history = History(self._engine, cluster_id)
        self._machine = machine
        self._proposer = proposer
        self._clock = clock
        self._retention_ms = retention_ms
        self._reading = Threads(READS_AT_ONCE)

    async def run(self) -> None:
        """Until canceled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.projector.run())
            group.create_task(self._retain())
            group.create_task(self.checkpoints.run())

    def close(self) -> None:
        self.projector.close()
        self._engine.dispose()

    def status(self) -> dict[str, Any]:
        """For people: state, url, revision, behind (revisions), error, note."""
        projector = self.projector
        return {
            "state": ("available" if projector.available else "unavailable") if projector.asked else "starting",
            "url": projector.url,
            "revision": projector.revision,
            "behind": max(0, self._machine.state.revision - projector.revision),
            "error": projector.last_error or "",
            "note": projector.note,
        }

    async def read(self, work: Callable[[History], T]) -> T:
        """Ask the database in a thread. Raises Unavailable."""
        if not self.projector.available:
            raise Unavailable(f"the metadata database does not answer: {self.projector.last_error}")
        return await self._reading.run(lambda: work(self._history))

    async def job(self, job_id: str, uid: int = 0) -> State | None:
        """A state that has this job alone, which has left the masters (`uid` 0: the newest of this id); None: there
        is none. Raises Unavailable."""
        state = self._machine.state
        if not (state.pruned_total or state.restored_from):
            return None  # the database has nothing that the masters do not have
        found = await self.read(lambda history: history.archived(job_id, uid))
        if found is None:
            return None
        job = found.jobs[job_id]
        state = self._machine.state
        gone = job.uid in state.deleted or job.uid in state.job_ids  # deleted; or it is there (again)
        return None if gone else found

    async def deleted(self, uids: list[int]) -> list[int]:
        """Those of these jobs that are neither with the masters nor in the database. Raises Unavailable."""
        state = self._machine.state
        gone = [uid for uid in uids if uid not in state.job_ids]
        left = [uid for uid in gone if uid not in state.deleted]
        if not left or not (state.pruned_total or state.restored_from):
            return gone
        there = await self.read(lambda history: history.archived_revisions(left))
        return [uid for uid in gone if uid not in there or uid in state.deleted]

    async def events(self, uid: int, after: tuple[int, int], limit: int) -> tuple[list[tuple[int, JobEvent]], str]:
        """(seq, event) in order, after that (revision, seq): from the database, and what it does not have yet.
        Returns them, and why some may be missing."""
        known: dict[tuple[int, int], JobEvent] = {}
        warning = ""
        try:
            rows = await self.read(lambda history: history.events(uid, after=after, limit=limit))
            known = {
                (row.revision, row.seq): JobEvent(row.revision, row.at_ms, row.kind, row.message, row.by_whom)
                for row in rows
            }
        except Unavailable as error:
            rows, warning = [], str(error)
        pending = self._machine.state.events.get(uid)
        if pending is not None and len(rows) < limit:
            seq, revision = 0, 0
            for event in pending.events:
                seq = seq + 1 if event.revision == revision else 1
                revision = event.revision
                if (revision, seq) > after:
                    known.setdefault((revision, seq), event)
        return [(key[1], known[key]) for key in sorted(known)][:limit], warning

    async def _retain(self) -> None:
        """Let go of what the database has: events and notes of deletion at once, finished jobs after their
        retention."""
        while True:
            await asyncio.sleep(RETAIN_EVERY_S)
            state = self._machine.state
            if not self.projector.available or state.format < PruneJobs.since:
                continue
            command = prunable(
                state, self.projector.revision, self._clock.now_ms(), self._retention_ms, self.projector.refused
            )
            if command is None:
                continue
            try:
                await self._proposer.propose_own(await self._verified(command))
            except TiflowError as error:
                log.info("pruning_waits", reason=str(error))

    async def _verified(self, command: PruneJobs) -> PruneJobs:
        """Only those that are in the database now: it may have been set back since it was written."""
        if not command.jobs:
            return command
        uids = [uid for uid, _ in command.jobs]
        there = await self.read(lambda history: history.archived_revisions(uids))
        ids = self._machine.state.job_ids
        self.projector.again([(uid, ids[uid]) for uid, at in command.jobs if there.get(uid) != at and uid in ids])
        return PruneJobs(command.persisted, tuple(job for job in command.jobs if there.get(job[0]) == job[1]))
