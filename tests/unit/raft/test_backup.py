"""Backups of stopped members, and members that begin from them."""

import shutil

import pytest

from tests.unit.raft.conftest import History, until
from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from tiflow.raft.backup import Backup, load, newest, read_member, restore, save
from tiflow.raft.identity import read_identity
from tiflow.raft.transport import PROTOCOL, Greeting, pb, refusal


async def write(cluster, first, last):
    leader = await cluster.leader()
    for number in range(first, last):
        await leader.propose(f"entry {number}".encode())


def entries(last):
    return [f"entry {number}" for number in range(last)]


def backup(member="m1", *, members=("m1", "m2", "m3"), last=(1, 1), may_vote=True, cluster_id="c"):
    return Backup(
        cluster_id=cluster_id,
        member=member,
        members=members,
        may_vote=may_vote,
        term=last[0],
        last_term=last[0],
        last_index=last[1],
        state=b"[]",
    )


async def test_a_member_is_read_with_its_snapshot_and_what_follows_it(cluster, tmp_path):
    await write(cluster, 0, 30)
    leader = await cluster.leader()
    await leader.snapshot()
    await write(cluster, 30, 40)
    term, last, name = leader.term, leader.status().last_index, cluster.name_of(leader)
    await cluster.stop()

    machine = History()
    made = read_member(tmp_path / name, machine)
    save(made, tmp_path / "file")

    assert machine.entries == entries(40)
    assert (made.member, made.may_vote, made.last_term, made.last_index) == (name, True, term, last)
    assert load(tmp_path / "file") == made
    with pytest.raises(AlreadyExists):
        save(made, tmp_path / "file")


async def test_restored_members_go_on_in_a_term_of_their_own_with_all_that_was_acknowledged(make_cluster, tmp_path):
    old = make_cluster()
    await old.start()
    await write(old, 0, 20)
    (behind,) = (await old.followers())[:1]
    await old.stop(behind)
    await write(old, 20, 25)
    await old.stop()
    read = [read_member(tmp_path / name, History()) for name in old.names]
    best = newest(read[:2] if behind != "m3" else read[1:])

    new = make_cluster(("n1", "n2", "n3"))
    for name in new.names:
        restore(best, read, tmp_path / name, name=name, members=tuple(new.names))
    await new.start()
    leader = await new.leader()

    assert leader.cluster_id == read[0].cluster_id
    assert leader.term > max(one.term for one in read)
    await new.agree(25)
    await write(new, 25, 30)
    await new.agree(30)
    assert new.machines["n1"].entries == entries(30)
    await new.stop()
    await new.start()
    await new.agree(30)


async def test_a_restored_member_that_lost_its_disk_joins_again(make_cluster, tmp_path):
    old = make_cluster(("only",))
    await old.start()
    await write(old, 0, 5)
    await old.stop()
    made = read_member(tmp_path / "only", History())
    new = make_cluster(("n1", "n2", "n3"))
    for name in new.names:
        restore(made, [made], tmp_path / name, name=name, members=tuple(new.names))
    await new.start()
    await new.leader()
    await new.stop("n3")
    shutil.rmtree(tmp_path / "n3")

    await new.start("n3")
    await write(new, 5, 8)

    await new.agree(8)
    assert read_identity(tmp_path / "n3").origin == read_identity(tmp_path / "n1").origin != ""
    await until(lambda: read_identity(tmp_path / "n3").may_vote, "n3 votes")


async def test_a_running_member_and_a_directory_of_nobody_are_refused(cluster, tmp_path):
    await cluster.leader()
    with pytest.raises(FailedPrecondition, match="in use"):
        read_member(tmp_path / "m1", History())
    for directory in (tmp_path / "none", tmp_path):
        with pytest.raises(FailedPrecondition, match="is not the directory of a master"):
            read_member(directory, History())


async def test_restoring_never_writes_over_anything(tmp_path):
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / "file").touch()
    with pytest.raises(AlreadyExists, match="is not empty"):
        restore(backup(), [backup()], tmp_path / "m1", name="m1", members=("m1",))


async def test_what_is_no_sound_backup_is_refused_by_name(tmp_path):
    path = tmp_path / "file"
    save(backup(), path)
    data = path.read_bytes()
    for damaged in (b"", b"TIFBAK01", data[:-1], data[:20] + bytes([data[20] ^ 1]) + data[21:], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(InvalidArgument, match=str(path)):
            load(path)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(tmp_path / "none")


async def test_the_newest_log_of_a_majority_is_taken():
    older, newer = backup("m1", last=(2, 90)), backup("m2", last=(3, 50))

    assert newest([older, newer]) == newer
    assert newest([backup("m1", last=(3, 51)), newer]).member == "m1"


@pytest.mark.parametrize(
    "too_few",
    [
        [backup("m1")],
        [backup("m1"), backup("m1")],
        [backup("m1"), backup("m2", may_vote=False)],  # it has not caught up with what it may have acknowledged
    ],
)
async def test_less_than_a_majority_is_refused_unless_a_loss_is_allowed(too_few):
    with pytest.raises(FailedPrecondition, match="--allow-loss"):
        newest(too_few)
    assert newest(too_few, allow_loss=True)


async def test_backups_of_different_clusters_are_refused():
    with pytest.raises(InvalidArgument, match="different clusters"):
        newest([backup("m1"), backup("m2", cluster_id="d")])


async def test_members_that_were_restored_of_different_backups_do_not_speak_to_each_other():
    def greeting(name, origin):
        return Greeting("c", name, ("m1=a", "m2=b"), False, 3, origin)

    def hello(origin):
        return pb.Hello(protocol=PROTOCOL, cluster_id="c", name="m2", members=["m1=a", "m2=b"], origin=origin)

    assert "were not restored of the same backup" in refusal(greeting("m1", "x"), hello("y"))
    assert refusal(greeting("m1", "x"), hello("")) is not None
    assert refusal(greeting("m1", "x"), hello("x")) is None
