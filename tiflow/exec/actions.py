"""What the agent is given, and what it answers."""

from typing import TypeAlias

from msgspec import Raw, Struct

from tiflow.sched.model import Limits, Work


class Assignment(Struct, frozen=True):
    """Tasks [start, stop) of a group, as the leader placed them here."""

    placement: int
    job_id: str
    job_uid: int
    group: str
    start: int
    stop: int
    attempt: int
    work: Work
    items: bytes = b""  #: msgpack array of the items of [start, stop); empty: tasks get their index
    timeout_ms: int = 0  #: run time of one attempt; 0: unlimited
    grace_ms: int = 0  #: between SIGTERM and SIGKILL
    limits: Limits = Limits()
    left: bytes = b""  #: little-endian bit mask of the tasks that have not ended; empty: all
    count: int = 0  #: tasks of the group


class Run(Struct, frozen=True):
    """Start tasks [start, stop) of a placement in a slot."""

    slot: int
    number: int  #: of this batch; what is heard of another one is stale
    assignment: Assignment
    start: int
    stop: int
    items: tuple[Raw, ...]  #: of [start, stop); empty: tasks get their index


class Skip(Struct, frozen=True):
    """Start no more tasks of the slot's batch."""

    slot: int
    number: int


class Terminate(Struct, frozen=True):
    """Ask what runs in the slot to end: SIGTERM; a member is told why."""

    slot: int
    reason: str = ""  #: canceled, paused, drained, timeout


class Kill(Struct, frozen=True):
    """Kill what runs in the slot (SIGKILL)."""

    slot: int


class KillAll(Struct, frozen=True):
    """Kill everything in all slots; `all_killed` is to follow."""


Action: TypeAlias = Run | Skip | Terminate | Kill | KillAll
