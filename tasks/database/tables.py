"""The tables. Changed together with a migration; a test holds the two together."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Enum, ForeignKeyConstraint, Index, MetaData, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tasks.contracts import DecisionKind, FileKind, Reason, Status
from tasks.database.types import BigId, UtcDateTime


class Base(DeclarativeBase):
    """Constraints have names, so that migrations can change them on every backend."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy's own way
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


def _codes(values: type[FileKind] | type[DecisionKind] | type[Reason] | type[Status]) -> Enum:
    return Enum(values, native_enum=False, length=64, values_callable=lambda kind: [member.value for member in kind])


class AttemptRow(Base):
    """One attempt of a session. Whoever changes what belongs to it locks this row first."""

    __tablename__ = "attempts"

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    deadline_at: Mapped[datetime]
    status: Mapped[Status] = mapped_column(_codes(Status))
    """Changed by `tasks.database.status.move` only."""
    announced: Mapped[bool]
    flow_run_id: Mapped[str | None] = mapped_column(String(64))
    comparison_key: Mapped[str | None] = mapped_column(String(64), index=True)
    recoveries: Mapped[int] = mapped_column(default=0)
    """How often its flow run was started again after a fault, since a person or an upload last started it."""
    closed_at: Mapped[datetime | None]
    """Since when nobody is at work on it. Its media's age counts from here."""
    erased_at: Mapped[datetime | None]
    """When its media and scores were deleted."""


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


# Partial, so that the sweep finds the few attempts that need it among all that wait or are decided.
Index(
    "ix_attempts_waiting",
    AttemptRow.deadline_at,
    AttemptRow.session_id,
    AttemptRow.attempt,
    **_where("status = 'awaiting_files'"),
)
Index(
    "ix_attempts_foreign",
    AttemptRow.session_id,
    AttemptRow.attempt,
    **_where("status = 'awaiting_files' AND NOT announced"),
)
Index("ix_attempts_without_run", AttemptRow.created_at, **_where("status = 'awaiting_files' AND flow_run_id IS NULL"))
Index("ix_attempts_in_progress", AttemptRow.session_id, AttemptRow.attempt, **_where("status = 'in_progress'"))
Index("ix_attempts_unerased", AttemptRow.closed_at, **_where("closed_at IS NOT NULL AND erased_at IS NULL"))


class UploadRow(Base):
    """One stored file. The one with the greatest id of its kind counts."""

    __tablename__ = "uploads"
    __table_args__ = (
        ForeignKeyConstraint(["session_id", "attempt"], ["attempts.session_id", "attempts.attempt"]),
        Index("ix_uploads_attempt", "session_id", "attempt", "kind", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    session_id: Mapped[str] = mapped_column(String(64))
    attempt: Mapped[int]
    kind: Mapped[FileKind] = mapped_column(_codes(FileKind))
    storage_key: Mapped[str] = mapped_column(String(512), unique=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigId)
    uploaded_at: Mapped[datetime]


class ComparisonRow(Base):
    """One pair of files under one engine configuration; `result` is there when it is finished."""

    __tablename__ = "comparisons"

    comparison_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    reference_sha256: Mapped[str] = mapped_column(String(64))
    probe_sha256: Mapped[str] = mapped_column(String(64))
    engine: Mapped[dict[str, Any]]
    fingerprint: Mapped[str] = mapped_column(String(64))
    similarity: Mapped[float | None]
    result: Mapped[dict[str, Any] | None]
    picture_key: Mapped[str | None] = mapped_column(String(512))
    computations: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[datetime]
    started_by: Mapped[str] = mapped_column(String(128))
    finished_at: Mapped[datetime | None]


class LeaseRow(Base):
    """Who owns a name for a while: a comparison that is computed, a flow run's execution, a worker."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(192), primary_key=True)
    owner: Mapped[str] = mapped_column(String(192))
    token: Mapped[int] = mapped_column(BigId)
    """Grows with each owner. Who writes under a lease proves that this is still theirs."""
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    """None: released."""
    runs: Mapped[list[str] | None]
    """Of a worker's sign of life: ids of the flow runs that it has. None: it does not tell."""


class AuditRow(Base):
    """One line of the audit trail. Triggers refuse to change it, and to delete it before it is 30 days old."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_session", "session_id", "attempt", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(192))
    event: Mapped[str] = mapped_column(String(64))
    session_id: Mapped[str | None] = mapped_column(String(64))
    attempt: Mapped[int | None]
    from_status: Mapped[str | None] = mapped_column(String(64))
    to_status: Mapped[str | None] = mapped_column(String(64))
    comparison_key: Mapped[str | None] = mapped_column(String(64), index=True)
    detail: Mapped[str | None] = mapped_column(String(512))


class DecisionRow(Base):
    """The one answer of an attempt."""

    __tablename__ = "decisions"
    __table_args__ = (ForeignKeyConstraint(["session_id", "attempt"], ["attempts.session_id", "attempts.attempt"]),)

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    decision: Mapped[DecisionKind] = mapped_column(_codes(DecisionKind))
    reason: Mapped[Reason] = mapped_column(_codes(Reason))
    similarity: Mapped[float | None]
    match_threshold: Mapped[float | None]
    review_threshold: Mapped[float | None]
    bounds: Mapped[dict[str, Any] | None]
    detail: Mapped[str | None] = mapped_column(String(512))
    comparison_key: Mapped[str | None] = mapped_column(String(64), index=True)
    flow_run_id: Mapped[str | None] = mapped_column(String(64))
    decided_at: Mapped[datetime]
