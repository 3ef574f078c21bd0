"""What had ended, and the agent did not know when it died: of workers it stands in the memory that they shared, of
commands the guardian knows it."""

import json
import mmap
import os

from tiflow.exec import worker
from tiflow.exec.outbox import Report
from tiflow.exec.verdicts import in_words
from tiflow.sched.model import ERROR_CHARS_MAX


def commands(fd: int) -> list[Report]:
    """Of `guardian.salvage_file`."""
    found = []
    for exit in json.loads(os.pread(fd, os.fstat(fd).st_size, 0)):
        exit_code = os.waitstatus_to_exitcode(exit["status"])
        kind, error = ("failed", in_words(exit)[:ERROR_CHARS_MAX]) if exit_code else ("succeeded", "")
        report = Report(exit["placement"], exit["index"], exit["index"] + 1, kind, error=error, exit_code=exit_code)
        report.run_us, report.cpu_us, report.memory_bytes = exit["run_us"], exit["cpu_us"], exit["memory_bytes"]
        found.append(report)
    return found


def reports(memory_fd: int) -> list[Report]:
    """The ends of a worker's last batch, each by itself, since some of them may have been reported."""
    with mmap.mmap(memory_fd, worker.SHARED_BYTES, prot=mmap.PROT_READ) as memory:
        words = memoryview(memory)[: worker.ENDS_AT].cast("Q")
        placement, index, filled = words[worker.PLACEMENT], words[worker.START], words[worker.FILLED]
        words.release()
        found = []
        for at, end in enumerate(worker.ends(memory, 0, filled), start=index):
            if end.result is not None:
                report = Report(placement, at, at + 1, "succeeded", [end.result])
            elif end.stopped:
                continue  # why, only the agent knew
            else:
                report = Report(placement, at, at + 1, "failed", error=end.error, final=end.final)
            report.run_us, report.cpu_us, report.memory_bytes = end.run_us, end.cpu_us, end.memory_bytes
            found.append(report)
        return found
