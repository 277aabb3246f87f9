"""Prefect's side of a deployment: pools and queues, then everything in prefect.yaml. Safe to repeat.

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

UPKEEP, GPU = "upkeep", "gpu"
# Name, limits of its default queue, description. The limits stand at queues, not at the workers: a stock worker started
# with `--limit` ends with an error when a flow run is scheduled again while its last process is still ending (Prefect
# 3.8). Nor at the pools: lost runs hold their places until the sweep has mended them, which needs a place itself.
# A run is a process of its own in every type of pool but `resident`, where hundreds are side by side. There, workers
# have a limit each (`worker.py`), so that the first of several does not take all there is. The pool `upkeep` has none:
# the sweep must not wait for a place that lost runs hold.
POOLS: tuple[tuple[str, int | None, int | None, str], ...] = (
    (UPKEEP, None, None, "Sweeps and purges. Its workers need no face engine."),
    (GPU, 2, 200, "Sessions. Its workers need the face engine."),
)
RESIDENT = "resident"
PROCESS = "process"
QUEUE = "default"


def other_type(pool: str, found: str, wanted: str) -> str:
    """What is wrong with a work pool of another type, and what to do about it.

    With most types Prefect's server says which command a worker runs, so a pool that has changed may be an attack.
    """
    return (
        f"work pool {pool!r} is of type {found!r}, and KYCFLOW_WORKER_TYPE says {wanted!r}. If that is your change, "
        f"set KYCFLOW_WORKER_TYPE={found}. If it is nobody's, somebody else can write to your Prefect server: see who, "
        f"then delete the pool (prefect work-pool delete {pool}) and run `kycflow deploy`."
    )


async def create_pools(pool_type: str) -> None:
    """Create the work pools and queues that are not there yet. They stay as they are found.

    Args:
        pool_type: Prefect's name of the type of worker that a new pool is for.

    Raises:
        ConfigurationError: a pool is there, and of another type.
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    from tasks.dispatch import prefect_api

    async with prefect_api() as client:
        for name, limit, resident_limit, description in POOLS:
            # Another `kycflow deploy` may be faster.
            with suppress(ObjectAlreadyExists):
                try:
                    found = await client.read_work_pool(name)
                    if found.type != pool_type:
                        raise ConfigurationError(f"Refused: {other_type(name, found.type, pool_type)}")
                except ObjectNotFound:
                    template = {"base_job_template": process_template()} if pool_type == PROCESS else {}
                    pool = WorkPoolCreate(name=name, type=pool_type, description=description, **template)
                    await client.create_work_pool(pool)
                    if (places := resident_limit if pool_type == RESIDENT else limit) is not None:
                        queue = await client.read_work_queue_by_name(QUEUE, work_pool_name=name)
                        await client.update_work_queue(queue.id, concurrency_limit=places)


def process_template() -> dict[str, Any]:
    """Prefect's job template of process pools, with other defaults."""
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    # Without a command, Prefect starts a process that looks for the code's folder, and then this one.
    properties["command"]["default"] = "python -m prefect.engine"
    return template


async def drop_missed_sweeps() -> None:
    """Delete the sweeps that were planned while nothing ran, one an hour: workers would take them all up at once.

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


async def _server_there(seconds: float, stack: str) -> None:
    """Wait for the Prefect server of a `kycflow up`, by its id.

    Raises:
        OrchestratorUnavailable: it does not answer within so many seconds.
        ConfigurationError: something else answers at its address.
    """
    from deployments.listening import STACK_HEADER
    from tasks.dispatch import prefect_api

    deadline = time.monotonic() + seconds
    while True:
        try:
            async with prefect_api() as client:
                answer = await client.hello()
            if answer.headers.get(STACK_HEADER) != stack:
                raise ConfigurationError(f"Another server than this system's own answers at {answer.url}: stop it.")
            return
        except OrchestratorUnavailable:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


def prefect_yaml() -> Path:
    """prefect.yaml: inside the package where a wheel was installed, at the root of a checkout."""
    installed = Path(__file__).with_name("prefect.yaml")
    return installed if installed.exists() else installed.parent.parent / installed.name


def flow_modules(pool: str | None = None) -> list[str]:
    """Names of the modules that hold the flows in prefect.yaml: those of a work pool, or all."""
    found = yaml.safe_load(prefect_yaml().read_text())["deployments"]
    return [one["entrypoint"].rpartition(".")[0] for one in found if pool in (None, one["work_pool"]["name"])]


def deploy() -> None:
    """Apply prefect.yaml at the server in PREFECT_API_URL, with Prefect's own command `prefect deploy --all`.

    It runs in this process, in which it leaves connections open.

    Raises:
        ConfigurationError: the command failed; the message holds what it said.
    """
    from prefect.cli import app

    said = io.StringIO()
    arguments = sys.argv
    try:
        # In an empty folder: Prefect imports flows with the current folder first.
        with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(said):
            sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_yaml())]
            app()
    except SystemExit as exc:
        if exc.code:
            raise ConfigurationError(f"`prefect deploy --all` failed:\n{said.getvalue()[-2000:]}") from exc
    finally:
        sys.argv = arguments


def provision(
    patience: Annotated[float, typer.Option(help="How long to wait for Prefect's server, in seconds.")],
    stack: Annotated[str, typer.Option(help="Id of the `kycflow up` that it is part of.")],
) -> None:
    """Set up the server of `kycflow up`. Started together with it, this has imported all when the server answers."""
    try:
        settings = Settings()
        from deployments.bring_over import bring_over

        for module in ("prefect.cli.deploy", *flow_modules()):
            importlib.import_module(module)
        asyncio.run(_server_there(patience, stack))
        asyncio.run(create_pools(settings.worker_type))
        deploy()
        for line in asyncio.run(bring_over()):
            print(line)  # noqa: T201  # into its log
        asyncio.run(drop_missed_sweeps())
    except KycflowError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    typer.run(provision)
