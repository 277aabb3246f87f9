"""On a schedule: find sessions and flow runs that should be at work and are not, and mend them."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.liveness import alive
from tasks.sweep import sweep


@flow(name="sweep-sessions", flow_run_name="sweep")
async def sweep_sessions(repeat_seconds: Annotated[float, Field(ge=0, le=3600)] = 0, dry_run: bool = False) -> int:
    """Start, wake or start again the flow runs of sessions and comparisons that were lost, and end what is over.

    Mends what a killed upload service, worker or server leaves behind. Safe to run at any time and twice at once.
    Returns how many it mended.

    Args:
        repeat_seconds: How long to go on looking, every few seconds. 0: look once.
        dry_run: Only say what would be done.
    """
    with alive():
        return await sweep(repeat_seconds, dry_run)
