"""The results of a job, one per task, whatever happens to the executors that keep the large ones.

A small value comes with its row. A large one is kept by the executor that ran the task: it is fetched, and when that
executor is gone, the task is run again and its new row awaited.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

from msgspec import msgpack

from tiflow.fetch import Fetched, Kept
from tiflow.rpc import tiflow_pb2 as pb

FETCH_THREADS = 8
FETCH_AHEAD = 32  #: results fetched before they are asked for
RERUN_PAUSE_S = 0.3


@dataclass(frozen=True)
class Result:
    """How a task ended."""

    group: str
    index: int
    value: Any  #: what the function returned; None for a command, and for a task that did not succeed
    error: str  #: empty: it succeeded
    attempt: int  #: the one that ended it; 0: not known (a command that succeeded, a task that was canceled)
    state: str  #: succeeded, failed, canceled or skipped

    @property
    def ok(self) -> bool:
        return self.state == "succeeded"


Key: TypeAlias = tuple[str, int]  #: group, index


class Collector:
    """Reads the rows of one job.

    `watch(next_row)` yields updates from that row on until the job has ended. `fetch` turns what is kept into what it
    is, and is called in threads. `states(group, start)` tells how some tasks from `start` on stand: commands that
    succeeded have no row, nor do tasks that were canceled or skipped.
    """

    def __init__(
        self,
        watch: Callable[[Callable[[], int]], Iterator[pb.JobUpdate]],
        fetch: Callable[[Kept, threading.Event], Fetched],
        states: Callable[[str, int], dict[int, str]],
    ) -> None:
        self._watch = watch
        self._fetch = fetch
        self._states = states
        self._page: tuple[str, dict[int, str]] = ("", {})
        self._not_run: dict[str, int] = {}  # group → number of tasks that were canceled or skipped
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="tiflow-fetch")
        self._updates: Iterator[pb.JobUpdate] | None = None
        self._ended = False
        self._next_row = 0
        self._done: dict[str, bytearray] = {}  # group → one byte per task, 1 once it was handed out
        self._known: dict[Key, Result | Kept] = {}  # in order of arrival, not handed out yet
        self._fetching: dict[Key, tuple[Kept, Future[Fetched]]] = {}
        self._watches = 0  # opened so far
        self._lost: dict[Key, tuple[Kept, int]] = {}  # a new row should come; and the watch during which it was lost

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._updates = None

    def ordered(self) -> Iterator[Result]:
        """By group, and by index within it."""
        handed_out = 0
        while handed_out < len(self._done) or self._pull():
            for group in list(self._done)[handed_out:]:  # an open job gets more of them
                handed_out += 1
                for index in range(len(self._done[group])):
                    yield self._await((group, index))

    def arrivals(self) -> Iterator[Result]:
        """As they come."""
        ready: deque[Result] = deque()
        while True:
            for key, entry in list(self._known.items()):
                if isinstance(entry, Result):
                    ready.append(self._hand_out(key, entry))
                elif key not in self._fetching:
                    while len(self._fetching) >= FETCH_AHEAD:
                        ready.extend(self._gather(timeout_s=None))
                    self._start(key, entry)
            ready.extend(self._gather(timeout_s=0))
            while ready:
                yield ready.popleft()
            if self._pull():
                continue
            if self._fetching:
                ready.extend(self._gather(timeout_s=None))
            elif self._lost:
                self._retry_lost()
            elif not self._known:
                break
        for group, done in self._done.items():
            for index in range(len(done)):
                if not done[index]:
                    yield self._hand_out((group, index), self._without_row((group, index)))

    def _await(self, key: Key) -> Result:
        while True:
            entry = self._known.get(key)
            if isinstance(entry, Result):
                return self._hand_out(key, entry)
            if entry is not None:
                self._look_ahead(key)
                if (result := self._settle(key)) is not None:
                    return result
            elif not self._pull():
                if key not in self._lost:
                    return self._hand_out(key, self._without_row(key))
                self._retry_lost()

    def _look_ahead(self, key: Key) -> None:
        group, first = key
        for index in range(first, first + FETCH_AHEAD):
            entry = self._known.get((group, index))
            if isinstance(entry, Kept) and (group, index) not in self._fetching:
                self._start((group, index), entry)

    def _start(self, key: Key, kept: Kept) -> None:
        self._fetching[key] = (kept, self._pool.submit(self._fetch, kept, self._stop))

    def _gather(self, timeout_s: float | None) -> list[Result]:
        futures = [future for _, future in self._fetching.values()]
        finished = wait(futures, timeout_s, return_when=FIRST_COMPLETED).done
        keys = [key for key, (_, future) in self._fetching.items() if future in finished]
        settled = [self._settle(key) for key in keys]
        return [result for result in settled if result is not None]

    def _settle(self, key: Key) -> Result | None:
        """What a fetch came to; waits for it. None: the task runs again, or had run again meanwhile."""
        kept, future = self._fetching.pop(key)
        fetched = future.result()
        if self._done[key[0]][key[1]]:
            return None
        if isinstance(fetched, bytes):
            return self._hand_out(key, Result(*key, msgpack.decode(fetched), "", kept.attempt, "succeeded"))
        if isinstance(fetched, str):
            return self._hand_out(key, Result(*key, None, fetched, kept.attempt, "failed"))
        if self._known.get(key) is kept:
            del self._known[key]
            self._lost[key] = (kept, self._watches)
        self._ended = False  # the job runs again
        return None

    def _retry_lost(self) -> None:
        """The job has ended, and there is no new row of what was lost."""
        for key, (kept, watch) in list(self._lost.items()):
            if watch < self._watches:
                # not even in a later watch: the executor was back before the rerun was decided on
                time.sleep(RERUN_PAUSE_S)
                self._known[key] = kept
                del self._lost[key]
        self._ended = False

    def _without_row(self, key: Key) -> Result:
        """How a task ended that has no row although the job has ended."""
        group, index = key
        state = "succeeded"
        if self._not_run[group]:
            if self._page[0] != group or index not in self._page[1]:
                self._page = (group, self._states(group, index))
            state = self._page[1].get(index, "canceled")
        return Result(group, index, None, "" if state == "succeeded" else state, 0, state)

    def _hand_out(self, key: Key, result: Result) -> Result:
        self._known.pop(key, None)
        self._done[key[0]][key[1]] = 1
        return result

    def _pull(self) -> bool:
        """Take in the next update. False: the job has ended, and all its rows were read."""
        if self._ended:
            return False
        if self._updates is None:
            self._updates = self._watch(lambda: self._next_row)
            self._watches += 1
        update = next(self._updates, None)
        if update is None:
            self._updates, self._ended = None, True
            return False
        for group in update.job.groups:
            done = self._done.setdefault(group.name, bytearray())
            done.extend(bytes(max(0, group.total - len(done))))  # its name may have been given to a larger one
            self._not_run[group.name] = group.canceled + group.skipped
        for row in update.rows:
            if row.row >= self._next_row:
                self._take(row)
                self._next_row = row.row + 1
        return True

    def _take(self, row: pb.ResultRow) -> None:
        values = msgpack.decode(row.results) if row.results else [None] * (row.stop - row.start)
        for index, value in enumerate(values, start=row.start):
            key = (row.group, index)
            if self._done[row.group][index]:
                continue  # somebody else had it run again
            self._lost.pop(key, None)
            if row.outcome != "succeeded":
                self._known[key] = Result(*key, None, row.error or row.outcome, row.attempt, "failed")
            elif value is None or isinstance(value, bytes):
                decoded = msgpack.decode(value) if value else None
                self._known[key] = Result(*key, decoded, "", row.attempt, "succeeded")
            else:
                self._known[key] = Kept.of(row, index, value)
