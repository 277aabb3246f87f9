"""Rows in, contracts out."""

from collections import defaultdict
from uuid import UUID

from sqlalchemy import Select, and_, func, select, tuple_
from sqlalchemy.orm import Session

from tasks.contracts import (
    Attempt,
    Bounds,
    Comparison,
    Decision,
    EngineConfig,
    FaceComparison,
    FilePair,
    StoredFile,
    Thresholds,
)
from tasks.database.tables import AttemptRow, ComparisonRow, DecisionRow, UploadRow


def load_attempts(session: Session, query: Select[tuple[AttemptRow]]) -> list[Attempt]:
    """The attempts that a query selects, in its order, each with its newest files and its decision. Two queries."""
    same = and_(DecisionRow.session_id == AttemptRow.session_id, DecisionRow.attempt == AttemptRow.attempt)
    found = session.execute(query.outerjoin(DecisionRow, same).add_columns(DecisionRow)).all()
    files = _newest_files(session, [(row.session_id, row.attempt) for row, _ in found])
    return [
        Attempt(
            session_id=row.session_id,
            attempt=row.attempt,
            created_at=row.created_at,
            deadline_at=row.deadline_at,
            status=row.status,
            announced=row.announced,
            files=FilePair(**files[row.session_id, row.attempt]),
            decision=None if decision is None else to_decision(decision),
            flow_run_id=None if row.flow_run_id is None else UUID(row.flow_run_id),
            comparison_key=row.comparison_key,
            recoveries=row.recoveries,
        )
        for row, decision in found
    ]


def _newest_files(session: Session, attempts: list[tuple[str, int]]) -> dict[tuple[str, int], dict[str, StoredFile]]:
    files: dict[tuple[str, int], dict[str, StoredFile]] = defaultdict(dict)
    if not attempts:
        return files
    newest = (
        select(func.max(UploadRow.id))
        .where(tuple_(UploadRow.session_id, UploadRow.attempt).in_(attempts))
        .group_by(UploadRow.session_id, UploadRow.attempt, UploadRow.kind)
    )
    for row in session.scalars(select(UploadRow).where(UploadRow.id.in_(newest))):
        files[row.session_id, row.attempt][row.kind.value] = StoredFile(
            storage_key=row.storage_key, sha256=row.sha256, size_bytes=row.size_bytes
        )
    return files


def to_decision(row: DecisionRow) -> Decision:
    """A decision as stored."""
    thresholds = None
    if row.match_threshold is not None and row.review_threshold is not None:
        thresholds = Thresholds(match=row.match_threshold, review=row.review_threshold)
    return Decision(
        session_id=row.session_id,
        attempt=row.attempt,
        decision=row.decision,
        reason=row.reason,
        similarity=row.similarity,
        thresholds=thresholds,
        bounds=None if row.bounds is None else Bounds.model_validate(row.bounds),
        detail=row.detail,
        comparison_key=row.comparison_key,
        decided_at=row.decided_at,
    )


def to_comparison(row: ComparisonRow) -> Comparison | None:
    """A comparison as stored; None while it is not finished."""
    if row.finished_at is None:
        return None
    return Comparison(
        comparison_key=row.comparison_key,
        result=FaceComparison.model_validate(row.result),
        engine=EngineConfig.model_validate(row.engine),
        picture_key=row.picture_key,
        computations=row.computations,
        started_by=row.started_by,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
