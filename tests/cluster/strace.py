"""strace on a process of ours: it fails, delays or records system calls. Takes strace and the right to trace."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cluster.harness import eventually


def require() -> None:
    """Skip the test where processes cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (scripts/test-setup.sh does that as root on Debian)")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others (ptrace)")


@contextmanager
def inject(pid: int, call: str, what: str, paths: Sequence[Path] = ()) -> Iterator[None]:
    """While the block runs, `call` fails or hangs as `what` says (`error=EIO:when=1`), in all threads of `pid`.

    `paths`: only where one of these files is meant. It also ends, quietly, when the process does.
    """
    chosen = [word for path in paths for word in ("-P", str(path))]
    with tempfile.TemporaryFile() as told:
        tracer = subprocess.Popen(
            ["strace", "-f", "-q", *chosen, "-e", f"trace={call}", "-e", f"inject={call}:{what}", "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
        )
        try:
            eventually(lambda: _traced(pid, tracer.pid))
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(tracer.pid, signal.SIGINT)  # it lets go of the process, and ends
            tracer.wait()


def _traced(pid: int, by: int) -> bool:
    """Whether all threads are."""
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        if int(lines["TracerPid"]) != by:
            return False
    return True
