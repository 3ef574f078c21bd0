"""The last word of an executor whose agent has died: its guardian, once every child is dead, becomes this process.

It hands over what the journal, and the memory of workers, has of ends that the leader may not know, and then tells it
that the incarnation is over, so that its tasks run elsewhere at once and not when the lease has run out. That is a
proof and no guess, as nothing that could run a task of it is left. It may come late or twice: a leader ignores it for
an incarnation that is over. Who cannot deliver it gives up, and the lease decides; the next agent on the directory
still has the journal.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence

import grpc
from msgspec import Struct, json

from tiflow.exec import journal, outbox, salvage
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tiflow_pb2_grpc import SessionsStub
from tiflow.rpc.tls import Tls, open_channel

REPORT_S_MAX = 4.0  #: covers an election; less than a successor on the same data directory waits for its lock
ANSWER_S_MAX = 1.0  #: of one master; one that hangs does not keep us from the others
BACKOFF_S = 0.05


class Report(Struct, frozen=True):
    """What the agent leaves with its guardian."""

    masters: tuple[str, ...]  #: the one that led last comes first
    hello: bytes  #: pb.Hello, encoded
    journal: str = ""  #: its path
    tls: Tls | None = None


def prepared(masters: Sequence[str], hello: pb.Hello, journal: str, tls: Tls | None) -> str:
    """A report as text, which the guardian need not understand. `journal`: its path; empty: none."""
    return json.encode(Report(tuple(masters), hello.SerializeToString(), journal, tls)).decode()


def deliver(report: Report, until_s: float, found: Sequence[outbox.Report] = ()) -> str:
    """Ask one master after the other until one has taken it, or until `until_s` (time.monotonic). Returns what came
    of it: expired, refused, or nobody. `found`: what had ended, and may not be in the journal."""
    hello = pb.Hello.FromString(report.hello)
    author, batches = journal.read(report.journal)
    if author is None or author.incarnation != hello.incarnation:
        batches = []
    batches += journal.batches(found, len(batches) + 1)
    turn, hint = 0, ""
    while time.monotonic() < until_s:
        address = hint or report.masters[turn % len(report.masters)]
        turn += not hint
        words = last_words(hello, batches)
        answer = _ask(address, report.tls, words, min(ANSWER_S_MAX, until_s - time.monotonic()))
        kind = answer.WhichOneof("body") if answer is not None else None
        if answer is not None and kind == "expired":
            return "expired"
        if answer is not None and kind == "refused" and answer.refused.code != "RESOURCE_EXHAUSTED":
            return f"refused: {answer.refused.reason}"
        was_sent_on, hint = bool(hint), answer.redirect.leader if answer is not None and kind == "redirect" else ""
        if was_sent_on or not hint:
            time.sleep(BACKOFF_S)
    return "nobody"


def last_words(hello: pb.Hello, batches: Sequence[pb.Events]) -> list[pb.ExecutorMessage]:
    """What a leader is told in a stream of its own, which it answers with `expired`."""
    events = [pb.ExecutorMessage(events=batch) for batch in batches]
    return [pb.ExecutorMessage(hello=hello), *events, pb.ExecutorMessage(goodbye=pb.Goodbye())]


def _ask(
    address: str, tls: Tls | None, words: Sequence[pb.ExecutorMessage], timeout_s: float
) -> pb.LeaderMessage | None:
    """What a master answers in the end; None if it is not there."""
    with open_channel(address, tls, [("grpc.enable_http_proxy", 0)]) as to_master:
        try:
            call: Iterator[pb.LeaderMessage] = SessionsStub(to_master).Session(
                iter(words), timeout=max(timeout_s, 0.01)
            )
            return next((answer for answer in call if answer.WhichOneof("body") != "events_ack"), None)
        except grpc.RpcError:
            return None


def main() -> None:
    """`argv`: the report as text, and descriptors for `salvage`: of commands, and of each worker. What it inherits
    besides keeps the data directory locked meanwhile."""
    fds = [int(fd) for fd in sys.argv[2:]]
    found = [report for fd in fds[:1] for report in salvage.commands(fd)]
    found += [report for fd in fds[1:] for report in salvage.reports(fd)]
    outcome = deliver(json.decode(sys.argv[1], type=Report), time.monotonic() + REPORT_S_MAX, found)
    print(
        f"tiflow executor: its agent died; its tasks were killed; reported to the leader: {outcome}", file=sys.stderr
    )
    sys.stderr.flush()
    os._exit(0)  # threads of gRPC may be left


if __name__ == "__main__":
    main()
