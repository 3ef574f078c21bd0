"""Schedules as tasks for a pool of processes."""

import gc
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog

from tests.sim.raft.planted import PLANTS, planted
from tests.sim.raft.schedule import STEPS, run


class Task(NamedTuple):
    """A schedule to run: `weather` names the planted bug in whose weather, `bug` the one that is there."""

    seed: int
    steps: int = STEPS
    weather: str | None = None
    bug: str | None = None

    @property
    def changes(self) -> Mapping[str, Any]:
        return {"ahead_bytes": 0} | dict(PLANTS[self.weather].changes) if self.weather else {}


def attempt(task: Task) -> tuple[Task, str | None]:
    """What is broken, or None."""
    try:
        with planted(task.bug):
            run(task.seed, changes=task.changes, steps=task.steps)
    except Exception as error:  # noqa: BLE001 - each is a finding
        return task, f"{type(error).__name__}: {error}"
    return task, None


def be_quiet() -> None:
    """What the nodes log is not shown, and what was imported is not searched for garbage again and again."""

    def drop(*_: object) -> None:
        raise structlog.DropEvent

    structlog.configure(processors=[drop])
    gc.freeze()
