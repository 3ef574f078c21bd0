"""Who this member is, and how members without a cluster become one.

An id is drawn once, by the member whose name sorts first, when all configured members are present and none has
ever been part of a cluster. A member that lost its disk joins again when it has heard from all others: whom it
may have promised a vote is among them, so their highest term is at least that of its forgotten promises. It
votes only after it has caught up with a leader, since it may have acknowledged what only it and a dead member
had.
"""

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from tiflow.errors import FailedPrecondition
from tiflow.raft.journal import write_atomically

FILE_NAME: Final = "identity.json"


class Identity(Struct, frozen=True, kw_only=True):
    """What a data directory belongs to."""

    cluster_id: str
    name: str
    members: tuple[str, ...]  #: names, sorted; a single one is a lone master
    may_vote: bool = True
    term_floor: int = 0  #: no promise to an older term, nor another vote in this one
    origin: str = ""  #: of which backup the members were restored; empty: of none


class Hello(Protocol):
    """The part of a peer's Hello that matters here."""

    cluster_id: str
    fresh: bool
    term: int
    origin: str


def load_identity(directory: Path, *, name: str, members: tuple[str, ...]) -> Identity | None:
    """The identity in `directory`, or None if it has none. Raises FailedPrecondition if it is another
    member's."""
    identity = read_identity(directory)
    if identity is None:
        return None
    if identity.name != name:
        raise FailedPrecondition(
            f"{directory} belongs to master {identity.name}, this one is {name}; start it with the name and the "
            "addresses that it had, or with another data-dir"
        )
    if identity.members != members:
        raise FailedPrecondition(
            f"{directory} was formed {_words(identity.members)}, but the configuration says {_words(members)}; the "
            "members of a cluster are fixed when it is formed: `tiflow raft backup` and `restore` move it to others"
        )
    return identity


def read_identity(directory: Path) -> Identity | None:
    """Whatever identity `directory` has. Raises FailedPrecondition if it cannot be read."""
    path = directory / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise FailedPrecondition(f"{path}: {error}") from None


def save_identity(directory: Path, identity: Identity, *, fsync: bool = True) -> None:
    write_atomically(directory / FILE_NAME, msgspec.json.encode(identity), fsync=fsync)


def draw_cluster_id(rng: Random) -> str:
    return f"{rng.getrandbits(64):016x}"


def form(name: str, members: tuple[str, ...], heard: Mapping[str, Hello], rng: Random) -> Identity | None:
    """The identity of a member that has none, given what the connected peers say; None: wait."""
    if set(heard) != set(members) - {name}:
        return None
    formed = sorted((hello.cluster_id, hello.origin) for hello in heard.values() if hello.cluster_id)
    untouched = all(hello.fresh for hello in heard.values())
    if formed and untouched:  # the cluster is being formed right now
        return Identity(cluster_id=formed[0][0], name=name, members=members)
    if formed:
        floor = max(hello.term for hello in heard.values())
        cluster_id, origin = formed[0]
        return Identity(
            cluster_id=cluster_id, name=name, members=members, may_vote=False, term_floor=floor, origin=origin
        )
    if untouched and name == members[0]:
        return Identity(cluster_id=draw_cluster_id(rng), name=name, members=members)
    return None


class DirectoryLock(contextlib.AbstractContextManager["DirectoryLock"]):
    """Keeps two processes off one directory. Raises FailedPrecondition when it is taken."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise FailedPrecondition(f"{directory} is in use by another master") from None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _words(members: tuple[str, ...]) -> str:
    return f"as a lone master ({members[0]})" if len(members) == 1 else f"with the members {', '.join(members)}"
