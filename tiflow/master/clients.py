"""Whether the clients of pools are still there: the leader's memory, in monotonic time, as the leases of executors.

What is logged is the conclusion: the pool's job fails (CloseGroups). A new leader gives each client a full TTL.
"""

from collections.abc import Callable

from tiflow.sched.duties import needs_client
from tiflow.sched.model import Job
from tiflow.sched.state import State


class Clients:
    """`clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until_s: dict[int, tuple[float, float]] = {}  #: by job uid: when it is over, and its TTL

    def begin_term(self, state: State) -> None:
        for job in state.jobs.values():
            self.begin(job)

    def begin(self, job: Job) -> None:
        """A job that needs a client has one from now on."""
        if needs_client(job):
            ttl_s = job.spec.client_ttl_ms / 1_000
            self._until_s[job.uid] = (self._clock() + ttl_s, ttl_s)

    def renew(self, uid: int) -> None:
        lease = self._until_s.get(uid)
        if lease is not None:
            self._until_s[uid] = (self._clock() + lease[1], lease[1])

    def gone(self, state: State) -> list[int]:
        """uids of jobs whose client was silent for its TTL. Jobs that need none any more are forgotten."""
        now_s = self._clock()
        late = [uid for uid, (until_s, _) in self._until_s.items() if now_s >= until_s]
        for uid in late:
            job = state.job_of(uid)
            if job is None or not needs_client(job):
                del self._until_s[uid]
        return [uid for uid in late if uid in self._until_s]

    def next_s(self) -> float | None:
        """When the next one is late, if it is not heard of."""
        return min((until_s for until_s, _ in self._until_s.values()), default=None)
