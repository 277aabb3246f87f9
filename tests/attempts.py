"""Attempts for tests: with files, in any status; their audit trail; and threads that begin together."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from sqlalchemy import Engine, select, update

from tasks.contracts import Attempt, DecisionKind, FileKind, Reason, Status, StoredFile, Verdict
from tasks.database.attempts import open_attempt, register_upload
from tasks.database.engine import reading, writing
from tasks.database.tables import AttemptRow, AuditRow

MATCH = Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT)
NO_MATCH = Verdict(decision=DecisionKind.NO_MATCH, reason=Reason.SIMILARITY_INSUFFICIENT)
EXPIRED = Verdict(decision=DecisionKind.EXPIRED, reason=Reason.BOTH_FILES_MISSING)

T = TypeVar("T")


def stored(key: str) -> StoredFile:
    """A file of that storage key."""
    return StoredFile(storage_key=key, sha256="a" * 64, size_bytes=5)


def with_both(database: Engine, session_id: str, deadline_seconds: float = 100) -> Attempt:
    """A new session with both files."""
    open_attempt(database, session_id, 1, deadline_seconds)
    register_upload(database, session_id, 1, FileKind.ID_IMAGE, stored(f"{session_id}/card"))
    return register_upload(database, session_id, 1, FileKind.SELFIE_VIDEO, stored(f"{session_id}/video"))


def put(database: Engine, session_id: str, status: Status) -> None:
    """Give a session's attempts a status, past all rules and without a trace."""
    with writing(database) as session:
        session.execute(update(AttemptRow).where(AttemptRow.session_id == session_id).values(status=status))


def trail(database: Engine, session_id: str | None = None) -> list[AuditRow]:
    """The audit trail of a session, in order; None: of what belongs to no session."""
    with reading(database) as session:
        query = select(AuditRow).where(AuditRow.session_id.is_not_distinct_from(session_id))
        return list(session.scalars(query.order_by(AuditRow.id)))


def at_once(number: int, call: Callable[[int], T]) -> list[T]:
    """What a call gives in each of so many real threads that begin together."""
    barrier = Barrier(number)

    def one(index: int) -> T:
        barrier.wait(10)
        return call(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number), timeout=60))
