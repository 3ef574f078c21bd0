"""What must hold, and what must be remembered to see whether it does.

The ledger stands outside: it survives crashes and wiped disks. Each check is cheap enough to be made at every step.
"""

from typing import Any

from tiflow.raft import raft_pb2 as pb
from tiflow.raft.journal import Journal, Recovered


class Violation(AssertionError):
    """A promise of consensus was broken."""


class Ledger:
    def __init__(self) -> None:
        self.step = 0
        self.applied: list[str] = []  # the commands, in the order of the log
        self.leaders: dict[int, tuple[str, int]] = {}  # term → who, since which step
        self.denied: set[str] = set()  # commands whose client was told that they did not happen
        self._entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}  # (index, term) → command, term before
        self._committed: dict[int, tuple[int, int]] = {}  # index → its term, the term in which it was known first
        self._votes: dict[tuple[str, int], str] = {}  # (member, term) → for whom
        self._promised: dict[str, int] = {}  # the highest term that a member's votes and acknowledgements had
        self._owed: dict[str, int] = {}  # the highest one of those on which another member relies
        self._helped: dict[str, tuple[int, int]] = {}  # newest term in which it acknowledged, and up to where
        self._forgotten: dict[str, tuple[int, int]] = {}  # the same, of a wiped one
        self._acknowledged: dict[str, int] = {}  # index up to which a member said to have its leader's log

    # --- told by the members

    def logged(self, command: bytes, index: int, term: int, term_before: int | None) -> None:
        """Log matching: an index and a term name one entry, with one log before it."""
        known = self._entries.setdefault((index, term), (command, term_before))
        if known[0] != command or None is not known[1] != term_before is not None:
            raise Violation(f"two entries {index} of term {term}: {known}, {(command, term_before)}")

    def has_applied(self, position: int, command: str) -> None:
        """State machine safety: all apply the same, in one order, and nothing that was denied."""
        if position == len(self.applied):
            self.applied.append(command)
            if command in self.denied:
                raise Violation(f"{command} is applied, and its client was told that it did not happen")
        elif self.applied[position] != command:
            raise Violation(f"command {position} is {command} here, {self.applied[position]} elsewhere")

    def restored(self, commands: list[str]) -> None:
        if commands != self.applied[: len(commands)]:
            raise Violation(f"a snapshot holds {commands[-3:]}, applied was {self.applied[-3:]}")

    def sent(self, sender: str, receiver: str, message: pb.Message) -> None:
        """Promises: terms do not go back, and there is one vote in each; not even a wiped member takes one back."""
        kind = message.WhichOneof("body")
        if kind not in ("vote_request", "vote_reply", "append_reply"):
            return
        term = message.term
        if term < self._promised.get(sender, 0):
            raise Violation(f"{sender} sends {kind} of term {term} after one of term {self._promised[sender]}")
        self._promised[sender] = term
        if kind == "append_reply":
            self._owed[sender] = term
            if message.append_reply.success:
                verified = message.append_reply.next_index - 1
                self._acknowledged[sender] = max(self._acknowledged.get(sender, 0), verified)
                self._helped[sender] = max(self._helped.get(sender, (0, 0)), (term, verified))
            return
        if kind == "vote_reply":
            self._owed[sender] = self._owed[receiver] = term
        candidate = sender if kind == "vote_request" else receiver
        if self._votes.setdefault((sender, term), candidate) != candidate:
            raise Violation(f"{sender} votes for {self._votes[sender, term]} and for {candidate} in term {term}")

    def truncated(self, name: str, last: int) -> None:
        """A leader had `name` cut its log, with what it had acknowledged to another one."""
        self._acknowledged[name] = min(self._acknowledged.get(name, 0), last)

    def wiped(self, name: str) -> None:
        """Only its own candidacies for which nobody has voted may be forgotten."""
        self._acknowledged.pop(name, None)
        helped_in, last = self._helped.pop(name, (0, 0))
        forgotten = (helped_in, min(last, max(self._committed, default=0)))
        self._forgotten[name] = max(self._forgotten.get(name, (0, 0)), forgotten)
        owed = self._promised[name] = self._owed.get(name, 0)
        self._votes = {key: vote for key, vote in self._votes.items() if key[0] != name or key[1] <= owed}

    # --- looked up in the members

    def recovered(self, name: str, journal: Journal) -> None:
        """Durability: who comes back as a member remembers what it promised."""
        term = self._promised.get(name, 0)
        if journal.term < term:
            raise Violation(f"{name} is back with term {journal.term}; it had promised {term}")
        vote = self._votes.get((name, journal.term))
        if vote is not None and journal.vote not in (vote, "?"):
            raise Violation(f"{name} is back with a vote for {journal.vote} in term {term}; it was for {vote}")
        if journal.last_index < self._acknowledged.get(name, 0):
            raise Violation(
                f"{name} is back with {journal.last_index} entries of {self._acknowledged[name]} that it had"
            )

    def may_vote_again(self, name: str, journal: Journal) -> None:
        """Who lost its disk has again what it had acknowledged and what was committed by that."""
        helped_in, last = self._forgotten.pop(name, (0, 0))
        for index in range(journal.first_index, last + 1):
            term, known_in = self._committed.get(index, (0, helped_in + 1))
            if known_in <= helped_in and journal.term_of(index) != term:
                raise Violation(f"{name} votes again, without entry {index}, which it had helped to commit")

    def committed(self, name: str, index: int, term: int, current_term: int) -> None:
        known = self._committed.setdefault(index, (term, current_term))
        if known[0] != term:
            raise Violation(f"{name} commits entry {index} of term {term}, another of term {known[0]}")

    def leads(self, name: str, journal: Journal, term: int) -> None:
        """Election safety and leader completeness."""
        leader, _ = self.leaders.setdefault(term, (name, self.step))
        if leader != name:
            raise Violation(f"two leaders in term {term}: {leader} and {name}")
        for index in range(max(journal.first_index, 1), max(self._committed, default=0) + 1):
            entry_term, known_in = self._committed.get(index, (0, term))
            if known_in < term and journal.term_of(index) != entry_term:
                raise Violation(f"{name} leads term {term} without the committed entry {index} of term {entry_term}")

    def confirmed(self, name: str, term: int, asked: int) -> None:
        """A majority was said to have confirmed, after step `asked`, that `name` leads in `term`."""
        for newer, (other, since) in self.leaders.items():
            if newer > term and since < asked and other != name:
                raise Violation(
                    f"{name} of term {term} renews a lease at step {self.step} that it was asked for at {asked}; "
                    f"since {since} {other} leads term {newer}, and may have let it expire"
                )


class WatchedJournal(Journal):
    """The journal of a member, which tells the ledger of each change."""

    def __init__(self, recovered: Recovered, submit: Any, *, name: str, ledger: Ledger) -> None:
        super().__init__(recovered, submit)
        self._name = name
        self._ledger = ledger

    def add(self, command: bytes, idx: int, term: int) -> None:
        before = self.term_of(idx - 1) if len(self) else None
        super().add(command, idx, term)
        self._ledger.logged(command, idx, term, before)

    def deleteEntriesFrom(self, place: int) -> None:
        super().deleteEntriesFrom(place)
        self._ledger.truncated(self._name, self.last_index)

    def adopt_snapshot(self, index: int, term: int) -> None:
        kept = self.term_of(index) == term
        super().adopt_snapshot(index, term)
        if not kept:
            self._ledger.truncated(self._name, index)
