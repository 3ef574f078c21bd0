"""What an executor serves: results that were too large for the control plane, and logs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from tiflow.errors import InvalidArgument, NotFound, TiflowError
from tiflow.exec import logs, store
from tiflow.exec.convert import check_group
from tiflow.exec.members import Members
from tiflow.rpc import status
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import ExecutorServicer

CHUNK_BYTES = 256 << 10
FOLLOW_S = 0.1

_Context: TypeAlias = Any  #: grpc.aio.ServicerContext; gRPC has no types


class Server(ExecutorServicer):  # type: ignore[misc]
    """`runs(job_uid, group, index, attempt)` tells whether an attempt may still write to its log."""

    def __init__(self, data_dir: str, runs: Callable[[int, str, int, int], bool], members: Members) -> None:
        self._data_dir = data_dir
        self._runs = runs
        self._members = members

    async def Deliver(self, request: pb.DeliverRequest, context: _Context) -> pb.DeliverReply:
        try:
            await self._members.deliver(request)
        except TiflowError as error:
            await status.abort(context, error)
        return pb.DeliverReply()

    async def AskMember(self, request: pb.AskMemberRequest, context: _Context) -> pb.AskMemberReply:
        try:
            return await self._members.ask(request)
        except TiflowError as error:
            await status.abort(context, error)

    async def FetchResult(self, request: pb.FetchRequest, context: _Context) -> AsyncIterator[pb.Chunk]:
        try:
            group = check_group(request.group)
            path = store.result_path(self._data_dir, request.job_uid, group, request.index, request.attempt)
            try:
                file = open(path, "rb")  # noqa: ASYNC230, SIM115  a local file; closed below
            except FileNotFoundError:
                raise NotFound(
                    f"no result of job uid {request.job_uid}, group {group}, task {request.index}, attempt"
                    f" {request.attempt} is kept here"
                ) from None
        except TiflowError as error:
            await _abort(context, error)
        with file:
            while data := file.read(CHUNK_BYTES):
                yield pb.Chunk(data=data)

    async def Logs(self, request: pb.LogsRequest, context: _Context) -> AsyncIterator[pb.LogChunk]:
        try:
            group = check_group(request.group)
            streams = _streams(request.stream)
            attempt = self._attempt(request)
        except TiflowError as error:
            await _abort(context, error)
        task = (request.job_uid, group, request.index, attempt)
        readers = [(stream, logs.LogReader(logs.log_path(self._data_dir, *task, stream))) for stream in streams]
        for _, reader in readers:
            if request.since_ms:
                reader.begin_at_time(time.time_ns() // 1_000_000 - request.since_ms)
            elif request.tail_bytes:
                reader.begin_at_tail(request.tail_bytes)
        while True:
            ended = not self._runs(*task)  # before reading: what it wrote until then is there
            for stream, reader in readers:
                while data := reader.read(CHUNK_BYTES):
                    yield pb.LogChunk(stream=stream, data=data, attempt=attempt)
            if ended or not request.follow:
                return
            await asyncio.sleep(FOLLOW_S)

    def _attempt(self, request: pb.LogsRequest) -> int:
        """The attempt that was asked for, or the newest one. Raises NotFound when it neither runs nor ran here."""
        task = (request.job_uid, request.group, request.index)
        if request.attempt:
            paths = (logs.log_path(self._data_dir, *task, request.attempt, stream) for stream in logs.STREAMS)
            if self._runs(*task, request.attempt) or any(logs.LogReader(path).exists() for path in paths):
                return request.attempt
        else:
            newest = logs.newest_attempt(self._data_dir, *task)
            running = next((a for a in range(newest, newest + 600) if self._runs(*task, a)), 0)
            if newest or running:
                return max(newest, running)
        raise NotFound(
            f"no log of job uid {request.job_uid}, group {request.group}, task {request.index} is kept here: it ran"
            " elsewhere, or wrote nothing"
        )


def _streams(stream: str) -> list[str]:
    if stream and stream not in logs.STREAMS:
        raise InvalidArgument(f"stream = {stream!r}: must be stdout, stderr, or empty for both")
    return [stream] if stream else list(logs.STREAMS)


async def _abort(context: _Context, error: TiflowError) -> None:
    await context.abort(getattr(grpc.StatusCode, error.code), str(error))
