"""Who gave the command that an event came of. Nobody knows that of rows from before."""

import sqlalchemy as sa

from tiflow.meta.migrations.helpers import add_column, drop_column, exact_text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    add_column("job_events", sa.Column("by_whom", exact_text(255), nullable=False, server_default=""))


def downgrade() -> None:
    drop_column("job_events", "by_whom")
