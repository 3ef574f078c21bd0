"""What client commands share: how they find the masters, and how they print."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tiflow.client import Client

DEFAULT_MASTER_ADDRS = "127.0.0.1:10240"
REFUSED_S = 3.0  #: while no master lets us connect: a person waits for the message

Function = TypeVar("Function", bound=Callable[..., Any])


def client_options(function: Function) -> Function:
    """`--master-addrs`, here too and not only before the command, and `--json`."""
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)
    return master_addrs_option(function)


def master_addrs_option(function: Function) -> Function:
    return click.option(
        "--master-addrs",
        metavar="HOST:PORT,...",
        help="The masters. Default: $TIFLOW_MASTER_ADDRS, else 127.0.0.1:10240.",
    )(function)


def connect(master_addrs: str | None) -> "Client":
    """A client for the masters that the command line, or the environment, names."""
    from tiflow.client import Client

    given = click.get_current_context().find_root().obj
    return Client(
        master_addrs or given["master_addrs"] or DEFAULT_MASTER_ADDRS,
        refused_s=REFUSED_S,
        ca_path=given["ca_path"] or "",
        cert_path=given["cert_path"] or "",
        key_path=given["key_path"] or "",
    )


def print_json(value: Any) -> None:
    """One value as one line. Bytes become base64."""
    import msgspec

    click.echo(msgspec.json.encode(value))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns, numbers to the right. No frames: it is read by `grep` and `awk` as well."""
    table = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headers, *table, strict=True)]
    right = [
        any(map(_is_number, column)) and all(map(_is_number_or_none, column)) for column in zip(*table, strict=True)
    ]
    right = right or [False] * len(headers)

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    click.secho(line(headers), bold=True)
    for cells in table:
        click.echo(line(cells))


def _is_number(cell: str) -> bool:
    return cell.isdigit()


def _is_number_or_none(cell: str) -> bool:
    return cell.isdigit() or cell in ("", "-")


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """`name: value` lines, the values below each other."""
    known = [(name, value) for name, value in fields if value not in (None, "")]
    width = max(len(name) for name, _ in known) + 1
    for name, value in known:
        click.echo(f"{name + ':':<{width}} {value}")


def ago(at_ms: int | None) -> str:
    """`12s ago`; `-` for never."""
    return "-" if at_ms is None else f"{span(time.time() - at_ms / 1_000)} ago"


def span(seconds: float) -> str:
    """A duration for people, in two units at most: `350ms`, `2.4s`, `3m12s`, `5h07m`, `3d04h`."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1_000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest_s = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def size(number: int) -> str:
    """A number of bytes for people: `512 B`, `1.5 MiB`."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
