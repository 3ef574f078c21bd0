import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import structlog

from tiflow import ids, log
from tiflow.errors import FailedPrecondition


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield tmp_path / "log"
    logging.getLogger().handlers, logging.getLogger().level = handlers, level
    structlog.get_config()["logger_factory"]._file.close()
    structlog.reset_defaults()


def test_a_line_is_a_time_a_level_a_name_and_fields(file: Path):
    log.configure("info", str(file))

    structlog.get_logger().debug("not_shown")
    structlog.get_logger().info("leader_elected", term=3, name="m 1", single=True, rest=None)

    (line,) = file.read_text().splitlines()
    at, rest = line.split(" ", 1)
    assert at.endswith("Z")
    assert rest == 'info    leader_elected term=3 name="m 1" single=true rest='


def test_what_libraries_warn_of_is_logged_too(file: Path):
    log.configure("debug", str(file))

    logging.getLogger("pysyncobj").warning("odd: %s", 3)
    logging.getLogger("pysyncobj").info("chatter")

    (line,) = file.read_text().splitlines()
    assert line.endswith("warning odd: 3 logger=pysyncobj")


def test_an_exception_keeps_its_traceback(file: Path):
    log.configure("info", str(file))

    try:
        raise KeyError("x")
    except KeyError:
        structlog.get_logger().exception("failed", job="a")

    assert "error   failed job=a\nTraceback" in file.read_text()


def test_a_log_file_that_cannot_be_written():
    with pytest.raises(FailedPrecondition, match=r"^log\.file = /dev/null/x: cannot be written"):
        log.configure("info", "/dev/null/x")


def test_ids_sort_by_time_and_differ():
    rng = Random(1)
    drawn = [ids.new_id(rng, 1_795_000_000_000 + second * 1_000) for second in range(100)]

    assert drawn == sorted(drawn)
    assert len({ids.new_id(rng, 0) for _ in range(1_000)}) == 1_000
    assert ids.new_id(Random(1), 0) == ids.new_id(Random(1), 0)


def test_uids_are_uuids():
    assert len(ids.new_uid(Random(1))) == 36
