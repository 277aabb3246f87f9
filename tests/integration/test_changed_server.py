"""Somebody else writes to Prefect's server: pool and deployments change shape, and resident workers refuse them."""

import asyncio
import importlib
import shlex
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled
from prefect.workers.process import ProcessWorker

import flows.purge_sessions
from deployments.provision import RESIDENT, create_pools
from deployments.resident.code import FlowCode
from tasks.caching import OWN_STORAGE
from tasks.errors import ConfigurationError
from tests.prefect_server import prefect_server, without_settings
from tests.rogue import leave_a_mark
from tests.system import eventually

T = TypeVar("T")
RUN_SECONDS = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A Prefect server as `kycflow deploy` leaves it; its API's address. Whoever reaches it may write to it."""
    with prefect_server(tmp_path / "prefect") as address, temporary_settings({PREFECT_API_URL: address}):
        asyncio.run(create_pools(RESIDENT))
        yield address


@contextmanager
def worker(folder: Path, server: str, *command: str) -> Iterator[Path]:
    """A worker of the pool `gpu`; its log. It is killed at the end."""
    folder.mkdir()
    environment = without_settings() | {"KYCFLOW_STATE_DIR": str(folder), "PREFECT_HOME": str(folder)}
    environment |= {"PREFECT_API_URL": server, "PREFECT_WORKER_HEARTBEAT_SECONDS": "2"}
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=output, stderr=output)
    try:
        yield log
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def attacker(call: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Somebody does something to the server."""

    async def do() -> T:
        async with get_client() as client:
            return await call(client)

    return asyncio.run(do())


async def remade(client: PrefectClient) -> None:
    """The pool, made again as one whose workers run what the server says."""
    await client.delete_work_pool("gpu")
    template = ProcessWorker.get_default_base_job_template()
    await client.create_work_pool(WorkPoolCreate(name="gpu", type="process", base_job_template=template))


def ordered(entrypoint: str, mark: Path | None, **more: object) -> Callable[[PrefectClient], Awaitable[FlowRun]]:
    """A run of code that nobody of ours has deployed."""

    async def order(client: PrefectClient) -> FlowRun:
        flow_id = await client.create_flow(leave_a_mark)
        deployment: UUID = await client.create_deployment(
            flow_id,
            name=f"rogue-{time.monotonic_ns()}",
            work_pool_name="gpu",
            entrypoint=entrypoint,
            **more,  # type: ignore[arg-type]
        )
        return await client.create_flow_run_from_deployment(
            deployment, parameters={} if mark is None else {"path": str(mark)}, state=Scheduled()
        )

    return order


def ended(run: FlowRun) -> FlowRun:
    def look() -> FlowRun | None:
        found = attacker(lambda client: client.read_flow_run(run.id))
        return found if found.state is not None and found.state.is_final() else None

    return eventually(look, RUN_SECONDS)


def test_a_resident_worker_runs_nothing_but_flows_whatever_the_server_says(server: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    touch = f"touch {shlex.quote(str(mark))}"
    ours = "flows.purge_sessions.purge_sessions"
    with worker(tmp_path / "resident", server, "deployments.worker", "--pool", "gpu") as log:
        for order, refusal in (
            (ordered("tests.rogue.leave_a_mark", mark), "runs flows of the package flows only"),
            (
                ordered(ours, mark, job_variables={"command": touch}),
                "Job variables that a resident worker cannot honour",
            ),
            (
                ordered(ours, mark, pull_steps=[{"prefect.deployments.steps.run_shell_script": {"script": touch}}]),
                "has pull steps",
            ),
        ):
            run = ended(attacker(order))
            assert run.state is not None
            assert run.state.is_crashed()
            assert refusal in (run.state.message or "")
        # The pool itself.
        attacker(remade)
        eventually(lambda: "is of type 'process', and KYCFLOW_WORKER_TYPE says 'resident'" in log.read_text() or None)
        waiting = attacker(ordered(ours, mark, job_variables={"command": touch}))

    # Started again, as its supervisor would, it does not take the pool's new type.
    with worker(tmp_path / "again", server, "deployments.worker", "--pool", "gpu") as log:
        eventually(lambda: "Refused: work pool 'gpu' is of type 'process'" in log.read_text() or None)
        with pytest.raises(ConfigurationError, match="Refused: work pool 'gpu' is of type 'process'"):
            asyncio.run(create_pools(RESIDENT))
        assert attacker(lambda client: client.read_flow_run(waiting.id)).run_count == 0

        # Put right, it goes on.
        attacker(lambda client: client.delete_work_pool("gpu"))
        asyncio.run(create_pools(RESIDENT))
        eventually(lambda: "Worker is warm" in log.read_text() or None)
    assert not mark.exists()


def test_results_do_not_go_where_the_server_says(server: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"

    async def name(client: PrefectClient) -> None:
        block = LocalFileSystem(basepath=str(elsewhere))
        await block.register_type_and_schema(client=client)
        saved = await block.save("elsewhere", client=client)
        await client.request("PUT", "/admin/storage", json={"default_result_storage_block_id": str(saved)})

    attacker(name)
    assert attacker(lambda client: client.read_server_default_result_storage()).default_result_storage_block_id
    with worker(tmp_path / "resident", server, "deployments.worker", "--pool", "gpu"):
        run = ended(attacker(ordered("flows.sweep_sessions.sweep_sessions", None)))
    assert run.state is not None
    assert run.state.is_completed(), run.state
    assert not elsewhere.exists()


@pytest.mark.parametrize("module", [path.stem for path in Path(flows.__path__[0]).glob("[a-z]*.py")])
def test_no_flow_of_any_type_of_worker_asks_the_server_where_results_go(module: str) -> None:
    found = getattr(importlib.import_module(f"flows.{module}"), module)
    assert (found.persist_result, found.result_storage) == (False, OWN_STORAGE)


def test_another_type_of_worker_runs_what_the_server_says(server: str, tmp_path: Path) -> None:
    """What the test above would see, if nothing were refused; and what the docs say of these types."""
    mark = tmp_path / "mark"
    attacker(remade)
    attacker(ordered("flows.purge_sessions.purge_sessions", mark, job_variables={"command": f"touch {mark}"}))
    with worker(tmp_path / "stock", server, "prefect", "worker", "start", "--pool", "gpu"):
        eventually(lambda: mark.exists() or None, RUN_SECONDS)


def deployment(entrypoint: str) -> DeploymentResponse:
    return DeploymentResponse(id=uuid4(), name="rogue", flow_id=uuid4(), labels={}, entrypoint=entrypoint)


@pytest.mark.parametrize(
    "entrypoint",
    [
        *("", "os.system", "tests.rogue.leave_a_mark", "flows", "flowsx.purge_sessions.purge_sessions"),
        *("flows/purge_sessions.py:purge_sessions", "flows.py:purge", "/tmp/x.py:f", "flows.:x.y", "flows..x"),
        *("flows.purge_sessions.purge_sessions\n", "Flows.purge_sessions.purge_sessions", "\ufb02ows.a.b"),
    ],
)
def test_an_entrypoint_outside_of_flows_is_refused_before_it_is_imported(entrypoint: str) -> None:
    with pytest.raises(ConfigurationError, match="runs flows of the package flows only"):
        FlowCode().flow(deployment(entrypoint))


def test_a_flow_that_stands_in_flows_and_is_not_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.purge_sessions, "borrowed", leave_a_mark, raising=False)
    with pytest.raises(ConfigurationError, match=r"is a flow of tests\.rogue"):
        FlowCode().flow(deployment("flows.purge_sessions.borrowed"))


def test_a_deployment_that_changes_its_entrypoint_and_not_its_version_is_looked_at_again() -> None:
    code, first = FlowCode(), deployment("flows.purge_sessions.purge_sessions")
    assert code.flow(first).name == "purge-sessions"
    with pytest.raises(ConfigurationError, match="runs flows of the package flows only"):
        code.flow(first.model_copy(update={"entrypoint": "tests.rogue.leave_a_mark"}))
    with pytest.raises(ConfigurationError, match="pull steps"):
        code.flow(first.model_copy(update={"pull_steps": [{"prefect.deployments.steps.set_working_directory": {}}]}))
