"""A session is one flow run, which compares its files itself. Workers tell which runs they have. Indexes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the second flow run. Attempts in flight stay as they are."""
    # Not through Alembic's batch mode: it drops the table, which the rows that refer to it forbid.
    op.execute("ALTER TABLE attempts DROP COLUMN comparison_run_id")
    op.add_column("leases", sa.Column("runs", sa.JSON(none_as_null=True), nullable=True))
    _partial("ix_attempts_foreign", ["session_id", "attempt"], "status = 'awaiting_files' AND NOT announced")
    _partial("ix_attempts_without_run", ["created_at"], "status = 'awaiting_files' AND flow_run_id IS NULL")


def _partial(name: str, columns: list[str], condition: str) -> None:
    op.create_index(name, "attempts", columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))
