"""`tiflow executor`: run an executor. `tiflow executor list`, `drain`, `undrain`: look after all of them."""

import time
from typing import TYPE_CHECKING

import click

from tiflow.cli.common import ago, client_options, connect, print_json, print_table, span

if TYPE_CHECKING:
    from tiflow.client import Client, ExecutorInfo

POLL_S = 0.2

if TYPE_CHECKING:
    from tiflow.client import ExecutorInfo


@click.group(invoke_without_command=True)
@click.option("--config", metavar="FILE", help="Settings as TOML; conf/executor.toml explains them all.")
@click.option("--join", metavar="HOST:PORT,...", multiple=True, help="One or more masters, any of them.")
@click.option("--addr", metavar="HOST:PORT", help="Where to listen (gRPC). Default: 127.0.0.1:10241.")
@click.option("--advertise-addr", metavar="HOST:PORT", help="How others reach this executor. Default: --addr.")
@click.option("--name", help="Its name, one of a kind. Default: from the advertise address.")
@click.option("--data-dir", metavar="DIR", help="Where results and logs are kept. Default: ./data/executor.")
@click.option("--labels", metavar="K=V,...", multiple=True, help="What jobs can select it by, as zone=eu.")
@click.option("--resources", metavar="R=N,...", multiple=True, help="What it has: cpu=4, memory=8GiB, gpu=2.")
@click.option("--slots", type=int, metavar="N", help="Tasks that run at once. Default: the number of cores.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--log-file", metavar="FILE", help="Append log lines to it. Default: stderr.")
@click.option("--ca-path", metavar="FILE", help="PEM: the cluster's CA; with the next two: mutual TLS.")
@click.option("--cert-path", metavar="FILE", help="PEM: the certificate of this process.")
@click.option("--key-path", metavar="FILE", help="PEM: its key.")
@click.option("--insecure", is_flag=True, default=None, help="Serve other machines without encryption.")
@click.pass_context
def executor(ctx: click.Context, /, config: str | None, **overrides: object) -> int:
    """Run an executor until SIGTERM or Ctrl-C, or (with a command) look after all executors.

    \b
    On the masters' machine:
      tiflow executor --join 127.0.0.1:10240
    Elsewhere:
      tiflow executor --config conf/executor.toml --join ip0:10240 --addr 0.0.0.0:10241 \\
          --advertise-addr ip1:10241 --insecure
    """
    if ctx.invoked_subcommand is not None:
        return 0
    from tiflow.config import load_executor

    settings = load_executor(config, **overrides)
    # not earlier: the guardian is forked before anything has loaded gRPC
    from tiflow import log  # noqa: F401  first
    from tiflow.exec.main import run

    return run(settings)


@executor.command(name="list")
@client_options
def list_(master_addrs: str | None, as_json: bool) -> None:
    """Show all executors, those that are gone too.

    \b
    Example: tiflow executor list
    """
    from tiflow.sched.room import show_amount

    with connect(master_addrs) as client:
        executors = client.executors()
    if as_json:
        print_json(executors)
        return
    print_table(
        ("NAME", "ADDRESS", "STATE", "SLOTS", "TASKS", "RESOURCES", "LABELS", "REGISTERED", "VERSION"),
        [
            (
                one.name,
                one.address,
                _state(one),
                one.slots,
                one.running,
                ",".join(f"{name}={show_amount(name, amount)}" for name, amount in one.capacity.items()) or "-",
                ",".join(f"{key}={value}" for key, value in one.labels.items()) or "-",
                ago(one.registered_at_ms or None),
                one.version,
            )
            for one in executors
        ],
    )


@executor.command()
@click.argument("name")
@click.option("--deadline", metavar="DURATION", help="Then stop what still runs, and place it elsewhere. As 10m.")
@click.option("--wait", is_flag=True, help="Return when nothing of it is out any more.")
@client_options
def drain(name: str, deadline: str | None, wait: bool, master_addrs: str | None, as_json: bool) -> None:
    """Place nothing more on an executor. What runs there goes on to its end, or to the deadline.

    It holds for the name, also after the executor has restarted, until `tiflow executor undrain`. A second drain can
    bring the deadline forward, and never puts it off. Tasks that are stopped at the deadline get SIGTERM, and SIGKILL
    after their grace period; they run elsewhere, and it is not counted as their failure.

    \b
    Examples:
      tiflow executor drain e7 --deadline 10m --wait
      tiflow executor drain e7 --deadline 0s
    """
    from tiflow.client import DEADLINE_S_MAX
    from tiflow.values import parse_duration_ms

    deadline_s = None
    if deadline is not None:
        deadline_s = parse_duration_ms(deadline, "--deadline", 0, DEADLINE_S_MAX * 1_000) / 1_000
    with connect(master_addrs) as client:
        info = client.drain(name, deadline_s=deadline_s)
        while wait and info.running:
            time.sleep(POLL_S)
            info = _named(client, info)
    if as_json:
        print_json(info)
    else:
        click.echo(f"executor {info.name} is {_state(info)}; {info.running} tasks are out on it")


@executor.command()
@click.argument("name")
@client_options
def undrain(name: str, master_addrs: str | None, as_json: bool) -> None:
    """Let an executor have tasks again.

    \b
    Example: tiflow executor undrain e7
    """
    with connect(master_addrs) as client:
        info = client.undrain(name)
    if as_json:
        print_json(info)
    else:
        click.echo(f"executor {info.name} is {_state(info)}")


def _named(client: "Client", info: "ExecutorInfo") -> "ExecutorInfo":
    """The executor as it is now; if it has left the list, nothing of it is out."""
    from dataclasses import replace

    known = [one for one in client.executors() if one.name == info.name]
    return next((one for one in known if one.state != "gone"), known[0] if known else replace(info, running=0))


def _state(info: "ExecutorInfo") -> str:
    if info.unhealthy:
        return f"{info.state}, unhealthy: {info.unhealthy}"
    if info.state == "gone":
        return "gone, drained" if info.drain else "gone"
    left = f" ({span(info.drain_left_ms / 1_000)} left)" if info.drain_left_ms and info.running else ""
    return f"{info.state}{left}" + ("" if info.connected else ", no session")
