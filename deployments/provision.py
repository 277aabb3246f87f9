"""Prefect's side of a deployment: pools, queues and the automation, then everything in prefect.yaml. Safe to repeat."""

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.server_configuration import HEARTBEAT_SECONDS, configure_server
from tasks.dispatch import prefect_api
from tasks.errors import ConfigurationError

PREFECT_YAML = Path(__file__).parent.parent / "prefect.yaml"

SESSIONS = "sessions"
# Name, limits of its default queue, description. The limits stand at queues, not at the workers: a stock worker started
# with `--limit` ends with an error when a flow run is scheduled again while its last process is still ending (Prefect
# 3.8). Nor at the pools: lost runs hold their places until the sweep has mended them, which needs a place itself.
# A session's run is a process of its own in every type of pool but `resident`, where hundreds wait side by side.
POOLS = (
    (SESSIONS, 4, 200, "Session workers: follow each session from its files to its decision. No GPU."),
    ("gpu", 1, 1, "Workers that compare faces. The limit of the queue is the number of comparisons at a time."),
)
RESIDENT = "resident"
PROCESS = "process"
QUEUE = "default"
UPKEEP_QUEUE = "upkeep"


async def create_pools(pool_type: str) -> None:
    """Create the work pools, queues and automation that are not there yet. Pools and queues stay as they are found.

    Args:
        pool_type: Prefect's name of the type of worker that a new pool is for.

    Raises:
        OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
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
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    # Without a command, Prefect starts a process that looks for the code's folder, and then this one.
    properties["command"]["default"] = "python -m prefect.engine"
    properties["env"]["default"] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    return template


def deploy(environment: Mapping[str, str] | None = None) -> None:
    """Apply prefect.yaml with Prefect's own command, in this process' environment unless another is given.

    Raises:
        ConfigurationError: the command failed; the message holds what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_YAML)],
        cwd=PREFECT_YAML.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ConfigurationError(f"`prefect deploy --all` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
