"""How an attempt ends without a decision: given up with an alarm, or cancelled. Both can be taken up again."""

import asyncio
import logging
from typing import Any

from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events import emit_event
from prefect.runtime import flow_run as current_run
from prefect.states import Cancelled

from tasks.comparison import wake_waiting
from tasks.contracts import Attempt, Status
from tasks.database import database_for
from tasks.database.attempts import close, get_attempt
from tasks.database.leases import break_leases
from tasks.dispatch import BUSY, cancel, prefect_api, read_runs
from tasks.errors import KycflowError, UnknownSession
from tasks.settings import current_settings

ERROR_EVENT = "kycflow.session.error"
"""The event to hang an automation on: mail, pager, chat."""
REST_SECONDS = 0.3
"""Between looks at runs that are about to end."""

log = logging.getLogger(__name__)


async def fail_session(session_id: str, attempt: int, error: Exception) -> Attempt:
    """Mark an attempt `error` because its run failed for a reason that trying again does not mend, and say so.

    Returns the attempt as it stands then: a decision that was there stays.
    """
    await give_up(session_id, attempt, f"{type(error).__name__}: {error}", by=f"flow run {current_run.id}")
    return await asyncio.to_thread(get_attempt, database_for(current_settings()), session_id, attempt)


async def give_up(session_id: str, attempt: int, why: str, *, by: str) -> bool:
    """Mark an attempt `error`, and say so in the log, as an event and as an artifact. False if it is closed already.

    Never raises for the alarm: the status is what counts.
    """
    database = database_for(current_settings())
    if not await asyncio.to_thread(close, database, session_id, attempt, Status.ERROR, by=by, detail=why):
        return False
    ids = {"session_id": session_id, "attempt": attempt}
    log.error("session given up: %s", why, extra={"action": "session.error", **ids})
    emit_event(
        ERROR_EVENT,
        resource={"prefect.resource.id": f"kycflow.session.{session_id}.{attempt}"},
        payload={**ids, "why": why},
    )
    try:
        found = await asyncio.to_thread(get_attempt, database, session_id, attempt)
        async with prefect_api() as client:
            await client.create_artifact(
                ArtifactCreate(
                    key=f"error-{session_id}-{attempt}".replace("_", "-"),
                    type="markdown",
                    data=f"# Session given up\n\n`{session_id}`, attempt {attempt}: no decision.\n\n> {why}\n\n"
                    "Mend the cause, then use *Retry* on the session's flow run, or upload a file again.",
                    description=f"Error: {why}"[:200],
                    flow_run_id=found.flow_run_id,
                )
            )
    except KycflowError as exc:
        log.warning("no artifact of the error: %s", exc, extra={"action": "session.error.artifact", **ids})
    return True


async def cancel_session(session_id: str, attempt: int, why: Exception | str) -> State[Any]:
    """Mark an attempt cancelled, and free its comparison; the run's final state.

    Raises:
        DatabaseUnavailable, OrchestratorUnavailable: the sweep does what is left.
    """
    database = database_for(current_settings())
    by = f"flow run {current_run.id}" if current_run.id else "cancellation"
    found = await asyncio.to_thread(get_attempt, database, session_id, attempt)
    if found.flow_run_id is not None and str(found.flow_run_id) != current_run.id:
        # First: the run of an attempt that is closed already, nobody would look at again.
        await cancel(found.flow_run_id, str(why))
    await asyncio.to_thread(close, database, session_id, attempt, Status.CANCELLED, by=by, detail=str(why))
    await free_comparison(found)
    return Cancelled(message=str(why))


async def free_comparison(attempt: Attempt) -> None:
    """Free the lease of the comparison that an attempt's flow run computes: what its process still writes is refused.

    Other sessions that wait for the same comparison are woken, and one of them computes it.

    Raises:
        DatabaseUnavailable.
    """
    if attempt.flow_run_id is None or attempt.comparison_key is None:
        return
    await asyncio.to_thread(break_leases, database_for(current_settings()), str(attempt.flow_run_id))
    await wake_waiting(attempt.comparison_key)


async def at_rest(client: PrefectClient, attempts: list[Attempt]) -> None:
    """Wait until the flow runs of closed attempts have ended, and nothing of any of these is being cancelled.

    Until then a worker may still set a run's state, or a process may still write. Bound it by a time-out.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    runs = {one.flow_run_id for one in attempts if one.flow_run_id is not None}
    closed = {one.flow_run_id for one in attempts if not one.open}
    while True:
        states = {run.id: run.state.type for run in await read_runs(client, sorted(runs)) if run.state is not None}
        if not any(state is StateType.CANCELLING or (run in closed and state in BUSY) for run, state in states.items()):
            return
        await asyncio.sleep(REST_SECONDS)


async def cancelled(flow: "Flow[..., Any]", flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of `verify-session`: a person has cancelled its run. The sweep does the same for runs without a process."""
    del flow, state
    session_id, attempt = flow_run.parameters["session_id"], flow_run.parameters.get("attempt", 1)
    try:
        await cancel_session(session_id, attempt, "Its flow run was cancelled")
    except UnknownSession:
        return  # cancelled before it had begun
    except KycflowError:
        log.exception("cancelled only in Prefect; the sweep does the rest", extra={"action": "session.cancel_later"})
