"""Checkpoints of jobs in the database, fenced there: a write of an attempt that has been replaced cannot land,
however late it comes and whoever sends it. Everything here blocks; it runs in threads.

Each transaction looks at the row `projection`, too: a database of another cluster is neither read nor written; nor is
one that stands at a lower revision than its leader has seen, for then it was set back, and its fences are as old as
the rest. The leader raises them first (`raise_fences`), as its replicated state has the attempts.

The fence of a holder (a job's master, or a worker) is the row `job_fences(uid, holder, attempt, term)`. An attempt
raises it, through the leader of a term, before it reads or writes anything, while its job's row is locked; each
write locks it and must find its own numbers. So an older value of the same attempt, which a deposed leader had under
way, cannot land either. Both rows go with the job, so that nothing is written for one that was deleted.

Source: Kleppmann, "How to do distributed locking" (2016): fencing tokens, checked by the storage.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy.dialects import mysql, sqlite

from tiflow.errors import FailedPrecondition, TiflowError, Unavailable
from tiflow.meta.records import Fence
from tiflow.meta.store import CHUNK_ROWS, upsert
from tiflow.meta.tables import JOB_CHECKPOINTS, JOB_FENCES, JOBS, PROJECTION
from tiflow.sched.model import Millis

VALUE_BYTES_MAX: Final = 4 << 20
OF_GROUP: Final = "#"  #: in a holder's name: then the position of the worker's group in its job
KEYS_MAX: Final = 10_000  #: of one job
PAGE_MAX: Final = 1_000


class Holder(Struct, frozen=True):
    """Who reads and writes checkpoints."""

    uid: int  #: of the job
    name: str  #: empty: the job's master
    attempt: int  #: from 1; 0: a bystander, who may only read


class Write(Struct, frozen=True):
    holder: Holder
    key: str
    value: bytes | None  #: None: delete it
    at_ms: Millis


class Checkpoint(Struct, frozen=True):
    key: str
    value: bytes  #: empty in a listing
    size: int  #: bytes of the value
    attempt: int  #: that wrote it
    updated_at_ms: Millis


Verdict: TypeAlias = TiflowError | None


class Foreign(Unavailable):
    """The database is another cluster's: neither read nor written."""


class SetBack(Unavailable):
    """The database stands at a lower revision than before: neither read nor written until its fences are raised."""


class Checkpoints:
    """Of the leader of a term. `floor` is the highest revision at which the database was seen since its fences were
    raised.

    Methods raise Foreign, SetBack, or SQLAlchemyError when the database does not do as it is asked; then nothing was
    written.
    """

    def __init__(self, engine: sa.Engine, cluster_id: str, term: int) -> None:
        self._engine = engine
        self._cluster_id = cluster_id
        self._term = term
        self._upsert = partial(upsert, engine.dialect.name)
        self._raise = _raise(engine.dialect.name)

    def raise_fences(self, revision: int, fences: Sequence[Fence]) -> bool:
        """To these attempts and this term; never lowers one. False: the database does not stand at `revision`."""
        with self._engine.begin() as connection:
            here = PROJECTION.update().where(
                PROJECTION.c.revision == revision, PROJECTION.c.cluster_id == self._cluster_id
            )
            if connection.execute(here.values(revision=PROJECTION.c.revision)).rowcount != 1:  # locks
                return False
            for first in range(0, len(fences), CHUNK_ROWS):
                part = fences[first : first + CHUNK_ROWS]
                connection.execute(self._raise, [asdict(fence) | {"term": self._term} for fence in part])
        return True

    def hold(self, holder: Holder, floor: int = 0) -> None:
        """Raise the fence of its holder to this attempt and term.

        Raises FailedPrecondition (a later attempt holds it), Unavailable (the job has not got here yet, or another
        leader has taken over).
        """
        row = {"uid": holder.uid, "holder": holder.name, "attempt": holder.attempt, "term": self._term}
        with self._engine.begin() as connection:
            # a write first: it locks, on SQLite too
            job = connection.execute(JOBS.update().where(JOBS.c.uid == holder.uid).values(uid=holder.uid))
            self._check(connection, floor)
            if job.rowcount != 1:
                raise Unavailable(f"the metadata database does not have the job with uid {holder.uid} yet")
            connection.execute(self._raise, row)
            query = sa.select(JOB_FENCES.c.attempt, JOB_FENCES.c.term).where(
                JOB_FENCES.c.uid == holder.uid, JOB_FENCES.c.holder == holder.name
            )
            attempt, term = connection.execute(query).one()
        if (refused := self._refusal(holder, (attempt, term))) is not None:
            raise refused

    def write(self, writes: Sequence[Write], floor: int = 0) -> list[Verdict]:
        """All in one transaction, in order; durable when it returns. Returns: of each, why it was refused."""
        keys = sorted({(write.holder.uid, write.holder.name) for write in writes})
        mine = sa.tuple_(JOB_FENCES.c.uid, JOB_FENCES.c.holder).in_(keys)
        with self._engine.begin() as connection:
            connection.execute(JOB_FENCES.update().where(mine).values(attempt=JOB_FENCES.c.attempt))  # locks
            # after that: a cluster that takes the database over waits for these locks
            self._check(connection, floor)
            columns = (JOB_FENCES.c.uid, JOB_FENCES.c.holder, JOB_FENCES.c.attempt, JOB_FENCES.c.term)
            stand = {
                (uid, name): (attempt, term)
                for uid, name, attempt, term in connection.execute(sa.select(*columns).where(mine))
            }
            verdicts = [
                self._refusal(write.holder, stand.get((write.holder.uid, write.holder.name))) for write in writes
            ]
            last = {
                (write.holder.uid, write.key): write
                for write, refused in zip(writes, verdicts, strict=True)
                if refused is None
            }
            puts = [_row(write) for write in last.values() if write.value is not None]
            deletions = [(uid, key) for (uid, key), write in last.items() if write.value is None]
            if puts:
                connection.execute(self._upsert(JOB_CHECKPOINTS), puts)
            if deletions:
                named = sa.tuple_(JOB_CHECKPOINTS.c.uid, JOB_CHECKPOINTS.c.key).in_(deletions)
                connection.execute(JOB_CHECKPOINTS.delete().where(named))
        return verdicts

    def _refusal(self, holder: Holder, stands: tuple[int, int] | None) -> Verdict:
        """`stands`: the attempt and the term of the fence."""
        if stands is None:
            return FailedPrecondition(f"the job with uid {holder.uid} was deleted")
        attempt, term = stands
        if attempt != holder.attempt:
            who = f"worker {holder.name.partition(OF_GROUP)[0]}" if holder.name else "job master"
            return FailedPrecondition(f"attempt {holder.attempt} of the {who} has been replaced by attempt {attempt}")
        return None if term == self._term else Unavailable(f"the leader of term {term} has taken over; ask again")

    def _check(self, connection: sa.Connection, floor: int) -> None:
        found = connection.execute(sa.select(PROJECTION.c.cluster_id, PROJECTION.c.revision)).one_or_none()
        if found is None or found.cluster_id != self._cluster_id:
            owner = f"cluster {found.cluster_id}" if found is not None else "no cluster yet"
            raise Foreign(f"the metadata database belongs to {owner}, and this is {self._cluster_id}")
        if found.revision < floor:
            raise SetBack(f"the metadata database was set back from revision {floor} to {found.revision}")

    def get(self, uid: int, key: str, floor: int = 0) -> Checkpoint | None:
        table = JOB_CHECKPOINTS.c
        query = sa.select(table.key, table.value, table.attempt, table.updated_at_ms)
        with self._engine.connect() as connection:
            self._check(connection, floor)
            row = connection.execute(query.where(table.uid == uid, table.key == key)).one_or_none()
        if row is None:
            return None
        return Checkpoint(row.key, row.value, len(row.value), row.attempt, row.updated_at_ms)

    def list(
        self, uid: int, *, prefix: str = "", after: str = "", limit: int = PAGE_MAX, floor: int = 0
    ) -> Sequence[Checkpoint]:
        """In order of their keys, without values; `after` is the last key of the page before."""
        table = JOB_CHECKPOINTS.c
        query = sa.select(table.key, sa.func.length(table.value), table.attempt, table.updated_at_ms)
        query = query.where(table.uid == uid, table.key > after)
        if prefix:
            query = query.where(table.key >= prefix, sa.func.substr(table.key, 1, len(prefix)) == prefix)
        with self._engine.connect() as connection:
            self._check(connection, floor)
            rows = connection.execute(query.order_by(table.key).limit(min(limit, PAGE_MAX))).all()
        return [Checkpoint(key, b"", size, attempt, at_ms) for key, size, attempt, at_ms in rows]

    def count(self, uid: int, floor: int = 0) -> int:
        query = sa.select(sa.func.count()).where(JOB_CHECKPOINTS.c.uid == uid)
        with self._engine.connect() as connection:
            self._check(connection, floor)
            return int(connection.scalar(query) or 0)


def _row(write: Write) -> dict[str, object]:
    return {
        "uid": write.holder.uid,
        "key": write.key,
        "value": write.value,
        "attempt": write.holder.attempt,
        "updated_at_ms": write.at_ms,
    }


def _raise(dialect: str) -> sa.Insert:
    """Never lowers it."""
    stands = JOB_FENCES.c
    if dialect == "sqlite":
        lite = sqlite.insert(JOB_FENCES)
        return lite.on_conflict_do_update(
            index_elements=[stands.uid, stands.holder],
            set_={
                "term": _higher_term(lite.excluded),
                "attempt": sa.func.max(stands.attempt, lite.excluded.attempt),
            },
        )
    insert = mysql.insert(JOB_FENCES)
    # in this order: MySQL's later assignments see what earlier ones have done
    return insert.on_duplicate_key_update(
        [
            ("term", _higher_term(insert.inserted)),
            ("attempt", sa.func.greatest(stands.attempt, insert.inserted.attempt)),
        ]
    )


def _higher_term(new: Any) -> sa.Case[int]:
    """Of the higher attempt; of equal ones the higher term."""
    stands = JOB_FENCES.c
    return sa.case(
        (new.attempt > stands.attempt, new.term),
        (sa.and_(new.attempt == stands.attempt, new.term > stands.term), new.term),
        else_=stands.term,
    )
