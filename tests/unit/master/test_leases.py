from hypothesis import given
from hypothesis import strategies as st

from tiflow.master.leases import Leases, margin_s

TTL_S = 5.0


def test_the_leader_waits_longer_than_the_executor_holds_on():
    leases = Leases(TTL_S)
    leases.grant("e1", 7, now_s=0.0)

    assert leases.expired(TTL_S + margin_s(TTL_S) - 0.001) == []
    assert leases.expired(TTL_S + margin_s(TTL_S)) == [("e1", 7)]


def test_a_lease_that_is_being_expired_is_not_renewed():
    leases = Leases(TTL_S)
    leases.grant("e1", 7, now_s=0.0)
    leases.expired(100.0)

    assert not leases.grant("e1", 7, now_s=100.0)
    assert leases.grant("e1", 8, now_s=100.0), "a new incarnation has a lease of its own"


def test_an_older_incarnation_renews_nothing():
    leases = Leases(TTL_S)
    leases.grant("e1", 8, now_s=0.0)

    assert not leases.grant("e1", 7, now_s=1.0)
    assert leases.next_s() == leases.view_s


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100), st.booleans()), max_size=40))
def test_nothing_expires_within_its_view_and_nothing_comes_back(steps: list[tuple[int, float, bool]]):
    leases = Leases(TTL_S)
    now_s, granted, over = 0.0, dict[str, float](), set[str]()
    for executor, wait_s, ask in steps:
        now_s += wait_s
        uid = f"e{executor}"
        if ask:
            for lost, _ in leases.expired(now_s):
                assert now_s >= granted[lost] + leases.view_s
                over.add(lost)
        elif leases.grant(uid, 1, now_s):
            assert uid not in over
            granted[uid] = now_s
