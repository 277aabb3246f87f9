"""Starts and wakes flow runs through Prefect's API: the one place that knows deployments and idempotency keys."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Scheduled

from tasks.contracts import Attempt, EngineConfig, StoredFile
from tasks.errors import ConfigurationError, OrchestratorUnavailable
from tasks.recovery import AWAITING_COMPARISON, AWAITING_FILES, Run
from tasks.settings import current_settings

VERIFY_SESSION = "verify-session/verify-session"
COMPARE_FACES = "compare-faces/compare-faces"
SWEEP_SESSIONS = "sweep-sessions/sweep-sessions"
TAG = "kycflow"
"""Carried by every deployment in prefect.yaml, and so by their flow runs."""
WAITING = {AWAITING_FILES, AWAITING_COMPARISON}
FAULTS = {StateType.FAILED, StateType.CRASHED}
BUSY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
# Between looks at a comparison's row, and at its flow run.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
FIRST_RUN_PAUSE_SECONDS, LONGEST_RUN_PAUSE_SECONDS = 1.5, 10.0
PAGE = 200
"""Most flow runs that Prefect's API gives in one answer."""

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
        if exc.response.status_code in {408, 429} or exc.response.status_code >= 500:
            raise OrchestratorUnavailable(
                f"Prefect's API answered {exc.response.status_code}. It is tried again; see the server's log."
            ) from exc
        raise ConfigurationError(
            f"Prefect's API refused a call with {exc.response.status_code}: do its version and ours agree?"
        ) from exc
    except (httpx.TransportError, RuntimeError) as exc:
        if isinstance(exc, RuntimeError) and "Failed to reach API" not in str(exc):
            raise
        raise OrchestratorUnavailable(
            "Prefect's API does not answer. Is the server running, and PREFECT_API_URL right?"
        ) from exc


def awaiting_comparison(due: datetime, key: str) -> State[None]:
    """The state of a session's run whose comparison takes long. The comparison's run wakes it at its end."""
    message = f"comparison {key[:12]}, next look {due:%H:%M:%S} UTC"
    return Scheduled(name=AWAITING_COMPARISON, scheduled_time=due, message=message)


def awaiting_files(due: datetime, missing: str) -> State[None]:
    """The state of a run that waits for files without a process: a worker takes it up again when it is due."""
    return Scheduled(name=AWAITING_FILES, scheduled_time=due, message=f"{missing}, next look {due:%H:%M:%S} UTC")


async def start_or_wake(attempt: Attempt) -> FlowRun:
    """Start the flow run of an attempt, wake it where it waits for files that are there, or start it again where it
    failed; the run as it was before.

    Any number of calls gives one flow run. An attempt with a file missing gets a run that takes its first look later,
    and so costs no process yet. A cancelled run stays cancelled. Between reading a run's state and setting it a worker
    may take the run up; it then runs twice, and both executions end with the one decision that is stored.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    now = datetime.now(UTC)
    missing = attempt.files.missing()
    state = (
        Scheduled(scheduled_time=now)
        if missing is None
        else awaiting_files(first_look(attempt, now, current_settings().first_look_seconds), missing.value)
    )
    async with prefect_api() as client:
        run = await _noted_run(client, attempt)
        if run is None:
            run = await _created(client, attempt, state)
        if run.state is not None and run.state.name == AWAITING_FILES and missing is None:
            await schedule_now(client, run, "Both files are there")
        elif run.state is not None and run.state.type in FAULTS:
            await client.set_flow_run_state(run.id, state, force=True)
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


async def _created(client: PrefectClient, attempt: Attempt, state: State[Any]) -> FlowRun:
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
        return await _created(client, attempt, state)


def first_look(attempt: Attempt, now: datetime, first_look_seconds: float) -> datetime:
    """When an attempt's run looks for missing files first. The upload service wakes the runs that it announced."""
    if attempt.announced:
        return attempt.deadline_at
    return min(now + timedelta(seconds=first_look_seconds), attempt.deadline_at)


async def schedule_now(
    client: PrefectClient, run: FlowRun, why: str, *, force: bool = False, behind: bool = False
) -> None:
    """Have a flow run executed (again), now. `force`: though it has ended, or Prefect believes that it runs.

    Due since it was created: workers take the run that was due first, and this one has queued before. `behind`: due
    from now on, after all that are.
    """
    due = None if behind else run.created
    state: State[None] = Scheduled(scheduled_time=due or datetime.now(UTC), message=why)
    await client.set_flow_run_state(run.id, state, force=force)


async def wake(flow_run_id: UUID, why: str) -> None:
    """Have a flow run that waits look again now; one that does not wait is left alone.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        run = await client.read_flow_run(flow_run_id)
        if run.state is not None and run.state.name in WAITING:
            await schedule_now(client, run, why)


async def cancel(flow_run_id: UUID, why: str) -> None:
    """Cancel a flow run that has not ended: its worker ends its process. An unknown run is as good as cancelled.

    One that waits has no process that a worker could end, and Prefect would leave it in Cancelling for five minutes.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        with suppress(ObjectNotFound):
            state = (await client.read_flow_run(flow_run_id)).state
            if state is None or state.is_scheduled():
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
        due=run.next_scheduled_start_time,
        run_count=run.run_count,
        alive=alive,
        lingers=lingers,
    )


async def busy_runs(client: PrefectClient) -> list[FlowRun]:
    """The flow runs of kycflow that a worker has, or had: one call for every 200."""
    busy = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BUSY)), tags=FlowRunFilterTags(all_=[TAG])
    )
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=busy, limit=PAGE, offset=len(found), sort=FlowRunSort.ID_DESC
    ):
        found += page
        if len(page) < PAGE:
            break
    return found


async def start_comparison(
    key: str, dispatch: int, reference: StoredFile, probe: StoredFile, engine: EngineConfig
) -> FlowRun:
    """Start the flow run of one dispatch of a comparison; the same dispatch again gives the same run, as it stands.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        return await arun_deployment(
            COMPARE_FACES,
            client=client,
            parameters={
                "reference": reference.model_dump(),
                "probe": probe.model_dump(),
                "engine": engine.model_dump(),
            },
            flow_run_name=f"comparison {key[:12]}",
            idempotency_key=f"{key}:{dispatch}",
            timeout=0,
        )


async def start_sweep(repeat_seconds: int) -> None:
    """Start a sweep beside those of the schedule.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    async with prefect_api() as client:
        await arun_deployment(SWEEP_SESSIONS, client=client, parameters={"repeat_seconds": repeat_seconds}, timeout=0)


async def wait_for_end(
    flow_run_id: UUID, over: Callable[[], Awaitable[bool]], *, queued_seconds: float, seconds: float
) -> FlowRun | None:
    """The flow run when it has ended, or as it stands after so many seconds. None when what it was to bring is there.

    Args:
        over: whether that is there, though the run has not ended: looked at first, and more often.
        queued_seconds: how long it is waited for while no worker has it.
        seconds: how long in all.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    begin = time.monotonic()
    pause, run_pause = FIRST_PAUSE_SECONDS, FIRST_RUN_PAUSE_SECONDS
    next_read = min(run_pause, queued_seconds, seconds)
    async with prefect_api() as client:
        while not await over():
            waited = time.monotonic() - begin
            if waited >= next_read:
                run = await client.read_flow_run(flow_run_id)
                queues = run.state is None or run.state.is_scheduled()
                ended = run.state is not None and run.state.is_final()
                limit = queued_seconds if queues else seconds
                if ended or waited >= limit:
                    return run
                next_read = min(waited + run_pause, limit)
                run_pause = min(run_pause * 1.5, LONGEST_RUN_PAUSE_SECONDS)
            await asyncio.sleep(pause)
            pause = min(pause * 1.1, LONGEST_PAUSE_SECONDS)
    return None
