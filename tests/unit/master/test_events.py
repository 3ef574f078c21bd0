"""What is let into the log of what executors say."""

import pytest

from tiflow.master.events import RESULT_BYTES_MAX, task_event
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.model import AMOUNT_MAX, ERROR_CHARS_MAX


def test_what_an_executor_says_is_kept_within_bounds():
    most = (1 << 64) - 1
    said = pb.TaskEvent(
        placement=1, start=2, stop=3, kind="failed", error="x" * 9_000, cpu_us=most, memory_bytes=most
    )

    event = task_event(said)

    assert (event.placement, event.start, event.stop, event.kind) == (1, 2, 3, "failed")
    assert (len(event.error), event.cpu_us, event.memory_bytes) == (ERROR_CHARS_MAX, AMOUNT_MAX, AMOUNT_MAX)


@pytest.mark.parametrize(("tasks", "more", "kind"), [(1, 0, "succeeded"), (1, 1, "failed"), (2, 1, "succeeded")])
def test_results_that_are_too_large_for_the_log_are_a_failure(tasks, more, kind):
    said = pb.TaskEvent(
        placement=1, start=4, stop=4 + tasks, kind="succeeded", results=bytes(RESULT_BYTES_MAX + more)
    )

    event = task_event(said)

    assert (event.start, event.stop, event.kind) == (4, 4 + tasks, kind)
    assert len(event.results) == (RESULT_BYTES_MAX + more if kind == "succeeded" else 0)
