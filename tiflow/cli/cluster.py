"""`tiflow cluster`: the whole at a glance."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiflow.cli.backup import facts, restore, show_facts
from tiflow.cli.common import client_options, connect, print_fields, print_json, print_table
from tiflow.cli.raft import diagnose

if TYPE_CHECKING:
    from tiflow.views import ClusterInfo


@click.group()
def cluster() -> None:
    """The whole at a glance.

    \b
    Example: tiflow cluster status
    """


@cluster.command()
@client_options
def status(master_addrs: str | None, as_json: bool) -> int:
    """Show masters, executors, jobs, and how far the metadata database is; exit code 1 without a leader.

    BEHIND is how many revisions the database has not got yet. Without it scheduling goes on, and nothing is lost: it
    catches up by itself.

    \b
    Example: tiflow cluster status --master-addrs ip0:10240
    """
    with connect(master_addrs) as client:
        info = client.cluster_status()
    trouble = diagnose(info.masters)
    if as_json:
        print_json({"healthy": not trouble, "trouble": trouble, "cluster": info})
        return 1 if trouble else 0
    _show(info)
    if trouble:
        click.echo(trouble, err=True)
    return 1 if trouble else 0


@cluster.command()
@click.argument("file", type=click.Path(path_type=Path))
@client_options
def backup(file: Path, master_addrs: str | None, as_json: bool) -> None:
    """Write what the masters know to FILE, while they run: jobs, executors, where tasks stand.

    The cluster goes on afterwards. What is restored of FILE (`tiflow cluster restore`) is therefore another cluster,
    with an id of its own and a metadata database of its own. To move a cluster, stop it: `tiflow raft backup`.

    \b
    Example: tiflow cluster backup tiflow-$(date +%F).backup
    """
    from tiflow.errors import AlreadyExists
    from tiflow.raft import backup as backups
    from tiflow.sched.machine import Machine

    if file.exists():
        raise AlreadyExists(f"{file} exists; name another file")
    with connect(master_addrs) as client:
        made = backups.joined(client.backup())
    machine = Machine()
    machine.restore(made.state)  # whole, and readable
    backups.save(made, file)
    show_facts({"file": str(file), "size": file.stat().st_size} | facts(made, machine.state), as_json)


cluster.add_command(restore)


def _show(info: "ClusterInfo") -> None:
    print_table(
        ("MASTER", "ADDRESS", "ROLE", "TERM", "APPLIED"),
        [
            (
                master.name or master.address,
                master.address,
                "learner" if master.learner else master.role,
                master.term if master.reachable else "-",
                master.applied_index if master.reachable else "-",
            )
            for master in info.masters
        ],
    )
    database = info.metadata
    click.echo()
    print_fields(
        [
            ("cluster", info.cluster_id),
            ("revision", f"{info.revision} (format {info.format})"),
            ("executors", _counts(info.executors) or "none"),
            ("jobs", _counts(info.jobs) or "none"),
            ("left for the database", info.pruned or ""),
            ("metadata", f"{database.state}, at revision {database.revision}, {database.behind} behind"),
            ("database", database.url),
            ("error", database.error),
            ("note", database.note),
        ]
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
