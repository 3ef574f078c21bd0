"""When a cron line fires: against a slow reference, at the ends of summer time, and with nonsense."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow.errors import InvalidArgument
from tiflow.jobs.cron import fire_times, last_fire_ms, next_fire_ms, run_id, show_local

BERLIN = "Europe/Berlin"
MINUTE = timedelta(minutes=1)


def ms(*parts: int) -> int:
    """UTC."""
    return round(datetime(*parts, tzinfo=UTC).timestamp() * 1_000)


def shown(cron: str, after_ms: int, count: int, timezone: str = BERLIN) -> list[str]:
    return [show_local(at_ms, timezone) for at_ms in islice(fire_times(cron, timezone, after_ms), count)]


def test_a_daily_time_that_falls_into_a_gap_comes_right_after_it():
    assert shown("30 2 * * *", ms(2026, 3, 28, 0), 3) == [
        "2026-03-28 02:30:00 CET",
        "2026-03-29 03:00:00 CEST",
        "2026-03-30 02:30:00 CEST",
    ]
    assert shown("0,30 2 * * *", ms(2026, 3, 28, 12), 2) == ["2026-03-29 03:00:00 CEST", "2026-03-30 02:00:00 CEST"]


def test_a_daily_time_that_is_there_twice_comes_once():
    assert shown("30 2 * * *", ms(2026, 10, 24, 12), 2) == ["2026-10-25 02:30:00 CEST", "2026-10-26 02:30:00 CET"]
    between = ms(2026, 10, 25, 1, 15)
    assert show_local(between, BERLIN) == "2026-10-25 02:15:00 CET"
    assert shown("30 2 * * *", between, 1) == ["2026-10-26 02:30:00 CET"]


def test_an_interval_goes_on_when_clocks_change():
    assert shown("*/30 * * * *", ms(2026, 3, 29, 0, 10), 2) == ["2026-03-29 01:30:00 CET", "2026-03-29 03:00:00 CEST"]
    assert shown("*/30 * * * *", ms(2026, 10, 25, 0, 10), 4) == [
        "2026-10-25 02:30:00 CEST",
        "2026-10-25 02:00:00 CET",
        "2026-10-25 02:30:00 CET",
        "2026-10-25 03:00:00 CET",
    ]


def test_six_fields_begin_with_the_second():
    assert shown("*/20 * * * * *", ms(2026, 1, 1, 0, 0, 1), 3, "UTC") == [
        "2026-01-01 00:00:20 UTC",
        "2026-01-01 00:00:40 UTC",
        "2026-01-01 00:01:00 UTC",
    ]


def test_the_last_time_is_found_too():
    assert last_fire_ms("30 2 * * *", BERLIN, ms(2026, 3, 30, 0)) == ms(2026, 3, 29, 1)
    assert last_fire_ms("*/5 * * * *", "UTC", ms(2026, 1, 1, 0, 5)) == ms(2026, 1, 1, 0, 5)
    assert last_fire_ms("*/5 * * * *", "UTC", ms(2026, 1, 1, 0, 5) - 1) == ms(2026, 1, 1)


def test_a_run_is_named_for_its_time():
    assert run_id("nightly", ms(2026, 11, 25, 1, 30)) == "nightly-20261125T013000Z"
    assert run_id("nightly", ms(2026, 11, 25, 1, 30) + 7) == "nightly-20261125T013000.007Z"


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("0 0 30 2 *", "UTC", 'cron = "0 0 30 2 *": bad day-of-month; write MINUTE HOUR'),
        ("0 0 29 2 MON#5,MON#6", "UTC", "bad day-of-week"),
        ("0 0 * 2 MON#5", "UTC", None),
        ("0 0 */31 2 *", "UTC", None),
        ("0 0 31 4,6,9,11 *", "UTC", "bad day-of-month"),
        ("* * * *", "UTC", "wrong number of fields"),
        ("@daily", "UTC", "wrong number of fields"),
        ("", "UTC", "wrong number of fields"),
        ("60 * * * *", "UTC", "bad minute"),
        ("*/0 * * * *", "UTC", "bad minute"),
        ("0 " * 200, "UTC", "cron: 400 characters; at most 256"),
        ("* * * * *", "Europe/Atlantis", 'timezone = "Europe/Atlantis": is not known; write a name of the IANA'),
        ("* * * * *", "../../etc/passwd", "is not known"),
        ("* * * * *", "", "is not known"),
    ],
)
def test_a_line_that_cannot_be_read_or_never_fires_is_refused(cron: str, timezone: str, message: str | None):
    if message is None:
        assert next_fire_ms(cron, timezone, ms(2026, 1, 1)) > ms(2026, 1, 1)
        return
    with pytest.raises(InvalidArgument) as caught:
        next_fire_ms(cron, timezone, ms(2026, 1, 1))
    assert message in str(caught.value)


def test_a_line_whose_day_never_comes_is_refused():
    """A fifth Friday of a February, on its first or 31st."""
    with pytest.raises(InvalidArgument, match="never fires; there is no such day"):
        next_fire_ms("0 0 */30 2 FRI#5", "UTC", ms(2026, 1, 1))


words = st.text(st.sampled_from("0123456789*/-,#LW MONJA"), max_size=30)


@given(cron=words | st.lists(words, min_size=5, max_size=6).map(" ".join), after_ms=st.integers(0, 4_000_000_000_000))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_time_or_one_clear_error(cron: str, after_ms: int):
    try:
        times = list(islice(fire_times(cron, BERLIN, after_ms), 3))
    except InvalidArgument:
        return
    assert times == sorted(set(times))
    assert all(at_ms > after_ms for at_ms in times)


def fields(numbers: range, sizes: tuple[int, int]) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(numbers), min_size=sizes[0], max_size=sizes[1], unique=True).map(sorted)


#: the last Sundays of March and October 2026, and an ordinary day
days = st.sampled_from([datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)])
zones = st.sampled_from([BERLIN, "America/New_York", "UTC", "Australia/Lord_Howe", "Asia/Kathmandu"])


@given(minutes=fields(range(60), (1, 3)), day=days, zone=zones, step=st.sampled_from([1, 2, 5]))
@settings(max_examples=60, deadline=None)
def test_a_line_with_a_star_fires_whenever_the_clock_shows_its_time(
    minutes: list[int], day: datetime, zone: str, step: int
):
    end = day + timedelta(days=3)
    cron = f"{','.join(map(str, minutes))} */{step} * * *"
    wanted = [
        at
        for at in every_minute(day + MINUTE, end)
        if (local := at.astimezone(ZoneInfo(zone))).minute in minutes and local.hour % step == 0
    ]

    found = takewhile(
        lambda at_ms: at_ms <= end.timestamp() * 1_000, fire_times(cron, zone, ms(*day.timetuple()[:5]))
    )

    assert list(found) == [round(at.timestamp() * 1_000) for at in wanted]


@given(minutes=fields(range(60), (1, 3)), hours=fields(range(5), (1, 3)), day=days, zone=zones)
@settings(max_examples=60, deadline=None)
def test_a_line_without_one_fires_once_a_day_at_each_of_its_times(
    minutes: list[int], hours: list[int], day: datetime, zone: str
):
    tz, end = ZoneInfo(zone), day + timedelta(days=4)
    cron = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    wanted = set()
    for date in range(-1, 6):
        for hour in hours:
            for minute in minutes:
                naive = (day + timedelta(days=date)).replace(hour=hour, minute=minute, tzinfo=None)
                while (at := naive.replace(tzinfo=tz).astimezone(UTC)).astimezone(tz).replace(tzinfo=None) != naive:
                    naive += MINUTE  # in a gap
                wanted.add(at)

    found = takewhile(
        lambda at_ms: at_ms <= end.timestamp() * 1_000, fire_times(cron, zone, ms(*day.timetuple()[:5]))
    )

    assert list(found) == [round(at.timestamp() * 1_000) for at in sorted(wanted) if day < at <= end]


def every_minute(start: datetime, end: datetime) -> Iterator[datetime]:
    while start <= end:
        yield start
        start += MINUTE
