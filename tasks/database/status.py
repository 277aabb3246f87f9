"""Which changes of an attempt's status are possible, and the one function that makes them. Each leaves a trace."""

from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from tasks.contracts import OPEN, Status
from tasks.database.tables import AttemptRow, AuditRow
from tasks.database.types import clock

POSSIBLE: dict[Status, frozenset[Status]] = {
    Status.AWAITING_FILES: frozenset({Status.CANCELLED, Status.ERROR}),
    Status.IN_PROGRESS: frozenset({Status.AWAITING_FILES, Status.CANCELLED, Status.ERROR}),
    Status.DECIDED: frozenset(OPEN),
    Status.ERROR: frozenset(OPEN),
    Status.CANCELLED: frozenset({*OPEN, Status.ERROR}),
    Status.DELETED: frozenset(Status) - {Status.DELETED},
}
"""To a status, from these. A decided attempt can only be deleted."""


def move(session: Session, session_id: str, attempt: int, to: Status, *, by: str, detail: str | None = None) -> bool:
    """Compare and set: whether the attempt was in a status from which it may go to `to`, and now is there.

    Args:
        by: who or what asks for it, for the audit trail.
    """
    here = (AttemptRow.session_id == session_id) & (AttemptRow.attempt == attempt)
    before = session.scalar(select(AttemptRow.status).where(here).with_for_update())
    if before not in POSSIBLE[to]:
        return False
    values: dict[str, Any] = {"status": to, "closed_at": None if to in OPEN else clock()}
    if before not in OPEN and to in OPEN:
        # Somebody takes it up again: what failed before does not count against it.
        values |= {"recoveries": 0, "comparison_key": None}
    changed = session.execute(
        update(AttemptRow).where(here, AttemptRow.status == before).values(**values).returning(AttemptRow.attempt)
    ).first()
    if changed is None:
        return False
    session.expire_all()
    trace(
        session, "status_changed", by=by, session_id=session_id, attempt=attempt,
        from_status=before, to_status=to, detail=detail,
    )  # fmt: skip
    return True


def trace(session: Session, event: str, *, by: str, detail: str | None = None, **where: Any) -> None:
    """Add a line to the audit trail, in the transaction that does what it tells of.

    Args:
        where: `session_id`, `attempt`, `from_status`, `to_status`, `comparison_key`, as far as they apply.
    """
    cut = None if detail is None else detail[:512]
    session.execute(insert(AuditRow).values(at=clock(), actor=by[:192], event=event, detail=cut, **where))
