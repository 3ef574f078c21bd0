"""How much a plan looks at in vain.

A job of which nothing can be placed now, since no executor that fits is there or no retry is due, costs a look. A
hundred thousand of them would keep the leader from everything else for seconds, in each plan. So a plan looks at
some, and the next one goes on where it ended. Who wants what another one was not given is passed over for next to
nothing.
"""

from collections.abc import Sequence
from typing import TypeAlias

from msgspec import Struct

LOOKS_MAX = 250  #: in vain, of one plan, all queues together: about 10 ms
PASSED_PER_LOOK = 20  #: jobs that are passed over cost as much as one look
TESTS_PER_LOOK = 50  #: labels that are held against a selector do
STEPS_MAX = 500_000  #: of regular expressions whose verdicts are not known yet, see `selectors`: 10 ms
UNFINISHED_MAX = 200  #: plans in a row that spent them all; then there are more than can be remembered

Line: TypeAlias = tuple[int, str]  #: priority and project of a queue


class Walk(Struct):
    """Along a queue, for one plan."""

    line: Line
    uids: Sequence[int]
    left: int  #: what it may still cost, in jobs that are passed over
    seen: int = 0  #: jobs

    @property
    def too_far(self) -> bool:
        return self.left <= 0

    def passed(self) -> None:
        self.left -= 1

    def looked_in_vain(self, tested: int) -> None:
        """`tested`: labels."""
        self.left -= PASSED_PER_LOOK + tested * PASSED_PER_LOOK // TESTS_PER_LOOK


class Looks:
    """What a plan leaves for the next one. Kept by who makes them.

    Attributes:
        cut: there are jobs that no plan has looked at since this was False last: plan again, though nothing may have
            come of it.
    """

    def __init__(self, cost_max: int = LOOKS_MAX * PASSED_PER_LOOK) -> None:
        self.cut = False
        self._cost_max = cost_max
        self._unfinished = 0  #: plans in a row
        self._at: dict[Line, int] = {}  #: uid of the job with which to go on
        self._seen: dict[Line, int] = {}  #: jobs of the queue, since then

    def begin(self, lines: int) -> int:
        """A plan over so many queues begins. Returns: what each walk may cost."""
        self.cut = False
        return max(PASSED_PER_LOOK, self._cost_max // max(1, lines))

    def at(self, line: Line) -> int | None:
        """The uid with which to go on; None: as usual."""
        return self._at.get(line)

    def end_plan(self, *, finished: bool) -> None:
        """`finished`: all that regular expressions had to say was found out."""
        self._unfinished = 0 if finished else self._unfinished + 1
        self.cut = self.cut or 0 < self._unfinished <= UNFINISHED_MAX

    def end(self, walk: Walk) -> None:
        line = walk.line
        if walk.seen == len(walk.uids):
            self._at.pop(line, None)
            self._seen.pop(line, None)
        elif walk.too_far or line in self._at:
            self._at[line] = walk.uids[walk.seen]
            seen = self._seen.get(line, 0) + walk.seen
            over = seen >= len(walk.uids)
            self._seen[line] = 0 if over else seen
            self.cut = self.cut or (walk.too_far and not over)
