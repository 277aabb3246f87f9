"""On a schedule: find sessions and flow runs that should be at work and are not, and mend them."""

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from tasks.caching import WITHOUT_RESULT
from tasks.liveness import alive
from tasks.sweep import Sweep


@flow(name="sweep-sessions", flow_run_name="sweep", **WITHOUT_RESULT)
async def sweep_sessions(
    repeat_seconds: Annotated[float, Field(ge=0, le=86_400)] = 0, dry_run: bool = False
) -> State[Any]:
    """Start, wake or start again the flow runs of sessions and comparisons that were lost, and end what is over.

    Mends what a killed upload service, worker or server leaves behind. Safe to run at any time and twice at once: one
    that repeats itself ends when a newer one begins, or with its worker. Its state says how much it mended.

    Args:
        repeat_seconds: How long to go on looking, every few seconds. 0: look once.
        dry_run: Only say what would be done.
    """
    with alive():
        return await Sweep(repeat_seconds, dry_run=dry_run).run()
