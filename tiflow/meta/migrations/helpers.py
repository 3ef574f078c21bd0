"""Column types of the steps, and what makes a step repeatable. `tiflow.meta.tables` moves on, so
steps must not use it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

BYTES = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
TEXT = sa.Text().with_variant(mysql.TEXT(charset="utf8mb4"), "mysql", "mariadb")


def ascii_name(length: int) -> sa.types.TypeEngine[str]:
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(exact, "mysql", "mariadb")


def exact_text(length: int) -> sa.types.TypeEngine[str]:
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(exact, "mysql", "mariadb")


def has_column(table: str, column: str) -> bool:
    """False when the step is only printed."""
    if op.get_context().as_sql:
        return False
    return any(found["name"] == column for found in sa.inspect(op.get_bind()).get_columns(table))


def add_column(table: str, column: sa.Column[object]) -> None:
    if not has_column(table, column.name):
        op.add_column(table, column)


def create_index(name: str, table: str, column: str) -> None:
    """MySQL, unlike MariaDB, has no CREATE INDEX IF NOT EXISTS."""
    found = [] if op.get_context().as_sql else sa.inspect(op.get_bind()).get_indexes(table)
    if name not in [index["name"] for index in found]:
        op.create_index(name, table, [column])


def drop_column(table: str, column: str) -> None:
    if op.get_context().as_sql or has_column(table, column):
        op.drop_column(table, column)
