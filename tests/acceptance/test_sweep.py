"""What the sweep finds and mends, on a running system whose own sweep looks too: uploads are too fresh for that one."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Failed, Scheduled
from sqlalchemy import update

import tasks.sweep
from deployments.demo_media import DemoMedia
from tasks.contracts import Attempt, FileKind, Status
from tasks.database.attempts import get_attempt, note_comparison, note_run, open_attempt
from tasks.database.engine import writing
from tasks.database.tables import AttemptRow
from tasks.dispatch import awaiting_comparison
from tasks.recovery import UNAVAILABLE, Action
from tasks.sweep import Finding, look, mend
from tests.acceptance.test_sessions import verify
from tests.system import System, eventually

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _inside(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as one of the system's own, whose sweep takes every upload for settled."""
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(system.settings.state_dir))
    monkeypatch.setattr(tasks.sweep, "SETTLED_SECONDS", 0)
    with temporary_settings({PREFECT_API_URL: system.addresses.prefect_api}):
        yield
        gc.collect()


def with_files(system: System, session_id: str, media: DemoMedia) -> Attempt:
    """A session with both files that nobody told Prefect of."""
    open_attempt(system.database, session_id, 1, 3600)
    system.record(session_id, FileKind.ID_IMAGE, media.genuine_card)
    system.record(session_id, FileKind.SELFIE_VIDEO, media.selfie_video)
    return get_attempt(system.database, session_id)


def with_run(system: System, session_id: str, state: State[Any]) -> UUID:
    """A flow run of that session in that state, which no worker has ever had."""

    async def make(client: PrefectClient) -> UUID:
        deployment = await client.read_deployment_by_name("verify-session/verify-session")
        later: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
        run = await client.create_flow_run_from_deployment(
            deployment.id, parameters={"session_id": session_id}, idempotency_key=f"{session_id}:1", state=later
        )
        await client.set_flow_run_state(run.id, state, force=True)
        return run.id

    run_id = system.prefect(make)
    note_run(system.database, session_id, 1, run_id, by="test")
    return run_id


def about(session_id: str) -> list[Finding]:
    """What one look finds about a session."""
    return [one for one in asyncio.run(look()) if one.attempt is not None and one.attempt.session_id == session_id]


def mended(session_id: str) -> list[Action]:
    """What one look finds about a session, and does."""

    async def do(findings: list[Finding]) -> None:
        for finding in findings:
            await mend(finding)

    findings = about(session_id)
    asyncio.run(do(findings))
    return [finding.action for finding in findings]


def decided(system: System, session_id: str) -> str:
    decision = eventually(lambda: get_attempt(system.database, session_id).decision)
    return decision.decision.value


def test_a_session_that_nobody_told_prefect_of_is_started(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    assert mended(session_id) == [Action.START]
    assert decided(system, session_id) == "match"


def test_a_look_alone_changes_nothing(system: System, demo_media: DemoMedia, session_id: str) -> None:
    with_files(system, session_id, demo_media)
    assert [one.action for one in about(session_id)] == [Action.START]
    assert [one.action for one in about(session_id)] == [Action.START]
    assert system.session_runs(session_id) == []


@pytest.mark.parametrize("state", [Crashed, lambda: Failed(name=UNAVAILABLE)])
def test_a_run_that_ended_by_a_fault_that_may_pass_is_executed_again(
    state: Callable[[], State[Any]], system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    run_id = with_run(system, session_id, state())
    assert mended(session_id) == [Action.RECOVER]
    assert decided(system, session_id) == "match"
    assert get_attempt(system.database, session_id).recoveries == 1
    assert system.ended_run(run_id).state_name == "Match"


def test_two_sweeps_at_once_start_a_run_again_once(system: System, demo_media: DemoMedia, session_id: str) -> None:
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Crashed())
    findings = about(session_id) * 2

    async def both() -> None:
        await asyncio.gather(*(mend(finding) for finding in findings))

    asyncio.run(both())
    assert get_attempt(system.database, session_id).recoveries == 1
    assert decided(system, session_id) == "match"


def test_a_run_that_failed_for_good_gives_the_session_up_loudly_and_an_upload_takes_it_up_again(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Failed(message="a bug"))
    assert mended(session_id) == [Action.GIVE_UP]
    assert get_attempt(system.database, session_id).status is Status.ERROR
    key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"error-{session_id}-1"]))
    (artifact,) = system.prefect(lambda client: client.read_artifacts(artifact_filter=key))
    assert "Failed" in str(artifact.data)
    with system.client() as client:
        assert client.session(session_id)["status"] == "error"
        client.upload(session_id, "id_image", demo_media.genuine_card)
    assert decided(system, session_id) == "match"


def test_a_run_that_was_started_again_too_often_is_given_up(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Crashed())
    with writing(system.database) as session:
        session.execute(update(AttemptRow).where(AttemptRow.session_id == session_id).values(recoveries=5))
    assert mended(session_id) == [Action.GIVE_UP]
    assert get_attempt(system.database, session_id).status is Status.ERROR


def test_a_session_beyond_its_deadline_without_a_run_expires(system: System, session_id: str) -> None:
    open_attempt(system.database, session_id, 1, -1)
    mended(session_id)  # the system's own sweep may be faster
    assert decided(system, session_id) == "expired"


def test_a_run_that_waits_for_a_stored_comparison_is_woken(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    """The comparison's run ended badly after its row was stored, say."""
    verify(system, f"{session_id}-first", demo_media.genuine_card, demo_media.selfie_video)
    first = get_attempt(system.database, f"{session_id}-first").decision
    assert first is not None
    assert first.comparison_key is not None
    with_files(system, session_id, demo_media)
    note_comparison(system.database, session_id, 1, first.comparison_key, None)
    with_run(system, session_id, awaiting_comparison(datetime.now(UTC) + timedelta(hours=1), first.comparison_key))
    assert mended(session_id) == [Action.WAKE]
    assert decided(system, session_id) == "match"


def test_a_run_that_a_person_cancelled_while_it_waited_cancels_the_session(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    # Not due: a worker would take it up before the person is there.
    later = datetime.now(UTC) + timedelta(hours=1)
    run_id = with_run(system, session_id, Scheduled(name="AwaitingFiles", scheduled_time=later))
    ui: Callable[[PrefectClient], Awaitable[object]] = lambda client: client.set_flow_run_state(  # noqa: E731
        run_id, State(type="CANCELLED", name="Cancelled"), force=True
    )
    system.prefect(ui)
    assert mended(session_id) == [Action.CANCEL]
    assert get_attempt(system.database, session_id).status is Status.CANCELLED
