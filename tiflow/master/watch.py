"""A job as it goes on: what its watchers are sent, and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from tiflow.master.questions import Questions
from tiflow.master.shown import add_placed, add_row, check_kept, fitting, job_info
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.model import Job, job_state
from tiflow.sched.state import State
from tiflow.sched.views import results

WATCH_EVERY_S = 0.02  #: at most so often a watcher is sent a job that has not ended
WATCH_ROWS_S = 0.002  #: … and who wants nothing but rows, their next ones
WATCH_PLACED_S = 0.05  #: … and how far groups were placed
WATCH_IDLE_S = 5.0  #: a watcher hears at least so often, so that a dead connection is noticed
ROWS_PER_UPDATE = 500


async def watch_job(questions: Questions, job_id: str, uid: int, from_row: int) -> AsyncIterator[pb.JobUpdate]:
    """The job at once and whenever it changes, with the result rows from `from_row` on; ends when the job has
    ended and all its rows were sent.

    Raises:
        NotFound: there is no such job, or (with `uid`) no longer that one.
        NotLeader: leadership was lost; go on at the new leader with the next row.
    """
    await questions.read()
    row, seen, loop = from_row, -1, asyncio.get_running_loop()
    sent_s = float("-inf")
    left: tuple[State, Job] | None = None  #: the job, once it has left the masters
    while True:
        changed = questions.changed
        _ = questions.leader
        if left is None:
            state, job = await questions.find(questions.state, job_id, uid)
            left = (state, job) if state is not questions.state else None
        uid = job.uid
        revision = state.job_revision(job)
        silent_s = loop.time() - sent_s
        if (revision != seen and (job.ended_at_ms or silent_s >= WATCH_EVERY_S)) or silent_s >= WATCH_IDLE_S:
            rows = fitting(results(state, job.uid, row, ROWS_PER_UPDATE))
            if left is not None and not rows:
                check_kept(job, row)
            update = pb.JobUpdate(job=job_info(state, job))
            for number, result in rows:
                add_row(update, questions.state, number, result)
            row, sent_s = rows[-1][0] + 1 if rows else max(row, job.result_rows), loop.time()
            yield update
            if row < job.result_rows:
                sent_s = float("-inf")  # the rest follows at once
                continue
            seen = revision
            if job.ended_at_ms:
                return
        wait_s = WATCH_IDLE_S if revision == seen else WATCH_EVERY_S - silent_s
        try:
            async with asyncio.timeout(max(wait_s, 0.0)):
                await changed.wait()
        except TimeoutError:
            pass


async def watch_rows(questions: Questions, job_id: str, uid: int, from_row: int) -> AsyncIterator[pb.JobUpdate]:
    """As `watch_job`, for who wants the rows as soon as they are there and little else. See WatchJobRequest."""
    await questions.read()
    row, loop, placed = from_row, asyncio.get_running_loop(), dict[str, int]()
    sent_s = looked_s = float("-inf")
    looked_at = -1
    left: tuple[State, Job] | None = None  #: the job, once it has left the masters
    while True:
        changed = questions.changed
        _ = questions.leader
        if left is None:
            state, job = await questions.find(questions.state, job_id, uid)
            left = (state, job) if state is not questions.state else None
        uid = job.uid
        now_s = loop.time()
        update = pb.JobUpdate()
        if row < job.result_rows or job.ended_at_ms or now_s - looked_s >= WATCH_PLACED_S:
            looked_s, looked_at = now_s, state.revision
            found = fitting(results(state, job.uid, row, ROWS_PER_UPDATE))
            if left is not None and not found:
                check_kept(job, row)
            for number, result in found:
                add_row(update, questions.state, number, result)
            row = found[-1][0] + 1 if found else job.result_rows
            add_placed(update, state.groups_of(job), placed)
        over = bool(job.ended_at_ms) and row >= job.result_rows
        if over or update.rows or update.placed or now_s - sent_s >= WATCH_IDLE_S:
            stands = job_state(job, state.groups_of(job))
            update.job.MergeFrom(pb.JobInfo(id=job.id, uid=job.uid, state=stands, error=job.failure))
            sent_s = now_s
            yield update
        if over:
            return
        if row < job.result_rows:
            continue
        if update.rows:
            await asyncio.sleep(WATCH_ROWS_S)
        wait_s = WATCH_IDLE_S if looked_at == state.revision else WATCH_PLACED_S - (loop.time() - looked_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(wait_s, 0.0)):
                await changed.wait()
