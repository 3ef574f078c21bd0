"""`tiflow raft`: the masters and their consensus."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tiflow.cli.backup import backup, restore
from tiflow.cli.common import client_options, connect, print_json, print_table, size, span
from tiflow.cli.raft_log import log

if TYPE_CHECKING:
    from tiflow.client import MasterInfo


@click.group()
def raft() -> None:
    """Look at the masters and their consensus."""


@raft.command()
@client_options
def status(master_addrs: str | None, as_json: bool) -> int:
    """Show every master; exit code 1 without a leader that a majority follows and that takes commands.

    A learner lost its disk, and does not vote before it has caught up.
    DISK is the free space where the log is; with less than raft.disk-reserve-bytes a master takes no commands.
    MATCH, LAG and CONTACT are what the leader knows of a follower: the last entry it has on disk, how many entries
    it is behind, when it answered last.

    \b
    Example: tiflow raft status --master-addrs ip0:10240,ip1:10240,ip2:10240
    """
    from tiflow.rpc.status import reason

    with connect(master_addrs) as client:
        masters = client.raft_status()
    trouble = diagnose(masters)
    if as_json:
        print_json({"healthy": not trouble, "trouble": trouble, "masters": masters})
    else:
        print_table(HEADERS, _rows(masters))
        for master in masters:
            if master.error:
                click.echo(f"{master.name or master.address}: {reason(master.error)}", err=True)
        if trouble:
            click.echo(trouble, err=True)
    return 1 if trouble else 0


@raft.command()
@click.argument("to", required=False, default="", metavar="[MASTER]")
@client_options
def transfer(to: str, master_addrs: str | None, as_json: bool) -> None:
    """Hand the leadership to MASTER (a name or an address), or to the follower that has most of the log.

    \b
    Before the leader's machine is taken down:
      tiflow raft transfer
    """
    with connect(master_addrs) as client:
        leader = client.transfer_leadership(to)
    if as_json:
        print_json({"leader": leader})
    else:
        click.echo(f"{leader} leads")


@raft.command()
@client_options
def snapshot(master_addrs: str | None, as_json: bool) -> None:
    """Make every reachable master write a snapshot now, and cut its log.

    \b
    Example: tiflow raft snapshot
    """
    with connect(master_addrs) as client:
        indexes = client.raft_snapshot()
    if as_json:
        print_json(indexes)
    else:
        print_table(("MASTER", "SNAPSHOT AT"), list(indexes.items()))


raft.add_command(backup)
raft.add_command(restore)
raft.add_command(log)


HEADERS = (
    "NAME",
    "ADDRESS",
    "ROLE",
    "TERM",
    "LEADER",
    "COMMIT",
    "APPLIED",
    "MATCH",
    "LAG",
    "LOG",
    "SNAPSHOT",
    "DISK",
    "CONTACT",
)


def diagnose(masters: Sequence["MasterInfo"]) -> str:
    """What keeps the cluster from working; empty: nothing."""
    majority = len(masters) // 2 + 1
    reachable = [master for master in masters if master.reachable]
    if len(reachable) < majority:
        return f"no quorum: {len(reachable)} of {len(masters)} masters answer, {majority} are needed"
    newest = max(master.term for master in reachable)
    leaders = [master for master in reachable if master.role == "leader" and master.term == newest]
    learners = [master.name or master.address for master in reachable if master.learner]
    if not leaders and len(reachable) - len(learners) < majority:
        return (
            f"no leader: {', '.join(learners)} lost its data and votes again only when it has caught up; start the "
            "masters that are down, or restore the cluster from a backup"
        )
    if not leaders:
        return "no leader: the masters are electing one, or cannot agree; ask again in a second"
    if leaders[0].disk in ("low", "full"):
        return f"the disk of the leader, {leaders[0].name}, is {_short(leaders[0])}: it takes no commands"
    return ""


def _short(master: "MasterInfo") -> str:
    return f"{master.disk}: {size(master.disk_free_bytes)} free, {size(master.disk_reserve_bytes)} needed"


def _rows(masters: Sequence["MasterInfo"]) -> list[tuple[object, ...]]:
    leaders = [master for master in masters if master.role == "leader"]
    leader = max(leaders, key=lambda master: master.term, default=None)
    peers = {peer.name: peer for peer in leader.peers} if leader is not None else {}
    names = {master.address: master.name for master in masters}
    rows: list[tuple[object, ...]] = []
    for master in masters:
        peer = peers.get(master.name) or peers.get(master.address)  # an address is the name among masters
        followed: tuple[object, ...] = ("-", "-", "-")
        if peer is not None:
            contact = "never" if peer.last_contact_ms is None else f"{span(peer.last_contact_ms / 1_000)} ago"
            followed = (peer.match_index, peer.lag, contact)
        if not master.reachable:
            unknown = ("-", "-", "-", "-")
            rows.append(
                (master.name, master.address, "unreachable", *unknown, *followed[:2], "-", "-", "-", followed[2])
            )
            continue
        age_s = master.snapshot_age_s
        rows.append(
            (
                master.name,
                master.address,
                "learner" if master.learner else master.role,
                master.term,
                names.get(master.leader, master.leader) or "-",
                master.commit_index,
                master.applied_index,
                *followed[:2],
                size(master.log_bytes),
                "-" if age_s is None else f"{master.snapshot_index}, {span(age_s)} ago",
                f"{size(master.disk_free_bytes)} free" if master.disk == "ok" else _short(master),
                followed[2],
            )
        )
    return rows
