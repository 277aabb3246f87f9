"""Keeps one sweep at work, from beside a worker of the pool `upkeep`: the schedule alone would bring one each hour."""

import asyncio
import logging
import time
from typing import NoReturn

from tasks.database import database_for
from tasks.database.leases import Held
from tasks.dispatch import SWEEP, busy_runs, prefect_api, start_sweep, worker_of
from tasks.errors import KycflowError
from tasks.settings import Settings
from tasks.states import replaced
from tasks.sweep.place import at_work

LOOK_SECONDS = 3
AGAIN_SECONDS = 60
"""Between two sweeps that this worker starts: one that fails at once would fail without end."""
END_SECONDS = 3

log = logging.getLogger(__name__)


def keep_sweeping(worker: str) -> NoReturn:
    """Start a sweep now, as the last worker's died with it, and another whenever none is at work.

    Only two looks tell: after an outage of the database a lease is renewed within a few seconds, and a worker that is
    being ended has ended its sweep first.

    Args:
        worker: Name of the worker that this one runs beside, new at each start.
    """
    settings, key, start_from = Settings(), f"sweep:{worker}", 0.0
    held: Held | None = None
    while True:
        try:
            if key and time.monotonic() >= start_from:
                start_from = time.monotonic() + AGAIN_SECONDS
                asyncio.run(start_sweep(key))
            before, held = held, at_work(database_for(settings))
            gone = held == before and (held is None or held.expired)
            # Several workers see it at once, and one sweep is enough. A token changes with each sweep that begins.
            key = f"sweep:{held and held.token}:{time.time() // AGAIN_SECONDS:.0f}" if gone else ""
        except KycflowError as exc:
            log.warning("sweeps are not looked after: %s", exc, extra={"action": "sweep.unkept"})
        time.sleep(LOOK_SECONDS)


def end_sweeps(worker: str) -> None:
    """End, for Prefect, the sweeps that a worker has left: their processes end with it. Never raises."""
    try:
        asyncio.run(asyncio.wait_for(_end(worker), END_SECONDS))
    except (KycflowError, TimeoutError) as exc:
        log.warning("its sweep is not ended, the next one does it: %s", exc, extra={"action": "sweep.left"})


async def _end(worker: str) -> None:
    async with prefect_api() as client:
        for run in await busy_runs(client):
            if SWEEP in run.tags and worker_of(run) == worker:
                await client.set_flow_run_state(run.id, replaced("Its worker was stopped"), force=True)
