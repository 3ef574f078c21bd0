"""The state as bytes: frames of rows, so that neither writing nor reading it is one long step.

A frame is the length of what follows (4 bytes, big endian) and a msgpack array [table, rows]. The first is
["state", [[format, revision, now_ms, wall_ms, next_placement]]]. Equal states give equal bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from msgspec import Struct, convert, msgpack
from msgspec.structs import astuple

from tiflow.sched.commands import WHO_FORMAT
from tiflow.sched.model import (
    Deleted,
    Drain,
    Ended,
    Executor,
    Group,
    Job,
    JobEvents,
    Placement,
    Project,
    Pruned,
    ResultRow,
    Retry,
    Schedule,
)
from tiflow.sched.state import State

FRAME_ROWS_MAX = 256
FRAME_BYTES_MAX = 1 << 20  #: of specs and results in a frame; a single larger row has one of its own

_Row: TypeAlias = Any  #: a record, or a tuple of its key and fields


def encode_state(state: State) -> Iterator[bytes]:
    """Freeze the state now, and encode it frame by frame as the result is read.

    The copies are shallow: records are frozen. The state may change between two frames.
    """
    metadata = (state.persisted, state.pruned_total, state.restored_from, state.restored_at_ms)
    head = (state.format, state.revision, state.now_ms, state.wall_ms, state.next_placement)
    tables = [
        _Frozen("metadata", {0: metadata} if any(metadata) else {}, _value),
        _Frozen("jobs", state.jobs.copy(), _pack_job, _job_size),
        _Frozen("executors", state.executors.copy(), _value),
        _Frozen("groups", state.groups.copy(), _value, _group_size),
        _Frozen("placements", state.placements.copy(), _pack_placement),
        _Frozen("ended", state.ended.copy(), _pack_ended),
        *(_Frozen("retries", rows.copy(), _with_key(key)) for key, rows in state.retries.items()),
        _Frozen("results", state.results.copy(), _pack_result, _result_size),
        _Frozen("deleted", state.deleted.copy(), _value),
        _Frozen("drains", state.drains.copy(), _value),
        _Frozen("projects", state.projects.copy(), _value),
        _Frozen("schedules", state.schedules.copy(), _value, _schedule_size),
        _Frozen("events", state.events.copy(), _value if state.format >= WHO_FORMAT else _pack_events),
        _Frozen("pruned", state.pruned.copy(), _value),
    ]
    return _frames(head, tables)


def decode_state(data: bytes) -> State:
    """The state that `encode_state` encoded.

    Raises:
        ValueError: these are not such bytes, or a newer tiflow wrote them.
    """
    state = State()
    view = memoryview(data)
    while view:
        length = int.from_bytes(view[:4], "big")
        if len(view) < 4 + length or length == 0:
            raise ValueError("the snapshot ends in the middle of a frame")
        table, rows = msgpack.decode(view[4 : 4 + length])
        if table not in _LOADERS:
            raise ValueError(f"the snapshot has a table {table!r}, which this tiflow does not know")
        _LOADERS[table](state, rows)
        view = view[4 + length :]
    state.rebuild_indexes()
    return state


class _Frozen(Struct):
    """A table as it was, and how its rows are written."""

    name: str
    rows: dict[Any, Any]
    pack: Callable[[Any, Any], _Row]
    size: Callable[[Any], int] | None = None


def _frames(head: tuple[int, ...], tables: list[_Frozen]) -> Iterator[bytes]:
    yield _frame("state", [head])
    for table in tables:
        rows: list[_Row] = []
        size = 0
        for key, value in table.rows.items():
            if table.size is not None:
                size += table.size(value)
            if len(rows) >= FRAME_ROWS_MAX or (rows and size > FRAME_BYTES_MAX):
                yield _frame(table.name, rows)
                rows, size = [], 0
            rows.append(table.pack(key, value))
        if rows:
            yield _frame(table.name, rows)


def _frame(table: str, rows: Iterable[_Row]) -> bytes:
    body = _encode((table, rows))
    return len(body).to_bytes(4, "big") + body


_encode = msgpack.Encoder().encode


# From rows to bytes. A bit set has more bits than a msgpack integer can, so it is written as bytes.


def _value(_key: Any, value: Any) -> _Row:
    return value


def _pack_job(_key: str, value: Job) -> _Row:
    """Without the last fields while they say nothing: masters of an older format read it, too."""
    if value.asked_attempt:
        return value
    return astuple(value)[:-2] if value.done else astuple(value)[:-3]


def _pack_events(_key: int, value: JobEvents) -> _Row:
    """Without who it was by, which nobody has said yet: masters of an older format read it, too."""
    return (value.uid, [astuple(event)[:-1] for event in value.events], value.omitted)


def _pack_placement(_key: int, value: Placement) -> _Row:
    row = list(astuple(value))
    for position in _BIT_SETS:
        row[position] = _bytes(row[position])
    return row


def _pack_ended(key: tuple[int, str, int], value: Ended) -> _Row:
    return (*key, _bytes(value.succeeded), _bytes(value.failed), _bytes(value.withdrawn))


def _pack_result(key: tuple[int, int], value: ResultRow) -> _Row:
    return (*key, value)


def _with_key(group: tuple[int, str]) -> Callable[[int, Retry], _Row]:
    return lambda _index, retry: (*group, retry)


def _bytes(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _job_size(job: Job) -> int:
    return sum(len(block) for group in job.spec.groups for block in group.items)


def _schedule_size(schedule: Schedule) -> int:
    return sum(len(block) for group in schedule.spec.groups for block in group.items)


def _group_size(group: Group) -> int:
    return sum(len(block) for block in group.spec.items) if group.spec else 0


def _result_size(row: ResultRow) -> int:
    return len(row.results) + len(row.error)


_BIT_SETS = tuple(Placement.__struct_fields__.index(name) for name in ("left", "started", "withdrawn"))


# From bytes to tables.


def _load_head(state: State, rows: list[Any]) -> None:
    state.format, state.revision, state.now_ms, state.wall_ms, state.next_placement = rows[0]


def _load_jobs(state: State, rows: list[Any]) -> None:
    state.jobs.update((job.id, job) for job in convert(rows, list[Job]))


def _load_executors(state: State, rows: list[Any]) -> None:
    state.executors.update((executor.uid, executor) for executor in convert(rows, list[Executor]))


def _load_groups(state: State, rows: list[Any]) -> None:
    state.groups.update(((group.uid, group.name), group) for group in convert(rows, list[Group]))


def _load_placements(state: State, rows: list[Any]) -> None:
    for row in rows:
        for position in _BIT_SETS:
            if position < len(row):  # an older tiflow wrote fewer
                row[position] = _int(row[position])
        state.placements[row[0]] = Placement(*row)


def _load_ended(state: State, rows: list[Any]) -> None:
    for uid, name, chunk, *bit_sets in rows:
        state.ended[uid, name, chunk] = Ended(*map(_int, bit_sets))


def _load_retries(state: State, rows: list[Any]) -> None:
    for uid, name, retry in convert(rows, list[tuple[int, str, Retry]]):
        state.retries.setdefault((uid, name), {})[retry.index] = retry


def _load_results(state: State, rows: list[Any]) -> None:
    for uid, number, row in convert(rows, list[tuple[int, int, ResultRow]]):
        state.results[uid, number] = row


def _load_deleted(state: State, rows: list[Any]) -> None:
    state.deleted.update((record.uid, record) for record in convert(rows, list[Deleted]))


def _load_drains(state: State, rows: list[Any]) -> None:
    state.drains.update((record.name, record) for record in convert(rows, list[Drain]))


def _load_projects(state: State, rows: list[Any]) -> None:
    state.projects.update((project.name, project) for project in convert(rows, list[Project]))


def _load_schedules(state: State, rows: list[Any]) -> None:
    state.schedules.update((schedule.name, schedule) for schedule in convert(rows, list[Schedule]))


def _load_events(state: State, rows: list[Any]) -> None:
    state.events.update((record.uid, record) for record in convert(rows, list[JobEvents]))


def _load_pruned(state: State, rows: list[Any]) -> None:
    state.pruned.update((record.token, record) for record in convert(rows, list[Pruned]))


def _load_metadata(state: State, rows: list[Any]) -> None:
    state.persisted, state.pruned_total, state.restored_from, state.restored_at_ms = rows[0]


def _int(data: bytes) -> int:
    return int.from_bytes(data, "little")


_LOADERS: dict[str, Callable[[State, list[Any]], None]] = {
    "state": _load_head,
    "jobs": _load_jobs,
    "executors": _load_executors,
    "groups": _load_groups,
    "placements": _load_placements,
    "ended": _load_ended,
    "retries": _load_retries,
    "results": _load_results,
    "deleted": _load_deleted,
    "drains": _load_drains,
    "projects": _load_projects,
    "schedules": _load_schedules,
    "events": _load_events,
    "pruned": _load_pruned,
    "metadata": _load_metadata,
}
