"""Brings the database to the revision of the replicated state, while this master leads.

Level-triggered: the database says where it stands, the state says what changed since. There is no outbox and
nothing to lose: after an outage, or a change of leader, the same two questions lead to the same rows.

A database may be set back (restored from an older backup, or emptied), and nobody tells. So it is asked where it
stands again and again, also when nothing changes; whoever fences something in it (`Guard`) hears of it before
anything else is written.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable
from enum import Enum, auto
from functools import partial
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tiflow.meta.records import Batch, Refused, Written
from tiflow.meta.schema import NewerSchema
from tiflow.meta.store import ForeignCluster, Stand, Store
from tiflow.meta.tables import is_outage, open_engine, reason

log = structlog.get_logger()


class Source(Protocol):
    """The replicated state, as the projector asks for it on the event loop's thread."""

    def batch(self, after: int, limit: int) -> Batch:
        """What was written and deleted after that revision, in order of it, `limit` jobs at most. Its `to` is the
        state's own revision if this is all (`after`: nothing is left to write)."""

    def living(self) -> Iterable[tuple[int, int]]:
        """uid and `mod_revision` of all jobs. Read in another thread."""

    def versions(self, uids: Collection[int]) -> list[tuple[int, Iterable[Written]]]:
        """Those of these jobs that are there: uid, and what is to be written, read in another thread."""


class Guard(Protocol):
    """Who relies on it that the database has not been set back."""

    async def secure(self, revision: int) -> bool:
        """The database stands at `revision`: this leader sees it for the first time, or it was farther before.
        False: it has moved meanwhile."""

    def seen(self, revision: int) -> None:
        """The database stands at `revision`, and was never farther."""


ROWS_MAX: Final = 1_000  #: of one transaction
PAUSE_S: Final = 0.2  #: between two transactions: what changes in the meantime shares the next one
RECHECK_S: Final = 1.0  #: without being woken; so a missing wake() costs time and not truth
ASK_S: Final = 3.0  #: a database that was neither asked nor written for so long is asked where it stands
BACKOFF_S_MIN: Final = 0.5
BACKOFF_S_MAX: Final = 10.0
NARROW: Final = 32  #: a batch that is not taken is tried again in parts so much smaller, since it may be one record
BARE_AFTER: Final = 2  #: tries of the smallest part, before what is largest in it goes without its bodies
REFUSED_S: Final = 30.0  #: between two tries to write what was refused
REFUSED_MAX: Final = 10_000  #: that are remembered; the rest are found again by the next leader
REFUSED_AT_ONCE: Final = 100


class Projector:
    """All methods belong to the event loop's thread; only SQL runs in another one."""

    def __init__(
        self,
        url: str,
        cluster_id: str,
        source: Source,
        *,
        guard: Guard | None = None,
        pause_s: float = PAUSE_S,
        backoff_s_max: float = BACKOFF_S_MAX,
        ask_s: float = ASK_S,
    ) -> None:
        """Raises InvalidArgument if `url` can never work. Does not connect."""
        engine = open_engine(url)
        self.url = engine.url.render_as_string(hide_password=True)
        self._store = Store(engine, cluster_id)
        self._source = source
        self._guard = guard
        self._pause_s = pause_s
        self._backoff_s_max = backoff_s_max
        self._ask_s = ask_s
        self._asked_s = 0.0
        self._changed = asyncio.Event()
        self._revision = 0
        self._revision_of_source = 0
        self._last_error: str | None = None
        self._reported: str | None = None  #: the log event that told of it
        self._found: Stand | None = None  #: not looked at yet
        self._secured = False
        self._catching_up = False  #: after it was set back
        self._compared = False  #: its unfinished jobs with ours, since this leader saw it first or it was set back
        self._ahead = 1 << 63  #: a revision that the database was found at, and that the masters did not have
        self._limit = ROWS_MAX
        self._alone = 0  #: tries of the smallest part in a row
        self._refused: dict[int, Refused] = {}  #: by uid, those that wait longest for another try first
        self._refused_reason = ""
        self._retry_at_s = 0.0
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

    @property
    def refused(self) -> Collection[int]:
        """uids of jobs that the database does not take as they are, so that it has them without their bodies."""
        return self._refused.keys()

    @property
    def note(self) -> str:
        """For people: what the database lacks though it is up to date; empty: nothing is known."""
        if not self._refused:
            return self.restored
        named = ", ".join(one.id for one in list(self._refused.values())[:3])
        more = f" and {len(self._refused) - 3} more" if len(self._refused) > 3 else ""
        return (
            f"not in the database as they are: jobs {named}{more} ({self._refused_reason}). {self.restored}".strip()
        )

    def wake(self, revision: int = 0) -> None:
        """Something changed; the state now stands at `revision`. Cheap: call it after every entry."""
        self._revision_of_source = max(self._revision_of_source, revision)
        self._changed.set()

    def again(self, jobs: Collection[tuple[int, str]]) -> None:
        """The database lacks these jobs (uid, id), which it should have."""
        self._refused_reason = self._refused_reason or "about to be written again"
        for uid, id in jobs:
            if len(self._refused) < REFUSED_MAX:
                self._refused.setdefault(uid, Refused(uid, id, 0))

    def look(self) -> None:
        """Ask the database now where it stands."""
        self._asked_s = 0.0
        self._changed.set()

    def close(self) -> None:
        """Drops the connections. The last transaction of a canceled run() may still end in its thread."""
        self._store.close()

    async def run(self) -> None:
        """Until canceled. May be run again."""
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_S_MIN
        read: int | None = None  # None: ask the database
        while True:
            self._changed.clear()
            try:
                if read is None or loop.time() - self._asked_s >= self._ask_s:
                    read = await self._ask()
                    self._asked_s = loop.time()
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

    async def _ask(self) -> int:
        alone, self._alone = self._alone, 0  # no record is to blame if it does not even answer
        self._found = await asyncio.to_thread(self._store.stand)
        self._alone = alone
        return self._found.revision

    async def _advance(self, read: int) -> "_Step":
        """One transaction, if there is something to write."""
        batch = self._source.batch(read, self._limit)
        to = batch.to
        if to < read or read >= self._ahead:
            self._ahead = min(self._ahead, read)  # also when the masters have passed it: it has another history
            raise _Ahead(
                f"the database stands at revision {read}, and the masters at {to} had less: they were restored from "
                "an older state; give them a new database, or restore them from this one (--restore-from-metadata)"
            )
        self._revision_of_source = max(self._revision_of_source, to)
        if not await self._look_back(batch):
            return _Step.MISSED
        if to == read:
            self._revision_of_source = to
            return await self._compare(read)
        if not await self._write(read, batch):
            return _Step.MISSED
        self._stands_at(to)
        return _Step.WRITTEN

    async def _look_back(self, now: Batch) -> bool:
        """Has it been farther before? Then it was restored from an older backup. What the state has is written again;
        what was deleted or left the state meanwhile is unknown to both. False: it has moved since it was asked."""
        stand, self._found = self._found, None
        if stand is None:
            return True
        farthest = max(self._revision, 0 if self._catching_up else now.persisted)
        if stand.revision < farthest:
            lost = max(0, now.pruned - stand.pruned)
            told = self.restored
            self.restored = (
                f"the database was at revision {stand.revision} after it had been at {farthest}: a backup? Up to "
                f"{lost} jobs left the masters in between; the history of those that the database lacks is gone, "
                "and checkpoints are those of the backup"
            )
            if self.restored != told:
                log.warning("metadata_set_back", url=self.url, reason=self.restored)
            self._compared = self._secured = False
        if not self._secured and self._guard is not None and not await self._guard.secure(stand.revision):
            return False
        self._secured = True
        self._catching_up = self._catching_up or stand.revision < farthest
        self._stands_at(stand.revision)
        return True

    def _stands_at(self, revision: int) -> None:
        self._revision = revision
        if self._guard is not None:
            self._guard.seen(revision)

    async def _write(self, read: int, batch: Batch) -> bool:
        """False: the database is not at `read`. A record that it does not take must not hold up all others: it is
        found by writing less at a time, and then goes without its bodies."""
        bare = 2 ** (self._alone - BARE_AFTER) if self._alone >= BARE_AFTER else 0
        try:
            refused = await asyncio.to_thread(partial(self._store.advance, read, batch, bare=bare))
        except Exception as error:
            if is_outage(error):
                self._alone = 0
            elif self._limit > 1:
                self._limit = max(1, self._limit // NARROW)
            else:
                self._alone += 1
            self._refused_reason = reason(error)
            raise
        if refused is None:
            return False
        self._limit, self._alone = min(ROWS_MAX, self._limit * 4), 0
        for one in refused:
            await self._note_refused(one)
        return True

    async def _note_refused(self, one: Refused) -> None:
        if len(self._refused) < REFUSED_MAX:
            self._refused[one.uid] = one
        packet = await asyncio.to_thread(self._store.packet_max)
        if one.packet > packet:
            self._refused_reason = f"of {one.packet} bytes; the server's max_allowed_packet is {packet}: raise it"
        log.error("metadata_record_refused", job_id=one.id, uid=one.uid, reason=self._refused_reason)

    async def _compare(self, read: int) -> "_Step":
        """The database has caught up. After it was set back, its unfinished jobs that nobody knows go: a disaster
        recovery would run them again. What it has in another version was refused, or a leader was cut off."""
        now_s = asyncio.get_running_loop().time()
        if not self._compared:
            drop = self._catching_up
            unknown, differ = await asyncio.to_thread(
                partial(self._store.differing, read, self._source.living(), drop=drop)
            )
            self._compared, self._catching_up = True, False
            if unknown:
                event = "metadata_unknown_jobs_dropped" if drop else "metadata_unknown_jobs"
                log.warning(event, url=self.url, count=len(unknown), ids=unknown[:100])
            for uid in differ[:REFUSED_MAX]:
                self._refused.setdefault(uid, Refused(uid, f"uid {uid}", 0))
            self._retry_at_s = now_s
        if self._refused and now_s >= self._retry_at_s:
            self._retry_at_s = now_s + REFUSED_S
            await self._write_again(read)
        return _Step.NOTHING_LEFT

    async def _write_again(self, read: int) -> None:
        """What was refused, one by one: the server may take it now."""
        uids = list(self._refused)[:REFUSED_AT_ONCE]
        there = dict(self._source.versions(uids))
        for uid in uids:
            one = self._refused.pop(uid)
            if uid not in there:
                continue
            try:
                if not await asyncio.to_thread(self._store.rewrite, read, there[uid]):
                    self._refused[uid] = one
                    return
            except SQLAlchemyError as error:
                self._refused[uid] = one
                if is_outage(error):
                    raise
                log.debug("metadata_record_refused", job_id=one.id, uid=uid, reason=reason(error))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(min(RECHECK_S, self._ask_s)):
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
