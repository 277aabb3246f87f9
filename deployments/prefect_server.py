"""`kycflow server`: Prefect's server.

On SQLite, Prefect begins most transactions as DEFERRED: they read first, and fail with "database is locked" when
another has written before they do, however long the time-out. Callers get 503 and back off; with 20 flow runs created
at once that took 18 to 89 s, and runs crashed. Begun as IMMEDIATE, they queue: 3 s, and no 503. PostgreSQL is not
affected.

The UI's form for a new work pool offers the worker types of Prefect's registry. Here it offers `resident`, too.

The list of runs on a deployment's page asks for Prefect's own state names unless somebody picks others of these (both
versions of the UI, 3.8.8). Here who asks for Completed, Paused or Crashed gets the states of these types that kycflow
has names for, too.

All three touch private parts of Prefect's server (read in 3.8.8 and 3.9.1), here only; tests fail when these change.

It answers only under names that are its own, and listens to other machines only behind a login (`prefect_access.py`).

On any database, Python's garbage collector goes through all that the server has loaded again and again. Here it leaves
that alone (`server_load.py`).
"""

import os
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from prefect.server.api import collections
from prefect.server.api.server import create_app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.schemas.filters import FlowRunFilterStateName
from prefect.settings import get_current_settings

from deployments.exposure import is_loopback
from deployments.listening import address, inherited, listen
from deployments.prefect_access import SERVER_SECRET, allowed_hosts
from deployments.server_load import leave_loaded_alone
from deployments.serving import run
from tasks.errors import ConfigurationError
from tasks.settings import Settings
from tasks.states import OF_PREFECTS_OWN

WORKER_TYPES = "aggregate-worker-metadata"
IN_MEMORY = "prefect.server.utilities.messaging.memory"
OPTIONS: dict[str, Any] = {"factory": True, "log_level": "warning", "timeout_graceful_shutdown": 3}
"""Of uvicorn."""

_begin_transaction = AioSqliteConfiguration.begin_transaction
_registered = collections.get_collection_view
_by_names = FlowRunFilterStateName._get_filter_list


def _begin_immediate(
    self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    del with_for_update  # as if always asked for
    return _begin_transaction(self, session, with_for_update=True)


def _by_names_and_ours(self: FlowRunFilterStateName, db: Any) -> Iterable[Any]:
    ours = {name for asked in self.any_ or () for name in OF_PREFECTS_OWN.get(asked, ())}
    both = self.model_copy(update={"any_": [*self.any_, *sorted(ours)]}) if self.any_ and ours else self
    return _by_names(both, db)


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


def everything() -> TrustedHostMiddleware:
    """API, UI and background services, for the one process that has them all."""
    AioSqliteConfiguration.begin_transaction = _begin_immediate  # type: ignore[method-assign,assignment]
    return _ready(create_app())


def api_only() -> TrustedHostMiddleware:
    """API and UI, for one of several processes."""
    return _ready(create_app(webserver_only=True))


def _ready(app: FastAPI) -> TrustedHostMiddleware:
    collections.get_collection_view = _collection_view
    FlowRunFilterStateName._get_filter_list = _by_names_and_ours  # type: ignore[method-assign]
    leave_loaded_alone()
    # Around it, not in it: Prefect's services call the application itself, under a name of their own.
    return TrustedHostMiddleware(app, allowed_hosts=allowed_hosts(Settings()), www_redirect=False)


def serve(
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int | None, typer.Option()] = None,
    processes: Annotated[int, typer.Option(min=1)] = 1,
    no_services: Annotated[bool, typer.Option("--no-services")] = False,
    fd: Annotated[int | None, typer.Option(help="A socket that listens already.")] = None,
    stack: Annotated[str | None, typer.Option(help="Id of the `kycflow up` that it is part of.")] = None,
) -> None:
    """Run Prefect's API, UI and background services until a signal comes.

    Several processes need PostgreSQL, Redis, and `prefect server services start` beside them (docs/workers.md).

    Raises:
        ConfigurationError: the port is taken, or several processes would share nothing.
    """
    if not is_loopback(host) and not os.environ.get(SERVER_SECRET):
        raise ConfigurationError(
            f"Prefect's API runs commands for whoever reaches it, and {host} is reached from other machines: set "
            f"{SERVER_SECRET}=user:password here and PREFECT_API_AUTH_STRING for its clients, or listen on 127.0.0.1."
        )
    port = port or Settings().prefect_port
    if no_services or processes > 1:
        _refuse_what_is_not_shared()
    if processes > 1:
        print(f"Prefect's server starts at http://{host}:{port} in {processes} processes.", flush=True)  # noqa: T201
        app = f"deployments.prefect_server:{api_only.__name__}"
        uvicorn.run(app, host=host, port=port, workers=processes, **OPTIONS)
        return
    listening = inherited(fd) if fd is not None else listen(host, port)
    where = address(listening)
    run(
        uvicorn.Config(api_only if no_services else everything, **OPTIONS),
        listening,
        stack,
        ready=lambda: print(f"Prefect's server listens at {where}, its API at {where}/api", flush=True),  # noqa: T201
    )


def _refuse_what_is_not_shared() -> None:
    """Raises ConfigurationError: what one process keeps in its memory, the others would not know."""
    server = get_current_settings().server
    url = server.database.connection_url
    if (
        url is None
        or not url.get_secret_value().startswith("postgresql")
        or server.events.messaging_broker == IN_MEMORY
    ):
        raise ConfigurationError(
            "Several processes of Prefect's server need PostgreSQL and Redis between them: set "
            "PREFECT_SERVER_DATABASE_CONNECTION_URL, and what docs/workers.md names under Scale."
        )


if __name__ == "__main__":
    typer.run(serve)
