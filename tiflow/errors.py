"""Every error that a caller of tiflow can meet.

There are three families, and one question tells them apart: *did it happen?*

    TiflowError
    ├── Rejected              no, and asking again changes nothing
    │   ├── InvalidArgument       INVALID_ARGUMENT       exit 2
    │   ├── NotFound              NOT_FOUND              exit 3
    │   ├── AlreadyExists         ALREADY_EXISTS         exit 4
    │   ├── FailedPrecondition    FAILED_PRECONDITION    exit 5
    │   ├── ResourceExhausted     RESOURCE_EXHAUSTED     exit 6
    │   ├── PermissionDenied      PERMISSION_DENIED      exit 9
    │   ├── Unauthenticated       UNAUTHENTICATED        exit 10
    │   └── Internal              INTERNAL               exit 70   a bug in tiflow
    ├── Unavailable           no: try again, perhaps elsewhere
    │   │                         UNAVAILABLE            exit 7
    │   ├── NotLeader             UNAVAILABLE            exit 7    carries the leader's address
    │   └── NoSpace               UNAVAILABLE            exit 7    names the directory of the leader
    └── OutcomeUnknown        perhaps: commands are idempotent, so ask again
                                  DEADLINE_EXCEEDED      exit 8

`code` is the name of a gRPC status, `http_status` that of the REST API, `exit_code` what the command line ends
with. Anything else that is raised is a bug and ends the process.
"""

from typing import ClassVar


class TiflowError(Exception):
    """Base of all errors below. Raise a leaf, never this."""

    code: ClassVar[str]
    http_status: ClassVar[int]
    exit_code: ClassVar[int]


class Rejected(TiflowError):
    """The request was refused. Nothing changed."""


class InvalidArgument(Rejected):
    """What was asked can never work: it names the field, the value and the remedy."""

    code, http_status, exit_code = "INVALID_ARGUMENT", 400, 2


class NotFound(Rejected):
    """There is no such thing."""

    code, http_status, exit_code = "NOT_FOUND", 404, 3


class AlreadyExists(Rejected):
    """The id is taken by something else."""

    code, http_status, exit_code = "ALREADY_EXISTS", 409, 4


class FailedPrecondition(Rejected):
    """Not in the present state, or not on this machine (a port in use, a directory that is not ours)."""

    code, http_status, exit_code = "FAILED_PRECONDITION", 412, 5


class ResourceExhausted(Rejected):
    """A limit is reached; the message names it."""

    code, http_status, exit_code = "RESOURCE_EXHAUSTED", 429, 6


class PermissionDenied(Rejected):
    """Known, but not allowed."""

    code, http_status, exit_code = "PERMISSION_DENIED", 403, 9


class Unauthenticated(Rejected):
    """Not known."""

    code, http_status, exit_code = "UNAUTHENTICATED", 401, 10


class Internal(Rejected):
    """A bug in tiflow."""

    code, http_status, exit_code = "INTERNAL", 500, 70


class Unavailable(TiflowError):
    """Nothing happened, and nothing says that it never will."""

    code, http_status, exit_code = "UNAVAILABLE", 503, 7


class NotLeader(Unavailable):
    """This master does not lead. `leader` is the address of the one that did a moment ago, if known."""

    def __init__(self, leader: str | None = None) -> None:
        super().__init__(f"not the leader; try {leader}" if leader else "no leader is known yet; try again")
        self.leader = leader


class NoSpace(Unavailable):
    """The leader's disk is nearly full, so that it takes no commands. It goes on by itself when there is room."""


class OutcomeUnknown(TiflowError):
    """The command may or may not be in the log. Every command is idempotent, so sending it again is safe."""

    code, http_status, exit_code = "DEADLINE_EXCEEDED", 504, 8


#: the leaves by their names, for who gets an error from another process
CLASSES: dict[str, type[TiflowError]] = {
    name: value
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, TiflowError) and hasattr(value, "code")
}
