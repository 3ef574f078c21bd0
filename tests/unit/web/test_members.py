"""Which member an HTTP request is for, and what becomes of it on its way."""

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from msgspec import json
from starlette.requests import Request
from starlette.responses import Response

from tests.unit.sched.support import Cluster
from tiflow.jobs.framework.port import BODY_BYTES_MAX
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import Place, PlaceTasks, SetFormat, StartWorkers, SubmitJob
from tiflow.sched.model import MASTER_GROUP, Framework, GroupSpec, JobSpec, Placement
from tiflow.web.members import MemberRoutes


class Executors:
    """Stands for the channels to executors: remembers who was asked for what."""

    def __init__(self, reply: pb.AskMemberReply | Exception) -> None:
        self.reply = reply
        self.asked: list[tuple[str, pb.AskMemberRequest]] = []

    def executor(self, address: str) -> Any:
        executors = self

        class Stub:
            async def AskMember(self, request: pb.AskMemberRequest, timeout: float) -> pb.AskMemberReply:
                executors.asked.append((address, request))
                if isinstance(executors.reply, Exception):
                    raise executors.reply
                return executors.reply

        return Stub()


class Away(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "failed to connect to all addresses"

    def trailing_metadata(self) -> Sequence[tuple[str, str]]:
        return ()


@pytest.fixture
def cluster() -> Cluster:
    """Job j: its job master on a; of the workers many/0 to many/2 the last on b; `one` waits."""
    cluster = Cluster()
    cluster.apply(SetFormat(3))
    a, b = cluster.register("a", slots=9), cluster.register("b", slots=9)
    master = GroupSpec(MASTER_GROUP, Framework("t"))
    job = cluster.apply(SubmitJob(JobSpec("j", (master,), open=True), "token", cluster.now_ms))
    cluster.submit("plain")

    def place(group: str, start: int, stop: int, executor: Any) -> Placement:
        found: tuple[Placement, ...] = cluster.apply(
            PlaceTasks((Place(job.uid, group, start, stop, 1, executor.uid, executor.incarnation),))
        )
        return found[0]

    place(MASTER_GROUP, 0, 1, a)
    for name, items in (("many", b"\x93\x80\x80\x80"), ("one", b"\x91\x80")):
        count = items[0] & 0x0F  # a msgpack array of empty configs
        cluster.apply(StartWorkers(job.uid, 1, GroupSpec(name, Framework("t", "w"), count, (items,))))
    place("many", 0, 3, b)
    return cluster


async def ask(
    cluster: Cluster,
    path: str,
    *,
    id: str = "j",
    method: str = "GET",
    query: str = "",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    executors: Executors | None = None,
    read_only: bool = False,
) -> tuple[Response, Executors]:
    executors = executors or Executors(pb.AskMemberReply(status=200, body=b"answer"))
    routes = MemberRoutes(lambda: cluster.state, executors, read_only=read_only)  # type: ignore[arg-type]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(key.encode(), value.encode()) for key, value in (headers or {}).items()],
        "path_params": {"id": id, "path": path},
        "server": ("m", 1),
        "scheme": "http",
    }
    sent = [body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20)] or [b""]

    async def receive() -> dict[str, Any]:
        part = sent.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(sent)}

    return await routes(Request(scope, receive)), executors


@pytest.mark.parametrize(
    ("path", "address", "to", "below"),
    [
        ("progress", "a:1", "", "/progress"),
        ("", "a:1", "", "/"),
        ("a/b/c", "a:1", "", "/a/b/c"),
        ("workers", "a:1", "", "/workers"),
        ("workers/many/2/show/all", "b:1", "many/2", "/show/all"),
        ("workers/many/0", "b:1", "many/0", "/"),
    ],
)
async def test_a_path_finds_its_member(cluster: Cluster, path: str, address: str, to: str, below: str):
    response, executors = await ask(cluster, path, query="x=1", method="POST", body=b"body")

    ((asked, request),) = executors.asked
    assert (asked, request.to, request.path, request.query) == (address, to, below, "x=1")
    assert (request.method, request.body) == ("POST", b"body")
    assert (response.status_code, bytes(response.body)) == (200, b"answer")


@pytest.mark.parametrize(
    ("id", "path", "status", "text"),
    [
        ("nothing", "x", 404, "no job nothing"),
        ("plain", "x", 404, "no job plain with a job master"),
        ("j", "workers/nobody/x", 404, "no worker nobody"),
        ("j", "workers/master/x", 404, "no worker master"),
        ("j", "workers/many/3/x", 404, "many/0 to many/2"),
        ("j", "workers/many/x", 404, "many/0 to many/2"),
        ("j", "workers/one/x", 503, "worker one of job j does not run now"),
    ],
)
async def test_who_is_not_there_is_said_by_name(cluster: Cluster, id: str, path: str, status: int, text: str):
    response, executors = await ask(cluster, path, id=id)

    assert not executors.asked
    assert response.status_code == status
    assert text in json.decode(bytes(response.body))["message"]


async def test_headers_that_are_not_the_members_business_stay_here(cluster: Cluster):
    reply = pb.AskMemberReply(status=201, headers={"content-type": "x/y", "Connection": "close", "server": "mine"})
    headers = {"accept": "x/y", "authorization": "secret", "cookie": "secret", "host": "m", "x-own": "1"}

    response, executors = await ask(cluster, "x", headers=headers, executors=Executors(reply))

    assert dict(executors.asked[0][1].headers) == {"accept": "x/y", "x-own": "1"}
    assert response.status_code == 201
    assert response.headers["content-type"] == "x/y"
    assert not {"connection", "server"} & set(response.headers)


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("POST", 403), ("DELETE", 403)])
async def test_who_is_not_known_may_look_and_change_nothing(cluster: Cluster, method: str, status: int):
    response, executors = await ask(cluster, "x", method=method, read_only=True)

    assert response.status_code == status
    assert bool(executors.asked) is (status == 200)


async def test_a_body_is_bounded_before_it_is_all_here(cluster: Cluster):
    response, executors = await ask(cluster, "x", method="PUT", body=bytes(BODY_BYTES_MAX + 1))

    assert response.status_code == 429
    assert not executors.asked


async def test_an_executor_that_does_not_answer_is_a_503(cluster: Cluster):
    response, _ = await ask(cluster, "x", executors=Executors(Away()))

    assert response.status_code == 503
