"""What the sweep does about what it has found. Each is safe to repeat, and to do twice at once."""

import asyncio
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed
from sqlalchemy import Engine

from tasks.contracts import Attempt, DecisionKind, Reason
from tasks.database import database_for
from tasks.database.attempts import count_recovery
from tasks.database.comparisons import note_loss
from tasks.database.leases import break_leases
from tasks.decision import expire
from tasks.dispatch import created, execute_again, prefect_api
from tasks.ending import cancel_session, give_up
from tasks.recovery import Action, Run
from tasks.report import publish_decision
from tasks.settings import current_settings
from tasks.states import awaiting_files, decided, decision_tags, ended_as, replaced, woken
from tasks.sweep.findings import Finding
from tasks.trigger import trigger


async def mend(finding: Finding) -> None:
    """Do what was found. Nothing happens when the run has changed since.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable: the next look finds it again.
    """
    attempt, run, by = finding.attempt, finding.run, f"sweep {flow_run.id or ''}".strip()
    if attempt is not None and finding.action is Action.START:
        await trigger(attempt, by=by)
        return
    async with prefect_api() as client:
        current = None if run is None else await client.read_flow_run(run.id)
        if run is not None and (current is None or current.state is None or current.state.id != run.state_id):
            return
        if attempt is not None and finding.action is Action.EXPIRE:
            await _expire(client, attempt, current or await created(client, attempt, awaiting_files(attempt)))
        elif run is not None and current is not None:
            await _mend_run(client, finding, run, current, by)


async def _mend_run(client: PrefectClient, finding: Finding, run: Run, current: FlowRun, by: str) -> None:
    database, attempt = database_for(current_settings()), finding.attempt
    match finding.action:
        case Action.WAKE:
            await client.set_flow_run_state(run.id, woken("Its files, or its comparison, are there"))
        case Action.RECOVER:
            if attempt is not None and not run.unavailable and not await asyncio.to_thread(
                count_recovery, database, attempt.session_id, attempt.attempt, attempt.recoveries,
                by=by, detail=finding.why,
            ):  # fmt: skip
                return
            await _broken(database, finding, by)
            # It has queued before: due since it was created. One that died while it computed may do so again: the
            # others come first.
            again = woken(f"Started again, as {finding.why}", None if finding.loss.computing else current.created)
            await execute_again(client, current, again)
        case Action.GIVE_UP if attempt is not None:
            await _broken(database, finding, by)
            await give_up(attempt.session_id, attempt.attempt, finding.why, by=by)
            await _end(client, run, Crashed(message=finding.why))
        case Action.CANCEL if attempt is not None:
            await cancel_session(attempt.session_id, attempt.attempt, "Its flow run was cancelled")
            if run.lost:
                await _end(client, run, Cancelled(message=finding.why))
        case Action.SHOW if attempt is not None and attempt.decision is not None:
            await _broken(database, finding, by)
            await publish_decision(attempt.decision, current)
            await client.set_flow_run_state(run.id, decided(attempt.decision), force=True)
        case Action.CRASH:
            await _broken(database, finding, by)
            await _end(client, run, _gone(run, finding.why))
        case _:
            pass


def _gone(run: Run, why: str) -> State[Any]:
    """The final state of a run whose process is gone, and which nobody executes again."""
    if run.sweep:
        return replaced("Its process was lost", "another sweep goes on")
    return Cancelled(message=why) if run.type == "CANCELLING" else Crashed(message=why)


async def _expire(client: PrefectClient, attempt: Attempt, run: FlowRun) -> None:
    """End the run, decide, and show the decision.

    The run first: a decided attempt is not looked at again, and its run would wait for ever if this were interrupted.
    """
    missing = attempt.files.missing() or Reason.BOTH_FILES_MISSING
    if run.state is None or not run.state.is_final():
        # Who waits for its end finds it tagged.
        await client.update_flow_run(run.id, tags=decision_tags(run.tags, DecisionKind.EXPIRED))
        await client.set_flow_run_state(run.id, ended_as(DecisionKind.EXPIRED, missing), force=True)
    found = await expire(attempt, run.id)
    if found.decision is None:  # a file, or a person, came just now
        instead = woken("A file came at the last moment") if found.open else Cancelled()
        await client.update_flow_run(run.id, tags=run.tags)
        await client.set_flow_run_state(run.id, instead, force=True)
        return
    if found.decision.decision is not DecisionKind.EXPIRED:
        await client.set_flow_run_state(run.id, decided(found.decision), force=True)
    await publish_decision(found.decision, run)


async def _broken(database: Engine, finding: Finding, by: str) -> None:
    """Note what a lost run has computed in vain, and free its lease."""
    if finding.run is None:
        return
    if finding.attempt is not None and finding.attempt.comparison_key is not None:
        ids, computing = (finding.attempt.comparison_key, finding.run.id), finding.loss.computing
        await asyncio.to_thread(note_loss, database, *ids, computing=computing, by=by)
    await asyncio.to_thread(break_leases, database, str(finding.run.id))


async def _end(client: PrefectClient, run: Run, state: State[Any]) -> None:
    if not run.ended:
        await client.set_flow_run_state(run.id, state, force=True)
