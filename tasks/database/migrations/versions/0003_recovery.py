"""Status of attempts, leases, and the audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add columns and tables; open attempts get the status that was derived until now."""
    op.drop_index("ix_attempts_open", "attempts")
    op.add_column("attempts", sa.Column("status", sa.String(64), nullable=False, server_default="awaiting_files"))
    op.add_column("attempts", sa.Column("announced", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("attempts", sa.Column("flow_run_id", sa.String(64), nullable=True))
    op.add_column("attempts", sa.Column("comparison_key", sa.String(64), nullable=True))
    op.add_column("attempts", sa.Column("comparison_run_id", sa.String(64), nullable=True))
    op.add_column("attempts", sa.Column("recoveries", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("closed_at", MOMENT, nullable=True))
    op.add_column("attempts", sa.Column("erased_at", MOMENT, nullable=True))
    op.execute(
        """UPDATE attempts SET status = 'in_progress' WHERE (SELECT count(DISTINCT kind) FROM uploads
        WHERE uploads.session_id = attempts.session_id AND uploads.attempt = attempts.attempt) = 2"""
    )
    op.execute(
        """UPDATE attempts SET status = 'decided', closed_at = (SELECT decided_at FROM decisions
        WHERE decisions.session_id = attempts.session_id AND decisions.attempt = attempts.attempt)
        WHERE decided"""
    )
    # Not through Alembic's batch mode: it drops the table, which the rows that refer to it forbid.
    op.execute("ALTER TABLE attempts DROP COLUMN decided")
    op.create_index("ix_attempts_comparison_key", "attempts", ["comparison_key"])
    op.create_index("ix_decisions_comparison_key", "decisions", ["comparison_key"])
    _partial("ix_attempts_waiting", ["deadline_at", "session_id", "attempt"], "status = 'awaiting_files'")
    _partial("ix_attempts_in_progress", ["session_id", "attempt"], "status = 'in_progress'")
    _partial("ix_attempts_unerased", ["closed_at"], "closed_at IS NOT NULL AND erased_at IS NULL")
    op.create_table(
        "leases",
        sa.Column("name", sa.String(192), nullable=False),
        sa.Column("owner", sa.String(192), nullable=False),
        sa.Column("token", BIG, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_index("ix_leases_expires_at", "leases", ["expires_at"])
    op.create_table(
        "audit",
        sa.Column("id", BIG, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("actor", sa.String(192), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("session_id", sa.String(64), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("from_status", sa.String(64), nullable=True),
        sa.Column("to_status", sa.String(64), nullable=True),
        sa.Column("comparison_key", sa.String(64), nullable=True),
        sa.Column("detail", sa.String(512), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_session", "audit", ["session_id", "attempt", "id"])
    op.create_index("ix_audit_comparison_key", "audit", ["comparison_key"])
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)


def _partial(name: str, columns: list[str], condition: str) -> None:
    op.create_index(name, "attempts", columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))


APPEND_ONLY = {
    "postgresql": (
        """CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'DELETE' AND OLD.at < clock_timestamp() - interval '30 days' THEN
                RETURN OLD;
            END IF;
            RAISE EXCEPTION 'The audit trail is append-only.' USING ERRCODE = 'integrity_constraint_violation';
        END $$""",
        """CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
        FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()""",
    ),
    "sqlite": (
        """CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END""",
        """CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
        WHEN OLD.at >= strftime('%Y-%m-%d %H:%M:%f000', 'now', '-30 days')
        BEGIN SELECT RAISE(ABORT, 'The audit trail is append-only.'); END""",
    ),
}
