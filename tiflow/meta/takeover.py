"""A new cluster takes over the database of one that is lost, and with it the jobs that were not finished. Blocks."""

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa
from msgspec import Struct

from tiflow.errors import FailedPrecondition
from tiflow.meta import schema
from tiflow.meta.history import History
from tiflow.meta.records import JobRow
from tiflow.meta.store import read_projection
from tiflow.meta.tables import JOB_ARCHIVES, JOB_CHECKPOINTS, JOB_EVENTS, JOB_FENCES, JOBS, PROJECTION
from tiflow.sched.model import JobState

#: What the lost cluster had done and the database does not know: its uids must never be given again, for executors
#: may keep results under them.
REVISIONS_BEYOND: Final = 1_000_000_000


class Lost(Struct, frozen=True):
    """What the database knows of a lost cluster."""

    cluster_id: str
    revision: int
    jobs: list[JobRow]  #: unfinished, the oldest first

    @property
    def floor(self) -> int:
        """The new cluster's revision begins here."""
        return self.revision + REVISIONS_BEYOND


def find(engine: sa.Engine, own_id: str) -> Lost | None:
    """None: the database is this cluster's already.

    Raises FailedPrecondition (it is nobody's), NewerSchema, SQLAlchemyError, Unavailable.
    """
    schema.ensure(engine)
    found = read_projection(engine)
    if found is None:
        raise FailedPrecondition(
            "--restore-from-metadata: the database has never been a cluster's; look at [metadata] url, or start "
            "without this option"
        )
    cluster_id, stand = found
    if cluster_id == own_id:
        return None
    return Lost(cluster_id, stand.revision, History(engine, cluster_id).unfinished())


def adopt(engine: sa.Engine, lost: Lost, own_id: str, uids: Mapping[int, int]) -> bool:
    """Make the database this cluster's, at `lost.floor`. `uids`: of the lost cluster's jobs, and what they are now;
    their checkpoints and histories go with them, their fences begin anew. Those that are not in it count as failed.
    False: somebody else was faster."""
    with engine.begin() as connection:
        # from here on no master of the lost cluster writes anything
        swapped = connection.execute(
            PROJECTION.update()
            .where(PROJECTION.c.cluster_id == lost.cluster_id, PROJECTION.c.revision == lost.revision)
            .values(cluster_id=own_id, revision=lost.floor)
        )
        if swapped.rowcount != 1:
            return False
        for row in lost.jobs:
            if row.uid not in uids:  # it could not be restored: its rows stay, for people
                connection.execute(JOBS.update().where(JOBS.c.uid == row.uid).values(state=str(JobState.FAILED)))
        for old, new in uids.items():
            connection.execute(JOBS.delete().where(JOBS.c.uid == old))
            connection.execute(JOB_FENCES.delete().where(JOB_FENCES.c.uid == old))
            connection.execute(JOB_ARCHIVES.delete().where(JOB_ARCHIVES.c.uid == old))
            for table in (JOB_CHECKPOINTS, JOB_EVENTS):
                connection.execute(table.update().where(table.c.uid == old).values(uid=new))
    return True
