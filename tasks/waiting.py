"""Waiting without a process: the flow run goes over to a state of type Paused, and its execution ends.

It is executed again when something wakes it: an upload, the end of a comparison, the sweep, or a person in the UI.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.runtime import flow_run

from tasks.contracts import Attempt, FileKind
from tasks.database import database_for
from tasks.database.attempts import get_attempt, note_run
from tasks.database.comparisons import get_comparison
from tasks.database.leases import comparison_lease, holders
from tasks.dispatch import prefect_api, read_runs, wake
from tasks.errors import KycflowError
from tasks.files import look_for_files
from tasks.settings import current_settings
from tasks.states import BESIDE, WAITING, awaiting_comparison, awaiting_files, beside, woken

log = logging.getLogger(__name__)


class QuietWaiting(logging.Filter):
    """Prefect logs each end but a completed one at ERROR; to wait, to be handed back or to be cancelled is ordinary."""

    def filter(self, record: logging.LogRecord) -> bool:
        ordinary = tuple(f"Finished in state {name}" for name in (*WAITING, BESIDE, "Scheduled", "Cancelled"))
        if record.getMessage().startswith(ordinary):
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


QUIET = QuietWaiting()
"""The one of this process: a logger takes the same filter once, however often it is added."""


def quiet() -> None:
    """Have ordinary ends of executions in this process logged as such."""
    logging.getLogger("prefect.flow_runs").addFilter(QUIET)


async def wait_for_files(attempt: Attempt) -> NoReturn:
    """End this execution of the flow run; it goes on when its files are there, or its deadline is over.

    Each upload through the upload service wakes it. For files that another system puts into storage, for what was lost
    on the way, and for its deadline, the sweep does.

    Raises:
        Pause: always. Prefect's engine takes it as the orderly end of an execution.
        OrchestratorUnavailable: Prefect's API does not answer.
    """

    async def both_there() -> bool:
        return len(await look_for_files(attempt.session_id, attempt.attempt)) == len(FileKind)

    await _wait(attempt, awaiting_files(attempt), both_there, "Both files are there")


async def wait_for_comparison(attempt: Attempt, key: str) -> NoReturn:
    """End this execution of the flow run; it goes on when its comparison is stored, or nobody computes it any more.

    Whoever computes it wakes the run at the end. The sweep does so, too.

    Raises:
        Pause: always, see `wait_for_files`. OrchestratorUnavailable, DatabaseUnavailable.
    """
    database, lease = database_for(current_settings()), comparison_lease(key)

    async def stored_or_free() -> bool:
        stored = await asyncio.to_thread(get_comparison, database, key)
        return stored is not None or lease not in await asyncio.to_thread(holders, database, [lease])

    await _wait(attempt, awaiting_comparison(), stored_or_free, "Its comparison is there, or free")


async def wake_follower(attempt: Attempt) -> None:
    """Have the flow run that follows a decided attempt show the decision, if this run stands beside it.

    Never raises: the decision stands.
    """
    if attempt.flow_run_id is None or str(attempt.flow_run_id) == flow_run.id:
        return
    try:
        await wake([attempt.flow_run_id], WAITING, "It is decided")
    except KycflowError as exc:
        log.warning("its own flow run waits on: %s", exc, extra={"action": "session.not_woken"})


async def _wait(attempt: Attempt, state: State[Any], came: Callable[[], Awaitable[bool]], what: str) -> NoReturn:
    quiet()
    async with prefect_api() as client:
        run_id, own = _execution()
        current = (await client.read_flow_run(run_id)).state
        if current is None or current.id != own:
            # Taken for lost, it is executed anew elsewhere; or a person cancels it. Its state is not this one's to set.
            raise Pause(state=current or state)
        if await _follows(client, attempt, run_id):
            await client.set_flow_run_state(run_id, state)
            # What came between the last look and this state has woken nobody: look once more.
            if await came() or await _decided(attempt):
                state = woken(what)
                await client.set_flow_run_state(run_id, state)
        else:
            state = beside(state)
            await client.set_flow_run_state(run_id, state)
    raise Pause(state=state)


async def _decided(attempt: Attempt) -> bool:
    """Whether another run has decided meanwhile. Nobody looks at a decided attempt again."""
    ids = (attempt.session_id, attempt.attempt)
    found = await asyncio.to_thread(get_attempt, database_for(current_settings()), *ids)
    return found.decision is not None


async def _follows(client: PrefectClient, attempt: Attempt, run_id: UUID) -> bool:
    """Whether this flow run follows the attempt: is woken for it. Of several only one does, as long as it is there.

    Raises:
        DatabaseUnavailable, UnknownSession.
    """
    known = attempt.flow_run_id
    if known is not None and known != run_id:
        if any(run.state is not None and not run.state.is_final() for run in await read_runs(client, [known])):
            return False
        ids = (attempt.session_id, attempt.attempt)
        await asyncio.to_thread(note_run, database_for(current_settings()), *ids, run_id, by=f"flow run {run_id}")
    return True


def _execution() -> tuple[UUID, UUID]:
    """Ids of the current flow run and of its state Running, by which this execution is told from others."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.state is None:
        raise RuntimeError("Only a flow run can wait.")
    return context.flow_run.id, context.flow_run.state.id
