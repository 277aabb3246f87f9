"""Prefect worker type `resident`: flow runs are executed in the worker's own process, where imports and models stay.

    prefect worker start --pool gpu --type resident

What that gives up: flow runs share environment variables, working folder and memory, and a native crash takes the
neighbours along. Job variables that ask for something else are refused when a run is submitted.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar
from uuid import UUID

import anyio
import httpx
import psutil
from anyio.abc import TaskStatus
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import Abort, ObjectNotFound
from prefect.settings import PREFECT_WORKER_ENABLE_CANCELLATION, temporary_settings
from prefect.states import Crashed, Pending
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import PrivateAttr

from deployments.provision import other_type
from deployments.resident.code import FlowCode
from deployments.resident.engine import Stop, handed_back
from deployments.resident.runtime import Runtime
from tasks.dispatch import AGAIN_SECONDS, SWEEP, is_away, on_worker, worth_telling_again
from tasks.errors import ConfigurationError
from tasks.settings import MIB, Settings

DEPLOYMENT_SECONDS = 20
"""How long a deployment is taken to be as it was read."""
WATCH_SECONDS = 5
AWAY_SECONDS = 2
CANCELLING_SECONDS = 3
"""Between two looks for running flow runs that are to be cancelled. Prefect tells of them at once, but after a lost
connection its 3.8 asks each two minutes only, and no more after a few failures; its 3.9 may be silent for five."""
LOOK_SECONDS = 5
"""The most that such a look takes: within one call, Prefect's client waits up to 32 s before it tries again."""
STOP_SECONDS = 3
"""What a run has to end when it is stopped at the end of the worker. After that it is left to the process' end."""
TELL_SECONDS = 1.5
"""What Prefect's server has to take note of runs that did not end in time. After that the sweep finds them."""
END_SECONDS = 6
"""From the begin of its end to that of its process. Prefect's own closing would try a server that is gone for a minute,
and `kycflow up` kills what takes longer."""
AGAIN_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the worker ended to be started again."""
SWITCH_SECONDS = 0.0005
"""How long a thread that wants Python's lock waits for another one to give it up. A comparison asks for it after each
packet and picture; with Python's 5 ms it mostly waited for the threads that talk to Prefect and SQL."""


class ResidentVariables(BaseVariables):
    """None: there is nothing to set for a run that shares its worker's process."""

    @classmethod
    def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
        """The form in the UI: empty."""
        return {"type": "object", "properties": {}, "description": "Flow runs share the worker's process."}


class ResidentJobConfiguration(BaseJobConfiguration):
    """A flow run's deployment."""

    _deployment: DeploymentResponse | None = PrivateAttr(None)

    @classmethod
    def json_template(cls) -> dict[str, Any]:
        """Nothing is to be configured, and Prefect refuses a template that says nothing."""
        return {"process": "the worker's own"}

    @classmethod
    def of(cls, flow_run: FlowRun, deployment: DeploymentResponse) -> "ResidentJobConfiguration":
        """Raises ConfigurationError: a job variable is set."""
        variables = {**(deployment.job_variables or {}), **(flow_run.job_variables or {})}
        if unknown := sorted(name for name, value in variables.items() if value not in (None, "", {}, [])):
            raise ConfigurationError(
                f"Job variables that a resident worker cannot honour: {', '.join(unknown)}. Its flow runs share one "
                "process. Remove them from the deployment or the flow run, set them for the worker, or use a pool of "
                "type process, docker or kubernetes."
            )
        configuration = cls()
        configuration._deployment = deployment
        return configuration


class ResidentWorkerResult(BaseWorkerResult):
    """A flow run was executed. Its state tells how that ended."""


class ResidentWorker(BaseWorker[ResidentJobConfiguration, ResidentVariables, ResidentWorkerResult]):
    """Executes flow runs in its own process. See the module."""

    owns_process: ClassVar[bool] = False
    """Whether nothing else is in its process, which it may end when Prefect's own closing takes too long."""
    type = "resident"
    job_configuration = ResidentJobConfiguration
    job_configuration_variables = ResidentVariables
    _display_name = "Resident"
    _description = (
        "Execute flow runs inside one long-lived worker process: imports and models are loaded once. For many short "
        "flow runs, and for models that take long to load. Runs share the worker's environment and memory."
    )
    _logo_url = "https://cdn.sanity.io/images/3ugk85nk/production/356e6766a91baf20e1d08bbe16e8b5aaef4d8643-48x48.png"
    _documentation_url = "https://docs.prefect.io/v3/concepts/workers"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = Settings()
        self._runtime = Runtime(self.name)
        self._code = FlowCode()
        self._deployments: dict[UUID, tuple[float, DeploymentResponse]] = {}
        self._warm = self._draining = self._drained = self._ending = self._polling = False
        self._ours = True
        """Whether the pool is of this worker's type."""
        self._taken: deque[UUID | None] = deque(maxlen=1000)
        self._exit_code = 0
        self._main: asyncio.Task[Any] | None = None
        self._drainer: asyncio.Task[None] | None = None
        self._canceller: asyncio.Task[None] | None = None

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Run until a signal ends it. SIGTERM drains: nothing new is taken, and what runs may finish.

        Raises:
            SystemExit: it ended because its memory grew above its bound, with AGAIN_EXIT_CODE.
        """
        self._main = asyncio.current_task()
        try:
            await super().start(run_once, with_healthcheck, printer)
        except asyncio.CancelledError:
            if not self._drained:
                raise
        if self._exit_code:
            raise SystemExit(self._exit_code)

    async def setup(self) -> None:
        """Start the place where flows run, and warm up: load the flows of the pool, and call their `warm_up`."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._runtime.start()
        await super().setup()
        loop = asyncio.get_running_loop()
        with suppress(ValueError):  # not in the main thread
            # Prefect's command ends at once at this signal.
            signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(self._drain_soon, "it was told to end"))
        await self._warm_up()
        self._canceller = asyncio.create_task(self._look_for_cancelled())
        if self._runs_task_group is not None:
            self._runs_task_group.start_soon(self._watch)

    async def teardown(self, *exc_info: Any) -> None:
        """Hand back what still runs, and end, whether Prefect's server is there or not."""
        self._draining = True
        if self.owns_process:
            end = threading.Timer(END_SECONDS, self._end_now)
            end.daemon = True
            end.start()
        with anyio.CancelScope(shield=True):
            await self._hand_back()
        if self._canceller is not None:
            self._canceller.cancel()
        await super().teardown(*exc_info)
        self._runtime.close()

    def is_worker_still_polling(self, query_interval_seconds: float) -> bool:
        """Whether it is ready: warm, its pool as it should be, not draining, its loop not blocked, and polling."""
        ready = self._warm and self._ours and not self._draining and self._runtime.responds(1)
        return ready and super().is_worker_still_polling(query_interval_seconds)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take flow runs that are due, unless it is being drained, or its pool is not what it was."""
        if self._draining or not self._warm or not self._ours:
            return []
        return await super().get_and_submit_flow_runs()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ResidentJobConfiguration,
        task_status: TaskStatus[Any] | None = None,
    ) -> ResidentWorkerResult:
        """Execute a flow run to its end.

        Raises:
            ConfigurationError: its flow cannot be loaded. Exception: its state could not be set.
        """
        if configuration._deployment is None:
            raise ConfigurationError("A resident worker runs deployments only.")
        flow = await asyncio.to_thread(self._code.flow, configuration._deployment)
        if task_status is not None:
            task_status.started(str(flow_run.id))
        # One that was taken just before the end is not begun.
        match Stop.HAND_BACK if self._ending else await self._runtime.execute(flow, flow_run):
            case Stop.CANCEL:
                await self._surely(flow_run, lambda: self._mark_flow_run_as_cancelled(flow_run))
            case Stop.HAND_BACK:
                await self.client.set_flow_run_state(flow_run.id, handed_back(flow_run, self.name), force=True)
        return ResidentWorkerResult(identifier=str(flow_run.id), status_code=0)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """From taking a run to its end. Prefect's own would make nine calls where this makes one (Prefect 3.8.8).

        It reads deployment and flow for each run, and tells the run's labels, a state Submitting and a process id.
        """
        taken = False
        try:
            deployment = await self._deployment(flow_run)
            if deployment is None:
                await self._mark_flow_run_as_cancelled(flow_run, {"message": "Its deployment no longer exists."})
                return
            configuration = ResidentJobConfiguration.of(flow_run, deployment)
            if taken := await self._take(flow_run):
                await self.run(flow_run, configuration)
                self._poll_soon()
        except Exception as exc:
            if is_away(exc) and not taken:  # it is still due, or this worker does not tell that it has it: not lost
                self._logger.warning("Flow run %s is not taken: %s", flow_run.id, exc)
                return
            self.get_flow_run_logger(flow_run).exception("Flow run could not be executed.")
            crashed: State[Any] = Crashed(message=f"{type(exc).__name__}: {exc}")
            await self._surely(flow_run, lambda: self._tell(flow_run, crashed))
        finally:
            self._submitting_flow_run_ids.discard(flow_run.id)
            if self._cancelling_observer is not None:
                self._cancelling_observer.remove_in_flight_flow_run_id(flow_run.id)
            self._release_limit_slot(flow_run.id)

    async def _surely(self, flow_run: FlowRun, tell: Callable[[], Awaitable[object]]) -> None:
        """Tell how a run ended until that is known, unless the worker ends, or the run has another state meanwhile."""
        own = flow_run.state and flow_run.state.id
        began, again = time.monotonic(), False
        while not self._ending:
            try:
                found = (await self.client.read_flow_run(flow_run.id)).state if again else None
                if found is None or found.id == own or found.is_cancelling():
                    await tell()
                return
            except Exception as exc:
                if not worth_telling_again(exc, began):
                    self._logger.exception("How flow run %s ended is not told.", flow_run.id)
                    return
            again = True
            await anyio.sleep(AGAIN_SECONDS)

    async def _tell(self, flow_run: FlowRun, state: State[Any]) -> None:
        with suppress(Abort, ObjectNotFound):  # it has ended, or was deleted
            await propose_state(self.client, state, flow_run_id=flow_run.id)

    async def _take(self, flow_run: FlowRun) -> bool:
        """Whether the run is this worker's: Prefect gives the state Pending once.

        An answer that was on its way while the run began and ended offers it again, and Prefect would allow that.
        """
        if flow_run.state_id in self._taken:
            return False
        try:
            state = await propose_state(self.client, Pending(message=on_worker(self.name)), flow_run_id=flow_run.id)
        except Abort as exc:
            self._logger.info("Flow run %s is not taken: %s", flow_run.id, exc)
            return False
        self._taken.append(flow_run.state_id)
        flow_run.state = state
        return state.is_pending()

    def _poll_soon(self) -> None:
        """Ask for more at once where half of the places are free: the queue may be long, and each answer costs."""
        full = self._limiter is not None and 2 * len(self._runtime.running) > self._limiter.total_tokens
        if full or self._polling or self._draining or self._runs_task_group is None:
            return
        self._polling = True
        self._runs_task_group.start_soon(self._poll)

    async def _poll(self) -> None:
        try:
            await self.get_and_submit_flow_runs()
        except Exception as exc:  # the loop of the base class asks again, and slows down
            self._logger.debug("not polled: %s", exc)
        finally:
            self._polling = False

    async def _deployment(self, flow_run: FlowRun) -> DeploymentResponse | None:
        if flow_run.deployment_id is None:
            return None
        read_at, deployment = self._deployments.get(flow_run.deployment_id, (0.0, None))
        if deployment is None or time.monotonic() - read_at > DEPLOYMENT_SECONDS:
            try:
                deployment = await self.client.read_deployment(flow_run.deployment_id)
            except ObjectNotFound:
                self._deployments.pop(flow_run.deployment_id, None)
                return None
            self._deployments[flow_run.deployment_id] = (time.monotonic(), deployment)
        return deployment

    async def _warm_up(self) -> None:
        """Load what the pool's deployments need, before the first run needs it.

        Raises:
            Exception: of a module's `warm_up`. A worker that cannot warm up does not take runs.
        """
        begin = time.monotonic()
        for deployment in await self._deployments_here():
            try:
                flow = await asyncio.to_thread(self._code.flow, deployment)
            except Exception:
                self._logger.exception("Deployment %r cannot run here; its runs will crash.", deployment.name)
                continue
            warm_up = getattr(self._code.module(flow), "warm_up", None)
            if warm_up is not None:
                await asyncio.to_thread(warm_up)
        self._warm = True
        self._logger.info("Worker is warm after %.1f s.", time.monotonic() - begin)

    async def _deployments_here(self) -> list[DeploymentResponse]:
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name]))
        while True:
            try:
                return await self.client.read_deployments(work_pool_filter=pool)
            except (httpx.HTTPError, RuntimeError) as exc:
                self._logger.warning("Prefect's server does not answer; asked again: %s", exc)
                await anyio.sleep(AWAY_SECONDS)

    def _record_work_pool_snapshot(self, work_pool: WorkPool) -> None:
        was, self._ours = self._ours, work_pool.type == self.type
        if was and not self._ours:
            self._logger.error("It takes no flow runs: %s", other_type(work_pool.name, work_pool.type, self.type))
        elif self._ours and not was:
            self._logger.info("Work pool %s is of type %s again.", work_pool.name, self.type)
        super()._record_work_pool_snapshot(work_pool)

    async def _setup_cancellation_observer(self) -> None:
        # Off by default, as other types of worker leave it to a run's own process.
        with temporary_settings({PREFECT_WORKER_ENABLE_CANCELLATION: True}):
            await super()._setup_cancellation_observer()

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        if not self._runtime.stop(flow_run_id, Stop.CANCEL):
            await super()._cancel_run(flow_run_id)

    async def _look_for_cancelled(self) -> None:
        while True:
            await anyio.sleep(CANCELLING_SECONDS)
            if not (running := list(self._runtime.running)):
                continue
            cancelling = FlowRunFilter(
                id=FlowRunFilterId(any_=running),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING])),
            )
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    found = await self.client.read_flow_runs(flow_run_filter=cancelling)
            except Exception as exc:  # whatever it is: one failed look must not be the last
                self._logger.debug("not asked for cancelled runs: %s", exc)
                continue
            for run in found:
                self._runtime.stop(run.id, Stop.CANCEL)

    async def _watch(self) -> None:
        """End before memory does."""
        bound = self._settings.worker_memory_mib
        while bound is not None and not self._draining:
            await anyio.sleep(WATCH_SECONDS)
            used = psutil.Process().memory_info().rss / MIB
            if used > bound:
                self._exit_code = AGAIN_EXIT_CODE
                self._drain_soon(f"it uses {used:.0f} MiB of memory, more than {bound}")

    def _drain_soon(self, why: str) -> None:
        if not self._draining:
            self._draining = True
            self._logger.info("Worker takes no more flow runs, as %s; %d are running.", why, len(self._runtime.running))
            for run in self._runtime.running.values():
                if SWEEP in run.tags:  # which would go on for hours
                    self._runtime.stop(run.id, Stop.HAND_BACK)
            self._drainer = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await _until(lambda: not self._submitting_flow_run_ids, self._settings.drain_seconds)
        self._drained = True
        if self._main is not None:
            self._main.cancel()

    async def _hand_back(self) -> None:
        """Have other workers execute what is running, from its beginning."""
        self._ending = True
        for flow_run_id in self._runtime.running:
            self._runtime.stop(flow_run_id, Stop.HAND_BACK)
        await _until(lambda: not self._submitting_flow_run_ids, STOP_SECONDS)
        left = self._runtime.running
        with anyio.move_on_after(TELL_SECONDS) as telling:
            await asyncio.gather(*(self._hand_back_all_the_same(flow_run) for flow_run in left.values()))
        if telling.cancelled_caught:
            self._logger.warning("Prefect's server does not answer: what is not handed back, the sweep finds.")

    async def _hand_back_all_the_same(self, flow_run: FlowRun) -> None:
        self._logger.warning("Flow run %s does not stop; it is handed back all the same.", flow_run.id)
        try:
            await self.client.set_flow_run_state(flow_run.id, handed_back(flow_run, self.name), force=True)
        except Exception:
            self._logger.exception("Flow run %s is not handed back; the sweep does it.", flow_run.id)

    def _end_now(self) -> None:
        # Not logged: handlers may be what does not end.
        print(f"Worker {self.name!r} did not end in {END_SECONDS} s, and is ended.", flush=True)  # noqa: T201
        os._exit(self._exit_code)


async def _until(true: Callable[[], bool], seconds: float) -> None:
    """Wait until something is true, for so many seconds at most."""
    with anyio.move_on_after(seconds):
        while not true():  # noqa: ASYNC110 - what it looks at changes in other threads
            await anyio.sleep(0.05)
