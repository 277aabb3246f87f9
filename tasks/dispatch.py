"""Starts and wakes flow runs through Prefect's API: the one place that knows deployments and idempotency keys."""

import logging
import ssl
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling

from tasks.contracts import Attempt
from tasks.errors import ConfigurationError, OrchestratorUnavailable
from tasks.recovery import Run
from tasks.states import WAITING, awaiting_files, woken

VERIFY_SESSION = "verify-session/verify-session"
SWEEP_SESSIONS = "sweep-sessions/sweep-sessions"
TAG = "kycflow"
"""Carried by every deployment in prefect.yaml, and so by their flow runs."""
SESSION = "session"
"""Carried by those of `verify-session`."""
SWEEP = "sweep"
"""Carried by those of `sweep-sessions`."""
SWEEP_SECONDS = 7200
"""How long a sweep goes on by itself, as in prefect.yaml. The next one, of the schedule, takes its place sooner."""
FAULTS = {StateType.FAILED, StateType.CRASHED}
BUSY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
PAGE = 200
"""Most flow runs that Prefect's API gives in one answer."""
AGAIN_SECONDS = 1
"""Between two tries to tell how a run ended. In each, a client of Prefect's that was connected tries for minutes."""
FAULT_SECONDS = 600

# Without TLS no certificates are needed, and loading them is most of what a client costs: 19 ms.
_PLAIN = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}

_deployment_ids: dict[str, UUID] = {}
"""Of `verify-session`, by the address of Prefect's API."""

log = logging.getLogger(__name__)


def on_worker(name: str) -> str:
    """The message of a state that a worker's own process sets: `worker_of` reads it."""
    return f"On worker {name}"


def worker_of(run: FlowRun) -> str:
    """Name of the worker that has a flow run: as its state tells, or its label. Empty if neither does."""
    message = "" if run.state is None else run.state.message or ""
    prefix = on_worker("")
    return (
        message.removeprefix(prefix) if message.startswith(prefix) else str(run.labels.get("prefect.worker.name", ""))
    )


@asynccontextmanager
async def prefect_api() -> AsyncIterator[PrefectClient]:
    """A client of Prefect's API whose failures are ours.

    Raises:
        ConfigurationError: PREFECT_API_URL is not set.
        OrchestratorUnavailable, ConfigurationError: see `prefect_errors`.
    """
    url = PREFECT_API_URL.value()
    if not url:
        # Without an address Prefect would start a server of its own, which nobody sees.
        raise ConfigurationError("PREFECT_API_URL is not set: set it to the Prefect server's address, ending in /api.")
    with prefect_errors():
        async with get_client(httpx_settings=_PLAIN if url.startswith("http://") else None) as client:
            yield client


def is_away(exc: BaseException) -> bool:
    """Whether a call failed because Prefect's API is away, or busy: the same call may be answered later."""
    if isinstance(exc, httpx.HTTPStatusError):
        return exc.response.status_code in {408, 429} or exc.response.status_code >= 500
    return isinstance(exc, httpx.TransportError) or (
        isinstance(exc, RuntimeError) and "Failed to reach API" in str(exc)
    )


def worth_telling_again(exc: BaseException | None, began: float) -> bool:
    """Whether a call that tells how a run ended is to be tried again: as long as the API is away.

    Args:
        began: when it was tried first, of the monotonic clock. An API that answers, and fails, may always do so with
            this call: after `FAULT_SECONDS` it is left to the sweep.
    """
    if exc is None or not is_away(exc):
        return False
    fails = isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    return not fails or time.monotonic() - began < FAULT_SECONDS


@contextmanager
def prefect_errors() -> Iterator[None]:
    """Translate what calls to Prefect's API raise.

    Raises:
        OrchestratorUnavailable: the API does not answer, or answers with a server error.
        ConfigurationError: a deployment that kycflow needs does not exist, or the API refuses the call.
    """
    try:
        yield
    except ObjectNotFound as exc:
        raise ConfigurationError(
            "Prefect does not know this deployment or flow run. If a deployment is missing, run `kycflow deploy`."
        ) from exc
    except httpx.HTTPStatusError as exc:
        if is_away(exc):
            raise OrchestratorUnavailable(
                f"Prefect's API answered {exc.response.status_code}. It is tried again; see the server's log."
            ) from exc
        if exc.response.status_code in {401, 403}:
            raise ConfigurationError(
                "Prefect's API wants a login: set PREFECT_API_AUTH_STRING to its server's "
                "PREFECT_SERVER_API_AUTH_STRING. `kycflow up` has it in the file `prefect-secret` of its state folder."
            ) from exc
        raise ConfigurationError(
            f"Prefect's API refused a call with {exc.response.status_code}: do its version and ours agree? kycflow's "
            "own server answers 400 to names that are not in its KYCFLOW_PREFECT_HOSTS."
        ) from exc
    except (httpx.TransportError, RuntimeError) as exc:
        if not is_away(exc):
            raise
        raise OrchestratorUnavailable(
            "Prefect's API does not answer. Is the server running, and PREFECT_API_URL right?"
        ) from exc


async def start_or_wake(attempt: Attempt) -> FlowRun:
    """Start the flow run of an attempt, wake it where it waits for files that are there, or start it again where it
    failed; the run as it was before.

    Any number of calls gives one flow run. An attempt with a file missing gets a run that waits, and costs no process
    yet. A cancelled run stays cancelled. Between reading a run's state and setting it a worker may take the run up; it
    then runs twice, and both executions end with the one decision that is stored.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    complete = attempt.files.complete
    state = woken("Both files are there") if complete else awaiting_files(attempt)
    async with prefect_api() as client:
        run = await _noted_run(client, attempt) or await created(client, attempt, state)
        if run.state is not None and run.state.name in WAITING and complete:
            # Also one that waits for a comparison: the file that came just now may ask for another one.
            await client.set_flow_run_state(run.id, state)
        elif run.state is not None and run.state.type in FAULTS:
            await execute_again(client, run, state)
    log.info(
        "flow run started or woken",
        extra={
            "action": "session.triggered",
            "session_id": attempt.session_id,
            "attempt": attempt.attempt,
            "flow_run_id": str(run.id),
        },
    )
    return run


async def _noted_run(client: PrefectClient, attempt: Attempt) -> FlowRun | None:
    """The run that the attempt is known to have: reading it costs Prefect's server far less than creating it again."""
    if attempt.flow_run_id is not None:
        with suppress(ObjectNotFound):
            return await client.read_flow_run(attempt.flow_run_id)
    return None


async def created(client: PrefectClient, attempt: Attempt, state: State[Any]) -> FlowRun:
    """A new run, or the one that this attempt has. The deployment's id is remembered until it is not known any more."""
    address = str(client.api_url)
    remembered = _deployment_ids.get(address)
    deployment_id = remembered or (await client.read_deployment_by_name(VERIFY_SESSION)).id
    _deployment_ids[address] = deployment_id
    try:
        return await client.create_flow_run_from_deployment(
            deployment_id,
            parameters={"session_id": attempt.session_id, "attempt": attempt.attempt},
            idempotency_key=f"{attempt.session_id}:{attempt.attempt}",
            name=f"{attempt.session_id} attempt {attempt.attempt}",
            state=state,
        )
    except httpx.HTTPStatusError as exc:
        if remembered is None or exc.response.status_code != httpx.codes.NOT_FOUND:
            raise
        _deployment_ids.pop(address, None)
        return await created(client, attempt, state)


async def wake(flow_run_ids: list[UUID], names: Collection[str], why: str) -> None:
    """Have the flow runs of these that wait in a state of one of these names executed now; others are left alone.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        for run in await read_runs(client, flow_run_ids):
            if run.state is not None and run.state.name in names:
                await client.set_flow_run_state(run.id, woken(why))


async def execute_again(client: PrefectClient, run: FlowRun, state: State[Any]) -> None:
    """Have a run executed from its beginning, whatever its state is. Calls as `prefect_api`'s client raises."""
    if run.empirical_policy.retry_type is not None:
        # Prefect retried it in its process, which is gone: no worker would be offered it.
        await client.update_flow_run(run.id, empirical_policy=FlowRunPolicy(retry_type=None))
    await client.set_flow_run_state(run.id, state, force=True)


async def cancel(flow_run_id: UUID, why: str) -> None:
    """Cancel a flow run that has not ended: its worker ends its process. An unknown run is as good as cancelled.

    One that waits has no process that a worker could end, and Prefect would leave it in Cancelling for five minutes.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        with suppress(ObjectNotFound):
            state = (await client.read_flow_run(flow_run_id)).state
            if state is None or state.is_scheduled() or state.is_paused():
                await client.set_flow_run_state(flow_run_id, Cancelled(message=why), force=True)
            elif not state.is_final():
                await client.set_flow_run_state(flow_run_id, Cancelling(message=why))


async def read_runs(client: PrefectClient, flow_run_ids: list[UUID]) -> list[FlowRun]:
    """These flow runs, as far as they are known: one call for every 200."""
    found: list[FlowRun] = []
    for start in range(0, len(flow_run_ids), PAGE):
        some = FlowRunFilter(id=FlowRunFilterId(any_=flow_run_ids[start : start + PAGE]))
        found += await client.read_flow_runs(flow_run_filter=some, limit=PAGE)
    return found


def seen(run: FlowRun, *, alive: bool = True, lingers: bool = False) -> Run:
    """A flow run in the words of `tasks/recovery.py`."""
    state = run.state
    return Run(
        id=run.id,
        state_id=None if state is None else state.id,
        type="SCHEDULED" if state is None else state.type.value,
        name="" if state is None or state.name is None else state.name,
        alive=alive,
        lingers=lingers,
        sweep=SWEEP in run.tags,
    )


async def busy_runs(client: PrefectClient) -> list[FlowRun]:
    """The flow runs of kycflow that a worker has, or had: one call for every 200."""
    busy = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BUSY)), tags=FlowRunFilterTags(all_=[TAG])
    )
    return await _all(client, busy)


async def broken_runs(client: PrefectClient, since: datetime) -> list[FlowRun]:
    """The flow runs of sessions that have ended without an answer since then: one call for every 200.

    Nobody else tells of one that a person has cancelled while it waited.
    """
    broken = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLED, *FAULTS])),
        tags=FlowRunFilterTags(all_=[TAG, SESSION]),
        end_time=FlowRunFilterEndTime(after_=since),
    )
    return await _all(client, broken)


async def _all(client: PrefectClient, which: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=which, limit=PAGE, offset=len(found), sort=FlowRunSort.ID_DESC
    ):
        found += page
        if len(page) < PAGE:
            break
    return found


async def start_sweep(key: str | None = None) -> None:
    """Start a sweep beside those of the schedule, at most one for each idempotency key.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        await arun_deployment(
            SWEEP_SESSIONS,
            client=client,
            parameters={"repeat_seconds": SWEEP_SECONDS},
            flow_run_name=SWEEP,
            idempotency_key=key,
            timeout=0,
        )
