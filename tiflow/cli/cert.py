"""`tiflow cert`: a certificate authority for one cluster, in a directory."""

from pathlib import Path

import click

from tiflow.cli.common import print_fields, print_json


@click.group()
def cert() -> None:
    """Make the certificates of a cluster, where no other authority makes them.

    \b
    Once, on a machine of yours:
      tiflow cert ca certs
      tiflow cert issue certs m0 --host ip0 --host ip0.example.org
      tiflow cert issue certs ops
    Then copy ca.pem, m0.pem and m0-key.pem to m0, and name them in its [security]. Keep ca-key.pem where it is.
    """


@cert.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--days", default=3_650, type=click.IntRange(1, 36_500), metavar="N", help="Valid so long. Default: 3650."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def ca(directory: Path, days: int, *, as_json: bool) -> None:
    """Make an authority: DIRECTORY/ca.pem, and ca-key.pem, which signs and is to be kept secret.

    \b
    Example: tiflow cert ca certs
    """
    from tiflow.rpc import certificates

    _show({"ca_path": str(certificates.create_authority(directory, days))}, as_json)


@cert.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="An address or name by which others dial it; * for one label. As often as needed; none for a client.",
)
@click.option("--days", default=365, type=click.IntRange(1, 36_500), metavar="N", help="Valid so long. Default: 365.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def issue(directory: Path, name: str, hosts: tuple[str, ...], days: int, *, as_json: bool) -> None:
    """Sign a certificate with the common name NAME: DIRECTORY/NAME.pem and NAME-key.pem, over those of before.

    \b
    Examples:
      tiflow cert issue certs m0 --host 10.0.0.10 --host m0.example.org
      tiflow cert issue certs ops
    """
    from tiflow.rpc import certificates

    paths = certificates.issue(directory, name, hosts, days)
    _show({"ca_path": paths.ca_path, "cert_path": paths.cert_path, "key_path": paths.key_path}, as_json)


def _show(paths: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(paths)
    else:
        print_fields((name.replace("_", "-"), path) for name, path in paths.items())
