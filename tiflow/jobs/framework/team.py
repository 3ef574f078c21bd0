"""How a job master's workers stand, and which of its hooks are to hear of it."""

from collections.abc import Iterable, Sequence

from msgspec import Struct, msgpack

from tiflow.jobs.framework.member import WorkerView
from tiflow.jobs.framework.port import FAILED, LOST, WorkerRow, place_of


class Change(Struct, frozen=True):
    hook: str  #: name of a method of JobMaster
    worker: WorkerView


class Team:
    """Who there is, is known here and nowhere better: only this attempt of the job master starts workers and forgets
    them. What it is told says how they stand. It may be older than what was asked for and answered meanwhile, so that
    somebody is missing there, or still in it, says nothing."""

    def __init__(self, rows: Iterable[WorkerRow]) -> None:
        self.views: dict[str, WorkerView] = {}
        self._expected: set[str] = set()  #: asked for; the answer, and how they stand, come in any order
        for row in rows:
            self._see(self.views.setdefault(row.name, WorkerView(row.name)), row)

    def expect(self, names: Sequence[str]) -> None:
        """They are about to be asked for."""
        self._expected.update(names)

    def refused(self, names: Sequence[str]) -> None:
        self._expected.difference_update(names)

    def add(self, names: Sequence[str], kind: str) -> list[WorkerView]:
        """They exist now. What is told of them comes in a moment, or has come already."""
        for name in names:
            self.views.setdefault(name, WorkerView(name, kind))
        return [self.views[name] for name in names]

    def of_group(self, group: str) -> list[WorkerView]:
        return [view for view in self.views.values() if place_of(view.name)[0] == group]

    def forget(self, group: str) -> None:
        for view in self.of_group(group):
            del self.views[view.name]
            self._expected.discard(view.name)

    def see(self, rows: Iterable[WorkerRow]) -> list[Change]:
        changes = []
        for row in rows:
            if row.name in self._expected and row.name not in self.views:
                self.views[row.name] = WorkerView(row.name, row.kind)
            if (view := self.views.get(row.name)) is not None:
                changes += [Change(hook, view) for hook in self._see(view, row)]
        return changes

    @property
    def ended(self) -> bool:
        return all(view.ended for view in self.views.values())

    def _see(self, view: WorkerView, row: WorkerRow) -> list[str]:
        """Returns: the hooks, in the order in which it has happened."""
        hooks = []
        if row.attempt > view.attempt:  # another try: how did those before end?
            lost, failed = row.losses != view.losses, row.failures != view.failures
            if not (lost or failed):  # the counts start over after a try that was healthy for long
                lost, failed = row.last_end == LOST, row.last_end == FAILED
            hooks += ["on_lost"] * lost + ["on_failed"] * failed
        if row.state == "failed" != view.state:
            hooks.append("on_failed")
        began = row.state == "running" and (view.state, view.attempt) != ("running", row.attempt)
        if began or (row.state == "succeeded" and view.state in ("waiting", "placed")):
            hooks.append("on_started")
        status = msgpack.decode(row.status) if row.status else view.status
        if status != view.status:
            hooks.append("on_status")
        if row.state == "succeeded" != view.state:
            hooks.append("on_finished")
        view.kind, view.state, view.attempt, view.executor = row.kind, row.state, row.attempt, row.executor
        if row.attempt:  # of those that have ended they are not told
            view.failures, view.losses = row.failures, row.losses
        view.status, view.error = status, row.error or view.error
        view.result = msgpack.decode(row.result) if row.result else None
        return hooks
