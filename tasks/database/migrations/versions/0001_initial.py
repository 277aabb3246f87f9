"""Attempts, uploads, comparisons and decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "attempts",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("deadline_at", MOMENT, nullable=False),
        sa.Column("decided", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "attempt", name="pk_attempts"),
    )
    op.create_index(
        "ix_attempts_open",
        "attempts",
        ["deadline_at", "session_id", "attempt"],
        postgresql_where=sa.text("decided IS false"),
        sqlite_where=sa.text("decided IS 0"),
    )
    op.create_table(
        "uploads",
        sa.Column("id", BIG, nullable=False),
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("storage_key", sa.String(512), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", BIG, nullable=False),
        sa.Column("uploaded_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id", "attempt"], ["attempts.session_id", "attempts.attempt"], name="fk_uploads_attempts"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("storage_key", name="uq_uploads_storage_key"),
    )
    op.create_index("ix_uploads_attempt", "uploads", ["session_id", "attempt", "kind", "id"])
    op.create_table(
        "comparisons",
        sa.Column("comparison_key", sa.String(64), nullable=False),
        sa.Column("reference_sha256", sa.String(64), nullable=False),
        sa.Column("probe_sha256", sa.String(64), nullable=False),
        sa.Column("engine", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("similarity", sa.Float(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("picture_key", sa.String(512), nullable=True),
        sa.Column("computations", sa.Integer(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("started_by", sa.String(128), nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("comparison_key", name="pk_comparisons"),
    )
    op.create_table(
        "decisions",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("decision", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("similarity", sa.Float(), nullable=True),
        sa.Column("match_threshold", sa.Float(), nullable=True),
        sa.Column("review_threshold", sa.Float(), nullable=True),
        sa.Column("comparison_key", sa.String(64), nullable=True),
        sa.Column("flow_run_id", sa.String(64), nullable=True),
        sa.Column("decided_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id", "attempt"], ["attempts.session_id", "attempts.attempt"], name="fk_decisions_attempts"
        ),
        sa.PrimaryKeyConstraint("session_id", "attempt", name="pk_decisions"),
    )
