"""`make bench-workers`: flow runs that do nothing, by a resident worker and by Prefect's process worker.

`--servers 2` gives Prefect's API two processes, with Redis between them (`make bench-scale` has the rest of that).
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import UUID

import psutil
import pytest
import typer
from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deployments.provision import PROCESS, RESIDENT, process_template
from deployments.stopping import stop_tree
from tasks.settings import Settings
from tests import resident_flows
from tests.benchmarks.servers import API, SERVICES, Servers, cpu, redis, servers_of
from tests.chaos.postgresql import postgresql, serve_everything

REPOSITORY = Path(__file__).parents[2]
AT_ONCE = 20
"""Flow runs created at the same time."""
LIMITS = {RESIDENT: 20, PROCESS: os.cpu_count() or 1}
"""How many flow runs a worker has at a time: a process each needs a core for seconds."""
MOST_SECONDS = 1800
COMPLETED = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])))


@dataclass(frozen=True)
class Measured:
    """One worker's way through a number of flow runs that were all due before it started."""

    runs: int
    runs_per_second: float
    """From the first run's begin to the last one's end."""
    worker_cpu_seconds: float
    """A run, of the worker and the processes that it starts."""
    server_cpu_seconds: float
    """A run, of Prefect's server with its background services; PostgreSQL and Redis not counted."""
    mib_early: float
    """The worker's resident memory after a tenth of the runs, MiB."""
    mib: float
    """At the end."""
    threads: int
    sockets: int


def main(
    resident_runs: Annotated[int, typer.Option(help="Flow runs of the resident worker.")] = 2000,
    process_runs: Annotated[int, typer.Option(help="Flow runs of the process worker.")] = 24,
    servers: Annotated[int, typer.Option(min=1, help="Processes of Prefect's API, for both.")] = 1,
) -> None:
    """Measure both types, one after the other, on a PostgreSQL of their own."""
    console = Console(highlight=False)
    own = Settings()
    found: dict[str, Measured] = {}
    with TemporaryDirectory(prefix="kycflow-") as name, ExitStack() as exits:
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KYCFLOW_STATE_DIR", name)
        database = exits.enter_context(postgresql())
        serve_everything(database, patch)
        between = exits.enter_context(redis(Path(name))) if servers > 1 else None
        serving = exits.enter_context(servers_of(Path(name) / "prefect", servers, database, between))
        exits.enter_context(temporary_settings({PREFECT_API_URL: serving.address}))
        for kind, runs in ((RESIDENT, resident_runs), (PROCESS, process_runs)):
            found[kind] = asyncio.run(_measure(kind, runs, serving, Path(name)))
    table = Table("", *found, box=None, pad_edge=False)
    for label, field, digits in (
        ("flow runs", "runs", 0),
        ("flow runs a second", "runs_per_second", 2),
        ("worker, CPU seconds a run", "worker_cpu_seconds", 3),
        ("Prefect's server, CPU seconds a run", "server_cpu_seconds", 3),
        ("worker's memory after a tenth, MiB", "mib_early", 0),
        ("worker's memory at the end, MiB", "mib", 0),
        ("its threads at the end", "threads", 0),
        ("its sockets at the end", "sockets", 0),
    ):
        table.add_row(label, *(f"{getattr(one, field):.{digits}f}" for one in found.values()))
    console.print(table)
    ratio = found[RESIDENT].runs_per_second / found[PROCESS].runs_per_second
    ours = f"PostgreSQL, {os.cpu_count()} cores, {servers} process{'es' if servers > 1 else ''} of Prefect's API"
    console.print(f"resident: {ratio:.1f} times as many a second; {ours}")
    folder = own.state_dir / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workers.json").write_text(json.dumps({kind: asdict(one) for kind, one in found.items()}, indent=2))


async def _measure(kind: str, count: int, servers: Servers, folder: Path) -> Measured:
    async with get_client() as client:
        deployment = await deployed(client, kind, kind)
        await create(client, deployment, count, kind)
        spent = servers.cpu()
        with worker_of(kind, kind, servers.address, folder / f"{kind}.log") as worker:
            early = 0.0

            def noted(ended: int) -> None:
                nonlocal early
                if not early and ended >= count // 10:
                    early = worker.memory_info().rss / 2**20

            await all_ended(client, deployment, count, noted)
            await asyncio.sleep(2)
            used = servers.cpu()
            measured = {
                "worker_cpu_seconds": cpu(worker) / count,
                "server_cpu_seconds": sum(used.get(part, 0) - spent.get(part, 0) for part in (API, SERVICES)) / count,
                "mib_early": early,
                "mib": worker.memory_info().rss / 2**20,
            }
            threads, sockets = worker.num_threads(), len(worker.net_connections())
        rate = count / await seconds_taken(client, deployment)
    return Measured(runs=count, runs_per_second=rate, threads=threads, sockets=sockets, **measured)


async def deployed(client: PrefectClient, pool: str, kind: str, flow: Flow[..., Any] = resident_flows.nothing) -> UUID:
    """A new pool of a type, with a deployment of one of the tests' flows."""
    template = {"base_job_template": process_template()} if kind == PROCESS else {}
    await client.create_work_pool(WorkPoolCreate(name=pool, type=kind, **template))
    flow_id = await client.create_flow(flow)
    entrypoint = f"tests.resident_flows.{flow.fn.__name__}"
    return await client.create_deployment(flow_id, name=pool, work_pool_name=pool, entrypoint=entrypoint)


async def all_ended(
    client: PrefectClient, deployment: UUID, count: int, noted: Callable[[int], None] = lambda _: None
) -> None:
    """Wait until so many flow runs of a deployment are completed; `noted` is told how many they are by now.

    Raises:
        RuntimeError: they are not after MOST_SECONDS.
    """
    end, ended = time.monotonic() + MOST_SECONDS, 0
    while ended < count:
        if time.monotonic() > end:
            raise RuntimeError(f"{count - ended} of {count} flow runs have not ended after {MOST_SECONDS} s.")
        await asyncio.sleep(0.5)
        ended = await client.count_flow_runs(deployment_filter=_of(deployment), flow_run_filter=COMPLETED)
        noted(ended)


async def seconds_taken(client: PrefectClient, deployment: UUID) -> float:
    """From the first begin to the last end of a deployment's flow runs."""
    (first,) = await client.read_flow_runs(deployment_filter=_of(deployment), sort=FlowRunSort.START_TIME_ASC, limit=1)
    (last,) = await client.read_flow_runs(deployment_filter=_of(deployment), sort=FlowRunSort.END_TIME_DESC, limit=1)
    if first.start_time is None or last.end_time is None:
        raise RuntimeError("Flow runs have ended without times.")
    taken: float = (last.end_time - first.start_time).total_seconds()  # untyped in Prefect 3.9
    return taken


def _of(deployment: UUID) -> DeploymentFilter:
    return DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))


async def create(client: PrefectClient, deployment: UUID, count: int, name: str) -> None:
    """Flow runs that are due at once."""
    for begin in track(range(0, count, AT_ONCE), description=f"{name}: creating"):
        some = range(begin, min(begin + AT_ONCE, count))
        await asyncio.gather(
            *(client.create_flow_run_from_deployment(deployment, parameters={"number": n}) for n in some)
        )


@contextmanager
def worker_of(pool: str, kind: str, address: str, log_file: Path, query_seconds: float = 1) -> Iterator[psutil.Process]:
    """A worker of a pool, as Prefect's own command starts it; stopped at the end."""
    command = [sys.executable, "-m", "tests.with_own_flows", "prefect", "worker", "start", "--pool", pool]
    command += ["--limit", str(LIMITS[kind])]
    variables = {
        "PREFECT_API_URL": address,
        "PREFECT_HOME": str(log_file.with_suffix("")),
        "PREFECT_WORKER_QUERY_SECONDS": str(query_seconds),
    }
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        stop_tree(process)


if __name__ == "__main__":
    typer.run(main)
