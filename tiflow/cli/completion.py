"""`tiflow completion`, `tiflow version`."""

import platform

import click

from tiflow import __version__
from tiflow.cli.common import print_json


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes tiflow's commands and options.

    \b
    bash:  source <(tiflow completion bash)
    zsh:   source <(tiflow completion zsh)
    fish:  tiflow completion fish | source
    """
    from click.shell_completion import get_completion_class

    from tiflow.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows {shell}"
    click.echo(kind(cli, {}, "tiflow", "_TIFLOW_COMPLETE").source())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def version(as_json: bool) -> None:
    """Print the version of tiflow, and of the Python that runs it."""
    if as_json:
        print_json({"tiflow": __version__, "python": platform.python_version()})
    else:
        click.echo(f"tiflow {__version__} (Python {platform.python_version()})")
