"""A pool: a `concurrent.futures.Executor` whose calls run on the executors of the cluster.

    with tiflow.Client("ip0:10240,ip1:10240").executor() as pool:
        for size in pool.map(os.path.getsize, paths, chunksize=100):
            print(size)

What the standard library promises of its executors holds here, with these additions:

* A function that is defined in a script or a notebook travels with its call, as do the classes of its arguments
  (cloudpickle); one that can be imported goes by name, and the executors import it from the same directories.
* What a call raises is raised by `Future.result`, with the remote traceback as its cause, and the call is not tried
  again. `TaskFailed` says that there is no outcome: the process died as often as `retry` allows, or it took too long.
* `Future.cancel` cancels a call that is not known to have started; `PoolExecutor.cancel(future, force=True)` also one
  that runs.
* A call may run more than once: when its executor is lost, or its result with it.
* The pool is one job (`PoolExecutor.id`). It ends with `shutdown`, and it fails when this process is not heard of for
  `client_ttl_s`. `BrokenPool` says that it is gone.
"""

import atexit
import os
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from itertools import islice
from typing import Any, TypedDict, TypeVar, Unpack

from tiflow.errors import InvalidArgument
from tiflow.jobs import calls
from tiflow.jobs.spec import AS_MASTERS_SAY, parse_selector
from tiflow.pool_job import BrokenPool, PoolFuture, PoolJob, TaskFailed
from tiflow.rpc.channel import MasterChannel
from tiflow.rpc.executors import ExecutorChannels
from tiflow.sched.model import CLIENT_TTL_MS_MAX, Call, GroupSpec, JobSpec, RetryPolicy

__all__ = ["BrokenPool", "PoolExecutor", "PoolOptions", "TaskFailed"]

CLIENT_TTL_S = 30.0

T = TypeVar("T")


class PoolOptions(TypedDict, total=False):
    """What can be said of a pool; nothing has to be."""

    id: str  #: of its job; drawn by default
    path: Sequence[str | os.PathLike[str]]  #: in front of the executors' sys.path; default: what is in front of ours
    priority: int  #: 0 to 100; 50 by default
    selectors: Sequence[str]  #: which executors may run its calls, as in a job file: "zone=eu", "gpu"
    labels: Mapping[str, str]  #: of its job
    retry: RetryPolicy  #: of calls whose process dies or which take too long; default: as the masters say
    timeout_s: float  #: run time of one call; 0, the default: unlimited
    client_ttl_s: float  #: the pool fails when this process is not heard of for so long; 30 s by default
    on_lost_result: str  #: "rerun", the default: a call whose result was lost runs again; "fail": the pool fails


class PoolExecutor(Executor):
    """Made by `Client.executor`. Thread-safe."""

    def __init__(
        self, masters: MasterChannel, executors: ExecutorChannels, new_id: str, **options: Unpack[PoolOptions]
    ) -> None:
        """Submits the job of the pool. Raises InvalidArgument, AlreadyExists, Unavailable."""
        unknown = sorted(set(options) - set(PoolOptions.__annotations__))
        if unknown:
            raise InvalidArgument(
                f"{unknown[0]}: is not an option of a pool; there are {', '.join(PoolOptions.__annotations__)}"
            )
        ttl_ms = round(options.get("client_ttl_s", CLIENT_TTL_S) * 1_000)
        if not 1_000 <= ttl_ms <= CLIENT_TTL_MS_MAX:
            raise InvalidArgument(
                f"client_ttl_s = {ttl_ms / 1_000:g}: must be 1 to {CLIENT_TTL_MS_MAX // 1_000} seconds"
            )
        spec = JobSpec(
            id=options.get("id") or new_id,
            groups=(),
            priority=options.get("priority", 50),
            labels=dict(options.get("labels", {})),
            open=True,
            client_ttl_ms=ttl_ms,
            on_lost_result=options.get("on_lost_result", "rerun"),
        )
        self._job = PoolJob(masters, executors, spec, _template(options))
        _living.add(self._job)
        weakref.finalize(self, self._job.close).atexit = False  # nobody can submit any more

    @property
    def id(self) -> str:
        """Of the pool's job, for `Client.get` and `tiflow job`."""
        return self._job.id

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn(*args, **kwargs)` on some executor. Arguments are pickled now: what is done to them later changes
        nothing.

        Raises RuntimeError after `shutdown`, BrokenPool when the pool's job is gone. What cannot be pickled is told
        by the future.
        """
        future: Future[T] = self._job.submit(fn, [(args, kwargs)])[0]
        return future

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """As the built-in map, with the iterables read at once and the calls made at once. `chunksize` calls are one
        task; more than one pays for short functions."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        end_s = None if timeout is None else timeout + time.monotonic()
        rows = zip(*iterables, strict=False)
        if chunksize == 1:
            return _results(self._job.submit(fn, [(row, {}) for row in rows]), end_s)
        chunks = iter(lambda: list(islice(rows, chunksize)), [])
        futures = self._job.submit(partial(calls.call_each, fn), [((chunk,), {}) for chunk in chunks])
        return (value for chunk in _results(futures, end_s) for value in chunk)

    def cancel(self, future: Future[Any], *, force: bool = False) -> bool:
        """As `future.cancel()`. With `force`, a call that runs is stopped too: by SIGTERM (in the function an
        exception), then by SIGKILL. Its future then has a CancelledError. False: it has ended, or (without force) it
        runs."""
        if future.cancel() or not force or not isinstance(future, PoolFuture):
            return future.cancelled()
        return self._job.stop(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls are taken. With `cancel_futures`, those that have not started are canceled. With `wait`,
        returns when all have ended; the pool's job is then deleted unless it failed."""
        self._job.close()
        if cancel_futures:
            self._job.cancel_all()
        if wait:
            self._job.join()


def _template(options: Mapping[str, Any]) -> GroupSpec:
    """What all groups of the pool have in common."""
    path = options.get("path")
    if isinstance(path, str | os.PathLike):
        path = [path]
    work = Call(
        functions=(),
        path=tuple(_own_path() if path is None else [os.path.abspath(entry) for entry in path]),
        python=calls.PYTHON,
        cloudpickle=calls.CLOUDPICKLE,
    )
    return GroupSpec(
        name="",
        work=work,
        retry=options.get("retry", AS_MASTERS_SAY),
        selectors=tuple(parse_selector(text, "selectors") for text in options.get("selectors", ())),
        timeout_ms=round(options.get("timeout_s", 0) * 1_000),
    )


def _own_path() -> list[str]:
    """The directories from which this process imports, but for those of Python and of installed packages."""
    installed = {os.path.abspath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found = [os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry or ".")]
    own = [entry for entry in found if not any(entry == one or entry.startswith(f"{one}/") for one in installed)]
    return list(dict.fromkeys(own))


def _results(futures: list[Future[T]], end_s: float | None) -> Generator[T, None, None]:
    """Their results in order. Whoever stops reading cancels the rest."""
    futures.reverse()
    try:
        while futures:
            # popped before it is waited for, so that the reference is gone when its result is handed out
            future = futures.pop()
            try:
                value = future.result(None if end_s is None else end_s - time.monotonic())
            except FutureTimeout:
                future.cancel()
                raise
            del future
            yield value
    finally:
        for future in futures:
            future.cancel()


_living: "weakref.WeakSet[PoolJob]" = weakref.WeakSet()


def _finish() -> None:
    """Calls that were made come to their end before the interpreter does, as with other executors."""
    for job in list(_living):
        job.close()
        job.join()


atexit.register(_finish)
