"""Which faults a schedule has, and how often: drawn by its seed (swarm testing).

A schedule with every fault at once makes no progress, and most bugs need two or three of them and otherwise calm.
"""

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from tiflow.raft.library import Limits

#: chance of a fault in one step, when the seed switches it on: from, to
RATES: Final[dict[str, tuple[float, float]]] = {
    "cut": (0.002, 0.02),  # a pair, both see their session end
    "isolate": (0.002, 0.01),  # one from all, often the leader
    "split": (0.001, 0.01),  # into two groups
    "stall": (0.002, 0.03),  # one direction of one pair, for a while: a one-way cut, or delay
    "kill": (0.002, 0.01),
    "power": (0.002, 0.01),  # one loses what it had not synced
    "blackout": (0.0005, 0.002),  # all do, at once
    "pause": (0.002, 0.01),
    "jump": (0.001, 0.01),  # of a clock, forward
    "wipe": (0.002, 0.01),
    "transfer": (0.002, 0.01),
    "snapshot": (0.002, 0.01),
    "flip": (0.001, 0.005),
    "full": (0.001, 0.004),
    "broken": (0.001, 0.004),
    "slow": (0.002, 0.01),
}
_SMALL = Limits(snapshot_entries=6, kept_entries=0, append_bytes=6)
#: sizes at which things happen within a short schedule; and bytes of a snapshot in one message
LIMITS: Final = (
    (Limits(snapshot_entries=10**9), 1 << 18),
    (Limits(snapshot_entries=10**9, append_bytes=6), 1 << 18),
    (Limits(snapshot_entries=6, kept_entries=2), 64),
    (_SMALL, 16),
    (_SMALL, 1 << 18),
    (Limits(snapshot_entries=20, kept_entries=5, append_bytes=20), 64),
)


@dataclass(frozen=True)
class Weather:
    """What a schedule is like. Fields named in RATES are chances in one step."""

    members: int
    limits: Limits
    chunk_bytes: int
    pace_s: float  # how far the clock moves at a time
    clients: float  # chance of a client's call in one step
    healing: float  # chance in one step that some fault ends
    drop: float = 0.0
    double: float = 0.0
    shuffle: float = 0.0
    late: float = 0.0
    ahead_bytes: int = 0  # by so much journals are longer than what is written; drawn by no seed
    rates: tuple[tuple[str, float], ...] = ()

    def replace(self, **changes: Any) -> "Weather":
        """The same, but with some fields or rates as given."""
        rates = dict(self.rates) | {name: changes.pop(name) for name in list(changes) if name in RATES}
        return dataclasses.replace(self, rates=tuple(sorted(rates.items())), **changes)


def draw(rng: Random) -> Weather:
    limits, chunk_bytes = rng.choice(LIMITS)
    wild = rng.random() < 0.3
    rates = [(name, low * (high / low) ** rng.random()) for name, (low, high) in RATES.items() if rng.random() < 0.35]
    return Weather(
        members=rng.choice((3, 3, 5)),
        limits=limits,
        chunk_bytes=chunk_bytes,
        pace_s=rng.choice((0.05, 0.2, 0.2, 0.4)),
        clients=rng.choice((0.05, 0.1, 0.1, 0.2)),
        healing=rng.uniform(0.02, 0.06),
        drop=rng.choice((0.0, 0.02, 0.1)) if wild else 0.0,
        double=rng.choice((0.0, 0.05, 0.2)) if wild else 0.0,
        shuffle=rng.choice((0.0, 0.1, 0.5)) if wild else 0.0,
        late=rng.choice((0.0, 0.05, 0.2)) if wild else 0.0,
        rates=tuple(rates),
    )
