"""`make bench-scale`: flow runs a second with several processes of Prefect's API and several resident workers.

On PostgreSQL, with Redis between the processes. From the processor time that a flow run costs each part it derives how
many cores a rate of sessions needs. The flow has the task runs and the artifact of a session, and does nothing: what
files, SQL and comparisons cost comes on top, as `make bench-orchestration` and `make bench-faces` measure it.
"""

import asyncio
import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import pytest
import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from rich.table import Table

from deployments.provision import RESIDENT
from tasks.settings import Settings
from tests import resident_flows
from tests.benchmarks.servers import API, POSTGRESQL, REDIS, SERVICES, Servers, cpu, redis, servers_of
from tests.benchmarks.workers import all_ended, create, deployed, seconds_taken, worker_of
from tests.chaos.postgresql import postgresql, serve_everything
from tests.system import START_SECONDS, eventually

NUMBERS = (1, 2, 4)
WORKERS = "workers"
PARTS = (API, SERVICES, WORKERS, POSTGRESQL, REDIS)
ONE_CORE = (API, SERVICES, WORKERS)
"""Python processes with one event loop: each of them uses a core at most."""
RATES = (10, 100, 1000)
"""Sessions a second."""
LOAD = 0.7
"""What part of a core is planned to be used: the rest is for peaks."""
QUERY_SECONDS = 0.5
"""How often a worker asks for flow runs, as with `kycflow up`."""
IDLE_SECONDS = 3.0
CALM_CORES = 0.4
"""Less is used when nothing starts any more."""
WARM_RUNS = 60
SETTLE_SECONDS = 2.0
"""After the last run's end, for the events that are still written."""


@dataclass(frozen=True)
class Point:
    """So many API processes and resident workers on their way through flow runs that are all due at once."""

    servers: int
    workers: int
    runs: int
    runs_per_second: float
    """From the first run's begin to the last one's end."""
    cpu: dict[str, float]
    """Seconds that a run costs each part, to be executed."""
    creating: dict[str, float]
    """Seconds that a run costs each part, to be created."""
    idle: dict[str, float]
    """Cores that each part uses while all workers ask for runs and there are none."""


@dataclass(frozen=True)
class Need:
    """Cores for a rate, and the least number of processes where a process uses one core at most."""

    sessions_per_second: float
    cores: dict[str, float]
    processes: dict[str, int]


def main(
    runs: Annotated[int, typer.Option(min=10, help="Flow runs of each combination.")] = 150,
    most: Annotated[int, typer.Option(help="The greatest number of servers, and of workers.")] = NUMBERS[-1],
) -> None:
    """Measure every combination of 1, 2 and 4 API processes and workers on this machine."""
    console = Console(highlight=False)
    folder = Settings().state_dir / "bench"
    points: list[Point] = []
    with TemporaryDirectory(prefix="kycflow-") as temporary, ExitStack() as exits:
        home = Path(temporary)
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KYCFLOW_STATE_DIR", temporary)
        between = exits.enter_context(redis(home))
        database = exits.enter_context(postgresql())
        serve_everything(database, patch)
        numbers = [number for number in NUMBERS if number <= most]
        for processes in numbers:
            with (
                servers_of(home / f"prefect-{processes}", processes, database, between) as servers,
                temporary_settings({PREFECT_API_URL: servers.address}),
            ):
                _started(servers)
                # Connections, and their prepared statements.
                asyncio.run(_measure(f"{processes}-warm", processes, 1, WARM_RUNS, servers, home))
                for workers in numbers:
                    name = f"{processes}-{workers}"
                    points.append(asyncio.run(_measure(name, processes, workers, runs, servers, home)))
                    console.print(f"  {points[-1].runs_per_second:.1f} flow runs a second")
    needs = [need(points, rate) for rate in RATES]
    console.print(_measured(points))
    console.print(f"{os.cpu_count()} cores for everything; {runs} flow runs each\n")
    console.print(_needed(needs))
    console.print(
        f"at {LOAD:.0%} load; a flow run for each session, a poll every {QUERY_SECONDS} s and worker; "
        "in brackets the least number of processes"
    )
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "cores": os.cpu_count(),
        "load": LOAD,
        "points": [asdict(point) for point in points],
        "needs": [asdict(one) for one in needs],
    }
    (folder / "scale.json").write_text(json.dumps(found, indent=2))


def need(points: Iterable[Point], rate: float) -> Need:
    """What a rate of sessions needs, by the median cost of a run and the cost of each worker's asking for runs.

    What a part uses while there are no runs is counted with the asking, and not with the runs.

    Proportional to the rate: that nothing else becomes a bottleneck first, such as PostgreSQL's disk, is not measured.
    """
    points = list(points)
    busy = {part: rate * _median(_of_a_run(point, part) for point in points) for part in PARTS}
    workers = max(1, math.ceil(busy[WORKERS] / LOAD))
    asking = {part: workers * _median(point.idle[part] / point.workers for point in points) for part in PARTS}
    cores = {part: (busy[part] + asking[part]) / LOAD for part in PARTS}
    return Need(rate, cores, {part: max(1, math.ceil(cores[part])) for part in ONE_CORE})


def _of_a_run(point: Point, part: str) -> float:
    seconds = 1 / point.runs_per_second + SETTLE_SECONDS / point.runs
    return point.creating[part] + max(0.0, point.cpu[part] - point.idle[part] * seconds)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _started(servers: Servers) -> None:
    """Wait until the last process has started, too: the first one that has answers for all."""

    def calm() -> bool | None:
        before = servers.cpu()
        time.sleep(1)
        return sum(servers.cpu().values()) - sum(before.values()) < CALM_CORES or None

    eventually(calm, START_SECONDS)


async def _measure(name: str, processes: int, workers: int, count: int, servers: Servers, folder: Path) -> Point:
    async with get_client() as client:
        deployment = await deployed(client, name, RESIDENT, resident_flows.like_a_session)
        # Nothing is taken before every worker is warm, and all runs are there.
        await client.update_work_pool(name, WorkPoolUpdate(is_paused=True))
        with _workers(name, workers, servers.address, folder) as working:

            def used() -> dict[str, float]:
                return {**servers.cpu(), WORKERS: sum(map(cpu, working))}

            await asyncio.sleep(SETTLE_SECONDS)
            before = used()
            await asyncio.sleep(IDLE_SECONDS)
            idle = _each(before, used(), IDLE_SECONDS)
            before = used()
            await create(client, deployment, count, f"servers: {processes}, workers: {workers}")
            creating = _each(before, used(), count)
            before = used()
            await client.update_work_pool(name, WorkPoolUpdate(is_paused=False))
            await all_ended(client, deployment, count)
            await asyncio.sleep(SETTLE_SECONDS)
            executing = _each(before, used(), count)
        rate = count / await seconds_taken(client, deployment)
    return Point(processes, workers, count, rate, executing, creating, idle)


def _each(before: dict[str, float], after: dict[str, float], number: float) -> dict[str, float]:
    return {part: (after[part] - before[part]) / number for part in PARTS}


@contextmanager
def _workers(pool: str, number: int, address: str, folder: Path) -> Iterator[list[psutil.Process]]:
    """Warm ones."""
    logs = [folder / f"{pool}-{each}.log" for each in range(number)]
    with ExitStack() as exits:
        started = [exits.enter_context(worker_of(pool, RESIDENT, address, log, QUERY_SECONDS)) for log in logs]
        for log in logs:
            eventually(partial(_warm, log), START_SECONDS)
        yield started


def _warm(log: Path) -> bool | None:
    return "Worker is warm" in log.read_text() or None


def _measured(points: Iterable[Point]) -> Table:
    table = Table("servers", "workers", "runs/s", *PARTS, "together", box=None, pad_edge=False)
    for point in points:
        costs = [f"{point.cpu[part]:.4f}" for part in PARTS]
        first = (str(point.servers), str(point.workers), f"{point.runs_per_second:.1f}")
        table.add_row(*first, *costs, f"{sum(point.cpu.values()):.4f}")
    table.title = "Flow runs a second, and CPU seconds a run"
    return table


def _needed(needs: Iterable[Need]) -> Table:
    table = Table("sessions/s", *PARTS, "together", box=None, pad_edge=False)
    for one in needs:
        cells = []
        for part in PARTS:
            processes = f" ({one.processes[part]})" if part in one.processes else ""
            cells.append(f"{one.cores[part]:.1f}{processes}")
        table.add_row(f"{one.sessions_per_second:g}", *cells, f"{sum(one.cores.values()):.1f}")
    table.title = "Cores that sessions need"
    return table


if __name__ == "__main__":
    typer.run(main)
