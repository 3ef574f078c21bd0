import pytest

from tiflow.raft import raft_pb2 as pb
from tiflow.raft.codec import BadMessage, decode, encode

MESSAGES = [
    {
        "type": "append_entries",
        "term": 3,
        "commit_index": 7,
        "round": 2,
        "prevLogIdx": 9,
        "prevLogTerm": 2,
        "entries": [(b"\x00one", 10, 3), (b"\x01", 11, 3)],
    },
    {"type": "append_entries", "term": 3, "commit_index": 7, "round": 2, "chunk": (40, 256, b"state", True)},
    {
        "type": "next_node_idx",
        "term": 3,
        "next_node_idx": 12,
        "success": True,
        "reset": False,
        "round": 2,
        "snapshot_offset": 0,
    },
    {"type": "request_vote", "term": 4, "last_log_index": 11, "last_log_term": 3},
    {"type": "response_vote", "term": 4},
    {"type": "pre_vote", "term": 3, "id": 5, "last_log_index": 11, "last_log_term": 3},
    {"type": "pre_vote_reply", "term": 3, "id": 5, "granted": True},
    {"type": "timeout_now", "term": 3},
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_a_message_arrives_as_it_was_sent(message):
    wire = encode(message, message["term"]).SerializeToString()

    assert decode(pb.Message.FromString(wire)) == message


@pytest.mark.parametrize("command", [b"\x02pickle", b"\x03pickle", b""])
def test_refuses_entries_that_would_change_members_or_versions(command):
    append = pb.AppendEntries(previous_index=1, commands=[command], terms=[1])

    with pytest.raises(BadMessage, match="entry 2"):
        decode(pb.Message(term=1, append_entries=append))


def test_refuses_a_message_without_a_body():
    with pytest.raises(BadMessage):
        decode(pb.Message(term=1))


@pytest.mark.parametrize("kind", ["apply_command", "apply_command_response"])
def test_never_forwards_a_command(kind):
    with pytest.raises(AssertionError, match=kind):
        encode({"type": kind, "command": b"x"}, 1)
