"""Deletes a session: at once for every reader, then its flow runs, its media and its results. The audit trail stays."""

import asyncio
import logging

from sqlalchemy import Engine

from tasks.contracts import Attempt, Status
from tasks.database import database_for
from tasks.database.attempts import close, get_attempt, some_attempts
from tasks.dispatch import cancel, prefect_api
from tasks.ending import at_rest, free_comparison
from tasks.erasing import erase_session
from tasks.errors import KycflowError
from tasks.settings import current_settings

STOP_SECONDS = 15
"""How long is waited for processes to end."""
ERASE_SECONDS = 30

log = logging.getLogger(__name__)


async def delete_session(session_id: str, *, by: str) -> bool:
    """Delete a session; whether all of it is gone. What is not, a repetition removes, or the purge.

    Whatever fails then, nothing of it starts, is recorded, decided or read any more. Nothing is erased while a process
    of it is still being ended, as that might write again. If Prefect does not answer, storage is erased all the same.

    Raises:
        UnknownSession: no such session. DatabaseUnavailable: not every attempt is deleted. Repeat it.
    """
    attempts = await asyncio.to_thread(_close, database_for(current_settings()), session_id, by)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await _stop(attempts)
        stopped = True
    except TimeoutError:
        log.warning("its processes are still being ended", extra=_ids(session_id))
        return False
    except KycflowError:
        log.exception("its flow runs are not known to be stopped", extra=_ids(session_id))
        stopped = False
    try:
        async with asyncio.timeout(ERASE_SECONDS):
            await erase_session(session_id, by=by)
    except (KycflowError, TimeoutError):
        log.exception("not all is erased; the purge will", extra=_ids(session_id))
        return False
    return stopped


def _close(database: Engine, session_id: str, by: str) -> list[Attempt]:
    """Mark every attempt deleted, the latest first: a further one is only made after one that is decided."""
    closed = 0
    while (latest := get_attempt(database, session_id).attempt) > closed:
        for attempt in range(latest, closed, -1):
            close(database, session_id, attempt, Status.DELETED, by=by)
        closed = latest
    return some_attempts(database, [(session_id, attempt) for attempt in range(1, closed + 1)])


async def _stop(attempts: list[Attempt]) -> None:
    begun = [attempt for attempt in attempts if attempt.flow_run_id is not None]
    for attempt in begun:
        # At once: a comparison loses its lease though Prefect does not answer.
        results = await asyncio.gather(_cancel_run(attempt), free_comparison(attempt), return_exceptions=True)
        for error in filter(None, results):
            raise error
    if begun:
        async with prefect_api() as client:
            await at_rest(client, begun)


async def _cancel_run(attempt: Attempt) -> None:
    if attempt.flow_run_id is not None:
        await cancel(attempt.flow_run_id, "Its session was deleted")


def _ids(session_id: str) -> dict[str, str]:
    return {"action": "session.not_deleted_yet", "session_id": session_id}
