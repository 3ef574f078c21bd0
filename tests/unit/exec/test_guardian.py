"""The guardian when the machine has nothing left for another process."""

import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from tiflow.exec import frames, guardian, procs, salvage
from tiflow.exec.frames import Message

SETTINGS = {"data_dir": "/nonexistent", "work_dir": "/nonexistent", "log_bytes_max": 1, "result_bytes_max": 1}


@pytest.fixture
def order() -> Iterator[Callable[[Message], list[Message]]]:
    """Give a guardian with a lease an order that comes with two descriptors; returns what it answers."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guard = guardian.Guardian(theirs)
        guard._obey({"op": "lease", "until_ns": procs.boot_ns() + 60 * 10**9}, [])
        reader = frames.Reader(ours)

        def order(message: Message) -> list[Message]:
            guard._obey(message, [os.open(os.devnull, os.O_RDWR) for _ in range(2)])
            guard._flush()
            return [answer for answer, _ in reader.read() if answer["op"] != "alive"]

        yield order


def command() -> Message:
    limits = {"memory_bytes": 0, "open_files": 0}
    return {"op": "command", "token": "c1", "argv": ["true"], "env": {}, "cwd": "", **limits}


def no(error: int) -> Callable[..., int]:
    def fork(*args: object, **options: object) -> int:
        raise OSError(error, os.strerror(error))

    return fork


@pytest.mark.parametrize("call", ["fork", "dup"])
def test_a_worker_for_which_there_is_no_room_is_told_and_no_file_is_left_open(order, monkeypatch, call):
    files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(guardian.os, call, no(errno.EAGAIN))

    (answer,) = order({"op": "worker", "token": "w1", "log": os.devnull, "settings": SETTINGS})

    assert answer == {"op": "error", "token": "w1", "error": "Resource temporarily unavailable", "final": False}
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_command_for_which_there_is_no_room_now_may_be_tried_again(order, monkeypatch, error):
    monkeypatch.setattr(guardian.subprocess, "Popen", no(error))

    (answer,) = order(command())

    assert answer["error"] == f"program 'true' could not be started: {os.strerror(error)}"
    assert not answer["final"]


def test_a_program_that_is_not_there_will_not_be_there_later(order):
    (answer,) = order(command() | {"argv": ["/no/such/program"]})

    assert answer["error"] == "program '/no/such/program' was not found on this executor"
    assert answer["final"]


@pytest.mark.parametrize("told", ["nothing", "read", "signal", "kill_all"])
def test_the_end_of_a_command_is_kept_until_the_agent_has_it(told, monkeypatch):
    # those of this process are not the guardian's: a server for other tests may be among them
    monkeypatch.setattr(procs, "children", list)
    monkeypatch.setattr(procs, "kill_children", list)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guard = guardian.Guardian(theirs)
        guard._obey({"op": "lease", "until_ns": procs.boot_ns() + 60 * 10**9}, [])
        fds = [os.open(os.devnull, os.O_RDWR) for _ in range(2)]
        guard._obey(command() | {"argv": ["sh", "-c", "trap '' TERM; exit 3"], "task": [7, 5]}, fds)
        (pid,) = guard._pids.values()
        if told == "signal":
            guard._obey({"op": "signal", "token": "c1", "signal": 15}, [])
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        guard._reap()
        if told in ("read", "kill_all"):
            guard._obey({"op": told, "token": "c1"}, [])

        fd = guardian.salvage_file(guard.ended())

        (report,) = salvage.commands(fd) or [None]
        os.close(fd)
        if told == "nothing":
            assert (report.placement, report.start, report.stop, report.kind) == (7, 5, 6, "failed")
            assert (report.error, report.exit_code) == ("exit code 3", 3)
            assert report.cpu_us > 0
        else:
            assert report is None
