"""Runs that wait: what wakes them, what a person can do to them in the UI, and what happens at their deadline."""

import time
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import Running

from deployments.demo_media import DemoMedia
from tasks.contracts import Attempt, FileKind, Status
from tasks.database.attempts import get_attempt
from tasks.states import awaiting_files
from tasks.storage import open_storage
from tasks.storage.keys import new_file_key
from tests.acceptance.test_sessions import executions, names, start_from_ui
from tests.system import DECISION_SECONDS, System, eventually

TIMES = 100


def created(system: System, session_id: str, deadline_seconds: int = 3600) -> UUID:
    """A session without files, made through the upload API; its flow run."""
    with system.client() as client:
        client.create_session(session_id, deadline_seconds=deadline_seconds)
    (run,) = system.session_runs(session_id)
    return run.id


def in_the_ui(system: System, run_id: UUID, what: str) -> dict[str, object]:
    """What the button *Resume* or *Cancel* of the UI does; the answer."""
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}} if what == "set_state" else {}
    with system.prefect_http() as prefect:
        found: dict[str, object] = prefect.post(f"/flow_runs/{run_id}/{what}", json=body).raise_for_status().json()
    return found


def waits_again(system: System, run_id: UUID, times: int) -> None:
    """Wait until a run was executed so often and waits."""

    def look() -> bool | None:
        run = system.prefect(lambda client: client.read_flow_run(run_id))
        return (run.state_name == "AwaitingFiles" and executions(system, run_id) == times) or None

    eventually(look, 60)


def test_resuming_has_a_worker_look_and_it_waits_again_where_nothing_is_there(system: System, session_id: str) -> None:
    run = created(system, session_id)
    for times in (1, 2, 3):
        assert in_the_ui(system, run, "resume")["status"] == "ACCEPT"
        waits_again(system, run, times)
    assert get_attempt(system.database, session_id).recoveries == 0


def test_a_run_can_wait_a_hundred_times(system: System, session_id: str) -> None:
    """Prefect refuses a pause whose key was used, and ends one that has timed out."""
    now = datetime.now(UTC)
    attempt = Attempt(session_id=session_id, attempt=1, created_at=now, deadline_at=now)

    async def wait(client: PrefectClient) -> list[str]:
        deployment = await client.read_deployment_by_name("verify-session/verify-session")
        run = await client.create_flow_run_from_deployment(
            deployment.id, parameters={"session_id": session_id}, state=awaiting_files(attempt)
        )
        said = []
        for _ in range(TIMES):
            await client.set_flow_run_state(run.id, Running(), force=True)
            said.append((await client.set_flow_run_state(run.id, awaiting_files(attempt))).status.value)
        await client.delete_flow_run(run.id)
        return said

    assert system.prefect(wait) == ["ACCEPT"] * TIMES


def test_cancelling_one_that_waits_ends_it_at_once_and_its_session_within_ten_seconds(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    run = created(system, session_id)
    in_the_ui(system, run, "set_state")
    assert names(system.session_runs(session_id)) == ["Cancelled"]
    began = time.monotonic()
    eventually(lambda: get_attempt(system.database, session_id).status is Status.CANCELLED or None, 30)
    assert time.monotonic() - began < 10
    with system.client() as client:
        assert client.resume(session_id)["status"] == "awaiting_files"
        client.upload(session_id, "id_image", demo_media.genuine_card)
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
    assert system.ended_run(run).state_name == "Match"


def test_a_run_from_the_form_beside_one_that_waits_ends_and_says_so(system: System, session_id: str) -> None:
    run = created(system, session_id)
    beside = system.ended_run(start_from_ui(system, session_id=session_id).id)
    assert beside.state is not None
    assert beside.state_name == "FollowedElsewhere"
    assert "Waiting for the ID image and the selfie video until" in str(beside.state.message)
    assert system.prefect(lambda client: client.read_flow_run(run)).state_name == "AwaitingFiles"


def test_a_run_from_the_form_that_decides_has_the_sessions_own_run_show_it(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    run = created(system, session_id)
    system.record(session_id, FileKind.ID_IMAGE, demo_media.genuine_card)
    system.record(session_id, FileKind.SELFIE_VIDEO, demo_media.selfie_video)
    beside = start_from_ui(system, session_id=session_id).id
    assert [system.ended_run(one).state_name for one in (beside, run)] == ["Match", "Match"]


def test_a_session_expires_while_no_worker_with_the_engine_is_there(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    worker = system.worker("gpu")
    worker.suspend()
    try:
        run = created(system, session_id, deadline_seconds=5)
        with system.client() as client:
            client.upload(session_id, "id_image", demo_media.genuine_card)
            in_the_ui(system, run, "resume")  # it is due, and nobody takes it
            found = client.wait(session_id, 60)
        assert (found["decision"], found["reason"]) == ("expired", "SELFIE_VIDEO_MISSING")
        ended = system.prefect(lambda client: client.read_flow_run(run))
        assert (ended.state_type, ended.state_name) == ("COMPLETED", "Expired")
        key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"decision-{session_id}-1"]))
        artifacts = eventually(
            lambda: system.prefect(lambda client: client.read_artifacts(artifact_filter=key)) or None
        )
        assert [artifact.flow_run_id for artifact in artifacts] == [run]
    finally:
        worker.resume()


def test_a_file_that_lies_in_storage_at_the_deadline_is_decided_by_though_nobody_has_recorded_it(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    """The upload service was killed between storing and recording it, say."""
    created(system, session_id, deadline_seconds=5)
    with system.client() as client:
        client.upload(session_id, "id_image", demo_media.genuine_card)
        open_storage(system.settings).put(new_file_key(session_id, 1, FileKind.SELFIE_VIDEO), demo_media.selfie_video)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
