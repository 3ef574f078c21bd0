"""What workers had finished, and their agent had not read when it died: it stands in the memory that they shared."""

import mmap

from tiflow.exec import worker
from tiflow.exec.outbox import Report


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
