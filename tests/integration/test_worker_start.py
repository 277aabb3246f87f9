"""A worker that is started before what it needs is there: it waits, takes nothing, and says why."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.provision import RESIDENT, create_pools
from tests.prefect_server import prefect_server
from tests.system import eventually


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A Prefect server with nothing in it; its API's address."""
    with prefect_server(tmp_path / "prefect") as address:
        yield address


@contextmanager
def worker(folder: Path, address: str, *arguments: str) -> Iterator[Path]:
    """A worker of the pool `gpu`; its log. It has to be there at the end, and to end without an error then."""
    folder.mkdir()
    log = folder / "worker.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KYCFLOW_", "PREFECT_"))}
    environment |= {"KYCFLOW_STATE_DIR": str(folder), "PREFECT_HOME": str(folder), "PREFECT_API_URL": address}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.worker", "--pool", "gpu", *arguments],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield log
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def workers(server: str) -> int:
    """How many workers the pool `gpu` has seen."""
    return len(httpx.post(f"{server}/work_pools/gpu/workers/filter", json={}).json())


def create(server: str) -> None:
    """What comes before the workers in `kycflow deploy`."""
    with temporary_settings({PREFECT_API_URL: server}):
        asyncio.run(create_pools(RESIDENT))


def test_without_a_server_it_says_so_once_and_waits(tmp_path: Path) -> None:
    with worker(tmp_path / "worker", "http://127.0.0.1:1/api") as log:
        eventually(lambda: "does not answer" in log.read_text() or None, 60)
    assert len(log.read_text().splitlines()) == 1


def test_without_its_pool_it_waits_and_makes_none(server: str, tmp_path: Path) -> None:
    """Prefect's own command would make one of the type `process`."""
    with worker(tmp_path / "worker", server) as log:
        eventually(lambda: "no work pool 'gpu'" in log.read_text() or None, 60)
        assert httpx.get(f"{server}/work_pools/gpu").status_code == 404
        create(server)
        eventually(lambda: workers(server) or None, 60)
    assert httpx.get(f"{server}/work_pools/gpu").json()["type"] == RESIDENT


def test_it_begins_when_it_is_told_to(server: str, tmp_path: Path) -> None:
    """`kycflow up` starts workers before everything is deployed."""
    create(server)
    go = tmp_path / "go"
    with ExitStack() as exits:
        exits.enter_context(worker(tmp_path / "told", server, "--after", str(go)))
        for number in (1, 2):  # one after the other, so that the one that waits has had the time of two
            exits.enter_context(worker(tmp_path / f"other-{number}", server))
            eventually(lambda number=number: workers(server) >= number or None, 60)  # type: ignore[misc]
        assert workers(server) == 2
        go.touch()
        eventually(lambda: workers(server) == 3 or None, 60)


START = """
import os, subprocess, sys
worker = [sys.executable, "-m", "deployments.worker", "--pool", "gpu", "--after", sys.argv[1]]
print(subprocess.Popen([*worker, "--parent", str(os.getpid())]).pid, flush=True)
input()
"""


def test_it_does_not_outlive_who_started_it_and_never_told_it_to_begin(tmp_path: Path) -> None:
    """Killed while it starts, `kycflow up` stops nothing any more."""
    environment = {**os.environ, "KYCFLOW_STATE_DIR": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", START, str(tmp_path / "never")]
    parent = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    started = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([started], timeout=60)
    assert not started.is_running()
    parent.communicate()
