"""What the leader knows of job masters and workers beside the replicated state, and tells job masters.

Soft, as sessions are: what a member reports of itself (only the newest counts), and why its tries failed. An executor
says all of it again when its session opens. A job master is told how its workers stand: all of it when it was placed,
or when its executor's session opens, and then what changes.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from tiflow.jobs.framework.port import (
    FAILED,
    HANDED_BACK,
    LOST,
    MASTER_GROUP,
    SAMPLES_MAX,
    STATUS_BYTES_MAX,
    name_of,
)
from tiflow.master.session import Session
from tiflow.parts import in_parts
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.machine import Machine
from tiflow.sched.model import Job, Placement
from tiflow.sched.state import State
from tiflow.sched.workers import WorkerTask, members

TELL_EVERY_S = 0.02  #: a job master is told at most so often
PART_BYTES_MAX = 4 << 20  #: of the rows that it is told in one message
REPORTS_MAX = 100_000  #: of all members; the oldest go first

Key = tuple[int, str, int]  #: job uid, group, index


class _Known(Struct):
    """Of one member."""

    placement: int = 0  #: whose report it is
    status: bytes = b""
    samples: tuple[pb.Sample, ...] = ()
    error: str = ""  #: of its newest failure
    ended: tuple[int, str] = (0, "")  #: its newest try that ended without success: the attempt, and how


class _Told(Struct):
    """What a job master was told."""

    session: Session
    placement: int
    rows: dict[str, bytes]  #: by name, encoded
    seen: object = None  #: what it follows from, as it was when it was told


class MemberDesk:
    """Of one term. `sessions` are the leader's, by executor uid."""

    def __init__(self, term: int, machine: Machine, sessions: Mapping[str, Session]) -> None:
        self._term = term
        self._machine = machine
        self._sessions = sessions
        self._known: dict[Key, _Known] = {}
        self._versions: dict[int, int] = {}  #: by job uid: how often something became known
        self._told: dict[int, _Told] = {}  #: by job uid
        self._news = asyncio.Event()

    def notice(self) -> None:
        """The state has changed."""
        if self._machine.state.framework:
            self._news.set()

    async def run(self) -> None:
        """Tell job masters what they do not know, until canceled."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._tell()
            await asyncio.sleep(TELL_EVERY_S)

    # ---- what becomes known

    def take_report(self, session: Session, report: pb.Report) -> None:
        placement = self._machine.state.placements.get(report.placement)
        if (
            placement is None
            or (placement.executor, placement.incarnation) != (session.executor_uid, session.incarnation)
            or not placement.start <= report.index < placement.stop
            or len(report.status) > STATUS_BYTES_MAX
            or len(report.samples) > SAMPLES_MAX
        ):
            return  # of an attempt that is over, or nonsense
        known = self._of((placement.uid, placement.group, report.index))
        known.placement, known.status = placement.id, report.status
        known.samples = tuple(sample for sample in report.samples if _is_metric(sample))

    def take_ends(self, events: Iterable[pb.TaskEvent]) -> None:
        """Of events that are not applied yet."""
        state = self._machine.state
        for event in events:
            placement = state.placements.get(event.placement) if event.kind in _ENDS else None
            if placement is not None and placement.uid in state.framework:
                for index in range(max(event.start, placement.start), min(event.stop, placement.stop)):
                    known = self._of((placement.uid, placement.group, index))
                    known.ended = (placement.attempt, _ENDS[event.kind])
                    if event.kind == "failed":
                        known.error = event.error

    def _of(self, key: Key) -> _Known:
        known = self._known.pop(key, None) or _Known()
        self._known[key] = known
        if len(self._known) > REPORTS_MAX:
            del self._known[next(iter(self._known))]
        self._versions[key[0]] = self._versions.get(key[0], 0) + 1
        self._news.set()
        return known

    # ---- what is told

    def status(self, job: Job) -> list[pb.MemberStatus]:
        """Of all members of a job that the masters have, for people."""
        state = self._machine.state
        found = []
        for member in members(state, job):
            known = self._known.get((job.uid, member.group, member.index), _Known())
            found.append(
                pb.MemberStatus(
                    name=name_of(member.group, member.index, member.count) or MASTER_GROUP,
                    state=member.state,
                    attempt=member.attempt,
                    executor=_executor_name(state, member),
                    status=known.status,
                    error=member.error or known.error,
                )
            )
        return found

    def samples(self) -> Iterator[tuple[str, str, pb.Sample]]:
        """(job id, name of the member, metric) of all attempts that run."""
        state = self._machine.state
        for (uid, group, index), known in self._known.items():
            placement = state.placements.get(known.placement)
            if known.samples and placement is not None and placement.left >> (index - placement.start) & 1:
                count = state.groups[uid, group].count
                for sample in known.samples:
                    yield state.job_ids[uid], name_of(group, index, count) or MASTER_GROUP, sample

    def _tell(self) -> None:
        state = self._machine.state
        for uid in list(self._told):
            if uid not in state.framework:
                del self._told[uid]
        for uid in state.framework:
            job = state.job_of(uid)
            assert job is not None, f"job {uid} is in an index"
            placements = list(state.placements_of(uid))
            master = next((one for one in placements if one.group == MASTER_GROUP), None)
            session = self._sessions.get(master.executor) if master is not None else None
            if master is None or session is None or session.incarnation != master.incarnation:
                self._told.pop(uid, None)
                continue
            self._tell_one(job, placements, master, session)
        if len(self._known) > 2 * len(state.framework) + 1_000:
            self._known = {key: known for key, known in self._known.items() if key[0] in state.job_ids}
            self._versions = {uid: version for uid, version in self._versions.items() if uid in state.job_ids}

    def _tell_one(self, job: Job, placements: list[Placement], master: Placement, session: Session) -> None:
        state = self._machine.state
        out = tuple((one.id, one.started, one.left) for one in placements)
        seen = (state.job_revision(job), out, self._versions.get(job.uid, 0))
        told = self._told.get(job.uid)
        if told is not None and (told.session is not session or told.placement != master.id):
            told = None
        if told is not None and told.seen == seen:
            return
        rows = {one.name: one for one in self._rows(state, job)}
        encoded = {name: row.SerializeToString() for name, row in rows.items()}
        whole = told is None or not told.rows.keys() <= encoded.keys()
        before = told.rows if told is not None and not whole else {}
        changed = [row for name, row in rows.items() if before.get(name) != encoded[name]]
        self._told[job.uid] = _Told(session, master.id, encoded, seen)
        if not (whole or changed):
            return
        parts = list(in_parts(changed, pb.Member.ByteSize, PART_BYTES_MAX)) or [[]]
        for number, part in enumerate(parts, start=1):
            first, more = whole and number == 1, whole and number < len(parts)
            message = pb.Members(
                job_uid=job.uid, whole=first, members=part, placement=master.id, term=self._term, more=more
            )
            session.send(pb.LeaderMessage(members=message))

    def _rows(self, state: State, job: Job) -> Iterator[pb.Member]:
        for member in members(state, job):
            if member.group == MASTER_GROUP:
                continue
            known = self._known.get((job.uid, member.group, member.index), _Known())
            yield pb.Member(
                name=name_of(member.group, member.index, member.count),
                kind=member.kind,
                state=member.state,
                attempt=member.attempt,
                failures=member.failures,
                losses=member.losses,
                last_end=_last_end(member, known),
                executor=_executor_name(state, member),
                error=member.error or known.error,
                status=known.status,
                result=member.result,
            )


def _last_end(member: WorkerTask, known: _Known) -> str:
    """How the attempt before ended. Executors tell of all ends but losses; an earlier leader may have been told."""
    if member.attempt <= 1:
        return ""
    attempt, how = known.ended
    if attempt == member.attempt - 1:
        return how
    return LOST if member.losses else FAILED if member.failures else HANDED_BACK


_ENDS = {"failed": FAILED, "released": HANDED_BACK, "canceled": HANDED_BACK}


def _is_metric(sample: pb.Sample) -> bool:
    """Else /metrics could not be read by anybody."""
    return sample.kind in ("", "gauge", "counter") and all(map(_is_name, (sample.name, *sample.labels)))


_is_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}").fullmatch


def _executor_name(state: State, member: WorkerTask) -> str:
    executor = state.executors.get(member.executor)
    return executor.name if executor is not None else ""
