"""Decisions keep the bounds that they were made with, and the figure that a rejection rests on."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("decisions", sa.Column("bounds", sa.JSON(), nullable=True))
    op.add_column("decisions", sa.Column("detail", sa.String(512), nullable=True))
