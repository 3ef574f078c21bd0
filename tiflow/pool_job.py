"""The job behind a pool: calls go out in groups, outcomes come back as rows.

Two threads. The sender gathers what was submitted within a few milliseconds into a group, adds it to the job, and
keeps the client's lease alive. The reader follows the job's rows and settles futures; it alone, or who cancels a
future, moves it out of `pending`. Large results are fetched by a few threads more.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Future, InvalidStateError
from typing import Any
from uuid import uuid4

from msgspec import Struct, msgpack
from msgspec.structs import replace

from tiflow.clock import SystemClock
from tiflow.errors import (
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    Rejected,
    ResourceExhausted,
    TiflowError,
    Unavailable,
)
from tiflow.fetch import Fetcher, Kept
from tiflow.jobs import calls
from tiflow.jobs.check import check_job
from tiflow.jobs.items import items_encode
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channel import MasterChannel
from tiflow.rpc.executors import ExecutorChannels
from tiflow.sched.model import POOL_BYTES_MAX, POOL_GROUPS_MAX, SPEC_BYTES_MAX, Call, GroupSpec, JobSpec

GATHER_S = 0.005  #: what is submitted within this time is one group, as long as …
GATHER_STEP_S = 0.0005  #: … something comes in each of these
GROUP_BYTES = 2 << 20  #: a group that has so many is sent
GROUP_TASKS_MAX = 100_000
CALL_BYTES_MAX = SPEC_BYTES_MAX - (256 << 10)  #: of a function and its arguments
GROUPS_OUT_MAX = POOL_GROUPS_MAX - 20
BYTES_OUT_MAX = POOL_BYTES_MAX - 2 * SPEC_BYTES_MAX
FETCH_THREADS = 8
RETRY_S = 0.1
AGAIN_S = 0.3  #: before a lost result is asked for once more


class BrokenPool(BrokenExecutor):
    """The job of the pool is gone: canceled, deleted, failed; or the masters were silent for too long."""


class TaskFailed(Exception):
    """A call has no outcome. The message says why: its process died, it took too long, it could not be loaded."""


class PoolFuture(Future[Any]):
    """The future of a call."""

    def __init__(self, job: "PoolJob") -> None:
        super().__init__()
        self.job = job
        self.group: _Group | None = None  #: None: not sent yet
        self.index = 0
        self.claimed = False  #: somebody moves it out of `pending`, or has

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        if self.job.claim(self):
            self.set_running_or_notify_cancel()  # wakes who waits for it
            self.job.withdraw(self)
        return True


class _Group:
    """Calls that were sent together."""

    def __init__(self, name: str, futures: list[PoolFuture], bytes_: int) -> None:
        self.name = name
        self.futures = futures
        self.bytes = bytes_
        self.started = 0  #: calls before this one were placed
        self.left = len(futures)  #: futures that are not done


class _Pending(Struct, gc=False):
    function: bytes
    arguments: bytes
    future: PoolFuture


class PoolJob:
    def __init__(
        self, masters: MasterChannel, executors: ExecutorChannels, spec: JobSpec, template: GroupSpec
    ) -> None:
        """Submits the job. `template`: what its groups have in common; its work is a Call."""
        self._masters = masters
        self._template = template
        request = pb.SubmitJobRequest(
            spec=convert.job_to_proto(check_job(spec)), token=uuid4().hex, token_at_ms=SystemClock().now_ms()
        )
        job = masters.call("SubmitJob", request, write=True)
        self.id, self._uid = str(job.id), int(job.uid)
        self._fetcher = Fetcher(masters, executors, self.id, self._uid)
        self._renew_s = spec.client_ttl_ms / 4_000
        self._patience_s = spec.client_ttl_ms / 1_000 + masters.timeout_s
        self._heard_s = self._renewed_s = time.monotonic()

        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  #: there is work for the sender
        self._pending: deque[_Pending] = deque()
        self._pickled: dict[int, tuple[object, bytes]] = {}  #: by id of the function, since the last group
        self._groups: dict[str, _Group] = {}  #: that were sent and not dropped
        self._droppable: list[str] = []
        self._withdrawn: list[tuple[str, int]] = []
        self._number = 0
        self._closing = False
        self._sealed = False
        self._broken = ""
        self._over = False  #: nothing more comes
        self._deletes = False

        self._row = 0
        self._to_fetch: queue.SimpleQueue[tuple[Kept, PoolFuture] | None] = queue.SimpleQueue()
        self._fetching = 0
        self._fetched = threading.Condition(self._lock)
        self._lost: dict[tuple[str, int], Kept] = {}  #: results that are to come once more
        self._stop = threading.Event()
        self._fetchers: list[threading.Thread] = []
        self._threads = [self._thread(self._send_until_over), self._thread(self._read_until_over)]

    def _thread(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name=f"tiflow-pool-{self.id}", daemon=True)
        thread.start()
        return thread

    # ---- what the user's threads call

    def submit(
        self, function: Callable[..., Any], arguments: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]
    ) -> list[Any]:
        """One future per call."""
        self._check_open()
        futures: list[PoolFuture] = []
        pending: list[_Pending] = []
        for args, kwargs in arguments:
            future = PoolFuture(self)
            futures.append(future)
            try:
                one = _Pending(self._pickle(function), calls.dump_arguments(args, kwargs), future)
                _check_size(one)
            except Exception as error:  # noqa: BLE001  whatever the user's __reduce__ raises
                future.claimed = True
                future.set_exception(error)
            else:
                pending.append(one)
        with self._changed:
            self._check_open()
            self._pending.extend(pending)
            self._changed.notify()
        return futures

    def _check_open(self) -> None:
        if self._broken:
            raise BrokenPool(self._broken)
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _pickle(self, function: Callable[..., Any]) -> bytes:
        known = self._pickled.get(id(function))
        if known is None:
            known = self._pickled[id(function)] = (function, calls.dumps(function))
        return known[1]

    def claim(self, future: PoolFuture) -> bool:
        """Whether the caller is the one that moves it out of `pending`."""
        with self._lock:
            first, future.claimed = not future.claimed, True
        return first

    def withdraw(self, future: PoolFuture) -> None:
        """A future was canceled: its call is not to run. (One that is being placed at this moment is stopped.)"""
        with self._changed:
            if future.group is not None and not self._over:
                self._withdrawn.append((future.group.name, future.index))
                self._changed.notify()
        self._done(future)

    def stop(self, future: PoolFuture) -> bool:
        """Stop a call that runs. Whether it was still running, as far as is known here."""
        try:
            future.set_exception(CancelledError("it ran, and was stopped"))
        except InvalidStateError:
            return False
        self.withdraw(future)
        return True

    def close(self) -> None:
        """No more calls are taken."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def cancel_all(self) -> None:
        with self._lock:
            futures = [one.future for one in self._pending]
            futures += [future for group in self._groups.values() if group.left for future in group.futures]
        for future in futures:
            future.cancel()

    def join(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():  # a callback of a future may call this
                thread.join()

    # ---- the sender

    def _send_until_over(self) -> None:
        try:
            while not self._over:
                self._send_next()
            if self._deletes:
                self._masters.call("DeleteJob", pb.DeleteJobRequest(id=self.id), write=True, done_if=NotFound)
        except TiflowError as error:
            self._break(str(error))
        except Exception as error:  # noqa: BLE001  nobody else would hear of it
            self._break(f"{type(error).__name__}: {error}")
        finally:
            self._pending.clear()

    def _send_next(self) -> None:
        with self._changed:
            renew_in_s = self._renewed_s + self._renew_s - time.monotonic()
            self._changed.wait_for(self._has_work, max(0.0, renew_in_s))
            withdrawn, self._withdrawn = self._withdrawn, []
            sends = bool(self._pending) and self._has_room()
            seals = self._closing and not self._sealed and not self._pending
        if self._over:
            return
        if withdrawn:
            self._send_withdrawn(withdrawn)
        elif sends:
            self._gather()
            self._send_group()
        elif seals:
            self._call("CloseGroups", pb.CloseGroupsRequest(uid=self._uid))
            self._sealed = True
        elif time.monotonic() >= self._renewed_s + self._renew_s:
            self._call("RenewClient", pb.RenewClientRequest(uid=self._uid))

    def _has_work(self) -> bool:
        if self._over or self._withdrawn:
            return True
        return self._has_room() if self._pending else self._closing and not self._sealed

    def _has_room(self) -> bool:
        groups = self._groups.values()
        return len(groups) < GROUPS_OUT_MAX and sum(group.bytes for group in groups) < BYTES_OUT_MAX

    def _gather(self) -> None:
        """Wait for more, as long as more comes, and not for long."""
        until_s = time.monotonic() + GATHER_S
        seen = 0
        while seen < len(self._pending) and time.monotonic() < until_s:
            seen = len(self._pending)
            time.sleep(GATHER_STEP_S)

    def _send_group(self) -> None:
        with self._lock:
            spec = self._take()
            if spec is None:
                return
            drop, self._droppable = self._droppable, []
        self._number += 1
        request = pb.AddGroupRequest(
            uid=self._uid, number=self._number, group=convert.group_to_proto(spec), drop=drop
        )
        reply = self._call("AddGroup", request)
        with self._lock:
            self._droppable += reply.kept
            for name in set(drop).difference(reply.kept):
                del self._groups[name]

    def _take(self) -> GroupSpec | None:
        functions: dict[bytes, int] = {}
        items: list[tuple[int, bytes]] = []
        futures: list[PoolFuture] = []
        size = 0
        while self._pending and len(items) < GROUP_TASKS_MAX and size < GROUP_BYTES:
            one = self._pending[0]
            grows = len(one.arguments) + 16 + (0 if one.function in functions else len(one.function))
            if items and size + grows > CALL_BYTES_MAX:
                break
            self._pending.popleft()
            if one.future.cancelled():
                continue
            size += grows
            items.append((functions.setdefault(one.function, len(functions)), one.arguments))
            futures.append(one.future)
        self._pickled.clear()
        if not futures:
            return None
        group = _Group(f"g{self._number + 1}", futures, size)
        self._groups[group.name] = group
        for index, future in enumerate(futures):
            future.group, future.index = group, index
        work = self._template.work
        assert isinstance(work, Call)
        return replace(
            self._template,
            name=group.name,
            work=replace(work, functions=tuple(functions)),
            count=len(items),
            items=items_encode(items),
        )

    def _send_withdrawn(self, withdrawn: list[tuple[str, int]]) -> None:
        for name, start, stop in _ranges(sorted(withdrawn)):
            request = pb.CancelTasksRequest(uid=self._uid, group=name, start=start, stop=stop, force=True)
            self._call("CancelTasks", request)

    def _call(self, method: str, request: Any) -> Any:
        """The answer, however often it must be asked for. Raises Rejected, and what `_wait_for_masters` does."""
        while True:
            try:
                reply = self._masters.call(method, request, write=True)
            except ResourceExhausted as error:
                self._wait_for_masters(error)
            except Rejected:
                raise
            except (Unavailable, OutcomeUnknown) as error:
                self._wait_for_masters(error)
            else:
                self._heard_s = self._renewed_s = time.monotonic()
                return reply

    def _wait_for_masters(self, error: TiflowError) -> None:
        """Raises the error if they were silent for so long that the pool must have failed, or it is over anyway."""
        if self._over or time.monotonic() - self._heard_s > self._patience_s:
            raise error
        time.sleep(RETRY_S)

    # ---- the reader

    def _read_until_over(self) -> None:
        try:
            while not self._over:
                try:
                    self._read()
                except (Unavailable, OutcomeUnknown) as error:
                    self._wait_for_masters(error)
        except NotFound:
            self._break(f"the job of the pool, {self.id}, was deleted")
        except Exception as error:  # noqa: BLE001  nobody else would hear of it
            self._break(str(error) if isinstance(error, TiflowError) else f"{type(error).__name__}: {error}")

    def _read(self) -> None:
        """Until the job has ended."""

        def request() -> pb.WatchJobRequest:
            return pb.WatchJobRequest(id=self.id, uid=self._uid, from_row=self._row, rows_only=True)

        job = pb.JobInfo()
        for update in self._masters.stream("WatchJob", request):
            self._heard_s = time.monotonic()
            job = update.job
            for placed in update.placed:
                self._start(placed.group, placed.cursor)
            for row in update.rows:
                if row.row >= self._row:
                    self._take_row(row)
                    self._row = row.row + 1
            if self._over:
                return
        self._end(job)

    def _start(self, name: str, cursor: int) -> None:
        group = self._groups.get(name)
        if group is None:
            return
        for index in range(group.started, cursor):
            self._runs(group.futures[index])
        group.started = max(group.started, cursor)

    def _take_row(self, row: pb.ResultRow) -> None:
        group = self._groups.get(row.group)
        if group is None:
            return
        values = msgpack.decode(row.results) if row.results else [None] * (row.stop - row.start)
        for index, value in enumerate(values, start=row.start):
            future = group.futures[index]
            self._lost.pop((row.group, index), None)
            if future.done():
                continue
            if row.outcome != "succeeded":
                self._settle(future, TaskFailed(row.error or row.outcome))
            elif isinstance(value, bytes):
                self._settle(future, value)
            else:
                self._fetch(Kept.of(row, index, value), future)

    def _settle(self, future: PoolFuture, outcome: bytes | BaseException) -> None:
        if not self._runs(future):
            return
        try:
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                _set(future, outcome)
        except InvalidStateError:
            return  # canceled, or stopped
        self._done(future)

    def _runs(self, future: PoolFuture) -> bool:
        """Move it out of `pending` if nobody has. False: it was canceled at this very moment."""
        if self.claim(future) and not future.set_running_or_notify_cancel():
            self.withdraw(future)
            return False
        return True

    def _done(self, future: PoolFuture) -> None:
        """It was settled, canceled or stopped: called once for each that was sent."""
        group = future.group
        if group is None:
            return
        with self._changed:
            group.left -= 1
            if not group.left:
                self._droppable.append(group.name)
                self._changed.notify()

    def _end(self, job: pb.JobInfo) -> None:
        """The job has ended; results may be on their way, or be lost and come again."""
        with self._lock:
            self._fetched.wait_for(lambda: not self._fetching or self._over)
            open_ = [group for group in self._groups.values() if group.left]
        if self._lost and open_:
            time.sleep(AGAIN_S)
            for (name, index), kept in list(self._lost.items()):
                self._fetch(kept, self._groups[name].futures[index])
            return
        self._deletes = job.state == "Finished"  # what went wrong can be looked at
        if open_ or not self._closing:
            self._break(f"the job of the pool, {self.id}, is {job.state}" + (f": {job.error}" if job.error else ""))
        self._finish()

    # ---- large results

    def _fetch(self, kept: Kept, future: PoolFuture) -> None:
        with self._lock:
            self._fetching += 1
        if len(self._fetchers) < FETCH_THREADS:
            self._fetchers.append(self._thread(self._fetch_until_over))
        self._to_fetch.put((kept, future))

    def _fetch_until_over(self) -> None:
        while (wanted := self._to_fetch.get()) is not None:
            kept, future = wanted
            try:
                fetched = self._fetcher(kept, self._stop)
                if fetched is None:
                    self._lost[kept.group, kept.index] = kept
                else:
                    self._settle(future, TaskFailed(fetched) if isinstance(fetched, str) else fetched)
            except Exception as error:  # noqa: BLE001  the user's callbacks do not raise here; what does is told
                self._settle(future, error)
            with self._lock:
                self._fetching -= 1
                self._fetched.notify_all()

    # ---- the end

    def _break(self, reason: str) -> None:
        """What has not ended never will."""
        with self._lock:
            if self._over:
                return
            self._broken = self._broken or reason
            futures = [one.future for one in self._pending]
            futures += [future for group in self._groups.values() for future in group.futures]
        for future in futures:
            if not future.done():
                self._settle(future, BrokenPool(reason))
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._over = True
            self._stop.set()
            self._changed.notify_all()
            self._fetched.notify_all()
        for _ in self._fetchers:
            self._to_fetch.put(None)


def _set(future: PoolFuture, outcome: bytes) -> None:
    try:
        value = calls.value_of(msgpack.decode(outcome))
    except BaseException as error:  # noqa: BLE001  what the call raised, or what its pickle does
        future.set_exception(error)
    else:
        future.set_result(value)


def _check_size(one: _Pending) -> None:
    size = len(one.function) + len(one.arguments)
    if size > CALL_BYTES_MAX:
        raise InvalidArgument(
            f"the function and its arguments have {size} bytes; at most {CALL_BYTES_MAX}: pass file names instead"
        )


def _ranges(indexes: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Sorted (group, index) as (group, start, stop)."""
    ranges: list[tuple[str, int, int]] = []
    for name, index in indexes:
        if ranges and ranges[-1][0] == name and ranges[-1][2] >= index:
            ranges[-1] = (name, ranges[-1][1], index + 1)
        else:
            ranges.append((name, index, index + 1))
    return ranges
