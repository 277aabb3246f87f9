"""What Prefect's server of a running system holds up, shows, and does not contain."""

import asyncio
import base64
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort

from deployments.demo_media import DemoMedia
from deployments.prefect_access import read_secret
from deployments.provision import POOLS
from tests.acceptance.test_sessions import verify
from tests.system import System, eventually

DEPLOYMENTS = {
    "verify-session": "gpu",
    "evaluate-faces": "gpu",
    "sweep-sessions": "upkeep",
    "purge-sessions": "upkeep",
}


def deployment(system: System, name: str) -> dict[str, object]:
    """A deployment as the UI reads it."""
    with system.prefect_http() as prefect:
        answer = prefect.get(f"/deployments/name/{name}/{name}").raise_for_status()
    found: dict[str, object] = answer.json()
    return found


def test_fifty_flow_runs_created_at_once_are_all_taken(system: System) -> None:
    """Fails with Prefect's own SQLite transactions (503); see deployments/prefect_server.py."""
    create = f"/deployments/{deployment(system, 'verify-session')['id']}/create_flow_run"
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    state = {"type": "SCHEDULED", "name": "AwaitingFiles", "state_details": {"scheduled_time": later}}

    async def burst() -> list[httpx.Response]:
        user, _, password = read_secret(system.settings).partition(":")
        login = httpx.BasicAuth(user, password)
        async with httpx.AsyncClient(base_url=system.addresses.prefect_api, auth=login, timeout=60) as client:
            bodies = [{"parameters": {"session_id": f"many-{uuid.uuid4().hex[:8]}"}, "state": state} for _ in range(50)]
            answers = await asyncio.gather(*(client.post(create, json=body) for body in bodies))
            for answer in answers:
                if answer.is_success:
                    await client.delete(f"/flow_runs/{answer.json()['id']}")
            return answers

    assert [answer.status_code for answer in asyncio.run(burst())] == [201] * 50


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_explains_itself_in_the_ui(name: str, system: System) -> None:
    found = deployment(system, name)
    assert found["work_pool_name"] == DEPLOYMENTS[name]
    assert len(str(found["description"])) > 40
    assert "kycflow" in found["tags"]  # type: ignore[operator]
    assert found["version"] == "0.1.0"


def test_every_parameter_of_the_form_has_a_title_and_a_description(system: System) -> None:
    for name in ("verify-session", "evaluate-faces"):
        schema = deployment(system, name)["parameter_openapi_schema"]
        assert isinstance(schema, dict)
        for parameter in schema["properties"].values():
            assert parameter.get("title"), (name, parameter)
            assert parameter.get("description"), (name, parameter)


@pytest.mark.parametrize("parameters", [{"session_id": "../etc"}, {"session_id": "a", "attempt": 0}, {}])
def test_the_form_refuses_what_the_flow_would(parameters: dict[str, object], system: System) -> None:
    create = f"/deployments/{deployment(system, 'verify-session')['id']}/create_flow_run"
    with system.prefect_http() as prefect:
        assert prefect.post(create, json={"parameters": parameters}).status_code == 409


def test_the_sweep_has_its_schedule_and_runs_are_planned(system: System) -> None:
    schedules = deployment(system, "sweep-sessions")["schedules"]
    assert isinstance(schedules, list)
    assert [schedule["active"] for schedule in schedules] == [True]
    query = {"deployments": {"name": {"any_": ["sweep-sessions"]}}, "limit": 5}
    with system.prefect_http() as prefect:
        planned = prefect.post("/flow_runs/filter", json=query).json()
    assert planned


def test_limits_stand_at_queues_so_that_lost_runs_leave_the_sweep_its_place(system: System) -> None:
    for name, _, limit, _ in POOLS:
        with system.prefect_http() as prefect:
            pool = prefect.get(f"/work_pools/{name}").json()
            queues = prefect.post(f"/work_pools/{name}/queues/filter", json={}).json()
        assert pool["concurrency_limit"] is None
        limits = {queue["name"]: queue["concurrency_limit"] for queue in queues}
        assert limits == {"default": limit}


def test_the_form_for_a_new_pool_offers_the_resident_worker(system: System) -> None:
    with system.prefect_http() as prefect:
        types = prefect.get("/collections/views/aggregate-worker-metadata").json()
    assert "process" in types["prefect"]
    resident = types["kycflow"]["resident"]
    assert resident["display_name"] == "Resident"
    assert len(resident["description"]) > 40
    assert resident["default_base_job_configuration"]["variables"]["properties"] == {}


def written(folder: Path) -> bytes:
    """Everything Prefect has written: its database with its journal, stored results."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_prefect_stores_no_picture_embedding_or_file_content(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    verify(system, session_id, demo_media.genuine_card, demo_media.selfie_video)
    prefect = written(system.settings.state_dir / "prefect")
    logs = written(system.settings.state_dir / "logs")
    assert session_id.encode() in prefect, "The session's own run is there, so the search looks in the right place."
    for path in (demo_media.genuine_card, demo_media.selfie_video):
        content = path.read_bytes()
        for start in range(1000, len(content) - 100, len(content) // 7):
            piece = content[start : start + 48]
            for form in (piece, base64.b64encode(piece), piece.hex().encode()):
                assert form not in prefect
                assert form not in logs
    assert re.search(rb"similarity\W{1,5}-?[01]\.\d", prefect) is None, "A score is in SQL only."
    for word in (b"embedding", b"JFIF", b"\x89PNG", b"ftypisom"):
        assert word not in prefect, word
        assert word not in logs, word


def said(system: System, session_id: str) -> list[str]:
    """What the log of a session's flow run holds in the end, in order."""
    (run,) = system.session_runs(session_id)
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))

    def look() -> list[str] | None:
        logs = system.prefect(lambda client: client.read_logs(of_run, sort=LogSort.TIMESTAMP_ASC))
        messages = [log.message for log in logs]
        return messages if messages and messages[-1].startswith("Finished") else None

    return eventually(look, 60)


def test_a_run_says_what_it_did_and_prefect_does_not_repeat_that_tasks_ended(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    for name in (session_id, f"{session_id}-twin"):
        verify(system, name, demo_media.genuine_card, demo_media.selfie_video)
    size = f"{demo_media.genuine_card.stat().st_size:,} bytes"
    told = said(system, f"{session_id}-twin")
    begun, found, reused, end = [line for line in told if not line.startswith("Worker ")]
    assert found.startswith(f"ID image found, {size}; selfie video found, ")
    assert reused.startswith("reused the comparison of ")
    assert (begun[:9], end[:23]) == ("Beginning", "Finished in state Match")
