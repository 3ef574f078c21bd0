"""`tiflow metadata`: the database that keeps the history of jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from tiflow.cli.common import print_fields, print_json

if TYPE_CHECKING:
    import sqlalchemy as sa

url_options = (
    click.option("--config", metavar="FILE", help="A master's settings, for their [metadata] url."),
    click.option(
        "--url", metavar="URL", help="Such as mysql+pymysql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE."
    ),
)


@click.group()
def metadata() -> None:
    """Look at the metadata database, and migrate it.

    Masters do the latter by themselves; this is for who wants to see, or to go back.

    \b
    Example: tiflow metadata migrate --config master.toml
    """


@metadata.command()
@url_options[0]
@url_options[1]
@click.option("--to", default="head", show_default=True, metavar="VERSION", help="Up or down; base: no tables.")
@click.option("--sql", is_flag=True, help="Print the statements, and execute nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def migrate(config: str | None, url: str | None, to: str, *, sql: bool, as_json: bool) -> None:
    """Bring the tables to VERSION.

    \b
    Before an older tiflow takes over:
      tiflow metadata migrate --url mysql+pymysql://tiflow:secret@db/tiflow --to 0001
    """
    from tiflow.meta import schema

    with _engine(config, url) as engine:
        if sql:
            click.echo(schema.sql(engine, to), nl=False)
            return
        before = schema.migrate(engine, to)
        facts = {"before": before, "version": schema.current(engine)}
    if as_json:
        print_json(facts)
    else:
        print_fields(facts.items())


@metadata.command()
@url_options[0]
@url_options[1]
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def status(config: str | None, url: str | None, *, as_json: bool) -> int:
    """Show the version of the tables, whose they are, and where they stand; exit code 1 if they need migrating.

    \b
    Example: tiflow metadata status --config conf/master.toml
    """
    from tiflow.meta import schema
    from tiflow.meta.store import read_projection

    with _engine(config, url) as engine:
        version, newest = schema.current(engine), schema.known()[-1]
        found = read_projection(engine) if version == newest else None
    facts = {
        "url": engine.url.render_as_string(hide_password=True),
        "version": version,
        "newest": newest,
        "cluster_id": found[0] if found is not None else "",
        "revision": found[1].revision if found is not None else None,
    }
    if as_json:
        print_json(facts)
    else:
        print_fields((name.replace("_", " "), value) for name, value in facts.items())
    return 0 if version == newest else 1


@contextmanager
def _engine(config: str | None, url: str | None) -> "Iterator[sa.Engine]":
    """Of the database that is meant; its errors as ours."""
    import sqlalchemy as sa

    from tiflow.config import load_master
    from tiflow.errors import InvalidArgument
    from tiflow.master.metadata import metadata_url
    from tiflow.meta import schema
    from tiflow.meta.tables import open_engine

    if url is None and config is None:
        raise InvalidArgument("which database? Give --url, or --config FILE")
    engine = open_engine(url or metadata_url(load_master(config)))
    try:
        yield engine
    except (sa.exc.SQLAlchemyError, schema.NewerSchema) as error:
        raise schema.refuse(error) from error
    finally:
        engine.dispose()
