"""On a schedule: start or wake the runs of sessions that nobody started or woke."""

from prefect import flow

from tasks.sweep import start_due_sessions


@flow(name="sweep-sessions", flow_run_name="sweep")
async def sweep_sessions() -> int:
    """Start or wake the flow run of every session whose files are both there, or whose deadline is over.

    Mends what is lost when the upload service dies between storing a file and telling Prefect. Safe to run at any
    time and twice at once. Returns how many sessions it started or woke.
    """
    return await start_due_sessions()
