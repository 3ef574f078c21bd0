"""One random schedule, reproducible by its seed."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import pysyncobj.syncobj
from msgspec import Struct

import tiflow.raft.disk
import tiflow.raft.journal
import tiflow.raft.snapshot
from tests.sim.raft.disk import SECTOR_BYTES, SimOs, SimPath
from tests.sim.raft.loop import Clock
from tests.sim.raft.weather import draw
from tests.sim.raft.world import Trace, World

STEPS = 1500
AHEAD_BYTES = 4 * SECTOR_BYTES
RETURNS = 0.2  # chance that a schedule ends with a member that was cut off


class Outcome(Struct, frozen=True):
    """How much happened: a schedule in which nothing does proves nothing."""

    applied: int
    acknowledged: int
    reads: int
    renewals: int
    terms: int


@contextmanager
def virtual() -> Iterator[Clock]:
    """The modules of tiflow.raft and of the library see the clock and the disks of a simulation."""
    clock, files = Clock(), SimOs()
    try:
        with (
            mock.patch.object(pysyncobj.syncobj, "monotonicTime", clock),
            mock.patch.object(tiflow.raft.journal, "os", files),
            mock.patch.object(tiflow.raft.snapshot, "os", files),
            mock.patch.object(tiflow.raft.disk, "os", files),
        ):
            yield clock
    finally:
        asyncio._set_running_loop(None)
        SimOs.forget()
        SimPath.disks.clear()


def run(seed: int, *, changes: Mapping[str, Any] | None = None, steps: int = STEPS, trace: Trace = None) -> Outcome:
    """Raises Violation, or whatever a node raised. `changes` are made to the weather that the seed draws."""
    rng = Random(seed)
    ahead = {"ahead_bytes": AHEAD_BYTES} if seed % 2 else {}
    weather = draw(rng).replace(**(ahead | dict(changes or {})))
    with virtual() as clock:
        world = World(weather, rng, clock, trace)
        for _ in range(steps):
            world.step()
        world.settle()
        if rng.random() < RETURNS:
            world.let_one_return()
    clients = world.clients
    return Outcome(
        len(world.ledger.applied), clients.acknowledged, clients.reads, clients.renewals, len(world.ledger.leaders)
    )
