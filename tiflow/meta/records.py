"""What is handed to the database, in plain values."""

from collections.abc import Iterable

from msgspec import Struct

from tiflow.sched.model import Millis

PACKET_ROOM = 4_096  #: for the rest of a statement


def packet_of(body: bytes) -> int:
    """Bytes of a statement with it, about. Some are escaped by another one."""
    return 2 * len(body) - len(body.translate(None, b"\0\n\r\x1a\"'\\")) + PACKET_ROOM


class JobRow(Struct, frozen=True, kw_only=True):
    """A job as the table `jobs` has it. Field names are column names."""

    uid: int  #: the key; an id can be used again once its job is deleted
    id: str
    cluster_id: str
    state: str
    type: str  #: work of its first group: command or python
    spec: bytes  #: msgpack of model.JobSpec
    token: str = ""
    priority: int
    total: int  #: tasks
    succeeded: int
    failed: int
    canceled: int
    submitted_at_ms: Millis
    started_at_ms: Millis = 0  #: 0: not yet
    ended_at_ms: Millis = 0  #: 0: not yet
    mod_revision: int


class EventRow(Struct, frozen=True):
    """A part of a job's history, as the table `job_events` has it."""

    uid: int
    revision: int
    seq: int  #: within the revision
    at_ms: Millis
    kind: str
    message: str
    by_whom: str = ""  #: `by` is a word of SQL


class Written(Struct, frozen=True):
    """A new version of a job."""

    job: JobRow
    events: tuple[EventRow, ...] = ()
    archive: bytes | None = None  #: all that is kept of a job that has ended; None: it has not

    @property
    def size(self) -> int:
        """Bytes of its bodies."""
        return len(self.job.spec) + len(self.archive or b"")

    @property
    def packet(self) -> int:
        """Bytes that a server must take at once."""
        return max(packet_of(self.job.spec), packet_of(self.archive or b""))


class Refused(Struct, frozen=True):
    """A version of a job that the database did not take: it has the job without bodies."""

    uid: int
    id: str
    packet: int  #: bytes that the server would have to take at once


class Fence(Struct, frozen=True):
    """Who may write checkpoints of a job: this attempt, and no earlier one."""

    uid: int  #: of the job
    holder: str  #: empty: the job's master; else the worker of that name
    attempt: int


class Batch(Struct, frozen=True):
    """What brings the database from one revision to another."""

    to: int
    written: Iterable[Written] = ()  #: read once, in the thread that writes: making rows of values takes time
    deleted: tuple[int, ...] = ()  #: uids
    persisted: int = 0  #: the revision that a database was seen at before
    pruned: int = 0  #: jobs that were left to the database alone so far
