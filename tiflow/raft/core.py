"""pysyncobj, made safe: its election and replication loop with our journal, snapshots, transport and rules.

Nothing here waits and nothing here knows asyncio: `_onTick` and the messages move it, `wake` asks for a tick.
The overrides replace name-mangled private methods, so the library is pinned to the file that was audited
(docs/pysyncobj.md). What each override prevents is said beside it; all of it was met in tests of the unmodified
library.
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

import structlog
from msgspec import Struct
from pysyncobj import SyncObjConf
from pysyncobj.transport import Transport

from tiflow.raft.api import StateMachine
from tiflow.raft.codec import NO_OP, REGULAR, Message
from tiflow.raft.disk import is_no_space
from tiflow.raft.journal import ENTRY_BYTES_MAX, Journal
from tiflow.raft.library import FOLLOWER, LEADER, Fatal, Limits, Peer, Timing, now_s
from tiflow.raft.replication import Replication
from tiflow.raft.snapshot import Snapshot, SnapshotStore

log = structlog.get_logger()

SNAPSHOT_RETRY_S: Final = 10.0  # after one for which there was no room
APPLY_MAX: Final = 1000  # entries in one tick, so that a long replay does not silence heartbeats
FORGOTTEN: Final = "?"  # a vote for nobody: perhaps there was one, so there is no other in that term

#: (reply, error): called once for each proposal
Answer = Callable[[Any, "Lost | None"], None]


class Lost(Struct, frozen=True):
    """Why a proposal has no reply."""

    outcome_unknown: bool


class _NoPoller:
    """We are woken by the loop; pysyncobj has nothing to poll."""

    def poll(self, timeout: float) -> None: ...


class Core(Replication):
    """One member of the group. `transport` is a tiflow.raft.transport.HeldTransport."""

    def __init__(
        self,
        name: str,
        others: Iterable[Peer],
        *,
        journal: Journal,
        snapshots: SnapshotStore,
        machine: StateMachine,
        transport: Transport,
        rng: Random,
        timing: Timing,
        limits: Limits,
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._snapshots = snapshots
        self._machine = machine
        self._raft_transport = transport
        self._rng = rng
        self._timing = timing
        self._limits = limits
        self._wake = wake

        self._commit_known = 1
        self._proposals: deque[tuple[bytes, Answer]] = deque()
        self._waiting: dict[int, tuple[int, Answer]] = {}
        self._leading_term = 0  # the term whose first entry we, as its leader, have applied

        self._begin_elections()
        self.may_vote = True  #: false while a member that came back empty has not caught up
        self._catch_up_target: tuple[int, int] | None = None  # term, and its leader's first commit index

        self._begin_replication()
        self._keep_from = 0
        self._snapshot_forced = False
        self._snapshot_not_before = 0.0
        self.snapshot_error: BaseException | None = None  #: why the last one was not written
        self._bytes_since_snapshot = 0
        self.applied_count = 0  #: grows with each entry applied
        self.peers = {str(other.id): other for other in others}

        conf = SyncObjConf(
            autoTick=False,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            appendEntriesPeriod=timing.heartbeat_s,
            leaderFallbackTimeout=timing.leader_fallback_s,
            connectionTimeout=max(10.0, timing.election_max_s),
            commandsWaitLeader=False,
            appendEntriesUseBatch=True,
            appendEntriesBatchSizeBytes=ENTRY_BYTES_MAX + len(REGULAR) + 1,
            dynamicMembershipChange=False,
            useFork=False,
        )
        super().__init__(Peer(name), list(self.peers.values()), conf, nodeClass=Peer, transport=transport)
        self._restore()
        if not self.peers:
            self._deadline = 0.0  # nobody to wait for

    # --- what the node asks for

    @property
    def state(self) -> int:
        """FOLLOWER, CANDIDATE or LEADER."""
        return int(self._SyncObj__raftState)

    @property
    def leading(self) -> bool:
        """Leader, and everything decided in earlier terms is applied."""
        return self.state == LEADER and self._leading_term == self.raftCurrentTerm

    @property
    def leader_name(self) -> str | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    @property
    def outstanding(self) -> int:
        """Proposals that have no answer yet."""
        return len(self._proposals) + len(self._waiting)

    @property
    def election_deadline(self) -> float:
        """When this member campaigns unless it hears a leader, on pysyncobj's clock; infinite for a
        leader."""
        return float("inf") if self.state == LEADER else self._deadline

    @property
    def busy(self) -> bool:
        """There is work that no message will announce."""
        return self._SyncObj__raftCommitIndex > self.raftLastApplied or self._campaign_now

    def join(self, *, may_vote: bool, term_floor: int) -> None:
        """Take part as a member that may have forgotten what it promised in terms up to `term_floor`."""
        self.may_vote = may_vote
        if term_floor > self.raftCurrentTerm:
            self._SyncObj__setCurrentTerm(term_floor, FORGOTTEN)

    def propose(self, entry: bytes, answer: Answer) -> None:
        """Append at the next tick, if this member leads then."""
        self._proposals.append((REGULAR + entry, answer))

    def send_round(self) -> int:
        """Begin a round of appends; a majority of answers to it proves that this leader still led after
        now."""
        self.round += 1
        self._SyncObj__sendAppendEntries()
        return self.round

    def has_majority(self, count: int) -> bool:
        """Whether `count` members, this one included, are more than half."""
        return count * 2 > len(self.peers) + 1

    def force_snapshot(self) -> bool:
        """Take a snapshot at the next tick. False: there is nothing that the newest one does not cover."""
        if self.raftLastApplied <= self._snapshots.index:
            return False
        self._snapshot_forced = True
        return True

    def match_index(self, peer: Peer) -> int:
        return int(self._SyncObj__raftMatchIndex.get(peer, 0))

    def last_contact(self, peer: Peer) -> float | None:
        """When `peer` last answered, on pysyncobj's clock."""
        return self._SyncObj__lastResponseTime.get(peer)  # type: ignore[no-any-return]

    def hand_over(self, peer: Peer) -> bool:
        """Let `peer` campaign now. False: it has not got all of our log yet."""
        if self.match_index(peer) != self._journal.last_index:
            return False
        self._raft_transport.send(peer, {"type": "timeout_now", "term": self.raftCurrentTerm})
        return True

    def resign(self) -> None:
        """Lead no more, until elected again."""
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None
        self._deadline = now_s() + self._SyncObj__generateRaftTimeout()

    def forget_proposals(self) -> None:
        """Answer everything that waits: this member is ending."""
        self._abandon()

    # --- the library's parts, replaced by ours. The setters swallow what its constructor makes.

    @property
    def _SyncObj__raftLog(self) -> Journal:
        return self._journal

    @_SyncObj__raftLog.setter
    def _SyncObj__raftLog(self, value: object) -> None: ...

    @property
    def _SyncObj__serializer(self) -> SnapshotStore:
        return self._snapshots

    @_SyncObj__serializer.setter
    def _SyncObj__serializer(self, value: object) -> None: ...

    @property
    def _poller(self) -> _NoPoller:
        return _NoPoller()

    @_poller.setter
    def _poller(self, value: object) -> None: ...

    # --- persist first: nothing is committed here, applied or told before it is on our own disk.
    # The library's leader counts itself for all of its log, so what it finds may be ahead of the disk.

    @property
    def _SyncObj__raftCommitIndex(self) -> int:
        return min(self._commit_known, self._journal.durable_index)

    @_SyncObj__raftCommitIndex.setter
    def _SyncObj__raftCommitIndex(self, value: int) -> None:
        self._commit_known = value

    # --- messages

    def _SyncObj__onMessageReceived(self, node: Peer, message: Message) -> None:
        kind = message["type"]
        if kind == "append_entries":
            self._take_append(node, message)
        elif kind == "next_node_idx":
            self._take_reply(node, message)
        elif kind == "pre_vote":
            self._answer_pre_vote(node, message)
        elif kind == "pre_vote_reply":
            self._take_pre_vote(node, message)
        elif kind == "response_vote":
            self._take_vote(node, message)
        elif kind in ("request_vote", "timeout_now") and not self.may_vote:
            log.info("raft_vote_refused", sender=node.id, reason="not caught up since joining empty")
        elif kind == "timeout_now" and self._journal.space.short:
            log.info("raft_leadership_refused", sender=node.id, disk=self._journal.space.state)
        else:
            super()._SyncObj__onMessageReceived(node, message)

    # --- proposals and what becomes of them

    def _checkCommandsToApply(self) -> None:
        """Log everything that was proposed since the last tick, in one append: group commit."""
        if self.state == LEADER and self._proposals:
            term = self.raftCurrentTerm
            index = self._journal.last_index
            while self._proposals:
                command, answer = self._proposals.popleft()
                index += 1
                self._journal.add(command, index, term)
                self._waiting[index] = (term, answer)
            self._SyncObj__sendAppendEntries()
        while self._proposals:
            self._proposals.popleft()[1](None, Lost(outcome_unknown=False))

    def _SyncObj__setState(self, state: int) -> None:
        was = self.state
        super()._SyncObj__setState(state)
        if was == LEADER and state != LEADER:
            # the library would answer them when their place is taken by another entry, or never
            self._abandon()
        if state == LEADER:
            self._failures = 0
            self._campaign_now = False
            self.rounds_answered.clear()

    def _abandon(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, answer in waiting.values():
            answer(None, Lost(outcome_unknown=True))
        while self._proposals:
            self._proposals.popleft()[1](None, Lost(outcome_unknown=False))

    def _SyncObj__applyLogEntries(self) -> bool:
        """Apply what is committed, a bounded number at a time. What the machine raises is fatal.

        The library would apply the same entry again in each tick, on each member, for ever.
        """
        applied = self.raftLastApplied
        until = min(self._SyncObj__raftCommitIndex, applied + APPLY_MAX)
        if until <= applied:
            return False
        place = applied + 1 - self._journal.first_index
        if place < 0:
            raise Fatal(f"entry {applied + 1} is to be applied, and the log begins at {self._journal.first_index}")
        for command, index, term in self._journal[place : place + until - applied]:
            reply = self._SyncObj__doApplyCommand(command)
            self._SyncObj__raftLastApplied = index
            self._bytes_since_snapshot += len(command)
            waiting = self._waiting.pop(index, None)
            if waiting is not None:
                assert waiting[0] == term
                waiting[1](reply, None)
            elif term == self.raftCurrentTerm and self.state == LEADER:
                self._leading_term = term  # this is our no-op: all that was decided before is applied
        self.applied_count += until - applied
        return False

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        if command[:1] == REGULAR:
            try:
                return self._machine.apply(command[1:])
            except Exception as error:
                raise Fatal(f"the state machine raised {error!r} for an entry of {len(command) - 1} bytes") from error
        if command[:1] != NO_OP:
            raise Fatal(f"an entry of kind {command[:1]!r} is in the log; it would change members or versions")
        return None

    # --- snapshots

    def _restore(self) -> None:
        """State and log as they were before the restart."""
        snapshot = self._snapshots.load()
        if snapshot is None:
            if self._journal.first_index > 1:
                raise Fatal(f"the log begins at {self._journal.first_index}, but its snapshot is gone")
            return
        if snapshot.index < self._journal.first_index:
            raise Fatal(
                f"the log begins at {self._journal.first_index}, but the newest snapshot ends at {snapshot.index}"
            )
        self._adopt(snapshot)

    def _adopt(self, snapshot: Snapshot) -> None:
        try:
            self._machine.restore(snapshot.body)
        except Exception as error:
            raise Fatal(f"the state machine can not restore snapshot {snapshot.index}: {error!r}") from error
        self._journal.adopt_snapshot(snapshot.index, snapshot.term)
        self._SyncObj__raftLastApplied = snapshot.index
        self._commit_known = max(self._commit_known, snapshot.index)
        self._bytes_since_snapshot = 0

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise AssertionError("snapshots are loaded by us")

    def _SyncObj__tryLogCompaction(self) -> None:
        if self._snapshots.saving:
            self._snapshots.step(self._saved, self._not_saved, self._wake)
            return
        covered = self.raftLastApplied - max(self._snapshots.index, 1)
        due = covered >= self._limits.snapshot_entries or self._bytes_since_snapshot >= self._limits.snapshot_bytes
        if not (due or self._snapshot_forced) or covered <= 0:
            return
        if now_s() < self._snapshot_not_before and not self._snapshot_forced:
            return
        self._snapshot_forced = False
        self.snapshot_error = None
        self._bytes_since_snapshot = 0
        index = self.raftLastApplied
        term = self._journal.term_of(index)
        assert term is not None
        self._keep_from = self._kept_from(index)
        self._journal.rotate(self._keep_from)
        try:
            self._snapshots.begin(index, term, self._machine.snapshot())
        except OSError as error:
            self._not_saved(error)
            return
        self._snapshots.step(self._saved, self._not_saved, self._wake)

    def _kept_from(self, index: int) -> int:
        size = 0
        oldest = max(self._journal.first_index, index - self._limits.kept_entries)
        for candidate in range(index, oldest, -1):
            size += len(self._journal[candidate - self._journal.first_index][0])
            if size > self._limits.kept_bytes:
                return candidate
        return oldest

    def _saved(self, index: int) -> None:
        self._journal.compact(self._keep_from)
        log.info("raft_snapshot_saved", index=index, log_entries=len(self._journal))

    def _not_saved(self, error: BaseException) -> None:
        if is_no_space(error):
            log.error("raft_snapshot_has_no_room", error=str(error), again_in_s=SNAPSHOT_RETRY_S)
            self._snapshots.give_up()
            self._snapshot_not_before = now_s() + SNAPSHOT_RETRY_S
            self.snapshot_error = error
            return
        raise Fatal(f"can not write the snapshot: {error!r}") from error

    def _take_chunk(self, node: Peer, chunk: tuple[int, int, bytes, bool]) -> None:
        index, offset, data, last = chunk
        term = self.raftCurrentTerm

        def verified(result: Snapshot | BaseException) -> None:
            self._install(node, term, result)
            self._wake()

        if index <= self.raftLastApplied:
            self._SyncObj__sendNextNodeIdx(node, reset=True)
            return
        if self._journal.space.short or self._disk_is_silent:
            return  # there may be room later; the leader begins anew then
        try:
            received = self._snapshots.receive(offset, data, last=last, verified=verified)
        except OSError as error:
            if not is_no_space(error):
                raise
            self._snapshots.forget_incoming()
            return
        # an answer to each chunk: it opens the sender's window, and a leader without answers steps down
        self._SyncObj__sendNextNodeIdx(node, reset=received is None, snapshot_offset=received or 0)

    def _install(self, node: Peer, term: int, result: Snapshot | BaseException) -> None:
        if isinstance(result, OSError) and not is_no_space(result):
            raise Fatal(f"can not store the snapshot from {node.id}: {result!r}") from result
        if isinstance(result, BaseException):
            log.error("raft_snapshot_refused", sender=node.id, error=str(result))
        elif result.index > self.raftLastApplied and not self._snapshots.saving:
            # never an older one: it would take back entries that the leader counts on
            self._snapshots.install(result)
            self._adopt(result)
            self._journal.rotate(result.index)
            self._journal.compact(result.index)
            self._deadline = now_s() + self._SyncObj__generateRaftTimeout()
            log.info("raft_snapshot_installed", index=result.index, sender=node.id)
        if self.raftCurrentTerm == term and self._SyncObj__raftLeader == node:
            self._SyncObj__sendNextNodeIdx(node, reset=True)

    def _catch_up(self, term: int, leader_commit: int) -> None:
        """Let a member that lost its disk vote again once nothing can be missing that it acknowledged before.

        That is when an entry of the leader's own term is committed here, so that all that earlier terms committed
        is, too, and everything that the leader knew to be committed when it first spoke to us in this term.
        """
        if self._catch_up_target is None or self._catch_up_target[0] != term:
            self._catch_up_target = (term, leader_commit)
        commit = self._SyncObj__raftCommitIndex
        if commit >= self._catch_up_target[1] and self._journal.term_of(commit) == term:
            self.may_vote = True
            log.info("raft_caught_up", commit_index=commit)
