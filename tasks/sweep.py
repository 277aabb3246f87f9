"""Task: find sessions that should be running and are not."""

import asyncio
import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.contracts import Attempt
from tasks.database import database_for
from tasks.database.attempts import due_attempts
from tasks.dispatch import start_or_wake
from tasks.retries import retried
from tasks.settings import Settings

# An upload this fresh is just being announced by the upload service itself.
SETTLED_SECONDS = 30
PAGE = 200

log = logging.getLogger(__name__)


@task(name="start due sessions", cache_policy=NO_CACHE, **retried(3))
async def start_due_sessions() -> int:
    """Start or wake each due session's flow run; how many there were.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable: tried again.
    """
    database = database_for(Settings())
    started = 0
    last: Attempt | None = None
    while page := await asyncio.to_thread(
        due_attempts, database, settled_seconds=SETTLED_SECONDS, limit=PAGE, after=last
    ):
        for attempt in page:
            await start_or_wake(attempt)
        started += len(page)
        last = page[-1]
    log.info("sessions swept", extra={"action": "sessions.swept", "sessions": started})
    return started
