"""`tiflow raft log`: what a data directory holds."""

from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiflow.cli.common import print_fields, print_json, print_table, size

if TYPE_CHECKING:
    from tiflow.raft.inspect import LogRecord, Summary

ROWS_MAX = 100_000
TERMS_SHOWN = 10


@click.command()
@click.argument("directory", metavar="DATA_DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--from", "first", type=click.IntRange(0), metavar="INDEX", help="Only entries from this index on.")
@click.option("--to", "last", type=click.IntRange(0), metavar="INDEX", help="Only entries up to this index.")
@click.option(
    "--limit",
    type=click.IntRange(0, ROWS_MAX),
    default=100,
    show_default=True,
    metavar="N",
    help="Show so many records at most, the newest ones. All are checked.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def log(directory: str, first: int | None, last: int | None, limit: int, as_json: bool) -> int:
    """Look at the log of a master that is not running. Nothing is written.

    Every record and the snapshot are checked; exit code 1 if something is damaged. An unfinished write at the end is
    no damage: a start cuts it off. SNAPSHOT means that the log begins at this index, after a snapshot; an entry may
    be cut off by a later `truncate`, or repeated at the beginning of a segment.

    \b
    Examples:
      tiflow raft log /var/lib/tiflow/master
      tiflow raft log ./data/master --from 1200 --to 1300 --json
    """
    from tiflow.raft.inspect import inspect

    with inspect(Path(directory)) as found:
        chosen = (record for record in found.records() if _wanted(record, first, last))
        shown = deque(chosen, maxlen=limit)
        rows = [(record, _commands(found.proposed(record)) if record.kind == "entry" else {}) for record in shown]
    summary = found.summary
    if as_json:
        print_json({"records": [_log_fields(*row) for row in rows], "summary": summary})
    else:
        if rows:
            print_table(LOG_HEADERS, [_log_row(*row) for row in rows])
            click.echo()
        print_fields(_log_summary(summary))
        for damage in summary.damage:
            click.echo(f"{damage.file}: damaged at offset {damage.offset}: {damage.what}", err=True)
    return 1 if summary.damage else 0


LOG_HEADERS = ("SEGMENT", "OFFSET", "KIND", "INDEX", "TERM", "BYTES", "WHAT")


def _wanted(record: "LogRecord", first: int | None, last: int | None) -> bool:
    if first is None and last is None:
        return True
    return (
        record.kind == "entry" and record.index is not None and (first or 0) <= record.index <= (last or record.index)
    )


def _commands(entry: bytes) -> dict[str, int]:
    """Names of the commands in an entry, and how often each is in it."""
    import msgspec

    from tiflow.sched.commands import decode_entry

    if not entry:
        return {}
    try:
        return dict(Counter(type(command).__name__ for command in decode_entry(entry).commands))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"(of a newer tiflow)": 1}


def _log_fields(record: "LogRecord", commands: dict[str, int]) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__} | {"commands": commands}


def _log_row(record: "LogRecord", commands: dict[str, int]) -> tuple[object, ...]:
    what = record.vote or ", ".join(name if n == 1 else f"{n} {name}" for name, n in commands.items())
    if record.kind == "entry" and not commands:
        what = "a leader's first entry"
    index = "-" if record.index is None else record.index
    term = "-" if record.term is None else record.term
    segment = str(int(record.segment.removeprefix("journal-").removesuffix(".log")))
    return (segment, record.offset, record.kind, index, term, record.size_bytes, what)


def _log_summary(found: "Summary") -> list[tuple[str, object]]:
    snapshot = found.snapshot
    terms = ", ".join(f"{one.term} ({one.first}..{one.last})" for one in found.terms[-TERMS_SHOWN:])
    return [
        ("directory", found.directory),
        ("cluster", found.cluster_id),
        ("master", found.name),
        ("members", ", ".join(found.members)),
        (
            "snapshot",
            snapshot
            and f"up to {snapshot.index}, term {snapshot.term}, {size(snapshot.size_bytes)}, crc32 {snapshot.crc32}",
        ),
        ("segments", f"{found.segments}, {size(found.log_bytes)}, {found.records} records"),
        ("entries", found.last_index and f"{found.first_index}..{found.last_index}"),
        ("committed", f"at least up to {found.commit_index}" if found.commit_index else ""),
        ("terms", ("… " if len(found.terms) > TERMS_SHOWN else "") + terms),
        ("promised", f"term {found.term}, vote for {found.vote or 'nobody'}"),
        ("torn", found.torn and f"{found.torn.file} at offset {found.torn.offset}: {found.torn.what}"),
        ("damage", f"{len(found.damage)}" if found.damage else "none"),
    ]
