"""A resident worker as its operator sees it: what it takes at a time, whether it is well, why it ends by itself."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.listening import listen
from deployments.provision import RESIDENT, create_pools
from deployments.resident.worker import AGAIN_EXIT_CODE, END_SECONDS
from deployments.stack import LOOPBACK
from deployments.worker import AT_HAND
from tests.integration.test_resident_worker import deployed, started
from tests.prefect_server import prefect_server, without_settings
from tests.system import IN_THE_BACKGROUND, eventually

RUNS = AT_HAND + 5
SPARE_SECONDS = 4
"""For a machine that is busy. Prefect's own end would take a minute."""
WELL, UNWELL, SILENT = 200, 503, None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with the pools; its API's address."""
    with prefect_server(tmp_path_factory.mktemp("server") / "prefect") as address:
        with temporary_settings({PREFECT_API_URL: address}):
            asyncio.run(create_pools(RESIDENT))
        yield address


@contextmanager
def worker(
    folder: Path, server: str, *arguments: str, prefix: Sequence[str] = (), **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`kycflow worker --pool gpu`."""
    home = {"KYCFLOW_STATE_DIR": str(folder), "PREFECT_HOME": str(folder), "PREFECT_API_URL": server}
    module = ["-m", "tests.with_own_flows", "deployments.cli"]
    command = [sys.executable, *module, "worker", "--pool", "gpu", *arguments]
    with (folder / "worker.log").open("wb") as log:
        environment = without_settings() | home | variables
        process = subprocess.Popen([*prefix, *command], env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start_runs(server: str, count: int, flow: str, **parameters: float) -> None:
    """Flow runs of one of `tests.resident_flows`."""

    async def start() -> None:
        async with get_client() as api:
            deployment = await deployed(api, flow, work_pool_name="gpu")
            for _ in range(count):
                await started(api, deployment, **parameters)

    with temporary_settings({PREFECT_API_URL: server}):
        asyncio.run(start())


def running(server: str) -> int:
    """How many flow runs are."""
    wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    return int(httpx.post(f"{server}/flow_runs/count", json=wanted).raise_for_status().json())


def test_it_takes_only_so_many_runs_that_others_find_some_too(server: str, tmp_path: Path) -> None:
    start_runs(server, RUNS, "wait", seconds=6)
    with worker(tmp_path, server):
        eventually(lambda: running(server) or None, 60)
        most, end = 0, time.monotonic() + 4
        while time.monotonic() < end:
            most = max(most, running(server))
        assert most == AT_HAND
        eventually(lambda: running(server) == RUNS - AT_HAND or None, 60)
        eventually(lambda: running(server) == 0 or None, 60)


def test_it_is_well_when_it_is_warm_and_not_any_more_when_it_drains(server: str, tmp_path: Path) -> None:
    with listen(LOOPBACK, 18_080, ports=100) as free:
        port = free.getsockname()[1]

    def before(wanted: int | None) -> list[int | None]:
        """All answers until there is the wanted one."""
        seen, end = [look()], time.monotonic() + 60
        while seen[-1] != wanted:
            assert time.monotonic() < end, seen[-1]
            seen.append(look())
        return seen[:-1]

    def look() -> int | None:
        try:
            return httpx.get(f"http://{LOOPBACK}:{port}/health").status_code
        except httpx.TransportError:
            return SILENT

    log = tmp_path / "worker.log"
    with worker(tmp_path, server, "--with-healthcheck", PREFECT_WORKER_WEBSERVER_PORT=str(port)) as process:
        assert set(before(WELL)) == {SILENT, UNWELL}
        assert "Worker is warm" in log.read_text()
        start_runs(server, 1, "wait", seconds=4)
        eventually(lambda: running(server) or None, 60)
        assert look() == WELL
        process.send_signal(signal.SIGTERM)
        assert UNWELL in before(SILENT)
        assert process.wait(60) == 0
    assert running(server) == 0


@pytest.mark.parametrize(("number", "drain_seconds"), [(signal.SIGINT, "30"), (signal.SIGTERM, "3")])
def test_told_to_end_while_the_server_is_away_it_ends_in_time(
    number: signal.Signals, drain_seconds: str, tmp_path: Path
) -> None:
    """It cannot hand back its runs then, and Prefect's client would try each call for a minute."""
    with ExitStack() as exits:
        gone = exits.enter_context(ExitStack())
        address = gone.enter_context(prefect_server(tmp_path / "prefect"))
        with temporary_settings({PREFECT_API_URL: address}):
            asyncio.run(create_pools(RESIDENT))
        start_runs(address, 2, "wait", seconds=600)
        start_runs(address, 1, "stuck")
        process = exits.enter_context(worker(tmp_path, address, KYCFLOW_DRAIN_SECONDS=drain_seconds))
        eventually(lambda: running(address) == 3 or None, 60)
        gone.close()
        process.send_signal(number)
        begin = time.monotonic()
        process.wait(60)
        bound = END_SECONDS + (float(drain_seconds) if number is signal.SIGTERM else 0)
        assert time.monotonic() - begin < bound + SPARE_SECONDS, (tmp_path / "worker.log").read_text()


def test_a_worker_that_ignores_sigint_from_its_birth_ends_at_it(server: str, tmp_path: Path) -> None:
    """A script's shell starts what it puts into the background so."""
    with worker(tmp_path, server, prefix=IN_THE_BACKGROUND) as process:
        eventually(lambda: "started!" in (tmp_path / "worker.log").read_text() or None, 60)
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_above_its_bound_of_memory_it_ends_to_be_started_again(server: str, tmp_path: Path) -> None:
    start_runs(server, 1, "greedy", mib=300, seconds=8)
    with worker(tmp_path, server, KYCFLOW_WORKER_MEMORY_MIB="400") as process:
        eventually(lambda: running(server) or None, 60)
        assert process.wait(60) == AGAIN_EXIT_CODE
    assert running(server) == 0
    log = (tmp_path / "worker.log").read_text()
    assert "more than 400; 1 are running" in log
    assert "Handed back" not in log
