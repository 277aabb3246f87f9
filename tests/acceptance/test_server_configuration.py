"""What `kycflow deploy` leaves at a Prefect server, and what `kycflow doctor` says while it is not there."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from fastapi import FastAPI, Response
from prefect.client.orchestration import PrefectClient
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.bring_over import OLD_AUTOMATION, bring_over
from deployments.doctor import Finding, examine_prefect
from deployments.exposure import exposures
from deployments.prefect_access import CLIENT_SECRET, SERVER_ORIGINS, SERVER_SECRET
from deployments.provision import POOLS, UPKEEP, create_pools, drop_missed_sweeps
from tasks.database import database_for
from tasks.database.leases import renew
from tasks.dispatch import prefect_api
from tasks.settings import Settings
from tasks.sweep.place import keep_place, leave_place, take_place
from tests.http_server import serving
from tests.prefect_server import prefect_server

T = TypeVar("T")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server, as somebody runs it who has not read our documentation; its API's address."""
    with prefect_server(tmp_path_factory.mktemp("server") / "prefect") as address:
        yield address


@pytest.fixture(autouse=True)
def _provisioned(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins after `kycflow deploy`, in the environment of a shell with PREFECT_API_URL."""
    monkeypatch.setenv("KYCFLOW_WORKER_TYPE", "process")
    with temporary_settings({PREFECT_API_URL: server}):
        provision()
        yield


def provision() -> None:
    """What `kycflow deploy` does beside `prefect deploy`."""
    asyncio.run(create_pools("process"))


def prefect(call: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Ask the server something."""

    async def ask() -> T:
        async with prefect_api() as client:
            return await call(client)

    return asyncio.run(ask())


def operator(server: str, *arguments: str) -> None:
    """Run a command in a shell with PREFECT_API_URL."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=shell(server), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def shell(server: str) -> dict[str, str]:
    """The environment of such a shell."""
    return dict(os.environ) | {"PREFECT_API_URL": server}


def findings(what: str) -> list[Finding]:
    """What doctor says about something at the server."""
    return [finding for finding in asyncio.run(examine_prefect(Settings())) if finding.what == what]


def finding(what: str) -> Finding:
    """The only thing that doctor says about it."""
    (found,) = findings(what)
    return found


def test_what_strangers_can_do_at_a_server_is_shown(server: str, tmp_path: Path) -> None:
    assert [(one.state, one.finding.partition(":")[0]) for one in findings("Access")] == [
        ("warning", "no login"),
        ("warning", "any web page may call it"),
    ]
    # Closed as its remedies say.
    remedies = " ".join(one.remedy for one in findings("Access"))
    assert {SERVER_SECRET, CLIENT_SECRET, SERVER_ORIGINS} <= {*re.findall(r"[A-Z_]{5,}", remedies)}
    login = "user:password"
    closed = prefect_server(tmp_path / "prefect", **{SERVER_SECRET: login, SERVER_ORIGINS: ""})
    with closed as other, temporary_settings({PREFECT_API_URL: other, PREFECT_API_AUTH_STRING: login}):
        assert finding("Access").state == "ok"
        with temporary_settings({PREFECT_API_AUTH_STRING: "user:wrong"}):
            assert "set PREFECT_API_AUTH_STRING" in findings("Prefect")[-1].finding + findings("Prefect")[-1].remedy


def test_a_server_that_wants_tokens_and_no_login_is_shown(tmp_path: Path) -> None:
    """Whoever asks gets such a token."""
    csrf = {"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true", SERVER_ORIGINS: ""}
    with prefect_server(tmp_path / "prefect", **csrf) as open_server:
        assert ["no login" in one.finding for one in asyncio.run(exposures(open_server))] == [True]


@pytest.mark.parametrize(("status", "told"), [(401, []), (403, []), (302, []), (503, [True]), (404, [True])])
def test_what_cannot_be_told_of_a_server_is_not_called_closed(status: int, told: list[bool]) -> None:
    server = FastAPI()
    server.add_api_route("/api/admin/version", lambda: Response(status_code=status))
    with serving(server) as address:
        assert ["is not known" in one.finding for one in asyncio.run(exposures(f"{address}/api"))] == told


def test_a_server_that_says_what_its_workers_run_is_shown(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [one for one in findings("Work pool") if one.state == "warning"]
    assert [one.finding.partition(":")[0] for one in said] == [name for name, *_ in POOLS]
    assert "Prefect's server says what its workers run" in said[0].finding
    monkeypatch.setenv("KYCFLOW_WORKER_TYPE", "resident")
    assert {(one.state, one.finding.partition(":")[2]) for one in findings("Work pool")} == {
        ("missing", " its workers refuse it")
    }


def test_the_automation_of_version_0_1_0_goes() -> None:
    """It fired for runs that had ended."""
    never = EventTrigger(posture=Posture.Reactive, expect={"never"}, threshold=1, within=timedelta(0))
    old = [AutomationCore(name=name, trigger=never, actions=[DoNothing()]) for name in (OLD_AUTOMATION, "mine")]
    for automation in old:
        prefect(lambda client, one=automation: client.create_automation(one))  # type: ignore[misc]
    assert OLD_AUTOMATION in str(asyncio.run(bring_over()))
    assert [one.name for one in prefect(lambda client: client.read_automations())] == ["mine"]


def test_a_missing_pool_is_shown_and_made_again() -> None:
    prefect(lambda client: client.delete_work_pool(UPKEEP))
    assert (finding("Work queue").state, finding("Work queue").finding) == ("missing", f"{UPKEEP}/default")
    provision()
    assert finding("Work queue").state == "ok"


@pytest.mark.parametrize(
    "limit",
    [
        f"work-pool set-concurrency-limit {UPKEEP} 4",
        f"work-queue set-concurrency-limit default 4 --pool {UPKEEP}",
    ],
)
def test_a_limit_that_can_stop_the_sweep_stays_is_shown_and_goes_by_the_remedy(server: str, limit: str) -> None:
    operator(server, "prefect", *limit.split())
    provision()
    shown = finding("Work queue")
    assert (shown.state, "4" in shown.finding) == ("warning", True)
    for command in re.findall(r"prefect [\w -]+", shown.remedy):
        operator(server, *command.split())
    assert finding("Work queue").state == "ok"
    queues = prefect(lambda client: client.read_work_queues(work_pool_name=UPKEEP))
    assert {queue.name: queue.concurrency_limit for queue in queues} == {"default": None}


def test_a_limit_that_an_operator_gave_a_queue_stays(server: str) -> None:
    operator(server, "prefect", "work-queue", "set-concurrency-limit", "default", "7", "--pool", "gpu")
    provision()
    queue = prefect(lambda client: client.read_work_queue_by_name("default", work_pool_name="gpu"))
    assert queue.concurrency_limit == 7


def test_a_server_that_keeps_runs_for_too_long_is_shown_with_the_variables_that_end_it(tmp_path: Path) -> None:
    runs, events = findings("Retention")
    assert (runs.state, events.state) == ("warning", "ok"), "Prefect's own defaults: runs for ever, events for a week."
    said = dict(assignment.split("=", 1) for assignment in shlex.split(runs.remedy.partition(": ")[2]))
    with prefect_server(tmp_path / "prefect", **said) as other, temporary_settings({PREFECT_API_URL: other}):
        assert [one.state for one in findings("Retention")] == ["ok", "ok"]


def test_a_server_without_deployments_workers_or_sweeps_is_shown(server: str) -> None:
    assert {one.state for one in findings("Deployment")} == {finding("Sweep").state} == {"missing"}
    with deployed(server):
        assert {one.state for one in findings("Deployment")} == {"ok"}
        absent = [one for one in findings("Work pool") if one.state == "missing"]
        assert [one.finding.partition(":")[2] for one in absent] == [" no worker in two minutes"] * 2
        assert "kycflow worker --pool gpu" in absent[1].remedy
        assert (finding("Sweep").state, finding("Sweep").finding) == ("warning", "none at work")


def test_a_sweep_counts_while_it_keeps_its_place(server: str) -> None:
    database = database_for(Settings())
    with deployed(server):
        failed = begin_sweep(server, "RUNNING", "FAILED")
        assert (finding("Sweep").state, failed in finding("Sweep").remedy) == ("warning", True)
        place = take_place(database, begin_sweep(server, "RUNNING"))
        assert finding("Sweep").state == "ok"
        renew(database, place, 0)  # as of one that was killed a while ago
        assert finding("Sweep").state == "warning"
        assert keep_place(database, place)
        assert finding("Sweep").state == "ok"
        leave_place(database, place)
        assert (finding("Sweep").state, UPKEEP in finding("Sweep").remedy) == ("warning", True)


def test_missed_sweeps_are_dropped_and_nothing_else(server: str) -> None:
    """Without it the worker takes up one for each minute in which nothing ran, at once."""

    def create(name: str, due: datetime, **parameters: str) -> str:
        """A flow run that is due then; its id."""
        deployment = httpx.get(f"{server}/deployments/name/{name}/{name}").json()["id"]
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        body = {"state": state, "parameters": parameters}
        answer = httpx.post(f"{server}/deployments/{deployment}/create_flow_run", json=body)
        return str(answer.raise_for_status().json()["id"])

    now = datetime.now(UTC)
    past, future = now - timedelta(hours=1), now + timedelta(hours=1)
    with deployed(server):
        missed = [create("sweep-sessions", past) for _ in range(3)]
        kept = [begin_sweep(server, "RUNNING"), create("sweep-sessions", future)]
        kept += [create("purge-sessions", past), create("verify-session", past, session_id="one")]
        asyncio.run(drop_missed_sweeps())
        assert [httpx.get(f"{server}/flow_runs/{run}").status_code for run in missed] == [404] * len(missed)
        assert [httpx.get(f"{server}/flow_runs/{run}").status_code for run in kept] == [200] * len(kept)


def begin_sweep(server: str, *states: str) -> str:
    """Create a run of the sweep and take it through these types of states, as its process would; its id."""
    sweeps = httpx.get(f"{server}/deployments/name/sweep-sessions/sweep-sessions").json()["id"]
    run = str(httpx.post(f"{server}/deployments/{sweeps}/create_flow_run", json={}).json()["id"])
    for state in states:
        body = {"state": {"type": state}, "force": True}
        httpx.post(f"{server}/flow_runs/{run}/set_state", json=body).raise_for_status()
    return run


@contextmanager
def deployed(server: str) -> Iterator[None]:
    """With prefect.yaml applied; afterwards its deployments are gone again, and with them their runs."""
    operator(server, "deployments.cli", "deploy")
    try:
        yield
    finally:
        for deployment in httpx.post(f"{server}/deployments/filter", json={}).json():
            httpx.delete(f"{server}/deployments/{deployment['id']}").raise_for_status()
