import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiflow.errors import InvalidArgument
from tiflow.values import (
    format_address,
    is_loopback,
    parse_address,
    parse_addresses,
    parse_duration_ms,
    parse_labels,
    show_duration,
)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("500ms", 500), ("5s", 5_000), ("1m", 60_000), ("2h", 7_200_000), ("1.5s", 1_500), (" 3 s ", 3_000)],
)
def test_reads_a_duration(text: str, ms: int):
    assert parse_duration_ms(text, "key") == ms


@given(st.integers(1, 86_400_000))
def test_a_duration_that_is_shown_reads_as_itself(ms: int):
    assert parse_duration_ms(show_duration(ms), "key") == ms


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("5", ['keepalive-ttl = "5"', "is not a duration", '"500ms"']),
        ("five seconds", ["is not a duration"]),
        ("-5s", ["is not a duration"]),
        ("5 days", ["is not a duration"]),
        ("", ["is not a duration"]),
        ("0s", ["must be 1ms to 24h"]),
        ("25h", ["must be 1ms to 24h"]),
    ],
)
def test_refuses_what_is_no_duration(text: str, parts: list[str]):
    with pytest.raises(InvalidArgument) as caught:
        parse_duration_ms(text, "keepalive-ttl")

    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:10240", "127.0.0.1", 10240),
        ("http://ip0:10240", "ip0", 10240),
        ("https://ip0:10240/", "ip0", 10240),
        ("HTTP://ip0:1", "ip0", 1),
        ("[::1]:10240", "::1", 10240),
        ("tiflow-master_0.svc.local:65535", "tiflow-master_0.svc.local", 65535),
    ],
)
def test_reads_an_address(text: str, host: str, port: int):
    assert parse_address(text, "addr") == (host, port)
    assert parse_address(format_address(host, port), "addr") == (host, port)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("ip0", "has no port"),
        ("10240", "has no port"),
        (":10240", "has no host"),
        ("ip0:", "the port"),
        ("ip0:0", "the port"),
        ("ip0:65536", "the port"),
        ("ip0:x", "the port"),
        ("::1:10240", "brackets"),
        ("[::1]", "has no port after the bracket"),
        ("[::zz]:1", "is not an IPv6 address"),
        ("300.1.1.1:1", "is not an IPv4 address"),
        ("ftp://ip0:1", "brackets"),
        ("ip 0:1", "is not a host name"),
    ],
)
def test_refuses_what_is_no_address(text: str, part: str):
    with pytest.raises(InvalidArgument, match=r"^join = .*; write HOST:PORT, as 127\.0\.0\.1:10240") as caught:
        parse_address(text, "join")

    assert part in str(caught.value)


def test_addresses_come_from_one_string_or_several_and_once_each():
    assert parse_addresses("a:1, http://b:2,a:1", "join") == ("a:1", "b:2")
    assert parse_addresses(["a:1,b:2", "c:3"], "join") == ("a:1", "b:2", "c:3")


def test_knows_what_only_this_machine_can_reach():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4


def test_reads_labels():
    assert parse_labels(["zone=eu", "note=a=b", "empty="], "--labels") == {"zone": "eu", "note": "a=b", "empty": ""}


@pytest.mark.parametrize(("pair", "part"), [("zone", "has no value"), ("=x", "label name"), ("a b=c", "label name")])
def test_refuses_what_is_no_label(pair: str, part: str):
    with pytest.raises(InvalidArgument, match=part):
        parse_labels([pair], "--labels")
