"""Weighted fair shares: who has least for its weight gets first.

Source: weighted max-min fairness, as in Ghodsi et al., "Dominant Resource Fairness" (2011), for one resource, slots.
"""

from collections.abc import Sequence
from heapq import heapify, heapreplace


def fair_shares(used: Sequence[float], weights: Sequence[int], count: int) -> list[int]:
    """How many of `count` more each gets, so that what all have is as even for their weights as it can be. Equal ones
    get theirs in the order given. O(n log n)."""
    surely = max(0, count - len(used))  # the rest is given one by one: so much may be rounded off below
    order = sorted(range(len(used)), key=lambda i: used[i] / weights[i])
    shares = [0] * len(used)
    total = weight = 0.0
    for filled, i in enumerate(order, start=1):
        total, weight = total + used[i], weight + weights[i]
        level = (total + surely) / weight
        if filled == len(order) or level <= used[order[filled]] / weights[order[filled]]:
            for j in order[:filled]:
                shares[j] = max(0, int(level * weights[j] - used[j]))
            break
    heap = [((used[i] + shares[i]) / weights[i], i) for i in range(len(used))]
    heapify(heap)
    for _ in range(count - sum(shares) if heap else 0):
        _, i = heap[0]
        shares[i] += 1
        heapreplace(heap, ((used[i] + shares[i]) / weights[i], i))
    return shares
