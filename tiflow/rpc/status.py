"""Our errors as gRPC statuses, and back.

gRPC's own UNAVAILABLE says nothing about whether a write happened. An error that a server of ours decided on is
therefore marked in the trailing metadata; what is not marked came from the wire.
"""

from typing import Any, NoReturn

import grpc

from tiflow.errors import (
    CLASSES,
    FailedPrecondition,
    Internal,
    NotLeader,
    OutcomeUnknown,
    TiflowError,
    Unavailable,
)

ERROR_KEY = "tiflow-error"  #: trailing metadata: the class of the error
LEADER_KEY = "tiflow-leader"  #: … and the address that NotLeader carries


async def abort(context: Any, error: TiflowError) -> NoReturn:
    """End a call on the server (grpc.aio) with this error."""
    details = " ".join(str(error).split()) or type(error).__name__
    await context.abort(grpc.StatusCode[error.code], details, trailing_metadata(error))
    raise AssertionError("context.abort returned")


def trailing_metadata(error: TiflowError) -> tuple[tuple[str, str], ...]:
    """What marks an error as ours."""
    mark = ((ERROR_KEY, type(error).__name__),)
    if isinstance(error, NotLeader) and error.leader:
        return (*mark, (LEADER_KEY, error.leader))
    return mark


def from_rpc_error(error: grpc.RpcError, *, write: bool) -> TiflowError:
    """The error that a failed call means. `write`: the call may have changed something."""
    code, details = error.code(), error.details() or ""
    metadata = dict(error.trailing_metadata() or ())
    kind = CLASSES.get(metadata.get(ERROR_KEY, ""))
    if kind is NotLeader:
        return NotLeader(metadata.get(LEADER_KEY))
    if kind is not None:
        return kind(details)
    if code in _PERHAPS:
        unsent = details.startswith("failed to connect to all addresses")
        return OutcomeUnknown(reason(details)) if write and not unsent else Unavailable(reason(details))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FailedPrecondition(
            "what answered is not a tiflow master (an executor, perhaps?): --master-addrs and "
            "TIFLOW_MASTER_ADDRS name the masters' gRPC ports, 10240 by default"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED and "host" in details:
        return Unavailable(OTHER_HOST)  # another address may do
    for candidate in CLASSES.values():
        if candidate.code == code.name:
            return candidate(details)
    return Internal(f"the server failed: {code.name}: {details}")


def is_ours(error: grpc.RpcError) -> bool:
    """Whether a server of ours decided on this error: it is there, and nothing else happened."""
    return ERROR_KEY in dict(error.trailing_metadata() or ())


OTHER_HOST = (
    "the certificate of who answered is for another host than the one that was dialled; dial a name that it has, or "
    "make one that names this host (`tiflow cert issue --host`)"
)
_PERHAPS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def reason(details: str) -> str:
    """gRPC's account of a failed connection, in a few words."""
    for words in ("Connection refused", "Deadline Exceeded", "Connection reset", "Socket closed"):
        if words.lower() in details.lower():
            return {"Deadline Exceeded": "no answer in time"}.get(words, words.lower())
    if "http1.x server" in details or "Failed parsing HTTP/2" in details:
        return "what answers there does not speak gRPC (is it a master's HTTP port, 10250 by default?)"
    if "hostname verification" in details.lower():  # gRPC says UNAVAILABLE of it, or UNAUTHENTICATED
        return OTHER_HOST
    if "DNS" in details or "Domain name" in details or "resolution" in details:
        return "the host name is not known"
    return " ".join(details.split()) or "the connection was lost"
