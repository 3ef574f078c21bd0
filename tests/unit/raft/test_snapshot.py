import pytest

from tiflow.raft.snapshot import SnapshotDamaged, SnapshotStore, read_snapshot


def inline(work, done):
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - as the node does
        result = error
    done(result)


def store(directory, **options):
    return SnapshotStore(directory, run=inline, fsync=False, **options)


def save(snapshots, index, *parts, term=1):
    saved = []
    snapshots.begin(index, term, iter(parts))
    for _ in range(len(parts) + 1):
        snapshots.step(saved.append, pytest.fail, lambda: None)
    assert saved == [index]


def chunks(snapshots, peer):
    transfer = snapshots.transfer(peer)
    while not transfer.finished:
        yield snapshots.next_chunk(transfer)


def test_restores_what_was_saved(tmp_path):
    save(store(tmp_path), 12, b"one", b"two", term=3)

    snapshot = store(tmp_path).load()

    assert (snapshot.index, snapshot.term, snapshot.body) == (12, 3, b"onetwo")


def test_there_may_be_none(tmp_path):
    assert store(tmp_path).load() is None


def test_a_half_written_one_does_not_count(tmp_path):
    snapshots = store(tmp_path)
    save(snapshots, 5, b"old")
    snapshots.begin(9, 1, iter([b"new", b"er"]))
    snapshots.step(pytest.fail, pytest.fail, lambda: None)

    assert store(tmp_path).load().body == b"old"
    snapshots.close()


@pytest.mark.parametrize("place", [0, 9, 25, -13, -1])
def test_refuses_a_damaged_file_and_names_it(tmp_path, place):
    save(store(tmp_path), 5, b"some state")
    path = tmp_path / "snapshot"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)

    with pytest.raises(SnapshotDamaged, match=str(path)):
        store(tmp_path).load()


@pytest.mark.parametrize("length", [0, 7, 20, 36])
def test_refuses_a_short_file(tmp_path, length):
    save(store(tmp_path), 5, b"some state")
    path = tmp_path / "snapshot"
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(SnapshotDamaged):
        read_snapshot(path)


def test_travels_in_chunks(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sender, receiver = store(tmp_path / "a", chunk_bytes=7), store(tmp_path / "b")
    save(sender, 40, b"state " * 20)
    arrived = []

    for offset, data, last in chunks(sender, "b"):
        assert receiver.receive(offset, data, last=last, verified=arrived.append) is not None
    receiver.install(arrived[0])

    assert store(tmp_path / "b").load().body == b"state " * 20
    sender.cancel("b")


def test_a_hole_makes_the_sender_begin_anew(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sender, receiver = store(tmp_path / "a", chunk_bytes=7), store(tmp_path / "b")
    save(sender, 40, b"state " * 20)
    first, _, third, *_ = chunks(sender, "b")

    assert receiver.receive(first[0], first[1], last=False, verified=pytest.fail) == 7
    assert receiver.receive(third[0], third[1], last=False, verified=pytest.fail) is None
    sender.close()
    receiver.close()


def test_a_damaged_transfer_is_not_installed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sender, receiver = store(tmp_path / "a"), store(tmp_path / "b")
    save(sender, 40, b"state " * 20)
    arrived = []
    ((offset, data, last),) = chunks(sender, "b")

    receiver.receive(offset, data[:-20] + b"x" + data[-19:], last=last, verified=arrived.append)

    assert isinstance(arrived[0], SnapshotDamaged)
    assert store(tmp_path / "b").load() is None
    sender.close()


def test_an_open_transfer_outlives_a_newer_snapshot(tmp_path):
    snapshots = store(tmp_path, chunk_bytes=10)
    save(snapshots, 5, b"old " * 10)
    transfer = snapshots.transfer("b")
    first = snapshots.next_chunk(transfer)
    save(snapshots, 9, b"new")

    rest = b"".join(data for _, data, _ in chunks(snapshots, "b"))

    assert b"old " * 10 in first[1] + rest
    snapshots.cancel("b")
