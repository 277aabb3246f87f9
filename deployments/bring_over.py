"""Brings a Prefect server of version 0.1.0 over: sessions in flight go on, and what is not needed any more goes.

Version 0.1.0 had a pool `sessions`, compared in flow runs of their own, and had sessions wait as Scheduled for later. A
run stays with the queue and the date that it was created with, so each session in flight gets a new one. It also had an
automation that marked runs without heartbeats Crashed. A last heartbeat that came after its run's end set it off.
"""

from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Paused

from deployments.provision import GPU, UPKEEP
from tasks.dispatch import PAGE, VERIFY_SESSION, prefect_api
from tasks.states import AWAITING_FILES, WAITING, woken

OLD_POOL = "sessions"
OLD_DEPLOYMENT = "compare-faces/compare-faces"
OLD_AUTOMATION = "kycflow: end runs whose process is gone"
IN_FLIGHT = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]


async def bring_over() -> list[str]:
    """Bring the server over, after the deployments of this version are there; what was done, for people. Repeatable.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    said: list[str] = []
    async with prefect_api() as client:
        for automation in await client.read_automations_by_name(OLD_AUTOMATION):
            await client.delete_automation(automation.id)
            said.append(f"Automation {OLD_AUTOMATION!r} is deleted: the sweep ends them.")
        try:
            await client.read_work_pool(OLD_POOL)
        except ObjectNotFound:  # it is deleted last
            return said
        with suppress(ObjectNotFound):
            old = await client.read_deployment_by_name(OLD_DEPLOYMENT)
            # First the runs: who computes in one now stores its row, which the session finds, or is killed.
            for run in await _in_flight(client, old.id):
                await _delete(client, run)
            await client.delete_deployment(old.id)
            said.append(f"Deployment {OLD_DEPLOYMENT} is deleted: sessions compare their files themselves.")
        sessions = (await client.read_deployment_by_name(VERIFY_SESSION)).id
        moved = [await _moved(client, sessions, run) for run in await _in_flight(client, sessions) if _is_old(run)]
        if moved:
            said.append(f"{len(moved)} sessions in flight have a new flow run in the pool {GPU}.")
        said += await _without_pool(client)
    return said


async def _in_flight(client: PrefectClient, deployment_id: UUID) -> list[FlowRun]:
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    in_flight = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=IN_FLIGHT)))
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        deployment_filter=of_deployment, flow_run_filter=in_flight, limit=PAGE, offset=len(found)
    ):
        found += page
        if len(page) < PAGE:
            break
    return found


def _is_old(run: FlowRun) -> bool:
    """Whether it is bound to the old pool, or waits as Scheduled for later."""
    waits = run.state is not None and run.state.is_scheduled() and run.state.name in WAITING
    return waits or run.work_pool_name in (OLD_POOL, None)


async def _moved(client: PrefectClient, deployment_id: UUID, run: FlowRun) -> UUID:
    """A new run for a session. It waits as the old one did, or is executed now, and finds all that is stored.

    Where this is interrupted the session has no run: the next upload, the sweep or a person's *Resume* makes one.
    """
    waiting: State[Any] = Paused(
        name=AWAITING_FILES, message="Waiting for its files: brought over from 0.1.0", reschedule=True
    )
    waits = run.state is not None and run.state.name == AWAITING_FILES
    await _delete(client, run)
    new = await client.create_flow_run_from_deployment(
        deployment_id,
        parameters=run.parameters,
        idempotency_key=run.idempotency_key,
        name=run.name,
        state=waiting if waits else woken("Brought over from 0.1.0"),
    )
    return new.id


async def _delete(client: PrefectClient, run: FlowRun) -> None:
    with suppress(ObjectNotFound):
        await client.delete_flow_run(run.id)


async def _without_pool(client: PrefectClient) -> list[str]:
    """Delete the old pool, unless somebody else's deployments are in it."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[OLD_POOL]))
    if left := await client.read_deployments(work_pool_filter=pool, limit=1):
        return [f"Work pool {OLD_POOL} stays, as deployment {left[0].name} is in it. kycflow uses {UPKEEP} and {GPU}."]
    with suppress(ObjectNotFound):
        await client.delete_work_pool(OLD_POOL)
        return [f"Work pool {OLD_POOL} is deleted: sweeps and purges are in the pool {UPKEEP}."]
    return []
