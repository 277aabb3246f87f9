"""Waiting without a process: the flow run schedules itself for its next look, and ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.runtime import flow_run
from prefect.states import Scheduled

from tasks.contracts import Attempt
from tasks.database import database_for
from tasks.database.comparisons import get_comparison
from tasks.dispatch import WAITING, awaiting_comparison, awaiting_files, prefect_api
from tasks.files import find_files
from tasks.settings import current_settings

COMPARISON_SECONDS = 60
"""Between looks for a comparison. Its end wakes the run, and the sweep too: this is the third way."""


def next_look(now: datetime, created_at: datetime, deadline_at: datetime, first: float, longest: float) -> datetime:
    """When to look for missing files again.

    The interval is half the time already waited, but at least `first` and at most `longest` seconds, so a session of
    an hour is looked at about twenty times, most often early on; the last look is at the deadline.
    """
    waited = (now - created_at).total_seconds()
    return min(now + timedelta(seconds=min(max(waited / 2, first), longest)), deadline_at)


class QuietWaiting(logging.Filter):
    """Prefect logs the end of an execution that waits at ERROR; waiting is ordinary."""

    def filter(self, record: logging.LogRecord) -> bool:
        waiting = tuple(f"Finished in state {name}" for name in (*WAITING, "Scheduled"))
        if record.getMessage().startswith(waiting):
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


async def wait_for_files(attempt: Attempt) -> NoReturn:
    """End this execution of the flow run; it goes on when an upload wakes it, or at its next look.

    An attempt that the upload service announced is looked at again at its deadline only: each upload wakes it, and the
    sweep wakes it if that was lost. For files that another system puts into storage, the looks have growing intervals.

    Raises:
        Pause: always. Prefect's engine takes it as the orderly end of an execution.
        OrchestratorUnavailable: Prefect's API does not answer.
    """
    settings = current_settings()
    missing = attempt.files.missing()
    due = attempt.deadline_at
    if not attempt.announced:
        due = next_look(
            datetime.now(UTC),
            attempt.created_at,
            attempt.deadline_at,
            settings.first_look_seconds,
            settings.longest_look_seconds,
        )

    async def both_there() -> bool:
        return (await find_files(attempt.session_id, attempt.attempt)).complete

    await _wait(awaiting_files(due, missing.value if missing else ""), both_there, "Both files are there")


async def wait_for_comparison(key: str) -> NoReturn:
    """End this execution of the flow run; it goes on when its comparison has ended, or at its next look.

    Raises:
        Pause: always, see `wait_for_files`. OrchestratorUnavailable, DatabaseUnavailable.
    """

    async def stored() -> bool:
        return await asyncio.to_thread(get_comparison, database_for(current_settings()), key) is not None

    due = datetime.now(UTC) + timedelta(seconds=COMPARISON_SECONDS)
    await _wait(awaiting_comparison(due, key), stored, "The comparison is stored")


async def _wait(state: State[Any], came: Callable[[], Awaitable[bool]], what: str) -> NoReturn:
    async with prefect_api() as client:
        run_id = flow_run.id
        await client.set_flow_run_state(run_id, state)
        # What came between the last look and this state has woken nobody: look once more.
        if await came():
            state = Scheduled(scheduled_time=datetime.now(UTC), message=what)
            await client.set_flow_run_state(run_id, state)
    logging.getLogger("prefect.flow_runs").addFilter(QuietWaiting())
    raise Pause(state=state)
