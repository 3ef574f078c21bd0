"""A master and executors in this process, which keep the promises of the real ones as far as a client can see."""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from tiflow.client import Client
from tiflow.errors import NotFound, TiflowError
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.status import trailing_metadata


def fail(context: Any, error: TiflowError) -> None:
    context.set_trailing_metadata(trailing_metadata(error))
    context.abort(grpc.StatusCode[error.code], str(error))


class FakeExecutor(rpc.ExecutorServicer):  # type: ignore[misc]
    """Keeps results by (group, index, attempt)."""

    def __init__(self) -> None:
        self.address = ""
        self.kept: dict[tuple[str, int, int], bytes] = {}
        self.written: dict[tuple[str, int], list[pb.LogChunk]] = {}
        self.damaged = 0  #: how many more answers arrive damaged

    def keep(self, index: int, data: bytes, *, group: str = "main", attempt: int = 1) -> list[Any]:
        self.kept[group, index, attempt] = data
        return [len(data), hashlib.sha256(data).hexdigest()]

    def FetchResult(self, request: pb.FetchRequest, context: Any) -> Iterator[pb.Chunk]:
        data = self.kept.get((request.group, request.index, request.attempt))
        if data is None:
            fail(context, NotFound("no such result"))
        assert data is not None
        if self.damaged:
            self.damaged -= 1
            data = data[:-1] + b"?"
        for start in range(0, len(data), 1_000):
            yield pb.Chunk(data=data[start : start + 1_000])

    def Logs(self, request: pb.LogsRequest, context: Any) -> Iterator[pb.LogChunk]:
        chunks = self.written.get((request.group, request.index))
        if chunks is None:
            fail(context, NotFound("never ran here"))
        yield from (chunk for chunk in chunks or () if request.stream in ("", chunk.stream))


class FakeMaster(rpc.TiflowServicer):  # type: ignore[misc]
    """Jobs that go as the test says: it adds rows and ends."""

    def __init__(self) -> None:
        self.address = ""
        self.jobs: dict[str, pb.JobInfo] = {}
        self.specs: dict[str, pb.JobSpec] = {}
        self.tokens: dict[str, str] = {}
        self.rows: dict[str, list[pb.ResultRow]] = {}
        self.tasks: dict[str, list[pb.TaskInfo]] = {}
        self.executors: list[pb.ExecutorInfo] = []
        self.errors: list[Any] = []  #: to be answered first; a callable is called
        self.calls: list[str] = []
        self.on_rerun: Callable[[pb.RerunLostRequest], None] | None = None
        self.break_stream_after = 0  #: rows, once
        self._changed = threading.Condition()

    def enter(self, method: str, context: Any) -> None:
        self.calls.append(method)
        if self.errors:
            error = self.errors.pop(0)
            if callable(error):
                error(context)
            else:
                fail(context, error)

    def add_job(self, id: str, total: int, *, group: str = "main") -> None:
        self.jobs[id] = pb.JobInfo(
            id=id, uid=7, state="Running", type="python", groups=[pb.GroupProgress(name=group, total=total)]
        )
        self.rows[id] = []

    def add_row(self, id: str, start: int, stop: int, results: bytes = b"", **fields: Any) -> None:
        with self._changed:
            rows = self.rows[id]
            usual = {"row": len(rows), "group": "main", "attempt": 1, "outcome": "succeeded"}
            rows.append(pb.ResultRow(**{**usual, "start": start, "stop": stop, "results": results, **fields}))
            self._changed.notify_all()

    def end(self, id: str, state: str = "Finished", **counts: int) -> None:
        with self._changed:
            self.jobs[id].state = state
            for name, value in counts.items():
                setattr(self.jobs[id].groups[0], name, value)
            self._changed.notify_all()

    def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.JobInfo:
        id = request.spec.id
        if id not in self.jobs:
            self.specs[id], self.tokens[id] = request.spec, request.token
            groups = [pb.GroupProgress(name=group.name, total=group.count) for group in request.spec.groups]
            self.jobs[id] = pb.JobInfo(id=id, uid=len(self.jobs) + 1, state="Created", groups=groups)
        self.enter("SubmitJob", context)
        assert self.tokens[id] == request.token, "a retry is the same submission"
        return self.jobs[id]

    def _job(self, id: str, context: Any) -> pb.JobInfo:
        if id not in self.jobs:
            fail(context, NotFound(f"there is no job {id}"))
        return self.jobs[id]

    def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.JobInfo:
        self.enter("GetJob", context)
        return self._job(request.id, context)

    def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        self.enter("ListJobs", context)
        jobs = [job for job in self.jobs.values() if request.state in ("", job.state)]
        return pb.ListJobsResponse(jobs=jobs[: request.limit], total=len(self.jobs))

    def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.JobInfo:
        self.enter("CancelJob", context)
        self._job(request.id, context)
        self.end(request.id, "Canceled")
        return self.jobs[request.id]

    def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.JobInfo:
        self.enter("PauseJob", context)
        self._job(request.id, context).state = "Paused"
        return self.jobs[request.id]

    def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.JobInfo:
        self.enter("ResumeJob", context)
        self._job(request.id, context).state = "Running"
        return self.jobs[request.id]

    def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> pb.DeleteJobResponse:
        self._job(request.id, context)
        del self.jobs[request.id]
        self.enter("DeleteJob", context)
        return pb.DeleteJobResponse()

    def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> Iterator[pb.JobUpdate]:
        self.enter("WatchJob", context)
        job, row = self._job(request.id, context), request.from_row
        yield pb.JobUpdate(job=job)
        while True:
            with self._changed:
                rows = self.rows.get(request.id, [])[row:]
                if not rows and job.state not in ("Finished", "Failed", "Canceled"):
                    self._changed.wait(0.1)
                    if not context.is_active():
                        return
                    continue
            for one in rows:
                yield pb.JobUpdate(job=job, rows=[one])
                row += 1
                if self.break_stream_after == row:
                    self.break_stream_after = 0
                    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if not rows:
                yield pb.JobUpdate(job=job)
                return

    def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        if request.group and request.group not in [group.name for group in self._job(request.id, context).groups]:
            fail(context, NotFound(f"job {request.id} has no group {request.group}"))
        tasks = self.tasks.get(request.id, [])
        return pb.ListTasksResponse(tasks=[task for task in tasks if task.index >= request.start][: request.limit])

    def RerunLost(self, request: pb.RerunLostRequest, context: Any) -> pb.JobInfo:
        self.enter("RerunLost", context)
        if self.on_rerun is not None:
            self.on_rerun(request)
        return self._job(request.id, context)

    def ListExecutors(self, request: pb.ListExecutorsRequest, context: Any) -> pb.ListExecutorsResponse:
        return pb.ListExecutorsResponse(executors=self.executors)

    def RaftStatus(self, request: pb.RaftStatusRequest, context: Any) -> pb.RaftStatusResponse:
        self.enter("RaftStatus", context)
        follower = pb.RaftPeer(name="m1", match_index=5, lag=1, connected=True, last_contact_ms=20)
        common = {"term": 3, "leader": self.address, "snapshot_age_s": -1}
        return pb.RaftStatusResponse(
            masters=[
                pb.MasterStatus(name="m0", address=self.address, role="leader", peers=[follower], **common),
                pb.MasterStatus(name="m1", address="ip1:1", role="follower", **{**common, "snapshot_age_s": 90}),
                pb.MasterStatus(name="m2", address="ip2:1", role="unreachable", error="no answer", snapshot_age_s=-1),
            ]
        )


@contextmanager
def served(servicer: Any) -> Iterator[None]:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    if isinstance(servicer, FakeMaster):
        rpc.add_TiflowServicer_to_server(servicer, server)
    else:
        rpc.add_ExecutorServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    servicer.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    servicer = FakeMaster()
    with served(servicer):
        yield servicer


@pytest.fixture
def other_master() -> Iterator[FakeMaster]:
    servicer = FakeMaster()
    with served(servicer):
        yield servicer


@pytest.fixture
def executor() -> Iterator[FakeExecutor]:
    servicer = FakeExecutor()
    with served(servicer):
        yield servicer


@pytest.fixture
def client(master: FakeMaster) -> Iterator[Client]:
    with Client(master.address, timeout_s=3.0) as client:
        yield client


@pytest.fixture
def after() -> Iterator[Callable[[float, Callable[[], object]], None]]:
    """Calls something a moment later; one after the other, in the order in which it was asked to."""
    waiting: queue.Queue[tuple[float, Callable[[], object]] | None] = queue.Queue()

    def work() -> None:
        while (entry := waiting.get()) is not None:
            at_s, act = entry
            time.sleep(max(0.0, at_s - time.monotonic()))
            act()

    def start(delay_s: float, act: Callable[[], object]) -> None:
        waiting.put((time.monotonic() + delay_s, act))

    thread = threading.Thread(target=work)
    thread.start()
    yield start
    waiting.put(None)
    thread.join()
