"""When a cron line fires, in a time zone. Pure: the same line, zone and instant give the same answer.

Instants are ms since the Unix epoch. Lines have five fields, as in cron(5), or six with the second in front; names
(MON, JAN), steps, lists, `L` (the last day) and `MON#2` (the second Monday) are understood.

A line of five fields that names hour and minute fires once a day even when clocks change: right after the gap if its
time falls into one, and at the first of two such times. Other lines follow the clock: what falls into a gap does not
fire, and a repeated hour fires twice. Source: Debian's cron, by way of `cronsim`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tiflow.errors import InvalidArgument
from tiflow.sched.model import CRON_CHARS_MAX, Millis


def fire_times(cron: str, timezone: str, after_ms: Millis) -> Iterator[Millis]:
    """The instants after `after_ms` at which it fires, in order; none if it never does again.

    Raises:
        InvalidArgument: it cannot be read, or there is no such time zone.
    """
    last_ms = after_ms
    for at_ms in _times(cron, timezone, after_ms, reverse=False):
        if at_ms > last_ms:  # of two times in a gap, or one that has an earlier twin, only one counts
            last_ms = at_ms
            yield at_ms


def next_fire_ms(cron: str, timezone: str, after_ms: Millis) -> Millis:
    """The first instant after `after_ms` at which it fires.

    Raises:
        InvalidArgument: it cannot be read, never fires again, or there is no such time zone.
    """
    at_ms = next(fire_times(cron, timezone, after_ms), None)
    if at_ms is None:
        raise InvalidArgument(f'cron = "{cron}": never fires; there is no such day')
    return at_ms


def last_fire_ms(cron: str, timezone: str, until_ms: Millis) -> Millis | None:
    """The newest instant up to `until_ms` at which it fired. Raises InvalidArgument, as `fire_times`."""
    return next(
        (at_ms for at_ms in _times(cron, timezone, until_ms + 1_000, reverse=True) if at_ms <= until_ms), None
    )


def run_id(schedule: str, at_ms: Millis) -> str:
    """The id of the job that a schedule starts for an instant: `nightly-20261125T013000Z`, with a fraction if it is
    not a whole second."""
    at = datetime.fromtimestamp(at_ms // 1_000, UTC)
    fraction = f".{at_ms % 1_000:03}" if at_ms % 1_000 else ""
    return f"{schedule}-{at:%Y%m%dT%H%M%S}{fraction}Z"


def show_local(at_ms: Millis, timezone: str) -> str:
    """`2026-11-25 02:30:00 CET`."""
    return f"{datetime.fromtimestamp(at_ms / 1_000, _zone(timezone)):%Y-%m-%d %H:%M:%S %Z}"


def _times(cron: str, timezone: str, from_ms: Millis, *, reverse: bool) -> Iterator[Millis]:
    start = datetime.fromtimestamp(from_ms // 1_000, UTC).astimezone(_zone(timezone))
    if len(cron) > CRON_CHARS_MAX:
        raise InvalidArgument(f"cron: {len(cron)} characters; at most {CRON_CHARS_MAX}")
    try:
        times = CronSim(cron, start, reverse)
    except (CronSimError, ValueError, AssertionError) as error:
        raise InvalidArgument(
            f'cron = "{cron}": {str(error).lower() or "cannot be read"}; write MINUTE HOUR DAY MONTH WEEKDAY, as '
            '"*/5 * * * *" or "30 2 * * MON-FRI", with a SECOND in front if need be'
        ) from None
    try:
        for time in times:
            yield (time - _EPOCH) // _MILLISECOND
    except OverflowError:  # the end of the calendar
        return


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise InvalidArgument(
            f'timezone = "{timezone[:140]}": is not known; write a name of the IANA database, as UTC or Europe/Berlin'
        ) from None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
