"""The log on disk has a bound (docs/design.md), whatever is written and whoever is down."""

import asyncio

import pytest

from tests.unit.raft import conftest
from tests.unit.raft.conftest import until
from tiflow.raft.library import Limits

TRIGGER_BYTES, ENTRY_BYTES, ENTRIES = 2 << 20, 8 << 10, 6_000
RECORD_BYTES = 64  #: more than the frame of a record

#: two segments, while a snapshot is written: each has what is kept before a snapshot, and what came since
BOUND_BYTES = 2 * (TRIGGER_BYTES + Limits().kept_bytes + 2 * 64 * ENTRY_BYTES) + ENTRIES * RECORD_BYTES


class Counter:
    """A state that stays small."""

    def __init__(self):
        self.entries = []

    def apply(self, entry):
        self.count = getattr(self, "count", 0) + 1
        return self.count

    def snapshot(self):
        yield b"%d" % self.count

    def restore(self, data):
        self.count = int(data)


def journal_bytes(directory):
    total = 0
    for path in directory.glob("journal-*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # dropped just now
            continue
    return total


@pytest.mark.parametrize("limit", [{"snapshot_bytes": TRIGGER_BYTES}, {"snapshot_entries": 256}])
async def test_the_journal_never_exceeds_its_bound_also_while_a_follower_is_down(make_cluster, monkeypatch, limit):
    monkeypatch.setattr(conftest, "History", Counter)
    cluster = make_cluster(**limit)
    await cluster.start()
    leader = await cluster.leader()
    down, _ = await cluster.followers()
    await leader.propose(b"x" * ENTRY_BYTES)
    await until(lambda: cluster.nodes[down].status().applied_index == leader.status().applied_index, "it follows")
    await cluster.stop(down)
    worst = dict.fromkeys(cluster.nodes, 0)

    for _ in range(ENTRIES // 64):
        await asyncio.gather(*(leader.propose(b"x" * ENTRY_BYTES) for _ in range(64)))
        for name in worst:
            worst[name] = max(worst[name], journal_bytes(cluster.directory / name))

    assert ENTRIES * ENTRY_BYTES > 2 * BOUND_BYTES, "else nothing would have to be dropped"
    assert {name: size for name, size in worst.items() if size > BOUND_BYTES} == {}
    assert leader.status().first_index > ENTRIES // 2
    await cluster.start(down)
    await until(lambda: cluster.machines[down].__dict__.get("count") == ENTRIES // 64 * 64 + 1, "it has all again")
    assert journal_bytes(cluster.directory / down) <= BOUND_BYTES
