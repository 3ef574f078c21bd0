"""Bugs that the simulation must find: each reopens one hole that tiflow.raft closes.

A bug is one or more edits of the source of a function, made in memory while a schedule runs. An edit whose text is no
longer there is an error: who rewrites a guard plants it again.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import pysyncobj
from msgspec import Struct

from tiflow.raft.core import Core
from tiflow.raft.election import Election
from tiflow.raft.journal import JournalFile, Recovered
from tiflow.raft.library import Limits
from tiflow.raft.node import RaftNode
from tiflow.raft.replication import Replication
from tiflow.raft.snapshot import SnapshotStore, _Save
from tiflow.raft.transport import HeldTransport


class Edit(Struct, frozen=True):
    """In the source of `owner.function` write `after` where `before` stands, once."""

    owner: type
    function: str
    before: str
    after: str


class Plant(Struct, frozen=True):
    """`changes` are made to the weather, so that it is likely to be met; `seeds` are pinned: they found it.

    Without seeds it is one that chance meets too rarely, and has a story in stories.py.
    """

    edits: tuple[Edit, ...]
    seeds: tuple[int, ...] = ()
    changes: Mapping[str, Any] = {}


_BATCHES: Final = Limits(snapshot_entries=10**9, append_bytes=6)
_SNAPSHOTS: Final = {"limits": Limits(snapshot_entries=6, kept_entries=0, append_bytes=6)}
_ONE_CHUNK: Final = _SNAPSHOTS | {"chunk_bytes": 1 << 18}
PLANTS: Final[dict[str, Plant]] = {
    # persist before send
    "vote-before-persist": Plant(
        (Edit(HeldTransport, "send", "in _PROMISES", 'in _PROMISES - {"response_vote"}'),),
        changes={"power": 0.01},
        seeds=(5, 12, 13),
    ),
    "candidacy-before-persist": Plant(
        (Edit(HeldTransport, "send", "in _PROMISES", 'in _PROMISES - {"request_vote"}'),),
        changes={"power": 0.01},
        seeds=(2, 36, 41),
    ),
    "ack-before-persist": Plant(
        (Edit(HeldTransport, "send", "in _PROMISES", 'in _PROMISES - {"next_node_idx"}'),),
        seeds=(0, 1, 2),
    ),
    "leader-counts-itself-early": Plant(
        (
            Edit(
                Core,
                "_SyncObj__raftCommitIndex",
                "min(self._commit_known, self._journal.durable_index)",
                "self._commit_known",
            ),
        ),
        seeds=(0, 1, 2),
    ),
    "apply-beyond-durable": Plant(
        (Edit(Core, "_SyncObj__applyLogEntries", "min(self._SyncObj__raftCommitIndex,", "min(self._commit_known,"),),
        seeds=(0, 2),
    ),
    # the journal
    "no-fsync": Plant(
        (Edit(JournalFile, "_append", "os.fdatasync(self._fd)", "pass"),),
        changes={"power": 0.01},
        seeds=(1, 2, 3),
    ),
    "no-fsync-at-start": Plant((Edit(JournalFile, "__init__", "os.fdatasync(self._fd)", "pass"),)),  # by a story
    "torn-tail-kept": Plant(
        (
            Edit(JournalFile, "_cut_tail", "file.truncate(offset)", "pass"),
            Edit(JournalFile, "_recover", "return offset", "return len(data)"),
        ),
        changes={"power": 0.02},
        seeds=(165, 176, 185),
    ),
    "damage-skipped": Plant(
        (Edit(JournalFile, "_recover", "not newest or not is_torn(data, offset)", "not newest"),),
        changes={"flip": 0.01, "kill": 0.01},
        seeds=(1, 2),
    ),
    "vote-forgotten-at-restart": Plant(
        (Edit(Recovered, "replay", "record.payload.decode() or None", "None"),),
        changes={"kill": 0.01, "power": 0.005},
        seeds=(1, 2, 3),
    ),
    # appends
    "append-truncates": Plant(
        (Edit(Replication, "_take_append", "self._repaired(message)", "message"),),
        seeds=(2, 5, 8),
    ),
    "commit-not-verified": Plant(
        (Edit(Replication, "_repaired", 'min(message["commit_index"], verified)', 'message["commit_index"]'),),
        changes={"split": 0.01, "isolate": 0.01, "clients": 0.2, "pace_s": 0.4, "limits": _BATCHES},
        seeds=(5, 155, 156),
    ),
    "chunk-commits": Plant(
        (Edit(Replication, "_take_append", 'message | {"commit_index": self._commit_known}', "message"),),
        changes=_SNAPSHOTS | {"chunk_bytes": 16},
        seeds=(0, 5, 9),
    ),
    "stale-acknowledgement": Plant(  # by a story
        (Edit(Replication, "_take_reply", 'message["term"] != self.raftCurrentTerm or ', ""),)
    ),
    "match-kept-on-reconnect": Plant(
        (Edit(Election, "_SyncObj__onNodeConnected", "self.state == LEADER", "False"),),
        changes={"wipe": 0.01},
        seeds=(2, 12),
    ),
    "commits-earlier-term": Plant(
        (
            Edit(
                Replication, "_advance_commit", " and self._journal.term_of(of_majority) == self.raftCurrentTerm", ""
            ),
        ),
        changes={"isolate": 0.01, "cut": 0.01},
        seeds=(6, 9, 21),
    ),
    # elections
    "votes-for-short-logs": Plant(
        (
            Edit(Election, "_answer_pre_vote", "self.may_vote and up_to_date and", "self.may_vote and"),
            Edit(
                pysyncobj.SyncObj,
                "_SyncObj__onMessageReceived",
                "if lastLogTerm < self.__getCurrentLogTerm():",
                "if False:",
            ),
            Edit(
                pysyncobj.SyncObj,
                "_SyncObj__onMessageReceived",
                "if lastLogTerm == self.__getCurrentLogTerm() and",
                "if False and",
            ),
        ),
        seeds=(2, 5),
    ),
    "no-pre-vote": Plant(
        (Edit(Election, "_ask_pre_votes", "if not self.peers:", "if True:"),),
        changes={"members": 3},
        seeds=(2, 6, 7),
    ),
    # members that lost their disk
    "no-term-floor": Plant(
        (Edit(Core, "join", "term_floor > self.raftCurrentTerm", "False"),),
        changes={"wipe": 0.01, "isolate": 0.01},
        seeds=(4, 16, 42),
    ),
    "votes-without-catching-up": Plant(
        (Edit(Core, "join", "= may_vote", "= True"),),
        changes={"wipe": 0.01},
        seeds=(2, 3, 4),
    ),
    "catches-up-too-soon": Plant(
        (
            Edit(
                Core,
                "_catch_up",
                "commit >= self._catch_up_target[1] and self._journal.term_of(commit) == term",
                "True",
            ),
        ),
        changes={"wipe": 0.01},
        seeds=(2, 4, 5),
    ),
    "catches-up-with-old-term": Plant(
        (Edit(Core, "_catch_up", " and self._journal.term_of(commit) == term", ""),),
        changes={
            "wipe": 0.01,
            "kill": 0.02,
            "limits": _BATCHES,
            "clients": 0.2,
        },
        seeds=(3, 12, 16),
    ),
    # snapshots
    "older-snapshot": Plant(
        (
            Edit(Core, "_take_chunk", "index <= self.raftLastApplied", "False"),
            Edit(Core, "_install", "result.index > self.raftLastApplied and not", "not"),
            Edit(SnapshotStore, "install", "snapshot.index > self.index", "True"),
        ),
        changes=_ONE_CHUNK | {"double": 0.2, "shuffle": 0.5, "drop": 0.1},
        seeds=(12, 75),
    ),
    "damaged-snapshot-ignored": Plant(
        (
            Edit(
                SnapshotStore,
                "load",
                "    snapshot = read_snapshot(self._path)\n",
                "    try:\n        snapshot = read_snapshot(self._path)\n"
                "    except SnapshotDamaged:\n        return None\n",
            ),
            Edit(Core, "_restore", "self._journal.first_index > 1", "False"),
        ),
        changes=_SNAPSHOTS | {"flip": 0.01, "kill": 0.01},
        seeds=(2, 12, 16),
    ),
    "snapshot-not-synced": Plant(
        (Edit(_Save, "finish", "os.fsync(self._file.fileno())", "pass"),),
        changes=_SNAPSHOTS | {"power": 0.01},
        seeds=(1, 4),
    ),
    # clients
    "read-without-barrier": Plant(
        (
            Edit(
                RaftNode,
                "barrier",
                "self._check_leader()",
                "self._check_leader()\n    return self._core.raftLastApplied",
            ),
        ),
        changes={"isolate": 0.01, "pause": 0.01},
        seeds=(6, 12, 35),
    ),
    "paused-leader-renews": Plant(
        (Edit(RaftNode, "_round_is_over", "number >= current.number", "number > 0"),),
        changes={"pause": 0.01, "isolate": 0.01},
        seeds=(35, 73, 106),
    ),
    "leads-before-its-first-entry": Plant(
        (Edit(Core, "leading", " and self._leading_term == self.raftCurrentTerm", ""),),
        seeds=(19, 117, 207),
    ),
    "unknown-said-as-failed": Plant(
        (Edit(Core, "_abandon", "Lost(outcome_unknown=True)", "Lost(outcome_unknown=False)"),),
        seeds=(1, 2, 3),
    ),
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Reopen the hole of that name; with None nothing. Raises LookupError if its text is not in the source."""
    with ExitStack() as stack:
        for (owner, function), edits in _by_function(PLANTS[name].edits if name else ()).items():
            original = inspect.getattr_static(owner, function)
            changed = _edited(owner, original.fget if isinstance(original, property) else original, edits)
            if isinstance(original, property):
                changed = property(changed, original.fset)
            stack.enter_context(mock.patch.object(owner, function, changed))
        yield


def _by_function(edits: tuple[Edit, ...]) -> dict[tuple[type, str], list[Edit]]:
    functions: dict[tuple[type, str], list[Edit]] = {}
    for edit in edits:
        functions.setdefault((edit.owner, edit.function), []).append(edit)
    return functions


def _edited(owner: type, original: Callable[..., Any], edits: list[Edit]) -> Any:
    source = textwrap.dedent(inspect.getsource(original))
    for edit in edits:
        if source.count(edit.before) != 1:
            raise LookupError(f"{owner.__name__}.{edit.function} has not one {edit.before!r}")
        source = source.replace(edit.before, edit.after)
    # in a class of the same name, for the sake of private names
    scope: dict[str, Any] = {}
    text = f"class {owner.__name__}:\n{textwrap.indent(source, '    ')}"
    exec(compile(text, f"<{owner.__name__}>", "exec"), original.__globals__, scope)
    changed = vars(scope[owner.__name__])[edits[0].function]
    function = changed.fget if isinstance(changed, property) else changed
    if "__class__" in function.__code__.co_freevars:  # super() without arguments
        function.__closure__[function.__code__.co_freevars.index("__class__")].cell_contents = owner
    return function
