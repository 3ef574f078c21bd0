"""What a job master or a worker asks of what surrounds it, and what it is told.

In a cluster that is the executor's agent, at the other end of a socket (`tiflow.exec.member`); in a test it is
`tiflow.testing`. Values cross this seam as bytes in msgpack.

Names: a worker is called by its group, as `copy`, or as `copy/3` where the group has several; the job master is `""`.
"""

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from tiflow.sched.model import MASTER_GROUP as MASTER_GROUP

MESSAGE_BYTES_MAX: Final = 1 << 20  #: of one message
ENVELOPE_BYTES_MAX: Final = 2 << 20  #: of the messages that travel together
BODY_BYTES_MAX: Final = 8 << 20  #: of a request, or of its response
CHECKPOINT_BYTES_MAX: Final = 4 << 20
STATUS_BYTES_MAX: Final = 16 << 10
SAMPLES_MAX: Final = 64  #: metrics of one member
MASTER: Final = ""  #: the name of the job master

#: why a member is told to end: its job is canceled, or over; paused; its executor is drained; it ran too long
StopReason: TypeAlias = str
CANCELED: Final = "canceled"
PAUSED: Final = "paused"
DRAINED: Final = "drained"
TIMEOUT: Final = "timeout"

#: how a try ended that is followed by another
FAILED: Final = "failed"
LOST: Final = "lost"  #: with its executor
HANDED_BACK: Final = "handed back"  #: its job was paused, its executor was drained or could start nothing


def name_of(group: str, index: int, count: int) -> str:
    """The name of a member: worker `index` of the `count` workers of a group, or the job master."""
    if group == MASTER_GROUP:
        return MASTER
    return group if count == 1 else f"{group}/{index}"


def place_of(name: str) -> tuple[str, int]:
    """The group and the index of a member. Raises ValueError, which says what is wrong with the name."""
    group, slash, index = (name or MASTER_GROUP).partition("/")
    if not slash:
        return group, 0
    if not index.isdecimal() or len(index) > 9:
        raise ValueError(f"{name[:140]!r} is not the name of a worker, as copy or copy/3")
    return group, int(index)


class About(Struct, frozen=True):
    """Who a member is."""

    job_id: str
    job_uid: int
    type: str  #: of the job
    kind: str  #: of the worker; empty: it is the job master
    name: str
    attempt: int
    config: bytes  #: msgpack


class WorkerGroup(Struct, frozen=True, kw_only=True):
    """Workers that are to be started: one for each of `configs`."""

    name: str
    kind: str
    configs: tuple[bytes, ...]  #: msgpack
    selectors: tuple[str, ...] = ()  #: as in a job file: "zone=eu"
    resources: dict[str, float | str] = {}  #: as in a job file
    strategy: str = "spread"
    spread_over: str = ""  #: a label
    max_per_executor: int = 0  #: 1: no two of them on one executor; 0: no bound
    attempts: int = 0  #: tries that may fail; 0: as the masters' [job-backoff] says. Lost ones do not count
    backoff_ms: int | None = None  #: before the second try; None: as the masters say
    reset_ms: int | None = None  #: after a try that ran so long failures count from 1 again; None: as the masters say
    grace_ms: int = 5_000  #: between the word that it is to end and SIGKILL


class WorkerRow(Struct, frozen=True):
    """How a worker stands. What the leader knows beside the replicated state (`error` and `last_end` of a try that is
    followed by another, `status`) may be missing for a moment after a change of leader."""

    name: str
    kind: str
    state: str  #: as of a task: waiting, placed, running, succeeded, failed, canceled
    attempt: int  #: the one that is under way, or that comes next; of one that has ended: 0
    failures: int = 0  #: tries that failed, from 1 again after one that was healthy for long; has it ended: 0
    losses: int = 0  #: tries that were lost with their executor; likewise
    last_end: str = ""  #: how the try before ended, as above; empty: there was none
    executor: str = ""  #: name of the one that it is on
    error: str = ""  #: of its newest failure
    status: bytes = b""  #: its newest report, msgpack; empty: none
    result: bytes = b""  #: what it returned, msgpack; empty: it has not succeeded


class Envelope(Struct, frozen=True):
    """Messages from one member to another, numbered from `first` on, without gaps within an attempt of the sender.
    They are sent again until they are acknowledged, so some may come twice."""

    sender: str
    attempt: int  #: of the sender
    to: str
    first: int
    messages: tuple[bytes, ...]


class Request(Struct, frozen=True):
    """From a user through a master's HTTP port, or from another member of the job."""

    method: str
    path: str  #: below the job's, or the worker's: "/progress"
    query: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""


class Response(Struct, frozen=True):
    status: int = 200
    headers: dict[str, str] = {}
    body: bytes = b""


class Sample(Struct, frozen=True):
    """One value of a metric, shown as `tiflow_job_<name>{job=…, worker=…, …}`."""

    name: str
    value: float
    labels: dict[str, str] = {}
    kind: str = "gauge"  #: or counter


class Report(Struct, frozen=True):
    """The newest replaces the one before."""

    status: bytes  #: msgpack
    samples: tuple[Sample, ...] = ()


class Handler(Protocol):
    """What a member is told."""

    def on_rows(self, rows: Sequence[WorkerRow], whole: bool) -> None:
        """To a job master: how workers stand that have changed, or all of them (`whole`). It may be older than the
        answers to what was asked meanwhile."""

    async def on_envelope(self, envelope: Envelope) -> None:
        """Returning is the acknowledgement."""

    async def on_request(self, request: Request) -> Response: ...

    def on_stop(self, reason: StopReason) -> None:
        """End. SIGKILL follows after the grace."""


class Port(Protocol):
    """What a member asks. Coroutines raise, from `tiflow.errors`: Unavailable or OutcomeUnknown (to be asked again:
    all of it is idempotent), FailedPrecondition (a later attempt is in charge: this one is to end), InvalidArgument
    or ResourceExhausted (the user's to mend)."""

    async def start_workers(self, group: WorkerGroup, once: tuple[int, int]) -> None:
        """Idempotent by `group.name`; another group under the name of one that exists is refused. `once`: the number
        of the request, and the one below which all of this attempt are settled: late duplicates of those do
        nothing."""

    async def stop_workers(self, group: str, start: int, stop: int, once: tuple[int, int], *, forget: bool) -> None:
        """Workers [start, stop) of a group are canceled; with `forget`, a group all of whose workers have ended is
        dropped, and its name is free."""

    async def deliver(self, envelope: Envelope) -> None:
        """Returns when the receiver has acknowledged."""

    async def request(self, to: str, request: Request) -> Response: ...

    async def get(self, key: str) -> bytes | None:
        """A checkpoint of the job, or None."""

    async def put(self, key: str, value: bytes | None) -> None:
        """Durable when it returns; None: delete it."""

    async def keys(self, prefix: str) -> list[str]: ...

    def report(self, report: Report) -> None: ...
