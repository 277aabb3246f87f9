"""`kycflow serve`: the upload service under uvicorn, with a log of one JSON object a line."""

import logging
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from deployments.listening import address, inherited, listen
from deployments.serving import run
from deployments.upload_service.app import create_app
from tasks.database import database_for
from tasks.errors import ConfigurationError
from tasks.settings import Settings

LOG_CONFIG = Path(__file__).with_name("log_config.json")

log = logging.getLogger("deployments.upload_service.server")


def serve(
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
    fd: Annotated[int | None, typer.Option(help="A socket that listens already.")] = None,
    stack: Annotated[str | None, typer.Option(help="Id of the `kycflow up` that it is part of.")] = None,
) -> None:
    """Run the upload service until a signal comes.

    Raises:
        ConfigurationError: PREFECT_API_URL is not set, the port is taken, or the database has another schema.
        DatabaseUnavailable: it does not answer.
    """
    settings = Settings()
    # First, so that a port that is taken is told at once. What is asked meanwhile waits in the socket's queue.
    listening = inherited(fd) if fd is not None else listen(host or settings.host, port or settings.api_port)
    where = address(listening)
    # It sets up the log, too.
    config = uvicorn.Config(create_app(settings), access_log=False, log_config=str(LOG_CONFIG))
    log.info("upload service starts at %s", where, extra={"action": "service.starting", "url": where})
    _refuse_without_prefect()
    database_for(settings)
    told = {"action": "service.listening", "url": where}
    run(config, listening, stack, ready=lambda: log.info("upload service answers at %s", where, extra=told))


def _refuse_without_prefect() -> None:
    from prefect.settings import PREFECT_API_URL  # which takes a second

    if not PREFECT_API_URL.value():
        raise ConfigurationError(
            "PREFECT_API_URL is not set: set it to your Prefect server's address, ending in /api. `kycflow server` "
            "starts one, `kycflow up` starts everything."
        )


if __name__ == "__main__":
    typer.run(serve)
