"""The thread that writes the journal, so that a slow disk silences nobody."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from tiflow.raft.disk import LOOK_EVERY_S, RETRY_S, DiskGuard, is_no_space
from tiflow.raft.journal import JournalFile, Op

#: how long the loop may stand still for a write, which is less than to be woken costs when the machine is busy
WAIT_S: Final = 0.002


class JournalWriter:
    """The one thread that writes. Batches reach the disk in the order of `submit`, as many at once as are
    waiting.

    `landed(position)` and `failed(error)` are called in that thread; after `failed` nothing is written any
    more. With a `guard` a full disk is no failure: the writer waits for room, and so does all that comes after.
    """

    def __init__(
        self,
        file: JournalFile,
        landed: Callable[[int], None],
        failed: Callable[[BaseException], None],
        guard: DiskGuard | None = None,
    ) -> None:
        self._file = file
        self._landed = landed
        self._failed = failed
        self._guard = guard
        if guard is not None:
            file.no_space = self._wait_for_space
        self.quick = False  #: the newest write took less than WAIT_S
        self._position = 0  # of the newest batch on disk
        self._awaited: queue.SimpleQueue[None] | None = None  # where the loop waits
        self._deciding = threading.Lock()  # whether it still does
        self._stopping = threading.Event()
        self._queue: queue.SimpleQueue[tuple[list[Op], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raft-journal", daemon=True)
        self._thread.start()

    def submit(self, ops: list[Op], position: int) -> None:
        self._queue.put((ops, position))

    def wait(self, position: int) -> bool:
        """Stand still until `position` is on disk, WAIT_S at most. If it is, `landed` need not be called for it."""
        arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        with self._deciding:
            if self._position >= position:
                return True
            self._awaited = arrived
        with contextlib.suppress(queue.Empty):
            arrived.get(timeout=WAIT_S)
        with self._deciding:
            self._awaited = None
            return self._position >= position

    def stop(self) -> None:
        """Write what is waiting and has room, then end."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            ops, position = item
            stopping = False
            with contextlib.suppress(queue.Empty):
                while True:
                    more = self._queue.get_nowait()
                    if more is None:
                        stopping = True
                        break
                    ops, position = ops + more[0], more[1]
            began = time.monotonic()
            try:
                if self._guard is not None:
                    self._guard.look()
                self._file.write(ops)
            except BaseException as error:  # noqa: BLE001 - whatever it was, the node must end
                if not (self._stopping.is_set() and is_no_space(error)):
                    self._failed(error)
                return
            self.quick = time.monotonic() - began < WAIT_S
            self._tell(position)
            if stopping:
                return

    def _tell(self, position: int) -> None:
        with self._deciding:
            self._position = position
            if self._awaited is not None:
                self._awaited.put(None)
                return
        self._landed(position)

    def _next(self) -> tuple[list[Op], int] | None:
        while True:
            try:
                return self._queue.get(timeout=None if self._guard is None else LOOK_EVERY_S)
            except queue.Empty:
                assert self._guard is not None
                with contextlib.suppress(OSError):  # the next write will tell
                    self._guard.look()

    def _wait_for_space(self, error: OSError) -> None:
        assert self._guard is not None
        self._guard.look(full=True)
        if self._stopping.wait(RETRY_S):
            raise error
