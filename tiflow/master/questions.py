"""What every question to a master needs: the leader, its state as of now, and a job wherever it is."""

import asyncio

from tiflow.errors import InvalidArgument, NotFound, NotLeader
from tiflow.master.archive import Archive
from tiflow.master.leader import Leader
from tiflow.raft.node import RaftNode
from tiflow.sched.machine import Machine
from tiflow.sched.model import Job
from tiflow.sched.state import State

ID_CHARS_MAX = 128


class Questions:
    """Every method runs on the leader; `NotLeader` tells the caller where that is."""

    def __init__(self, name: str, raft: RaftNode, machine: Machine) -> None:
        self._name = name
        self._raft = raft
        self._machine = machine
        self._leader: Leader | None = None
        self._archive: Archive | None = None
        self._changed = asyncio.Event()
        raft.on_applied(self._on_applied)

    def set_leader(self, leader: Leader | None, archive: Archive | None = None) -> None:
        self._leader, self._archive = leader, archive
        self._on_applied()

    def _on_applied(self) -> None:
        if self._leader is not None:
            self._leader.members.notice()
        # waiters of this round wake up; later ones wait for the next
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @property
    def leader(self) -> Leader:
        """Raises: NotLeader."""
        if self._leader is None or not self._raft.is_leader:
            leader = self._raft.leader
            address = leader.address if leader is not None and leader.name != self._name else None
            raise NotLeader(address)
        return self._leader

    @property
    def state(self) -> State:
        """As this master knows it; see `read`."""
        return self._machine.state

    @property
    def changed(self) -> asyncio.Event:
        """Set when something more has been applied, or the leader changes."""
        return self._changed

    async def read(self) -> State:
        """The state, no older than the question. Raises: NotLeader, Unavailable."""
        _ = self.leader
        await self._raft.barrier()
        return self._machine.state

    async def find(self, state: State, job_id: str, uid: int = 0) -> tuple[State, Job]:
        """A job (`uid` 0: whichever has the id), and the state to look at it in: that of the masters, or one that was
        archived. Raises NotFound, and Unavailable if only the database could know."""
        if not 0 < len(job_id) <= ID_CHARS_MAX:
            raise InvalidArgument(f"a job id has 1 to {ID_CHARS_MAX} characters; this one has {len(job_id)}")
        job = state.jobs.get(job_id)
        if job is not None and uid in (0, job.uid):
            return state, job
        archived = await self.archived(job_id, uid)
        if archived is not None:
            return archived, archived.jobs[job_id]
        if job is not None:
            raise NotFound(f"job {job_id} was deleted, and another one has its id")
        raise no_job(job_id)

    async def archived(self, job_id: str, uid: int = 0) -> State | None:
        """The state to look at a job in that has left the masters; None: there is none. Raises Unavailable if the
        database, which alone could know, does not answer."""
        return await self._archive.job(job_id, uid) if self._archive is not None else None


def no_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id}; `tiflow job list` shows those that there are")
