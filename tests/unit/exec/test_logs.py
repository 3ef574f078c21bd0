"""Logs are bounded, and can be read while they are written."""

import os
import struct
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow.exec import logs
from tiflow.exec.logs import BoundedLog, LogReader

STEPS = st.lists(st.one_of(st.integers(1, 3_000), st.just("read")), max_size=30)


def text(start, length):
    return bytes((start + i) % 251 for i in range(length))


def kept(directory):
    return sum(os.path.getsize(f"{directory}/{name}") for name in os.listdir(directory))


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, bytes_max=st.sampled_from([1_024, 2_000, 1 << 20]), tail=st.sampled_from([None, 100, 5_000]))
def test_a_reader_gets_what_is_kept_and_is_told_what_is_not(tmp_path_factory, steps, bytes_max, tail):
    directory = tmp_path_factory.mktemp("log")
    log, reader = BoundedLog(f"{directory}/0.1.out", bytes_max), LogReader(f"{directory}/0.1.out")
    written, at = 0, 0

    for step in [*steps, "read"]:
        if step != "read":
            log.write(text(written, step))
            written += step
            continue
        if tail is not None and at == 0:
            reader.begin_at_tail(tail)
            at = written - min(tail, kept(directory))
        while data := reader.read(700):
            if data.startswith(b"[tiflow: "):
                at += int(data.split()[1])
                assert written - at <= bytes_max
            else:
                assert data == text(at, len(data))
                at += len(data)
        assert at == written

    assert min(written, bytes_max // 2) <= kept(directory) <= bytes_max


def test_a_reader_that_is_overtaken_goes_on_with_what_is_there(tmp_path):
    path = f"{tmp_path}/0.1.out"
    log, reader = BoundedLog(path, 2_000), LogReader(path)
    log.write(text(0, 900))
    assert reader.read(500) == text(0, 500)

    log.write(text(900, 5_000))

    note, data = reader.read(500), b"".join(iter(lambda: reader.read(500), b""))
    assert note == b"[tiflow: %d bytes of older output are gone]\n" % (5_900 - 500 - len(data))
    assert text(0, 5_900).endswith(data)
    assert len(data) >= 1_000


def test_what_was_written_lately(tmp_path):
    path, now_ms = f"{tmp_path}/0.1.out", time.time_ns() // 1_000_000
    log = BoundedLog(path, 1 << 20)
    log.write(text(0, 300))
    with open(f"{path}.at", "wb") as file:  # it was written over the last ten minutes
        for minute in range(10):
            file.write(struct.pack("<QQ", now_ms - (10 - minute) * 60_000, 30 * minute))

    def since(ms):
        reader = LogReader(path)
        reader.begin_at_time(now_ms - ms)
        return reader.read(1_000)

    assert since(3_600_000) == text(0, 300)
    assert since(5 * 60_000) == text(150, 150)
    assert since(60_000) == text(270, 30)
    os.utime(path, (time.time() - 50, time.time() - 50))
    assert since(20_000) == b""
    os.unlink(f"{path}.at")  # a short one has none
    assert since(60_000) == text(0, 300)


def test_stamps_are_few(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    log = BoundedLog(f"{tmp_path}/0.1.out", 1 << 20)
    for _ in range(20_000):
        log.write(b"x")
        clock[0] += 0.5

    stamps = os.path.getsize(f"{tmp_path}/0.1.out.at") / 16
    assert 1_000 < stamps < 5_000


def test_old_logs_go_and_then_the_oldest_until_the_rest_fits(tmp_path):
    for uid, age_s in ((1, 500), (2, 400), (3, 300), (4, 200), (5, 1_000)):
        path = tmp_path / f"logs/{uid}/g/0.1.out"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100_000))
        for one in (path, path.parent, path.parent.parent):
            os.utime(one, (time.time() - age_s, time.time() - age_s))

    old = logs.prune(str(tmp_path), time.time() - 450, 1 << 30, running={5})
    large = logs.prune(str(tmp_path), time.time() - 450, 260_000, running={5})

    assert (old, large) == ([1], [2, 3])
    assert logs.job_uids(str(tmp_path / "logs")) == [4, 5]
