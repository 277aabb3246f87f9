"""Prefect's server: `python -m deployments.prefect_server --host H --port P`.

On SQLite, Prefect 3.8 begins most transactions as DEFERRED: they read first, and fail with "database is locked" when
another has written before they do, however long the time-out. Callers get 503 and back off; with 20 flow runs created
at once that took 18 to 89 s, and runs crashed. Begun as IMMEDIATE, they queue: 3 s, and no 503. PostgreSQL is not
affected.

The UI's form for a new work pool offers the worker types of Prefect's registry. Here it offers `resident`, too.

Both touch private parts of Prefect's server (read in 3.8.8), here only; tests fail when these change.

On any database, Python's garbage collector goes through all that the server has loaded again and again. Here it leaves
that alone (`server_load.py`).
"""

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI
from prefect.server.api import collections
from prefect.server.api.server import create_app
from prefect.server.database.configurations import AioSqliteConfiguration

from deployments.server_load import leave_loaded_alone

WORKER_TYPES = "aggregate-worker-metadata"

_begin_transaction = AioSqliteConfiguration.begin_transaction
_registered = collections.get_collection_view


def _begin_immediate(
    self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    del with_for_update  # as if always asked for
    return _begin_transaction(self, session, with_for_update=True)


async def _collection_view(view: str) -> dict[str, Any]:
    found = await _registered(view)
    if view != WORKER_TYPES:
        return found
    from deployments.resident.worker import ResidentWorker

    resident = {
        "type": ResidentWorker.type,
        "display_name": ResidentWorker._display_name,
        "description": ResidentWorker.get_description(),
        "logo_url": ResidentWorker.get_logo_url(),
        "documentation_url": ResidentWorker.get_documentation_url(),
        "install_command": "",
        "is_beta": False,
        "default_base_job_configuration": ResidentWorker.get_default_base_job_template(),
    }
    return {**found, "kycflow": {ResidentWorker.type: resident}}


def everything() -> FastAPI:
    """API, UI and background services, for the one process that has them all."""
    AioSqliteConfiguration.begin_transaction = _begin_immediate  # type: ignore[method-assign,assignment]
    return _ready(create_app())


def api_only() -> FastAPI:
    """API and UI, for one of several processes."""
    return _ready(create_app(webserver_only=True))


def _ready(app: FastAPI) -> FastAPI:
    collections.get_collection_view = _collection_view
    leave_loaded_alone()
    return app


def serve(
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    processes: Annotated[int, typer.Option(min=1, help="More than one: without services.")] = 1,
    no_services: Annotated[
        bool, typer.Option("--no-services", help="`prefect server services start` has them.")
    ] = False,
) -> None:
    """Run Prefect's API, UI and background services until a signal comes.

    Several processes need PostgreSQL, Redis, and `prefect server services start` beside them (docs/workers.md).
    """
    factory = api_only if no_services or processes > 1 else everything
    uvicorn.run(
        f"deployments.prefect_server:{factory.__name__}",
        factory=True,
        host=host,
        port=port,
        workers=processes,
        log_level="warning",
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    typer.run(serve)
