"""Elections: a pre-vote first, so that who returns from a partition deposes nobody."""

from random import Random
from typing import Final

import structlog
from pysyncobj import SyncObj
from pysyncobj.transport import Transport

from tiflow.raft.codec import Message
from tiflow.raft.journal import Journal
from tiflow.raft.library import CANDIDATE, DISK_SILENCE_S, FOLLOWER, LEADER, Peer, Timing, now_s
from tiflow.raft.snapshot import SnapshotStore

log = structlog.get_logger()

_BACKOFF_DOUBLINGS: Final = 3


class Election(SyncObj):  # type: ignore[misc]
    """The library campaigns when its deadline has passed; here the deadline is a gate that the pre-vote opens."""

    _journal: Journal
    _snapshots: SnapshotStore
    _raft_transport: Transport
    _rng: Random
    _timing: Timing
    peers: dict[str, Peer]
    may_vote: bool

    def _begin_elections(self) -> None:
        self._campaign_now = False
        self._deadline = 0.0
        self._pre_vote_id = 0
        self._pre_votes: set[str] = set()
        self._failures = 0  # pre-votes and votes since a leader was heard
        self._leader_heard_at = -1e9
        self._voters: tuple[int, set[str]] = (0, set())  # of our own last campaign, with its term

    @property
    def _SyncObj__raftElectionDeadline(self) -> float:
        return 0.0 if self._campaign_now else float("inf")

    @_SyncObj__raftElectionDeadline.setter
    def _SyncObj__raftElectionDeadline(self, value: float) -> None:
        # 0 is the library's word for timeout_now: the leader itself asked us to campaign
        self._campaign_now = value == 0
        if value:
            self._deadline = value
            self._pre_votes = set()  # we heard a leader, or voted: what we asked before is void

    def _SyncObj__generateRaftTimeout(self) -> float:
        low, high = self._timing.election_min_s, self._timing.election_max_s
        return self._rng.uniform(low, high)

    def _onTick(self, timeToWait: float = 0.0) -> None:
        now = now_s()
        if self.state == LEADER and self.peers and (self._disk_is_silent or self._journal.space.state == "full"):
            waiting_s = round(self._journal.waiting_s(), 1)
            log.error("raft_disk_silent", waiting_s=waiting_s, disk=self._journal.space.state, action="resigning")
            self.resign()
        if self.state != LEADER and not self._campaign_now and now >= self._deadline:
            self._ask_pre_votes(now)
        campaigning = self._campaign_now and self.state != LEADER
        super()._onTick(0.0)
        if campaigning:
            self._campaign_now = False
            if self.state == CANDIDATE:
                self._deadline = now_s() + self._retry_s()  # a split vote is tried again soon

    @property
    def _disk_is_silent(self) -> bool:
        return self._journal.waiting_s() > DISK_SILENCE_S

    def _ask_pre_votes(self, now: float) -> None:
        self._deadline = now + self._retry_s()
        if not self.may_vote or not self.hasQuorum or self._disk_is_silent:
            return
        if not self.peers:
            self._campaign_now = True
            return
        self._pre_vote_id += 1
        self._pre_votes = {self.selfNode.id}
        message = {
            "type": "pre_vote",
            "term": self.raftCurrentTerm,
            "id": self._pre_vote_id,
            "last_log_index": self._journal.last_index,
            "last_log_term": self._journal[-1][2],
        }
        for peer in self.peers.values():
            self._raft_transport.send(peer, message)

    def _retry_s(self) -> float:
        # doubled, since votes that wait for slow disks must arrive before the next try makes them void
        heartbeats: float = self._rng.uniform(0.5, 1.5) * 2 ** min(self._failures, _BACKOFF_DOUBLINGS)
        self._failures += 1
        return heartbeats * self._timing.heartbeat_s

    def _answer_pre_vote(self, peer: Peer, message: Message) -> None:
        now = now_s()
        ours = (self._journal[-1][2], self._journal.last_index)
        up_to_date = (message["last_log_term"], message["last_log_index"]) >= ours
        granted = (
            self.may_vote and up_to_date and message["term"] >= self.raftCurrentTerm and self._leader_is_silent(now)
        )
        reply = {
            "type": "pre_vote_reply",
            "term": self.raftCurrentTerm,
            "id": message["id"],
            "granted": granted,
        }
        self._raft_transport.send(peer, reply)

    def _leader_is_silent(self, now: float) -> bool:
        limit = now - self._timing.election_min_s
        if self.state == LEADER:
            alive = sum((self.last_contact(peer) or 0.0) > limit for peer in self.peers.values())
            return not self.has_majority(1 + alive)
        return self._leader_heard_at <= limit

    def _take_pre_vote(self, peer: Peer, message: Message) -> None:
        if message["term"] > self.raftCurrentTerm and (message["id"] == 0 or self.state != LEADER):
            # else two members of different terms could refuse one another for ever
            self._SyncObj__setCurrentTerm(message["term"], None)
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None
        if message["granted"] and message["id"] == self._pre_vote_id and self.state != LEADER and self._pre_votes:
            self._pre_votes.add(str(peer.id))
            if self.has_majority(len(self._pre_votes)):
                self._pre_votes = set()
                self._campaign_now = True

    def _take_vote(self, peer: Peer, message: Message) -> None:
        term = message["term"]
        if term != self.raftCurrentTerm:
            return  # late; it must not make us forget who has voted in this one
        if self._voters[0] != term:
            self._voters = (term, set())
        voters = self._voters[1]
        if peer.id not in voters:  # the library counts answers, and takes one that comes twice for two votes
            voters.add(str(peer.id))
            super()._SyncObj__onMessageReceived(peer, message)

    def _SyncObj__onNodeConnected(self, node: Peer) -> None:
        super()._SyncObj__onNodeConnected(node)
        if self.state == LEADER:
            # it may have lost its disk, and with it what it acknowledged: count it again when it says so again
            self._SyncObj__raftMatchIndex[node] = 0

    def _SyncObj__onNodeDisconnected(self, node: Peer) -> None:
        super()._SyncObj__onNodeDisconnected(node)
        self._snapshots.cancel(node.id)
        if node == self._SyncObj__raftLeader:
            # its process ended, most likely. The pre-vote makes haste harmless
            self._leader_heard_at = -1e9
            haste = self._rng.uniform(1.0, 3.0) * self._timing.heartbeat_s
            self._deadline = min(self._deadline, now_s() + haste)
