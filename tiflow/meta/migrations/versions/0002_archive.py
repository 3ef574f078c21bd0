"""What finished jobs leave behind when they leave the masters' memory; fences of checkpoints.

Rows from before have no archive: the projection begins anew, which writes all jobs again that the masters have.
"""

import sqlalchemy as sa
from alembic import op

from tiflow.meta.migrations.helpers import BYTES, add_column, ascii_name, drop_column, exact_text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "job_archives",
        sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", BYTES, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "job_fences",
        sa.Column("uid", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("holder", ascii_name(255), primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    add_column("jobs", sa.Column("token", exact_text(128), nullable=False, server_default=""))
    add_column("projection", sa.Column("pruned", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE projection SET revision = 0")


def downgrade() -> None:
    drop_column("projection", "pruned")
    drop_column("jobs", "token")
    op.drop_table("job_fences", if_exists=True)
    op.drop_table("job_archives", if_exists=True)
