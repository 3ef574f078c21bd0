import os
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow.raft.journal import (
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
    before = newest(directory).stat().st_size
    for index in range(2, 200):
        log.journal.add(b"\x00" + b"x" * 50, index, 1)
    log.journal.flush()
    log.close()
    path = newest(directory)
    data = bytearray(path.read_bytes())
    sector = (before // 512 + 2) * 512
    data[sector : sector + 512] = bytes(512)
    path.write_bytes(data)

    journal = recovered(directory)

    assert 1 in indices(journal)
    assert len(journal) < 20


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


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, data):
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
    path.write_bytes(content)

    with pytest.raises(JournalDamaged):
        JournalFile(directory, fsync=False)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_a_crash_leaves_of_a_write_is_a_prefix_of_it(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("torn")
    log = Log(directory)
    log.add(1, 2, 3)
    durable = newest(directory).stat().st_size
    records = [entry_record((b"\x00" + b"y" * 300, index, 1)) for index in range(4, 12)]
    log.close()
    batch = bytearray(b"".join(_encode(record, durable) for record in records))
    length = data.draw(st.integers(0, len(batch)))
    path = newest(directory)
    path.write_bytes(path.read_bytes() + batch[:length])

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
