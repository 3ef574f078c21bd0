"""Appends: what a follower takes, what it answers, and what a leader sends it."""

from typing import Final

from tiflow.raft.codec import BadMessage, Message
from tiflow.raft.election import Election
from tiflow.raft.journal import Entry
from tiflow.raft.library import LEADER, Fatal, Limits, Peer, now_s

APPEND_ENTRIES_MAX: Final = 2048
BACKLOG_BYTES_MAX: Final = 4 << 20  # queued for one peer; a follower that lags is fed as it answers
SNAPSHOT_WINDOW_BYTES: Final = 2 << 20  # sent and not yet acknowledged


class Replication(Election):
    """The messages of the library, corrected on their way in and made anew on their way out."""

    _limits: Limits
    _commit_known: int

    def _begin_replication(self) -> None:
        self._verified: int | None = None  # what the message being answered proved about our log
        self._round_heard = 0
        self.round = 0  #: number of the newest read round; travels with each append
        self.rounds_answered: dict[str, int] = {}

    def _take_append(self, node: Peer, message: Message) -> None:
        if message["term"] < self.raftCurrentTerm:
            # the library drops it in silence, and the deposed leader would never learn
            notice = {"type": "pre_vote_reply", "term": self.raftCurrentTerm, "id": 0, "granted": False}
            self._raft_transport.send(node, notice)
            return
        self._leader_heard_at = now_s()
        self._failures = 0
        self._round_heard = message["round"]
        leader_commit = message["commit_index"]
        if "chunk" in message:
            # the library would commit up to the leader's commit index, although our log was not compared yet
            super()._SyncObj__onMessageReceived(node, message | {"commit_index": self._commit_known})
            self._take_chunk(node, message["chunk"])
        else:
            if self._disk_is_silent:
                message = message | {"entries": []}  # they would fill the memory; the leader sends them again
            self._verified = None
            super()._SyncObj__onMessageReceived(node, self._repaired(message))
            self._verified = None
        if not self.may_vote:
            self._catch_up(message["term"], leader_commit)

    def _repaired(self, message: Message) -> Message:
        """The same append, so worded that the library neither deletes what agrees nor commits what was not
        compared.

        The library deletes everything behind `prevLogIdx`, also what agrees and was acknowledged, and commits
        up to the end of its log.
        """
        journal = self._journal
        entries: list[Entry] = message["entries"]
        previous: int = message["prevLogIdx"]
        first, last = journal.first_index, journal.last_index
        if previous < first:
            covered = first - previous  # our snapshot has these already; what it has was committed
            if len(entries) < covered or entries[covered - 1][2] != journal[0][2]:
                return message
            return self._repaired(
                message | {"prevLogIdx": first, "prevLogTerm": journal[0][2], "entries": entries[covered:]}
            )
        if journal.term_of(previous) != message["prevLogTerm"]:
            return message  # refused by the library; our reply names where to go on
        verified = previous + len(entries)
        known = 0
        while known < len(entries) and journal.term_of(entries[known][1]) == entries[known][2]:
            known += 1
        self._verified = verified
        commit = max(self._commit_known, min(message["commit_index"], verified))
        if known == len(entries):
            return message | {
                "prevLogIdx": last,
                "prevLogTerm": journal[-1][2],
                "entries": [],
                "commit_index": commit,
            }
        cut = previous + known + 1
        if cut <= self._commit_known:
            raise Fatal(
                f"the leader {self.leader_name} would overwrite entry {cut}; {self._commit_known} is committed"
            )
        return message | {
            "prevLogIdx": cut - 1,
            "prevLogTerm": journal.term_of(cut - 1),
            "entries": entries[known:],
            "commit_index": commit,
        }

    def _SyncObj__sendNextNodeIdx(
        self,
        node: Peer,
        reset: bool = False,
        nextNodeIdx: int | None = None,
        success: bool = False,
        snapshot_offset: int = 0,
    ) -> None:
        if success and self._verified is not None:
            following = self._verified + 1  # not the end of our log: what is behind was not compared
        elif reset:
            # surely common to both; the library's hints can contradict one another, and never converge
            following = max(self._SyncObj__raftCommitIndex, self._journal.first_index) + 1
        else:
            following = nextNodeIdx or self._journal.last_index + 1
        if self._disk_is_silent:
            return  # it would only wait behind all the others
        self._raft_transport.send(
            node,
            {
                "type": "next_node_idx",
                "next_node_idx": following,
                "reset": reset,
                "success": success,
                "round": self._round_heard,
                "snapshot_offset": snapshot_offset,
            },
        )

    def _onTick(self, timeToWait: float = 0.0) -> None:
        if self.state == LEADER:
            self._advance_commit()
        super()._onTick(timeToWait)

    def _advance_commit(self) -> None:
        """Commit what a majority has, at once. The library comes to the same index, entry by entry.

        Source: the Raft paper, section 5.3 and figure 8: of earlier terms nothing is committed by counting.
        """
        matched = sorted((self._SyncObj__raftMatchIndex[peer] for peer in self.peers.values()), reverse=True)
        if not matched:
            return  # alone: the library's way
        of_majority = matched[(len(matched) + 1) // 2 - 1]  # with this member itself
        if of_majority > self._commit_known and self._journal.term_of(of_majority) == self.raftCurrentTerm:
            self._SyncObj__raftCommitIndex = of_majority
            self._journal.setRaftCommitIndex(self._SyncObj__raftCommitIndex)

    def _take_reply(self, node: Peer, message: Message) -> None:
        if message["term"] != self.raftCurrentTerm or self.state != LEADER:
            return  # an answer to another leadership says nothing about this one's log
        following: dict[Peer, int] = self._SyncObj__raftNextIndex
        sent_up_to = following[node]
        said, last = message["next_node_idx"], self._journal.last_index
        if (message["success"] or message["reset"]) and not 1 < said <= last + 1:
            raise BadMessage(f"it goes on at entry {said}, our log ends at {last}")
        super()._SyncObj__onMessageReceived(node, message)
        if message["success"]:
            # the library would go back to behind what is acknowledged, and send again what is on its way
            following[node] = max(following[node], sent_up_to)
        answered = self.rounds_answered
        answered[node.id] = max(answered.get(node.id, 0), message["round"])
        if message["success"] or message["reset"]:
            self._snapshots.cancel(node.id)
        else:
            self._snapshots.acknowledge(node.id, message["snapshot_offset"])
        if following[node] <= self._journal.last_index:
            self._feed(node, heartbeat=False)

    # --- sending

    def _SyncObj__sendAppendEntries(self) -> None:
        # the library's own would block for a heartbeat while a snapshot goes out, or spin when there is none
        # yet
        self._SyncObj__newAppendEntriesTime = now_s() + self._timing.heartbeat_s
        for peer in self.peers.values():
            self._feed(peer, heartbeat=True)

    def _feed(self, peer: Peer, *, heartbeat: bool) -> None:
        """Send what `peer` lacks, as far as its queue has room; with `heartbeat` at least one message."""
        if not self.isNodeConnected(peer):
            return
        following: dict[Peer, int] = self._SyncObj__raftNextIndex
        if following[peer] <= self._journal.first_index:
            self._feed_snapshot(peer, heartbeat=heartbeat)
            return
        sent = not heartbeat
        while not sent or (
            following[peer] <= self._journal.last_index
            and self._raft_transport.backlog_bytes(peer) < BACKLOG_BYTES_MAX
        ):
            entries = self._entries_from(following[peer])
            previous = following[peer] - 1
            self._raft_transport.send(
                peer,
                {
                    "type": "append_entries",
                    "term": self.raftCurrentTerm,
                    "commit_index": self._SyncObj__raftCommitIndex,
                    "round": self.round,
                    "prevLogIdx": previous,
                    "prevLogTerm": self._journal.term_of(previous),
                    "entries": entries,
                },
            )
            following[peer] += len(entries)
            sent = True

    def _entries_from(self, index: int) -> list[Entry]:
        place = index - self._journal.first_index
        entries = self._journal[place : place + APPEND_ENTRIES_MAX]
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry[0])
            if size > self._limits.append_bytes and count:
                return entries[:count]
        return entries

    def _feed_snapshot(self, peer: Peer, *, heartbeat: bool) -> None:
        transfer = self._snapshots.transfer(peer.id)
        if transfer is None:
            raise Fatal(f"the log begins at {self._journal.first_index}, and there is no snapshot of what was before")
        sent = not heartbeat
        while not transfer.finished and transfer.sent - transfer.acknowledged < SNAPSHOT_WINDOW_BYTES:
            self._send_chunk(peer, (transfer.index, *self._snapshots.next_chunk(transfer)))
            sent = True
        if not sent:
            self._send_chunk(peer, (transfer.index, transfer.sent, b"", False))

    def _send_chunk(self, peer: Peer, chunk: tuple[int, int, bytes, bool]) -> None:
        self._raft_transport.send(
            peer,
            {
                "type": "append_entries",
                "term": self.raftCurrentTerm,
                "commit_index": self._SyncObj__raftCommitIndex,
                "round": self.round,
                "chunk": chunk,
            },
        )
