"""`make bench-workers`: flow runs that do nothing, by a resident worker and by Prefect's process worker."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from uuid import UUID

import psutil
import pytest
import typer
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
from deployments.stack import stop_tree
from tasks.settings import Settings
from tests import resident_flows
from tests.chaos.postgresql import postgresql, serve_everything
from tests.prefect_server import prefect_server

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
    """A run, of Prefect's server; PostgreSQL not counted."""
    mib_early: float
    """The worker's resident memory after a tenth of the runs, MiB."""
    mib: float
    """At the end."""
    threads: int
    sockets: int


def main(
    resident_runs: Annotated[int, typer.Option(help="Flow runs of the resident worker.")] = 2000,
    process_runs: Annotated[int, typer.Option(help="Flow runs of the process worker.")] = 24,
) -> None:
    """Measure both types, one after the other, on a PostgreSQL of their own."""
    console = Console(highlight=False)
    own = Settings()
    found: dict[str, Measured] = {}
    with TemporaryDirectory(prefix="kycflow-") as name, ExitStack() as exits:
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KYCFLOW_STATE_DIR", name)
        serve_everything(exits.enter_context(postgresql()), patch)
        database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"]}
        address = exits.enter_context(prefect_server(Path(name) / "prefect", **database))
        exits.enter_context(temporary_settings({PREFECT_API_URL: address}))
        for kind, runs in ((RESIDENT, resident_runs), (PROCESS, process_runs)):
            found[kind] = asyncio.run(_measure(kind, runs, address, Path(name)))
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
    console.print(f"resident: {ratio:.1f} times as many a second; PostgreSQL, {os.cpu_count()} cores")
    folder = own.state_dir / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workers.json").write_text(json.dumps({kind: asdict(one) for kind, one in found.items()}, indent=2))


async def _measure(kind: str, count: int, address: str, folder: Path) -> Measured:
    async with get_client() as client:
        template = {"base_job_template": process_template()} if kind == PROCESS else {}
        await client.create_work_pool(WorkPoolCreate(name=kind, type=kind, **template))
        flow_id = await client.create_flow(resident_flows.nothing)
        entrypoint = "tests.resident_flows.nothing"
        deployment = await client.create_deployment(flow_id, name=kind, work_pool_name=kind, entrypoint=entrypoint)
        await _create(client, deployment, count, kind)
        of_kind = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        server = _server(address)
        spent = _cpu(server)
        with _worker(kind, address, folder) as worker:
            early, ended = 0.0, 0
            end = time.monotonic() + MOST_SECONDS
            while ended < count:
                if time.monotonic() > end:
                    raise RuntimeError(f"{count - ended} of {count} flow runs have not ended: see {folder}/{kind}.log")
                await asyncio.sleep(0.5)
                ended = await client.count_flow_runs(deployment_filter=of_kind, flow_run_filter=COMPLETED)
                if not early and ended >= count // 10:
                    early = worker.memory_info().rss / 2**20
            await asyncio.sleep(2)
            measured = {
                "worker_cpu_seconds": _cpu(worker) / count,
                "server_cpu_seconds": (_cpu(server) - spent) / count,
                "mib_early": early,
                "mib": worker.memory_info().rss / 2**20,
            }
            threads, sockets = worker.num_threads(), len(worker.net_connections())
        (first,) = await client.read_flow_runs(deployment_filter=of_kind, sort=FlowRunSort.START_TIME_ASC, limit=1)
        (last,) = await client.read_flow_runs(deployment_filter=of_kind, sort=FlowRunSort.END_TIME_DESC, limit=1)
    if first.start_time is None or last.end_time is None:
        raise RuntimeError("Flow runs have ended without times.")
    rate = count / (last.end_time - first.start_time).total_seconds()
    return Measured(runs=count, runs_per_second=rate, threads=threads, sockets=sockets, **measured)


async def _create(client: PrefectClient, deployment: UUID, count: int, kind: str) -> None:
    for begin in track(range(0, count, AT_ONCE), description=f"{kind}: creating"):
        some = range(begin, min(begin + AT_ONCE, count))
        await asyncio.gather(
            *(client.create_flow_run_from_deployment(deployment, parameters={"number": n}) for n in some)
        )


@contextmanager
def _worker(kind: str, address: str, folder: Path) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", kind, "--limit", str(LIMITS[kind])]
    variables = {"PREFECT_API_URL": address, "PREFECT_HOME": str(folder / kind), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        stop_tree(process)


def _server(address: str) -> psutil.Process:
    port = int(address.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    for child in psutil.Process().children(recursive=True):
        if any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in child.net_connections()):
            return child
    raise RuntimeError(f"Nobody listens at {address}.")


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


if __name__ == "__main__":
    typer.run(main)
