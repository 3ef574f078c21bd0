"""gRPC on the masters' one port: protobuf to domain and back, errors to statuses, followers to the leader."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from tiflow import __version__
from tiflow.errors import Internal, InvalidArgument, NotLeader, OutcomeUnknown, Rejected, TiflowError, Unavailable
from tiflow.jobs.check import check_group
from tiflow.master.service import Service
from tiflow.master.watch import watch_job, watch_rows
from tiflow.raft.api import Member, NodeStatus
from tiflow.raft.node import RaftNode
from tiflow.rpc import convert, status
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.callers import FORWARDED, USER, Callers, was_forwarded
from tiflow.rpc.channels import Channels
from tiflow.rpc.tls import Tls
from tiflow.sched.model import RetryPolicy

FORWARD_TIMEOUT_S = 15.0
PEER_TIMEOUT_S = 1.0
#: calls that change nothing: if no answer comes, it is certain that nothing happened. Any other may have been done
READS = frozenset(
    {
        "BackupCluster",
        "ClusterStatus",
        "ExplainJob",
        "GetCheckpoint",
        "GetJob",
        "GetSchedule",
        "JobEvents",
        "ListCheckpoints",
        "ListExecutors",
        "ListJobs",
        "ListProjects",
        "ListSchedules",
        "ListTasks",
        "RenewClient",
        "WatchJob",
    }
)
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second master on the port must fail, not share it
    ("grpc.max_receive_message_length", 32 << 20),  # Raft's batches; the client API checks its own limit
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
]

log = structlog.get_logger()


class ApiServer(rpc.TiflowServicer):  # type: ignore[misc]
    """The client API. On a follower every call but RaftStatus is forwarded to the leader, once."""

    def __init__(
        self,
        name: str,
        service: Service,
        raft: RaftNode,
        *,
        address: str,
        members: tuple[Member, ...],
        http_address: str,
        retry: RetryPolicy,
        tls: Tls | None,
    ) -> None:
        self._name = name
        self._address = address
        self._service = service
        self._raft = raft
        self._members = members
        self._http_address = http_address
        self._retry = retry  #: for jobs that say nothing else
        self.peers = Channels(tls)
        self._callers = Callers(tls, [member.address for member in members])

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> Message:
        async def submit() -> Message:
            spec = convert.job_from_proto(request.spec, retry=self._retry)
            by = self._callers.name(context)
            return await self._service.submit_job(spec, request.token, request.token_at_ms, by)

        return await self._answer("SubmitJob", submit, request, context)

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> Message:
        return await self._answer("GetJob", lambda: self._service.get_job(request.id), request, context)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> Message:
        return await self._answer(
            "ListJobs",
            lambda: self._service.list_jobs(request.limit, request.state, request.before_uid),
            request,
            context,
        )

    async def JobEvents(self, request: pb.JobEventsRequest, context: Any) -> Message:
        def events() -> Awaitable[Message]:
            after = (request.after_revision, request.after_seq)
            return self._service.job_events(request.id, after, request.limit)

        return await self._answer("JobEvents", events, request, context)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> Message:
        def cancel() -> Awaitable[Message]:
            return self._service.cancel_job(request.id, self._callers.name(context))

        return await self._answer("CancelJob", cancel, request, context)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> Message:
        def pause() -> Awaitable[Message]:
            return self._service.pause_job(request.id, self._callers.name(context))

        return await self._answer("PauseJob", pause, request, context)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> Message:
        def resume() -> Awaitable[Message]:
            return self._service.resume_job(request.id, self._callers.name(context))

        return await self._answer("ResumeJob", resume, request, context)

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> Message:
        async def delete() -> Message:
            await self._service.delete_job(request.id)
            return pb.DeleteJobResponse()

        return await self._answer("DeleteJob", delete, request, context)

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> Message:
        def tasks() -> Awaitable[Message]:
            return self._service.list_tasks(request.id, request.group, request.start, request.limit)

        return await self._answer("ListTasks", tasks, request, context)

    async def RerunLost(self, request: pb.RerunLostRequest, context: Any) -> Message:
        def rerun() -> Awaitable[Message]:
            return self._service.rerun_lost(request.id, request.uid, request.row, request.index, request.missing)

        return await self._answer("RerunLost", rerun, request, context)

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: Any) -> Message:
        return await self._answer("ExplainJob", lambda: self._service.explain_job(request.id), request, context)

    async def DrainExecutor(self, request: pb.DrainExecutorRequest, context: Any) -> Message:
        def drain() -> Awaitable[Message]:
            deadline_ms = request.deadline_ms if request.HasField("deadline_ms") else None
            return self._service.drain_executor(request.name, deadline_ms)

        return await self._answer("DrainExecutor", drain, request, context)

    async def UndrainExecutor(self, request: pb.UndrainExecutorRequest, context: Any) -> Message:
        def undrain() -> Awaitable[Message]:
            return self._service.undrain_executor(request.name)

        return await self._answer("UndrainExecutor", undrain, request, context)

    async def SetProject(self, request: pb.SetProjectRequest, context: Any) -> Message:
        return await self._answer("SetProject", lambda: self._service.set_project(request), request, context)

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Any) -> Message:
        return await self._answer("ListProjects", self._service.list_projects, request, context)

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Any) -> Message:
        async def delete() -> Message:
            await self._service.delete_project(request.name)
            return pb.DeleteProjectResponse()

        return await self._answer("DeleteProject", delete, request, context)

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Any) -> Message:
        async def create() -> Message:
            request.spec.id = request.name  # each run gets an id of its own
            spec = convert.job_from_proto(request.spec, retry=self._retry)
            return await self._service.create_schedule(request, spec)

        return await self._answer("CreateSchedule", create, request, context)

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> Message:
        def get() -> Awaitable[Message]:
            return self._service.get_schedule(request.name, request.times)

        return await self._answer("GetSchedule", get, request, context)

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> Message:
        return await self._answer("ListSchedules", self._service.list_schedules, request, context)

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Any) -> Message:
        def pause() -> Awaitable[Message]:
            return self._service.pause_schedule(request.name, paused=True)

        return await self._answer("PauseSchedule", pause, request, context)

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Any) -> Message:
        def resume() -> Awaitable[Message]:
            return self._service.pause_schedule(request.name, paused=False)

        return await self._answer("ResumeSchedule", resume, request, context)

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Any) -> Message:
        async def delete() -> Message:
            await self._service.delete_schedule(request.name)
            return pb.DeleteScheduleResponse()

        return await self._answer("DeleteSchedule", delete, request, context)

    async def TriggerSchedule(self, request: pb.TriggerScheduleRequest, context: Any) -> Message:
        def trigger() -> Awaitable[Message]:
            by = self._callers.name(context)
            return self._service.trigger_schedule(request.name, request.token, request.token_at_ms, by)

        return await self._answer("TriggerSchedule", trigger, request, context)

    async def StartWorkers(self, request: pb.StartWorkersRequest, context: Any) -> Message:
        async def start() -> Message:
            group = convert.group_from_proto(request.group, "group", self._retry)
            check_group(group, "group")
            once = (request.number, request.settled)
            await self._service.start_workers(request.uid, request.attempt, group, once)
            return pb.StartWorkersReply()

        return await self._answer("StartWorkers", start, request, context)

    async def StopWorkers(self, request: pb.StopWorkersRequest, context: Any) -> Message:
        async def stop() -> Message:
            tasks = (request.group, request.start, request.stop)
            once = (request.number, request.settled)
            await self._service.stop_workers(request.uid, request.attempt, *tasks, request.forget, once)
            return pb.StopWorkersReply()

        return await self._answer("StopWorkers", stop, request, context)

    async def AddGroup(self, request: pb.AddGroupRequest, context: Any) -> Message:
        async def add() -> Message:
            group = convert.group_from_proto(request.group, "group", self._retry)
            check_group(group, "group")
            return await self._service.add_group(request.uid, request.number, group, tuple(request.drop))

        return await self._answer("AddGroup", add, request, context)

    async def CloseGroups(self, request: pb.CloseGroupsRequest, context: Any) -> Message:
        return await self._answer("CloseGroups", lambda: self._service.close_groups(request.uid), request, context)

    async def CancelTasks(self, request: pb.CancelTasksRequest, context: Any) -> Message:
        def cancel() -> Awaitable[Message]:
            return self._service.cancel_tasks(request.uid, request.group, request.start, request.stop, request.force)

        return await self._answer("CancelTasks", cancel, request, context)

    async def RenewClient(self, request: pb.RenewClientRequest, context: Any) -> Message:
        return await self._answer("RenewClient", lambda: self._service.renew_client(request.uid), request, context)

    async def PutCheckpoint(self, request: pb.PutCheckpointRequest, context: Any) -> Message:
        async def put() -> Message:
            checkpoints, holder = await self._service.checkpoints(request.holder)
            await checkpoints.put(holder, request.key, request.value, _patience_s(context))
            return pb.PutCheckpointResponse()

        return await self._answer("PutCheckpoint", put, request, context)

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> Message:
        async def delete() -> Message:
            checkpoints, holder = await self._service.checkpoints(request.holder)
            await checkpoints.put(holder, request.key, None, _patience_s(context))
            return pb.DeleteCheckpointResponse()

        return await self._answer("DeleteCheckpoint", delete, request, context)

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> Message:
        async def get() -> Message:
            checkpoints, holder = await self._service.checkpoints(request.holder)
            found = await checkpoints.get(holder, request.key, _patience_s(context))
            if found is None:
                return pb.GetCheckpointResponse()
            return pb.GetCheckpointResponse(
                found=True, value=found.value, attempt=found.attempt, updated_at_ms=found.updated_at_ms
            )

        return await self._answer("GetCheckpoint", get, request, context)

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> Message:
        async def page() -> Message:
            checkpoints, holder = await self._service.checkpoints(request.holder)
            found = await checkpoints.list(holder, request.prefix, request.after, request.limit, _patience_s(context))
            response = pb.ListCheckpointsResponse()
            for one in found:
                response.checkpoints.add(
                    key=one.key, size=one.size, attempt=one.attempt, updated_at_ms=one.updated_at_ms
                )
            return response

        return await self._answer("ListCheckpoints", page, request, context)

    async def ListExecutors(self, request: pb.ListExecutorsRequest, context: Any) -> Message:
        return await self._answer("ListExecutors", self._service.list_executors, request, context)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[Message]:
        try:
            watch = watch_rows if request.rows_only else watch_job
            async for update in watch(self._service, request.id, request.uid, request.from_row):
                yield update
        except NotLeader as error:
            if error.leader is None or was_forwarded(context):
                await status.abort(context, error)
            async for forwarded in self._forward_stream("WatchJob", error, request, context):
                yield forwarded
        except TiflowError as error:
            await status.abort(context, error)

    async def BackupCluster(self, request: pb.BackupClusterRequest, context: Any) -> AsyncIterator[Message]:
        try:
            async for part in self._service.backup(tuple(member.name for member in self._members)):
                yield pb.Chunk(data=part)
        except NotLeader as error:
            if error.leader is None or was_forwarded(context):
                await status.abort(context, error)
            async for forwarded in self._forward_stream("BackupCluster", error, request, context):
                yield forwarded
        except TiflowError as error:
            await status.abort(context, error)

    async def RaftStatus(self, request: pb.RaftStatusRequest, context: Any) -> pb.RaftStatusResponse:
        response = pb.RaftStatusResponse(masters=[self._own_status()])
        if request.all:
            others = [member for member in self._members if member.address != self._address]
            response.masters.extend(await asyncio.gather(*(self._ask_status(member) for member in others)))
            response.masters.sort(key=lambda master: master.name)
        return response

    async def ClusterStatus(self, request: pb.ClusterStatusRequest, context: Any) -> Message:
        async def cluster() -> Message:
            response = await self._service.cluster_status()
            masters = await self.RaftStatus(pb.RaftStatusRequest(all=True), context)
            response.masters.extend(masters.masters)
            return response

        return await self._answer("ClusterStatus", cluster, request, context)

    async def RaftTransfer(self, request: pb.RaftTransferRequest, context: Any) -> Message:
        async def transfer() -> Message:
            _ = self._service.leader
            leader = await self._raft.transfer(self._member_name(request.to))
            return pb.RaftTransferResponse(leader=leader.address, term=self._raft.term)

        return await self._answer("RaftTransfer", transfer, request, context)

    async def RaftSnapshot(self, request: pb.RaftSnapshotRequest, context: Any) -> Message:
        try:
            return pb.RaftSnapshotResponse(name=self._name, index=await self._raft.snapshot())
        except TiflowError as error:
            await status.abort(context, error)
        raise AssertionError("unreachable: abort raises")

    def _member_name(self, wanted: str) -> str | None:
        """Members go by their addresses; a master's `--name` is known only to itself."""
        if not wanted:
            return None
        found = [member.name for member in self._members if wanted in (member.name, member.address)]
        if not found:
            known = ", ".join(member.address for member in self._members)
            raise InvalidArgument(f"{wanted} is none of the masters: {known}; give one of these addresses")
        return found[0]

    def _own_status(self) -> pb.MasterStatus:
        message = _status_message(self._raft.status())
        message.name = self._name
        message.version = __version__
        message.http_address = self._http_address
        message.pid = os.getpid()
        return message

    async def _ask_status(self, member: Member) -> pb.MasterStatus:
        try:
            response = await self.peers.master(member.address).RaftStatus(
                pb.RaftStatusRequest(), timeout=PEER_TIMEOUT_S
            )
            found: pb.MasterStatus = response.masters[0]
            return found
        except grpc.aio.AioRpcError as error:
            reason = await self.peers.why(member.address, error)
            return pb.MasterStatus(
                name=member.name, address=member.address, role="unreachable", error=reason, snapshot_age_s=-1
            )

    # ---- answering and forwarding

    async def _answer(
        self, method: str, work: Callable[[], Awaitable[Message]], request: Message, context: Any
    ) -> Message:
        try:
            return await work()
        except NotLeader as error:
            if error.leader is None or was_forwarded(context):
                await status.abort(context, error)
            return await self._forward(method, error, request, context)
        except TiflowError as error:
            await status.abort(context, error)
        except Exception as bug:
            log.exception("call_failed", method=method)
            await status.abort(context, Internal(f"{type(bug).__name__}: {bug}; the master's log has more"))
        raise AssertionError("unreachable: abort raises")

    async def _forward(self, method: str, error: NotLeader, request: Message, context: Any) -> Message:
        assert error.leader is not None
        call = getattr(self.peers.master(error.leader), method)
        try:
            metadata = ((FORWARDED, self._name), (USER, self._callers.name(context).encode()))
            reply: Message = await call(request, timeout=FORWARD_TIMEOUT_S, metadata=metadata)
            return reply
        except grpc.aio.AioRpcError as failed:
            await _pass_on(context, failed, error.leader, write=method not in READS)
        raise AssertionError("unreachable: abort raises")

    async def _forward_stream(
        self, method: str, error: NotLeader, request: Message, context: Any
    ) -> AsyncIterator[Message]:
        assert error.leader is not None
        call = getattr(self.peers.master(error.leader), method)
        try:
            async for reply in call(request, metadata=((FORWARDED, self._name),)):
                yield reply
        except grpc.aio.AioRpcError as failed:
            await _pass_on(context, failed, error.leader, write=method not in READS)


class SessionServer(rpc.SessionsServicer):  # type: ignore[misc]
    """The executors' sessions. Only the leader has any; others answer where it is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Session(self, messages: AsyncIterator[pb.ExecutorMessage], context: Any) -> None:
        first = await anext(messages, None)
        if first is None or first.WhichOneof("body") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a session begins with a hello")
            return
        try:
            leader = self._service.leader
            session = await leader.open_session(first.hello)
        except Rejected as error:
            await context.write(pb.LeaderMessage(refused=pb.Refused(code=error.code, reason=str(error))))
            return
        except TiflowError as error:
            address = error.leader if isinstance(error, NotLeader) else None
            await context.write(pb.LeaderMessage(redirect=pb.Redirect(leader=address or "")))
            return
        reader = asyncio.create_task(leader.read_session(session, messages))
        reader.add_done_callback(lambda _: session.close())
        try:
            async for message in session.messages():
                await context.write(message)
        finally:
            leader.close_session(session)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


def _patience_s(context: Any) -> float:
    """A little less than the caller has: it should hear why."""
    left_s = context.time_remaining()
    return float("inf") if left_s is None else max(0.0, left_s - 0.2)


async def _pass_on(context: Any, failed: grpc.aio.AioRpcError, leader: str, *, write: bool) -> None:
    """Give the leader's error to the client as it is, its trailing metadata included. A leader that did not answer is
    our own finding: there will be another one, if a majority is up."""
    keep = tuple((key, value) for key, value in failed.trailing_metadata() or () if key.startswith("tiflow-"))
    if not keep and failed.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        text = f"the leader {leader} does not answer; a majority of the masters must be up to elect another one"
        await status.abort(context, OutcomeUnknown(text) if write else Unavailable(text))
    await context.abort(failed.code(), failed.details() or failed.code().name, keep)


def _status_message(node: NodeStatus) -> pb.MasterStatus:
    message = pb.MasterStatus(
        name=node.name,
        address=node.address,
        cluster_id=node.cluster_id,
        role=node.role,
        term=node.term,
        leader=node.leader or "",
        commit_index=node.commit_index,
        applied_index=node.applied_index,
        last_index=node.last_index,
        first_index=node.first_index,
        durable_index=node.durable_index,
        log_bytes=node.log_bytes,
        snapshot_index=node.snapshot_index,
        learner=node.learner,
        snapshot_age_s=-1 if node.snapshot_age_s is None else node.snapshot_age_s,
        disk=node.disk.state,
        disk_free_bytes=node.disk.free_bytes,
        disk_reserve_bytes=node.disk.reserve_bytes,
    )
    for peer in node.peers:
        message.peers.add(
            name=peer.name,
            match_index=peer.match_index,
            lag=peer.lag,
            connected=peer.connected,
            last_contact_ms=-1 if peer.last_contact_ms is None else peer.last_contact_ms,
        )
    return message
