"""Executes flow runs in this process: asynchronous flows on one event loop, synchronous ones in threads.

The loop has a thread of its own, so that a flow that blocks it stops neither the worker's polling nor its heartbeats.
"""

import asyncio
import concurrent.futures
import contextvars
import queue
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort, Pause
from prefect.settings import PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED, temporary_settings

from deployments.resident.engine import (
    AsyncEngine,
    Stop,
    SyncEngine,
    client_context,
    engine_for,
    sync_client_context,
)
from tasks.threads import Stopped, raise_in
from tasks.waiting import quiet


@dataclass
class _Execution:
    flow_run: FlowRun
    engine: AsyncEngine | SyncEngine
    task: "asyncio.Task[None] | None" = None
    thread: threading.Thread | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: bool = False


class Runtime:
    """The place where flow runs are executed. `start` it, and `close` it when nothing runs any more."""

    def __init__(self, worker_name: str) -> None:
        self._worker_name = worker_name
        self._loop = asyncio.new_event_loop()
        self._executions: dict[UUID, _Execution] = {}
        self._base = contextvars.Context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[_Hand] = []
        # In the context of who makes it: Prefect's settings are found there.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._serve,), name="flow runs", daemon=True)
        self._end = asyncio.Event()
        self._ready = threading.Event()

    def start(self) -> None:
        """Start the loop."""
        quiet()
        self._thread.start()
        while not self._ready.wait(0.1):
            if not self._thread.is_alive():
                raise RuntimeError("The loop for flow runs could not be started: see the error above.")

    def close(self) -> None:
        """End the loop. Threads that do not end are left to the end of the process."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5)
        while self._idle:
            self._idle.pop().work.put(None)

    @property
    def running(self) -> dict[UUID, FlowRun]:
        """The flow runs that are being executed."""
        return {execution.flow_run.id: execution.flow_run for execution in list(self._executions.values())}

    async def execute(self, flow: Flow[..., Any], flow_run: FlowRun) -> Stop | None:
        """Execute a flow run to its end; its state tells how that was.

        Returns why it was stopped, where that came too early for its state to tell.

        Raises:
            Exception: its state could not be set, or the engine could not begin.
        """
        execution = _Execution(flow_run, engine_for(flow, flow_run, self._worker_name))
        self._executions[flow_run.id] = execution
        try:
            if isinstance(execution.engine, AsyncEngine):
                future = self._soon(self._run_async(execution, execution.engine))
            else:
                future = self._in_thread(execution, execution.engine)
            await asyncio.shield(asyncio.wrap_future(future))
            return None if execution.engine.told else execution.engine.stop
        finally:
            self._executions.pop(flow_run.id, None)

    def stop(self, flow_run_id: UUID, why: Stop) -> bool:
        """Stop a run: an asynchronous flow at its next await, another one at its next line of Python.

        False when it does not run here.
        """
        execution = self._executions.get(flow_run_id)
        if execution is None:
            return False
        with execution.lock:
            if execution.over or execution.engine.stop is not None:
                return True
            execution.engine.stop = why
            if execution.task is not None:
                self._loop.call_soon_threadsafe(execution.task.cancel)
            elif execution.thread is not None and execution.thread.ident is not None:
                raise_in(execution.thread.ident, Stopped)
        return True

    def responds(self, seconds: float) -> bool:
        """Whether the loop takes up new work within so many seconds, or a flow blocks it."""
        answer = threading.Event()
        self._loop.call_soon_threadsafe(answer.set)
        return answer.wait(seconds)

    def _soon(self, work: Coroutine[Any, Any, None]) -> "concurrent.futures.Future[None]":
        future: concurrent.futures.Future[None] = concurrent.futures.Future()

        async def settle() -> None:
            try:
                await work
            except BaseException as exc:
                future.set_exception(_failure(exc))
            else:
                future.set_result(None)

        def begin() -> None:
            task = self._loop.create_task(settle(), context=self._base.copy())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)
        return future

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._until_end())
        self._loop.close()

    async def _until_end(self) -> None:
        # Prefect's server may be away when a worker starts; its version is not asked for by each client either.
        with temporary_settings({PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}), sync_client_context():
            async with client_context():
                self._base = contextvars.copy_context()
                self._ready.set()
                await self._end.wait()

    async def _run_async(self, execution: _Execution, engine: AsyncEngine) -> None:
        with execution.lock:
            if engine.stop is not None:
                return
            execution.task = asyncio.current_task()
        try:
            async with engine.start():
                while engine.is_running():
                    async with engine.run_context():
                        await engine.call_flow_fn()  # type: ignore[unused-coroutine]
        except (Abort, Pause, asyncio.CancelledError):
            pass
        finally:
            with execution.lock:
                execution.over = True

    def _in_thread(self, execution: _Execution, engine: SyncEngine) -> "concurrent.futures.Future[None]":
        future: concurrent.futures.Future[None] = concurrent.futures.Future()

        def work() -> None:
            try:
                self._run_sync(execution, engine)
            except Stopped:  # raised while it was ending
                future.set_result(None)
            except BaseException as exc:
                future.set_exception(_failure(exc))
            else:
                future.set_result(None)

        try:
            hand = self._idle.pop()
        except IndexError:
            hand = _Hand(self._base, self._idle)
        hand.work.put(work)
        return future

    def _run_sync(self, execution: _Execution, engine: SyncEngine) -> None:
        try:
            # From here to `over`, and nowhere else, it may be interrupted.
            with execution.lock:
                if engine.stop is not None:
                    return
                execution.thread = threading.current_thread()
            with engine.start():
                while engine.is_running():
                    with engine.run_context():
                        engine.call_flow_fn()
        except (Abort, Pause, Stopped):
            pass
        finally:
            with execution.lock:
                execution.over = True
                raise_in(threading.get_ident(), None)


class _Hand(threading.Thread):
    """A thread that runs one synchronous flow after the other, and keeps its connection to Prefect."""

    def __init__(self, base: contextvars.Context, idle: "list[_Hand]") -> None:
        super().__init__(name="flow run in thread", daemon=True)
        self.work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._base, self._idle = base.copy(), idle
        self.start()

    def run(self) -> None:
        self._base.run(self._work)

    def _work(self) -> None:
        with sync_client_context():
            while (work := self.work.get()) is not None:
                contextvars.copy_context().run(work)
                self._idle.append(self)


def _failure(exc: BaseException) -> Exception:
    """What a flow run ended with, as something that ends nothing else: a flow may call `sys.exit`."""
    return exc if isinstance(exc, Exception) else RuntimeError(f"The flow run ended with {type(exc).__name__}: {exc}")
