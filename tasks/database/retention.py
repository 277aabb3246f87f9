"""What is due to be erased, and the end of its rows. Each function is one short transaction and safe to repeat.

An attempt's erasing begins and finishes here; in between, `tasks/erasing.py` erases what is not in SQL. `erased_at` is
written last, so that whatever interrupts it leaves an attempt that is still due.
"""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Engine,
    and_,
    delete,
    exists,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased

from tasks.contracts import Attempt, Status
from tasks.database.engine import reading, writing
from tasks.database.leases import Lease, prove
from tasks.database.rows import load_attempts
from tasks.database.status import move, trace
from tasks.database.tables import AttemptRow, AuditRow, ComparisonRow, DecisionRow, UploadRow
from tasks.database.types import clock


class Due(NamedTuple):
    """An attempt whose media and scores are to be erased."""

    session_id: str
    attempt: int
    closed_at: datetime


class Erasable(NamedTuple):
    """An attempt whose erasing has begun, and what belongs to it elsewhere."""

    attempt: Attempt
    comparison_keys: frozenset[str]
    """The comparisons that it asked for, or was decided by."""
    flow_run_id: UUID | None


def due_for_erasing(engine: Engine, age_seconds: float, limit: int, after: Due | None = None) -> list[Due]:
    """Attempts that are deleted, or were closed so long ago, and are not erased yet; the longest closed first.

    Args:
        after: the last of the page before.
    """
    place = (AttemptRow.closed_at, AttemptRow.session_id, AttemptRow.attempt)
    over = or_(AttemptRow.status == Status.DELETED, AttemptRow.closed_at < clock(-age_seconds))
    query = (
        select(AttemptRow.session_id, AttemptRow.attempt, AttemptRow.closed_at)
        .where(AttemptRow.closed_at.is_not(None), AttemptRow.erased_at.is_(None), over)
        .order_by(*place)
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(*place) > (after.closed_at, after.session_id, after.attempt))
    with reading(engine) as session:
        return [Due(*row) for row in session.execute(query)]


def reopen_erased(engine: Engine) -> int:
    """Make due again what was closed anew after it was erased, a session that was deleted since, say; how many."""
    again = AttemptRow.erased_at < AttemptRow.closed_at
    with writing(engine) as session:
        return len(session.execute(update(AttemptRow).where(again).values(erased_at=None).returning(literal(1))).all())


def attempts_of(engine: Engine, session_id: str) -> list[int]:
    """The numbers of a session's attempts, in their order."""
    with reading(engine) as session:
        numbers = select(AttemptRow.attempt).where(AttemptRow.session_id == session_id).order_by(AttemptRow.attempt)
        return list(session.scalars(numbers))


def begin_erasing(engine: Engine, session_id: str, attempt: int, *, by: str) -> Erasable | None:
    """Close an attempt for good: one that failed or was cancelled is deleted, so that nobody takes it up again.

    None when there is nothing to erase: it is unknown, erased already, or somebody is at work on it.
    """
    with writing(engine) as session:
        row = session.get(AttemptRow, (session_id, attempt), with_for_update=True)
        if row is None or not _is_due(row):
            return None
        if row.status in (Status.ERROR, Status.CANCELLED):
            move(session, session_id, attempt, Status.DELETED, by=by, detail="its media are erased")
        (found,) = load_attempts(session, select(AttemptRow).where(_is(session_id, attempt)))
        keys = {found.comparison_key, None if found.decision is None else found.decision.comparison_key}
        return Erasable(found, frozenset(keys - {None}), found.flow_run_id)  # type: ignore[arg-type]


def finish_erasing(engine: Engine, session_id: str, attempt: int, *, by: str) -> bool:
    """Delete the rows of an attempt's files and its scores, and note that it is erased; whether this call did so.

    A decision stays, with its reason, thresholds and times, unless the attempt is deleted.
    """
    with writing(engine) as session:
        row = session.get(AttemptRow, (session_id, attempt), with_for_update=True)
        if row is None or not _is_due(row):
            return False
        session.execute(delete(UploadRow).where(_of(UploadRow, session_id, attempt)))
        its_decision = _of(DecisionRow, session_id, attempt)
        if row.status is Status.DELETED:
            session.execute(delete(DecisionRow).where(its_decision))
        else:
            session.execute(update(DecisionRow).where(its_decision).values(similarity=None, detail=None))
        session.execute(update(AttemptRow).where(_is(session_id, attempt)).values(erased_at=clock()))
        trace(session, "media_erased", by=by, session_id=session_id, attempt=attempt)
        return True


def forget_comparison(engine: Engine, lease: Lease, key: str, *, besides: Attempt | None) -> int | None:
    """Delete a comparison's row; how many there were, 0 or 1. None when an attempt needs it: then it stays.

    Args:
        lease: of the comparison, so that nobody computes it meanwhile.
        besides: an attempt whose need does not count, as it is being erased.

    Raises:
        LeaseLost: somebody else owns the comparison. Nothing is deleted.
    """
    with writing(engine) as session:
        prove(session, lease)
        here = ComparisonRow.comparison_key == key
        deletion = delete(ComparisonRow).where(here, ~_needed(besides)).returning(literal(1))
        deleted = session.execute(deletion.execution_options(synchronize_session=False)).all()
        return None if session.scalar(select(ComparisonRow.comparison_key).where(here)) else len(deleted)


def unneeded_comparisons(engine: Engine, age_seconds: float, limit: int, after: str = "") -> list[str]:
    """Keys of comparisons that no attempt needs: what an erased attempt left, and others of that age. By key.

    Two attempts with the same files that are erased at the same moment leave theirs, as do computations that outlive
    their attempt.

    Args:
        after: the last of the page before.
    """
    key = ComparisonRow.comparison_key
    left = exists().where(AttemptRow.comparison_key == key, AttemptRow.erased_at.is_not(None))
    over = or_(ComparisonRow.started_at < clock(-age_seconds), left)
    query = select(key).where(key > after, over, ~_needed(None)).order_by(key).limit(limit)
    with reading(engine) as session:
        return list(session.scalars(query))


def known_comparisons(engine: Engine, keys: Collection[str]) -> set[str]:
    """Which of these comparisons have a row. One query."""
    with reading(engine) as session:
        there = select(ComparisonRow.comparison_key).where(ComparisonRow.comparison_key.in_(keys))
        return set(session.scalars(there))


def unerased_attempts(engine: Engine, attempts: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these attempts may still need their objects. One query."""
    place = (AttemptRow.session_id, AttemptRow.attempt)
    with reading(engine) as session:
        query = select(*place).where(tuple_(*place).in_(attempts), AttemptRow.erased_at.is_(None))
        return {(session_id, attempt) for session_id, attempt in session.execute(query)}


def forget_sessions(engine: Engine, age_seconds: float, limit: int) -> tuple[int, int]:
    """Delete the attempts and decisions of sessions all of whose attempts are erased, and were closed so long ago.

    Never a part of a session, as its further attempts rest on its first. How many attempts, and how many decisions.

    Args:
        limit: of attempts to begin with; the others of their sessions go with them.
    """
    other = aliased(AttemptRow)
    still = or_(other.closed_at.is_(None), other.closed_at >= clock(-age_seconds), other.erased_at.is_(None))
    kept = exists().where(other.session_id == AttemptRow.session_id, still)
    old = select(AttemptRow.session_id).where(AttemptRow.closed_at < clock(-age_seconds), ~kept)
    with writing(engine) as session:
        some = set(session.scalars(old.order_by(AttemptRow.closed_at).limit(limit)))
        place = (AttemptRow.session_id, AttemptRow.attempt)
        session.execute(select(*place).where(AttemptRow.session_id.in_(some)).order_by(*place).with_for_update())
        # Looked at again: a further attempt may have been made just now, by one who held the first one's row.
        sure = set(session.scalars(old.where(AttemptRow.session_id.in_(some))))
        session.execute(delete(UploadRow).where(UploadRow.session_id.in_(sure)))
        decisions = delete(DecisionRow).where(DecisionRow.session_id.in_(sure)).returning(literal(1))
        attempts = delete(AttemptRow).where(AttemptRow.session_id.in_(sure)).returning(literal(1))
        deleted = len(session.execute(decisions).all())
        return len(session.execute(attempts).all()), deleted


def forget_audit(engine: Engine, age_seconds: float, limit: int) -> int:
    """Delete so many of the lines of the audit trail that are so old; how many."""
    old = select(AuditRow.id).where(AuditRow.at < clock(-age_seconds)).order_by(AuditRow.at).limit(limit)
    with writing(engine) as session:
        return len(session.execute(delete(AuditRow).where(AuditRow.id.in_(old)).returning(literal(1))).all())


def _is_due(row: AttemptRow) -> bool:
    """Whether it is closed, and was not erased since. How old it must be is for the caller to say."""
    return row.closed_at is not None and (row.erased_at is None or row.erased_at < row.closed_at)


def _is(session_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(AttemptRow.session_id == session_id, AttemptRow.attempt == attempt)


def _of(table: type[UploadRow] | type[DecisionRow], session_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(table.session_id == session_id, table.attempt == attempt)


def _needed(besides: Attempt | None) -> ColumnElement[bool]:
    """Whether an attempt that is not erased rests on a comparison, or is about to.

    An attempt in progress may have read the row without a trace of it; that it will is known by its video.
    """
    key = ComparisonRow.comparison_key
    unerased: ColumnElement[bool] = AttemptRow.erased_at.is_(None)
    if besides is not None:
        unerased &= ~_is(besides.session_id, besides.attempt)
    decided = and_(DecisionRow.session_id == AttemptRow.session_id, DecisionRow.attempt == AttemptRow.attempt)
    uploaded = and_(UploadRow.session_id == AttemptRow.session_id, UploadRow.attempt == AttemptRow.attempt)
    in_progress = AttemptRow.status == Status.IN_PROGRESS
    return or_(
        exists().where(AttemptRow.comparison_key == key, unerased),
        exists().where(DecisionRow.comparison_key == key, decided, unerased),
        exists().where(in_progress, uploaded, UploadRow.sha256 == ComparisonRow.probe_sha256, unerased),
    )
