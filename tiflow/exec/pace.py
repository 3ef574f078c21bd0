"""How many tasks of a group a worker gets at once: so many that it is at work for BATCH_S, as measured."""

from typing import TypeAlias

from msgspec import Struct

BATCH_S = 0.025
BATCH_TASKS_MAX = 256
BATCH_GROWTH = 8  #: a batch is at most this much larger than the largest one that went well
PACES_MAX = 1_024  #: groups that are remembered

Key: TypeAlias = tuple[int, str | tuple[bytes, ...]]  #: job uid, group or pickled functions


class _Pace(Struct):
    task_us: float
    tasks_max: int


class Paces:
    def __init__(self) -> None:
        self._paces: dict[Key, _Pace] = {}  #: least recently measured first

    def batch_tasks(self, key: Key) -> int:
        """1 for a group of which nothing is known yet."""
        pace = self._paces.get(key)
        if pace is None:
            return 1
        return max(1, min(BATCH_TASKS_MAX, pace.tasks_max, int(BATCH_S * 1e6 / max(pace.task_us, 1.0))))

    def measure(self, key: Key, tasks: int, run_us: int) -> None:
        """A batch of `tasks` took `run_us`."""
        if tasks <= 0:
            return
        pace = self._paces.pop(key, None)
        if pace is None:
            self._paces[key] = _Pace(run_us / tasks, tasks * BATCH_GROWTH)
        else:
            # half the old value: a group whose tasks grow longer is noticed within a few batches
            task_us = (pace.task_us + run_us / tasks) / 2
            self._paces[key] = _Pace(task_us, max(tasks * BATCH_GROWTH, pace.tasks_max))
        if len(self._paces) > PACES_MAX:
            del self._paces[next(iter(self._paces))]
