from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tiflow.parts import in_parts


@given(st.lists(st.integers(0, 12)), st.integers(1, 20), st.none() | st.integers(1, 4))
def test_parts_are_all_in_order_within_their_bounds_and_no_two_could_be_one(sizes, size_max, items_max):
    parts = list(in_parts(sizes, lambda size: size, size_max, items_max))

    assert [size for part in parts for size in part] == sizes
    assert all(parts)
    assert all(len(part) == 1 or sum(part) <= size_max for part in parts)
    assert all(len(part) <= (items_max or len(part)) for part in parts)
    for part, after in pairwise(parts):
        assert sum(part) + after[0] > size_max or len(part) == items_max
