"""What executors say of tasks, as it may enter the log: within bounds, whatever that is."""

from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import TaskEvent
from tiflow.sched.model import AMOUNT_MAX, ERROR_CHARS_MAX

RESULT_BYTES_MAX = 4_096  #: of one result, or of its size, digest and URL


def task_event(event: pb.TaskEvent) -> TaskEvent:
    room = RESULT_BYTES_MAX * max(1, event.stop - event.start)
    if len(event.results) > room:
        error = f"its executor answered with {len(event.results)} bytes where {room} are the most"
        return TaskEvent(event.placement, event.start, event.stop, "failed", error=error)
    return TaskEvent(
        placement=event.placement,
        start=event.start,
        stop=event.stop,
        kind=event.kind,
        results=event.results,
        error=event.error[:ERROR_CHARS_MAX],
        exit_code=event.exit_code,
        final=event.final,
        run_ms=event.run_us // (1_000 * max(1, event.stop - event.start)),
        cpu_us=min(event.cpu_us, AMOUNT_MAX),
        memory_bytes=min(event.memory_bytes, AMOUNT_MAX),
    )
