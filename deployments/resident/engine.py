"""Prefect's flow run engines, without what costs more than it gives where many runs share one process.

What rests on inner parts of Prefect's engine stands in this module, as read in Prefect 3.8.8. `tests/integration/
test_resident_worker.py` fails when one of them is gone.

- No observer of suspension: Prefect starts a thread with an event loop and a WebSocket for each run of a deployment,
  and blocks the run's own loop until it is connected. A suspended run is noticed when it next reports a state.
- No heartbeat thread a run: the worker beats for all of them (`beat`).
- No update of the run's version, where its flow has no retries that the server must know of, and of a name that it has.
- Where results go is asked once a minute, and not for each run by a client made for that call.
- The state Running names the worker, so that neither a call for a label nor a sign of life for each run is needed.
- A run that is stopped by its worker ends Cancelled, or is handed back, and not as Crashed.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect._flow_run_suspension import FlowRunSuspensionRequest, register_flow_run_suspension_request
from prefect._internal.engine import resolve_custom_flow_run_name
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, ServerDefaultResultStorage, State
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.flow_engine import AsyncFlowRunEngine, BaseFlowRunEngine, FlowRunEngine, _flow_parameters
from prefect.states import Scheduled

from tasks.dispatch import on_worker

REMEMBERED_SECONDS = 60


class Stop(Enum):
    """Why a worker stops a run."""

    CANCEL = "cancel"
    HAND_BACK = "hand back"


class _Client(PrefectClient):
    async def update_flow_run(self, *args: Any, **kwargs: Any) -> Any:
        return None if _only_policy(kwargs) else await super().update_flow_run(*args, **kwargs)

    async def read_server_default_result_storage(self) -> ServerDefaultResultStorage:
        return _storage.known() or _storage.noted(await super().read_server_default_result_storage())


class _SyncClient(SyncPrefectClient):
    def update_flow_run(self, *args: Any, **kwargs: Any) -> Any:
        return None if _only_policy(kwargs) else super().update_flow_run(*args, **kwargs)

    def read_server_default_result_storage(self) -> ServerDefaultResultStorage:
        return _storage.known() or _storage.noted(super().read_server_default_result_storage())


class _Remembered:
    """Where the server says that results go: asked for each run and task, and as good as never changed."""

    def __init__(self) -> None:
        self._noted: tuple[float, ServerDefaultResultStorage] | None = None

    def known(self) -> ServerDefaultResultStorage | None:
        noted = self._noted
        return noted[1] if noted is not None and time.monotonic() - noted[0] < REMEMBERED_SECONDS else None

    def noted(self, answer: ServerDefaultResultStorage) -> ServerDefaultResultStorage:
        self._noted = (time.monotonic(), answer)
        return answer


_storage = _Remembered()


def _only_policy(given: dict[str, Any]) -> bool:
    return given.keys() == {"flow_run_id", "flow_version", "empirical_policy"} and not given["empirical_policy"].retries


def client_context() -> AsyncClientContext:
    """One client for all asynchronous runs of a process. Enter it in the loop that runs them."""
    context = AsyncClientContext()
    context.client.__class__ = _Client
    return context


def sync_client_context() -> SyncClientContext:
    """A client for the synchronous runs of a thread, and for what Prefect asks synchronously in a loop."""
    context = SyncClientContext()
    context.client.__class__ = _SyncClient
    return context


class _Resident(BaseFlowRunEngine[Any, Any]):
    worker_name: str = ""
    stop: Stop | None = None
    told: bool = False
    """Whether the run's state tells that it was stopped."""

    @property
    def run_id(self) -> UUID:
        """The flow run's id. A worker's engine always has a flow run."""
        if self.flow_run is None:
            raise ValueError("An engine without a flow run.")
        return self.flow_run.id

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[FlowRunSuspensionRequest]:
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.run_id, request):
            request.raise_if_requested()
            yield request

    @property
    def heartbeat_seconds(self) -> int | None:
        return None

    def named(self) -> None:
        """Leave out the call that gives a run the name that it has."""
        if self.flow.flow_run_name and self.flow_run is not None:
            name = resolve_custom_flow_run_name(flow=self.flow, parameters=self.parameters or {})
            self._flow_run_name_set = name == self.flow_run.name

    def beat(self) -> None:
        """Send the heartbeat that Prefect's own engine sends from a thread."""
        if self.flow_run is not None and self.flow_run.state is not None and self.flow_run.state.is_running():
            self._emit_flow_run_heartbeat(*self._build_heartbeat_event_template())

    def _told(self, state: State[Any]) -> State[Any]:
        if state.is_running() and not state.message:
            return state.model_copy(update={"message": on_worker(self.worker_name)})
        return state


def handed_back(worker_name: str) -> State[Any]:
    """The state of a run that another worker is to execute again, at once."""
    message = f"Handed back: its worker {worker_name} is being stopped"
    return Scheduled(scheduled_time=datetime.now(UTC), message=message)


class AsyncEngine(_Resident, AsyncFlowRunEngine[Any, Any]):
    """The engine of an asynchronous flow."""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        # Not given up on its way: the server would set it all the same, and after the state that follows a stop.
        asked = asyncio.ensure_future(super().set_state(self._told(state), force))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            await asyncio.wait({asked})  # which a second cancellation does not give up either
            raise

    async def handle_crash(self, exc: BaseException) -> None:
        if self.stop is None:
            return await super().handle_crash(exc)
        self.told = True
        if self.stop is Stop.CANCEL:
            return await self.handle_cancellation(exc)
        self._raised = exc  # type: ignore[assignment]  # as Prefect does
        await AsyncFlowRunEngine.set_state(self, handed_back(self.worker_name), force=True)
        return None


class SyncEngine(_Resident, FlowRunEngine[Any, Any]):
    """The engine of a synchronous flow."""

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        return super().set_state(self._told(state), force)

    def handle_crash(self, exc: BaseException) -> None:
        if self.stop is None:
            return super().handle_crash(exc)
        self.told = True
        if self.stop is Stop.CANCEL:
            return self.handle_cancellation(exc)
        self._raised = exc  # type: ignore[assignment]  # as Prefect does
        FlowRunEngine.set_state(self, handed_back(self.worker_name), force=True)
        return None


def engine_for(flow: Flow[..., Any], flow_run: FlowRun, worker_name: str) -> "AsyncEngine | SyncEngine":
    """The engine for a run of a flow that is not a generator.

    Raises:
        TypeError: its parameters are not those of the flow.
    """
    kind = AsyncEngine if flow.isasync else SyncEngine
    engine = kind(flow=flow, flow_run=flow_run, parameters=_flow_parameters(flow, flow_run, None))
    engine.worker_name = worker_name
    engine.named()
    return engine
