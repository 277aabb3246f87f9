"""A Prefect worker that gives a sign of life in SQL: what it has when it is lost is known to be lost.

It is Prefect's own command, `prefect worker start`, of whatever type its pool has, in this very process, with a thread
beside it. The name is new at each start, as Prefect notes with a flow run only the name of the worker that took it.

It may be started before Prefect's server and its pool: it waits for them, while Prefect's command would end, or create
a pool of the type `process`.
"""

import asyncio
import ctypes
import importlib
import logging
import os
import runpy
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from prefect.exceptions import ObjectNotFound
from prefect.plugins import load_prefect_collections

from deployments.provision import RESIDENT, SESSIONS, flow_modules
from tasks.database import database_for
from tasks.dispatch import prefect_api, start_sweep
from tasks.errors import KycflowError, OrchestratorUnavailable
from tasks.leasing import worker_name
from tasks.liveness import worker_alive
from tasks.settings import Settings

SWEEP_SECONDS = 60
"""As in prefect.yaml: until the schedule's next sweep takes over."""
AT_HAND = 10
"""Most sessions or comparisons that a resident worker with the engine has at a time. It computes one, and talks to
Prefect's server, storage and SQL for the others meanwhile."""
M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
MEMORY_POOLS = 2
LOOK_SECONDS = 0.1
AWAY_SECONDS = 2

log = logging.getLogger(__name__)


def work(
    pool: Annotated[str, typer.Option(help="Work pool: sessions or gpu.")],
    after: Annotated[Path | None, typer.Option(help="Begin when this file is there.")] = None,
    parent: Annotated[int | None, typer.Option(help="Wait for it only as long as this process is the parent.")] = None,
    with_healthcheck: Annotated[
        bool, typer.Option("--with-healthcheck", help="Answer GET /health at PREFECT_WORKER_WEBSERVER_PORT.")
    ] = False,
) -> None:
    """Run Prefect's worker for a pool until a signal ends it, with a sign of life that the sweep reads."""
    _share_memory_pools()
    name = worker_name(pool)
    # Its flow runs' `python` is this one.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if after is not None:
        _load(pool)
        while not after.exists():
            if parent is not None and os.getppid() != parent:
                sys.exit("Who started this worker is gone.")
            time.sleep(LOOK_SECONDS)
    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--name", name]
    if asyncio.run(_until_there(pool)) == RESIDENT and pool != SESSIONS:
        # Else the first of several workers would take all that the queue allows.
        sys.argv += ["--limit", str(AT_HAND)]
    if with_healthcheck:
        sys.argv += ["--with-healthcheck"]
        _unhealthy_without_a_worker()
    if pool == SESSIONS:
        threading.Thread(target=_sweep, name="first sweep", daemon=True).start()
    with worker_alive(name):
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)


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
    modules = ["prefect.cli.worker"]
    settings = Settings()
    if settings.worker_type == RESIDENT:
        modules += ["deployments.resident.worker", *flow_modules(settings, pool)]
    for module in modules:
        with suppress(Exception):
            getattr(importlib.import_module(module), "warm_up", lambda: None)()
    load_prefect_collections()
    with suppress(KycflowError):
        database_for(settings)


def _unhealthy_without_a_worker() -> None:
    """Prefect's endpoint is well as soon as the command begins, which is seconds before there is a worker (3.8.8)."""
    from prefect.workers.server import _WorkerStartupHealthcheck as Startup

    of_worker = Startup.__call__
    Startup.__call__ = lambda self: self.worker is not None and of_worker(self)  # type: ignore[method-assign]


async def _until_there(pool: str) -> str:
    """Wait for Prefect's server and for the pool, quietly but for the first time; the pool's type."""
    told = ""
    while True:
        try:
            async with prefect_api() as client:
                try:
                    return (await client.read_work_pool(pool)).type
                except ObjectNotFound:
                    missing = f"Prefect's server has no work pool {pool!r}: `kycflow deploy` creates it."
        except OrchestratorUnavailable as exc:
            missing = str(exc)
        if missing != told:
            log.warning("%s The worker waits for it.", missing)
            told = missing
        await asyncio.sleep(AWAY_SECONDS)


def _sweep() -> None:
    """The sweep of the last worker died with it, and the schedule's next one may be a minute away."""
    try:
        asyncio.run(start_sweep(SWEEP_SECONDS))
    except KycflowError as exc:
        log.warning("no sweep at the start, the schedule brings one: %s", exc)


if __name__ == "__main__":
    typer.run(work)
