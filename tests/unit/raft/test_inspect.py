import subprocess
import sys

from tiflow.raft.inspect import inspect
from tiflow.raft.journal import BASE, INDEX, MAGIC, STATE, TRUNCATE, Record, _encode, entry_record

MIB = 1 << 20


def write(directory, records, number=1):
    data = b"".join(_encode(record, 0) for record in records)
    (directory / f"journal-{number:016}.log").write_bytes(MAGIC + data)


def entry(index, term=1):
    return entry_record((b"\x00%d" % index, index, term))


def look(directory):
    with inspect(directory) as found:
        return list(found.records()), found.summary


def test_what_counts_of_a_log_that_was_cut_and_begun_anew(tmp_path):
    write(
        tmp_path,
        [
            *(entry(index) for index in range(1, 6)),
            Record(TRUNCATE, 0, INDEX.pack(4)),
            Record(STATE, 3, b"m2"),
            *(entry(index, term=3) for index in range(4, 8)),
            entry(6, term=4),
        ],
    )
    records, summary = look(tmp_path)

    assert [(one.term, one.first, one.last) for one in summary.terms] == [(1, 1, 3), (3, 4, 5), (4, 6, 6)]
    assert (summary.first_index, summary.last_index, summary.term, summary.vote) == (1, 6, 3, "m2")
    assert len(records) == 12
    assert summary.damage == []

    write(tmp_path, [Record(BASE, 7, INDEX.pack(90)), entry(91, term=7)], number=2)
    _, summary = look(tmp_path)
    assert (summary.first_index, summary.last_index) == (90, 91)
    assert [one.what for one in summary.damage] == ["the log begins at 90, the snapshot ends at 1"]


def test_a_gap_a_missing_segment_and_a_record_without_an_index_are_damage(tmp_path):
    write(tmp_path, [entry(1), entry(3), Record(TRUNCATE, 0, b"")])
    write(tmp_path, [entry(4)], number=3)

    _, summary = look(tmp_path)

    assert [one.what for one in summary.damage] == [
        "entry 3 follows entry 1",
        "a record without its index",
        "the segment before it, number 2, is gone",
    ]


def test_a_huge_log_does_not_fill_the_memory(tmp_path):
    body = b"\x00" + b"x" * (64 << 10)
    with (tmp_path / "journal-0000000000000001.log").open("wb") as file:
        file.write(MAGIC)
        for index in range(1, 3_001):  # 190 MiB
            file.write(_encode(entry_record((body, index, 1)), 0))
    script = (
        "import resource, sys, pathlib; from tiflow.raft.inspect import inspect\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with inspect(pathlib.Path(sys.argv[1])) as found: count = sum(1 for _ in found.records())\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    count, grown_kib = map(int, done.stdout.split())

    assert count == 3_000
    assert grown_kib * 1024 < 64 * MIB
