"""Names that nobody has to think of."""

from random import Random
from uuid import UUID

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: in the order of ASCII, without i, l, o, u
_TIME_CHARS = 7  # 35 bits of seconds: until the year 3058
_RANDOM_CHARS = 5


def new_id(rng: Random, now_ms: int) -> str:
    """A job id, `j-` and 12 characters. Ids sort by their second; two of the same second meet once in 33 million."""
    number = (now_ms // 1_000) << (5 * _RANDOM_CHARS) | rng.getrandbits(5 * _RANDOM_CHARS)
    shifts = range(5 * (_TIME_CHARS + _RANDOM_CHARS - 1), -1, -5)
    return "j-" + "".join(_ALPHABET[number >> shift & 31] for shift in shifts)


def new_uid(rng: Random) -> str:
    """A random UUID (version 4), for what must never meet its like: executors, boots, clusters, submissions."""
    return str(UUID(int=rng.getrandbits(128), version=4))
