"""Tells Prefect of an attempt, and SQL of its flow run: what the upload service and the sweep do after a change."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType

from tasks.contracts import Attempt, Status
from tasks.database import database_for
from tasks.database.attempts import API, note_run, session_decided, take_up
from tasks.dispatch import execute_again, prefect_api, read_runs, start_or_wake
from tasks.ending import at_rest, cancel_session
from tasks.errors import OrchestratorUnavailable
from tasks.settings import current_settings
from tasks.states import WAITING, woken

CANCELLED = {StateType.CANCELLED, StateType.CANCELLING}
PATIENCE_SECONDS = 15
"""How long a run that is about to end is waited for."""
# When it begins an execution, Prefect's runner (3.8) is told of the run's cancellations in the last minute, and obeys
# when it is told late. It may begin 10 s early, and clocks differ.
DEAF_SECONDS = 80
"""How long after its cancellation a run is not executed again."""


async def trigger(attempt: Attempt, *, by: str = API) -> bool:
    """Start or wake an attempt's flow run; whether there is one at work. A cancelled attempt stays cancelled.

    An attempt that was given up is taken up again. One whose flow run a person has cancelled is cancelled, too.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `start_or_wake`. DatabaseUnavailable.
    """
    if attempt.status in (Status.CANCELLED, Status.DELETED, Status.DECIDED):
        return False
    database = database_for(current_settings())
    if attempt.status is Status.ERROR:
        attempt = await asyncio.to_thread(take_up, database, attempt.session_id, attempt.attempt, by=by)
    run = await start_or_wake(attempt)
    if attempt.flow_run_id != run.id:
        await asyncio.to_thread(note_run, database, attempt.session_id, attempt.attempt, run.id, by=by)
    elif run.state is not None and run.state.type in CANCELLED:
        # In the Prefect UI, before it had a process that could have said so.
        await cancel_session(attempt.session_id, attempt.attempt, "Its flow run was cancelled")
        return False
    return True


async def resume(attempt: Attempt, *, by: str = API) -> Attempt:
    """Go on with an attempt that was cancelled or given up; the attempt as it stands then. An open one looks again now.

    Its flow run is executed at once, or `DEAF_SECONDS` after it was cancelled. The run is set first: if this is
    interrupted, either nothing has changed, or the run takes the attempt up itself.

    Raises:
        SessionDecided, SessionDeleted: there is nothing to go on with.
        OrchestratorUnavailable: Prefect does not answer, or is still ending its processes. Repeat it.
        ConfigurationError: see `start_or_wake`. DatabaseUnavailable.
    """
    if attempt.status is Status.DECIDED:
        raise session_decided(attempt.session_id, attempt.attempt)
    database = database_for(current_settings())
    known = attempt.status is not Status.DELETED and await _set_going(attempt)
    attempt = await asyncio.to_thread(take_up, database, attempt.session_id, attempt.attempt, by=by)
    if not known:
        await trigger(attempt, by=by)
    return attempt


async def _set_going(attempt: Attempt) -> bool:
    """Have an attempt's flow run executed, from its end or out of its waiting; whether there is one."""
    if attempt.flow_run_id is None:
        return False
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), prefect_api() as client:
            # A worker that is still cancelling it would set it to Cancelled after us.
            await at_rest(client, [attempt])
            runs = await read_runs(client, [attempt.flow_run_id])
            for run in runs:
                if run.state is None or run.state.is_final() or run.state.name in WAITING:
                    due = await _due(client, run.id)
                    await execute_again(client, run, woken(f"Resumed, for {due:%H:%M:%S} UTC", due))
    except TimeoutError as exc:
        raise OrchestratorUnavailable(
            f"The flow run of session {attempt.session_id!r} is not at rest after {PATIENCE_SECONDS} s. Try again."
        ) from exc
    return bool(runs)


async def _due(client: PrefectClient, flow_run_id: UUID) -> datetime:
    """When a run can be executed: now, unless it was cancelled just now."""
    states = await client.read_flow_run_states(flow_run_id)
    cancelled = [state.timestamp for state in states if state.type is StateType.CANCELLING]
    return max([datetime.now(UTC), *(moment + timedelta(seconds=DEAF_SECONDS) for moment in cancelled)])
