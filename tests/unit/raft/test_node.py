import asyncio
import shutil
import threading
import time

import pytest

from tests.unit.raft.conftest import IMPATIENT, until
from tiflow.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    ResourceExhausted,
    Unavailable,
)
from tiflow.raft.api import Member
from tiflow.raft.journal import ENTRY_BYTES_MAX, JournalDamaged
from tiflow.raft.library import Fatal
from tiflow.raft.transport import GrpcTransport


async def propose(node, *entries):
    return await asyncio.gather(*(node.propose(entry.encode()) for entry in entries))


def numbered(count, prefix="e"):
    return [f"{prefix}{number}" for number in range(count)]


# --- the usual course


async def test_three_empty_members_form_a_cluster_and_elect_a_leader(cluster):
    leader = await cluster.leader()

    assert len({node.cluster_id for node in cluster.nodes.values()}) == 1
    assert leader.cluster_id
    assert leader.status().role == "leader"


async def test_every_member_applies_a_thousand_concurrent_proposals_in_one_order(cluster):
    leader = await cluster.leader()

    replies = await propose(leader, *numbered(1000))

    assert sorted(replies) == list(range(1, 1001))
    await cluster.agree(1000)


async def test_a_follower_names_the_leader(cluster):
    leader = await cluster.leader()
    (follower, _) = await cluster.followers()

    with pytest.raises(NotLeader) as caught:
        await cluster.nodes[follower].propose(b"x")

    assert caught.value.leader == leader.status().address
    with pytest.raises(NotLeader):
        await cluster.nodes[follower].barrier()


async def test_the_leader_knows_its_followers(cluster):
    leader = await cluster.leader()
    await propose(leader, "a")
    await until(lambda: all(peer.lag == 0 for peer in leader.status().peers), "followers have all")

    status = leader.status()

    assert [peer.connected for peer in status.peers] == [True, True]
    assert status.applied_index == status.commit_index == status.durable_index == status.last_index


async def test_the_largest_entry_passes_and_a_larger_one_is_refused(cluster):
    leader = await cluster.leader()

    assert await leader.propose(b"x" * ENTRY_BYTES_MAX) == 1
    with pytest.raises(ResourceExhausted, match="exceeds the limit"):
        await leader.propose(b"x" * (ENTRY_BYTES_MAX + 1))

    await cluster.agree(1)


async def test_refuses_proposals_when_too_many_wait(cluster):
    leader = await cluster.leader()

    results = await asyncio.gather(
        *(leader.propose(b"%d" % number) for number in range(10_100)), return_exceptions=True
    )

    refused = [result for result in results if isinstance(result, ResourceExhausted)]
    assert len(refused) == 100
    await cluster.agree(10_000)


async def test_role_callbacks_tell_of_the_leader_when_its_state_is_complete(cluster):
    leader = await cluster.leader()

    roles = cluster.roles[cluster.name_of(leader)]

    assert roles[-1] == ("leader", leader.term)
    assert [role for role, _ in roles].count("leader") == 1


async def test_a_callback_that_raises_harms_nobody(cluster):
    leader = await cluster.leader()
    called = []
    leader.on_applied(lambda: 1 / 0)
    leader.on_applied(lambda: called.append(leader.status().applied_index))

    await propose(leader, "a")

    assert called
    assert leader.is_leader


# --- reads


async def test_a_barrier_returns_what_was_committed_before_it(cluster):
    leader = await cluster.leader()
    await propose(leader, *numbered(10))

    indices = await asyncio.gather(*(leader.barrier() for _ in range(50)))

    assert min(indices) >= leader.status().commit_index
    assert len(cluster.machines[cluster.name_of(leader)].entries) == 10


async def test_a_leader_without_a_majority_passes_no_barrier_and_steps_down(make_cluster):
    cluster = make_cluster(**IMPATIENT)
    await cluster.start()
    leader = await cluster.leader()
    await cluster.stop(*await cluster.followers())

    with pytest.raises(NotLeader):
        await leader.barrier()
    assert not leader.is_leader


# --- failures


async def test_a_restarted_member_catches_up(cluster):
    leader = await cluster.leader()
    await propose(leader, *numbered(20, "a"))
    (victim, _) = await cluster.followers()
    await cluster.stop(victim)
    await propose(leader, *numbered(20, "b"))

    await cluster.start(victim)

    await cluster.agree(40)


async def test_another_member_leads_when_the_leader_ends(cluster):
    old = await cluster.leader()
    await propose(old, *numbered(50))
    name, term = cluster.name_of(old), old.term
    await cluster.stop(name)

    new = await cluster.leader()
    await propose(new, "after")

    assert new.term > term
    await cluster.start(name)
    await cluster.agree(51)


async def test_what_waits_when_the_leader_loses_its_majority_has_an_unknown_outcome(make_cluster):
    cluster = make_cluster(**IMPATIENT)
    await cluster.start()
    leader = await cluster.leader()
    released, write = threading.Event(), leader._file.write
    leader._file.write = lambda ops: (
        released.wait(30),
        write(ops),
    )  # so that it is not committed before they are gone
    first = asyncio.ensure_future(leader.propose(b"perhaps"))
    await asyncio.sleep(0)
    await cluster.stop(*(name for name, node in cluster.nodes.items() if node is not leader))

    with pytest.raises(OutcomeUnknown):
        await first
    with pytest.raises(NotLeader):
        await leader.propose(b"surely not")
    released.set()


async def test_all_members_restart_and_keep_everything(cluster):
    await propose(await cluster.leader(), *numbered(100))
    identity = cluster.nodes["m1"].cluster_id
    await cluster.stop()

    await cluster.start()

    await propose(await cluster.leader(), "after")
    await cluster.agree(101)
    assert cluster.nodes["m2"].cluster_id == identity


async def test_leadership_can_be_handed_over(cluster):
    leader = await cluster.leader()
    (target, _) = await cluster.followers()

    new = await leader.transfer(target)

    assert new.name == target
    await until(lambda: cluster.nodes[target].is_leader, "the target leads")
    assert not leader.is_leader


async def test_leadership_is_not_handed_to_a_stranger(cluster):
    leader = await cluster.leader()

    with pytest.raises(InvalidArgument, match="m9 is no peer"):
        await leader.transfer("m9")

    (target, _) = await cluster.followers()
    await cluster.stop(target)
    await until(lambda: not all(peer.connected for peer in leader.status().peers), "the peer is gone")
    with pytest.raises(Unavailable, match="not connected"):
        await leader.transfer(target)


async def test_a_machine_that_raises_stops_the_node(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    node = await cluster.leader()

    with pytest.raises((OutcomeUnknown, NotLeader)):
        await node.propose(b"poison")

    with pytest.raises(Fatal, match="can not apply this"):
        async with asyncio.timeout(30):
            await node.fatal
    assert not node.is_leader


async def test_a_disk_that_fails_stops_the_node_and_answers_nobody(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    node = await cluster.leader()

    def fail(ops):
        raise OSError(28, "No space left on device")

    node._file.write = fail

    with pytest.raises(OutcomeUnknown):
        await node.propose(b"lost")
    with pytest.raises(OSError, match="No space left"):
        async with asyncio.timeout(30):
            await node.fatal


async def test_a_returning_member_deposes_nobody(cluster):
    leader = await cluster.leader()
    (victim, _) = await cluster.followers()
    await cluster.stop(victim)
    term = leader.term
    await cluster.start(victim)
    await until(lambda: cluster.nodes[victim].leader is not None, "it follows")
    await propose(leader, "a")

    assert leader.is_leader
    assert leader.term == term


# --- snapshots


async def test_a_lagging_follower_gets_a_snapshot(make_cluster):
    cluster = make_cluster(snapshot_entries=2000)
    await cluster.start()
    leader = await cluster.leader()
    (victim, _) = await cluster.followers()
    await cluster.stop(victim)
    await propose(leader, *numbered(5000))
    await leader.snapshot()
    assert leader.status().first_index > 2

    await cluster.start(victim)
    await cluster.agree(5000)
    await propose(leader, "after")

    await cluster.agree(5001)
    assert cluster.machines[victim].restored == 1
    assert cluster.nodes[victim].status().snapshot_index > 0


async def test_a_forced_snapshot_shortens_the_log_and_survives_a_restart(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    await propose(await cluster.leader(), *numbered(3000))

    index = await cluster.nodes["m1"].snapshot()

    assert index == cluster.nodes["m1"].status().snapshot_index
    await propose(cluster.nodes["m1"], "after")
    await cluster.stop()
    await cluster.start()
    await cluster.leader()
    await cluster.agree(3001)
    assert cluster.machines["m1"].restored == 1


async def test_a_damaged_snapshot_stops_the_start(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    await propose(await cluster.leader(), *numbered(10))
    await cluster.nodes["m1"].snapshot()
    await cluster.stop()
    path = cluster.directory / "m1" / "snapshot"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(FailedPrecondition, match="checksum"):
        await cluster.start()


# --- who belongs to what


async def test_a_lone_master_keeps_all_over_a_restart(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    await propose(await cluster.leader(), *numbered(100))
    await cluster.stop()

    await cluster.start()

    await cluster.leader()
    await cluster.agree(100)


async def test_two_of_three_empty_members_do_not_form_a_cluster(make_cluster):
    cluster = make_cluster()
    for name in cluster.names:
        cluster.bind(name)
    await cluster.start("m1", "m2")
    await until(lambda: cluster.nodes["m1"]._transport.greetings(), "they have met")

    assert {node.status().role for node in cluster.nodes.values()} == {"forming"}
    assert cluster.nodes["m1"].cluster_id == ""

    await cluster.start("m3")
    assert (await cluster.leader()).cluster_id


async def test_a_member_that_lost_its_disk_joins_again_and_votes_when_it_has_caught_up(cluster):
    leader = await cluster.leader()
    await propose(leader, *numbered(100))
    (victim, _) = await cluster.followers()
    await cluster.stop(victim)
    shutil.rmtree(cluster.directory / victim)

    await cluster.start(victim)

    await cluster.agree(100)
    await until(lambda: cluster.nodes[victim]._identity.may_vote, "it may vote again")
    assert cluster.nodes[victim].cluster_id == leader.cluster_id


async def test_a_lone_masters_directory_refuses_peers(make_cluster):
    lone = make_cluster(["m1"])
    await lone.start()
    await lone.stop()

    three = make_cluster()
    for name in three.names:
        three.bind(name)

    with pytest.raises(FailedPrecondition, match=r"as a lone master \(m1\).*with the members m1, m2, m3"):
        await three.start("m1")


async def test_a_directory_is_used_by_one_process(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()

    with pytest.raises(FailedPrecondition, match="in use"):
        await cluster.make("m1").start()


async def test_a_directory_without_its_journal_is_refused(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    await cluster.stop()
    for path in (cluster.directory / "m1").glob("journal-*"):
        path.unlink()

    with pytest.raises(FailedPrecondition, match="its journal is gone"):
        await cluster.start()


async def test_a_log_without_an_identity_is_refused(make_cluster):
    """Nobody knows of which cluster it is: its entries would go into another one's history."""
    cluster = make_cluster(["m1"])
    await cluster.start()
    await propose(await cluster.leader(), "a")
    await cluster.stop()
    (cluster.directory / "m1" / "identity.json").unlink()

    with pytest.raises(FailedPrecondition, match=r"not its identity\.json"):
        await cluster.start()


async def test_a_damaged_journal_stops_the_start(make_cluster):
    cluster = make_cluster(["m1"])
    await cluster.start()
    await propose(await cluster.leader(), *numbered(10))
    await cluster.stop()
    (path,) = (cluster.directory / "m1").glob("journal-*")
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)

    with pytest.raises(JournalDamaged, match=path.name):
        await cluster.start()


async def test_a_member_of_another_cluster_is_refused(make_cluster):
    cluster = make_cluster()
    await cluster.start()
    await cluster.leader()
    await cluster.stop("m3")
    identity = cluster.directory / "m3" / "identity.json"
    identity.write_text(identity.read_text().replace(cluster.nodes["m1"].cluster_id, "0123456789abcdef"))

    await cluster.start("m3")
    await until(lambda: "0123456789abcdef" in cluster.nodes["m1"]._transport.refused.get("m3", ""), "m1 refuses m3")

    assert cluster.nodes["m3"].leader is None
    await until(lambda: len(cluster.leaders) == 1, "the other two have a leader")


async def test_a_member_with_other_peers_is_refused(make_cluster):
    cluster = make_cluster()
    for name in cluster.names:
        cluster.bind(name)
    await cluster.start("m1", "m2")
    stranger = cluster.members[:2]
    await cluster.start("m3", members=(*stranger, Member("m3", "127.0.0.1:1")))

    await until(lambda: "has the peers" in cluster.nodes["m1"]._transport.refused.get("m3", ""), "m1 refuses m3")
    assert cluster.nodes["m1"].status().role == "forming"


async def test_a_peer_is_dialled_again_whatever_went_wrong(make_cluster, monkeypatch):
    call, failed = GrpcTransport._call, []

    async def fails_once(transport, link):
        if link.member.name not in failed:
            failed.append(link.member.name)
            raise ValueError("nobody thought of this")
        await call(transport, link)

    monkeypatch.setattr(GrpcTransport, "_call", fails_once)
    cluster = make_cluster()
    await cluster.start()

    assert (await cluster.leader()).cluster_id
    assert set(failed) == {"m2", "m3"}


async def test_settings_are_checked(make_cluster):
    cluster = make_cluster(["m1"])
    cluster.bind("m1")

    with pytest.raises(InvalidArgument, match="three heartbeats"):
        cluster.make("m1", heartbeat_ms=100, election_timeout_ms=(200, 400))
    with pytest.raises(InvalidArgument, match="not among its own members"):
        cluster.make("m1", members=cluster.members * 0)


async def test_a_failover_takes_less_than_an_election_timeout_when_the_stream_breaks(make_cluster):
    cluster = make_cluster(election_timeout_ms=(20_000, 25_000))
    await cluster.start()
    leader = await cluster.leader()
    name = cluster.name_of(leader)
    node = cluster.nodes.pop(name)
    await node._transport.close()
    began = time.monotonic()

    await cluster.leader()

    assert time.monotonic() - began < 15
    await node.stop()
