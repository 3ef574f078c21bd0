"""Executors: they register, are drained, and their leases run out."""

from msgspec.structs import replace

from tiflow.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from tiflow.sched.commands import DrainExecutor, ExpireExecutor, RegisterExecutor, UndrainExecutor
from tiflow.sched.draft import Draft
from tiflow.sched.model import (
    ADDRESS_CHARS_MAX,
    DRAINS_MAX,
    EXECUTORS_MAX,
    LABEL_CHARS_MAX,
    LABELS_MAX,
    SLOTS_MAX,
    TOKEN_CHARS_MAX,
    Drain,
    Executor,
)
from tiflow.sched.state import State
from tiflow.sched.tasks import lose
from tiflow.sched.validate import DURATION_MS_MAX, check_id, check_length, check_range, check_resources


def register_executor(draft: Draft, command: RegisterExecutor) -> Executor:
    """Returns: the executor, whose incarnation is the token that its placements carry."""
    state = draft.state
    validate_registration(command)
    old = state.executors.get(command.uid)
    if old is not None and old.alive and old.boot_id == command.boot_id:
        return old
    holder = state.names.get(command.name)
    if holder not in (None, command.uid):
        raise AlreadyExists(
            f"executor {command.name} is alive on {state.executors[holder].address},"
            " from another data directory; stop it, or use another name"
        )
    newly_alive = old is None or not old.alive
    if newly_alive and len(state.executors) - len(state.dead) >= EXECUTORS_MAX:
        raise ResourceExhausted(f"{EXECUTORS_MAX} executors are alive")
    if old is not None:
        _lose_all(draft, old)
    executor = Executor(
        command.uid,
        command.name,
        command.address,
        command.slots,
        incarnation=state.revision,
        labels=command.labels,
        version=command.version,
        registered_at_ms=state.wall_ms,
        mod_revision=state.revision,
        boot_id=command.boot_id,
        capacity=command.capacity,
    )
    draft.executors[executor.uid] = executor
    return executor


def expire_executor(draft: Draft, command: ExpireExecutor) -> int:
    """Returns: how many tasks were lost with it."""
    executor = draft.state.executors.get(command.uid)
    if executor is None or not executor.alive or executor.incarnation != command.incarnation:
        return 0
    draft.executors[executor.uid] = replace(executor, alive=False, ended_at_ms=draft.state.wall_ms)
    lost = draft.state.out(executor.uid)
    _lose_all(draft, executor)
    return lost


def drain_executor(draft: Draft, command: DrainExecutor) -> Drain:
    """Returns: what holds from now on."""
    state = draft.state
    _check_known(state, command.name)
    if command.deadline_ms is not None:
        check_range("deadline_ms", command.deadline_ms, 0, DURATION_MS_MAX)
    old = state.drains.get(command.name)
    if old is None and len(state.drains) >= DRAINS_MAX:
        raise ResourceExhausted(f"{DRAINS_MAX} executors are drained; undrain those that are gone for good")
    deadlines = [] if old is None or not old.deadline_at_ms else [old.deadline_at_ms]
    if command.deadline_ms is not None:
        deadlines.append(max(1, state.now_ms + command.deadline_ms))
    since_ms = state.wall_ms if old is None else old.since_ms
    draft.drains[command.name] = drain = Drain(command.name, since_ms, min(deadlines, default=0), state.revision)
    return drain


def undrain_executor(draft: Draft, command: UndrainExecutor) -> None:
    if command.name not in draft.state.drains:
        _check_known(draft.state, command.name)
    draft.drains[command.name] = None


def validate_registration(command: RegisterExecutor) -> None:
    """Raise InvalidArgument, which names field, value and bound, unless such an executor can be."""
    check_length("uid", command.uid, TOKEN_CHARS_MAX)
    check_length("boot_id", command.boot_id, TOKEN_CHARS_MAX)
    check_id("name", command.name)
    check_range("slots", command.slots, 1, SLOTS_MAX)
    check_range("labels: number of them", len(command.labels), 0, LABELS_MAX)
    for key, value in command.labels.items():
        check_id("labels", key)
        check_range(f"labels.{key}: characters", len(value), 0, LABEL_CHARS_MAX)
    check_range("version: characters", len(command.version), 0, TOKEN_CHARS_MAX)
    check_resources("capacity", command.capacity)
    if not command.address:
        raise InvalidArgument("address: empty; it is host:port")
    check_length("address", command.address, ADDRESS_CHARS_MAX)


def _check_known(state: State, name: str) -> None:
    if name not in state.names and all(state.executors[uid].name != name for uid in state.dead):
        raise NotFound(f"there is no executor {name[:200]}; `tiflow executor list` shows those that there are")


def _lose_all(draft: Draft, executor: Executor) -> None:
    for placement in draft.state.placements_on(executor.uid):
        lose(draft, placement, executor)
