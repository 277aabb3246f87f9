"""Reads the audit trail. Lines are written where the things happen that they tell of (`tasks/database/status.py`)."""

from datetime import datetime
from typing import Annotated

from pydantic import Field
from sqlalchemy import Engine, or_, select, union
from sqlalchemy.orm import Session

from tasks.contracts import Plain
from tasks.database.attempts import get_attempt
from tasks.database.engine import reading
from tasks.database.tables import AttemptRow, AuditRow, DecisionRow


class AuditLine(Plain):
    """One thing that happened."""

    at: datetime
    actor: Annotated[str, Field(description="Who or what did it: a flow run, the upload service, the sweep.")]
    event: Annotated[str, Field(description="Stable name, such as `status_changed` or `computation_started`.")]
    attempt: Annotated[int | None, Field(description="Left out for what happened to a comparison.")]
    from_status: str | None
    to_status: str | None
    comparison_key: str | None
    detail: str | None


def trail(engine: Engine, session_id: str) -> list[AuditLine]:
    """What happened to a session's attempts, and to the comparisons that they asked for, in its order.

    Raises:
        UnknownSession: no such session.
    """
    with reading(engine) as session:
        # Not as a subquery: with the keys as values, both indexes are used.
        of_comparison = AuditRow.session_id.is_(None) & AuditRow.comparison_key.in_(_comparisons(session, session_id))
        mine = or_(AuditRow.session_id == session_id, of_comparison)
        rows = session.scalars(select(AuditRow).where(mine).order_by(AuditRow.id)).all()
        lines = [AuditLine(**{name: getattr(row, name) for name in AuditLine.model_fields}) for row in rows]
    if not lines:
        get_attempt(engine, session_id)
    return lines


def _comparisons(session: Session, session_id: str) -> list[str]:
    asked = (
        select(table.comparison_key).where(table.session_id == session_id, table.comparison_key.is_not(None))
        for table in (AttemptRow, DecisionRow, AuditRow)
    )
    return [key for key in session.scalars(union(*asked)) if key is not None]
