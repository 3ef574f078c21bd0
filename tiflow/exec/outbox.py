"""What the leader has yet to learn, in order, until it says that it is committed.

Reports gather and merge (consecutive tasks that went the same way are one report) until they are taken into a batch.
A batch has a number and never changes again: the leader takes a report with results only as a whole, so the batch
that is sent again after a reconnect must be the one that was sent before.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

from msgspec import Struct

#: a value, encoded; or size in bytes and sha256 of one that is kept here, and its URL if it is in a shared store
Result: TypeAlias = bytes | tuple[int | str, ...]

BATCHES_IN_FLIGHT_MAX = 2
BATCH_REPORTS_MAX = 512
BATCH_BYTES_MAX = 1 << 20


class Used(TypedDict, total=False):
    """What tasks used: CPU time of all of them (us), peak memory of the largest (bytes)."""

    cpu_us: int
    memory_bytes: int


class Report(Struct, array_like=True):
    """Tasks [start, stop) of a placement went the same way; as `sched.commands.TaskEvent`."""

    placement: int
    start: int
    stop: int
    kind: str  #: started, succeeded, failed, canceled, released
    results: list[Result] | None = None  #: None: tasks of that kind have none
    error: str = ""
    exit_code: int = 0
    final: bool = False
    run_us: int = 0
    cpu_us: int = 0
    memory_bytes: int = 0  #: of the largest
    bytes: int = 64  #: about, on the wire


class Batch(Struct, frozen=True):
    seq: int
    reports: tuple[Report, ...]


class Outbox:
    def __init__(self) -> None:
        self.in_flight: dict[int, Batch] = {}  #: by seq, ascending
        self._gathered: dict[int, Report] = {}  #: by order of arrival
        self._number = 0  #: of the newest gathered report
        self._open: dict[tuple[int, int], int] = {}  #: (placement, stop) → the gathered report that may grow there
        self._started: dict[tuple[int, int], int] = {}  #: (placement, index) → its gathered `started`
        self._fresh: dict[int, Report] = {}  #: ends that the journal has not seen; a gathered one grows in place
        self._seq = 0

    def __bool__(self) -> bool:
        """Whether anything is not yet committed."""
        return bool(self.in_flight or self._gathered)

    @property
    def sendable(self) -> bool:
        return bool(self._gathered) and len(self.in_flight) < BATCHES_IN_FLIGHT_MAX

    def placements(self) -> dict[int, None]:
        reports = [r for batch in self.in_flight.values() for r in batch.reports]
        return dict.fromkeys(report.placement for report in (*reports, *self._gathered.values()))

    def started(self, placement: int, index: int) -> None:
        self._append(Report(placement, index, index + 1, "started"))
        self._started[placement, index] = self._number

    def succeeded(
        self,
        placement: int,
        start: int,
        results: Sequence[Result],
        run_us: int,
        *,
        cpu_us: int = 0,
        memory_bytes: int = 0,
    ) -> None:
        """Tasks [start, start + len(results)) succeeded, with these results."""
        size = sum(3 + len(r) if isinstance(r, bytes) else len(str(r)) for r in results)
        report = Report(placement, start, start + len(results), "succeeded", list(results), run_us=run_us)
        report.cpu_us, report.memory_bytes = cpu_us, memory_bytes
        report.bytes += size
        self._end(report)

    def ended(
        self,
        placement: int,
        start: int,
        stop: int,
        kind: str,
        *,
        error: str = "",
        exit_code: int = 0,
        final: bool = False,
        run_us: int = 0,
        cpu_us: int = 0,
        memory_bytes: int = 0,
    ) -> None:
        """Tasks [start, stop) ended without a result to hand over."""
        report = Report(placement, start, stop, kind, None, error, exit_code, final, run_us, cpu_us, memory_bytes)
        report.bytes += 4 * len(error)
        self._end(report)

    def take(self) -> Batch:
        """The next batch, from the oldest reports. Only if `sendable`."""
        assert self.sendable
        self._seq += 1
        taken: list[Report] = []
        size = 0
        while self._gathered and len(taken) < BATCH_REPORTS_MAX:
            number = next(iter(self._gathered))
            size += self._gathered[number].bytes
            if taken and size > BATCH_BYTES_MAX:
                break
            report = self._gathered.pop(number)
            taken.append(report)
            if report.kind == "started":
                self._started.pop((report.placement, report.start), None)
            elif self._open.get((report.placement, report.stop)) == number:
                del self._open[report.placement, report.stop]
        batch = self.in_flight[self._seq] = Batch(self._seq, tuple(taken))
        return batch

    def take_fresh(self) -> list[Report]:
        """The ends that were added since the last call, for the journal."""
        fresh, self._fresh = list(self._fresh.values()), {}
        return fresh

    def unacknowledged(self) -> list[Report]:
        """All ends of which it is not known that they are committed."""
        sent = (report for batch in self.in_flight.values() for report in batch.reports)
        return [report for report in (*sent, *self._gathered.values()) if report.kind != "started"]

    def acknowledge(self, seq: int) -> None:
        """All batches up to this one are committed."""
        for sent in [sent for sent in self.in_flight if sent <= seq]:
            del self.in_flight[sent]

    def forget(self, placements: Sequence[int]) -> None:
        """The leader does not want to hear of these. What is in flight stays as it is: it ignores it."""
        unwanted = set(placements)
        self._gathered = {n: r for n, r in self._gathered.items() if r.placement not in unwanted}
        self._open = {k: n for k, n in self._open.items() if k[0] not in unwanted}
        self._started = {k: n for k, n in self._started.items() if k[0] not in unwanted}

    def clear(self) -> None:
        self.in_flight.clear()
        self._gathered.clear()
        self._open.clear()
        self._started.clear()
        self._fresh.clear()

    def _end(self, report: Report) -> None:
        if self._started:
            for index in range(report.start, report.stop):
                number = self._started.pop((report.placement, index), None)
                if number is not None:  # one that started and ended since the last batch is one report
                    del self._gathered[number]
        number = self._open.pop((report.placement, report.start), None)
        if number is not None and _may_merge(self._gathered[number], report):
            last = self._gathered[number]
            last.stop = report.stop
            last.run_us += report.run_us
            last.cpu_us += report.cpu_us
            last.memory_bytes = max(last.memory_bytes, report.memory_bytes)
            if last.results is not None and report.results is not None:
                last.results += report.results
                last.bytes += report.bytes - 64
            if number not in self._fresh:  # the journal has its beginning
                self._number += 1
                self._fresh[self._number] = report
        else:
            self._append(report)
            number = self._number
            self._fresh[number] = report
        self._open[report.placement, report.stop] = number

    def _append(self, report: Report) -> None:
        self._number += 1
        self._gathered[self._number] = report


def _may_merge(last: Report, report: Report) -> bool:
    return (last.kind, last.results is None, last.error, last.exit_code, last.final) == (
        report.kind,
        report.results is None,
        report.error,
        report.exit_code,
        report.final,
    )
