"""Attempts, their uploads and their decision. Each function is one short transaction and safe to repeat."""

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, and_, exists, select, tuple_, update
from sqlalchemy.orm import Session

from tasks.contracts import (
    OPEN,
    Attempt,
    Bounds,
    Decision,
    FileKind,
    FilePair,
    Status,
    StoredFile,
    Thresholds,
    Verdict,
)
from tasks.database.engine import reading, writing
from tasks.database.insert import insert_once
from tasks.database.rows import load_attempts
from tasks.database.status import move, trace
from tasks.database.tables import AttemptRow, DecisionRow, UploadRow
from tasks.database.types import clock
from tasks.errors import SessionCancelled, SessionDecided, SessionDeleted, SessionUndecided, UnknownSession

API = "upload service"
MOST_NAMES = 1000
"""In one query: databases bound its parameters."""


def open_attempt(
    engine: Engine, session_id: str, attempt: int, deadline_seconds: float, *, by: str = API
) -> tuple[Attempt, bool]:
    """The attempt that is there, and whether this call made it. Only attempt 1 is made here; see `next_attempt`.

    Raises:
        UnknownSession: a further attempt that `next_attempt` has not made.
        SessionDeleted: it was deleted.
    """
    with writing(engine) as session:
        made = attempt == 1 and _insert(session, session_id, 1, deadline_seconds, by)
        found = _one(session, session_id, attempt)
        if found.status is Status.DELETED:
            raise _deleted(session_id)
        return found, made


def next_attempt(engine: Engine, session_id: str, deadline_seconds: float, *, by: str = API) -> Attempt:
    """A session's attempt after the decided one. Two calls at once, or one whose answer was lost, give one attempt.

    Raises:
        UnknownSession: no such session.
        SessionUndecided: the latest attempt has no decision yet.
        SessionDeleted: it was deleted.
    """
    with writing(engine) as session:
        _lock(session, session_id, 1)
        latest = _one(session, session_id, None)
        if latest.status is Status.DELETED:
            raise _deleted(session_id)
        if latest.status is Status.DECIDED:
            _insert(session, session_id, latest.attempt + 1, deadline_seconds, by)
            return _one(session, session_id, latest.attempt + 1)
    if latest.attempt > 1 and latest.files == FilePair():
        return latest
    raise SessionUndecided(
        f"Attempt {latest.attempt} of session {session_id!r} has no decision yet. Upload to it, or wait for its end."
    )


def get_attempt(engine: Engine, session_id: str, attempt: int | None = None) -> Attempt:
    """An attempt as it stands; None asks for the latest. Raises UnknownSession."""
    with reading(engine) as session:
        return _one(session, session_id, attempt)


def register_upload(
    engine: Engine, session_id: str, attempt: int, kind: FileKind, stored: StoredFile, *, by: str = API
) -> Attempt:
    """Record a stored file: the newest of its kind counts. The same storage key again changes nothing.

    Raises:
        UnknownSession: no such attempt.
        SessionDecided: its decision is there, so that the file cannot count any more. It is not recorded.
        SessionDeleted: likewise.
    """
    with writing(engine) as session:
        status = _lock(session, session_id, attempt).status
        if status is Status.DELETED:
            raise _deleted(session_id)
        # A flow run may have found and recorded the object first, and the decision may rest on it.
        if status is Status.DECIDED and not _is_recorded(session, stored.storage_key):
            raise session_decided(session_id, attempt)
        new = insert_once(
            session,
            UploadRow,
            session_id=session_id,
            attempt=attempt,
            kind=kind,
            uploaded_at=clock(),
            **stored.model_dump(),
        )
        if new:
            trace(session, "file_stored", by=by, session_id=session_id, attempt=attempt, detail=kind.value)
        found = _one(session, session_id, attempt)
        if status is Status.AWAITING_FILES and found.files.complete:
            move(session, session_id, attempt, Status.IN_PROGRESS, by=by)
            return _one(session, session_id, attempt)
        return found


def registered(engine: Engine, storage_keys: Collection[str]) -> set[str]:
    """Which of these storage keys belong to a recorded upload. One query for every thousand."""
    keys = sorted(storage_keys)
    with reading(engine) as session:
        some = [keys[start : start + MOST_NAMES] for start in range(0, len(keys), MOST_NAMES)]
        return {
            key
            for one in some
            for key in session.scalars(select(UploadRow.storage_key).where(UploadRow.storage_key.in_(one)))
        }


def record_decision(
    engine: Engine,
    session_id: str,
    attempt: int,
    *,
    verdict: Verdict,
    files: FilePair,
    similarity: float | None = None,
    thresholds: Thresholds | None = None,
    bounds: Bounds | None = None,
    comparison_key: str | None = None,
    flow_run_id: str | None = None,
) -> Decision | None:
    """Record the decision on these files, or find the one that is there: an attempt has one decision, ever.

    None when the attempt's newest files are others than `files`: look again, as the latest pair counts.

    Raises:
        UnknownSession: no such attempt.
        SessionCancelled, SessionDeleted: nobody waits for it any more. Nothing is recorded.
    """
    by = f"flow run {flow_run_id}"
    with writing(engine) as session:
        _lock(session, session_id, attempt)
        standing = _one(session, session_id, attempt)
        if standing.status is Status.DELETED:
            raise _deleted(session_id)
        if standing.decision is not None:
            return standing.decision
        if _keys(standing.files) != _keys(files):
            return None
        if not move(session, session_id, attempt, Status.DECIDED, by=by, detail=verdict.reason.value):
            raise SessionCancelled(
                f"Attempt {attempt} of session {session_id!r} is {standing.status.value}: nothing is recorded. "
                f"Take it up again with POST /sessions/{session_id}/resume."
            )
        insert_once(
            session,
            DecisionRow,
            session_id=session_id,
            attempt=attempt,
            decision=verdict.decision,
            reason=verdict.reason,
            similarity=similarity,
            match_threshold=thresholds.match if thresholds else None,
            review_threshold=thresholds.review if thresholds else None,
            bounds=bounds.model_dump(mode="json") if bounds else None,
            detail=None if verdict.detail is None else verdict.detail[:512],
            comparison_key=comparison_key,
            flow_run_id=flow_run_id,
            decided_at=clock(),
        )
        return _one(session, session_id, attempt).decision


def take_up(engine: Engine, session_id: str, attempt: int, *, by: str) -> Attempt:
    """The attempt, open again if it was cancelled or had failed: somebody goes on with it.

    Raises:
        UnknownSession: no such attempt. SessionDeleted: it was deleted.
    """
    with writing(engine) as session:
        _lock(session, session_id, attempt)
        found = _one(session, session_id, attempt)
        if found.status is Status.DELETED:
            raise _deleted(session_id)
        if found.status in (Status.CANCELLED, Status.ERROR):
            to = Status.IN_PROGRESS if found.files.complete else Status.AWAITING_FILES
            move(session, session_id, attempt, to, by=by, detail="taken up again")
            return _one(session, session_id, attempt)
        return found


def close(engine: Engine, session_id: str, attempt: int, to: Status, *, by: str, detail: str | None = None) -> bool:
    """See `move`: in a transaction of its own. False when a decision, a person or another fault was first."""
    with writing(engine) as session:
        return move(session, session_id, attempt, to, by=by, detail=detail)


def note_run(engine: Engine, session_id: str, attempt: int, flow_run_id: UUID, *, by: str) -> None:
    """Remember the flow run that follows an attempt."""
    with writing(engine) as session:
        new = AttemptRow.flow_run_id.is_(None) | (AttemptRow.flow_run_id != str(flow_run_id))
        if _set(session, session_id, attempt, new, flow_run_id=str(flow_run_id)):
            trace(session, "run_created", by=by, session_id=session_id, attempt=attempt, detail=str(flow_run_id))


def note_comparison(engine: Engine, session_id: str, attempt: int, key: str, *, by: str) -> bool:
    """Remember which comparison an attempt has asked for. False if it is closed."""
    with writing(engine) as session:
        if not _set(session, session_id, attempt, AttemptRow.status.in_(OPEN), comparison_key=key):
            return False
        trace(session, "comparison_requested", by=by, session_id=session_id, attempt=attempt, comparison_key=key)
        return True


def count_recovery(engine: Engine, session_id: str, attempt: int, seen: int, *, by: str, detail: str) -> bool:
    """Count that a run is started again after a fault. False when another sweep has just done so."""
    with writing(engine) as session:
        if not _set(session, session_id, attempt, AttemptRow.recoveries == seen, recoveries=seen + 1):
            return False
        trace(session, "run_started_again", by=by, session_id=session_id, attempt=attempt, detail=detail)
        return True


def overdue(engine: Engine, limit: int, after: Attempt | None = None) -> list[Attempt]:
    """Attempts that wait for a file though their deadline is over, the longest first. Two queries for any number.

    Args:
        after: the last of the page before.
    """
    place = (AttemptRow.deadline_at, AttemptRow.session_id, AttemptRow.attempt)
    late = (AttemptRow.status == Status.AWAITING_FILES) & (AttemptRow.deadline_at <= clock())
    query = select(AttemptRow).where(late).order_by(*place).limit(limit)
    if after is not None:
        query = query.where(tuple_(*place) > (after.deadline_at, after.session_id, after.attempt))
    with reading(engine) as session:
        return load_attempts(session, query)


def in_progress(engine: Engine, limit: int, after: Attempt | None = None, *, settled_seconds: float) -> list[Attempt]:
    """Attempts that have both files and no decision, by id; `after` is the last of the page before. Two queries.

    Args:
        settled_seconds: how old the last upload must be, by the database's clock.
    """
    of_attempt = and_(UploadRow.session_id == AttemptRow.session_id, UploadRow.attempt == AttemptRow.attempt)
    fresh = exists().where(of_attempt, UploadRow.uploaded_at > clock(-settled_seconds))
    return _page(engine, (AttemptRow.status == Status.IN_PROGRESS) & ~fresh, limit, after)


def of_another_system(engine: Engine, limit: int, after: Attempt | None = None) -> list[Attempt]:
    """Attempts that wait for files which no upload service tells of, by id; `after` as above. Two queries."""
    return _page(engine, (AttemptRow.status == Status.AWAITING_FILES) & ~AttemptRow.announced, limit, after)


def decided_beside(engine: Engine, *, since: datetime) -> list[Attempt]:
    """Attempts that another flow run than their own has decided since then, the earliest first. Two queries."""
    closed = (AttemptRow.closed_at > since) & AttemptRow.erased_at.is_(None)
    of_attempt = and_(DecisionRow.session_id == AttemptRow.session_id, DecisionRow.attempt == AttemptRow.attempt)
    beside = exists().where(of_attempt, DecisionRow.flow_run_id != AttemptRow.flow_run_id).correlate(AttemptRow)
    with reading(engine) as session:
        # By this order SQLite, too, takes the index of `closed_at`.
        return load_attempts(session, select(AttemptRow).where(closed & beside).order_by(AttemptRow.closed_at))


def without_run(engine: Engine, limit: int, *, settled_seconds: float) -> list[Attempt]:
    """Attempts that wait for files and have no flow run, though they were made so long ago. Two queries."""
    waiting = (AttemptRow.status == Status.AWAITING_FILES) & AttemptRow.flow_run_id.is_(None)
    query = select(AttemptRow).where(waiting, AttemptRow.created_at <= clock(-settled_seconds))
    with reading(engine) as session:
        return load_attempts(session, query.order_by(AttemptRow.created_at).limit(limit))


def _page(engine: Engine, condition: ColumnElement[bool], limit: int, after: Attempt | None) -> list[Attempt]:
    place = (AttemptRow.session_id, AttemptRow.attempt)
    query = select(AttemptRow).where(condition).order_by(*place).limit(limit)
    if after is not None:
        query = query.where(tuple_(*place) > (after.session_id, after.attempt))
    with reading(engine) as session:
        return load_attempts(session, query)


def some_attempts(engine: Engine, attempts: list[tuple[str, int]]) -> list[Attempt]:
    """These attempts, as far as they are known. Two queries for every thousand."""
    place = tuple_(AttemptRow.session_id, AttemptRow.attempt)
    with reading(engine) as session:
        return [
            found
            for start in range(0, len(attempts), MOST_NAMES)
            for found in load_attempts(
                session, select(AttemptRow).where(place.in_(attempts[start : start + MOST_NAMES]))
            )
        ]


def waiting_for(engine: Engine, comparison_key: str) -> list[Attempt]:
    """The open attempts that have asked for a comparison."""
    with reading(engine) as session:
        asked = (AttemptRow.comparison_key == comparison_key) & AttemptRow.status.in_(OPEN)
        return load_attempts(session, select(AttemptRow).where(asked))


def session_decided(session_id: str, attempt: int) -> SessionDecided:
    """The refusal of a file for a decided attempt."""
    return SessionDecided(
        f"Attempt {attempt} of session {session_id!r} is decided. Ask for a further attempt to upload again: "
        f"POST /sessions/{session_id}/attempts."
    )


def _deleted(session_id: str) -> SessionDeleted:
    return SessionDeleted(f"Session {session_id!r} was deleted. Choose another id for a new one.")


def _is_recorded(session: Session, storage_key: str) -> bool:
    return session.scalar(select(UploadRow.id).where(UploadRow.storage_key == storage_key)) is not None


def _insert(session: Session, session_id: str, attempt: int, deadline_seconds: float, by: str) -> bool:
    made = insert_once(
        session,
        AttemptRow,
        session_id=session_id,
        attempt=attempt,
        created_at=clock(),
        deadline_at=clock(deadline_seconds),
        status=Status.AWAITING_FILES,
        announced=by == API,
        recoveries=0,
    )
    if made:
        status = Status.AWAITING_FILES
        trace(session, "attempt_opened", by=by, session_id=session_id, attempt=attempt, to_status=status)
    return made


def _set(session: Session, session_id: str, attempt: int, condition: ColumnElement[bool], **values: Any) -> bool:
    here = (AttemptRow.session_id == session_id) & (AttemptRow.attempt == attempt)
    changed = session.execute(update(AttemptRow).where(here, condition).values(**values).returning(AttemptRow.attempt))
    return changed.first() is not None


def _lock(session: Session, session_id: str, attempt: int) -> AttemptRow:
    """Hold the attempt's row until the end of the transaction. On SQLite the transaction itself holds the database."""
    row = session.get(AttemptRow, (session_id, attempt), with_for_update=True)
    if row is None:
        raise _unknown(session_id, attempt)
    return row


def _one(session: Session, session_id: str, attempt: int | None) -> Attempt:
    query = select(AttemptRow).where(AttemptRow.session_id == session_id)
    if attempt is None:
        query = query.order_by(AttemptRow.attempt.desc()).limit(1)
    else:
        query = query.where(AttemptRow.attempt == attempt)
    found = load_attempts(session, query)
    if not found:
        raise _unknown(session_id, attempt)
    return found[0]


def _unknown(session_id: str, attempt: int | None) -> UnknownSession:
    if attempt is None or attempt == 1:
        return UnknownSession(f"There is no session {session_id!r}. Create it first: POST /sessions.")
    call = f"POST /sessions/{session_id}/attempts"
    return UnknownSession(f"There is no attempt {attempt} of session {session_id!r}. Ask for it first: {call}.")


def _keys(files: FilePair) -> list[str | None]:
    return [file.storage_key if file else None for file in (files.id_image, files.selfie_video)]
