"""What stands in the journal is what the leader may not know."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow.exec import journal
from tiflow.exec.journal import Journal
from tiflow.exec.outbox import Outbox
from tiflow.rpc import tiflow_pb2 as pb

HELLO = pb.Hello(uid="u", boot_id="b", incarnation=7, cluster_id="c", gone=True)


def ends(batches):
    """(placement, index) of every end that was read."""
    return {(e.placement, i) for batch in batches for e in batch.events for i in range(e.start, e.stop)}


def unacknowledged(outbox):
    return {(r.placement, i) for r in outbox.unacknowledged() for i in range(r.start, r.stop)}


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["succeed", "succeed", "fail", "start", "keep", "take", "acknowledge"]), max_size=60
    ),
    compact_bytes=st.sampled_from([100, 1 << 20]),
)
def test_whatever_happens_what_is_not_acknowledged_can_be_read(tmp_path_factory, steps, compact_bytes):
    path = str(tmp_path_factory.mktemp("journal") / "journal")
    outbox, kept, at = Outbox(), Journal(path), {1: 0, 2: 0}
    kept.begin(HELLO)
    kept.compact_bytes = compact_bytes

    for number, step in enumerate(steps):
        placement = 1 + number % 2
        match step:
            case "succeed":
                outbox.succeeded(placement, at[placement], [b"x", (10, "sha")], 5)
                at[placement] += 2
            case "fail":
                outbox.ended(placement, at[placement], at[placement] + 1, "failed", error="no")
                at[placement] += 1
            case "start":
                outbox.started(placement, at[placement])
            case "keep":
                kept.keep(outbox)
            case "take" if outbox.sendable:
                kept.keep(outbox)
                outbox.take()
            case "acknowledge" if outbox.in_flight:
                outbox.acknowledge(min(outbox.in_flight))
                kept.trim(outbox)
    kept.keep(outbox)

    hello, batches = journal.read(path)
    assert hello == HELLO
    assert unacknowledged(outbox) <= ends(batches)
    assert ends(batches) <= {(placement, i) for placement, stop in at.items() for i in range(stop)}


def test_a_torn_or_damaged_tail_ends_the_file(tmp_path):
    path = tmp_path / "journal"
    outbox, kept = Outbox(), Journal(str(path))
    kept.begin(HELLO)
    sizes = [path.stat().st_size]
    for index in range(3):
        outbox.succeeded(1, index, [b"x"], 5)
        kept.keep(outbox)
        sizes.append(path.stat().st_size)
    data = path.read_bytes()

    for length in range(len(data) + 1):
        for tail in (b"", b"\0" * 9, b"\xff" * 9):
            path.write_bytes(data[:length] + tail)
            hello, batches = journal.read(str(path))
            whole = sum(size <= length for size in sizes)
            assert (hello == HELLO) == (whole > 0)
            assert ends(batches) == {(1, index) for index in range(whole - 1)}


def test_what_another_version_wrote_and_this_one_cannot_read_is_a_damaged_tail(tmp_path):
    path = tmp_path / "journal"
    outbox, kept = Outbox(), Journal(str(path))
    kept.begin(HELLO)
    outbox.succeeded(1, 0, [b"x"], 5)
    kept.keep(outbox)
    good = path.read_bytes()

    path.write_bytes(good + journal._record(b"\x93\xff\xff\xff"))
    assert ends(journal.read(str(path))[1]) == {(1, 0)}
    path.write_bytes(journal._record(b"\xff\xff\xff") + good)
    assert journal.read(str(path)) == (None, [])


def test_it_does_not_grow_with_what_is_acknowledged(tmp_path):
    path = tmp_path / "journal"
    outbox, kept = Outbox(), Journal(str(path))
    kept.begin(HELLO)

    for index in range(3_000):
        outbox.succeeded(index, 0, [b"x" * 256] * 4, 5)
        kept.keep(outbox)
        if outbox.sendable:
            outbox.acknowledge(outbox.take().seq)
            kept.trim(outbox)
        assert path.stat().st_size < 2 * kept.compact_bytes

    kept.remove()
    assert journal.read(str(path)) == (None, [])


def test_a_disk_that_is_full_stops_no_task_and_is_tried_again(tmp_path):
    path = tmp_path / "gone" / "journal"
    outbox, kept = Outbox(), Journal(str(path))
    kept.begin(HELLO)
    outbox.succeeded(1, 0, [b"x"], 5)
    kept.keep(outbox)
    path.parent.mkdir()

    kept.trim(outbox)

    hello, batches = journal.read(str(path))
    assert (hello, ends(batches)) == (HELLO, {(1, 0)})


def test_much_that_is_not_acknowledged_is_written_in_records_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", 100_000)
    path = tmp_path / "journal"
    outbox, kept = Outbox(), Journal(str(path))
    kept.begin(HELLO)
    for placement in range(100):
        outbox.succeeded(placement, 0, [b"x" * 256] * 60, 5)

    kept.keep(outbox)
    assert ends(journal.read(str(path))[1]) == unacknowledged(outbox)
    kept.compact_bytes = kept._compact_at = 0
    kept.trim(outbox)
    assert ends(journal.read(str(path))[1]) == unacknowledged(outbox)
