"""Messages that come late, twice or from a liar, given to cores by hand."""

import pytest

from tests.unit.raft.groups import OurGroup, patch_clock
from tiflow.raft import raft_pb2 as pb
from tiflow.raft.codec import BadMessage


@pytest.fixture
def make_group(tmp_path, monkeypatch):
    groups = []

    def make(names="ABC"):
        groups.append(OurGroup(tmp_path, patch_clock(monkeypatch), names))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def appended(group, sender, receiver):
    """The commands of the appends that are on their way."""
    messages = [pb.Message.FromString(message) for message in group.wire(sender, receiver)]
    return [bytes(command[1:]) for message in messages for command in message.append_entries.commands]


def asks_pre_votes(group, name):
    """Its patience has ended. Returns the grant of C, which hears no leader either, and which is late."""
    group.cores["C"]._leader_heard_at = -1e9
    group.cores[name]._deadline = 0.0
    group.tick(name)
    group.deliver(name, "C")
    return group.take("C", name, "pre_vote_reply")


def test_a_late_vote_of_an_older_term_does_not_make_one_count_twice(make_group):
    group = make_group("ABCDE")
    group.campaign("A")
    group.deliver("A", "C")
    late = group.take("C", "A", "response_vote")
    for other in "CDE":
        group.cut("A", other)
    group.campaign("A")
    group.deliver("A", "B")
    group.deliver("A", "B")
    vote = group.take("B", "A", "response_vote")

    for message, sender in ((vote, "B"), (late, "C"), (vote, "B")):
        group.give(sender, "A", message)

    assert group.leaders() == {}  # two of five are for A in this term


def test_a_pre_vote_that_comes_after_the_leader_was_heard_deposes_nobody(make_group):
    group = make_group()
    group.lead("A")
    group.settle()
    grant = asks_pre_votes(group, "B")
    group.cores["A"].send_round()
    group.deliver("A", "B")

    group.give("C", "B", grant)
    group.settle(2)

    assert list(group.leaders()) == ["A"]


def test_who_has_voted_for_another_does_not_campaign_with_old_pre_votes(make_group):
    group = make_group()
    group.lead("A")
    group.settle()
    group.isolate("A")
    grant = asks_pre_votes(group, "B")
    group.campaign("C")
    group.deliver("C", "B")
    term = group.cores["C"].raftCurrentTerm

    group.give("C", "B", grant)
    group.settle(3)

    assert {name: led for name, led in group.leaders().items() if name != "A"} == {"C": term}


def test_what_is_on_its_way_is_not_sent_again(make_group):
    group = make_group()
    group.lead("A")
    group.settle()
    group.tick("A")  # its heartbeat is due
    group.deliver_all()
    for text in ("first", "second"):
        group.propose("A", text)
        group.tick("A")
    assert appended(group, "A", "B") == [b"first", b"second"]

    group.deliver("A", "B")
    group.deliver("B", "A")

    assert appended(group, "A", "B") == [b"second"]


@pytest.mark.parametrize(
    "lie", [{"reset": True}, {"next_index": 1, "reset": True}, {"next_index": 99, "success": True}]
)
def test_an_answer_about_entries_that_do_not_exist_ends_the_stream_and_no_more(make_group, lie):
    group = make_group()
    group.lead("A")
    group.settle()
    group.propose("A", "a")
    reply = pb.Message(term=group.cores["A"].raftCurrentTerm, append_reply=pb.AppendReply(**lie))

    with pytest.raises(BadMessage, match="our log ends at"):
        group.give("B", "A", reply.SerializeToString())

    group.settle()
    assert group.history("A") == ["a"]
