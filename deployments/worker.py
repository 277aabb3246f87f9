"""A Prefect worker that gives a sign of life in SQL: what it has when it is lost is known to be lost.

It is Prefect's own command, `prefect worker start`, in this very process, with a thread beside it. Its type is that of
the settings: Prefect's server does not say what runs here. The name is new at each start, as Prefect notes with a flow
run only the name of the worker that took it.

It may be started before Prefect's server and its pool: it waits for them, while Prefect's command would end, or create
a pool of the type `process`.
"""

import asyncio
import ctypes
import importlib
import logging
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from uuid import UUID

import typer
from prefect.exceptions import ObjectNotFound
from prefect.plugins import load_prefect_collections

from deployments.provision import PROCESS, RESIDENT, UPKEEP, flow_modules, other_type
from deployments.sweeping import end_sweeps, keep_sweeping
from tasks.database import database_for
from tasks.dispatch import prefect_api
from tasks.errors import KycflowError, OrchestratorUnavailable
from tasks.leasing import worker_name
from tasks.liveness import worker_alive
from tasks.settings import Settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.base import BaseWorker

    Worker: TypeAlias = BaseWorker[Any, Any, Any]

AT_HAND = 10
"""Most sessions that a resident worker with the engine has at a time. It compares for one, and talks to
Prefect's server, storage and SQL for the others meanwhile."""
M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
MEMORY_POOLS = 2
STAYING = {RESIDENT, PROCESS, "docker"}
"""Types whose worker has a run to its end. Those of Kubernetes and ECS create its container, and go."""
LOOK_SECONDS = 0.1
AWAY_SECONDS = 2

log = logging.getLogger(__name__)


def work(
    pool: Annotated[str, typer.Option(help="Work pool: gpu or upkeep.")],
    after: Annotated[Path | None, typer.Option(help="Begin when this file is there.")] = None,
    parent: Annotated[int | None, typer.Option(help="Wait for it only as long as this process is the parent.")] = None,
    with_healthcheck: Annotated[
        bool, typer.Option("--with-healthcheck", help="Answer GET /health at PREFECT_WORKER_WEBSERVER_PORT.")
    ] = False,
) -> None:
    """Run Prefect's worker for a pool until a signal ends it, with a sign of life that the sweep reads."""
    # Prefect's command ends at SIGINT as Python does; who was started in the background by a shell ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _share_memory_pools()
    name = worker_name(pool)
    # Flow runs that are processes begin in folders of their own, and take no module from there.
    os.environ["KYCFLOW_STATE_DIR"] = str(Settings().state_dir.absolute())
    os.environ["PYTHONSAFEPATH"] = "1"
    # Their `python` is this one.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if after is not None:
        _load(pool)
        while not after.exists():
            if parent is not None and os.getppid() != parent:
                sys.exit("Who started this worker is gone.")
            time.sleep(LOOK_SECONDS)
    worker_type = Settings().worker_type
    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--name", name, "--type", worker_type]
    asyncio.run(_until_there(pool, worker_type))
    if worker_type == RESIDENT:
        from deployments.resident.worker import ResidentWorker

        ResidentWorker.owns_process = True
        if pool != UPKEEP:
            # Else the first of several workers would take all that the queue allows.
            sys.argv += ["--limit", str(AT_HAND)]
    if with_healthcheck:
        sys.argv += ["--with-healthcheck"]
        _unhealthy_without_a_worker()
    if pool == UPKEEP:
        threading.Thread(target=keep_sweeping, args=(name,), name="keeps sweeping", daemon=True).start()
    try:
        with worker_alive(name, _runs_at_work() if worker_type in STAYING else None):
            runpy.run_module("prefect", run_name="__main__", alter_sys=True)
    finally:
        if pool == UPKEEP and worker_type != RESIDENT:  # which ends its sweep by itself, in time
            end_sweeps(name)


def _share_memory_pools() -> None:
    """Have threads share glibc's memory pools, where there is glibc: each would keep what a comparison has freed.

    Measured over 300 comparisons: 520 MiB, which stay, in place of 1,100, which grow.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, MEMORY_POOLS)


def _load(pool: str) -> None:
    """Do what a worker does before it takes runs, as far as that needs no server: meanwhile Prefect's own starts.

    What fails here fails there again, and is told there.
    """
    modules, settings = ["prefect.cli.worker"], Settings()
    if settings.worker_type == RESIDENT:
        modules += ["deployments.resident.worker", *flow_modules(pool)]
    for module in modules:
        with suppress(Exception):
            getattr(importlib.import_module(module), "warm_up", lambda: None)()
    load_prefect_collections()
    with suppress(KycflowError):
        database_for(settings)


def _runs_at_work() -> Callable[[], list[UUID]]:
    """What tells the flow runs that this process's worker has. Prefect's own workers forget a run that has begun."""
    from prefect.workers.base import BaseWorker

    begun: set[UUID] = set()
    workers: list[Worker] = []
    init, execute = BaseWorker.__init__, BaseWorker._submit_run_and_capture_errors

    def remembered(self: "Worker", *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        workers.append(self)

    async def noted(self: "Worker", flow_run: "FlowRun", *args: Any, **kwargs: Any) -> Any:
        begun.add(flow_run.id)
        try:
            return await execute(self, flow_run, *args, **kwargs)
        finally:
            begun.discard(flow_run.id)

    BaseWorker.__init__ = remembered  # type: ignore[method-assign]
    BaseWorker._submit_run_and_capture_errors = noted  # type: ignore[method-assign]
    return lambda: [*begun, *(one for worker in workers for one in list(worker._submitting_flow_run_ids))]


def _unhealthy_without_a_worker() -> None:
    """Prefect's endpoint is well as soon as the command begins, which is seconds before there is a worker (3.8.8)."""
    from prefect.workers.server import _WorkerStartupHealthcheck as Startup

    of_worker = Startup.__call__
    Startup.__call__ = lambda self: self.worker is not None and of_worker(self)  # type: ignore[method-assign]


async def _until_there(pool: str, worker_type: str) -> None:
    """Wait for Prefect's server, and for the pool to be there and of this type, quietly but for the first time."""
    told = ""
    while True:
        try:
            async with prefect_api() as client:
                try:
                    found = (await client.read_work_pool(pool)).type
                    if found == worker_type:
                        return
                    missing = f"Refused: {other_type(pool, found, worker_type)}"
                except ObjectNotFound:
                    missing = f"Prefect's server has no work pool {pool!r}: `kycflow deploy` creates it."
        except OrchestratorUnavailable as exc:
            missing = str(exc)
        if missing != told:
            log.warning("%s The worker waits for it.", missing)
            told = missing
        await asyncio.sleep(AWAY_SECONDS)


if __name__ == "__main__":
    typer.run(work)
