"""`tiflow master`: run a master."""

import click

from tiflow.cli.common import print_json, print_table


@click.command()
@click.option("--config", metavar="FILE", help="Settings as TOML; conf/master.toml explains them all.")
@click.option("--addr", metavar="HOST:PORT", help="Where to listen (gRPC). Default: 127.0.0.1:10240.")
@click.option("--advertise-addr", metavar="HOST:PORT", help="How others reach this master. Default: --addr.")
@click.option(
    "--peers",
    metavar="HOST:PORT,...",
    multiple=True,
    help="The advertise addresses of all masters, this one too. Default: a single master.",
)
@click.option("--name", help="Its name. Default: the advertise address.")
@click.option("--data-dir", metavar="DIR", help="Where its log and snapshots are. Default: ./data/master.")
@click.option("--http-addr", metavar="HOST:PORT", help="Dashboard, REST, metrics. Default: 127.0.0.1:10250.")
@click.option(
    "--metadata-url",
    metavar="URL",
    envvar="TIFLOW_METADATA_URL",
    help="The metadata database. Default: $TIFLOW_METADATA_URL (a password is not for a command line), else SQLite.",
)
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--log-file", metavar="FILE", help="Append log lines to it. Default: stderr.")
@click.option("--ca-path", metavar="FILE", help="PEM: the cluster's CA; with the next two: mutual TLS.")
@click.option("--cert-path", metavar="FILE", help="PEM: the certificate of this process.")
@click.option("--key-path", metavar="FILE", help="PEM: its key.")
@click.option("--insecure", is_flag=True, default=None, help="Serve other machines without encryption.")
@click.option(
    "--restore-from-metadata",
    is_flag=True,
    help="All masters' disks are lost: a new cluster takes over the jobs that [metadata] url knows.",
)
@click.option("--print-timings", is_flag=True, help="Show all timings that follow from the settings, and exit.")
@click.option("--json", "as_json", is_flag=True, help="The timings as JSON.")
def master(
    config: str | None, *, restore_from_metadata: bool, print_timings: bool, as_json: bool, **overrides: object
) -> int:
    """Run a master until SIGTERM or Ctrl-C.

    \b
    A single one:
      tiflow master
    One of three (the same on ip1 and ip2, each with its own --advertise-addr):
      tiflow master --config conf/master.toml --addr 0.0.0.0:10240 --advertise-addr ip0:10240 \\
          --peers ip0:10240,ip1:10240,ip2:10240 --insecure
    """
    from tiflow.config import load_master, timings

    settings = load_master(config, **overrides)
    if print_timings:
        rows = timings(settings)
        if as_json:
            print_json([{"name": name, "ms": ms, "meaning": meaning} for name, ms, meaning in rows])
        else:
            print_table(("TIMING", "MS", "MEANING"), rows)
        return 0
    from tiflow import log  # noqa: F401  first
    from tiflow.master.eventloop import prepare_grpc

    prepare_grpc()
    from tiflow.master.main import run

    return run(settings, restore=restore_from_metadata)
