"""Starts and wakes flow runs through Prefect's API: the one place that knows deployments and idempotency keys."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Scheduled

from tasks.contracts import Attempt, EngineConfig, StoredFile
from tasks.errors import ConfigurationError, OrchestratorUnavailable
from tasks.settings import Settings

VERIFY_SESSION = "verify-session/verify-session"
COMPARE_FACES = "compare-faces/compare-faces"
AWAITING_FILES = "AwaitingFiles"

FAULTS = {StateType.FAILED, StateType.CRASHED}
MOST_EXECUTIONS = 50
"""A run that failed is not started again by itself after so many executions. An hour of waiting takes about twenty."""

log = logging.getLogger(__name__)


@asynccontextmanager
async def prefect_api() -> AsyncIterator[PrefectClient]:
    """A client of Prefect's API whose failures are ours.

    Raises:
        ConfigurationError: PREFECT_API_URL is not set.
        OrchestratorUnavailable, ConfigurationError: see `prefect_errors`.
    """
    if not PREFECT_API_URL.value():
        # Without an address Prefect would start a server of its own, which nobody sees.
        raise ConfigurationError("PREFECT_API_URL is not set: set it to the Prefect server's address, ending in /api.")
    with prefect_errors():
        async with get_client() as client:
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


def awaiting_files(due: datetime, missing: str) -> State[None]:
    """The state of a run that waits for files without a process: a worker takes it up again when it is due."""
    return Scheduled(name=AWAITING_FILES, scheduled_time=due, message=f"{missing}, next look {due:%H:%M:%S} UTC")


async def start_or_wake(attempt: Attempt) -> None:
    """Start the flow run of an attempt, wake it where it waits, or start it again where it failed.

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
        else awaiting_files(
            min(now + timedelta(seconds=Settings().first_look_seconds), attempt.deadline_at), missing.value
        )
    )
    async with prefect_api() as client:
        deployment = await client.read_deployment_by_name(VERIFY_SESSION)
        run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"session_id": attempt.session_id, "attempt": attempt.attempt},
            idempotency_key=f"{attempt.session_id}:{attempt.attempt}",
            name=f"{attempt.session_id} attempt {attempt.attempt}",
            state=state,
        )
        if run.state is not None and run.state.name == AWAITING_FILES and missing is None:
            await client.set_flow_run_state(run.id, Scheduled(scheduled_time=now, message="Both files are there"))
        elif run.state is not None and run.state.type in FAULTS and run.run_count < MOST_EXECUTIONS:
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


async def wait_for_end(flow_run_id: UUID, seconds: float) -> State | None:
    """Wait until a flow run has ended; its final state, or None when a worker has had it for so many seconds.

    The time it is queued does not count: a long queue is no reason to queue it again.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    pause = 0.5
    with_worker = 0.0
    async with prefect_api() as client:
        while with_worker < seconds:
            state = (await client.read_flow_run(flow_run_id)).state
            if state is not None and state.is_final():
                return state
            await asyncio.sleep(pause)
            if state is not None and not state.is_scheduled():
                with_worker += pause
            pause = min(pause * 1.2, 3)
    return None
