"""What goes wrong with votes, entries and answers in the plain library, and does not in ours.

Each test asks both the same and then states what each does: what the plain library does is wrong. When a later
version of it does better, its half of the test fails, and the guard of ours can be looked at again.
docs/pysyncobj.md has the table.
"""

import struct

import pysyncobj.syncobj
import pytest
from pysyncobj import SyncObjConf

from tests.unit.raft.groups import History, PlainMachine
from tiflow.raft import raft_pb2 as pb
from tiflow.raft.codec import BadMessage, decode
from tiflow.raft.library import Fatal, Limits

#: the library leaves its files to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

# --- votes and leaders


def test_a_vote_that_comes_twice_counts_once(make_group):
    group = make_group("ABCDE")
    for other in "CDE":
        group.cut("A", other)
    group.campaign("A")
    group.deliver("A", "B")

    vote = group.take("B", "A", "response_vote")
    group.give("B", "A", vote)
    group.give("B", "A", vote)

    assert ("A" in group.leaders()) is group.plain  # with two of five


def test_a_vote_is_remembered_over_a_restart_without_settings(make_group):
    group = make_group(conf={"journalFile": None, "fullDumpFile": None})
    group.cut("A", "B")
    group.campaign("A")
    group.deliver("A", "C")
    vote = group.take("C", "A", "response_vote")

    group.restart("C")
    group.campaign("B")
    group.deliver_all()
    group.give("C", "A", vote)

    assert len(set(group.leaders().values())) == 1
    assert len(group.leaders()) == (2 if group.plain else 1)  # in one term


def test_who_returns_deposes_nobody(group):
    group.run(5)
    (leader,) = group.leaders()
    term = group.leaders()[leader]
    other = next(name for name in group.names if name != leader)
    group.isolate(other)
    group.run(20)

    group.rejoin(other)
    group.run(5)

    assert (group.leaders() == {leader: term}) is not group.plain


def test_one_broken_link_deposes_nobody(group):
    group.run(5)
    (leader,) = group.leaders()
    term = group.leaders()[leader]
    other = next(name for name in group.names if name != leader)

    group.cut(leader, other)
    group.run(60)

    assert (group.leaders() == {leader: term}) is not group.plain


def test_a_leader_without_a_majority_soon_leads_no_more(group):
    group.lead("A")
    group.settle()

    group.isolate("A")
    group.run(10)

    assert ("A" in group.leaders()) is group.plain


def test_a_deposed_leader_answers_no_read(group):
    group.lead("A")
    group.propose("A", "old")
    group.settle()
    group.isolate("A")
    group.lead("B")
    group.propose("B", "new")
    group.settle(4)
    assert group.history("B") == ["old", "new"]

    assert group.read("A") == (["old"] if group.plain else None)


# --- appends


def test_a_late_append_cuts_nothing_that_was_acknowledged(group):
    group.lead("A")
    group.settle()
    group.isolate("C")
    group.propose("A", "1")
    group.tick("A")
    group.clock.now += 0.2
    group.tick("A")
    late = group.wire("A", "B").pop(0)
    group.settle()
    second = group.propose("A", "2")
    group.settle()
    assert second.committed
    before = group.log("B")

    group.give("A", "B", late)

    assert (group.log("B") == before) is not group.plain


def test_an_acknowledged_entry_survives_a_late_append_and_a_new_leader(group):
    group.lead("A")
    group.settle()
    group.isolate("C")
    group.propose("A", "1")
    group.tick("A")
    group.clock.now += 0.2
    group.tick("A")
    late = group.wire("A", "B").pop(0)
    group.settle()
    acknowledged = group.propose("A", "2")
    group.settle()
    group.give("A", "B", late)
    group.crash("A")

    group.heal("B", "C")
    group.lead("B")
    group.propose("B", "3")
    group.settle()

    assert acknowledged.committed
    assert ("2" in group.history("C")) is not group.plain


def test_a_follower_with_another_tail_catches_up_with_a_long_log(make_group):
    group = make_group(append_bytes=120)
    group.lead("A")
    group.settle()
    group.isolate("A")
    for number in range(4):
        group.propose("A", f"tail{number}")
    group.tick("A")
    group.lead("B")
    for number in range(20):
        group.propose("B", f"real{number}")
    group.settle()
    group.restart()

    group.lead("B")
    group.rejoin("A")
    group.settle(40)

    assert (group.history("A") == group.history("B")) is not group.plain


def test_an_acknowledgement_of_an_older_leadership_counts_for_nothing(make_group):
    group = make_group("ABCDE")
    group.lead("A")
    group.settle()
    for other in "CDE":
        group.cut("A", other)
    for number in range(6):
        group.propose("A", f"old{number}")
    group.tick("A")
    group.clock.now += 0.2
    group.tick("A")
    while group.wire("A", "B"):
        group.deliver("A", "B")
    late = group.take("B", "A", "next_node_idx")
    group.isolate("B")
    group.lead("C")
    group.propose("C", "new")
    group.settle()
    for other in "DE":
        group.heal("A", other)
    group.heal("A", "C")
    group.settle()
    group.isolate("C")
    group.lead("A")
    own = len(group.log("B"))

    group.give("B", "A", late)

    assert group.match("A", "B") == (own if group.plain else 0)  # B has these of another term


@pytest.mark.parametrize("size", [131_000, 196_500])
def test_a_large_entry_raises_in_no_follower(group, size):
    group.lead("A")
    group.settle()
    large = group.propose("A", "x" * size)
    raised = []

    for _ in range(12):
        for name in group.names:
            group.tick(name)
        while any(group.wires.values()):
            pair = next(pair for pair, wire in group.wires.items() if wire)
            try:
                group.deliver(*pair)
            except Exception as error:  # noqa: BLE001 - whatever it is
                raised.append(error)
        group.clock.now += 0.11

    assert large.committed
    assert bool(raised) is group.plain


# --- what is applied


def test_a_command_that_raises_is_not_applied_for_ever(group):
    group.lead("A")
    group.settle()
    before = group.attempts("A")
    group.propose("A", "poison")
    group.propose("A", "after")
    raised = []

    for _ in range(20):
        for name in list(group.cores):
            try:
                group.tick(name)
            except Exception as error:  # noqa: BLE001 - whatever it is
                raised.append(error)
                if not group.plain:
                    group.crash(name)  # as a node does: what it was in the middle of is unknown
        group.deliver_all()
        group.clock.now += 0.02

    if group.plain:
        assert group.attempts("A") - before > 10
        assert all(isinstance(error, ValueError) for error in raised)
    else:
        assert [type(error) for error in raised] == [Fatal] * len(raised)
        assert "A" not in group.cores


def test_a_callback_that_raises_applies_nothing_twice(group):
    group.lead("A")
    group.settle()

    def fail():
        raise RuntimeError("a bug of the caller")

    group.propose("A", "once", fail)
    for _ in range(5):
        for name in group.names:
            try:
                group.tick(name)
            except RuntimeError:
                continue
        group.deliver_all()
        group.clock.now += 0.11

    assert group.history("B") == ["once"]
    assert (group.history("A") == ["once"]) is not group.plain


def test_a_listener_that_raises_leaves_no_half_made_leader(make_group):
    def fail(_, state):
        if state == 2:
            raise RuntimeError("a bug of the listener")

    group = make_group(conf={"onStateChanged": fail})
    group.campaign("A")
    raised = []
    for _ in range(5):
        for move in (group.deliver_all, *(lambda name=name: group.tick(name) for name in "ABC")):
            try:
                move()
            except (RuntimeError, KeyError) as error:
                raised.append(type(error))
        group.clock.now += 0.11

    # ours gives the core no listener; the node calls its own after the tick, and logs what they raise
    assert (KeyError in raised) is group.plain
    assert raised == [] or group.plain


class _NewCode(PlainMachine):
    @pysyncobj.syncobj.replicated(ver=1)
    def added(self, entry):
        self.entries.append(entry)


def test_an_entry_of_a_newer_version_is_not_skipped(make_group):
    group = make_group()
    if not group.plain:
        version = pb.AppendEntries(previous_index=1, previous_term=0, commands=[b"\x03v"], terms=[1])
        with pytest.raises(BadMessage, match="members or versions"):
            decode(pb.Message(term=1, append_entries=version))
        return
    for name in "AB":
        group.crash(name)
        group.machine = _NewCode
        group.start(name)
    group.lead("A")
    group.settle()
    group.cores["A"].setCodeVersion(1)
    group.settle()
    for number in range(3):
        group.propose("A", str(number))
    group.settle(10)

    assert group.history("A") == ["0", "1", "2"]
    assert group.history("C") != group.history("A")  # applied again and again by the old code


class _Old(PlainMachine):
    @pysyncobj.syncobj.replicated
    def put(self, entry):
        self.entries.append(f"put {entry}")


class _New(_Old):
    @pysyncobj.syncobj.replicated
    def later(self, entry):
        self.entries.append(f"later {entry}")


class _NewHistory(History):
    def later(self, entry): ...


def test_new_code_reads_an_old_log_as_it_was_written(make_group):
    group = make_group(machine={True: _Old, False: History})
    group.lead("A")
    if group.plain:
        group.cores["A"].put("x")
    else:
        group.propose("A", "put x")
    group.settle(10)
    assert group.history("A") == ["put x"]

    for name in "ABC":
        group.crash(name)
    group.machine = _New if group.plain else _NewHistory
    for name in "ABC":
        group.start(name)
    group.run(3)

    assert group.history("A") == ["later x" if group.plain else "put x"]


class _Versions(PlainMachine):
    @pysyncobj.syncobj.replicated
    def put(self, entry):
        self.entries.append(f"old {entry}")

    @pysyncobj.syncobj.replicated(ver=1)
    def put(self, entry):  # noqa: F811 - how the library wants versions of a method
        self.entries.append(f"new {entry}")


class _Formats(History):
    """As our scheduler does it: which format is in force is part of the state."""

    def apply(self, entry):
        new = "format 1" in self.entries
        return super().apply(b"new " + entry if new and entry[:3] == b"put" else entry)


def test_a_switch_of_version_survives_a_snapshot(make_group):
    group = make_group(machine={True: _Versions, False: _Formats})
    group.lead("A")
    group.settle()
    if group.plain:
        group.cores["A"].setCodeVersion(1)
    else:
        group.propose("A", "format 1")
    group.settle()
    group.propose("A", "between")
    group.settle()
    group.snapshot()
    group.restart()
    group.lead("A")
    group.settle()

    if group.plain:
        group.cores["A"].put("put x")
    else:
        group.propose("A", "put x")
    group.settle()

    assert group.history("A")[-1] == ("old put x" if group.plain else "new put x")


def test_a_term_that_no_disk_can_hold_is_refused(group):
    group.lead("A")
    group.settle()
    if not group.plain:
        with pytest.raises(ValueError, match="range"):
            pb.Message(term=1 << 64, vote_request=pb.VoteRequest())
        return
    request = {"type": "request_vote", "term": 1 << 64, "last_log_index": 99, "last_log_term": 99}
    group.give("B", "A", request)

    with pytest.raises(struct.error):
        group.run(20)  # whoever is elected now cannot log its first entry
    group.restart("A")
    assert group.cores["A"].raftCurrentTerm >= 1 << 64  # for ever


# --- what a proposer is told


def test_a_proposal_to_a_follower_is_not_made_in_secret(group):
    group.lead("A")
    group.settle()
    first = group.propose("B", "pay")
    group.tick("B")
    if group.wire("B", "A"):
        group.deliver("B", "A")
    group.cut("A", "B")
    group.settle()
    group.heal("A", "B")
    group.settle()

    if "committed" not in first.told:
        again = group.propose("A", "pay")  # a client that was not told 'committed' tries again
        group.settle()
        assert again.committed

    assert first.told in ([[], ["unknown"]] if group.plain else [["not committed"]])
    assert group.history("A") == (["pay", "pay"] if group.plain else ["pay"])


def test_every_proposal_is_answered_although_a_link_breaks(group):
    group.lead("A")
    group.settle()
    lost = group.propose("B", "lost")
    group.tick("B")
    group.wires.pop(("B", "A"), None)  # lost with the connection
    group.cut("A", "B")
    group.heal("A", "B")

    group.run(60)

    assert bool(lost.told) is not group.plain


def test_a_leader_that_was_cut_off_answers_what_waits(group):
    group.lead("A")
    group.settle()
    group.isolate("A")
    waits = group.propose("A", "x")

    group.run(60)

    assert waits.told == ([] if group.plain else ["unknown"])


def test_an_answer_is_for_the_command_that_was_proposed(group):
    group.lead("A")
    group.settle()
    group.propose("B", "old")
    group.tick("B")
    if group.wire("B", "A"):
        group.deliver("B", "A")
    group.restart("B")
    group.clock.now += 0.2
    group.tick("A")
    while group.wire("A", "B") and group.kind(group.wire("A", "B")[0]) != "apply_command_response":
        group.deliver("A", "B")
    group.tick("B")
    new = group.propose("B", "new")
    group.tick("B")
    group.wires.pop(("B", "A"), None)  # the new command is lost on its way
    group.settle()

    assert "new" not in group.history("A")
    assert new.told == (["committed"] if group.plain else ["not committed"])


def test_a_commit_index_beyond_the_log_commits_nothing_new(group):
    group.lead("A")
    for number in range(20):
        group.propose("A", str(number))
    group.run(3)
    for name in "ABC":
        group.crash(name)
        group.lose_tail(name, 10)
    for name in "ABC":
        group.start(name)
    group.isolate("C")
    group.lead("A")
    group.cut("A", "B")

    alone = group.propose("A", "alone")
    for _ in range(4):
        group.tick("A")
        group.clock.now += 0.02

    assert alone.committed is group.plain  # by one of three
    assert ("alone" in group.history("A")) is group.plain


def test_settings_that_do_not_exist_are_refused():
    assert not hasattr(SyncObjConf(flushJournal=True), "flushJournal")  # the plain library: not a word
    with pytest.raises(TypeError, match="flush_journal"):
        Limits(flush_journal=True)
