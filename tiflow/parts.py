"""What is too much for one message, or one statement, in parts."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_parts(
    items: Iterable[T], size_of: Callable[[T], int], size_max: int, items_max: int | None = None
) -> Iterator[list[T]]:
    """All items, in order, in parts of `size_max` and `items_max` at most; an item that is larger alone makes a part
    of its own. Nothing is yielded of nothing."""
    part: list[T] = []
    size = 0
    for item in items:
        more = size_of(item)
        if part and (size + more > size_max or len(part) == items_max):
            yield part
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield part
