"""pysyncobj's messages, which are dicts, as protobuf. What has no place here can not be sent, nor received.

Left out on purpose: forwarded commands (writes go to the leader), `transmission` (entries are smaller than a
message) and everything that pysyncobj would pickle.
"""

from typing import Any

from tiflow.raft import raft_pb2 as pb

Message = dict[str, Any]

#: the first byte of a command; pysyncobj's other kinds change members or versions, and carry pickles
REGULAR, NO_OP = b"\x00", b"\x01"
_KINDS_ALLOWED = frozenset({REGULAR[0], NO_OP[0]})


class BadMessage(ValueError):
    """A peer said what a peer can not say."""


def encode(message: Message, term: int) -> pb.Message:
    """`term` is the sender's at this moment, not at the time when the message leaves."""
    kind = message["type"]
    if kind == "append_entries" and "chunk" in message:
        index, offset, data, last = message["chunk"]
        chunk = pb.SnapshotChunk(
            commit_index=message["commit_index"],
            round=message["round"],
            index=index,
            offset=offset,
            data=data,
            last=last,
        )
        return pb.Message(term=term, snapshot_chunk=chunk)
    if kind == "append_entries":
        entries = message["entries"]
        append = pb.AppendEntries(
            commit_index=message["commit_index"],
            round=message["round"],
            previous_index=message["prevLogIdx"],
            previous_term=message["prevLogTerm"],
            commands=[entry[0] for entry in entries],
            terms=[entry[2] for entry in entries],
        )
        return pb.Message(term=term, append_entries=append)
    if kind == "next_node_idx":
        reply = pb.AppendReply(
            next_index=message["next_node_idx"],
            success=message["success"],
            reset=message["reset"],
            round=message["round"],
            snapshot_offset=message["snapshot_offset"],
        )
        return pb.Message(term=term, append_reply=reply)
    if kind == "request_vote":
        vote = pb.VoteRequest(last_index=message["last_log_index"], last_term=message["last_log_term"])
        return pb.Message(term=term, vote_request=vote)
    if kind == "response_vote":
        return pb.Message(term=term, vote_reply=pb.VoteReply())
    if kind == "pre_vote":
        ask = pb.PreVoteRequest(
            id=message["id"], last_index=message["last_log_index"], last_term=message["last_log_term"]
        )
        return pb.Message(term=term, pre_vote_request=ask)
    if kind == "pre_vote_reply":
        answer = pb.PreVoteReply(id=message["id"], granted=message["granted"])
        return pb.Message(term=term, pre_vote_reply=answer)
    if kind == "timeout_now":
        return pb.Message(term=term, timeout_now=pb.TimeoutNow())
    raise AssertionError(f"pysyncobj wants to send {kind}, which we never use")


def decode(message: pb.Message) -> Message:
    """Raises BadMessage."""
    kind = message.WhichOneof("body")
    term = message.term
    if kind == "append_entries":
        append = message.append_entries
        if len(append.commands) != len(append.terms):
            raise BadMessage(f"{len(append.commands)} commands with {len(append.terms)} terms")
        first = append.previous_index + 1
        entries = [
            (command, index, entry_term)
            for index, (command, entry_term) in enumerate(zip(append.commands, append.terms, strict=True), first)
        ]
        for command, index, _ in entries:
            if not command or command[0] not in _KINDS_ALLOWED:
                raise BadMessage(f"entry {index} is of a kind that changes members or versions")
        return {
            "type": "append_entries",
            "term": term,
            "commit_index": append.commit_index,
            "round": append.round,
            "prevLogIdx": append.previous_index,
            "prevLogTerm": append.previous_term,
            "entries": entries,
        }
    if kind == "snapshot_chunk":
        chunk = message.snapshot_chunk
        return {
            "type": "append_entries",
            "term": term,
            "commit_index": chunk.commit_index,
            "round": chunk.round,
            "chunk": (chunk.index, chunk.offset, chunk.data, chunk.last),
        }
    if kind == "append_reply":
        reply = message.append_reply
        return {
            "type": "next_node_idx",
            "term": term,
            "next_node_idx": reply.next_index,
            "success": reply.success,
            "reset": reply.reset,
            "round": reply.round,
            "snapshot_offset": reply.snapshot_offset,
        }
    if kind == "vote_request":
        vote = message.vote_request
        return {
            "type": "request_vote",
            "term": term,
            "last_log_index": vote.last_index,
            "last_log_term": vote.last_term,
        }
    if kind == "vote_reply":
        return {"type": "response_vote", "term": term}
    if kind == "pre_vote_request":
        ask = message.pre_vote_request
        return {
            "type": "pre_vote",
            "term": term,
            "id": ask.id,
            "last_log_index": ask.last_index,
            "last_log_term": ask.last_term,
        }
    if kind == "pre_vote_reply":
        answer = message.pre_vote_reply
        return {"type": "pre_vote_reply", "term": term, "id": answer.id, "granted": answer.granted}
    if kind == "timeout_now":
        return {"type": "timeout_now", "term": term}
    raise BadMessage("a message without a body")
