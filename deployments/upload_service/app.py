"""The upload service's application. `kycflow serve` runs it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.metadata import version

from fastapi import FastAPI

from deployments.upload_service import problems
from deployments.upload_service.draining import Draining
from deployments.upload_service.guard import Guard
from deployments.upload_service.routes import router
from deployments.upload_service.uploads import Trigger, Uploads
from tasks.database import database_for
from tasks.settings import Settings
from tasks.storage import open_storage

DESCRIPTION = """
Upload an ID card's image and a selfie video, in any order; read the decision.

1. `POST /sessions` with a `session_id` of your own.
2. `PUT` both files as raw bodies. A file may be replaced until there is a decision.
3. `GET /sessions/{session_id}` until `status` is `decided`.

`cancelled` and `error` stay until somebody goes on with the session: `POST /sessions/{session_id}/resume`.
`DELETE /sessions/{session_id}` removes its media and results; `GET /sessions/{session_id}/audit` tells what happened to
it, then too.

Every request may be repeated: the same request again has the same effect. Errors are
`application/problem+json` with a stable `code`.
"""


def create_app(settings: Settings | None = None, trigger: Trigger | None = None) -> FastAPI:
    """Build the application. It connects when it starts to serve.

    Args:
        settings: those of the environment when left out.
        trigger: told of each attempt that got a file; Prefect's API when left out.
    """
    in_use = settings or Settings()

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        # What is imported on first use takes seconds, and must not stop the event loop, now or at the first upload.
        uploads = await asyncio.to_thread(_prepared, in_use, trigger)
        app.state.uploads = uploads
        yield
        uploads.engine.dispose()

    app = FastAPI(title="kycflow", description=DESCRIPTION, version=version("kycflow"), lifespan=connected)
    problems.install(app)
    app.include_router(router)
    app.add_middleware(Guard, token=in_use.api_token)
    app.add_middleware(Draining)
    return app


def _prepared(settings: Settings, trigger: Trigger | None) -> Uploads:
    for used_by_endpoints in ("tasks.deletion", "tasks.trigger"):
        import_module(used_by_endpoints)
    if trigger is None:
        from tasks.trigger import trigger as tell_prefect

        trigger = tell_prefect
    uploads = Uploads(settings, database_for(settings), open_storage(settings), trigger)
    uploads.prepare()
    return uploads
