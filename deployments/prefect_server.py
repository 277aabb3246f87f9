"""Prefect's server for the embedded default: `python -m deployments.prefect_server --host H --port P`.

On SQLite, Prefect 3.8 begins most transactions as DEFERRED: they read first, and fail with "database is locked" when
another has written before they do, however long the time-out. Callers get 503 and back off; with 20 flow runs created
at once that took 18 to 89 s, and runs crashed. Begun as IMMEDIATE, they queue: 3 s, and no 503. This is the one place
that touches a private part of Prefect (read in 3.8.8); a test fails when that part changes. PostgreSQL is not affected.
"""

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import typer
import uvicorn
from prefect.server.api.server import create_app
from prefect.server.database.configurations import AioSqliteConfiguration

_begin_transaction = AioSqliteConfiguration.begin_transaction


def _begin_immediate(
    self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    del with_for_update  # as if always asked for
    return _begin_transaction(self, session, with_for_update=True)


def serve(host: Annotated[str, typer.Option()], port: Annotated[int, typer.Option()]) -> None:
    """Run Prefect's API, UI and background services until a signal comes."""
    AioSqliteConfiguration.begin_transaction = _begin_immediate  # type: ignore[method-assign,assignment]
    uvicorn.run(create_app(), host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)


if __name__ == "__main__":
    typer.run(serve)
