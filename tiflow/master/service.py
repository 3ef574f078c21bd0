"""All that can be asked of a master, in domain terms. The gRPC server and the web are thin clothes over it.

Every method runs on the leader; `NotLeader` tells the caller where that is. Reads pass a barrier, so an answer is
never older than the question.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice

from tiflow.errors import InvalidArgument, NotFound, Unavailable
from tiflow.jobs.cron import fire_times, next_fire_ms, run_id
from tiflow.master.checkpoints import CheckpointService
from tiflow.master.leader import Leader
from tiflow.master.projects import changed, list_projects, project_info
from tiflow.master.proposer import Proposer
from tiflow.master.questions import Questions, no_job
from tiflow.master.schedules import find_schedule, put_spec, schedule_info
from tiflow.master.shown import (
    archived_info,
    executor_info,
    executor_state,
    first_error,
    job_info,
    task_ranges,
)
from tiflow.meta.checkpoints import Holder
from tiflow.raft import backup
from tiflow.raft.node import RaftNode
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import (
    AddGroup,
    AskOnce,
    CancelJob,
    CancelTasks,
    CloseGroups,
    DeleteJob,
    DeleteProject,
    DeleteSchedule,
    DrainExecutor,
    PauseJob,
    PauseSchedule,
    PutSchedule,
    RerunLost,
    ResumeJob,
    StartWorkers,
    StopWorkers,
    SubmitJob,
    TriggerSchedule,
    UndrainExecutor,
)
from tiflow.sched.dependencies import why_not
from tiflow.sched.explain import Explanation
from tiflow.sched.framework import check_workers
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    GroupSpec,
    Job,
    JobSpec,
    JobState,
    Pruned,
    TaskState,
    job_state,
)
from tiflow.sched.pools import check_added
from tiflow.sched.projects import check_project
from tiflow.sched.schedules import MISSED, OVERLAP, check_schedule
from tiflow.sched.state import State
from tiflow.sched.validate import check_id, validate_spec
from tiflow.sched.views import newest_rows

LIST_MAX = 1_000
SCHEDULE_KEEP = 10  #: ended runs that are kept, unless a schedule says otherwise
TIMES_MAX = 100
TASK_ENDED = (TaskState.SUCCEEDED, TaskState.FAILED)


class Service(Questions):
    def __init__(self, name: str, raft: RaftNode, machine: Machine, proposer: Proposer) -> None:
        super().__init__(name, raft, machine)
        self._proposer = proposer

    # ---- jobs

    async def submit_job(self, spec: JobSpec, token: str, token_at_ms: int, by: str = "") -> pb.JobInfo:
        leader = self.leader
        if not token:
            raise InvalidArgument("token is empty: draw one per submission, so that a retry is harmless")
        validate_spec(spec)
        job = await self._proposer.propose(SubmitJob(spec, token, token_at_ms, by))
        if isinstance(job, Job):
            leader.clients.begin(job)
        leader.wake()
        return self._submitted(job)

    async def get_job(self, job_id: str) -> pb.JobInfo:
        state, job = await self.find(await self.read(), job_id)
        info = job_info(state, job)
        groups = state.groups_of(job)
        info.waiting.extend(f"{one.name}: {why_not(job, one, groups)}" for one in groups if one.skipped)
        if not (job.spec.framework and info.error):  # that of its job master says it
            info.error = ": ".join(text for text in (info.error, first_error(state, job)) if text)
        info.spec.CopyFrom(convert.job_to_proto(job.spec, items=False))
        info.waiting.extend([one.summary for one in await self._explain(job)])
        if job.spec.framework and state is self.state:
            info.members.extend(self.leader.members.status(job))
        return info

    async def explain_job(self, job_id: str) -> pb.ExplainJobResponse:
        _, job = await self.find(await self.read(), job_id)
        reasons = await self._explain(job)
        return pb.ExplainJobResponse(groups=[convert.explanation_to_proto(reason) for reason in reasons])

    async def _explain(self, job: Job) -> list[Explanation]:
        reasons = []
        for reason in self.leader.explain(job.uid):
            reasons.append(reason)
            await asyncio.sleep(0)  # a job may have a hundred groups, and a cluster thousands of executors
        return reasons

    async def list_jobs(self, limit: int, wanted: str, before_uid: int = 0) -> pb.ListJobsResponse:
        """The newest jobs first, with those that have left the masters; `wanted` is a job state or empty,
        `before_uid` the `next` of the page before."""
        known = {name.lower(): str(name) for name in JobState}
        if wanted and wanted.lower() not in known:
            raise InvalidArgument(f"state {wanted[:40]!r}: must be one of {', '.join(JobState)}")
        wanted = known.get(wanted.lower(), "")
        limit = min(limit or 100, LIST_MAX)
        state = await self.read()
        infos: list[pb.JobInfo] = []
        for uid in reversed(state.job_ids):
            if len(infos) == limit:
                break
            job = state.jobs[state.job_ids[uid]]
            if (not before_uid or uid < before_uid) and (
                not wanted or job_state(job, state.groups_of(job)) == wanted
            ):
                infos.append(job_info(state, job))
        response = pb.ListJobsResponse(total=len(state.jobs) + state.pruned_total)
        try:
            # of a full page only what lies between: what is older comes with the next one
            after_uid = infos[-1].uid if len(infos) == limit else 0
            infos += await self._pruned(wanted, before_uid, after_uid, limit)
        except Unavailable as error:
            response.warning = f"jobs that have left the masters are missing: {error}"
        infos.sort(key=lambda info: -int(info.uid))
        response.jobs.extend(infos[:limit])
        response.next = infos[limit - 1].uid if len(infos) >= limit else 0
        return response

    async def _pruned(self, wanted: str, before_uid: int, after_uid: int, limit: int) -> list[pb.JobInfo]:
        """The newest `limit` jobs between the two uids that the database alone has. Raises Unavailable."""
        state = self.state
        if self._archive is None or not (state.pruned_total or state.restored_from):
            return []
        found: list[pb.JobInfo] = []
        while len(found) < limit:
            page = await self._archive.read(
                lambda history, before=before_uid: history.list_jobs(  # type: ignore[misc]
                    LIST_MAX, state=wanted, before_uid=before, after_uid=after_uid, ended_only=True
                )
            )
            state = self.state
            found += [
                archived_info(row) for row in page if row.uid not in state.job_ids and row.uid not in state.deleted
            ]
            if len(page) < LIST_MAX:
                break
            before_uid = page[-1].uid
        return found[:limit]

    async def job_events(self, job_id: str, after: tuple[int, int], limit: int) -> pb.JobEventsResponse:
        """The history of a job, in order, after that (revision, seq)."""
        _, job = await self.find(await self.read(), job_id)
        response = pb.JobEventsResponse()
        if self._archive is not None:
            events, response.warning = await self._archive.events(job.uid, after, min(limit or LIST_MAX, LIST_MAX))
            for seq, event in events:
                response.events.add(
                    revision=event.revision,
                    seq=seq,
                    at_ms=event.at_ms,
                    kind=event.kind,
                    message=event.message,
                    by=event.by,
                )
        return response

    async def cancel_job(self, job_id: str, by: str = "") -> pb.JobInfo:
        return await self._order(CancelJob(job_id, by=by))

    async def pause_job(self, job_id: str, by: str = "") -> pb.JobInfo:
        return await self._order(PauseJob(job_id, by=by))

    async def resume_job(self, job_id: str, by: str = "") -> pb.JobInfo:
        return await self._order(ResumeJob(job_id, by=by))

    async def _order(self, command: CancelJob | PauseJob | ResumeJob) -> pb.JobInfo:
        """A job that has left the masters has ended, so it stays as it is. One that is submitted meanwhile is not
        meant: it was not ordered to do anything."""
        leader = self.leader
        try:
            await self._proposer.propose(command)
        except NotFound:
            archived = await self.archived(command.job_id)
            if archived is None:
                raise no_job(command.job_id) from None
            return job_info(archived, archived.jobs[command.job_id])
        leader.wake()  # it tells the executors
        state, job = await self.find(self.state, command.job_id)
        return job_info(state, job)

    async def delete_job(self, job_id: str) -> None:
        """The job, and older ones of its id that the database alone has."""
        leader = self.leader
        job = self.state.jobs.get(job_id)
        uid_max = self.state.revision  # what is submitted from here on is not meant, though it has the same id
        here = True
        try:
            await self._proposer.propose(DeleteJob(job_id))
        except NotFound:
            here = False
        state = self.state
        if here and job is not None and job.uid not in state.job_ids:
            leader.job_deleted(job.uid)
        try:
            archive = self._archive if state.pruned_total or state.restored_from else None
            there = await archive.read(lambda history: history.delete(job_id, uid_max)) if archive is not None else 0
        except Unavailable:
            if not here:
                raise
            there = 0
        if not (here or there):
            raise no_job(job_id)

    async def rerun_lost(self, job_id: str, uid: int, row: int, index: int, missing: bool) -> pb.JobInfo:
        leader = self.leader
        await self._proposer.propose(RerunLost(uid, row, index, missing))
        leader.wake()
        state, job = await self.find(self.state, job_id, uid)
        return job_info(state, job)

    async def list_tasks(self, job_id: str, group: str, start: int, limit: int) -> pb.ListTasksResponse:
        state, job = await self.find(await self.read(), job_id)
        groups = state.groups_of(job)
        reasons = {row.name: why_not(job, row, groups) for row in groups if row.held or row.skipped}
        response = pb.ListTasksResponse()
        found = task_ranges(state, job, group, start, min(limit or 100, LIST_MAX))
        ended = {(r.group, i): None for r in found if r.state in TASK_ENDED for i in range(r.start, r.stop)}
        rows = newest_rows(state, job, ended)
        for ranges in found:
            executor = state.executors.get(ranges.executor or "")
            for index in range(ranges.start, ranges.stop):
                response.tasks.add(
                    group=ranges.group,
                    index=index,
                    state=ranges.state,
                    attempt=ranges.attempt,
                    executor=executor.name if executor else "",
                    address=executor.address if executor else "",
                    reason=reasons.get(ranges.group, ""),
                )
                if (row := rows.get((ranges.group, index))) is not None:
                    response.tasks[-1].cpu_us = row.cpu_us // (row.stop - row.start)
                    response.tasks[-1].memory_bytes = row.memory_bytes
        return response

    # ---- job masters

    async def start_workers(self, uid: int, attempt: int, group: GroupSpec, once: tuple[int, int] = (0, 0)) -> None:
        """`once`: number of the request, and those below which are settled, as of `AskOnce`."""
        leader = self.leader
        job = self.state.job_of(uid)
        if job is None or not job.spec.framework:
            raise NotFound(f"there is no job with uid {uid} and a job master")
        check_workers(job, group)
        await self._proposer.propose(self._once(StartWorkers(uid, attempt, group), once))
        leader.wake()

    async def stop_workers(
        self, uid: int, attempt: int, group: str, start: int, stop: int, forget: bool, once: tuple[int, int] = (0, 0)
    ) -> None:
        leader = self.leader
        command = StopWorkers(uid, attempt, group, start, stop, forget)
        gone = await self._proposer.propose(self._once(command, once))
        leader.revoke_withdrawn(uid, group)
        if gone and forget:
            leader.groups_dropped(uid, [group])

    def _once(
        self, command: StartWorkers | StopWorkers, once: tuple[int, int]
    ) -> StartWorkers | StopWorkers | AskOnce:
        """An older executor counts nothing, and an older master could not read it."""
        return AskOnce(*once, command) if once[0] and self.state.format >= AskOnce.since else command

    def samples(self) -> Iterable[tuple[str, str, pb.Sample]]:
        """What members measure: (job id, name of the member, metric). Nothing on a follower."""
        return self._leader.members.samples() if self._leader is not None else ()

    # ---- open jobs

    async def add_group(self, uid: int, number: int, group: GroupSpec, drop: tuple[str, ...]) -> pb.PoolReply:
        leader = self.leader
        check_added(group)
        job = await self._proposer.propose(AddGroup(uid, number, group, drop))
        leader.clients.renew(uid)
        if gone := [name for name in drop if (uid, name) not in self.state.groups]:
            leader.groups_dropped(uid, gone)
        leader.wake()
        reply = self._pool_reply(job)
        reply.kept.extend(name for name in drop if (uid, name) in self.state.groups)
        return reply

    async def close_groups(self, uid: int) -> pb.PoolReply:
        leader = self.leader
        await self._proposer.propose(CloseGroups(uid))
        return self._renewed(leader, uid)

    async def cancel_tasks(self, uid: int, group: str, start: int, stop: int, force: bool) -> pb.CancelTasksReply:
        leader = self.leader
        canceled = await self._proposer.propose(CancelTasks(uid, group, start, stop, force))
        if force:
            leader.revoke_withdrawn(uid, group)
        return pb.CancelTasksReply(canceled=[pb.TaskRange(start=one, stop=end) for one, end in canceled])

    async def renew_client(self, uid: int) -> pb.PoolReply:
        return self._renewed(self.leader, uid)

    def _renewed(self, leader: Leader, uid: int) -> pb.PoolReply:
        leader.clients.renew(uid)
        job = self.state.job_of(uid)
        if job is None:
            raise NotFound(f"there is no job with uid {uid}: it was deleted")
        return self._pool_reply(job)

    def _pool_reply(self, job: Job) -> pb.PoolReply:
        state = self.state
        job = state.job_of(job.uid) or job
        return pb.PoolReply(state=job_state(job, state.groups_of(job)), error=job.failure)

    # ---- schedules

    async def create_schedule(self, request: pb.CreateScheduleRequest, spec: JobSpec) -> pb.ScheduleInfo:
        leader = self.leader
        command = PutSchedule(
            request.name,
            spec,
            request.cron,
            request.timezone or "UTC",
            request.token,
            request.overlap or OVERLAP[0],
            request.missed or MISSED[0],
            request.keep or SCHEDULE_KEEP,
            next_fire_ms(request.cron, request.timezone or "UTC", self._proposer.wall_ms()),
            request.paused,
        )
        check_schedule(command)
        schedule = await self._proposer.propose(command)
        leader.wake()
        return schedule_info(self.state, schedule)

    async def get_schedule(self, name: str, times: int) -> pb.ScheduleInfo:
        """With its next `times`, TIMES_MAX at most."""
        state = await self.read()
        schedule = find_schedule(state, name)
        info = put_spec(schedule_info(state, schedule), schedule)
        if not schedule.paused and schedule.next_at_ms:
            coming = fire_times(schedule.cron, schedule.timezone, schedule.next_at_ms - 1)
            info.times_ms.extend(islice(coming, min(times, TIMES_MAX)))
        return info

    async def list_schedules(self) -> pb.ListSchedulesResponse:
        """By name."""
        state = await self.read()
        return pb.ListSchedulesResponse(
            schedules=[schedule_info(state, schedule) for _, schedule in sorted(state.schedules.items())]
        )

    async def pause_schedule(self, name: str, *, paused: bool) -> pb.ScheduleInfo:
        """A schedule that is resumed waits for its next time from now on."""
        leader = self.leader
        schedule = find_schedule(self.state, name)
        next_ms = 0 if paused else next_fire_ms(schedule.cron, schedule.timezone, self._proposer.wall_ms())
        schedule = await self._proposer.propose(PauseSchedule(name, paused, next_ms))
        leader.wake()
        return schedule_info(self.state, schedule)

    async def delete_schedule(self, name: str) -> None:
        _ = self.leader
        await self._proposer.propose(DeleteSchedule(name))

    async def trigger_schedule(self, name: str, token: str, token_at_ms: int, by: str = "") -> pb.JobInfo:
        leader = self.leader
        if not 0 < token_at_ms < 1 << 53:
            raise InvalidArgument(f"token_at_ms = {token_at_ms}: must be the time at which the token was drawn")
        command = TriggerSchedule(name, run_id(name, token_at_ms), token, token_at_ms, by)
        job = await self._proposer.propose(command)
        leader.wake()
        return self._submitted(job)

    # ---- projects

    async def set_project(self, request: pb.SetProjectRequest) -> pb.ProjectInfo:
        leader = self.leader
        command = changed(await self.read(), request)
        check_project(command)
        await self._proposer.propose(command)
        leader.wake()
        return project_info(self.state, request.name)

    async def list_projects(self) -> pb.ListProjectsResponse:
        return list_projects(await self.read())

    async def delete_project(self, name: str) -> None:
        _ = self.leader
        await self._proposer.propose(DeleteProject(name))

    # ---- the cluster

    async def backup(self, members: tuple[str, ...]) -> AsyncIterator[bytes]:
        """The parts of a backup of all that is known now (`raft.backup.joined`)."""
        state = await self.read()
        assert state is self.state
        node, slices = self._raft.status(), self._machine.snapshot()  # both of this moment
        yield backup.head(backup.online(node, members))
        for data in slices:
            yield data
            await asyncio.sleep(0)

    async def checkpoints(self, holder: pb.Holder) -> tuple[CheckpointService, Holder]:
        """Where to ask, and as whom. Raises NotFound."""
        state = self.state
        if holder.attempt == 0 or not holder.uid or state.job_of(holder.uid) is None:
            _, job = await self.find(await self.read(), holder.job_id, holder.uid)
            uid = job.uid
        else:
            _ = self.leader  # the fence is in the database: no barrier is needed
            uid = holder.uid
        assert self._archive is not None, "a leader has one"
        return self._archive.checkpoints, Holder(uid, holder.name, holder.attempt)

    async def cluster_status(self) -> pb.ClusterStatusResponse:
        """All but what the masters say of themselves."""
        state = await self.read()
        response = pb.ClusterStatusResponse(
            pruned=state.pruned_total,
            revision=state.revision,
            format=state.format,
            cluster_id=self._raft.cluster_id,
        )
        for job in state.jobs.values():
            response.jobs[str(job_state(job, state.groups_of(job)))] += 1
        sessions = self.leader.sessions
        for executor in state.executors.values():
            response.executors[executor_state(state, executor, sessions.get(executor.uid))] += 1
        if self._archive is not None:
            response.metadata.CopyFrom(pb.MetadataStatus(**self._archive.status()))
        return response

    # ---- executors

    async def list_executors(self) -> pb.ListExecutorsResponse:
        state, sessions = await self.read(), self.leader.sessions
        response = pb.ListExecutorsResponse()
        for executor in sorted(state.executors.values(), key=lambda executor: executor.name):
            response.executors.append(
                executor_info(state, executor, sessions.get(executor.uid), self._proposer.now_ms())
            )
        return response

    async def drain_executor(self, name: str, deadline_ms: int | None) -> pb.ExecutorInfo:
        leader = self.leader
        check_id("name", name)
        await self._proposer.propose(DrainExecutor(name, deadline_ms))
        leader.wake()
        return self._named(self.state, name)

    async def undrain_executor(self, name: str) -> pb.ExecutorInfo:
        leader = self.leader
        check_id("name", name)
        await self._proposer.propose(UndrainExecutor(name))
        leader.wake()
        return self._named(self.state, name)

    def _named(self, state: State, name: str) -> pb.ExecutorInfo:
        """The executor that has the name now, or had it last."""
        uid = state.names.get(name) or next(
            (uid for uid in reversed(state.executors) if state.executors[uid].name == name), None
        )
        if uid is None:
            raise NotFound(f"there is no executor {name}; `tiflow executor list` shows those that there are")
        session = self.leader.sessions.get(uid)
        return executor_info(state, state.executors[uid], session, self._proposer.now_ms())

    # ---- helpers

    def _submitted(self, job: Job | Pruned) -> pb.JobInfo:
        if isinstance(job, Pruned):  # a repeat, of a job that has ended and left since
            return pb.JobInfo(id=job.id, uid=job.uid, state=job.state)
        return job_info(self.state, job)
