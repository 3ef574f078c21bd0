"""Is a recorded history linearizable? Wing and Gong's search with Lowe's memo, as in Porcupine, key by key.

Keys are independent of one another, so that a history is linearizable if that of each key is (Horn and Kroening,
P-compositionality). The search is exponential at worst: keep a key below a hundred operations.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

UNKNOWN: Final = float("inf")
STATES_MAX: Final = 200_000


class Operation(Struct):
    """What a client asked and was told. Times are of one clock of the test, and only their order counts.

    `returned` stays UNKNOWN when no answer came, or one that does not say whether it happened: then it may have taken
    effect at any time after `called`, or never. An operation that certainly did not happen is not in a history.
    """

    key: Hashable
    called: float
    input: Any
    returned: float = UNKNOWN
    output: Any = None


#: (state, input, output) → the state after it, or None if this output is impossible. `output` is None if unknown.
Step = Callable[[Any, Any, Any], Hashable | None]
#: the operations of a key → its first state, and the step
Model = Callable[[Sequence[Operation]], tuple[Hashable, Step]]


def growing_list(operations: Sequence[Operation]) -> tuple[Hashable, Step]:
    """Input ("append", value) → the new length, ("read",) → all values, as a tuple. Values are appended once."""
    reads = [one.output for one in operations if one.input[0] == "read" and one.returned != UNKNOWN]
    longest = max(reads, key=len, default=())
    lengths = [one.output for one in operations if one.input[0] == "append" and one.returned != UNKNOWN]
    seen = max([len(longest), *lengths])

    def step(state: Any, asked: Any, answer: Any) -> Hashable | None:
        if asked[0] == "read":
            return state if answer == state else None
        length = len(state) + 1
        if answer not in (None, length):
            return None
        # without these two the search would be exponential in the number of unknown outcomes
        if length > seen:
            return None  # nobody has seen it, so nothing needs it
        if length <= len(longest) and longest[length - 1] != asked[1]:
            return None  # would contradict a read that is still to come
        return (*state, asked[1])

    return (), step


def register(_: Sequence[Operation]) -> tuple[Hashable, Step]:
    """Input ("write", value) → anything, ("read",) → the value. It begins as 0."""

    def step(state: Any, asked: Any, answer: Any) -> Hashable | None:
        if asked[0] == "write":
            return asked[1]
        return state if answer == state else None

    return 0, step


def find_anomaly(history: Iterable[Operation], model: Model) -> list[Operation] | None:
    """The operations of a key that no order explains, by time of call; None: the history is linearizable.

    Raises RuntimeError if a key's search exceeds STATES_MAX states.
    """
    by_key: dict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        if operation.returned != UNKNOWN or operation.input[0] != "read":  # a read without an answer says nothing
            by_key[operation.key].append(operation)
    for _, operations in sorted(by_key.items(), key=lambda item: str(item[0])):
        operations.sort(key=lambda operation: operation.called)
        if not _is_linearizable(operations, *model(operations)):
            return operations
    return None


def picture(operations: list[Operation]) -> str:
    """One line for each operation: when it began and ended, what was asked and answered."""
    lines = []
    for one in operations:
        end = "?" if one.returned == UNKNOWN else f"{one.returned:g}"
        lines.append(f"  {one.called:>8g} … {end:<8} {one.input} → {one.output}")
    return "\n".join(lines)


def _is_linearizable(operations: list[Operation], initial: Hashable, step: Step) -> bool:
    count = len(operations)
    must = sum(1 << place for place, one in enumerate(operations) if one.returned != UNKNOWN)
    visited: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        left = [place for place in range(count) if not done >> place & 1]
        # whatever was called after another one had returned comes after it
        horizon = min(operations[place].returned for place in left)
        next_ones = [place for place in left if operations[place].called <= horizon]
        for place in sorted(next_ones, key=lambda place: -operations[place].returned):
            one = operations[place]
            after = step(state, one.input, one.output)
            node = (done | 1 << place, after)
            if after is not None and node not in visited:
                visited.add(node)
                stack.append(node)
        if len(visited) > STATES_MAX:
            raise RuntimeError(f"the history of one key with {count} operations is too long to be judged")
    return False
