"""Whether workers have counted as the source has it."""

from collections.abc import Mapping
from typing import Any

Counts = Mapping[str, Mapping[str, Any]]  #: as of `Source.counts`: by key, {"count": n, "revision": n, "value": "…"}


class Miscounted(Exception):
    """A worker has counted something twice, or left something out: waiting does not make it right."""


def behind(statuses: Counts, truth: Counts, *, kept: bool = True) -> dict[str, str]:
    """What is not yet as the source has it, by key; empty: all counts are exact.

    Args:
        statuses: by key, what its worker has reported last; those of which nothing is known may be missing.
        kept: in checkpoints, too.

    Raises:
        Miscounted.
    """
    late: dict[str, str] = {}
    for key, wanted in truth.items():
        status = statuses.get(key, {})
        got = {name: status.get(name) for name in wanted}
        if (got["count"] or 0) > wanted["count"] or (got["revision"] == wanted["revision"] and got != wanted):
            raise Miscounted(f"{key}: counted {dict(status)}, where the source has {dict(wanted)}")
        if got != wanted:
            late[key] = f"{got}, where the source has {dict(wanted)}"
        elif kept and status.get("kept") != wanted["revision"]:
            late[key] = f"revision {wanted['revision']} is not in a checkpoint yet"
    return late
