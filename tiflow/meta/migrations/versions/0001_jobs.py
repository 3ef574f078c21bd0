"""Jobs, their events and checkpoints, and where the database stands.

Databases from before there were migrations have these tables already.
"""

import sqlalchemy as sa
from alembic import op

from tiflow.meta.migrations.helpers import BYTES, TEXT, ascii_name, create_index

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "projection",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("cluster_id", ascii_name(128), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "jobs",
        sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", ascii_name(128), nullable=False),
        sa.Column("cluster_id", ascii_name(128), nullable=False),
        sa.Column("state", ascii_name(32), nullable=False),
        sa.Column("type", ascii_name(32), nullable=False),
        sa.Column("spec", BYTES, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("succeeded", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("canceled", sa.BigInteger, nullable=False),
        sa.Column("submitted_at_ms", sa.BigInteger, nullable=False),
        sa.Column("started_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
        sa.Column("mod_revision", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    create_index("ix_jobs_id", "jobs", "id")
    create_index("ix_jobs_state", "jobs", "state")
    op.create_table(
        "job_events",
        sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", ascii_name(32), nullable=False),
        sa.Column("message", TEXT, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "job_checkpoints",
        sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", ascii_name(255), primary_key=True),
        sa.Column("value", BYTES, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )


def downgrade() -> None:
    for table in ("job_checkpoints", "job_events", "jobs", "projection"):
        op.drop_table(table, if_exists=True)
