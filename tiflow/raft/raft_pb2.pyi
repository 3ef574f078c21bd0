from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("hello", "messages")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "cluster_id", "name", "members", "fresh", "term", "origin", "format", "protocol_oldest", "session")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_OLDEST_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    cluster_id: str
    name: str
    members: _containers.RepeatedScalarFieldContainer[str]
    fresh: bool
    term: int
    origin: str
    format: int
    protocol_oldest: int
    session: int
    def __init__(self, protocol: _Optional[int] = ..., cluster_id: _Optional[str] = ..., name: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ..., fresh: _Optional[bool] = ..., term: _Optional[int] = ..., origin: _Optional[str] = ..., format: _Optional[int] = ..., protocol_oldest: _Optional[int] = ..., session: _Optional[int] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("term", "append_entries", "snapshot_chunk", "append_reply", "vote_request", "vote_reply", "pre_vote_request", "pre_vote_reply", "timeout_now")
    TERM_FIELD_NUMBER: _ClassVar[int]
    APPEND_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_CHUNK_FIELD_NUMBER: _ClassVar[int]
    APPEND_REPLY_FIELD_NUMBER: _ClassVar[int]
    VOTE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    PRE_VOTE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    PRE_VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NOW_FIELD_NUMBER: _ClassVar[int]
    term: int
    append_entries: AppendEntries
    snapshot_chunk: SnapshotChunk
    append_reply: AppendReply
    vote_request: VoteRequest
    vote_reply: VoteReply
    pre_vote_request: PreVoteRequest
    pre_vote_reply: PreVoteReply
    timeout_now: TimeoutNow
    def __init__(self, term: _Optional[int] = ..., append_entries: _Optional[_Union[AppendEntries, _Mapping]] = ..., snapshot_chunk: _Optional[_Union[SnapshotChunk, _Mapping]] = ..., append_reply: _Optional[_Union[AppendReply, _Mapping]] = ..., vote_request: _Optional[_Union[VoteRequest, _Mapping]] = ..., vote_reply: _Optional[_Union[VoteReply, _Mapping]] = ..., pre_vote_request: _Optional[_Union[PreVoteRequest, _Mapping]] = ..., pre_vote_reply: _Optional[_Union[PreVoteReply, _Mapping]] = ..., timeout_now: _Optional[_Union[TimeoutNow, _Mapping]] = ...) -> None: ...

class AppendEntries(_message.Message):
    __slots__ = ("commit_index", "round", "previous_index", "previous_term", "commands", "terms")
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TERM_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    commit_index: int
    round: int
    previous_index: int
    previous_term: int
    commands: _containers.RepeatedScalarFieldContainer[bytes]
    terms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, commit_index: _Optional[int] = ..., round: _Optional[int] = ..., previous_index: _Optional[int] = ..., previous_term: _Optional[int] = ..., commands: _Optional[_Iterable[bytes]] = ..., terms: _Optional[_Iterable[int]] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("commit_index", "round", "index", "offset", "data", "last")
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    commit_index: int
    round: int
    index: int
    offset: int
    data: bytes
    last: bool
    def __init__(self, commit_index: _Optional[int] = ..., round: _Optional[int] = ..., index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class AppendReply(_message.Message):
    __slots__ = ("next_index", "success", "reset", "round", "snapshot_offset")
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    next_index: int
    success: bool
    reset: bool
    round: int
    snapshot_offset: int
    def __init__(self, next_index: _Optional[int] = ..., success: _Optional[bool] = ..., reset: _Optional[bool] = ..., round: _Optional[int] = ..., snapshot_offset: _Optional[int] = ...) -> None: ...

class VoteRequest(_message.Message):
    __slots__ = ("last_index", "last_term")
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    last_index: int
    last_term: int
    def __init__(self, last_index: _Optional[int] = ..., last_term: _Optional[int] = ...) -> None: ...

class VoteReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PreVoteRequest(_message.Message):
    __slots__ = ("id", "last_index", "last_term")
    ID_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    id: int
    last_index: int
    last_term: int
    def __init__(self, id: _Optional[int] = ..., last_index: _Optional[int] = ..., last_term: _Optional[int] = ...) -> None: ...

class PreVoteReply(_message.Message):
    __slots__ = ("id", "granted")
    ID_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    id: int
    granted: bool
    def __init__(self, id: _Optional[int] = ..., granted: _Optional[bool] = ...) -> None: ...

class TimeoutNow(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
