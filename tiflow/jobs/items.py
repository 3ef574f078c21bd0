"""A group's items on the wire and in the log: msgpack arrays of ITEMS_PER_BLOCK items, the last one shorter.

Nobody between the client and the worker decodes an item; cutting a range out of the blocks copies bytes.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec
from msgspec import msgpack

from tiflow.errors import InvalidArgument
from tiflow.sched.model import ITEMS_PER_BLOCK

_encode = msgpack.Encoder().encode
_decode_raw = msgpack.Decoder(list[msgspec.Raw]).decode


def items_encode(items: Iterable[Any]) -> tuple[bytes, ...]:
    """The blocks of `items`, which may be anything that msgpack knows: None, bool, int, float, str, bytes, lists and
    dicts of these."""
    source = iter(items)
    blocks: list[bytes] = []
    while block := list(islice(source, ITEMS_PER_BLOCK)):
        try:
            blocks.append(_encode(block))
        except (TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
            index = len(blocks) * ITEMS_PER_BLOCK + _first_bad(block)
            raise InvalidArgument(
                f"items[{index}] cannot be sent ({error}); use None, bool, int, float, str, bytes, lists and dicts"
            ) from None
    return tuple(blocks)


def items_slice(blocks: Sequence[bytes], start: int, stop: int) -> bytes:
    """The items [start, stop) as one msgpack array. Costs O(stop - start + ITEMS_PER_BLOCK)."""
    first, last = start // ITEMS_PER_BLOCK, (stop - 1) // ITEMS_PER_BLOCK
    if start == first * ITEMS_PER_BLOCK and first == last and stop - start == items_in(blocks[first]):
        return blocks[first]
    raw: list[msgspec.Raw] = []
    for block in blocks[first : last + 1]:
        raw += _decode_raw(block)
    base = first * ITEMS_PER_BLOCK
    return _encode(raw[start - base : stop - base])


def items_count(blocks: Sequence[bytes]) -> int:
    """How many items there are. Does not look at them."""
    return (len(blocks) - 1) * ITEMS_PER_BLOCK + items_in(blocks[-1]) if blocks else 0


def items_in(block: bytes) -> int:
    """The length of a msgpack array, from its first bytes."""
    head = block[0] if block else 0
    if head & 0xF0 == 0x90:
        return head & 0x0F
    if head == 0xDC and len(block) >= 3:
        return int.from_bytes(block[1:3], "big")
    raise InvalidArgument(f"items: a block does not begin as a msgpack array of at most {ITEMS_PER_BLOCK} items")


def check_items(blocks: Sequence[bytes], key: str) -> None:
    """Refuse what `items_slice` could not cut: a damaged block, or one that is not full in the middle."""
    for position, block in enumerate(blocks):
        try:
            items = len(_decode_raw(block))
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"{key}[{position}]: is not a msgpack array ({error})") from None
        if items != ITEMS_PER_BLOCK and not (position == len(blocks) - 1 and 1 <= items < ITEMS_PER_BLOCK):
            raise InvalidArgument(
                f"{key}[{position}]: has {items} items; every block has {ITEMS_PER_BLOCK}, only the last one fewer"
            )


def _first_bad(block: list[Any]) -> int:
    for index, item in enumerate(block):
        try:
            _encode(item)
        except (TypeError, OverflowError, ValueError, msgspec.MsgspecError):
            return index
    return 0
