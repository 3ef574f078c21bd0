"""A cluster, in a file; and members that begin where it ended, at other addresses if need be.

Of the members' logs the newest, by (term of its last entry, index), has everything that was ever committed, if those
that were looked at are a majority: an election would choose the same one (Ongaro, "Consensus: bridging theory and
practice" (2014), section 3.6). A backup of a leader that runs has what was committed by then; the cluster goes on, so
what is restored of it is another cluster, with an id of its own. Restored members hold the log's state as a snapshot,
and nothing after it, in a term of which nobody has promised anything.
"""

import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from tiflow.raft.api import NodeStatus, StateMachine
from tiflow.raft.codec import REGULAR
from tiflow.raft.identity import DirectoryLock, Identity, read_identity, save_identity
from tiflow.raft.journal import JournalFile, beginning, sync_directory, write_atomically
from tiflow.raft.snapshot import read_snapshot, write_snapshot

MAGIC: Final = b"TIFBAK01"
HEAD: Final = b"TIFHEAD1"  #: what a stream of `parts` begins with
_CRC_BYTES: Final = 4


class Backup(Struct, frozen=True, kw_only=True):
    """What one member knew."""

    cluster_id: str
    member: str
    members: tuple[str, ...]
    may_vote: bool  #: false: it came back empty and had not caught up, so its log vouches for nothing
    term: int  #: the newest that it had promised to
    last_term: int
    last_index: int
    state: bytes  #: what the state machine's `snapshot` encodes, after the last entry
    online: bool = False  #: of a leader that went on

    @property
    def newness(self) -> tuple[int, int]:
        return self.last_term, self.last_index


def read_member(directory: Path, machine: StateMachine) -> Backup:
    """What the stopped member of `directory` knew; `machine` is left in that state.

    Raises FailedPrecondition: there is none, it is running, or its files are damaged.
    """
    identity = read_identity(directory) if directory.is_dir() else None
    if identity is None:
        raise FailedPrecondition(f"{directory}: is not the directory of a master that has been part of a cluster")
    with DirectoryLock(directory):
        file = JournalFile(directory)
        file.close()
        recovered = file.recovered
        covered, covered_term = 0, 0
        path = directory / "snapshot"
        if path.exists():
            snapshot = read_snapshot(path)
            machine.restore(snapshot.body)
            covered, covered_term = snapshot.index, snapshot.term
        if recovered.entries and recovered.entries[0][1] > covered + 1:
            raise FailedPrecondition(
                f"{directory}: its log begins at {recovered.entries[0][1]}, and no snapshot has what was before"
            )
        last_term, last_index = max(
            [(covered_term, covered), *((term, index) for _, index, term in recovered.entries[-1:])]
        )
        for command, index, _ in recovered.entries:
            if index > covered and command[:1] == REGULAR:
                machine.apply(command[1:])
    return Backup(
        cluster_id=identity.cluster_id,
        member=identity.name,
        members=identity.members,
        may_vote=identity.may_vote,
        term=max(recovered.term, last_term, identity.term_floor),
        last_term=last_term,
        last_index=last_index,
        state=b"".join(machine.snapshot()),
    )


def online(node: NodeStatus, members: Sequence[str]) -> Backup:
    """Of a leader, whose state is yet to follow."""
    return Backup(
        cluster_id=node.cluster_id,
        member=node.name,
        members=tuple(sorted(members)),
        may_vote=True,
        term=node.term,
        last_term=node.term,
        last_index=node.applied_index,
        state=b"",
        online=True,
    )


def head(backup: Backup) -> bytes:
    """The first part of a stream; the state's slices follow."""
    return HEAD + msgspec.msgpack.encode(backup)


def joined(parts: Iterable[bytes]) -> Backup:
    """The backup whose head and slices these are; a stream that was cut and begun anew has a second
    head."""
    backup: Backup | None = None
    slices: list[bytes] = []
    for part in parts:
        if part.startswith(HEAD):
            backup, slices = msgspec.msgpack.decode(part[len(HEAD) :], type=Backup), []
        else:
            slices.append(part)
    assert backup is not None, "a stream begins with a head"
    return msgspec.structs.replace(backup, state=b"".join(slices))


def save(backup: Backup, path: Path) -> None:
    """Raises AlreadyExists, OSError."""
    if path.exists():
        raise AlreadyExists(f"{path} exists; name another file")
    data = MAGIC + msgspec.msgpack.encode(backup)
    write_atomically(path, data + zlib.crc32(data).to_bytes(_CRC_BYTES, "little"), fsync=True)


def load(path: Path) -> Backup:
    """Raises InvalidArgument: it is no backup, or a damaged one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read ({error.strerror})") from None
    if data[: len(MAGIC)] != MAGIC:
        raise InvalidArgument(f"{path}: is not a file that `tiflow raft backup` of this version wrote")
    if zlib.crc32(data[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:], "little"):
        raise InvalidArgument(f"{path}: does not match its checksum; copy it again, or back up again")
    try:
        return msgspec.msgpack.decode(data[len(MAGIC) : -_CRC_BYTES], type=Backup)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"{path}: {error}") from None


def newest(backups: Sequence[Backup], *, allow_loss: bool = False) -> Backup:
    """The one that has all that was ever acknowledged.

    Raises InvalidArgument if they are of several clusters, and FailedPrecondition if they are not of a majority of
    its members, unless `allow_loss`.
    """
    first = backups[0]
    for backup in backups:
        if (backup.cluster_id, backup.members) != (first.cluster_id, first.members):
            raise InvalidArgument(
                f"the backups are of different clusters: {first.cluster_id} ({', '.join(first.members)}) and "
                f"{backup.cluster_id} ({', '.join(backup.members)})"
            )
    voters = {backup.member for backup in backups if backup.may_vote}
    online = any(backup.online for backup in backups)
    if len(voters) * 2 <= len(first.members) and not (allow_loss or online):
        others = ", ".join(member for member in first.members if member not in voters)
        raise FailedPrecondition(
            f"backups of {len(voters)} of {len(first.members)} masters: what only the others ({others}) "
            "had acknowledged would be lost; back up a majority and name all files, or give --allow-loss if the "
            "others are gone for good"
        )
    return max(backups, key=lambda backup: backup.newness)


def restore(
    backup: Backup, backups: Sequence[Backup], directory: Path, *, name: str, members: tuple[str, ...]
) -> Identity:
    """Make `directory` that of member `name` of `members`, in the state of `backup`.

    All members are made so, of the same `backups`, before any is started. Raises AlreadyExists.
    """
    if directory.exists() and any(directory.iterdir()):
        raise AlreadyExists(f"{directory}: is not empty; restore into another data-dir, or remove what is there")
    directory.mkdir(parents=True, exist_ok=True)
    write_snapshot(directory / "snapshot", backup.last_index, backup.last_term, backup.state)
    file = JournalFile(directory)
    try:
        term = max(one.term for one in backups) + 1
        file.write(beginning(term, backup.last_index, backup.last_term))
    finally:
        file.close()
    cluster_id = _digest(backup, members) if backup.online else backup.cluster_id
    identity = Identity(cluster_id=cluster_id, name=name, members=members, origin=_digest(backup))
    save_identity(directory, identity)  # last: without it the directory is nobody's
    sync_directory(directory.parent)
    return identity


def _digest(*parts: Backup | tuple[str, ...]) -> str:
    return sha256(msgspec.msgpack.encode(parts)).hexdigest()[:16]
