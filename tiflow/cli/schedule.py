"""`tiflow schedule`: jobs that start at the times of a cron line."""

from typing import TYPE_CHECKING

import click

from tiflow.cli.common import ago, client_options, connect, print_fields, print_json, print_table, span
from tiflow.errors import InvalidArgument

if TYPE_CHECKING:
    from tiflow.views import ScheduleInfo


@click.group()
def schedule() -> None:
    """Start jobs at the times of a cron line.

    A schedule outlives the leader: each of its times is dealt with once, whoever leads.

    \b
    Example: tiflow schedule create nightly --cron "30 2 * * *" --file job.toml
    """


@schedule.command()
@click.argument("name")
@click.option("--cron", required=True, metavar="LINE", help='As "*/5 * * * *"; six fields: the second comes first.')
@click.option("--timezone", default="UTC", metavar="ZONE", help="As Europe/Berlin. Default: UTC.")
@click.option("--file", required=True, type=click.Path(), help="The job file; its id is not used.")
@click.option(
    "--overlap",
    default="skip",
    type=click.Choice(["skip", "allow", "replace"]),
    help="At its time, while a run has not ended: start none, start it, or cancel the old one. Default: skip.",
)
@click.option(
    "--missed",
    default="skip",
    type=click.Choice(["skip", "run-once"]),
    help="Times when no master led: forget them, or run once for all. Default: skip.",
)
@click.option("--keep", default=10, type=click.IntRange(1, 100), help="Ended runs that are kept. Default: 10.")
@click.option("--paused", is_flag=True, help="Start nothing until it is resumed.")
@client_options
def create(
    name: str,
    cron: str,
    timezone: str,
    file: str,
    overlap: str,
    missed: str,
    keep: int,
    paused: bool,
    master_addrs: str | None,
    as_json: bool,
) -> None:
    """Create a schedule. Its runs are jobs named NAME-TIME, the time in UTC.

    \b
    Examples:
      tiflow schedule create nightly --cron "30 2 * * *" --timezone Europe/Berlin --file job.toml
      tiflow schedule create ping --cron "*/10 * * * * *" --file examples/command.toml --overlap replace
    """
    from tiflow.jobs.spec import load_job

    spec = load_job(file, id=name)
    with connect(master_addrs) as client:
        info = client.schedules.create(
            name, spec, cron, timezone=timezone, overlap=overlap, missed=missed, keep=keep, paused=paused
        )
    if as_json:
        print_json(info)
    else:
        click.echo(f"schedule {info.name} is created; {_next(info)}")


@schedule.command(name="list")
@client_options
def list_(master_addrs: str | None, as_json: bool) -> None:
    """Show all schedules.

    \b
    Example: tiflow schedule list
    """
    with connect(master_addrs) as client:
        schedules = client.schedules.list()
    if as_json:
        print_json(schedules)
        return
    print_table(
        ("NAME", "CRON", "TIMEZONE", "NEXT", "LAST", "RUNNING", "WHAT BECAME OF THE LAST"),
        [
            (
                one.name,
                one.cron,
                one.timezone,
                "paused" if one.paused else _in(one.next_at_ms),
                ago(one.last_at_ms),
                sum(run.ended_at_ms is None for run in one.runs),
                one.note or "-",
            )
            for one in schedules
        ],
    )


@schedule.command()
@click.argument("name")
@client_options
def get(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Show a schedule and its newest runs.

    \b
    Example: tiflow schedule get nightly
    """
    with connect(master_addrs) as client:
        info = client.schedules.get(name)
    if as_json:
        print_json(info)
        return
    print_fields(
        [
            ("name", info.name),
            ("cron", f"{info.cron} ({info.timezone})"),
            ("overlap", info.overlap),
            ("missed", info.missed),
            ("keep", info.keep),
            ("next", _next(info)),
            ("last", f"{_local(info.last_at_ms, info.timezone)}: {info.note}" if info.last_at_ms else ""),
        ]
    )
    click.echo()
    print_table(
        ("RUN", "STATE", "STARTED", "TOOK"),
        [
            (
                run.id,
                run.state,
                ago(run.submitted_at_ms),
                span((run.ended_at_ms - run.submitted_at_ms) / 1_000) if run.ended_at_ms else "-",
            )
            for run in info.runs
        ],
    )


@schedule.command(name="next")
@click.argument("name")
@click.option("--count", default=5, type=click.IntRange(1, 100), help="How many. Default: 5.")
@client_options
def next_(name: str, count: int, master_addrs: str | None, as_json: bool) -> None:
    """Show the next times of a schedule, in its time zone.

    \b
    Example: tiflow schedule next nightly --count 10
    """
    with connect(master_addrs) as client:
        info = client.schedules.get(name, times=count)
    if as_json:
        print_json(info.times_ms)
        return
    if not info.times_ms:
        click.echo(_next(info))
    for at_ms in info.times_ms:
        click.echo(_local(at_ms, info.timezone))


@schedule.command()
@click.argument("name")
@client_options
def pause(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Start no more runs until the schedule is resumed; what runs goes on.

    \b
    Example: tiflow schedule pause nightly
    """
    with connect(master_addrs) as client:
        info = client.schedules.pause(name)
    if as_json:
        print_json(info)
    else:
        click.echo(f"schedule {info.name} is paused")


@schedule.command()
@click.argument("name")
@client_options
def resume(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Go on with a schedule that was paused. Times that have passed meanwhile are not made up for.

    \b
    Example: tiflow schedule resume nightly
    """
    with connect(master_addrs) as client:
        info = client.schedules.resume(name)
    if as_json:
        print_json(info)
    else:
        click.echo(f"schedule {info.name} is resumed; {_next(info)}")


@schedule.command()
@click.argument("name")
@client_options
def delete(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Forget a schedule; its runs stay, and go on.

    \b
    Example: tiflow schedule delete nightly
    """
    with connect(master_addrs) as client:
        client.schedules.delete(name)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        click.echo(f"schedule {name} is deleted")


@schedule.command()
@click.argument("name")
@client_options
def trigger(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Start a run now, whatever else runs, and print its id.

    \b
    Example: tiflow job wait $(tiflow schedule trigger nightly)
    """
    with connect(master_addrs) as client:
        handle = client.schedules.trigger(name)
    if as_json:
        print_json({"id": handle.id, "uid": handle.uid})
    else:
        click.echo(handle.id)


def _next(info: "ScheduleInfo") -> str:
    if info.paused:
        return "paused"
    if info.next_at_ms is None:
        return "never again"
    return f"next at {_local(info.next_at_ms, info.timezone)}, {_in(info.next_at_ms)}"


def _in(at_ms: int | None) -> str:
    import time

    return "-" if at_ms is None else f"in {span(at_ms / 1_000 - time.time())}"


def _local(at_ms: int, timezone: str) -> str:
    from tiflow.jobs.cron import show_local

    try:
        return show_local(at_ms, timezone)
    except InvalidArgument:  # a zone that this machine does not know
        return show_local(at_ms, "UTC")
