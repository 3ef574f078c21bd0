"""What the plain library loses or spoils on its way to disk and back, and ours does not.

As in test_library_holes_log: both are asked the same, and what the plain library does is wrong.
"""

import gzip
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pysyncobj.journal
import pysyncobj.serializer
import pytest

from tests.unit.raft.groups import PowerCut
from tiflow.raft.journal import DropOlder, JournalDamaged, JournalFile, Rotate, decode_record, entry_record
from tiflow.raft.library import Fatal
from tiflow.raft.snapshot import SnapshotDamaged

#: the library leaves its files to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

# --- what is promised before it is on disk


def test_what_was_acknowledged_survives_a_power_cut(make_group, tmp_path, monkeypatch):
    power = PowerCut(monkeypatch)
    group = make_group(fsync=True)
    group.lead("A")
    acknowledged = [group.propose("A", str(number)) for number in range(10)]
    group.settle()
    assert all(proposal.committed for proposal in acknowledged)

    for name in "ABC":
        group.crash(name)
    power.strike(tmp_path)
    for name in "ABC":
        group.start(name)
    group.lead("B")
    group.settle()

    kept = [] if group.plain else [str(number) for number in range(10)]
    assert group.history("B") == kept


def test_an_acknowledgement_waits_for_the_disk(make_group, monkeypatch):
    power = PowerCut(monkeypatch)
    group = make_group(fsync=True)
    group.lead("A")
    group.settle()
    group.cut("A", "C")
    group.slow = {"B"}
    syncs = power.syncs
    proposal = group.propose("A", "x")
    group.settle()

    assert proposal.committed is group.plain
    if group.plain:
        assert power.syncs == syncs  # nobody has it on disk
    else:
        group.slow = set()
        group.settle()
        assert proposal.committed


def test_a_leader_counts_its_own_copy_when_it_is_on_disk(make_group, monkeypatch):
    power = PowerCut(monkeypatch)
    group = make_group(fsync=True)
    group.lead("A")
    group.settle()
    group.cut("A", "C")
    group.slow = {"A"}
    syncs = power.syncs
    proposal = group.propose("A", "x")
    group.settle(4)

    assert proposal.committed is group.plain
    if group.plain:
        assert power.syncs == syncs


@pytest.mark.parametrize("how", ["empty", "garbage"])
def test_a_damaged_vote_is_not_forgotten_in_silence(group, how):
    group.cut("A", "B")
    group.campaign("A")
    group.deliver("A", "C")
    vote = group.take("C", "A", "response_vote")
    group.crash("C")
    group.vote_path("C").write_bytes(b"" if how == "empty" else b"garbage")

    if group.plain:
        group.start("C")
        group.campaign("B")
        group.deliver_all()
        group.give("C", "A", vote)
        assert list(group.leaders().values()) == [1, 1]  # two leaders in term 1
    else:
        with pytest.raises(JournalDamaged):
            group.start("C")


# --- a damaged journal


def _spoil(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("damage", ["a flipped bit", "the first page", "a size"])
def test_a_damaged_journal_is_refused(group, damage):
    group.lead("A")
    for number in range(10):
        group.propose("A", f"entry-{number}")
    group.run(3)
    group.crash("B")
    path = group.journal_path("B")
    place = path.read_bytes().index(b"entry-5")
    if damage == "a flipped bit":
        _spoil(path, place, b"f")
    elif damage == "the first page":
        _spoil(path, 0, bytes(44))
    else:
        size = path.read_bytes().rindex(b"entry-4", 0, place) + len("entry-4")
        _spoil(path, size, bytes(place - size))

    if not group.plain:
        with pytest.raises(JournalDamaged, match=path.name):
            group.start("B")
    elif damage == "a flipped bit":
        group.isolate("B")
        group.start("B")
        group.tick("B")
        assert "fntry-5" in group.history("B")  # committed was entry-5
    elif damage == "the first page":
        group.start("B")
        assert len(group.log("B")) == 1  # and it votes and acknowledges as one who never had any
    else:
        with pytest.raises(Exception, match="unpack requires a buffer"):
            group.start("B")


class _CrashedError(Exception):
    pass


def test_a_crash_while_the_journal_is_shortened_loses_no_entry(tmp_path, monkeypatch):
    entries = [(b"\0" + b"c" * 20, index, 1) for index in range(1, 201)]

    def crash(*_):
        raise _CrashedError

    plain = pysyncobj.journal.FileJournal(str(tmp_path / "plain"))
    for entry in entries:
        plain.add(*entry)
    real, count = pysyncobj.journal.FileJournal.add, itertools.count()
    monkeypatch.setattr(pysyncobj.journal.FileJournal, "add", lambda *a: crash() if next(count) == 10 else real(*a))
    with pytest.raises(_CrashedError):
        plain.deleteEntriesTo(100)
    again = pysyncobj.journal.FileJournal(str(tmp_path / "plain"))
    assert len(again) == 10  # 100 were to stay
    again._destroy()

    (tmp_path / "ours").mkdir()
    file = JournalFile(tmp_path / "ours", fsync=False)
    file.write([entry_record(entry) for entry in entries])
    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(_CrashedError):
        file.write([Rotate((), entries[100:]), DropOlder(keep=1)])
    file.close()
    reopened = JournalFile(tmp_path / "ours", fsync=False)
    assert reopened.recovered.entries == entries
    reopened.close()


def test_a_journal_has_no_largest_size(tmp_path):
    beyond = 1 << 32
    plain = pysyncobj.journal.FileJournal(str(tmp_path / "plain"))
    os.truncate(tmp_path / "plain", beyond + 4096)  # sparse
    plain._FileJournal__journalFile._destroy()
    plain._FileJournal__journalFile = pysyncobj.journal.ResizableFile(str(tmp_path / "plain"))
    plain._FileJournal__currentOffset = beyond - 40
    with pytest.raises(Exception, match="format requires"):
        plain.add(b"\0" + b"x" * 50, 1, 1)
    assert plain[-1][1] == 1  # in memory it is there, and is counted on
    plain._destroy()

    (tmp_path / "ours").mkdir()
    file = JournalFile(tmp_path / "ours", fsync=False, ahead_bytes=0)
    file._synced = beyond  # as after 4 GiB in one segment
    file.write([entry_record((b"\0x", 1, 1))])
    file.close()
    with next((tmp_path / "ours").iterdir()).open("rb") as segment:
        segment.seek(beyond)
        record, synced, _ = decode_record(segment.read(), 0)
    assert (record, synced) == (entry_record((b"\0x", 1, 1)), beyond)


_FILL = """
import sys, pysyncobj.journal
journal = pysyncobj.journal.FileJournal(sys.argv[1] + "/journal")
for index in range(1, 10000):
    journal.add(b"x" * 1000, index, 1)
"""
_FILL_OURS = """
import sys
from pathlib import Path
from tiflow.raft.journal import JournalFile, entry_record
file = JournalFile(Path(sys.argv[1]))
try:
    for index in range(1, 10000):
        file.write([entry_record((b"x" * 1000, index, 1))])
except OSError as error:
    print(error.errno, index)
"""


def _may_mount():
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.geteuid() == 0 and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not _may_mount(), reason="mounts a small file system: needs root and the right to mount")
def test_a_full_disk_kills_no_process(tmp_path):
    def fill(program):
        script = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    plain, mine = fill(_FILL), fill(_FILL_OURS)

    assert plain.returncode == -7, plain.stderr  # SIGBUS
    assert mine.returncode == 0, mine.stderr
    assert mine.stdout.startswith("28 ")  # ENOSPC, reported by the writer


# --- snapshots


def test_a_crash_after_a_snapshot_loses_nothing_that_came_later(group, monkeypatch):
    group.lead("A")
    for number in range(5):
        group.propose("A", str(number))
    group.settle()
    for name in "ABC":
        core = group.cores[name]
        if group.plain:
            core.forceLogCompaction()
            group.tick(name)  # the dump is there; its child has not been waited for
            core._SyncObj__serializer._Serializer__pid = 12345
            core._SyncObj__serializer._Serializer__useFork = True
        else:
            monkeypatch.setattr(core, "_saved", lambda index: None)  # so the log is not cut
            core.force_snapshot()
    monkeypatch.setattr(pysyncobj.serializer.os, "waitpid", lambda pid, flags: (0, 0))
    later = [group.propose("A", str(number)) for number in range(5, 10)]
    group.settle(20)
    assert all(proposal.committed for proposal in later)
    monkeypatch.undo()

    group.restart()
    group.settle()
    group.lead("A")
    group.settle()

    assert (group.history("A") == [str(number) for number in range(10)]) is not group.plain


def test_a_state_is_kept_without_settings(make_group):
    group = make_group(conf={"fullDumpFile": None})
    group.lead("A")
    for number in range(20):
        group.propose("A", str(number))
    group.settle()
    group.snapshot()

    group.restart()
    group.lead("A")
    group.settle(20)

    assert group.history("A") == ([] if group.plain else [str(number) for number in range(20)])


def test_a_damaged_snapshot_stops_the_member(group):
    group.lead("A")
    for number in range(20):
        group.propose("A", str(number))
    group.settle()
    group.snapshot()
    group.crash("A")
    path = group.snapshot_path("A")
    os.truncate(path, path.stat().st_size // 2)

    if group.plain:
        group.start("A")
        group.tick("A")
        group.lead("A")
        assert group.history("A") == []  # and this one leads
    else:
        with pytest.raises(SnapshotDamaged):
            group.start("A")


def test_a_chunk_commits_nothing_that_was_not_compared(group):
    group.lead("A")
    group.settle()
    group.isolate("A")
    ghosts = [group.propose("A", f"ghost{number}") for number in range(3)]
    group.tick("A")
    group.lead("B")
    for number in range(10):
        group.propose("B", f"real{number}")
    group.settle()
    group.snapshot("B", "C")
    group.rejoin("A")

    group.tick("B")
    group.clock.now += 0.2
    group.tick("B")
    wire = group.wire("B", "A")
    while not wire or group.kind(wire[0]) != "snapshot_chunk":
        group.deliver("B", "A") if wire else group.settle(1)
    group.deliver("B", "A")
    group.tick("A")

    assert {word for ghost in ghosts for word in ghost.told} == {"committed" if group.plain else "unknown"}
    assert ("ghost0" in group.history("A")) is group.plain


def test_an_older_snapshot_is_not_installed(group):
    group.lead("A")
    for number in range(5):
        group.propose("A", str(number))
    group.settle()
    group.snapshot("A")
    for number in range(5, 10):
        group.propose("A", str(number))
    group.settle()
    before, acknowledged = group.log("B"), group.match("A", "B")
    assert acknowledged == before[-1][0]

    # a late answer moves what the leader sends next back to what only its snapshot has
    group.cores["A"]._SyncObj__raftNextIndex[group.node("A", "B")] = 2
    group.clock.now += 0.2
    group.tick("A")
    wire = group.wire("A", "B")
    while wire and group.kind(wire[0]) == "snapshot_chunk":
        group.deliver("A", "B")

    assert group.log("B")[-1] == (before[-1] if not group.plain else group.log("A")[1])
    assert group.match("A", "B") == acknowledged


def test_a_snapshot_with_a_hole_is_sent_again(group):
    group.lead("A")
    group.settle()
    group.isolate("C")
    for number in range(200):
        group.propose("A", f"{number}-{number * 7919}")
    group.settle()
    group.snapshot("A", "B")
    group.rejoin("C")
    dropped = False

    for _ in range(200):
        for name in group.names:
            group.tick(name)
        wire = group.wire("A", "C")
        if not dropped and len(wire) > 3:
            del wire[2]  # the connection broke, and is back at once
            dropped = True
        group.deliver_all()
        group.clock.now += 0.11
        if group.plain and dropped:
            break

    assert dropped
    assert (group.history("C") == group.history("A")) is not group.plain


def test_a_snapshot_is_taken_without_a_fork(make_group, monkeypatch):
    forks = []
    monkeypatch.setattr(pysyncobj.serializer.os, "fork", lambda: forks.append(1) or 4_000_000)
    monkeypatch.setattr(pysyncobj.serializer.os, "waitpid", lambda pid, flags: (0, 0))
    group = make_group(conf={"useFork": True})  # the library's default
    group.lead("A")
    group.propose("A", "x")
    group.settle()

    group.snapshot("A")

    assert len(forks) == (1 if group.plain else 0)


def test_a_snapshot_is_taken_between_heartbeats(group):
    group.lead("A")
    for number in range(50):
        group.propose("A", str(number))
    group.settle()
    core = group.cores["A"]
    if group.plain:
        core.forceLogCompaction()
        group.tick("A")
        assert group.snapshot_path("A").exists()  # all of it in one tick, without a fork
        return

    core.force_snapshot()
    made = []
    for _ in range(10):
        before = core.machine.slices
        group.tick("A")
        made.append(core.machine.slices - before)

    assert max(made) <= 2
    assert not group.snapshot_path("A").exists()


def test_a_follower_is_not_flooded_while_a_snapshot_is_written(group, monkeypatch):
    group.lead("A")
    group.settle()
    group.isolate("C")
    for number in range(20):
        group.propose("A", str(number))
    group.settle()
    group.snapshot("A", "B")
    group.propose("A", "later")
    group.settle()
    core = group.cores["A"]
    if group.plain:
        core._SyncObj__serializer._Serializer__pid = 12345  # a child is writing the next one
        core._SyncObj__serializer._Serializer__useFork = True
        monkeypatch.setattr(pysyncobj.serializer.os, "waitpid", lambda pid, flags: (0, 0))
    else:
        core.force_snapshot()
    group.rejoin("C")
    core._SyncObj__raftNextIndex[group.node("A", "C")] = 2
    group.clock.now += 0.2

    group.tick("A")

    assert (len(group.wire("A", "C")) > 1000) is group.plain


def test_a_dump_that_somebody_wrote_runs_no_code(group, tmp_path):
    group.lead("A")
    group.settle()
    group.crash("C")
    marker = tmp_path / "ran"
    evil = pickle.dumps(_Evil(marker), 2)
    group.snapshot_path("C").write_bytes(gzip.compress(evil))

    if group.plain:
        group.start("C")
        group.tick("C")
    else:
        with pytest.raises((SnapshotDamaged, Fatal)):
            group.start("C")

    assert marker.exists() is group.plain


class _Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))
