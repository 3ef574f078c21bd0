"""What a command would change: handlers write here, and `State.commit` there."""

from tiflow.sched.model import (
    Drain,
    Ended,
    Executor,
    Group,
    Job,
    JobEvents,
    Placement,
    Project,
    Pruned,
    ResultRow,
    Retry,
    Schedule,
)
from tiflow.sched.state import ChunkKey, GroupKey, RowKey, State

_NOTHING = Ended()


class Draft:
    """What a command would change. Reads see what was drafted so far; nothing is written before
    `State.commit`."""

    __slots__ = (
        "closed",
        "drains",
        "dropped",
        "ended",
        "events",
        "executors",
        "forgotten",
        "format",
        "groups",
        "jobs",
        "next_placement",
        "persisted",
        "placements",
        "projects",
        "pruned",
        "restored_from",
        "results",
        "retries",
        "revision",
        "schedules",
        "state",
        "touched",
    )

    def __init__(self, state: State) -> None:
        self.state = state
        self.format = state.format
        self.next_placement = state.next_placement
        self.jobs: dict[str, Job] = {}
        self.groups: dict[GroupKey, Group] = {}
        self.placements: dict[int, Placement | None] = {}  #: None: it is over
        self.ended: dict[ChunkKey, Ended] = {}
        self.retries: dict[ChunkKey, Retry | None] = {}  #: the third part of the key is the index
        self.results: dict[RowKey, ResultRow] = {}
        self.executors: dict[str, Executor] = {}
        self.drains: dict[str, Drain | None] = {}  #: None: it is taken back
        self.projects: dict[str, Project | None] = {}  #: None: it is deleted
        self.schedules: dict[str, Schedule | None] = {}  #: None: it is deleted
        self.closed: list[GroupKey] = []  #: groups whose retries are dropped
        self.forgotten: list[Job] = []  #: jobs that are deleted
        self.dropped: list[GroupKey] = []  #: groups of open jobs that are forgotten before their job is
        self.events: dict[int, JobEvents] = {}
        self.pruned: list[tuple[Job, Pruned | None]] = []  #: jobs that leave for the database; their note, if any
        self.persisted = 0  #: what the database has; 0: no news of it
        self.restored_from = ""  #: empty: no news of it
        self.revision = 0  #: what the state's is raised to
        self.touched: dict[int, None] = {}  #: uids of the jobs some of whose tasks have ended

    def groups_of(self, job: Job) -> list[Group]:
        """As they would be; without those that are dropped."""
        found = [self.groups.get((job.uid, group.name), group) for group in self.state.groups_of(job)]
        if not self.dropped:
            return found
        return [group for group in found if (job.uid, group.name) not in self.dropped]

    def job(self, uid: int) -> Job | None:
        job_id = self.state.job_ids.get(uid)
        return None if job_id is None else self.jobs.get(job_id) or self.state.jobs[job_id]

    def group(self, key: GroupKey) -> Group | None:
        return self.groups.get(key) or self.state.groups.get(key)

    def placement(self, id: int) -> Placement | None:
        return self.placements[id] if id in self.placements else self.state.placements.get(id)

    def retry(self, key: GroupKey, index: int) -> Retry | None:
        full_key = (*key, index)
        if full_key in self.retries:
            return self.retries[full_key]
        return self.state.retries.get(key, {}).get(index)

    def chunk(self, key: ChunkKey) -> Ended:
        return self.ended.get(key) or self.state.ended.get(key) or _NOTHING
