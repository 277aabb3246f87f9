"""Waiting for files without a process: the flow run schedules itself for its next look, and ends."""

import logging
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from prefect.exceptions import Pause
from prefect.runtime import flow_run
from prefect.states import Scheduled

from tasks.contracts import Attempt
from tasks.dispatch import AWAITING_FILES, awaiting_files, prefect_api
from tasks.files import find_files
from tasks.settings import Settings


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
        if record.getMessage().startswith((f"Finished in state {AWAITING_FILES}", "Finished in state Scheduled")):
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


async def wait_for_files(attempt: Attempt) -> NoReturn:
    """End this execution of the flow run; it goes on when an upload wakes it, or at its next look.

    Raises:
        Pause: always. Prefect's engine takes it as the orderly end of an execution.
        OrchestratorUnavailable: Prefect's API does not answer.
    """
    settings = Settings()
    missing = attempt.files.missing()
    now = datetime.now(UTC)
    due = next_look(
        now, attempt.created_at, attempt.deadline_at, settings.first_look_seconds, settings.longest_look_seconds
    )
    state = awaiting_files(due, missing.value if missing else "")
    async with prefect_api() as client:
        run_id = flow_run.id
        await client.set_flow_run_state(run_id, state)
        # An upload that came between the last look and this state has woken nobody: look once more.
        if (await find_files(attempt.session_id, attempt.attempt)).complete:
            state = Scheduled(scheduled_time=now, message="Both files are there")
            await client.set_flow_run_state(run_id, state)
    logging.getLogger("prefect.flow_runs").addFilter(QuietWaiting())
    raise Pause(state=state)
