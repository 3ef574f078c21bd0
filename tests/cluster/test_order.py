"""Persist before send, as the kernel saw it: no vote and no acknowledgement leaves a master before the fdatasync of
what it promises has returned.

Each master runs under strace from its first instruction. What it wrote to its journal, and what it sent to its peers,
is read back from the trace: HTTP/2 frames, gRPC messages, and the messages of Raft in them.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import strace
from tests.cluster.harness import Cluster
from tiflow.raft import raft_pb2 as pb
from tiflow.raft.journal import MAGIC, Recovered, decode_record

NewCluster = Callable[..., Cluster]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA_FRAME = 0
FSYNC_TAKES_US = 3_000  #: at least; what is sent too early is sent within this time

CALL = re.compile(r"(\d+) +(\w+)\((.*)")
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
RESULT = re.compile(r"\) += (-?\d+)[^=]*$")


def traced(file: Path) -> list[str]:
    return [
        *("strace", "-D", "-f", "-q", "-o", str(file), "-xx", "-s", "100000000", "-e", "signal=none"),
        *("-e", "trace=openat,close,pwrite64,fdatasync,sendmsg"),
        *("-e", f"inject=fdatasync:delay_exit={FSYNC_TAKES_US}"),
    ]


@dataclass(frozen=True)
class Call:
    """One system call; `begin` and `end` are places in the trace."""

    begin: int
    end: int
    name: str
    arguments: str
    result: int


def calls(trace: Path) -> Iterator[Call]:
    """In the order of their ends."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.read_text().splitlines()):
        if match := CALL.match(line):
            begun[match[1]] = number, match[3]
        elif match := RESUMED.match(line):
            begun[match[1]] = begun[match[1]][0], begun[match[1]][1].removesuffix(" <unfinished ...>") + match[3]
        else:
            continue
        if result := RESULT.search(line):
            begin, arguments = begun.pop(match[1])
            yield Call(begin, number, match[2], arguments, int(result[1]))


def strings(arguments: str) -> bytes:
    return b"".join(
        bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)
    )


@dataclass
class Connection:
    """What was sent on one, and what of it was not read yet."""

    unread: bytes = b""
    streams: dict[int, bytes] = field(default_factory=dict)
    raft: set[int] = field(default_factory=set)  #: streams that began with a Hello

    def take(self, data: bytes, name: str) -> Iterator[pb.Message]:
        """The messages to a peer that are complete now."""
        self.unread = (self.unread + data).removeprefix(PREFACE)
        while len(self.unread) >= 9:
            length = int.from_bytes(self.unread[:3], "big")
            kind, stream = self.unread[3], int.from_bytes(self.unread[5:9], "big")
            if len(self.unread) < 9 + length:
                return
            payload, self.unread = self.unread[9 : 9 + length], self.unread[9 + length :]
            if kind == DATA_FRAME:
                self.streams[stream] = self.streams.get(stream, b"") + payload
                yield from self._messages(stream, name)

    def _messages(self, stream: int, name: str) -> Iterator[pb.Message]:
        while len(data := self.streams[stream]) >= 5:
            (length,) = struct.unpack(">I", data[1:5])
            if len(data) < 5 + length:
                return
            body, self.streams[stream] = data[5 : 5 + length], data[5 + length :]
            try:
                batch = pb.Batch.FromString(body)
            except Exception:  # noqa: BLE001 - an answer to a client
                continue
            if batch.hello.name == name and len(batch.hello.members) == 3:
                self.raft.add(stream)
            if stream in self.raft:
                yield from batch.messages


@dataclass
class Seen:
    """What the trace of one master shows."""

    name: str
    durable: Recovered = field(default_factory=lambda: Recovered(entries=[]))
    promises: int = 0
    votes: int = 0
    broken: list[str] = field(default_factory=list)

    def sync(self, journal: bytes) -> None:
        durable, offset = Recovered(entries=[]), 0
        while (found := decode_record(journal, offset)) is not None:
            durable.replay(found[0])
            offset = found[2]
        self.durable = durable

    def check(self, message: pb.Message) -> None:
        kind = message.WhichOneof("body")
        last = self.durable.entries[-1][1] if self.durable.entries else 0
        if kind in ("vote_request", "vote_reply", "append_reply"):
            self.promises += 1
            if message.term > self.durable.term:
                self.broken.append(f"{kind} of term {message.term}; on disk: term {self.durable.term}")
        if kind == "vote_request" and (self.durable.term, self.durable.vote) != (message.term, self.name):
            self.broken.append(f"campaigns in term {message.term}; its own vote is not on disk")
        if kind == "vote_reply":
            self.votes += 1
            if self.durable.term != message.term or not self.durable.vote:
                self.broken.append(f"voted in term {message.term}; that is not on disk")
        if kind == "append_reply" and message.append_reply.success and message.append_reply.next_index - 1 > last:
            self.broken.append(f"acknowledged {message.append_reply.next_index - 1}; on disk: {last}")
        if kind == "append_entries" and message.append_entries.commit_index > max(last, 1):
            self.broken.append(f"committed {message.append_entries.commit_index}; on its own disk: {last}")


def examine(trace: Path, name: str) -> Seen:
    """`name`: how the master calls itself."""
    seen = Seen(name)
    journal, journal_fd = b"", -1
    connections: dict[int, Connection] = {}
    events: list[tuple[int, bytes | pb.Message]] = []  #: what was on disk, or left, since when
    for call in calls(trace):
        fd = int(re.match(r"-?\d*", call.arguments)[0] or -1)  # type: ignore[index]
        if call.name == "openat" and re.search(rb"journal-\d+\.log$", strings(call.arguments)):
            if "O_WRONLY" in call.arguments:
                journal_fd = call.result
        elif call.name == "close":
            connections.pop(fd, None)
        elif call.name == "pwrite64" and fd == journal_fd and call.result > 0:
            place = int(call.arguments.rpartition(", ")[2].partition(")")[0]) - len(MAGIC)
            journal = journal[:place].ljust(place, b"\0") + strings(call.arguments)[: call.result]
        elif call.name == "fdatasync" and fd == journal_fd and call.result == 0:
            events.append((call.end, journal))
        elif call.name == "sendmsg" and call.result > 0:
            data = strings(call.arguments)[: call.result]
            messages = connections.setdefault(fd, Connection()).take(data, name)
            events += [(call.begin, message) for message in messages]
    for _, event in sorted(events, key=lambda one: one[0]):
        if isinstance(event, bytes):
            seen.sync(event)
        else:
            seen.check(event)
    return seen


def run(new_cluster: NewCluster, directory: Path, env: dict[str, str]) -> list[Seen]:
    """An election, jobs, the death of the leader, another election, more jobs."""
    strace.require()
    cluster = new_cluster(executors=0, env=env, before=lambda name: traced(directory / f"{name}.trace"))
    client = cluster.client()
    for _ in range(10):
        client.run_command(["true"])
    leader = cluster.wait_leader()
    cluster.kill(leader)
    cluster.wait_leader(other_than=leader)
    for _ in range(10):
        client.run_command(["true"])
    cluster.stop()
    return [examine(directory / f"{name}.trace", cluster.addresses[name]) for name in cluster.masters]


def test_no_promise_leaves_before_it_is_on_disk(new_cluster: NewCluster, tmp_path: Path):
    masters = run(new_cluster, tmp_path, {})

    assert [seen.broken for seen in masters] == [[], [], []]
    assert sum(seen.votes for seen in masters) >= 2
    assert sum(seen.promises for seen in masters) >= 20


def test_masters_that_promise_before_the_disk_has_it_are_found_out(new_cluster: NewCluster, tmp_path: Path):
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(
        "import tiflow.raft.transport\ntiflow.raft.transport._PROMISES = frozenset()\n"
    )
    repository = Path(__file__).parents[2]

    masters = run(new_cluster, tmp_path, {"PYTHONPATH": f"{planted}:{repository}"})

    broken = "\n".join(text for seen in masters for text in seen.broken)
    assert "acknowledged" in broken
    assert "voted" in broken
