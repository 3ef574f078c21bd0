"""The process of a job master or worker."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import msgpack

from tiflow.exec import link
from tiflow.exec.keeping import Keeper
from tiflow.exec.member import _Process
from tiflow.jobs.framework.port import STATUS_BYTES_MAX, About, Envelope, WorkerRow


async def test_what_is_asked_before_it_has_begun_waits_for_it():
    """Who is refused asks again later, and later."""
    heard: list[Envelope] = []

    async def on_envelope(envelope: Envelope) -> None:
        heard.append(envelope)

    process: Any = _Process()
    process._agent = None
    envelope = Envelope("", 1, "w", 1, ())
    asking = asyncio.create_task(process._answer(link.Deliver(envelope)))
    await asyncio.sleep(0)
    assert not asking.done()

    process._connect(SimpleNamespace(on_envelope=on_envelope))

    await asking
    assert heard == [envelope]


async def test_a_job_master_of_many_workers_begins_with_all_of_them():
    """Which may be more than a frame has."""
    rows = tuple(
        WorkerRow(f"w/{number}", "worker", "running", 1, status=b"x" * STATUS_BYTES_MAX) for number in range(1_500)
    )
    about = About("j", 1, "t", "", "", 2, b"")
    begin = link.Begin(about, "master", 0, "", (), Keeper("/d", 1), rows)

    process: Any = _Process()
    for note in link.in_frames(begin):
        assert not process._begun.done()
        assert len(msgpack.encode(note)) < link.FRAME_BYTES_MAX
        process._heed(note)

    assert await process._begun == begin


QUIET = """
import sys, logging
from tiflow.exec import member, member_log
member_log.prepare()
log = member_log.MemberLog(job="j", task="w", attempt=2)
log.debug("asked_again", reason="away")
assert not {"structlog", "importlib.metadata", "ctypes", "grpc", "google.protobuf"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("", []),
        ("log.info('a', n=1); log.bind(b=2).info('c')", ["info    a n=1 job=j task=w attempt=2", "info    c b=2"]),
        ("logging.getLogger('x').info('no'); [logging.getLogger('x').error('e') for _ in '12']", ["error   e"] * 2),
        ("import structlog; member_log.configure_if_used(); structlog.get_logger().info('own')", ["info    own"]),
        (
            "import structlog; structlog.configure(processors=[lambda _, __, e: e['event'] + '!']);"
            "member_log.configure_if_used(); structlog.get_logger().info('theirs')",
            ["theirs!"],
        ),
        (
            "logging.basicConfig(force=True, format='%(message)s'); log.info('a'); logging.error('once')",
            ["info    a", "once"],
        ),
    ],
)
def test_a_member_that_logs_nothing_loads_no_logger_and_one_that_does_logs_as_ever(what: str, lines: list[str]):
    out = subprocess.run([sys.executable, "-c", QUIET + what], capture_output=True, text=True, check=True, timeout=60)
    found = (out.stdout + out.stderr).splitlines()
    assert len(found) == len(lines), found
    for line, expected in zip(found, lines, strict=True):
        assert all(word in line.split() for word in expected.split()), line
