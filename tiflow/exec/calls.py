"""The worker's side of a client's pool: functions and arguments are pickles, loaded here and nowhere before."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from msgspec import Raw, msgpack

from tiflow.jobs import calls
from tiflow.sched.model import Call

FUNCTIONS_MAX = 128  #: that a worker keeps loaded


class Unloadable(Exception):
    """No try on this executor can help, and most likely on no other one."""


class Calls:
    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[int, bytes], Callable[..., Any]] = OrderedDict()  #: least recently used first
        self._fits: tuple[str, str] | None = None

    def run(self, job_uid: int, work: Call, item: Raw, let_through: type[BaseException]) -> calls.Outcome:
        """Call what an item names. Raises Unloadable, and `let_through`."""
        position, arguments = msgpack.decode(item, type=tuple[int, bytes])
        return calls.call(self._function(job_uid, work, position), arguments, let_through)

    def _function(self, job_uid: int, work: Call, position: int) -> Callable[..., Any]:
        versions = (work.python, work.cloudpickle)
        if versions != self._fits:
            if reason := calls.misfit(*versions):
                raise Unloadable(reason)
            self._fits = versions
        key = (job_uid, work.functions[position])
        function = self._loaded.get(key)
        if function is None:
            try:
                function = calls.load(key[1])
            except BaseException as error:  # noqa: BLE001  a module that it imports may raise anything
                raise Unloadable(f"the function cannot be loaded here: {type(error).__name__}: {error}") from None
            self._loaded[key] = function
            if len(self._loaded) > FUNCTIONS_MAX:
                self._loaded.popitem(last=False)
        else:
            self._loaded.move_to_end(key)
        return function
