"""The agent's end of a command."""

import contextlib
import os
from pathlib import Path

import pytest

from tiflow.exec import slots
from tiflow.exec.actions import Assignment, Run
from tiflow.exec.slots import CommandSlot
from tiflow.sched.model import Command


def slot(data_dir: Path) -> CommandSlot:
    assignment = Assignment(1, "j", 1, "g", 0, 1, 1, Command(("true",)))
    return CommandSlot("c1", Run(0, 1, assignment, 0, 1, ()), 0.0, str(data_dir), 1 << 20)


async def test_what_is_left_in_the_pipes_is_taken_when_the_process_is_gone(tmp_path: Path):
    command = slot(tmp_path)
    os.set_blocking(command.child_fds[0], False)
    written = 0
    while True:
        try:
            written += os.write(command.child_fds[0], b"x" * 4_096)
        except BlockingIOError:
            break

    command.close()

    assert (tmp_path / "logs/1/g/0.1.out").read_bytes() == b"x" * written
    command.handed_over()


async def test_a_process_that_got_away_and_writes_on_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = slot(tmp_path)
    read = os.read
    reads = 0

    def read_on(fd: int, size: int) -> bytes:
        """As if somebody filled the pipe as fast as it is read."""
        nonlocal reads
        reads += 1
        assert reads < 100, "it reads for ever"
        with contextlib.suppress(BrokenPipeError):  # it reads the other one
            os.write(command.child_fds[0], b"y" * 4_096)
        return read(fd, size)

    os.write(command.child_fds[0], b"its last")
    monkeypatch.setattr(slots.os, "read", read_on)

    command.close()

    assert (tmp_path / "logs/1/g/0.1.out").read_bytes().startswith(b"its last")
    command.handed_over()
