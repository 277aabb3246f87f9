"""Prefect's flow run engines, without what costs more than it gives where many runs share one process.

What rests on inner parts of Prefect's engine stands in this module, as read in Prefect 3.8.8 and 3.9.1.
`tests/contract/test_prefect_parts.py` names them, and fails when one of them is gone.

- No observer of suspension: Prefect starts a thread with an event loop and a WebSocket for each run of a deployment,
  and blocks the run's own loop until it is connected. A suspended run is noticed when it next reports a state.
- No heartbeats: the sign of life is in SQL.
- No update of the run's version, where its flow has no retries that the server must know of, and of a name that it has.
- The server is not asked where results go: it could name a place that is not ours.
- The state Running names the worker, so that neither a call for a label nor a sign of life for each run is needed.
- A run that is stopped by its worker ends Cancelled, or is handed back, and not as Crashed.
- A run's last state is tried until it is known to be there: Prefect gives up after a few minutes without its server.
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
from prefect.exceptions import Pause
from prefect.flow_engine import AsyncFlowRunEngine, BaseFlowRunEngine, FlowRunEngine, _flow_parameters
from prefect.states import Scheduled

from tasks.dispatch import AGAIN_SECONDS, SWEEP, on_worker, worth_telling_again
from tasks.states import replaced


class Stop(Enum):
    """Why a worker stops a run."""

    CANCEL = "cancel"
    HAND_BACK = "hand back"


NO_DEFAULT = ServerDefaultResultStorage(default_result_storage_block_id=None)
"""Where results go is not for the server to say: what is written there leaves kycflow's storage, and is not erased."""


class _Client(PrefectClient):
    async def update_flow_run(self, *args: Any, **kwargs: Any) -> Any:
        return None if _only_policy(kwargs) else await super().update_flow_run(*args, **kwargs)

    async def read_server_default_result_storage(self) -> ServerDefaultResultStorage:
        return NO_DEFAULT


class _SyncClient(SyncPrefectClient):
    def update_flow_run(self, *args: Any, **kwargs: Any) -> Any:
        return None if _only_policy(kwargs) else super().update_flow_run(*args, **kwargs)

    def read_server_default_result_storage(self) -> ServerDefaultResultStorage:
        return NO_DEFAULT


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

    def handed_back(self) -> State[Any]:
        """See the function of this name."""
        if self.flow_run is None:
            raise ValueError("An engine without a flow run.")
        return handed_back(self.flow_run, self.worker_name)

    def named(self) -> None:
        """Leave out the call that gives a run the name that it has."""
        if self.flow.flow_run_name and self.flow_run is not None:
            name = resolve_custom_flow_run_name(flow=self.flow, parameters=self.parameters or {})
            self._flow_run_name_set = name == self.flow_run.name

    def _tries_again(self, state: State[Any], exc: Exception, began: float) -> bool:
        return state.is_final() and self.stop is not Stop.HAND_BACK and worth_telling_again(exc, began)

    def _stays(self, found: State[Any] | None) -> None:
        """Raises Pause: a state that came while Prefect was away says that this execution is not the run's any more."""
        own = self.flow_run and self.flow_run.state
        if found is not None and own and found.id != own.id and not found.is_cancelling():
            raise Pause(state=found)

    def _told(self, state: State[Any]) -> State[Any]:
        if state.is_running() and not state.message:
            return state.model_copy(update={"message": on_worker(self.worker_name)})
        return state


def handed_back(flow_run: FlowRun, worker_name: str) -> State[Any]:
    """The state of a run whose worker is being stopped: another one is to execute it again, at once.

    A sweep ends: there is one beside each worker that could execute it.
    """
    if SWEEP in flow_run.tags:
        return replaced(f"Its worker {worker_name} was stopped")
    message = f"Handed back: its worker {worker_name} is being stopped"
    return Scheduled(scheduled_time=datetime.now(UTC), message=message)


class AsyncEngine(_Resident, AsyncFlowRunEngine[Any, Any]):
    """The engine of an asynchronous flow."""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        # Not given up on its way: the server would set it all the same, and after the state that follows a stop.
        asked = asyncio.ensure_future(self._set(self._told(state), force))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            await asyncio.wait({asked})  # which a second cancellation does not give up either
            raise

    async def _set(self, state: State[Any], force: bool) -> State[Any]:
        began, again = time.monotonic(), False
        while True:
            try:
                if again:
                    self._stays((await self.client.read_flow_run(self.run_id)).state)
                return await super().set_state(state, force)
            except Exception as exc:
                if not self._tries_again(state, exc, began):
                    raise
            again = True
            await asyncio.sleep(AGAIN_SECONDS)

    async def handle_crash(self, exc: BaseException) -> None:
        if self.stop is None:
            return await super().handle_crash(exc)
        self.told = True
        if self.stop is Stop.CANCEL:
            return await self.handle_cancellation(exc)
        self._raised = exc  # type: ignore[assignment]  # as Prefect does
        await AsyncFlowRunEngine.set_state(self, self.handed_back(), force=True)
        return None


class SyncEngine(_Resident, FlowRunEngine[Any, Any]):
    """The engine of a synchronous flow."""

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        began, again = time.monotonic(), False
        while True:
            try:
                if again:
                    self._stays(self.client.read_flow_run(self.run_id).state)
                return super().set_state(self._told(state), force)
            except Exception as exc:
                if not self._tries_again(state, exc, began):
                    raise
            again = True
            time.sleep(AGAIN_SECONDS)

    def handle_crash(self, exc: BaseException) -> None:
        if self.stop is None:
            return super().handle_crash(exc)
        self.told = True
        if self.stop is Stop.CANCEL:
            return self.handle_cancellation(exc)
        self._raised = exc  # type: ignore[assignment]  # as Prefect does
        FlowRunEngine.set_state(self, self.handed_back(), force=True)
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
