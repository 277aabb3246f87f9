"""On a schedule: delete media, crops and scores past their age, and much later decisions and the audit trail."""

from prefect import flow

from tasks.caching import WITHOUT_RESULT
from tasks.liveness import alive
from tasks.purge import Purged, purge


@flow(name="purge-sessions", flow_run_name="purge", **WITHOUT_RESULT)
async def purge_sessions() -> Purged:
    """Delete what is kept longer than KYCFLOW_MEDIA_RETENTION_DAYS and KYCFLOW_DECISION_RETENTION_DAYS allow.

    Publishes what it removed, in numbers. Safe to run at any time and twice at once; interrupted, the next one goes on.
    """
    with alive():
        return await purge()
