"""The version of the tables: what it is, and how it comes to be this tiflow's. Everything here blocks."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from tiflow.errors import FailedPrecondition, InvalidArgument, Unavailable
from tiflow.meta.tables import open_engine, reason

LOCK_NAME: Final = "tiflow-metadata-schema"
LOCK_WAIT_S: Final = 30  #: for another migrator
STEP_S_MAX: Final = 3_600  #: for one statement: a large table takes its time
BASE: Final = "base"  #: no tables at all


class NewerSchema(Exception):
    """A newer tiflow has migrated the database."""


@cache
def known() -> tuple[str, ...]:
    """The versions that this tiflow knows, the oldest first."""
    return tuple(script.revision for script in _scripts().walk_revisions())[::-1]


def current(engine: sa.Engine) -> str:
    """The database's version; BASE: it has none (it is empty, or from before there were versions)."""
    with engine.connect() as connection:
        return _current(connection)


def ensure(engine: sa.Engine) -> str:
    """Bring the database to the newest version that is known. Returns: the one that it had.

    Raises NewerSchema, SQLAlchemyError.
    """
    before = current(engine)
    newest = known()[-1]
    if before == newest:
        return before
    _check_known(before)
    return migrate(engine, newest)


def migrate(engine: sa.Engine, to: str) -> str:
    """Bring the database up, or down, to version `to`: one migrator at a time. Returns: the version that it had.

    Raises InvalidArgument (there is no such version), NewerSchema, SQLAlchemyError.
    """
    target = _target(to)
    with _locked(engine) as connection:
        before = _current(connection)
        _check_known(before)
        _run(before, target, connection=connection)
    return before


def sql(engine: sa.Engine, to: str) -> str:
    """What `migrate` would execute."""
    target, before = _target(to), current(engine)
    _check_known(before)
    out = io.StringIO()
    _run(before, target, dialect_name=engine.dialect.name, out=out)
    return out.getvalue()


def refuse(error: Exception) -> FailedPrecondition | Unavailable:
    """An error of this module, or of the database, as one of ours."""
    if isinstance(error, NewerSchema):
        return FailedPrecondition(str(error))
    return Unavailable(f"the metadata database does not answer: {reason(error)}")


def _scripts() -> ScriptDirectory:
    here = Path(__file__).parent / "migrations"
    return ScriptDirectory(str(here), version_locations=[str(here / "versions")])


def _current(connection: sa.Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or BASE


def _target(to: str) -> str:
    versions = known()
    if to == "head":
        return versions[-1]
    if to != BASE and to not in versions:
        raise InvalidArgument(f"--to {to}: there is no such version; there are base, {', '.join(versions)} and head")
    return to


def _check_known(version: str) -> None:
    versions = known()
    if version != BASE and version not in versions:
        raise NewerSchema(
            f"the database's schema is {version}, and this tiflow knows {versions[-1]}: upgrade this master, or take "
            "the database down with the newer tiflow (`tiflow metadata migrate --to`)"
        )


def _run(before: str, target: str, **options: Any) -> None:
    scripts, order = _scripts(), [BASE, *known()]
    up = order.index(target) >= order.index(before)
    out = options.pop("out", None)

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return scripts._upgrade_revs(target, revision) if up else scripts._downgrade_revs(target, revision)

    printed = {"as_sql": True, "starting_rev": before if before != BASE else None} if out is not None else {}
    with EnvironmentContext(Config(), scripts, fn=steps, destination_rev=target, **printed) as run:
        # MySQL commits each statement anyway, and our transaction on SQLite is the lock's
        run.configure(transactional_ddl=False, output_buffer=out, **options)
        run.run_migrations()


@contextmanager
def _locked(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that no other migrator has at the same time."""
    with ExitStack() as stack:
        patient = open_engine(engine.url, answer_timeout_s=STEP_S_MAX)
        stack.callback(patient.dispose)
        connection = stack.enter_context(patient.connect().execution_options(isolation_level="AUTOCOMMIT"))
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN EXCLUSIVE")  # waits for others as long as the driver's timeout
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
            return
        name = sa.func.concat(LOCK_NAME, ".", sa.func.database())
        if connection.scalar(sa.select(sa.func.get_lock(name, LOCK_WAIT_S))) != 1:
            raise sa.exc.OperationalError("GET_LOCK", None, TimeoutError("another master migrates the database"))
        try:
            yield connection
        finally:
            connection.scalar(sa.select(sa.func.release_lock(name)))
