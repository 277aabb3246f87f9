"""Prefect's server away for longer than its client tries, while a worker has flow runs: what Prefect says afterwards.

Scaled: the client tries each call twice in place of six times, and is done after 3 s; the server is away for 12 s.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.contracts import Decision, DecisionKind, Reason
from tasks.database import database_for
from tasks.database.engine import reading
from tasks.database.tables import LeaseRow
from tasks.errors import KycflowError
from tasks.report import publish_decision
from tasks.settings import Settings
from tests.integration import test_resident_process
from tests.integration.test_resident_process import worker
from tests.integration.test_resident_worker import deployed, started
from tests.system import eventually
from tests.tcp_proxy import TcpProxy, tcp_proxy

server = test_resident_process.server
AWAY_SECONDS = 12
SETTLED_SECONDS = 1
"""Until a worker knows the state that it has asked for, and has read the run again."""
KNOWN_SECONDS = 60
"""From the server's return until all is told."""


@dataclass(frozen=True)
class World:
    """A Prefect server, and a worker of the pool gpu that reaches it through a proxy."""

    server: str
    proxy: TcpProxy
    settings: Settings

    def start(self, flow: str, parameters: dict[str, Any], **deployment: Any) -> UUID:
        """A flow run of one of `tests.resident_flows`."""

        async def start() -> UUID:
            async with get_client() as api:
                made = await deployed(api, flow, work_pool_name="gpu", **deployment)
                return (await started(api, made, **parameters)).id

        with temporary_settings({PREFECT_API_URL: self.server}):
            return asyncio.run(start())

    def state(self, run: UUID) -> str:
        """Type of its state, as the server itself tells."""
        return str(httpx.get(f"{self.server}/flow_runs/{run}").raise_for_status().json()["state_type"])

    def until(self, run: UUID, state: str, seconds: float = KNOWN_SECONDS) -> None:
        """Wait for a state."""
        eventually(lambda: self.state(run) == state or None, seconds)

    def cancel(self, run: UUID, seconds: float = KNOWN_SECONDS) -> None:
        """Cancel a run, and wait until its worker has. What is left is executed by the next test's worker."""
        httpx.post(f"{self.server}/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
        self.until(run, "CANCELLED", seconds)

    def outage(self) -> None:
        """Longer than the worker's client tries."""
        time.sleep(SETTLED_SECONDS)
        self.proxy.take_away()
        time.sleep(AWAY_SECONDS)
        self.proxy.bring_back()

    def told(self) -> list[str] | None:
        """The flow runs that the worker has, as its sign of life tells; None before there is one."""
        try:
            with reading(database_for(self.settings)) as session:
                (row,) = session.query(LeaseRow).filter(LeaseRow.name.startswith("worker:gpu-")).all()
                return row.runs
        except (KycflowError, ValueError):
            return None


@pytest.fixture
def world(server: str, tmp_path: Path) -> Iterator[World]:
    with tcp_proxy(server) as proxy, worker(tmp_path, proxy.address, PREFECT_CLIENT_MAX_RETRIES="1"):
        eventually(lambda: "Worker is warm" in (tmp_path / "worker.log").read_text() or None, 60)
        yield World(server, proxy, Settings(state_dir=tmp_path))


@pytest.mark.parametrize("flow", ["wait", "wait_in_thread"])
def test_a_run_that_ends_meanwhile_says_so_afterwards(flow: str, world: World) -> None:
    run = world.start(flow, {"seconds": 5})
    world.until(run, "RUNNING")
    world.outage()
    world.until(run, "COMPLETED")


def test_a_run_that_cannot_begin_is_crashed_afterwards(world: World) -> None:
    run = world.start("nothing", {}, entrypoint="tests.slow_to_fail.nothing")
    world.until(run, "PENDING")
    world.outage()
    world.until(run, "CRASHED")


def test_a_state_that_came_meanwhile_stays(world: World) -> None:
    """Another worker has the run by now: its state is not this execution's to set."""
    run = world.start("wait", {"seconds": 5})
    world.until(run, "RUNNING")
    time.sleep(SETTLED_SECONDS)
    world.proxy.take_away()
    taken_over = {"type": "RUNNING", "message": "On worker another-one"}
    httpx.post(f"{world.server}/flow_runs/{run}/set_state", json={"state": taken_over, "force": True})
    time.sleep(AWAY_SECONDS)
    world.proxy.bring_back()
    after = world.start("nothing", {})
    world.until(after, "COMPLETED")
    eventually(lambda: world.told() == [] or None, KNOWN_SECONDS)
    assert world.state(run) == "RUNNING"


def test_cancelling_works_within_ten_seconds_after_it(world: World) -> None:
    run = world.start("wait", {"seconds": 600})
    world.until(run, "RUNNING")
    world.outage()
    world.cancel(run, 10)


def test_a_decision_is_shown_once_it_is_back(world: World) -> None:
    run = world.start("wait", {"seconds": 600})
    decision = Decision(
        session_id=f"shown-{run.hex[:12]}",
        attempt=1,
        decision=DecisionKind.EXPIRED,
        reason=Reason.ID_IMAGE_MISSING,
        decided_at=datetime.now(UTC),
    )

    async def shown() -> None:
        with temporary_settings({PREFECT_API_URL: world.server}):
            async with get_client() as api:
                found = await api.read_flow_run(run)
        world.proxy.take_away()
        asyncio.get_running_loop().call_later(3, world.proxy.bring_back)
        with temporary_settings({PREFECT_API_URL: world.proxy.address}):
            await publish_decision(decision, found)

    asyncio.run(shown())
    assert "decision:expired" in httpx.get(f"{world.server}/flow_runs/{run}").raise_for_status().json()["tags"]
    artifact = httpx.get(f"{world.server}/artifacts/decision-{decision.session_id}-1/latest").raise_for_status().json()
    assert artifact["flow_run_id"] == str(run)
    world.cancel(run)


def test_a_worker_tells_which_runs_it_has(world: World) -> None:
    eventually(lambda: world.told() == [] or None, 30)
    run = world.start("wait", {"seconds": 600})
    eventually(lambda: world.told() == [str(run)] or None, 30)
    world.cancel(run)
    eventually(lambda: world.told() == [] or None, 30)
