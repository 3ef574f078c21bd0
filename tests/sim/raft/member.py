"""One member: a disk that stays, and while it lives a real RaftNode on a loop, a network and a disk of ours."""

import functools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import tiflow.raft.driver
from tests.sim.raft.disk import Died, Disk, SimPath
from tests.sim.raft.ledger import Ledger, WatchedJournal
from tests.sim.raft.loop import Clock, Loop
from tests.sim.raft.network import Network, SimTransport
from tiflow.raft import api
from tiflow.raft.disk import DiskGuard
from tiflow.raft.journal import JournalFile, Op, Record
from tiflow.raft.library import LEADER, Limits, Peer
from tiflow.raft.node import RaftConfig, RaftNode
from tiflow.raft.snapshot import SnapshotStore

SLICE_BYTES = 50
ROOM_BYTES = 1 << 20  # more than any batch has


class Lists:
    """The state machine: lists by key, and everything that was applied, in order. An entry is "KEY NUMBER"."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.commands: list[str] = []
        self.lists: dict[str, tuple[int, ...]] = {}

    def apply(self, entry: bytes) -> int:
        command = entry.decode()
        self._ledger.has_applied(len(self.commands), command)
        self.commands.append(command)
        return self._put(command)

    def snapshot(self) -> Iterator[bytes]:
        text = json.dumps(self.commands).encode()
        return iter([text[start : start + SLICE_BYTES] for start in range(0, len(text), SLICE_BYTES)])

    def restore(self, data: bytes) -> None:
        self.commands = json.loads(data)
        self._ledger.restored(self.commands)
        self.lists.clear()
        for command in self.commands:
            self._put(command)

    def _put(self, command: str) -> int:
        key, number = command.split()
        self.lists[key] = (*self.lists.get(key, ()), int(number))
        return len(self.lists[key])


class SimWriter:
    """Stands for JournalWriter and its thread: the world decides when it writes."""

    def __init__(
        self,
        file: JournalFile,
        landed: Callable[[int], None],
        failed: Callable[[BaseException], None],
        guard: DiskGuard,
        *,
        rng: Random,
        is_slow: Callable[[], bool],
    ) -> None:
        file.no_space = self._no_space
        self._guard = guard
        self._file = file
        self._landed = landed
        self._failed = failed
        self._rng = rng
        self._ended = False
        self._is_slow = is_slow
        self.queue: deque[tuple[list[Op], int]] = deque()

    def submit(self, ops: list[Op], position: int) -> None:
        if not self._ended:
            self.queue.append((ops, position))

    @property
    def quick(self) -> bool:
        return not self._is_slow() and self._rng.random() < 0.5

    def wait(self, position: int) -> bool:
        self.work()
        return not self.queue and not self._ended

    def work(self) -> None:
        ops, position = self.queue.popleft()
        while self.queue and self._rng.random() < 0.5:  # as many at once as are waiting, or not
            more, position = self.queue.popleft()
            ops = ops + more
        self._guard.look()
        if self._guard.space.free_bytes < ROOM_BYTES and not all(isinstance(op, Record) for op in ops):
            self.queue.appendleft((ops, position))  # the thread would wait in the middle of it
            return
        try:
            self._file.write(ops)
        except _Waits:
            self.queue.appendleft((ops, position))
        except OSError as error:
            self._ended = True
            self.queue.clear()
            self._failed(error)
        else:
            self._landed(position)

    def _no_space(self, _: OSError) -> None:
        self._guard.look(full=True)
        raise _Waits


class _Waits(Exception):
    """Nothing of the batch is written; the thread sleeps, and tries again."""


class SimExecutor:
    """Stands for the ThreadPoolExecutor of one thread."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.queue: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        self.queue.append(work)

    def work(self) -> None:
        self.queue.popleft()()

    def shutdown(self) -> None: ...


class _NoLock:
    def __init__(self, _: object) -> None: ...

    def close(self) -> None: ...


class Member:
    """`node` is None while it is dead. `may_start_at` keeps one that is out of service from coming back."""

    def __init__(self, name: str, names: Sequence[str], ledger: Ledger, network: Network, rng: Random) -> None:
        self.name = name
        self.names = names
        self.ledger = ledger
        self.network = network
        self.rng = rng
        self.disk = SimPath.disks[name] = Disk(rng)
        self.node: RaftNode | None = None
        self.paused_until = 0.0
        self.slow_until = 0.0
        self.damaged = False  # a bit of its disk was flipped
        self.spoilt = False  # it was told that its disk fails or is full
        self.learning = True  # it has no vote: it is new, or lost its disk and has not caught up
        self.applied_seen = 0
        self.commit_seen = (0, 0)  # as a leader: its term, and what it took for committed
        self.loop: Loop
        self.machine: Lists
        self.writer: SimWriter
        self.executor: SimExecutor
        self.transport: SimTransport
        self._peers: list[tuple[str, Peer]] = []

    # --- life

    def start(self, clock: Clock, limits: Limits, chunk_bytes: int, ahead_bytes: int) -> None:
        """Raises FailedPrecondition and OSError, as RaftNode.start does."""
        self.loop = Loop(clock)
        self.machine = Lists(self.ledger)
        members = tuple(api.Member(name, f"{name}:1") for name in self.names)
        config = RaftConfig(name=self.name, members=members, data_dir=self.name)
        self.loop.enter()
        with self._seams(limits, chunk_bytes, ahead_bytes, lambda: self.slow_until > clock.now):
            node = RaftNode(config, self.machine, rng=self.rng)
            try:
                node.start().send(None)
            except StopIteration:
                pass
            else:
                raise AssertionError("RaftNode.start waits for something")
        self.transport = node._transport  # type: ignore[assignment]
        self.writer = node._writer  # type: ignore[assignment]
        self.executor = node._disk  # type: ignore[assignment]
        if node._identity is not None:
            self.ledger.recovered(self.name, node._journal)
        self.node = node
        self._peers = sorted(node._core.peers.items())
        self.applied_seen = 0

    @contextmanager
    def _seams(
        self, limits: Limits, chunk_bytes: int, ahead_bytes: int, is_slow: Callable[[], bool]
    ) -> Iterator[None]:
        """What RaftNode finds in its module in place of files, threads and gRPC."""
        module, replaced = tiflow.raft.driver, {}
        network = type("_Transport", (SimTransport,), {"network": self.network})
        for name, stand_in in {
            "Path": SimPath,
            "DirectoryLock": _NoLock,
            "Journal": functools.partial(WatchedJournal, name=self.name, ledger=self.ledger),
            "JournalFile": functools.partial(JournalFile, ahead_bytes=ahead_bytes),
            "JournalWriter": functools.partial(SimWriter, rng=self.rng, is_slow=is_slow),
            "ThreadPoolExecutor": SimExecutor,
            "GrpcTransport": network,
            "SnapshotStore": functools.partial(SnapshotStore, chunk_bytes=chunk_bytes),
            "Limits": lambda **_: limits,
        }.items():
            replaced[name] = getattr(module, name)
            setattr(module, name, stand_in)
        try:
            yield
        finally:
            for name, original in replaced.items():
                setattr(module, name, original)

    def die(self, *, power: bool) -> None:
        """End the process, perhaps in the middle of a write; with `power` the disk loses what was not synced."""
        if self.busy and self.rng.random() < 0.8:
            self.disk.calls_left = self.rng.randrange(4)
            with suppress(Died):
                self.work()
        self.disk.calls_left = None
        if power:
            self.disk.power_cut()
        self.node = None
        self.paused_until = 0.0

    # --- what moves it

    @property
    def busy(self) -> bool:
        """Something waits for the disk."""
        return bool(self.writer.queue or self.executor.queue)

    def work(self) -> None:
        """Let one of the two threads that use the disk do one thing."""
        self.loop.enter()
        if self.writer.queue and (not self.executor.queue or self.rng.random() < 0.6):
            self.writer.work()
        else:
            self.executor.work()

    def turn(self) -> None:
        self.loop.enter()
        self.loop.turn()

    # --- what is seen of it

    @property
    def leads(self) -> bool:
        """Elected, though perhaps not ready."""
        return self.node is not None and self.node._core._SyncObj__raftState == LEADER

    @property
    def failure(self) -> BaseException | None:
        """Why the node has stopped by itself."""
        assert self.node is not None
        return self.node.fatal.exception() if self.node.fatal.done() else None

    def matches(self, one: str | None) -> Iterator[tuple[str, int]]:
        """What this leader believes to be on the disk of each member with which it talks, or of one."""
        assert self.node is not None
        believed = self.node._core._SyncObj__raftMatchIndex
        for name, peer in self._peers:
            if one in (None, name) and (match := believed.get(peer, 0)):
                yield name, match
