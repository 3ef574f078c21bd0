"""Brings the database to the revision of the replicated state, while this master leads.

Level-triggered: the database says where it stands, the state says what changed since. There is no outbox and
nothing to lose: after an outage, or a change of leader, the same two questions lead to the same rows.
"""

import asyncio
import logging
from enum import Enum, auto
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tiflow.meta.records import Batch
from tiflow.meta.schema import NewerSchema
from tiflow.meta.store import ForeignCluster, Stand, Store
from tiflow.meta.tables import open_engine, reason

log = structlog.get_logger()


class Source(Protocol):
    """The replicated state, as the projector asks for it on the event loop's thread."""

    def batch(self, after: int, limit: int) -> Batch:
        """What was written and deleted after that revision, in order of it, `limit` jobs at most. Its `to` is the
        state's own revision if this is all (`after`: nothing is left to write)."""

    def living(self) -> frozenset[int]:
        """Uids of all jobs."""


ROWS_MAX: Final = 1_000  #: of one transaction
PAUSE_S: Final = 0.2  #: between two transactions: what changes in the meantime shares the next one
RECHECK_S: Final = 1.0  #: without being woken; so a missing wake() costs time and not truth
BACKOFF_S_MIN: Final = 0.5
BACKOFF_S_MAX: Final = 10.0


class Projector:
    """All methods belong to the event loop's thread; only SQL runs in another one."""

    def __init__(
        self,
        url: str,
        cluster_id: str,
        source: Source,
        *,
        pause_s: float = PAUSE_S,
        backoff_s_max: float = BACKOFF_S_MAX,
    ) -> None:
        """Raises InvalidArgument if `url` can never work. Does not connect."""
        engine = open_engine(url)
        self.url = engine.url.render_as_string(hide_password=True)
        self._store = Store(engine, cluster_id)
        self._source = source
        self._pause_s = pause_s
        self._backoff_s_max = backoff_s_max
        self._changed = asyncio.Event()
        self._revision = 0
        self._revision_of_source = 0
        self._last_error: str | None = None
        self._reported: str | None = None  #: the log event that told of it
        self._found: Stand | None = None  #: not looked at yet
        self._behind: Stand | None = None  #: where a database stood that has been farther before
        self.asked = False  #: at least once, whatever the answer was
        self.restored = ""  #: what was found of a database that had been farther before; empty: nothing

    @property
    def revision(self) -> int:
        """Where the database stood when it was last asked or written; 0 before that."""
        return self._revision

    @property
    def lag_source(self) -> int:
        """How many revisions the state is known to be ahead of the database."""
        return max(0, self._revision_of_source - self._revision)

    @property
    def available(self) -> bool:
        """The last try went well."""
        return self._last_error is None

    @property
    def last_error(self) -> str | None:
        """Why the database is not brought up to date; None: it is."""
        return self._last_error

    def wake(self, revision: int = 0) -> None:
        """Something changed; the state now stands at `revision`. Cheap: call it after every entry."""
        self._revision_of_source = max(self._revision_of_source, revision)
        self._changed.set()

    def close(self) -> None:
        """Drops the connections. The last transaction of a canceled run() may still end in its thread."""
        self._store.close()

    async def run(self) -> None:
        """Until canceled. May be run again."""
        backoff_s = BACKOFF_S_MIN
        read: int | None = None  # None: ask the database
        while True:
            self._changed.clear()
            try:
                if read is None:
                    stand = await asyncio.to_thread(self._store.stand)
                    read = self._revision = stand.revision
                    self._found = stand
                step = await self._advance(read)
                self.asked = True
            except Exception as error:  # noqa: BLE001 - an archive, whatever it meets, must not end scheduling
                self._failed(error)
                read = None
                await asyncio.sleep(min(backoff_s, self._backoff_s_max))
                backoff_s = min(backoff_s * 2, self._backoff_s_max)
                continue
            self._succeeded()
            backoff_s = BACKOFF_S_MIN
            if step is _Step.NOTHING_LEFT:
                await self._wait()
            else:
                read = self._revision if step is _Step.WRITTEN else None
                await asyncio.sleep(self._pause_s)

    async def _advance(self, read: int) -> "_Step":
        """One transaction, if there is something to write."""
        batch = self._source.batch(read, ROWS_MAX)
        to = batch.to
        self._look_back(batch)
        if to < read:
            raise _Ahead(
                f"the database stands at revision {read}, and the masters only at {to}: theirs were restored from an "
                "older state; give them a new database, or restore them from this one (--restore-from-metadata)"
            )
        if to == read:
            self._revision_of_source = to
            if self._behind is not None:
                await self._reconcile(read)
            return _Step.NOTHING_LEFT
        self._revision_of_source = max(self._revision_of_source, to)
        if not await asyncio.to_thread(self._store.advance, read, batch):
            return _Step.MISSED
        self._revision = to
        return _Step.WRITTEN

    def _look_back(self, now: Batch) -> None:
        """Has it been farther before? Then it was restored from an older backup. What the state has is written again;
        what was deleted or left the state meanwhile is unknown to both."""
        stand, self._found = self._found, None
        if stand is not None and stand.revision < now.persisted and self._behind is None:
            self._behind = stand
            lost = max(0, now.pruned - stand.pruned)
            self.restored = (
                f"the database was at revision {stand.revision} after it had been at {now.persisted}: a backup? "
                f"Up to {lost} jobs left the masters in between; the history of those that the database lacks is gone"
            )
            log.warning("metadata_set_back", url=self.url, reason=self.restored)

    async def _reconcile(self, read: int) -> None:
        """The set-back database has caught up: its unfinished jobs that nobody knows would be run again by a disaster
        recovery."""
        dropped = await asyncio.to_thread(self._store.drop_unfinished, read, self._source.living())
        self._behind = None
        if dropped:
            log.warning("metadata_unknown_jobs_dropped", url=self.url, count=len(dropped), ids=dropped[:100])

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(RECHECK_S):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _failed(self, error: Exception) -> None:
        """Says so once: an outage is one event, however many tries it takes."""
        self._last_error, self.asked = reason(error), True
        match error:
            case SQLAlchemyError() | OSError():
                event, level, bug = "metadata_unavailable", logging.WARNING, None
            case ForeignCluster() | _Ahead() | NewerSchema():
                event, level, bug = "metadata_refused", logging.ERROR, None
            case _:
                event, level, bug = "metadata_failed", logging.ERROR, error
        if event != self._reported:
            self._reported = event
            log.log(level, event, url=self.url, reason=self._last_error, exc_info=bug)

    def _succeeded(self) -> None:
        if self._last_error is not None:
            self._last_error = self._reported = None
            log.info("metadata_available", url=self.url, revision=self._revision)


class _Step(Enum):
    NOTHING_LEFT = auto()
    WRITTEN = auto()
    MISSED = auto()  #: another writer moved the database: we may be deposed and not know it yet


class _Ahead(Exception):
    """The masters have lost what the database still has. Writing over it would lose it for good."""
