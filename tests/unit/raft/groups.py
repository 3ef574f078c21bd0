"""The plain library and ours as two groups of one shape: in one thread, on one clock, with links that a test moves.

What a test does to the one it can do to the other. Messages wait in `wires` until they are delivered, held back or
dropped; a disk writes at once unless its member is in `slow`. `mend` and `spoil` reach for what a power cut or a bad
sector would do.
"""

import os
import pickle
import random
import shutil
from pathlib import Path

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from tiflow.raft import raft_pb2 as pb
from tiflow.raft.core import Core
from tiflow.raft.journal import Journal, JournalFile, Record
from tiflow.raft.library import LEADER, Limits, Peer, Timing
from tiflow.raft.snapshot import SnapshotStore
from tiflow.raft.transport import HeldTransport

NEVER = 10**9
STEP_S = 0.11  # a little more than a heartbeat


class Clock:
    """Moves a little at each reading: loops of the library wait for it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 2e-5
        return self.now


class Proposal:
    """What its proposer was told: 'committed', 'not committed', 'unknown', or nothing yet."""

    def __init__(self):
        self.told = []

    @property
    def committed(self):
        return self.told == ["committed"]


class History:
    """The state machine: everything that was applied, in order."""

    def __init__(self):
        self.entries = []
        self.attempts = 0
        self.slices = 0

    def apply(self, entry):
        self.attempts += 1
        if entry == b"poison":
            raise ValueError("can not apply this")
        self.entries.append(entry[:40].decode())
        return len(self.entries)

    def snapshot(self):
        for entry in tuple(self.entries):
            self.slices += 1
            yield (entry + "\n").encode()

    def restore(self, data):
        self.entries = data.decode().splitlines()


class Group:
    """`plain` says which of the two it is. Members are named by letters."""

    plain: bool

    def __init__(self, directory, clock, names="ABC", **options):
        self.directory = Path(directory)
        self.clock = clock
        self.names = list(names)
        self.options = options
        self.cores = {}
        self.wires = {}
        self.cuts = set()
        self.slow = set()
        for name in self.names:
            self.start(name)

    # --- links

    def linked(self, a, b):
        return a in self.cores and b in self.cores and frozenset((a, b)) not in self.cuts

    def cut(self, a, b):
        self.cuts.add(frozenset((a, b)))
        self.wires.pop((a, b), None)
        self.wires.pop((b, a), None)
        for one, other in ((a, b), (b, a)):
            if one in self.cores:
                self._tell_disconnected(one, other)

    def heal(self, a, b):
        self.cuts.discard(frozenset((a, b)))
        if self.linked(a, b):
            self._tell_connected(a, b)
            self._tell_connected(b, a)

    def isolate(self, name):
        for other in self.names:
            if other != name:
                self.cut(name, other)

    def rejoin(self, name):
        for other in self.names:
            if other != name:
                self.heal(name, other)

    def put(self, sender, receiver, message):
        if self.linked(sender, receiver):
            self.wires.setdefault((sender, receiver), []).append(message)

    def wire(self, sender, receiver):
        return self.wires.setdefault((sender, receiver), [])

    def take(self, sender, receiver, kind):
        """Take the newest message of a kind off the wire: it is late, and everything else overtakes it."""
        wire = self.wire(sender, receiver)
        place = max(place for place, message in enumerate(wire) if self.kind(message) == kind)
        return wire.pop(place)

    def deliver(self, sender, receiver):
        self.give(sender, receiver, self.wire(sender, receiver).pop(0))

    def deliver_all(self):
        while any(self.wires.values()):
            for sender, receiver in [pair for pair, wire in self.wires.items() if wire]:
                if self.wire(sender, receiver):
                    self.deliver(sender, receiver)

    # --- life

    def crash(self, name):
        core = self.cores.pop(name)
        for pair in [pair for pair in self.wires if name in pair]:
            del self.wires[pair]
        for other in self.cores:
            self._tell_disconnected(other, name)
        self._close(name, core)

    def start(self, name):
        (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.cores[name] = self._make(name)
        for other in self.names:
            if other != name and self.linked(name, other):
                self._tell_connected(name, other)
                self._tell_connected(other, name)

    def restart(self, *names):
        for name in names or self.names:
            self.crash(name)
        for name in names or self.names:
            self.start(name)

    def close(self):
        for name in list(self.cores):
            self._close(name, self.cores.pop(name))

    # --- time

    def settle(self, rounds=6):
        for _ in range(rounds):
            for name in list(self.cores):
                self.tick(name)
            self.deliver_all()
            self.clock.now += STEP_S

    def run(self, seconds, dt=0.02):
        end = self.clock.now + seconds
        while self.clock.now < end:
            for name in list(self.cores):
                self.tick(name)
            self.deliver_all()
            self.clock.now += dt

    def campaign(self, name):
        """Let one member ask for votes now, and no other soon."""
        for other in self.cores.values():
            other._SyncObj__raftElectionDeadline = self.clock.now + 50
        self.cores[name]._SyncObj__raftElectionDeadline = 0
        self.tick(name)

    def lead(self, name):
        self.campaign(name)
        self.deliver_all()
        self.tick(name)
        assert self.leaders() == {name: self.cores[name].raftCurrentTerm} or name in self.leaders()

    # --- what is seen

    def leaders(self):
        return {name: core.raftCurrentTerm for name, core in self.cores.items() if core._SyncObj__raftState == LEADER}

    def log(self, name):
        """(index, term) of each entry."""
        return [entry[1:] for entry in self.cores[name]._SyncObj__raftLog[:]]

    def match(self, leader, follower):
        return self.cores[leader]._SyncObj__raftMatchIndex[self.node(leader, follower)]

    def applied(self, name):
        return self.cores[name].raftLastApplied

    def histories(self):
        return {name: self.history(name) for name in self.cores}


# --- the library as it is


class PlainTransport(Transport):
    def __init__(self, core, node, others):
        super().__init__(core, node, others)
        self.group = core.conf.group
        self.name = node.id

    def send(self, node, message):
        self.group.put(self.name, node.id, pickle.loads(pickle.dumps(message)))
        return True

    def destroy(self):
        pass


class PlainMachine(SyncObj):
    def __init__(self, name, others, conf):
        super().__init__(Node(name), [Node(other) for other in others], conf, None, Node, None, PlainTransport)
        self.entries = []
        self.attempts = 0

    @replicated
    def apply(self, entry):
        self.attempts += 1
        if entry == b"poison":
            raise ValueError("can not apply this")
        self.entries.append(entry[:40].decode())
        return len(self.entries)


_TOLD = {
    FAIL_REASON.SUCCESS: "committed",
    FAIL_REASON.UNKNOWN_OUTCOME: "unknown",
    FAIL_REASON.LEADER_CHANGED: "unknown",
}


class PlainGroup(Group):
    """pysyncobj as published: journal and dump in files, no forks."""

    plain = True
    machine = PlainMachine

    def _make(self, name):
        options = {
            "autoTick": False,
            "useFork": False,
            "logCompactionMinEntries": NEVER,
            "logCompactionMinTime": NEVER,
            "logCompactionBatchSize": 64,
            "journalFile": str(self.directory / name / "journal"),
            "fullDumpFile": str(self.directory / name / "dump"),
        }
        if "append_bytes" in self.options:
            options["appendEntriesBatchSizeBytes"] = self.options["append_bytes"]
        conf = SyncObjConf(**options | self.options.get("conf", {}))
        conf.group = self
        return self.machine(name, [other for other in self.names if other != name], conf)

    def _close(self, name, core):
        journal = core._SyncObj__raftLog
        if isinstance(journal, FileJournal):
            journal._destroy()

    def node(self, name, other):
        return Node(other)

    def _transport(self, name):
        return self.cores[name]._SyncObj__transport

    def _tell_connected(self, name, other):
        self._transport(name)._onNodeConnected(Node(other))

    def _tell_disconnected(self, name, other):
        self._transport(name)._onNodeDisconnected(Node(other))

    def kind(self, message):
        return "snapshot_chunk" if message.get("serialized") else message["type"]

    def tick(self, name):
        self.cores[name]._onTick(0.0)

    def give(self, sender, receiver, message):
        if receiver in self.cores:
            self._transport(receiver)._onMessageReceived(Node(sender), pickle.loads(pickle.dumps(message)))

    def propose(self, name, text, answer=None):
        proposal = Proposal()

        def called(_, error):
            proposal.told.append(_TOLD.get(error, "not committed"))
            if answer is not None:
                answer()

        self.cores[name].apply(text.encode(), callback=called)
        return proposal

    def history(self, name):
        return list(self.cores[name].entries)

    def attempts(self, name):
        return self.cores[name].attempts

    def read(self, name):
        """What a client gets that asks this member: its state, if it takes itself for the leader."""
        return self.history(name) if self.cores[name]._isLeader() else None

    def snapshot(self, *names):
        for name in names or self.cores:
            self.cores[name].forceLogCompaction()
        self.settle(3)

    def snapshot_path(self, name):
        return self.directory / name / "dump"

    def journal_path(self, name):
        return self.directory / name / "journal"

    def vote_path(self, name):
        return self.directory / name / "journal.meta"

    def lose_tail(self, name, last):
        """Entries behind `last` are gone from the disk of a dead member; what is said of the commit is not."""
        journal = FileJournal(str(self.journal_path(name)))
        journal.deleteEntriesFrom(last + 1 - journal[0][1])
        journal._destroy()


# --- ours


class OurTransport(HeldTransport):
    def __init__(self, journal, name, group):
        super().__init__(journal)
        self.name = name
        self.group = group

    def emit(self, node, message):
        self.group.put(self.name, node.id, message.SerializeToString())

    def backlog_bytes(self, node):
        return 0


class OurCore(Core):
    """With what a node keeps beside its core."""

    file: JournalFile
    journal: Journal
    machine: History
    disk: list


_OUR_KINDS = {"append_entries": "append_entries", "append_reply": "next_node_idx", "vote_reply": "response_vote"}


class OurGroup(Group):
    """The core, journal and snapshots of a node, without its loop and its sockets."""

    plain = False
    machine = History

    def _make(self, name):
        directory = self.directory / name
        disk = []
        file = JournalFile(directory, fsync=self.options.get("fsync", False))
        journal = Journal(file.recovered, lambda ops, position: disk.append((ops, position)))
        others = {other: Peer(other) for other in self.names if other != name}
        try:
            core = OurCore(
                name,
                others.values(),
                journal=journal,
                snapshots=SnapshotStore(directory, run=self._run, fsync=False, chunk_bytes=64),
                machine=self.machine(),
                transport=OurTransport(journal, name, self),
                rng=random.Random(name),
                timing=Timing(),
                limits=Limits(
                    snapshot_entries=NEVER, kept_entries=0, append_bytes=self.options.get("append_bytes", 1 << 20)
                ),
                wake=lambda: None,
            )
        except BaseException:
            file.close()
            raise
        core.file, core.journal, core.disk, core.machine = file, journal, disk, core._machine
        return core

    def _run(self, work, done):
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - as the node does
            result = error
        done(result)

    def _close(self, name, core):
        core._snapshots.close()
        core.file.close()

    def node(self, name, other):
        return self.cores[name].peers[other]

    def _tell_connected(self, name, other):
        self.cores[name]._raft_transport._onNodeConnected(self.node(name, other))

    def _tell_disconnected(self, name, other):
        transport = self.cores[name]._raft_transport
        transport.forget_held(self.node(name, other))
        transport._onNodeDisconnected(self.node(name, other))

    def kind(self, message):
        kind = pb.Message.FromString(message).WhichOneof("body")
        return _OUR_KINDS.get(kind, kind)

    def write(self, name):
        """The disk of `name` does what it was asked for."""
        core = self.cores[name]
        core.journal.flush()
        while core.disk:
            ops, position = core.disk.pop(0)
            core.file.write(ops)
            core.journal.landed(position)
        core._raft_transport.release()

    def tick(self, name):
        core = self.cores[name]
        core._onTick()
        core.journal.flush()
        if name not in self.slow:
            self.write(name)

    def give(self, sender, receiver, message):
        if receiver in self.cores:
            core = self.cores[receiver]
            core._raft_transport.receive(core.peers[sender], pb.Message.FromString(message))
            core.journal.flush()
            if receiver not in self.slow:
                self.write(receiver)

    def propose(self, name, text, answer=None):
        proposal = Proposal()

        def called(_, lost):
            told = "committed" if lost is None else "unknown" if lost.outcome_unknown else "not committed"
            proposal.told.append(told)
            if answer is not None:
                answer()

        self.cores[name].propose(text.encode(), called)
        return proposal

    def history(self, name):
        return list(self.cores[name].machine.entries)

    def attempts(self, name):
        return self.cores[name].machine.attempts

    def read(self, name):
        core = self.cores[name]
        if not core.leading:
            return None
        number = core.send_round()
        self.settle(3)
        answered = sum(heard >= number for heard in core.rounds_answered.values())
        return self.history(name) if core.leading and core.has_majority(1 + answered) else None

    def snapshot(self, *names):
        for name in names or self.cores:
            self.cores[name].force_snapshot()
        self.settle(3 + max(len(self.history(name)) for name in self.cores))

    def snapshot_path(self, name):
        return self.directory / name / "snapshot"

    def journal_path(self, name):
        return max((self.directory / name).glob("journal-*.log"))

    vote_path = journal_path

    def lose_tail(self, name, last):
        file = JournalFile(self.directory / name, fsync=False)
        file.write([Record(2, 0, (last + 1).to_bytes(8, "little"))])
        file.close()


# --- what a disk keeps


class PowerCut:
    """Knows of each file what was synced, and of each directory which names were: patches fsync and fdatasync."""

    def __init__(self, monkeypatch):
        self.syncs = 0
        self._contents = {}
        self._names = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync)

    def _sync(self, fd):
        self.syncs += 1
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self._names[path] = {child.name: child.stat().st_ino for child in path.iterdir() if child.is_file()}
        else:
            self._contents[os.fstat(fd).st_ino] = path.read_bytes()

    def strike(self, directory):
        """Leave in `directory`'s children what was on disk."""
        for child in Path(directory).iterdir():
            shutil.rmtree(child)
            child.mkdir()
            for name, inode in self._names.get(child, {}).items():
                (child / name).write_bytes(self._contents.get(inode, b""))


def patch_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", clock)
    return clock
