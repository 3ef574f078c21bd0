"""Disks that are full, that fail, and that hang."""

import asyncio
import errno
import os
import threading

import pytest

from tests.unit.raft.conftest import IMPATIENT, until
from tests.unit.raft.test_journal import indices, recovered
from tiflow.errors import NoSpace, Unavailable
from tiflow.raft.disk import DiskGuard, DiskSpace
from tiflow.raft.journal import JournalFile, Record, Rotate, entry_record
from tiflow.raft.writer import JournalWriter

MIB = 1 << 20


class Volume:
    """Stands for the file system of some directories: it has so much room, and no more."""

    def __init__(self, monkeypatch):
        self.free_bytes = 1 << 40
        self._write, self._allocate, self._statvfs = os.pwrite, os.posix_fallocate, os.statvfs
        monkeypatch.setattr("os.pwrite", self._limited)
        monkeypatch.setattr("os.posix_fallocate", self._ahead)
        monkeypatch.setattr("os.statvfs", self._stat)

    def _limited(self, fd, data, place):
        there = max(0, os.fstat(fd).st_size - place)  # room that is the file's already
        if self.free_bytes + there <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, bytes(data)[: self.free_bytes + there], place)
        self.free_bytes -= max(0, written - there)
        return written

    def _ahead(self, fd, offset, length):
        if self.free_bytes < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.free_bytes -= length
        self._allocate(fd, offset, length)

    def _stat(self, path):
        stat = list(self._statvfs(path))
        stat[1], stat[4] = 1, self.free_bytes  # f_frsize, f_bavail
        return os.statvfs_result(stat)


@pytest.fixture
def volume(monkeypatch):
    return Volume(monkeypatch)


@pytest.fixture
def written(tmp_path, volume):
    """A writer, and what it said: positions that landed, errors."""
    file = JournalFile(tmp_path, fsync=False)
    landed, failed = [], []
    writer = JournalWriter(file, landed.append, failed.append, DiskGuard(tmp_path, 0))
    yield writer, landed, failed
    writer.stop()
    file.close()


async def test_a_write_without_room_waits_and_is_done_in_order_when_there_is(tmp_path, volume, written):
    writer, landed, failed = written
    volume.free_bytes = 20  # in the middle of the first record

    writer.submit([entry_record((b"\x00first", 1, 1))], 1)
    writer.submit([entry_record((b"\x00second", 2, 1))], 2)
    await until(lambda: writer._guard.space.state == "full", "it waits")
    assert landed == []
    assert indices(recovered(tmp_path)) == [], "what had no room is no part of the log"
    volume.free_bytes = MIB

    await until(lambda: landed[-1:] == [2], "all is written")
    await until(lambda: writer._guard.space.state == "ok", "it says so")
    assert failed == []
    assert indices(recovered(tmp_path)) == [1, 2]


async def test_who_waits_for_a_disk_waits_a_moment_at_most(tmp_path, written):
    writer, landed, _ = written
    released = threading.Event()
    write = writer._file.write
    writer._file.write = lambda ops: (released.wait(30), write(ops))

    writer.submit([entry_record((b"\x00first", 1, 1))], 1)
    assert not writer.wait(1)
    assert landed == []

    released.set()
    await until(lambda: landed == [1], "it is told when it is done")
    writer.submit([entry_record((b"\x00second", 2, 1))], 2)
    await until(lambda: landed[-1:] == [2], "and the next one as usual")
    assert writer.wait(2)


async def test_a_writer_that_waits_for_room_can_be_stopped(tmp_path, volume, written):
    writer, landed, failed = written
    volume.free_bytes = 0
    writer.submit([entry_record((b"\x00first", 1, 1))], 1)
    await until(lambda: writer._guard.space.state == "full", "it waits")

    async with asyncio.timeout(30):
        await asyncio.to_thread(writer.stop)

    assert (landed, failed) == ([], [])


def test_a_segment_for_which_there_is_no_room_is_not_begun(tmp_path, monkeypatch):
    file = JournalFile(tmp_path, fsync=False)
    entry = (b"\x00a", 1, 1)
    file.write([Record(3, 7, b"me"), entry_record(entry)])

    def full(path, content, *, fsync):
        path.with_suffix(".tmp").write_bytes(content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tiflow.raft.journal.write_atomically", full)
    file.write([Rotate((Record(3, 7, b"me"),), [entry]), entry_record((b"\x00b", 2, 1))])
    file.close()

    assert [path.name for path in tmp_path.iterdir()] == ["journal-0000000000000001.log"]
    assert indices(recovered(tmp_path)) == [1, 2]
    assert recovered(tmp_path).term == 7


def test_a_disk_at_the_edge_of_its_reserve_does_not_change_its_state_all_the_time(tmp_path, volume):
    guard = DiskGuard(tmp_path, 100 * MIB)
    states = []
    for free_mib in (101, 99, 101, 99, 126, 101):
        volume.free_bytes = free_mib * MIB
        guard.look()
        states.append(guard.space.state)

    assert states == ["ok", "low", "low", "low", "ok", "ok"]


# --- nodes. Their directories share the machine's file system: what each of them sees of it is set by hand.


def set_space(node, state):
    node._guard.look = lambda **_: None
    node._guard.space = DiskSpace(state=state, free_bytes=5 * MIB, reserve_bytes=64 * MIB)


async def test_a_leader_whose_disk_is_nearly_full_gives_the_lead_to_who_has_room(cluster, monkeypatch):
    monkeypatch.setattr("tiflow.raft.node.TRANSFER_TIMEOUT_S", 0.3)  # of the one who has none, and may be asked first
    old = await cluster.leader()
    short, roomy = await cluster.followers()
    set_space(cluster.nodes[short], "low")
    await until(lambda: cluster.nodes[short]._journal.space.short, "it knows")

    set_space(old, "low")

    await until(lambda: cluster.nodes[roomy].is_leader, "the other one leads")
    assert await cluster.nodes[roomy].propose(b"goes on") == 1


async def test_a_lone_master_takes_no_commands_while_its_disk_is_nearly_full(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    node = await cluster.leader()

    set_space(node, "low")
    await until(lambda: node.status().disk.state == node._journal.space.state == "low", "it knows")
    with pytest.raises(NoSpace, match=r"m1 has 5,242,880 bytes free, and 67,108,864 are needed"):
        await node.propose(b"too much")
    await node.barrier()  # reads go on

    set_space(node, "ok")
    await until(lambda: node._journal.space.state == "ok", "there is room")
    assert await node.propose(b"again") == 1


async def test_a_leader_whose_disk_hangs_resigns_and_what_it_took_meanwhile_is_bounded(make_cluster):
    cluster = make_cluster(**IMPATIENT)
    await cluster.start()
    old = await cluster.leader()
    name = cluster.name_of(old)
    released = threading.Event()
    write = old._file.write
    old._file.write = lambda ops: (released.wait(30), write(ops))
    waiting = asyncio.ensure_future(old.propose(b"perhaps"))

    await until(lambda: not old.is_leader, "it resigns")
    await asyncio.gather(waiting, return_exceptions=True)
    new = await cluster.leader()
    last = old.status().last_index
    for _ in range(50):
        await new.propose(b"x" * 1000)

    assert new is not old
    assert old.status().last_index - last < 10, "what it can not write fills its memory"
    released.set()
    await until(lambda: old.status().applied_index == new.status().applied_index, "it has caught up")
    assert cluster.machines[name].entries == cluster.machines[cluster.name_of(new)].entries


async def test_a_snapshot_without_room_is_given_up_and_nothing_is_lost(make_cluster, monkeypatch):
    cluster = make_cluster(["m1"])
    await cluster.start()
    node = await cluster.leader()
    for number in range(20):
        await node.propose(b"%d" % number)

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("tiflow.raft.snapshot._Save.write", full)
        with pytest.raises(Unavailable, match="no room for the snapshot"):
            await node.snapshot()
    assert not list((cluster.directory / "m1").glob("snapshot*"))
    assert await node.propose(b"goes on") == 21

    assert await node.snapshot() == node.status().applied_index
    await cluster.stop()
    await cluster.start()
    await cluster.leader()
    await cluster.agree(21)
