"""Prefect's side of a deployment: pools, queues and the automation, then everything in prefect.yaml. Safe to repeat.

Prefect is imported where it is used: that takes a second, and `kycflow up` starts its processes first.
"""

import asyncio
import importlib
import io
import sys
import time
from contextlib import chdir, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import yaml

from tasks.errors import ConfigurationError, KycflowError, OrchestratorUnavailable
from tasks.settings import Settings

PREFECT_YAML = Path(__file__).parent.parent / "prefect.yaml"

SESSIONS, GPU = "sessions", "gpu"
# Name, limits of its default queue, description. The limits stand at queues, not at the workers: a stock worker started
# with `--limit` ends with an error when a flow run is scheduled again while its last process is still ending (Prefect
# 3.8). Nor at the pools: lost runs hold their places until the sweep has mended them, which needs a place itself.
# A run is a process of its own in every type of pool but `resident`, where hundreds are side by side. There, workers
# have a limit each (`worker.py`), so that the first of several does not take all there is.
POOLS = (
    (SESSIONS, 4, 200, "Workers without the engine: sweeps and purges, and sessions that have others compare."),
    (GPU, 1, 200, "Workers with the engine: sessions and comparisons."),
)
RESIDENT = "resident"
PROCESS = "process"
QUEUE = "default"
UPKEEP_QUEUE = "upkeep"
SESSION_DEPLOYMENT = "verify-session"


async def create_pools(pool_type: str) -> None:
    """Create the work pools, queues and automation that are not there yet. Pools and queues stay as they are found.

    Args:
        pool_type: Prefect's name of the type of worker that a new pool is for.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    from deployments.server_configuration import configure_server
    from tasks.dispatch import prefect_api

    async with prefect_api() as client:
        for name, limit, resident_limit, description in POOLS:
            # Another `kycflow deploy` may be faster.
            with suppress(ObjectAlreadyExists):
                try:
                    await client.read_work_pool(name)
                except ObjectNotFound:
                    template = {"base_job_template": process_template()} if pool_type == PROCESS else {}
                    pool = WorkPoolCreate(name=name, type=pool_type, description=description, **template)
                    await client.create_work_pool(pool)
                    queue = await client.read_work_queue_by_name(QUEUE, work_pool_name=name)
                    places = resident_limit if pool_type == RESIDENT else limit
                    await client.update_work_queue(queue.id, concurrency_limit=places)
        try:
            await client.read_work_queue_by_name(UPKEEP_QUEUE, work_pool_name=SESSIONS)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):
                await client.create_work_queue(
                    UPKEEP_QUEUE, "Sweeps and purges: without a limit, so that they always run.", priority=1,
                    work_pool_name=SESSIONS,
                )  # fmt: skip
        await configure_server(client)


def process_template() -> dict[str, Any]:
    """Prefect's job template of process pools, with other defaults."""
    from prefect.workers.process import ProcessWorker

    from deployments.server_configuration import HEARTBEAT_SECONDS

    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    # Without a command, Prefect starts a process that looks for the code's folder, and then this one.
    properties["command"]["default"] = "python -m prefect.engine"
    properties["env"]["default"] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    return template


async def drop_missed_sweeps() -> None:
    """Delete the sweeps that were planned while nothing ran, one a minute: workers would take them all up at once.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import ObjectNotFound

    from tasks.dispatch import SWEEP_SESSIONS, prefect_api

    async with prefect_api() as client:
        sweeps = DeploymentFilterId(any_=[(await client.read_deployment_by_name(SWEEP_SESSIONS)).id])
        missed = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        )
        for run in await client.read_flow_runs(deployment_filter=DeploymentFilter(id=sweeps), flow_run_filter=missed):
            if run.run_count == 0:
                with suppress(ObjectNotFound):
                    await client.delete_flow_run(run.id)


async def _server_there(seconds: float) -> None:
    """Raises OrchestratorUnavailable: Prefect's server does not answer within so many seconds."""
    from tasks.dispatch import prefect_api

    deadline = time.monotonic() + seconds
    while True:
        try:
            async with prefect_api() as client:
                await client.hello()
                return
        except OrchestratorUnavailable:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


def sessions_pool(settings: Settings) -> str:
    """Name of the pool whose workers follow sessions: if it is not set, the one whose runs find the engine loaded."""
    return settings.sessions_pool or (GPU if settings.worker_type == RESIDENT else SESSIONS)


def _manifest(settings: Settings) -> dict[str, Any]:
    """What prefect.yaml holds, with the pool for sessions as it is set."""
    found: dict[str, Any] = yaml.safe_load(PREFECT_YAML.read_text())
    for one in found["deployments"]:
        if one["name"] == SESSION_DEPLOYMENT:
            one["work_pool"]["name"] = sessions_pool(settings)
    return found


def flow_modules(settings: Settings, pool: str | None = None) -> list[str]:
    """Names of the modules that hold the flows in prefect.yaml: those of a work pool, or all."""
    found = _manifest(settings)["deployments"]
    return [one["entrypoint"].rpartition(".")[0] for one in found if pool in (None, one["work_pool"]["name"])]


def deploy(settings: Settings) -> None:
    """Apply prefect.yaml at the server in PREFECT_API_URL, with Prefect's own command `prefect deploy --all`.

    It runs in this process, in which it leaves connections open.

    Raises:
        ConfigurationError: the command failed; the message holds what it said.
    """
    from prefect.cli import app

    said = io.StringIO()
    arguments = sys.argv
    try:
        with TemporaryDirectory() as folder, chdir(PREFECT_YAML.parent), redirect_stdout(said):
            file = Path(folder) / PREFECT_YAML.name
            file.write_text(yaml.safe_dump(_manifest(settings), sort_keys=False))
            sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
            app()
    except SystemExit as exc:
        if exc.code:
            raise ConfigurationError(f"`prefect deploy --all` failed:\n{said.getvalue()[-2000:]}") from exc
    finally:
        sys.argv = arguments


def provision(
    patience: Annotated[float, typer.Option(help="How long to wait for Prefect's server, in seconds.")],
) -> None:
    """Set up the server of `kycflow up`. Started together with it, this has imported all when the server answers."""
    try:
        settings = Settings()
        for module in ("prefect.cli.deploy", *flow_modules(settings)):
            importlib.import_module(module)
        asyncio.run(_server_there(patience))
        asyncio.run(create_pools(settings.worker_type))
        deploy(settings)
        asyncio.run(drop_missed_sweeps())
    except KycflowError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    typer.run(provision)
