"""Flow runs that were spent, lost, or about to be missed: what starts them, and what does not."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)
from prefect.states import Failed, Pending, Running

import tasks.dispatch
import tasks.waiting
from deployments.demo_media import DemoMedia
from flows.verify_session import verify_session
from tasks.contracts import Attempt, FileKind, FilePair
from tasks.database.attempts import open_attempt
from tasks.dispatch import prefect_api, start_or_wake
from tasks.errors import ConfigurationError
from tasks.files import find_files
from tasks.states import awaiting_files
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
            **system.prefect_settings,
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


def test_an_upload_between_the_last_look_and_the_waiting_state_wakes_the_run(
    system: System, demo_media: DemoMedia, session_id: str, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = waiting_run(system, session_id, demo_media)

    def upload_comes_now(attempt: Attempt) -> State[Any]:
        system.record(session_id, FileKind.SELFIE_VIDEO, demo_media.selfie_video)
        return awaiting_files(attempt)

    monkeypatch.setattr(tasks.waiting, "awaiting_files", upload_comes_now)
    execute_here(system, run)
    states = system.prefect(lambda client: client.read_flow_run_states(run))
    said = [(state.name, str(state.message)[:20]) for state in states]
    waited = said.index(("AwaitingFiles", "Waiting for the self"), 1)  # the first was that of its creation
    assert said[waited + 1] == ("Scheduled", "Both files are there"), said


def test_an_execution_that_was_overtaken_leaves_the_others_state_alone(
    system: System, demo_media: DemoMedia, session_id: str, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for lost, and the run is executed elsewhere. Without the look at its state it would pause that."""
    run = waiting_run(system, session_id, demo_media)
    find = sys.modules["flows.verify_session"].find_files

    async def taken_for_lost(*of: Any) -> FilePair:
        async with prefect_api() as client:
            await client.set_flow_run_state(run, Running(message="elsewhere"), force=True)
        found: FilePair = await find(*of)
        return found

    monkeypatch.setattr(sys.modules["flows.verify_session"], "find_files", taken_for_lost)
    execute_here(system, run)
    state = system.prefect(lambda client: client.read_flow_run(run)).state
    assert state is not None
    assert (state.name, state.message) == ("Running", "elsewhere")


def waiting_run(system: System, session_id: str, media: DemoMedia) -> UUID:
    """The flow run of a session whose video is missing."""
    attempt = opened(system, session_id)
    system.record(session_id, FileKind.ID_IMAGE, media.genuine_card)
    return asyncio.run(start_or_wake(attempt)).id


def execute_here(system: System, run_id: UUID) -> None:
    """Execute a flow run in this process, as a worker would."""

    async def begin(client: PrefectClient) -> FlowRun:
        await client.set_flow_run_state(run_id, Pending(), force=True)
        return await client.read_flow_run(run_id)

    run = system.prefect(begin)
    flow: Flow[..., Any] = verify_session
    with pytest.raises(Pause):
        asyncio.run(run_flow_async(flow, flow_run=run, parameters=run.parameters))


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
