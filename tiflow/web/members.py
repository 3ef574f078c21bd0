"""HTTP of job masters and workers, at any master: /api/v1/jobs/{id}/… and /api/v1/jobs/{id}/workers/{name}/…

Each master's own copy of the state says where they run. Who has just moved is found a moment later: the answer is
then 503, as when it does not run.
"""

from collections.abc import Callable
from typing import Final

import grpc
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tiflow.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, TiflowError, Unavailable
from tiflow.jobs.framework.port import BODY_BYTES_MAX, MASTER, MASTER_GROUP, name_of
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channels import Channels
from tiflow.rpc.status import from_rpc_error
from tiflow.sched.model import Job
from tiflow.sched.state import State

ANSWER_S: Final = 30.0
HEADERS_MAX: Final = 64
METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
#: of one connection (RFC 9110, 7.6.1), or made anew, or not for user code to see
_OURS = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "date",
        "host",
        "keep-alive",
        "proxy-authorization",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class MemberRoutes:
    """`read_only`: callers are not known, and others than they may trust the cluster: nothing but GET and HEAD."""

    def __init__(self, state: Callable[[], State], channels: Channels, *, read_only: bool) -> None:
        self._state = state
        self._channels = channels
        self._read_only = read_only

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._ask(request)
        except TiflowError as error:
            return JSONResponse({"error": error.code, "message": str(error)}, status_code=error.http_status)

    async def _ask(self, request: Request) -> Response:
        if self._read_only and request.method not in ("GET", "HEAD"):
            raise PermissionDenied(
                f"{request.method}: this port asks nobody who they are; only GET and HEAD are served"
            )
        state = self._state()
        job = state.jobs.get(request.path_params["id"])
        if job is None or not job.spec.framework:
            raise NotFound(f"no job {request.path_params['id'][:128]} with a job master")
        name, group, index, path = _target(state, job, request.path_params["path"])
        message = pb.AskMemberRequest(
            job_uid=job.uid,
            to=name,
            method=request.method,
            path=path,
            query=request.url.query,
            headers=dict([(key, value) for key, value in request.headers.items() if key not in _OURS][:HEADERS_MAX]),
            body=await _body(request),
        )
        stub = self._channels.executor(_address(state, job, name, group, index))
        try:
            reply = await stub.AskMember(message, timeout=ANSWER_S)
        except grpc.RpcError as failure:
            raise from_rpc_error(failure, write=request.method not in ("GET", "HEAD")) from None
        headers = {key: value for key, value in reply.headers.items() if key.lower() not in _OURS}
        return Response(reply.body, reply.status or 200, headers)


def _target(state: State, job: Job, path: str) -> tuple[str, str, int, str]:
    """Name, group and index of who is asked, and the path that it is asked for."""
    first, _, rest = path.partition("/")
    if first != "workers" or not rest:
        return MASTER, MASTER_GROUP, 0, f"/{path}"
    group, _, rest = rest.partition("/")
    found = state.groups.get((job.uid, group))
    if found is None or group == MASTER_GROUP:
        raise NotFound(f"job {job.id} has no worker {group[:128]}")
    index = 0
    if found.count > 1:
        number, _, rest = rest.partition("/")
        if not number.isdecimal() or len(number) > 9 or int(number) >= found.count:
            raise NotFound(
                f"workers of group {group} are {group}/0 to {group}/{found.count - 1}; {number[:20]!r} is none"
            )
        index = int(number)
    return name_of(group, index, found.count), group, index, f"/{rest}"


def _address(state: State, job: Job, name: str, group: str, index: int) -> str:
    for placement in state.placements_of(job.uid):
        bit = index - placement.start
        if placement.group == group and bit >= 0 and placement.left >> bit & 1:
            return state.executors[placement.executor].address
    who = f"worker {name}" if name else "the job master"
    raise Unavailable(f"{who} of job {job.id} does not run now")


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise ResourceExhausted(f"body: more than {BODY_BYTES_MAX} bytes")
    except ClientDisconnect:
        raise InvalidArgument("body: the connection ended before its end") from None
    return bytes(body)
