"""Results that were too large for the log: from the executor that keeps them, or from a shared store. When one is
lost, its task is run again, or fails, as its job says."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tiflow.errors import NotFound, Rejected, TiflowError, Unavailable
from tiflow.jobs import shared
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channel import MasterChannel
from tiflow.rpc.executors import ExecutorChannels

FETCH_S_MAX = 60.0  #: for a result whose executor is alive and yet does not hand it over


@dataclass(frozen=True)
class Kept:
    """A result that an executor keeps, or a shared store (then `url` is not empty)."""

    row: int
    group: str
    index: int
    attempt: int
    executor: str  #: uid
    address: str
    size_bytes: int
    sha256: str
    url: str = ""

    @classmethod
    def of(cls, row: pb.ResultRow, index: int, place: list[int | str]) -> "Kept":
        """`place` is what the row has of the task: [size, sha256], or [size, sha256, url]."""
        size_bytes, sha256, *url = place
        return cls(
            row=row.row,
            group=row.group,
            index=index,
            attempt=row.attempt,
            executor=row.executor,
            address=row.address,
            size_bytes=int(size_bytes),
            sha256=str(sha256),
            url=str(url[0]) if url else "",
        )


Fetched: TypeAlias = bytes | str | None  #: the value; str: lost for good, and why; None: lost, and dealt with


class _Missing(Exception):
    """Who should have it does not, and never will."""


class Fetcher:
    """Of the results of one job."""

    def __init__(self, masters: MasterChannel, executors: ExecutorChannels, job_id: str, uid: int) -> None:
        self._masters = masters
        self._executors = executors
        self._job_id = job_id
        self._uid = uid

    def __call__(self, kept: Kept, stop: threading.Event) -> Fetched:
        """While the executor is alive, or the store does not answer, it is asked again: it may be restarting.

        Raises Unavailable when that takes too long."""
        pause_s, give_up_s = 0.1, time.monotonic() + FETCH_S_MAX
        attempt: Callable[[Kept, str], bytes | str] = self._from_store if kept.url else self._from_executor
        address = kept.address
        while not stop.is_set():
            try:
                found = attempt(kept, address)
            except _Missing:
                return self._lost(kept, missing=True)
            if isinstance(found, bytes):
                return found
            if not kept.url:
                executor = self._executor(kept.executor)
                if executor is None or executor.state == "gone":
                    return self._lost(kept, missing=False)
                address = executor.address
            if time.monotonic() >= give_up_s:
                raise Unavailable(
                    f"{kept.url or f'executor {address}'} keeps the result of task {kept.index} of job {self._job_id}"
                    f" and does not hand it over: {found}"
                )
            stop.wait(pause_s)
            pause_s = min(2.0, pause_s * 2)
        return None

    def _from_executor(self, kept: Kept, address: str) -> bytes | str:
        """The value, or why it did not come this time."""
        if not address:
            return "its executor is gone"
        request = pb.FetchRequest(job_uid=self._uid, group=kept.group, index=kept.index, attempt=kept.attempt)
        try:
            return self._executors.fetch(address, request, kept.size_bytes, kept.sha256)
        except NotFound as error:
            executor = self._executor(kept.executor)
            if executor is not None and executor.address == address:  # else another one has its address now
                raise _Missing from error
            return str(error)
        except TiflowError as error:
            return str(error)

    def _from_store(self, kept: Kept, _address: str) -> bytes | str:
        try:
            data = shared.get(kept.url)
        except FileNotFoundError as error:
            raise _Missing from error
        except OSError as error:
            return str(error)
        if len(data) != kept.size_bytes or hashlib.sha256(data).hexdigest() != kept.sha256:
            raise _Missing
        return data

    def _executor(self, uid: str) -> pb.ExecutorInfo | None:
        response = self._masters.call("ListExecutors", pb.ListExecutorsRequest())
        return next((executor for executor in response.executors if executor.uid == uid), None)

    def _lost(self, kept: Kept, *, missing: bool) -> Fetched:
        request = pb.RerunLostRequest(id=self._job_id, uid=self._uid, row=kept.row, index=kept.index, missing=missing)
        try:
            job = self._masters.call("RerunLost", request, write=True)
        except Rejected as error:
            return f"the result was lost with its executor, and the task cannot run again: {error}"
        if job.error or job.state in ("Canceling", "Canceled"):  # nothing of it runs any more
            reason = job.error or f"the job is {job.state}"
            return f"the result was lost with its executor, and the task does not run again: {reason}"
        return None
