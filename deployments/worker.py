"""A Prefect worker that gives a sign of life in SQL: what it has when it is lost is known to be lost.

It is Prefect's own command, `prefect worker start`, of whatever type its pool has, in this very process, with a thread
beside it. The name is new at each start, as Prefect notes with a flow run only the name of the worker that took it.
"""

import asyncio
import logging
import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from deployments.provision import SESSIONS
from tasks.dispatch import start_sweep
from tasks.errors import KycflowError
from tasks.leasing import worker_name
from tasks.liveness import worker_alive

SWEEP_SECONDS = 60
"""As in prefect.yaml: until the schedule's next sweep takes over."""

log = logging.getLogger(__name__)


def work(pool: Annotated[str, typer.Option(help="Work pool: sessions or gpu.")]) -> None:
    """Run Prefect's worker for a pool until a signal ends it, with a sign of life that the sweep reads."""
    name = worker_name(pool)
    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--name", name]
    # Its flow runs' `python` is this one.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if pool == SESSIONS:
        threading.Thread(target=_sweep, name="first sweep", daemon=True).start()
    with worker_alive(name):
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def _sweep() -> None:
    """The sweep of the last worker died with it, and the schedule's next one may be a minute away."""
    try:
        asyncio.run(start_sweep(SWEEP_SECONDS))
    except KycflowError as exc:
        log.warning("no sweep at the start, the schedule brings one: %s", exc)


if __name__ == "__main__":
    typer.run(work)
