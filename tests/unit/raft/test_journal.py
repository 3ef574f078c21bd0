import contextlib
import errno
import os
import shutil
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow.raft.journal import (
    AHEAD_BYTES,
    ENTRY,
    ENTRY_BYTES_MAX,
    INDEX,
    MAGIC,
    Journal,
    JournalDamaged,
    JournalFile,
    Record,
    _encode,
    entry_record,
    is_torn,
)
from tiflow.raft.writer import JournalWriter


class Log:
    """A journal and its file, written when `flush` is called."""

    def __init__(self, directory):
        self.file = JournalFile(directory, fsync=False)
        self.journal = Journal(self.file.recovered, self._submit)

    def _submit(self, ops, position):
        self.file.write(ops)
        self.journal.landed(position)

    def add(self, *indices, term=1):
        for index in indices:
            self.journal.add(b"\x00entry%d" % index, index, term)
        self.journal.flush()

    def close(self):
        self.file.close()


@pytest.fixture
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("raft")


def recovered(directory):
    log = Log(directory)
    log.close()
    return log.journal


def indices(journal):
    return [index for _, index, _ in journal[:]]


def newest(directory):
    return max(directory.glob("journal-*.log"))


def written(directory):
    """Bytes of records; the file may be longer."""
    return len(newest(directory).read_bytes().rstrip(b"\0"))


def lose_a_sector(directory, begin):
    """One of a write that began at `begin` did not reach the disk."""
    path = newest(directory)
    data = bytearray(path.read_bytes())
    sector = (begin // 512 + 2) * 512
    data[sector : sector + 512] = bytes(512)
    path.write_bytes(data)


def killed(log, directory):
    """A directory as it is after the process was killed: the file has its room still."""
    copy = shutil.copytree(directory, directory.with_name(directory.name + "-killed"))
    log.close()
    return copy


def test_keeps_entries_term_vote_and_commit_over_a_restart(directory):
    log = Log(directory)
    log.add(1, 2, 3)
    log.journal.setCurrentTerm(7, "m2")
    log.journal.setRaftCommitIndex(2)
    log.journal.onOneSecondTimer()
    log.journal.flush()
    log.close()

    journal = recovered(directory)

    assert journal[:] == [(b"\x00entry1", 1, 1), (b"\x00entry2", 2, 1), (b"\x00entry3", 3, 1)]
    assert (journal.term, journal.vote, journal.getRaftCommitIndex()) == (7, "m2", 2)


def test_nothing_is_durable_before_it_is_written(directory):
    handed = []
    file = JournalFile(directory, fsync=False)
    journal = Journal(file.recovered, lambda ops, position: handed.append((ops, position)))

    journal.add(b"\x00a", 1, 1)
    journal.flush()

    assert (journal.durable_index, journal.durable_position, len(handed)) == (0, 0, 1)
    file.close()


def test_a_truncated_entry_is_not_durable_although_its_batch_landed(directory):
    handed = []
    file = JournalFile(directory, fsync=False)
    journal = Journal(file.recovered, lambda ops, position: handed.append((ops, position)))
    for index in (1, 2, 3):
        journal.add(b"\x00a", index, 1)
    journal.flush()
    journal.deleteEntriesFrom(1)

    journal.landed(handed[0][1])

    assert journal.durable_index == 1
    file.close()


def test_a_torn_write_of_megabytes_is_judged_soon():
    """Each of its bytes could be where a later record begins."""
    payload = INDEX.pack(1) + Random(1).randbytes(ENTRY_BYTES_MAX)
    data = MAGIC + _encode(Record(ENTRY, 1, payload), 0)[:-1]
    began = time.process_time()

    assert is_torn(data, len(MAGIC))

    assert time.process_time() - began < 2  # looked at one by one, they take more than five seconds


def test_a_commit_hint_never_exceeds_the_log(directory):
    log = Log(directory)
    log.add(1, 2)
    log.journal.setRaftCommitIndex(9)
    log.journal.onOneSecondTimer()
    log.journal.flush()
    log.close()

    assert recovered(directory).getRaftCommitIndex() == 2


def test_truncation_and_what_follows_survive_a_restart(directory):
    log = Log(directory)
    log.add(1, 2, 3, 4)
    log.journal.deleteEntriesFrom(2)
    log.add(3, term=2)
    log.close()

    assert [(index, term) for _, index, term in recovered(directory)[:]] == [(1, 1), (2, 1), (3, 2)]


def test_begins_a_segment_for_a_snapshot_and_drops_the_old_ones(directory):
    log = Log(directory)
    log.add(1, 2, 3, 4, 5)
    log.journal.setCurrentTerm(3, "m1")
    log.journal.rotate(keep_from=4)
    log.add(6)
    log.journal.compact(keep_from=4)
    log.add(7)
    log.close()

    journal = recovered(directory)

    assert indices(journal) == [4, 5, 6, 7]
    assert (journal.term, journal.vote) == (3, "m1")
    assert len(list(directory.glob("journal-*.log"))) == 1


def test_a_crash_between_the_snapshot_and_the_drop_loses_nothing(directory):
    log = Log(directory)
    log.add(1, 2, 3, 4, 5)
    log.journal.rotate(keep_from=4)
    log.journal.deleteEntriesFrom(4)
    log.add(5, 6, term=2)
    log.close()

    assert [(index, term) for _, index, term in recovered(directory)[:]] == [
        *((index, 1) for index in (1, 2, 3, 4)),
        (5, 2),
        (6, 2),
    ]


def test_syncs_at_start_what_a_killed_process_may_have_left_in_the_page_cache(directory, monkeypatch):
    Log(directory).close()
    synced = []
    for function in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, function, lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))

    JournalFile(directory).close()

    assert synced == [str(newest(directory)), str(directory)]


def test_refuses_a_missing_segment(directory):
    log = Log(directory)
    log.add(1, 2)
    log.journal.rotate(keep_from=1)
    log.add(3)
    log.journal.rotate(keep_from=1)
    log.add(4)
    log.close()
    sorted(directory.glob("journal-*.log"))[1].unlink()

    with pytest.raises(JournalDamaged, match="number 2, is gone"):
        JournalFile(directory, fsync=False)


@pytest.mark.parametrize("missing", [1, 10, 29, 40])
def test_cuts_a_torn_tail(directory, missing):
    log = Log(directory)
    log.add(1, 2)
    log.add(3)
    log.close()
    path = newest(directory)
    path.write_bytes(path.read_bytes()[:-missing])

    assert indices(recovered(directory)) == [1, 2]
    assert indices(recovered(directory)) == [1, 2]  # the tail was cut on disk, too


def test_cuts_a_batch_whose_middle_never_reached_the_disk(directory):
    log = Log(directory)
    log.add(1)
    before = written(directory)
    for index in range(2, 200):
        log.journal.add(b"\x00" + b"x" * 50, index, 1)
    log.journal.flush()
    log.close()
    lose_a_sector(directory, before)

    journal = recovered(directory)

    assert 1 in indices(journal)
    assert len(journal) < 20


@pytest.mark.parametrize("room", [False, True])
def test_what_follows_a_torn_write_does_not_come_back(directory, room):
    """Records that did reach the disk are of the same batch; nobody was told of them, and others take their place."""
    log = Log(directory)
    log.add(1)
    before = written(directory)
    for index in range(2, 40):
        log.journal.add(b"\x00" + b"x" * 2000, index, 1)
    log.journal.flush()
    log.close()
    lose_a_sector(directory, before)
    with newest(directory).open("ab") as file:
        file.write(bytes(8192 if room else 0))

    log = Log(directory)
    kept = log.journal.last_index
    log.journal.add(b"\x00" + b"y" * 2000, kept + 1, 2)  # of the same size
    log.journal.flush()
    copy = killed(log, directory)

    assert 1 <= kept < 5
    for one in (copy, directory):
        assert [(index, term) for _, index, term in recovered(one)[kept - 1 :]] == [(kept, 1), (kept + 1, 2)]


def test_refuses_zeros_that_were_once_on_disk(directory):
    log = Log(directory)
    log.add(*range(1, 100))
    log.add(100)
    log.close()
    path = newest(directory)
    data = bytearray(path.read_bytes())
    data[1024:1536] = bytes(512)
    path.write_bytes(data)

    with pytest.raises(JournalDamaged) as caught:
        JournalFile(directory, fsync=False)

    assert caught.value.path == path
    assert 0 < caught.value.offset < 1024 + 512


def test_refuses_damage_in_an_older_segment_even_at_its_end(directory):
    log = Log(directory)
    log.add(1, 2)
    first = newest(directory)
    log.journal.rotate(keep_from=1)
    log.add(3)
    log.close()
    first.write_bytes(first.read_bytes()[:-1])

    with pytest.raises(JournalDamaged, match=first.name):
        JournalFile(directory, fsync=False)


def test_refuses_a_file_that_is_no_journal(directory):
    (directory / "journal-0000000000000001.log").write_bytes(b"something else")

    with pytest.raises(JournalDamaged, match="not a journal"):
        JournalFile(directory, fsync=False)


def test_a_write_does_not_change_the_size_of_the_file(directory):
    """The file system would have to note it, with a second write of its own before a sync returns."""
    log = Log(directory)
    log.add(1)
    sizes = set()
    for index in range(2, 200):
        log.add(index)
        sizes.add(newest(directory).stat().st_size)

    assert sizes == {AHEAD_BYTES}
    log.journal.add(b"\x00" + b"x" * AHEAD_BYTES, 200, 1)
    log.journal.flush()
    assert newest(directory).stat().st_size == 2 * AHEAD_BYTES
    copy = killed(log, directory)
    assert indices(recovered(copy)) == indices(recovered(directory)) == list(range(1, 201))
    assert newest(directory).stat().st_size == newest(copy).stat().st_size == written(directory)


def test_a_file_system_without_room_ahead_is_written_to_all_the_same(directory, monkeypatch):
    def some_room(fd, offset, length):
        if offset < 100:
            os.ftruncate(fd, 1000)
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", some_room)
    log = Log(directory)
    log.add(1, 2)
    first = newest(directory)
    log.journal.rotate(keep_from=1)
    log.add(3)

    assert first.stat().st_size == len(first.read_bytes().rstrip(b"\0"))
    assert indices(recovered(killed(log, directory))) == [1, 2, 3]


def test_a_disk_that_has_failed_does_not_keep_a_file_from_being_closed(directory, monkeypatch):
    def fail(fd, length):
        raise OSError(errno.EIO, "I/O error")

    log = Log(directory)
    log.add(1, 2)
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", fail)
        log.close()

    assert newest(directory).stat().st_size == AHEAD_BYTES
    assert indices(recovered(directory)) == [1, 2]


def test_only_the_newest_segment_is_longer_than_its_records(directory):
    log = Log(directory)
    log.add(1, 2)
    first = newest(directory)
    log.journal.rotate(keep_from=1)
    log.add(3)

    assert first.stat().st_size == len(first.read_bytes().rstrip(b"\0"))
    copy = killed(log, directory)
    assert indices(recovered(copy)) == [1, 2, 3]
    with (copy / first.name).open("ab") as file:
        file.write(bytes(100))
    with pytest.raises(JournalDamaged, match=first.name):
        JournalFile(copy, fsync=False)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), room=st.booleans())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, data, room):
    directory = tmp_path_factory.mktemp("flip")
    log = Log(directory)
    log.add(1, 2, 3)
    log.add(4, 5)
    log.journal.setCurrentTerm(2, "m3")
    log.add(6, term=2)
    log.close()
    path = newest(directory)
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content + bytes(4096 if room else 0))

    with pytest.raises(JournalDamaged):
        JournalFile(directory, fsync=False)


@settings(max_examples=50, deadline=None)
@given(bit=st.integers(0, 4096 * 8 - 1))
def test_a_bit_that_is_flipped_behind_the_records_takes_none_of_them(tmp_path_factory, bit):
    directory = tmp_path_factory.mktemp("flip")
    log = Log(directory)
    log.add(1, 2, 3)
    log.close()
    path = newest(directory)
    room = bytearray(4096)
    room[bit // 8] ^= 1 << bit % 8
    path.write_bytes(path.read_bytes() + room)

    with contextlib.suppress(JournalDamaged):
        assert indices(recovered(directory)) == [1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_a_crash_leaves_of_a_write_is_a_prefix_of_it(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("torn")
    log = Log(directory)
    log.add(1, 2, 3)
    durable = written(directory)
    records = [entry_record((b"\x00" + b"y" * 300, index, 1)) for index in range(4, 12)]
    log.close()
    batch = bytearray(b"".join(_encode(record, durable) for record in records))
    length = data.draw(st.integers(0, len(batch)))
    path = newest(directory)
    path.write_bytes(path.read_bytes() + batch[:length])

    journal = recovered(directory)

    assert indices(journal) == list(range(1, len(journal) + 1))
    assert len(journal) >= 3


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_sectors_a_crash_leaves_of_a_write_are_a_prefix_of_it_or_cut(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("sectors")
    log = Log(directory)
    log.add(1, 2, 3)
    durable = written(directory)
    directory = killed(log, directory)
    sizes = data.draw(st.lists(st.integers(0, 1200), min_size=1, max_size=8))
    records = [entry_record((b"\x00" + b"y" * size, index, 1)) for index, size in enumerate(sizes, 4)]
    batch = b"".join(_encode(record, durable) for record in records)
    path = newest(directory)
    content = bytearray(path.read_bytes())
    content[durable : durable + len(batch)] = batch
    for sector in range(durable // 512 * 512, durable + len(batch), 512):
        if data.draw(st.booleans()):
            start = max(sector, durable)
            content[start : sector + 512] = bytes(sector + 512 - start)
    path.write_bytes(content)

    journal = recovered(directory)

    assert indices(journal) == list(range(1, len(journal) + 1))
    assert len(journal) >= 3


def test_a_failed_write_is_reported_and_never_tried_again(directory):
    file = JournalFile(directory, fsync=False)
    landed, failed = [], []
    file.close()  # every write fails from now on
    writer = JournalWriter(file, landed.append, failed.append)

    writer.submit([entry_record((b"\x00a", 1, 1))], 1)
    writer.submit([entry_record((b"\x00b", 2, 1))], 2)
    writer.stop()

    assert landed == []
    assert len(failed) == 1
    assert isinstance(failed[0], OSError)
    assert newest(directory).read_bytes() == MAGIC
