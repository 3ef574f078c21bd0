"""Who still holds a lease: the leader's memory, in monotonic time, never in the log.

The leader's view lasts longer than the executor's: the executor counts TTL from the sending of a heartbeat that was
acknowledged, the leader TTL plus a margin from its receipt. So when the leader lets a lease expire, the executor has
stopped its tasks already.

Source: Gray & Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency",
1989.
"""

from msgspec import Struct


def margin_s(ttl_s: float) -> float:
    """How much longer the leader waits: 10 % for clocks that run at different speeds, 500 ms for the killing."""
    return ttl_s * 0.1 + 0.5


class _Lease(Struct):
    incarnation: int
    until_s: float
    expiring: bool = False


class Leases:
    def __init__(self, ttl_s: float) -> None:
        self.view_s = ttl_s + margin_s(ttl_s)
        self._leases: dict[str, _Lease] = {}

    def grant(self, uid: str, incarnation: int, now_s: float) -> bool:
        """Begin or renew. False if the lease is being expired: what is decided is not taken back."""
        lease = self._leases.get(uid)
        if lease is None or lease.incarnation < incarnation:
            self._leases[uid] = _Lease(incarnation, now_s + self.view_s)
            return True
        if lease.expiring or lease.incarnation != incarnation:
            return False
        lease.until_s = max(lease.until_s, now_s + self.view_s)
        return True

    def expired(self, now_s: float) -> list[tuple[str, int]]:
        """(uid, incarnation) of those that ran out; each is from now on not renewable."""
        lost = [(uid, lease) for uid, lease in self._leases.items() if now_s >= lease.until_s]
        for _, lease in lost:
            lease.expiring = True
        return [(uid, lease.incarnation) for uid, lease in lost]

    def forget(self, uid: str, incarnation: int) -> None:
        lease = self._leases.get(uid)
        if lease is not None and lease.incarnation == incarnation:
            del self._leases[uid]

    def next_s(self) -> float | None:
        """When the next lease runs out, if nothing renews it."""
        return min((lease.until_s for lease in self._leases.values()), default=None)
