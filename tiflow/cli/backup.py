"""`tiflow raft backup` of a stopped cluster, and `restore`, of a stopped or of a running one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiflow.cli.common import print_fields, print_json, size

if TYPE_CHECKING:
    from tiflow.raft.backup import Backup
    from tiflow.sched.state import State


@click.command()
@click.argument("data_dir", metavar="DATA-DIR", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def backup(data_dir: Path, file: Path, *, as_json: bool) -> None:
    """Write what the stopped master of DATA-DIR knows to FILE: jobs, executors, where tasks stand.

    \b
    To keep everything that was acknowledged, stop all masters and back up a majority of them:
      tiflow raft backup data/master m0.backup
    """
    from tiflow.raft import backup as backups
    from tiflow.sched.machine import Machine

    machine = Machine()
    made = backups.read_member(data_dir / "raft", machine)
    backups.save(made, file)
    show_facts({"file": str(file), "size": file.stat().st_size} | facts(made, machine.state), as_json)


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data-dir", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Of the new master.")
@click.option("--advertise-addr", metavar="HOST:PORT", required=True, help="How others will reach it.")
@click.option(
    "--peers",
    metavar="HOST:PORT,...",
    multiple=True,
    help="The advertise addresses of all new masters, this one too. Default: a single master.",
)
@click.option("--name", help="Of a single master that is started with --name. Default: the advertise address.")
@click.option("--allow-loss", is_flag=True, help="Fewer than a majority: what only the others had is lost.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def restore(
    files: tuple[Path, ...],
    data_dir: Path,
    advertise_addr: str,
    peers: tuple[str, ...],
    name: str | None,
    *,
    allow_loss: bool,
    as_json: bool,
) -> None:
    """Make DIR that of a master which goes on where the backups in FILE... end.

    Run it for each of the new masters, with the same files and the same --peers, before the first is started. Of what
    `tiflow raft backup` wrote, the cluster keeps its id, so executors and the metadata database know it; its old
    masters must not be started again. Of what `tiflow cluster backup` wrote, it gets a new id: give it a new metadata
    database, and restart executors that are to join it.

    \b
    From one master to three, on ip0, and with its own --advertise-addr on ip1 and ip2:
      tiflow raft restore m0.backup --data-dir data/master --advertise-addr ip0:10240 \\
          --peers ip0:10240,ip1:10240,ip2:10240
    """
    from tiflow.config import load_master
    from tiflow.raft import backup as backups
    from tiflow.sched.machine import Machine

    # for its checks
    config = load_master(None, addr=advertise_addr, peers=peers, name=name, insecure=True)
    read = [backups.load(file) for file in files]
    chosen = backups.newest(read, allow_loss=allow_loss)
    machine = Machine()
    machine.restore(chosen.state)
    members = config.raft.peers or (config.name,)
    itself = config.advertise_addr if config.raft.peers else config.name
    identity = backups.restore(chosen, read, data_dir / "raft", name=itself, members=tuple(sorted(members)))
    own = {"data_dir": str(data_dir), "members": ", ".join(members)}
    show_facts(own | facts(chosen, machine.state) | {"cluster_id": identity.cluster_id}, as_json)


def facts(made: "Backup", state: "State") -> dict[str, Any]:
    return {
        "cluster_id": made.cluster_id,
        "from_member": made.member,
        "last_term": made.last_term,
        "last_index": made.last_index,
        "revision": state.revision,
        "jobs": len(state.jobs),
        "executors": len(state.executors),
    }


def show_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    shown = facts | ({"size": size(facts["size"])} if "size" in facts else {})
    print_fields((name.replace("_", " "), str(value)) for name, value in shown.items())
