"""`tiflow raft status` tells the truth when masters are gone, and does not hang: it is what one looks at then."""

import json
import time
from collections.abc import Callable

import tiflow
from tests.cluster.harness import SLOWDOWN, Cluster
from tiflow.views import MasterInfo

ANSWER_S_MAX = 5.0


def seen_by(cluster: Cluster, name: str) -> dict[str, MasterInfo]:
    """By name: what the table says that one master shows."""
    began_s = time.monotonic()
    with tiflow.Client(cluster.addresses[name], timeout_s=ANSWER_S_MAX * SLOWDOWN) as client:
        masters = client.raft_status()
    assert time.monotonic() - began_s < ANSWER_S_MAX * SLOWDOWN
    by_address = {address: name for name, address in cluster.addresses.items()}
    return {by_address[master.address]: master for master in masters}


def shown(cluster: Cluster, name: str) -> tuple[int, dict[str, object]]:
    """Exit code and JSON of `tiflow raft status`, asked of one master."""
    done = cluster.cli("--master-addrs", cluster.addresses[name], "raft", "status", "--json")
    return done.returncode, json.loads(done.stdout)


def test_every_master_shows_the_same_table(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(executors=0)
    leader = cluster.wait_leader()
    for name in cluster.masters:
        code, told = shown(cluster, name)
        assert (code, told["healthy"], told["trouble"]) == (0, True, "")
        assert [one["role"] for one in told["masters"]].count("leader") == 1
        masters = seen_by(cluster, name)
        assert masters[leader].role == "leader"
        assert {peer.name for peer in masters[leader].peers} == set(cluster.addresses.values()) - {
            cluster.addresses[leader]
        }
        assert {one.leader for one in masters.values()} == {cluster.addresses[leader]}


def test_during_an_election_nobody_is_shown_that_is_not_there(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(executors=0)
    dead = cluster.wait_leader()
    term = cluster.status()[dead].term
    survivors = [name for name in cluster.masters if name != dead]
    cluster.kill(dead)

    leaders: dict[int, set[str]] = {}
    deadline_s = time.monotonic() + 20 * SLOWDOWN
    while not leaders:
        assert time.monotonic() < deadline_s
        for asked in survivors:
            masters = seen_by(cluster, asked)
            assert set(masters) == set(cluster.masters)
            assert masters[dead].role == "unreachable"
            assert masters[dead].error
            for name, master in masters.items():
                if master.role == "leader":
                    leaders.setdefault(master.term, set()).add(name)

    assert min(leaders) > term
    assert all(len(names) == 1 for names in leaders.values())
    cluster.wait_leader()
    assert {shown(cluster, name)[0] for name in survivors} == {0}


def test_a_master_that_hangs_is_shown_as_such(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(executors=0)
    hung = cluster.wait_leader()
    asked = next(name for name in cluster.masters if name != hung)
    cluster.pause(hung)
    try:
        assert seen_by(cluster, asked)[hung].role == "unreachable"
        cluster.wait_leader(other_than=hung)
        assert shown(cluster, asked)[0] == 0
    finally:
        cluster.resume(hung)


def test_the_last_of_three_says_that_there_is_no_quorum(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(executors=0)
    *gone, last = cluster.masters
    for name in gone:
        cluster.kill(name)

    code, told = shown(cluster, last)

    assert (code, told["healthy"]) == (1, False)
    assert "no quorum: 1 of 3 masters answer, 2 are needed" in str(told["trouble"])
    assert [seen_by(cluster, last)[name].role for name in gone] == ["unreachable", "unreachable"]
