"""The judge is judged: histories with a known verdict, and brute force over all orders of small ones."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.linearizability import UNKNOWN, Operation, find_anomaly, growing_list, register


def test_a_read_that_misses_an_answered_append_is_found():
    history = [Operation("k", 1, ("append", 7), 2, 1), Operation("k", 3, ("read",), 4, ())]

    assert find_anomaly(history, growing_list) == history


def test_an_unknown_outcome_may_take_effect_late_or_never():
    lost = Operation("k", 1, ("append", 7))
    before, after = Operation("k", 2, ("read",), 3, ()), Operation("k", 4, ("read",), 5, (7,))

    assert find_anomaly([lost, before], growing_list) is None
    assert find_anomaly([lost, before, after], growing_list) is None
    assert find_anomaly([lost, after, Operation("k", 6, ("read",), 7, ())], growing_list) is not None


def test_keys_are_judged_one_by_one():
    fine = [Operation("a", 1, ("write", 1), 2), Operation("a", 3, ("read",), 4, 1)]
    stale = [Operation("b", 1, ("write", 1), 2), Operation("b", 3, ("read",), 4, 0)]

    assert find_anomaly(fine + stale, register) == stale


def _explained(operations, order):
    """Whether `order`, a selection of the operations, explains all answers and respects real time."""
    chosen = [operations[place] for place in order]
    if any(one.returned != UNKNOWN and one not in chosen for one in operations):
        return False
    state, step = register(chosen)
    for place, one in enumerate(chosen):
        if any(later.returned < one.called for later in chosen[place + 1 :]):
            return False
        state = step(state, one.input, one.output)
        if state is None:
            return False
    return True


@st.composite
def histories(draw):
    count = draw(st.integers(1, 5))
    moments = iter(draw(st.permutations(range(2 * count))))
    operations = []
    for number in range(count):
        called, returned = sorted([next(moments), next(moments)])
        if draw(st.booleans()):
            one = Operation("k", called, ("write", number % 3), returned)
            if draw(st.booleans()):
                one.returned = UNKNOWN
        else:
            one = Operation("k", called, ("read",), returned, draw(st.integers(0, 2)))
        operations.append(one)
    return operations


@given(histories())
def test_agrees_with_trying_all_orders(operations):
    places = range(len(operations))
    orders = itertools.chain.from_iterable(itertools.permutations(places, size) for size in range(len(places) + 1))

    assert (find_anomaly(operations, register) is None) == any(_explained(operations, order) for order in orders)
