"""Flow runs that were spent, lost, or about to be missed: what starts them, and what does not."""

import asyncio
import gc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Pause
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)
from prefect.states import Failed, Scheduled

import tasks.dispatch
import tasks.waiting
from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits
from flows.verify_session import verify_session
from tasks.contracts import Attempt, FileKind, comparison_key
from tasks.database.attempts import open_attempt
from tasks.dispatch import start_comparison, start_or_wake
from tasks.errors import ConfigurationError
from tasks.faces.models import engine_config
from tasks.files import find_files
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.keys import new_file_key
from tests.system import DECISION_SECONDS, System, eventually

# Prefect's engine leaves sockets to the process' end, which here comes much later: they are collected in their test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def opened(system: System, session_id: str) -> Attempt:
    """A session that nobody told Prefect of."""
    return open_attempt(system.database, session_id, 1, 3600)[0]


def decision(system: System, session_id: str) -> object:
    with system.client() as client:
        return client.wait(session_id, DECISION_SECONDS)["decision"]


@pytest.fixture
def inside(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as one of the system's own."""
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(system.settings.state_dir))
    with temporary_settings(
        {
            PREFECT_API_URL: system.addresses.prefect_api,
            PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results",
            # Some tests call tasks outside a flow run.
            PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
        }
    ):
        yield
        gc.collect()


def test_a_session_whose_run_failed_goes_on_with_the_next_upload(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with system.client() as client:
        client.create_session(session_id)
        client.upload(session_id, "id_image", demo_media.genuine_card)
        (run,) = system.session_runs(session_id)
        system.prefect(lambda prefect: prefect.set_flow_run_state(run.id, Failed(), force=True))
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
    assert decision(system, session_id) == "match"
    assert [run.id] == [one.id for one in system.session_runs(session_id)]


def test_a_comparison_whose_runs_are_spent_is_dispatched_anew(
    stock_system: System,
    demo_media: DemoMedia,
    media_settings: Settings,
    session_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = stock_system
    for name in ("KYCFLOW_STATE_DIR", "KYCFLOW_DATABASE_URL"):
        monkeypatch.setenv(name, system.environment[name])
    opened(system, session_id)
    card = tmp_path / "card.jpg"
    card.write_bytes(draw_card(portraits(media_settings)[0], serial=4711))
    reference = system.record(session_id, FileKind.ID_IMAGE, card)
    probe = system.record(session_id, FileKind.SELFIE_VIDEO, demo_media.selfie_video)
    engine = engine_config(Settings())
    key = comparison_key(reference.sha256, probe.sha256, engine)

    async def spend(client: PrefectClient) -> None:
        deployment = await client.read_deployment_by_name("compare-faces/compare-faces")
        for dispatch in (1, 2, 3):
            run = await client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"reference": reference.model_dump(), "probe": probe.model_dump()},
                idempotency_key=f"{key}:{dispatch}",
                state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1)),
            )
            await client.set_flow_run_state(run.id, Failed(), force=True)

    system.prefect(spend)
    attempt = open_attempt(system.database, session_id, 1, 3600)[0]
    with temporary_settings({PREFECT_API_URL: system.addresses.prefect_api}):
        asyncio.run(start_or_wake(attempt))
        assert decision(system, session_id) == "match"
        fourth = asyncio.run(start_comparison(key, 4, reference, probe, engine))
    assert fourth.state is not None
    assert fourth.state.is_completed()


def test_an_upload_between_the_last_look_and_the_waiting_state_wakes_the_run(
    system: System, demo_media: DemoMedia, session_id: str, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not one of the upload service's, which are looked at again at their deadline only.
    open_attempt(system.database, session_id, 1, 3600, by="another system")
    system.record(session_id, FileKind.ID_IMAGE, demo_media.genuine_card)
    next_look = tasks.waiting.next_look

    def upload_comes_now(*arguments: object) -> datetime:
        system.record(session_id, FileKind.SELFIE_VIDEO, demo_media.selfie_video)
        return next_look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks.waiting, "next_look", upload_comes_now)
    with pytest.raises(Pause) as paused:
        asyncio.run(verify_session(session_id))
    assert paused.value.state is not None
    assert paused.value.state.name == "Scheduled"
    (run,) = system.session_runs(session_id)
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Scheduled", "Both files are there")


def test_a_recorded_file_that_is_gone_from_storage_fails_loudly_and_heals_by_sending_it_again(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    opened(system, session_id)
    stored = system.record(session_id, FileKind.ID_IMAGE, demo_media.genuine_card)
    (system.settings.state_dir / "storage" / stored.storage_key).unlink()
    with system.client() as client:
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        (run,) = eventually(lambda: [r for r in system.session_runs(session_id) if r.state_name == "Failed"] or None)
        assert run.state is not None
        assert "gone from storage" in str(run.state.message)
        client.upload(session_id, "id_image", demo_media.genuine_card)
    assert decision(system, session_id) == "match"


@pytest.mark.parametrize("size", [0, 2_000_000])
def test_a_file_of_another_system_with_a_size_that_is_not_accepted_counts_as_missing(
    size: int, system: System, session_id: str, tmp_path: Path, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYCFLOW_MAX_ID_IMAGE_BYTES", "1000000")
    opened(system, session_id)
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    open_storage(system.settings).put(new_file_key(session_id, 1, FileKind.ID_IMAGE), file)
    assert asyncio.run(find_files(session_id, 1)).id_image is None


def test_a_deployment_that_was_made_anew_is_found_by_all_who_remember_the_old_one(
    system: System, session_id: str, inside: None
) -> None:
    attempts = [opened(system, f"{session_id}-{number}") for number in range(9)]
    asyncio.run(start_or_wake(attempts[0]))
    (address,) = [one for one in tasks.dispatch._deployment_ids if one.startswith(system.addresses.prefect_api)]
    tasks.dispatch._deployment_ids[address] = uuid4()

    async def start() -> list[FlowRun]:
        return await asyncio.gather(*(start_or_wake(attempt) for attempt in attempts))

    assert len({run.id for run in asyncio.run(start())}) == 9


def test_without_an_address_no_server_of_its_own_is_started(session_id: str) -> None:
    now = datetime.now(UTC)
    attempt = Attempt(session_id=session_id, attempt=1, created_at=now, deadline_at=now)
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigurationError, match="PREFECT_API_URL"):
        asyncio.run(start_or_wake(attempt))
