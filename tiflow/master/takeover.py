"""`tiflow master --restore-from-metadata`: the first leader of a new cluster takes over the jobs of a lost one."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
import structlog
from msgspec import msgpack

from tiflow.errors import FailedPrecondition, Rejected, Unavailable
from tiflow.master.proposer import Proposer
from tiflow.meta.records import JobRow
from tiflow.meta.schema import NewerSchema
from tiflow.meta.tables import open_engine, reason
from tiflow.meta.takeover import Lost, adopt, find
from tiflow.raft.node import RaftNode
from tiflow.sched.commands import CancelJob, RestoreJob, SetFormat
from tiflow.sched.machine import Machine
from tiflow.sched.model import JobSpec, JobState

RETRY_S = 0.5
JOBS_AT_ONCE = 100

T = TypeVar("T")
log = structlog.get_logger()


async def take_over(url: str, raft: RaftNode, machine: Machine, proposer: Proposer, *, wanted: bool) -> None:
    """Before anything is placed, and as often as it takes: a leader that fails half-way is followed by one that goes
    on. Without `wanted` only what has been begun is finished.

    Raises FailedPrecondition (this cluster cannot take over that database), TiflowError (leadership was lost).
    """
    state = machine.state
    if state.persisted or not (wanted or state.restored_from):
        return
    if not state.restored_from and (state.jobs or state.deleted):
        log.warning("restore_ignored", reason="this cluster has jobs of its own")
        return
    engine = open_engine(url)
    try:
        while True:
            lost = await _patiently(lambda: find(engine, raft.cluster_id))
            if lost is None or await _import(engine, lost, raft, machine, proposer):
                return
            await asyncio.sleep(RETRY_S)
    finally:
        engine.dispose()


async def _import(engine: sa.Engine, lost: Lost, raft: RaftNode, machine: Machine, proposer: Proposer) -> bool:
    """False: the database has changed meanwhile."""
    await _raise_format(raft, machine, proposer)
    if machine.state.restored_from not in ("", lost.cluster_id):
        raise FailedPrecondition(
            f"the metadata database belongs to cluster {lost.cluster_id}, and this one began with the jobs of "
            f"{machine.state.restored_from}: another cluster has taken it over; stop one of the two"
        )
    await proposer.propose(RestoreJob(lost.cluster_id, lost.floor))
    for first in range(0, len(lost.jobs), JOBS_AT_ONCE):
        rows = lost.jobs[first : first + JOBS_AT_ONCE]
        await asyncio.gather(*(_restore(row, lost, proposer) for row in rows))
    jobs = machine.state.jobs
    uids = {row.uid: jobs[row.id].uid for row in lost.jobs if row.id in jobs and jobs[row.id].token == row.token}
    if not await _patiently(lambda: adopt(engine, lost, raft.cluster_id, uids)):
        return False
    log.warning("restored_from_metadata", lost_cluster_id=lost.cluster_id, revision=lost.floor, jobs=len(uids))
    return True


async def _restore(row: JobRow, lost: Lost, proposer: Proposer) -> None:
    try:
        await proposer.propose(
            RestoreJob(
                lost.cluster_id,
                lost.floor,
                spec=msgpack.decode(row.spec, type=JobSpec),
                token=row.token,
                submitted_at_ms=row.submitted_at_ms,
                paused=row.state in (JobState.PAUSING, JobState.PAUSED),
            )
        )
        if row.state == JobState.CANCELING:
            await proposer.propose(CancelJob(row.id))
    except Rejected as error:
        log.error("restore_refused", job_id=row.id, uid=row.uid, reason=str(error))


async def _raise_format(raft: RaftNode, machine: Machine, proposer: Proposer) -> None:
    """Restoring is a command that all masters must understand; they tell so when they connect."""
    while machine.state.format < RestoreJob.since:
        understood = raft.format_of_all or 0
        if understood > machine.state.format:
            await proposer.propose(SetFormat(understood))
        else:
            await asyncio.sleep(RETRY_S)


async def _patiently(work: Callable[[], T]) -> T:
    """In a thread; again and again while the database is away."""
    told = ""
    while True:
        try:
            return await asyncio.to_thread(work)
        except (sa.exc.SQLAlchemyError, Unavailable, NewerSchema) as error:
            if (news := reason(error)) != told:
                told = news
                log.warning("restore_waits_for_the_database", reason=news)
        await asyncio.sleep(RETRY_S)
