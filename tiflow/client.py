"""The SDK: submit jobs, follow them, get their results.

    client = tiflow.Client("ip0:10240,ip1:10240,ip2:10240")
    job = client.run_python("wordcount:count_words", paths, path=["examples"])
    for result in job.results():
        print(result.index, result.value)

Methods raise `tiflow.errors.TiflowError`s, and may be called again after any of them. A client is thread-safe.
"""

import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self, Unpack

from msgspec.structs import replace

from tiflow import ids
from tiflow.checkpoints import Checkpoints
from tiflow.clock import SystemClock
from tiflow.errors import InvalidArgument, NotFound, OutcomeUnknown, Unavailable
from tiflow.fetch import Fetcher
from tiflow.jobs.check import check_job
from tiflow.jobs.framework.submission import master_work
from tiflow.jobs.items import items_count, items_encode
from tiflow.jobs.spec import parse_where
from tiflow.pool import PoolExecutor, PoolOptions
from tiflow.projects import Projects
from tiflow.results import Collector, Result
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channel import TIMEOUT_S, MasterChannel
from tiflow.rpc.executors import ExecutorChannels
from tiflow.rpc.tls import Tls
from tiflow.sched.framework import advertised
from tiflow.sched.model import MASTER_GROUP, Command, JobSpec, PlacementPolicy, Python, RetryPolicy
from tiflow.schedules import Schedules
from tiflow.submission import JobLimits, group_spec, job_spec, reference
from tiflow.values import parse_addresses
from tiflow.views import (
    ClusterInfo,
    Ended,
    ExecutorInfo,
    Explanation,
    GroupProgress,
    JobEvent,
    JobInfo,
    JobList,
    LogChunk,
    MasterInfo,
    MemberInfo,
    MetadataInfo,
    PeerInfo,
    TaskInfo,
)

__all__ = [
    "Client",
    "ClusterInfo",
    "Ended",
    "ExecutorInfo",
    "Explanation",
    "GroupProgress",
    "JobEvent",
    "JobHandle",
    "JobInfo",
    "JobLimits",
    "JobList",
    "LogChunk",
    "MasterInfo",
    "MemberInfo",
    "MetadataInfo",
    "PeerInfo",
    "PoolExecutor",
    "Result",
    "TaskInfo",
]

POLL_S = 0.5
LIST_MAX = 1_000
DEADLINE_S_MAX = 30 * 86_400
NO_ROWS = 1 << 62  #: a watch from this row on has no rows


class Client:
    """A connection to the masters: any of them, or several, as "host:port,host:port" or a list."""

    def __init__(
        self,
        master_addrs: str | Sequence[str] = "127.0.0.1:10240",
        *,
        timeout_s: float = TIMEOUT_S,
        refused_s: float | None = None,
        ca_path: str = "",
        cert_path: str = "",
        key_path: str = "",
    ) -> None:
        """`ca_path`, `cert_path`, `key_path`: PEM files, all three, for a cluster with mutual TLS.

        `timeout_s`: how long a call goes on while no master answers; `refused_s`: the same while not one of them
        lets us connect, when that should be told sooner.

        Raises InvalidArgument, also when the certificates do not fit together.
        """
        addresses = parse_addresses(master_addrs, "master_addrs")
        if not addresses:
            raise InvalidArgument("master_addrs is empty: name at least one master, as 127.0.0.1:10240")
        self._tls = Tls.given(ca_path, cert_path, key_path)
        self._masters = MasterChannel(addresses, timeout_s, refused_s=refused_s, tls=self._tls)
        self._executors = ExecutorChannels(self._tls)
        self._rng = random.SystemRandom()
        self._clock = SystemClock()
        self.projects = Projects(self._masters)
        self.schedules = Schedules(self._masters, self._rng, self._clock, lambda id, uid: JobHandle(self, id, uid))

    def close(self) -> None:
        """Close all connections."""
        self._masters.close()
        self._executors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- submitting

    def submit(self, spec: JobSpec) -> "JobHandle":
        """Submit a job; with an empty `spec.id`, one is drawn. Once this returns, the job survives any failure.

        Raises:
            InvalidArgument: the spec cannot work; names the field.
            AlreadyExists: another job has the id.
        """
        if not spec.id:
            spec = replace(spec, id=ids.new_id(self._rng, self._clock.now_ms()))
        check_job(spec)
        request = pb.SubmitJobRequest(
            spec=convert.job_to_proto(spec),
            token=ids.new_uid(self._rng),  # drawn once: the retries below get the same job
            token_at_ms=self._clock.now_ms(),
        )
        job = self._masters.call("SubmitJob", request, write=True)
        return JobHandle(self, job.id, job.uid)

    def run_python(
        self,
        function: str | Callable[..., Any],
        items: Iterable[Any],
        *,
        id: str = "",
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        retry: RetryPolicy | None = None,
        timeout_s: float = 0,
        priority: int = 50,
        name: str = "main",
        selectors: Sequence[str] = (),
        resources: Mapping[str, float | str] | None = None,
        placement: PlacementPolicy | None = None,
        **limits: Unpack[JobLimits],
    ) -> "JobHandle":
        """Call `function(item)` for each item, on the executors.

        `function` is "module:name", or a function of a module that executors can import. `path` is put in front of
        their sys.path; default: where the module was found, or the current directory for a name. Items and return
        values are what msgpack knows: None, bool, int, float, str, bytes, lists, dicts. Without `retry`, failed tasks
        are tried again as the masters' [job-backoff] says; a RetryPolicy replaces all of that.

        `selectors` are conditions on executors' labels, as in job files: "zone=eu", "node~e[0-9]+". `resources` is
        what each task needs while it runs: {"cpu": 0.5, "memory": "512MiB", "gpu": 1}.
        """
        name_of, default_path = reference(function)
        if isinstance(path, str | os.PathLike):
            path = [path]
        paths = default_path if path is None else [os.path.abspath(entry) for entry in path]
        blocks = items_encode(items)
        if not blocks:
            raise InvalidArgument("items is empty: a job needs at least one task")
        work = Python(function=name_of, path=tuple(paths))
        where = parse_where(selectors, resources, placement)
        group = group_spec(name, work, items_count(blocks), blocks, retry, timeout_s, where)
        return self.submit(job_spec(id, group, priority, limits))

    def run_command(
        self,
        argv: Sequence[str],
        *,
        count: int = 1,
        items: Iterable[Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        id: str = "",
        retry: RetryPolicy | None = None,
        timeout_s: float = 0,
        priority: int = 50,
        name: str = "main",
        selectors: Sequence[str] = (),
        resources: Mapping[str, float | str] | None = None,
        placement: PlacementPolicy | None = None,
        **limits: Unpack[JobLimits],
    ) -> "JobHandle":
        """Run a program `count` times, or once per item. `{index}` and `{item}` in argv, env values and cwd stand for
        the task's own. The rest is as in `run_python`."""
        if isinstance(argv, str):
            raise InvalidArgument(f'argv = "{argv}": must be a list, as ["sh", "-c", "{argv}"]')
        blocks = () if items is None else items_encode(items)
        if items is not None and not blocks:
            raise InvalidArgument("items is empty: a job needs at least one task")
        work = Command(argv=tuple(argv), env=dict(env or {}), cwd=cwd)
        where = parse_where(selectors, resources, placement)
        group = group_spec(name, work, items_count(blocks) or count, blocks, retry, timeout_s, where)
        return self.submit(job_spec(id, group, priority, limits))

    def run_job(
        self,
        type: str,
        config: Mapping[str, Any] | None = None,
        *,
        id: str = "",
        path: Sequence[str | os.PathLike[str]] = (),
        retry: RetryPolicy | None = None,
        priority: int = 50,
        selectors: Sequence[str] = (),
        resources: Mapping[str, float | str] | None = None,
        placement: PlacementPolicy | None = None,
        **limits: Unpack[JobLimits],
    ) -> "JobHandle":
        """Run a job of a framework type: its job master starts the workers, and the job ends with it.

        It goes to executors that know the type (`tiflow executor list` shows their labels `job-type.…`). `config` is
        the type's own, of what msgpack knows; a type that is installed here too checks it now. `path` is put in front
        of the members' sys.path. `retry`, `selectors`, `resources` and `placement` are the job master's.
        """
        work = master_work(type, config or {}, tuple(os.path.abspath(entry) for entry in path))
        where = parse_where(selectors, resources, placement)
        where["selectors"] = (*where["selectors"], advertised(type))
        group = group_spec(MASTER_GROUP, work, 1, (), retry, 0, where)
        return self.submit(replace(job_spec(id, group, priority, limits), open=True))

    def executor(self, **options: Unpack[PoolOptions]) -> PoolExecutor:
        """A `concurrent.futures.Executor` whose functions run on the executors of the cluster. See `tiflow.pool`."""
        return PoolExecutor(self._masters, self._executors, ids.new_id(self._rng, self._clock.now_ms()), **options)

    # ---- jobs

    def job(self, id: str) -> "JobHandle":
        """A handle for a job that was submitted before. Raises NotFound."""
        return JobHandle(self, id, self.get(id).uid)

    def get(self, id: str) -> JobInfo:
        """Where the job stands, and why its waiting tasks wait. Raises NotFound."""
        return JobInfo.of(self._masters.call("GetJob", pb.GetJobRequest(id=id)))

    def explain(self, id: str) -> tuple[Explanation, ...]:
        """Why the waiting tasks of the job wait, group by group. Raises NotFound."""
        response = self._masters.call("ExplainJob", pb.ExplainJobRequest(id=id))
        return tuple(Explanation.of(group) for group in response.groups)

    def list(self, *, limit: int = 100, state: str = "", before_uid: int = 0) -> JobList:
        """The newest jobs first, those too that have left the masters for the database; with `state`, only those.
        `before_uid`: the `next` of the page before."""
        request = pb.ListJobsRequest(limit=limit, state=state, before_uid=before_uid)
        return JobList.of(self._masters.call("ListJobs", request))

    def events(self, id: str) -> Iterator[JobEvent]:
        """What happened to a job, in order. Raises NotFound."""
        request = pb.JobEventsRequest(id=id, limit=LIST_MAX)
        while True:
            response = self._masters.call("JobEvents", request)
            yield from (JobEvent.of(event) for event in response.events)
            if len(response.events) < LIST_MAX:
                return
            request.after_revision, request.after_seq = response.events[-1].revision, response.events[-1].seq

    def cancel(self, id: str) -> JobInfo:
        """Ask for the end of a job: tasks that run get SIGTERM, then SIGKILL. A job that has ended stays as it is."""
        return JobInfo.of(self._masters.call("CancelJob", pb.CancelJobRequest(id=id), write=True))

    def pause(self, id: str) -> JobInfo:
        """Place nothing more of a job; what is out goes on to its end. A job that has ended stays as it is."""
        return JobInfo.of(self._masters.call("PauseJob", pb.PauseJobRequest(id=id), write=True))

    def resume(self, id: str) -> JobInfo:
        """Go on with a paused job."""
        return JobInfo.of(self._masters.call("ResumeJob", pb.ResumeJobRequest(id=id), write=True))

    def delete(self, id: str) -> None:
        """Forget a job that has ended. Raises FailedPrecondition while it has not."""
        self._masters.call("DeleteJob", pb.DeleteJobRequest(id=id), write=True, done_if=NotFound)

    def watch(self, id: str) -> Iterator[JobInfo]:
        """The job now, and whenever it changes, until it has ended."""
        for update in self._watch(id, 0, lambda: NO_ROWS):
            yield JobInfo.of(update.job)

    def wait(self, id: str, *, timeout_s: float | None = None) -> JobInfo:
        """The job once it has ended. Raises OutcomeUnknown if that takes longer than `timeout_s`."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.get(id)
            if job.ended:
                return job
            if deadline_s is None:
                for update in self._watch(id, job.uid, lambda: NO_ROWS):
                    job = JobInfo.of(update.job)
                if job.ended:
                    return job
                continue
            if time.monotonic() >= deadline_s:
                raise OutcomeUnknown(
                    f"job {id} is still {job.state} after {timeout_s:g} s "
                    f"({job.succeeded + job.failed + job.canceled + job.skipped} of {job.total} tasks have ended)"
                )
            time.sleep(min(0.1, max(0.0, deadline_s - time.monotonic())))

    def results(self, id: str, *, ordered: bool = True) -> Generator[Result, None, None]:
        """One Result per task, as they become known: in the order of the tasks, or of their ends. Goes on until the
        job has ended. A result that was lost with its executor is computed again."""
        return self._results(id, 0, ordered=ordered)

    def history(self, id: str) -> Iterator[Ended]:
        """Every end with a result or an error that the cluster has recorded, in the order of the log, up to now."""
        reader = _Position()
        for update in self._watch(id, self.get(id).uid, lambda: reader.row):
            for record in update.rows:
                reader.row = record.row + 1
                yield Ended.of(record)
            if reader.row >= update.job.result_rows:
                return

    def failures(self, id: str, *, limit: int = 10) -> tuple[Result, ...]:
        """The first tasks that failed for good."""
        rows = (row for row in self.history(id) if row.outcome != "succeeded")
        each = (
            Result(row.group, index, None, row.error, row.attempt, "failed")
            for row in rows
            for index in range(row.start, row.stop)
        )
        return tuple(islice(each, limit))

    def tasks(self, id: str, *, group: str = "", start: int = 0, limit: int = 100) -> tuple[TaskInfo, ...]:
        """Tasks of the job (of one group), from index `start` on."""
        request = pb.ListTasksRequest(id=id, group=group, start=start, limit=limit)
        return tuple(TaskInfo.of(task) for task in self._masters.call("ListTasks", request).tasks)

    def logs(
        self,
        id: str,
        index: int = 0,
        *,
        group: str = "",
        attempt: int = 0,
        follow: bool = False,
        stream: str = "",
        tail_bytes: int = 0,
        since_s: float = 0,
    ) -> Iterator[LogChunk]:
        """What a task wrote to stdout and stderr (or one `stream`): of its newest attempt, or of the given one. With
        `follow`, waits for it to start and goes on until it has ended. Of a long log, `tail_bytes` asks for the last
        bytes only, and `since_s` for what was written in the last so many seconds. Raises NotFound."""
        job = self.get(id)
        names = [progress.name for progress in job.groups]
        group = group or names[0]
        if group not in names:
            raise NotFound(f"job {id} has no group {group}; it has {', '.join(names)}")
        total = job.groups[names.index(group)].total
        if not 0 <= index < total:
            raise NotFound(f"job {id} has no task {index} in group {group}; it has {total}, counted from 0")
        request = pb.LogsRequest(
            job_uid=job.uid,
            group=group,
            index=index,
            attempt=attempt,
            follow=follow,
            stream=stream,
            tail_bytes=tail_bytes,
            since_ms=round(since_s * 1_000),
        )
        return self._logs(id, request)

    def checkpoints(self, id: str, *, attempt: int = 0, holder: str = "", uid: int = 0) -> Checkpoints:
        """The checkpoints of a job: for attempt `attempt` of its master, or of the worker named `holder`. Attempt 0
        is a bystander's: it reads and shuts nobody out. `uid`: of that submission only."""
        return Checkpoints(self._masters, pb.Holder(job_id=id, uid=uid, name=holder, attempt=attempt))

    # ---- the cluster

    def executors(self) -> tuple[ExecutorInfo, ...]:
        """All executors that are registered, those that are gone too."""
        response = self._masters.call("ListExecutors", pb.ListExecutorsRequest())
        return tuple(ExecutorInfo.of(executor) for executor in response.executors)

    def drain(self, name: str, *, deadline_s: float | None = None) -> ExecutorInfo:
        """Place nothing more on the executor with that name, also when it comes back, until `undrain`. What runs
        there after `deadline_s` is stopped and placed elsewhere, which is not its failure; None: it goes on to its
        end. Said again, the deadline can come forward and is never put off. Raises NotFound."""
        request = pb.DrainExecutorRequest(name=name)
        if deadline_s is not None:
            if not 0 <= deadline_s <= DEADLINE_S_MAX:
                raise InvalidArgument(f"deadline_s = {deadline_s:g}: must be 0 to {DEADLINE_S_MAX}")
            request.deadline_ms = round(deadline_s * 1_000)
        return ExecutorInfo.of(self._masters.call("DrainExecutor", request, write=True))

    def undrain(self, name: str) -> ExecutorInfo:
        """Let the executor with that name have tasks again. Raises NotFound."""
        return ExecutorInfo.of(
            self._masters.call("UndrainExecutor", pb.UndrainExecutorRequest(name=name), write=True)
        )

    def raft_status(self, *, all: bool = True) -> tuple[MasterInfo, ...]:
        """What each master says of itself, or only the one that was asked."""
        response = self._masters.call("RaftStatus", pb.RaftStatusRequest(all=all))
        return tuple(MasterInfo.of(master) for master in response.masters)

    def cluster_status(self) -> ClusterInfo:
        """The whole at a glance. Without a leader: what the masters say of themselves."""
        try:
            return ClusterInfo.of(self._masters.call("ClusterStatus", pb.ClusterStatusRequest()))
        except Unavailable:
            masters = self._masters.call("RaftStatus", pb.RaftStatusRequest(all=True)).masters
            return ClusterInfo.of(pb.ClusterStatusResponse(masters=masters))

    def backup(self) -> Iterator[bytes]:
        """The parts of a backup of all that the masters know (`tiflow.raft.backup.joined` puts them together)."""
        with closing(self._masters.stream("BackupCluster", pb.BackupClusterRequest)) as parts:
            for part in parts:
                yield part.data

    def transfer_leadership(self, to: str = "") -> str:
        """Let the master at address `to` lead, or the one that has most of the log. Returns: the address of the one
        that leads now. Raises InvalidArgument, Unavailable (it did not take over in time)."""
        for master in self.raft_status() if to else ():
            if to in (master.name, master.address):
                to = master.address
        request = pb.RaftTransferRequest(to=to)
        reply = self._masters.call("RaftTransfer", request, write=True)
        return str(reply.leader)

    def raft_snapshot(self) -> dict[str, int]:
        """Make every master that can be reached write a snapshot. Returns: by address, the index that it covers."""
        indexes = {}
        for master in self.raft_status():
            if master.role != "unreachable":
                with MasterChannel((master.address,), self._masters.timeout_s, tls=self._tls) as channel:
                    indexes[master.address] = int(channel.call("RaftSnapshot", pb.RaftSnapshotRequest()).index)
        return indexes

    # ---- helpers

    def _watch(self, id: str, uid: int, from_row: Callable[[], int]) -> Generator[pb.JobUpdate, None, None]:
        """Updates until the job has ended; of one and the same job, even if its id is given to another."""
        bound = uid

        def request() -> pb.WatchJobRequest:
            return pb.WatchJobRequest(id=id, uid=bound, from_row=from_row())

        with closing(self._masters.stream("WatchJob", request)) as updates:
            for update in updates:
                bound = update.job.uid
                yield update

    def _results(self, id: str, uid: int, *, ordered: bool) -> Generator[Result, None, None]:
        bound = uid or self.get(id).uid

        def states(group: str, start: int) -> dict[int, str]:
            try:
                return {task.index: task.state for task in self.tasks(id, group=group, start=start, limit=LIST_MAX)}
            except NotFound:
                return {}  # the job has forgotten that group

        fetch = Fetcher(self._masters, self._executors, id, bound)
        collector = Collector(lambda from_row: self._watch(id, bound, from_row), fetch, states)
        try:
            yield from collector.ordered() if ordered else collector.arrivals()
        finally:
            collector.close()

    def _logs(self, id: str, request: pb.LogsRequest) -> Iterator[LogChunk]:
        while True:
            for address in self._log_addresses(id, request):
                try:
                    for chunk in self._executors.logs(address, request):
                        yield LogChunk(stream=chunk.stream, data=chunk.data, attempt=chunk.attempt)
                except (NotFound, Unavailable):
                    continue  # it ran elsewhere, or that executor is gone
                return
            if not request.follow or self.get(id).ended:
                raise NotFound(
                    f"no executor has output of task {request.index} of group {request.group} of job {id}: it has "
                    "not started, wrote nothing, or ran on an executor that is gone"
                )
            time.sleep(POLL_S)

    def _log_addresses(self, id: str, request: pb.LogsRequest) -> tuple[str, ...]:
        """Where to ask: the executor that has the task first, then all others that are alive."""
        tasks = self.tasks(id, group=request.group, start=request.index, limit=1)
        first = [task.address for task in tasks if task.index == request.index and task.address]
        alive = [executor.address for executor in self.executors() if executor.state != "gone"]
        return tuple(dict.fromkeys([*first, *alive]))


@dataclass
class _Position:
    row: int = 0  #: the next one to read


@dataclass(frozen=True)
class JobHandle:
    """A job that was submitted. It stands for that submission: when the job is deleted and its id used again, the
    handle's results do not become the other's."""

    client: Client
    id: str
    uid: int

    def info(self) -> JobInfo:
        return self.client.get(self.id)

    def wait(self, *, timeout_s: float | None = None) -> JobInfo:
        """See Client.wait."""
        return self.client.wait(self.id, timeout_s=timeout_s)

    def results(self, *, ordered: bool = True) -> Generator[Result, None, None]:
        """See Client.results."""
        return self.client._results(self.id, self.uid, ordered=ordered)

    def cancel(self) -> JobInfo:
        """See Client.cancel."""
        return self.client.cancel(self.id)

    def pause(self) -> JobInfo:
        """See Client.pause."""
        return self.client.pause(self.id)

    def resume(self) -> JobInfo:
        """See Client.resume."""
        return self.client.resume(self.id)

    def delete(self) -> None:
        """See Client.delete."""
        self.client.delete(self.id)

    def tasks(self, *, group: str = "", start: int = 0, limit: int = 100) -> tuple[TaskInfo, ...]:
        """See Client.tasks."""
        return self.client.tasks(self.id, group=group, start=start, limit=limit)

    def logs(self, index: int = 0, **options: Any) -> Iterator[LogChunk]:
        """See Client.logs."""
        return self.client.logs(self.id, index, **options)
