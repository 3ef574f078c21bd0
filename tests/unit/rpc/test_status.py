from typing import Any

import grpc
import pytest

from tiflow import errors
from tiflow.errors import Internal, InvalidArgument, NotFound, NotLeader, OutcomeUnknown, TiflowError, Unavailable
from tiflow.rpc import status

LEAVES = [kind for kind in errors.CLASSES.values() if kind is not NotLeader]


class Failed(grpc.RpcError):
    """A failed call, as a client meets it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: Any = ()) -> None:
        self._parts = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


class Context:
    """What a server method is given: abort raises."""

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        raise Failed(code, details, metadata)


async def sent(error: TiflowError) -> Failed:
    with pytest.raises(Failed) as caught:
        await status.abort(Context(), error)
    return caught.value


def test_every_leaf_can_be_sent():
    assert {kind.__name__ for kind in LEAVES} == {
        "InvalidArgument", "NotFound", "AlreadyExists", "FailedPrecondition", "ResourceExhausted", "PermissionDenied",
        "Unauthenticated", "Internal", "Unavailable", "NoSpace", "OutcomeUnknown",
    }  # fmt: skip


@pytest.mark.parametrize("kind", LEAVES)
async def test_an_error_comes_back_as_its_class(kind: type[TiflowError]):
    failed = await sent(kind("what was wrong\nand what to do"))

    assert failed.code() is grpc.StatusCode[kind.code]
    for write in (False, True):
        error = status.from_rpc_error(failed, write=write)
        assert (type(error), str(error)) == (kind, "what was wrong and what to do")


@pytest.mark.parametrize("leader", ["ip1:10240", None])
async def test_not_leader_carries_the_leader(leader: str | None):
    error = status.from_rpc_error(await sent(NotLeader(leader)), write=True)

    assert isinstance(error, NotLeader)
    assert error.leader == leader


@pytest.mark.parametrize(
    ("code", "details", "read", "write"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", Unavailable, OutcomeUnknown),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Unavailable, OutcomeUnknown),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; …", Unavailable, Unavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, "bad", InvalidArgument, InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, "none", NotFound, NotFound),
        (grpc.StatusCode.UNKNOWN, "boom", Internal, Internal),
    ],
)
def test_what_is_not_marked_came_from_the_wire(code: Any, details: str, read: type, write: type):
    failed = Failed(code, details)

    assert type(status.from_rpc_error(failed, write=False)) is read
    assert type(status.from_rpc_error(failed, write=True)) is write


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("failed to connect to all addresses; last error: … connect: Connection refused (111)", "connection refused"),
        ("Deadline Exceeded", "no answer in time"),
        ("DNS resolution failed for nohost:1", "the host name is not known"),
        (
            "failed to connect to all addresses; … Failed parsing HTTP/2 (… Trying to connect an http1.x server (…))",
            "what answers there does not speak gRPC (is it a master's HTTP port, 10250 by default?)",
        ),
        ("", "the connection was lost"),
    ],
)
def test_the_reason_is_told_in_a_few_words(details: str, reason: str):
    assert status.reason(details) == reason


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "call host does not match SSL server name"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Custom verification check "
            "failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
        ),
    ],
)
def test_a_certificate_for_another_host_is_told_with_what_to_do(code: Any, details: str, write: bool):
    error = status.from_rpc_error(Failed(code, details), write=write)

    assert type(error) is Unavailable
    assert "tiflow cert issue --host" in str(error)


def test_no_class_without_an_exit_code_is_sent():
    assert not hasattr(errors.Rejected, "code")
