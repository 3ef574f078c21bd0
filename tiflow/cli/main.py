"""The command `tiflow`. Each error is one line on stderr and an exit code (`tiflow.errors`); never a traceback.

Commands live in the modules named in COMMANDS and are imported when they are used, so that `tiflow --help` is quick
and an executor starts its guardian before anything has loaded gRPC.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from tiflow import __version__
from tiflow.errors import TiflowError

COMMANDS = {
    "dev": ("tiflow.cli.dev:dev", "Run a whole cluster on this machine."),
    "job": ("tiflow.cli.job:job", "Submit jobs, follow them, get their results."),
    "schedule": ("tiflow.cli.schedule:schedule", "Start jobs at the times of a cron line."),
    "project": ("tiflow.cli.project:project", "Give projects quotas, and shares of the slots."),
    "executor": ("tiflow.cli.executor:executor", "Run an executor; `executor list` shows all of them."),
    "master": ("tiflow.cli.master:master", "Run a master."),
    "cluster": ("tiflow.cli.cluster:cluster", "See the whole at a glance; back it up."),
    "raft": ("tiflow.cli.raft:raft", "Look at the masters and their consensus."),
    "metadata": ("tiflow.cli.metadata:metadata", "Look at the metadata database, and migrate it."),
    "cert": ("tiflow.cli.cert:cert", "Make the certificates of a cluster."),
    "completion": ("tiflow.cli.completion:completion", "Print a script for your shell's completion."),
    "version": ("tiflow.cli.completion:version", "Print the version."),
}
INTERRUPTED, BROKEN_PIPE, BUG = 130, 1, 70


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--master-addrs",
    metavar="HOST:PORT,...",
    envvar="TIFLOW_MASTER_ADDRS",
    help="The masters, any or all of them. Default: $TIFLOW_MASTER_ADDRS, else 127.0.0.1:10240.",
)
@click.option("--ca-path", metavar="FILE", envvar="TIFLOW_CA_PATH", help="PEM: the CA of a cluster with TLS.")
@click.option("--cert-path", metavar="FILE", envvar="TIFLOW_CERT_PATH", help="PEM: your certificate.")
@click.option("--key-path", metavar="FILE", envvar="TIFLOW_KEY_PATH", help="PEM: its key.")
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def cli(ctx: click.Context, /, **connection: str | None) -> None:
    """tiflow: a highly available distributed task scheduler.

    \b
    A cluster on this machine:     tiflow dev
    A job, and its result:         tiflow job run examples/wordcount.toml
    The masters:                   tiflow raft status

    \b
    Exit codes: 0 done; 1 the job failed, or there is no quorum; 2 bad input; 3 not found; 4 exists already;
    5 not in this state; 6 a limit; 7 no master answers; 8 the outcome is not known; 9 not allowed;
    70 a bug in tiflow.
    """
    ctx.obj = connection


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC's core logs is in our message, in fewer lines
    try:
        code: Any = cli.main(args=args, prog_name="tiflow", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TiflowError as error:
        return _fail(str(error), error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "tiflow"
        return _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone; the interpreter would complain once more when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except UnicodeEncodeError:
        return _fail("an argument is not valid UTF-8 text; write it in UTF-8", 2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{where}: {error.strerror or error}; free space, or name another place", 5)
    except Exception as bug:  # noqa: BLE001  # the last one: a bug, told in one line too
        if os.environ.get("TIFLOW_DEBUG"):
            traceback.print_exc()
        kind = type(bug).__name__
        return _fail(f"a bug in tiflow: {kind}: {bug}; TIFLOW_DEBUG=1 shows where, please report it", BUG)


def _fail(message: str, code: int) -> int:
    click.echo(f"tiflow: error: {' '.join(message.split())}", err=True)
    return code
