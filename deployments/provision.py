"""Prefect's side of a deployment: work pools, then everything in prefect.yaml. Safe to repeat."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from tasks.dispatch import prefect_api
from tasks.errors import ConfigurationError

PREFECT_YAML = Path(__file__).parent.parent / "prefect.yaml"

# Name, concurrency limit, description. The limits stand at the pools, not at the workers: a stock worker started with
# `--limit` ends with an error when a flow run is scheduled again while its last process is still ending (Prefect 3.8).
POOLS = (
    ("sessions", 4, "Session workers: follow each session from its files to its decision. No GPU."),
    ("gpu", 1, "Workers that compare faces. The limit is the number of comparisons at a time; one per GPU."),
)


async def create_pools(pool_type: str = "process") -> None:
    """Create the work pools that are not there yet; existing ones keep their type and limit.

    Raises:
        OrchestratorUnavailable: Prefect's API does not answer.
    """
    async with prefect_api() as client:
        for name, limit, description in POOLS:
            try:
                await client.read_work_pool(name)
            except ObjectNotFound:
                try:
                    await client.create_work_pool(
                        WorkPoolCreate(name=name, type=pool_type, concurrency_limit=limit, description=description)
                    )
                except ObjectAlreadyExists:
                    continue  # another `kycflow deploy` was faster


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
