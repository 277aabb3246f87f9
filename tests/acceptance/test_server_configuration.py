"""What `kycflow deploy` leaves at a Prefect server, and what `kycflow doctor` says while it is not there."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled

from deployments.doctor import Finding, examine_prefect
from deployments.provision import POOLS, SESSIONS, UPKEEP_QUEUE, create_pools, drop_missed_sweeps
from deployments.server_configuration import (
    HEARTBEAT_SECONDS,
    LOST_RUNS,
    SILENCE,
    WATCHED_TAGS,
    as_wanted,
    lost_runs_automation,
)
from tasks.dispatch import TAG, awaiting_files, prefect_api
from tasks.settings import Settings
from tests.prefect_server import prefect_server
from tests.system import eventually

T = TypeVar("T")

# A flow run like ours, as far as Prefect goes, that somebody kills.
ENDLESS_FLOW = """
import sys, time
from prefect import flow, tags

@flow
def endless():
    time.sleep(600)

with tags(*sys.argv[1:]):
    endless()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server, as somebody runs it who has not read our documentation; its API's address."""
    with prefect_server(tmp_path_factory.mktemp("server") / "prefect") as address:
        yield address


@pytest.fixture(autouse=True)
def _provisioned(server: str) -> Iterator[None]:
    """Each test begins after `kycflow deploy`, in the environment of a shell with PREFECT_API_URL."""
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


def automations() -> list[Automation]:
    """Those of our name."""
    return prefect(lambda client: client.read_automations_by_name(LOST_RUNS))


def automation() -> Automation:
    """The only one."""
    (found,) = automations()
    return found


def change() -> None:
    """Have somebody change the automation."""
    update(lost_runs_automation().model_copy(update={"description": "mine"}))


def update(other: AutomationCore) -> None:
    """Put another one in its place."""
    found = automation().id
    prefect(lambda client: client.update_automation(found, other))


def delete() -> None:
    """Have somebody delete the automation."""
    found = automation().id
    prefect(lambda client: client.delete_automation(found))


def test_deploying_again_leaves_the_automation_untouched(server: str) -> None:
    def stored() -> list[dict[str, Any]]:
        """With the time of its last change."""
        found: list[dict[str, Any]] = httpx.post(f"{server}/automations/filter", json={}).json()
        return found

    before = stored()
    assert [one["name"] for one in before] == [LOST_RUNS]
    provision()
    assert stored() == before


def test_a_changed_automation_is_shown_and_put_right() -> None:
    change()
    assert (finding("Automation").state, as_wanted(automation())) == ("warning", False)
    provision()
    assert (finding("Automation").state, as_wanted(automation())) == ("ok", True)


@pytest.mark.parametrize("changed", [False, True])
def test_an_automation_that_was_switched_off_is_shown_and_stays_off(changed: bool) -> None:
    found = automation().id
    prefect(lambda client: client.pause_automation(found))
    if changed:
        change()
    provision()
    assert (automation().enabled, as_wanted(automation())) == (False, True)
    assert (finding("Automation").state, finding("Automation").finding) == ("warning", f"{LOST_RUNS}: off")
    prefect(lambda client: client.resume_automation(found))
    assert finding("Automation").state == "ok"


def test_a_deleted_automation_is_shown_and_made_again() -> None:
    delete()
    shown = finding("Automation")
    assert (shown.state, "kycflow deploy" in shown.remedy) == ("warning", True)
    provision()
    assert finding("Automation").state == "ok"


def test_of_several_automations_one_is_left() -> None:
    for _ in range(2):
        prefect(lambda client: client.create_automation(lost_runs_automation()))
    assert (len(automations()), finding("Automation").state) == (3, "warning")
    provision()
    assert (len(automations()), finding("Automation").state) == (1, "ok")


def test_several_who_deploy_at_once_leave_one_automation() -> None:
    delete()

    async def at_once() -> None:
        await asyncio.gather(*(create_pools("process") for _ in range(5)))

    asyncio.run(at_once())
    assert len(automations()) == 1


def test_a_missing_queue_is_shown_and_made_again() -> None:
    async def delete_queue(client: PrefectClient) -> None:
        queue = await client.read_work_queue_by_name(UPKEEP_QUEUE, work_pool_name=SESSIONS)
        await client.delete_work_queue_by_id(queue.id)

    prefect(delete_queue)
    assert (finding("Work queue").state, finding("Work queue").finding) == ("missing", UPKEEP_QUEUE)
    provision()
    assert finding("Work queue").state == "ok"


@pytest.mark.parametrize(
    "limit",
    [
        f"work-pool set-concurrency-limit {SESSIONS} 4",
        f"work-queue set-concurrency-limit {UPKEEP_QUEUE} 4 --pool {SESSIONS}",
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
    queues = prefect(lambda client: client.read_work_queues(work_pool_name=SESSIONS))
    assert {queue.name: queue.concurrency_limit for queue in queues} == {"default": 4, UPKEEP_QUEUE: None}


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
        assert [one.state for one in findings("Work pool")] == ["missing", "missing"]
        assert "kycflow worker --pool gpu" in findings("Work pool")[1].remedy
        assert (finding("Sweep").state, finding("Sweep").finding) == ("ok", "the first one is due")


def test_a_sweep_counts_when_it_began_of_late_and_did_not_fail(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with deployed(server):
        begin_sweep(server, "RUNNING")
        assert finding("Sweep").state == "ok"
        failed = begin_sweep(server, "RUNNING", "FAILED")
        assert (finding("Sweep").state, failed in finding("Sweep").remedy) == ("warning", True)
        begin_sweep(server, "RUNNING", "COMPLETED")
        assert finding("Sweep").state == "ok"
        monkeypatch.setattr("deployments.doctor.RECENT", timedelta(seconds=0))  # instead of waiting for two minutes
        assert (finding("Sweep").state, "the last one began" in finding("Sweep").finding) == ("warning", True)


def test_missed_sweeps_are_dropped_and_nothing_else(server: str) -> None:
    """Without it a session worker takes up one for each minute in which nothing ran, at once."""

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


def test_every_run_is_watched_but_for_sessions_and_sends_three_heartbeats_in_the_silence_allowed(server: str) -> None:
    with deployed(server):
        found = httpx.post(f"{server}/deployments/filter", json={}).json()
    assert len(found) >= 4
    for deployment in found:
        assert TAG in deployment["tags"]
        assert ({"session"} | set(WATCHED_TAGS)) & set(deployment["tags"]), deployment["name"]
    for pool, *_ in POOLS:
        variables = httpx.get(f"{server}/work_pools/{pool}").json()["base_job_template"]["variables"]["properties"]
        seconds = int(variables["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert timedelta(seconds=3 * seconds) <= SILENCE
    assert timedelta(seconds=3 * HEARTBEAT_SECONDS) <= SILENCE  # and so a resident worker sends them


def test_a_run_whose_process_was_killed_is_ended_and_those_that_wait_are_not(server: str, tmp_path: Path) -> None:
    hasty = lost_runs_automation()
    assert isinstance(hasty.trigger, EventTrigger)
    hasty.trigger.within = timedelta(seconds=10)  # nobody wants to wait for 90
    update(hasty)
    (tmp_path / "endless.py").write_text(ENDLESS_FLOW)
    processes = [
        subprocess.Popen([sys.executable, tmp_path / "endless.py", TAG, tag], env=shell(server))
        for tag in ("session", "comparison", "comparison")
    ]
    try:
        heartbeats = eventually(lambda: all_heartbeats(server, 3), 60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    (session,) = heartbeats["session"]
    queued, lost = heartbeats["comparison"]

    later = datetime.now(UTC) + timedelta(hours=1)
    wait(session, awaiting_files(later, "id_image"))
    for heartbeat in (session, queued, lost):  # as if the server had missed that the session's run waits
        again = heartbeat | {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat()}
        httpx.post(f"{server}/events", json=[again]).raise_for_status()
    wait(queued, Scheduled(scheduled_time=later))

    assert eventually(lambda: final(lost), 60) == ("Crashed", "Its process sent no heartbeat any more.")
    # The others were heard of before it, so their time is over too.
    assert [state_of(run).name for run in (session, queued)] == ["AwaitingFiles", "Scheduled"]


def all_heartbeats(server: str, number: int) -> dict[str, list[dict[str, Any]]] | None:
    """The first heartbeat of every run, by the run's tag beside ours; None before there are so many."""
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "order": "DESC"}}
    events = httpx.post(f"{server}/events/filter", json=wanted).json()["events"]
    first = {event["resource"]["prefect.resource.id"]: event for event in events}.values()
    found: dict[str, list[dict[str, Any]]] = {}
    for event in first:
        tags = {one["prefect.resource.id"].removeprefix("prefect.tag.") for one in event["related"]}
        found.setdefault((tags & {"session", "comparison"}).pop(), []).append(event)
    return found if len(first) == number else None


def run_id(heartbeat: dict[str, Any]) -> UUID:
    """The flow run that has sent it."""
    return UUID(heartbeat["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run."))


def wait(heartbeat: dict[str, Any], state: State[None]) -> None:
    """Set a flow run to a state in which it has no process."""
    prefect(lambda client: client.set_flow_run_state(run_id(heartbeat), state, force=True))


def state_of(heartbeat: dict[str, Any]) -> State[Any]:
    """Where the flow run stands."""
    state = prefect(lambda client: client.read_flow_run(run_id(heartbeat))).state
    assert state is not None
    return state


def final(heartbeat: dict[str, Any]) -> tuple[str | None, str | None] | None:
    """Name and message of the flow run's final state; None before it has one."""
    state = state_of(heartbeat)
    return (state.name, state.message) if state.is_final() else None
