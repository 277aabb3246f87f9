"""Attempts, their uploads and their decision. Each function is one short transaction and safe to repeat."""

from sqlalchemy import Engine, and_, exists, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from tasks.contracts import Attempt, Bounds, Decision, FileKind, FilePair, StoredFile, Thresholds, Verdict
from tasks.database.engine import reading, writing
from tasks.database.insert import insert_once
from tasks.database.rows import load_attempts
from tasks.database.tables import AttemptRow, DecisionRow, UploadRow
from tasks.database.types import UtcDateTime, clock
from tasks.errors import SessionDecided, SessionUndecided, UnknownSession


def open_attempt(engine: Engine, session_id: str, attempt: int, deadline_seconds: float) -> tuple[Attempt, bool]:
    """The attempt that is there, and whether this call made it. Only attempt 1 is made here; see `next_attempt`.

    Raises:
        UnknownSession: a further attempt that `next_attempt` has not made.
    """
    with writing(engine) as session:
        made = attempt == 1 and _insert(session, session_id, 1, deadline_seconds)
        return _one(session, session_id, attempt), made


def next_attempt(engine: Engine, session_id: str, deadline_seconds: float) -> Attempt:
    """A session's attempt after the decided one. Two calls at once, or one whose answer was lost, give one attempt.

    Raises:
        UnknownSession: no such session.
        SessionUndecided: the latest attempt has no decision yet.
    """
    with writing(engine) as session:
        _lock(session, session_id, 1)
        latest = _one(session, session_id, None)
        if latest.decision is not None:
            _insert(session, session_id, latest.attempt + 1, deadline_seconds)
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


def register_upload(engine: Engine, session_id: str, attempt: int, kind: FileKind, stored: StoredFile) -> Attempt:
    """Record a stored file: the newest of its kind counts. The same storage key again changes nothing.

    Raises:
        UnknownSession: no such attempt.
        SessionDecided: its decision is there, so that the file cannot count any more. It is not recorded.
    """
    with writing(engine) as session:
        _lock(session, session_id, attempt)
        decided = session.get(DecisionRow, (session_id, attempt)) is not None
        # A flow run may have found and recorded the object first, and the decision may rest on it.
        if decided and not _is_recorded(session, stored.storage_key):
            raise session_decided(session_id, attempt)
        insert_once(
            session,
            UploadRow,
            session_id=session_id,
            attempt=attempt,
            kind=kind,
            uploaded_at=clock(),
            **stored.model_dump(),
        )
        return _one(session, session_id, attempt)


def is_registered(engine: Engine, storage_key: str) -> bool:
    """Whether an upload with this storage key is recorded."""
    with reading(engine) as session:
        return _is_recorded(session, storage_key)


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
    """
    with writing(engine) as session:
        row = _lock(session, session_id, attempt)
        standing = _one(session, session_id, attempt)
        if standing.decision is not None:
            return standing.decision
        if _keys(standing.files) != _keys(files):
            return None
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
        row.decided = True
        session.flush()
        return _one(session, session_id, attempt).decision


def due_attempts(engine: Engine, *, settled_seconds: float, limit: int, after: Attempt | None = None) -> list[Attempt]:
    """Undecided attempts that should be at work: both files there and settled, or the deadline over.

    Those with the earliest deadline come first, at most `limit`; `after` is the last of the page before. Two queries
    for any number of attempts.

    Args:
        settled_seconds: how old the last upload must be, by the database's clock.
    """
    of_attempt = and_(UploadRow.session_id == AttemptRow.session_id, UploadRow.attempt == AttemptRow.attempt)
    is_there = [exists().where(of_attempt, UploadRow.kind == kind) for kind in FileKind]
    fresh = exists().where(of_attempt, UploadRow.uploaded_at > clock(-settled_seconds))
    place = (AttemptRow.deadline_at, AttemptRow.session_id, AttemptRow.attempt)
    due = AttemptRow.decided.is_(False) & or_(AttemptRow.deadline_at <= clock(), and_(*is_there, ~fresh))
    if after is not None:
        last = (literal(after.deadline_at, UtcDateTime()), literal(after.session_id), literal(after.attempt))
        due &= tuple_(*place) > tuple_(*last)
    query = select(AttemptRow).where(due).order_by(*place).limit(limit)
    with reading(engine) as session:
        return load_attempts(session, query)


def session_decided(session_id: str, attempt: int) -> SessionDecided:
    """The refusal of a file for a decided attempt."""
    return SessionDecided(
        f"Attempt {attempt} of session {session_id!r} is decided. Ask for a further attempt to upload again: "
        f"POST /sessions/{session_id}/attempts."
    )


def _is_recorded(session: Session, storage_key: str) -> bool:
    return session.scalar(select(UploadRow.id).where(UploadRow.storage_key == storage_key)) is not None


def _insert(session: Session, session_id: str, attempt: int, deadline_seconds: float) -> bool:
    return insert_once(
        session,
        AttemptRow,
        session_id=session_id,
        attempt=attempt,
        created_at=clock(),
        deadline_at=clock(deadline_seconds),
        decided=False,
    )


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
