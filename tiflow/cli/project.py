"""`tiflow project`: quotas and shares that jobs have in common."""

from typing import TYPE_CHECKING

import click

from tiflow.cli.common import client_options, connect, print_json, print_table

if TYPE_CHECKING:
    from tiflow.views import ProjectInfo

QUOTA = click.IntRange(0, 1_000_000_000)


@click.group()
def project() -> None:
    """Give projects quotas, and shares of the slots.

    A job names its project in its file; without one it belongs to `default`.

    \b
    Example: tiflow project set research --slots 40 --weight 3
    """


@project.command(name="set")
@click.argument("name")
@click.option("--slots", type=QUOTA, metavar="N", help="Tasks that are out at one time; more wait. 0: no bound.")
@click.option("--tasks", type=QUOTA, metavar="N", help="Tasks that wait; more are refused. 0: no bound.")
@click.option("--jobs", type=QUOTA, metavar="N", help="Jobs that have not ended; more are refused. 0: no bound.")
@click.option("--weight", type=click.IntRange(1, 1_000), metavar="W", help="Of its share. Default: 1.")
@client_options
def set_(
    name: str,
    slots: int | None,
    tasks: int | None,
    jobs: int | None,
    weight: int | None,
    master_addrs: str | None,
    as_json: bool,
) -> None:
    """Make a project, or change it; what is not given stays as it is.

    When projects compete at the same priority, they get slots in proportion to their weights.

    \b
    Example: tiflow project set research --slots 40 --tasks 1000000 --jobs 100 --weight 3
    """
    with connect(master_addrs) as client:
        info = client.projects.set(name, slots=slots, tasks=tasks, jobs=jobs, weight=weight)
    _show([info], info, as_json)


@project.command(name="list")
@client_options
def list_(master_addrs: str | None, as_json: bool) -> None:
    """Show all projects: what they use, and their quotas.

    \b
    Example: tiflow project list
    """
    with connect(master_addrs) as client:
        projects = client.projects.list()
    _show(list(projects), projects, as_json)


@project.command()
@click.argument("name")
@client_options
def get(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Show a project.

    \b
    Example: tiflow project get research
    """
    with connect(master_addrs) as client:
        info = client.projects.get(name)
    _show([info], info, as_json)


@project.command()
@click.argument("name")
@client_options
def delete(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Delete a project all of whose jobs have ended; `default` gets its defaults back.

    \b
    Example: tiflow project delete research
    """
    with connect(master_addrs) as client:
        client.projects.delete(name)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        click.echo(f"project {name} is deleted")


def _show(projects: "list[ProjectInfo]", value: object, as_json: bool) -> None:
    if as_json:
        print_json(value)
        return
    print_table(
        ("NAME", "WEIGHT", "RUNNING", "SLOTS", "WAITING", "TASKS", "LIVE JOBS", "JOBS"),
        [
            (
                one.name,
                one.weight,
                one.running,
                one.slots_max or "-",
                one.waiting,
                one.tasks_max or "-",
                one.jobs,
                one.jobs_max or "-",
            )
            for one in projects
        ],
    )
