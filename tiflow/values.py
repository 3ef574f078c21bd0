"""Values as people write them: durations, addresses, labels. Each error names the key, the value and the remedy."""

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tiflow.errors import InvalidArgument
from tiflow.sched.model import AMOUNT_MAX, ID_CHARS, LABEL_CHARS_MAX, RESOURCES_MAX

ID_WORDS = "1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration_ms(text: str, key: str, minimum_ms: int = 1, maximum_ms: int = 86_400_000) -> int:
    """`500ms`, `5s`, `1.5m`, `2h`, `7d` in milliseconds."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*(ms|s|m|h|d)", text.strip()) if isinstance(text, str) else None
    if match is None:
        raise InvalidArgument(
            f'{key} = {show(text)}: is not a duration; write a number and a unit, as "500ms" or "5s"'
        )
    duration_ms = round(float(match[1]) * _UNITS_MS[match[2]])
    if not minimum_ms <= duration_ms <= maximum_ms:
        raise InvalidArgument(
            f"{key} = {show(text)}: must be {show_duration(minimum_ms)} to {show_duration(maximum_ms)}"
        )
    return duration_ms


_UNITS_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_bytes(text: str, key: str, minimum: int = 1, maximum: int = 1 << 50) -> int:
    """`512MiB`, `1.5GiB`, `4096` in bytes."""
    match = re.fullmatch(r"(\d{1,16}(?:\.\d{1,6})?)\s*([KMGT]iB|B|)", text.strip()) if isinstance(text, str) else None
    if match is None:
        raise InvalidArgument(
            f'{key} = {show(text)}: is not a size; write a number and a unit, as "512MiB" or "2GiB"'
        )
    size = round(float(match[1]) * _UNITS_BYTES[match[2]])
    if not minimum <= size <= maximum:
        raise InvalidArgument(f"{key} = {show(text)}: must be {show_bytes(minimum)} to {show_bytes(maximum)}")
    return size


def show_bytes(size: int) -> str:
    """The shortest exact way to write it: `1536MiB`, `2GiB`, `1000B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _UNITS_BYTES[unit] == 0:
            return f"{size // _UNITS_BYTES[unit]}{unit}"
    return f"{size}B"


def show_duration(duration_ms: int) -> str:
    """The shortest exact way to write it: `1500ms`, `5s`, `24h`."""
    for unit in ("h", "m", "s"):
        if duration_ms and duration_ms % _UNITS_MS[unit] == 0:
            return f"{duration_ms // _UNITS_MS[unit]}{unit}"
    return f"{duration_ms}ms"


def parse_resources(amounts: Mapping[str, Any], key: str) -> dict[str, int]:
    """What a task needs, or an executor has: `{"cpu": 0.5, "memory": "512MiB", "gpu": 1}` with cpu in thousandths and
    memory in bytes, in the order of the names."""
    if len(amounts) > RESOURCES_MAX:
        raise InvalidArgument(f"{key}: {len(amounts)} names; at most {RESOURCES_MAX}")
    for name in amounts:
        if not re.fullmatch(ID_CHARS, name) or name.endswith("\n"):
            raise InvalidArgument(f"{key}: the name {show(name)} must be {ID_WORDS}")
    return {name: _parse_amount(name, amounts[name], f"{key}.{name}") for name in sorted(amounts)}


def _parse_amount(name: str, value: Any, key: str) -> int:
    whole, part, remedy = _AMOUNTS.get(name, (1, {}, "write a whole number, as 1"))
    match = re.fullmatch(r"(\d{1,16})(\.\d{1,9})?\s*([A-Za-z]*)", str(value).strip())
    unit = match[3] if match else ""
    if (
        match is None
        or isinstance(value, bool)
        or (unit and unit not in part)
        or (match[2] and not _AMOUNTS.get(name))
    ):
        raise InvalidArgument(f"{key} = {show(value)}: is not an amount of {name}; {remedy}")
    amount = Decimal(match[1] + (match[2] or "")) * (part[unit] if unit else whole)
    if amount != int(amount) and name == "cpu":
        raise InvalidArgument(f"{key} = {show(value)}: is finer than a thousandth of a core; {remedy}")
    if not 1 <= amount <= AMOUNT_MAX:
        raise InvalidArgument(f"{key} = {show(value)}: must be more than 0, and at most {AMOUNT_MAX}; {remedy}")
    return int(amount)


_BYTES = {"B": 1} | {
    f"{prefix}{unit}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for unit, base in (("iB", 1_024), ("i", 1_024), ("B", 1_000))
}
#: by name: what 1 without a unit is, the units, and what to write instead
_AMOUNTS: dict[str, tuple[int, dict[str, int], str]] = {
    "cpu": (1_000, {"m": 1}, 'write cores, as 0.5, or thousandths, as "500m"'),
    "memory": (1, _BYTES, 'write bytes, or a number and a unit, as "512MiB" or "2GB"'),
}


def parse_address(text: str, key: str) -> tuple[str, int]:
    """`host:port`, with or without `http://` or `https://` before it; IPv6 in brackets."""
    bare = re.sub(r"^https?://", "", text.strip(), flags=re.IGNORECASE).removesuffix("/")

    def refuse(why: str) -> InvalidArgument:
        return InvalidArgument(f"{key} = {show(text)}: {why}; write HOST:PORT, as 127.0.0.1:10240 or [::1]:10240")

    if not bare:
        raise refuse("is empty")
    if bare.startswith("["):
        host, bracket, rest = bare[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise refuse("has no port after the bracket")
        port_text = rest[1:]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise refuse(f"{show(host)} is not an IPv6 address") from None
    else:
        host, colon, port_text = bare.rpartition(":")
        if not colon:
            raise refuse("has no port")
        if ":" in host:
            raise refuse("has several colons; IPv6 goes into brackets")
        if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?\.?", host):
            raise refuse(f"{show(host)} is not a host name" if host else "has no host")
        if re.fullmatch(r"[0-9.]+", host):
            try:
                ipaddress.IPv4Address(host)
            except ValueError:
                raise refuse(f"{show(host)} is not an IPv4 address") from None
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
        raise refuse(f"the port {show(port_text)} is not a number from 1 to 65535")
    return host, int(port_text)


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_addresses(value: str | Iterable[str], key: str) -> tuple[str, ...]:
    """Addresses from a comma-separated string, or from several: normalised, without repeats."""
    return tuple(dict.fromkeys(normal_address(text, key) for text in split_commas(value)))


def parse_labels(pairs: Iterable[str], key: str) -> dict[str, str]:
    """`["zone=eu", "disk=ssd"]` as a dict."""
    labels = parse_pairs(pairs, key, "zone=eu")
    for label, value in labels.items():
        check_label(label, value, key)
    return labels


def parse_pairs(pairs: Iterable[str], key: str, example: str) -> dict[str, str]:
    """`["zone=eu", "disk=ssd"]` as a dict of whatever stands on both sides."""
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidArgument(f"{key} = {show(pair)}: has no value; write NAME=VALUE, as {example}")
        parsed[name] = value
    return parsed


def check_label(label: str, value: str, key: str) -> None:
    """Refuse a label that a selector could not name."""
    if not re.fullmatch(ID_CHARS, label):
        raise InvalidArgument(
            f"{key}: the label name {show(label)} must be 1 to 128 letters, digits, '.', '_' or '-', and begin with "
            "a letter or digit"
        )
    if len(value) > LABEL_CHARS_MAX or not value.isprintable():
        raise InvalidArgument(
            f"{key}: the value of {label} must be at most {LABEL_CHARS_MAX} printable characters, on one line"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether it means "all interfaces", and so cannot be dialled."""
    return host in ("0.0.0.0", "::")


def normal_address(text: str, key: str) -> str:
    return format_address(*parse_address(text, key))


def split_commas(value: str | Iterable[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value)
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def show(value: Any) -> str:
    """As it would stand in the file, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
