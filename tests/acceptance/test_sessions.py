"""Sessions through the upload API of a running system, as an app's back end would send them."""

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.settings import temporary_settings
from prefect.states import Scheduled
from sqlalchemy import func, select

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits
from tasks.contracts import Comparison, FileKind
from tasks.database.attempts import get_attempt, open_attempt
from tasks.database.comparisons import get_comparison
from tasks.database.engine import reading
from tasks.database.tables import ComparisonRow, DecisionRow
from tasks.dispatch import start_or_wake
from tasks.errors import Refused
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.keys import new_file_key
from tests.system import DECISION_SECONDS, System, eventually

BURST = 20


def verify(system: System, session_id: str, card: Path, video: Path) -> dict[str, object]:
    """One session from its creation to its decision."""
    with system.client() as client:
        client.create_session(session_id)
        client.upload(session_id, "id_image", card)
        client.upload(session_id, "selfie_video", video)
        return client.wait(session_id, DECISION_SECONDS)


def names(runs: list[FlowRun]) -> list[str | None]:
    return [run.state.name for run in runs if run.state is not None]


def the_comparison(system: System, session_id: str) -> Comparison:
    """The row behind a session's decision."""
    decision = get_attempt(system.database, session_id).decision
    assert decision is not None
    assert decision.comparison_key is not None
    comparison = get_comparison(system.database, decision.comparison_key)
    assert comparison is not None
    return comparison


def make_cards(folder: Path, settings: Settings, count: int) -> list[Path]:
    """That many different cards of the man in the selfie video."""
    portrait, _ = portraits(settings)
    cards = [folder / f"card-{serial}.jpg" for serial in range(count)]
    for serial, card in enumerate(cards):
        card.write_bytes(draw_card(portrait, serial=serial + 1000))
    return cards


def test_twenty_sessions_at_once_are_decided_rightly_and_compared_once_each(
    system: System, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path
) -> None:
    cards = make_cards(tmp_path, media_settings, BURST)
    began = datetime.now(UTC)
    ids = [f"burst-{uuid.uuid4().hex[:8]}" for _ in cards]
    with ThreadPoolExecutor(BURST) as pool:
        sessions = list(
            pool.map(lambda one: verify(system, one[0], one[1], demo_media.selfie_video), zip(ids, cards, strict=True))
        )

    assert [session["decision"] for session in sessions] == ["match"] * BURST
    decisions = [get_attempt(system.database, one).decision for one in ids]
    keys = {decision.comparison_key for decision in decisions if decision is not None}
    assert len(keys) == BURST
    with reading(system.database) as session:
        rows = session.scalars(select(ComparisonRow).where(ComparisonRow.comparison_key.in_(keys))).all()
        decided = session.scalar(select(func.count()).select_from(DecisionRow).where(DecisionRow.session_id.in_(ids)))
    assert [row.computations for row in rows] == [1] * BURST
    assert decided == BURST
    runs = [run for one in ids for run in system.session_runs(one)]
    assert len(runs) == BURST
    everything = system.runs_since(began)
    assert len(everything) >= BURST
    assert not {"Crashed", "Failed"} & set(names(everything))


def test_fifty_sessions_with_the_same_media_at_once_compute_once(
    system: System, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path, session_id: str
) -> None:
    """Fifty triggers of one session are in test_duplicates.py."""
    (card,) = make_cards(tmp_path, media_settings, 1)
    ids = [f"{session_id}-{number}" for number in range(50)]
    for one in ids:
        open_attempt(system.database, one, 1, 3600)
        system.record(one, FileKind.ID_IMAGE, card)
        system.record(one, FileKind.SELFIE_VIDEO, demo_media.selfie_video)

    async def start() -> None:
        attempts = [get_attempt(system.database, one) for one in ids]
        await asyncio.gather(*(start_or_wake(attempt) for attempt in attempts))

    with temporary_settings(system.prefect_settings):
        asyncio.run(start())
    with system.client() as client:
        assert [client.wait(one, DECISION_SECONDS)["decision"] for one in ids] == ["match"] * 50
    assert {the_comparison(system, one).computations for one in ids} == {1}
    assert len({the_comparison(system, one).comparison_key for one in ids}) == 1


@pytest.mark.parametrize(
    ("card", "decision", "reason", "state"),
    [
        ("genuine_card", "match", "SIMILARITY_SUFFICIENT", "Match"),
        ("impostor_card", "no_match", "SIMILARITY_INSUFFICIENT", "NoMatch"),
        ("faceless_card", "rejected", "NO_FACE_IN_ID_IMAGE", "Rejected"),
    ],
)
def test_the_flow_run_ends_in_a_state_named_after_the_decision_with_an_artifact(
    card: str, decision: str, reason: str, state: str, system: System, demo_media: DemoMedia, session_id: str
) -> None:
    session = verify(system, session_id, getattr(demo_media, card), demo_media.selfie_video)
    assert (session["decision"], session["reason"]) == (decision, reason)
    (run,) = system.session_runs(session_id)
    run = system.ended_run(run.id)
    assert run.state is not None
    assert (run.name, run.state.name, run.state.type.value) == (f"{session_id} attempt 1", state, "COMPLETED")

    key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"decision-{session_id}-1"]))
    (artifact,) = system.prefect(lambda client: client.read_artifacts(artifact_filter=key))
    for word in (state, reason, "SFace with yunet", session_id):
        assert word in str(artifact.data)


def test_a_session_of_the_upload_service_waits_without_ever_having_had_a_process(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with system.client() as client:
        client.create_session(session_id)
        (run,) = system.session_runs(session_id)
        assert (names([run]), run.start_time) == (["AwaitingFiles"], None)
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        (run,) = system.session_runs(session_id)
        assert (names([run]), run.start_time, run.next_scheduled_start_time) == (["AwaitingFiles"], None, None)
        client.upload(session_id, "id_image", demo_media.genuine_card)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
    (run,) = system.session_runs(session_id)
    assert executions(system, run.id) == 1


def executions(system: System, run_id: UUID) -> int:
    """How often a flow run was executed. Prefect's own count leaves out those after a waiting."""
    states = system.prefect(lambda client: client.read_flow_run_states(run_id))
    return [state.type.value for state in states].count("RUNNING")


def test_a_waiting_session_is_woken_by_the_upload_it_waits_for(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    open_attempt(system.database, session_id, 1, 3600, by="another system")
    run = start_from_ui(system, session_id=session_id)
    system.record(session_id, FileKind.ID_IMAGE, demo_media.genuine_card)
    # It has waited in earnest: an execution of its own has ended in that state.
    eventually(lambda: True if names(system.session_runs(session_id)) == ["AwaitingFiles"] else None)
    assert executions(system, run.id) == 1
    with system.client() as client:
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
    assert len(system.session_runs(session_id)) == 1
    log = (system.settings.state_dir / "logs" / "worker-gpu.log").read_text()
    waited = [line for line in log.splitlines() if session_id in line and "AwaitingFiles" in line]
    assert waited
    assert not any("ERROR" in line for line in waited), "Waiting is ordinary."


def test_a_session_whose_video_never_comes_expires(system: System, demo_media: DemoMedia, session_id: str) -> None:
    with system.client() as client:
        client.create_session(session_id, deadline_seconds=5)
        client.upload(session_id, "id_image", demo_media.genuine_card)
        session = client.wait(session_id, DECISION_SECONDS)
        assert (session["decision"], session["reason"]) == ("expired", "SELFIE_VIDEO_MISSING")
        with pytest.raises(Refused) as refused:
            client.upload(session_id, "selfie_video", demo_media.selfie_video)
    assert refused.value.code == "SESSION_DECIDED"


def test_the_latest_complete_pair_counts_and_a_further_attempt_is_its_own(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with system.client() as client:
        client.create_session(session_id)
        client.upload(session_id, "id_image", demo_media.genuine_card)
        client.upload(session_id, "id_image", demo_media.impostor_card)
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "no_match"
        assert client.next_attempt(session_id)["attempt"] == 2
        client.upload(session_id, "id_image", demo_media.genuine_card)
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        session = client.wait(session_id, DECISION_SECONDS)
    assert (session["attempt"], session["decision"]) == (2, "match")
    first, second = (get_attempt(system.database, session_id, number).decision for number in (1, 2))
    assert first is not None
    assert second is not None
    assert (first.decision.value, second.decision.value) == ("no_match", "match")


def test_a_refused_file_loses_nothing(system: System, demo_media: DemoMedia, session_id: str) -> None:
    with system.client() as client:
        client.create_session(session_id)
        client.upload(session_id, "id_image", demo_media.genuine_card)
        with pytest.raises(Refused) as refused:
            client.upload(session_id, "selfie_video", demo_media.not_a_video)
        assert (refused.value.status, refused.value.code) == (415, "NOT_A_VIDEO")
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"


def start_from_ui(system: System, **parameters: object) -> FlowRun:
    """What the form of the deployment `verify-session` in the Prefect UI does."""

    async def custom_run(client: PrefectClient) -> FlowRun:
        deployment = await client.read_deployment_by_name("verify-session/verify-session")
        return await client.create_flow_run_from_deployment(deployment.id, parameters=dict(parameters))

    return system.prefect(custom_run)


def test_files_that_another_system_put_into_storage_are_found(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    storage = open_storage(system.settings)
    storage.put(new_file_key(session_id, 1, FileKind.ID_IMAGE), demo_media.genuine_card)
    storage.put(new_file_key(session_id, 1, FileKind.SELFIE_VIDEO), demo_media.selfie_video)
    run = system.ended_run(start_from_ui(system, session_id=session_id).id)
    assert (run.name, names([run])) == (f"{session_id} attempt 1", ["Match"])


def test_a_file_that_another_system_replaces_while_the_session_waits_does_not_count(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    storage = open_storage(system.settings)
    storage.put(new_file_key(session_id, 1, FileKind.ID_IMAGE), demo_media.impostor_card)
    run = start_from_ui(system, session_id=session_id)
    eventually(lambda: True if names(system.session_runs(session_id)) == ["AwaitingFiles"] else None)
    storage.put(new_file_key(session_id, 1, FileKind.ID_IMAGE), demo_media.genuine_card)
    storage.put(new_file_key(session_id, 1, FileKind.SELFIE_VIDEO), demo_media.selfie_video)
    assert names([system.ended_run(run.id)]) == ["Match"]


def test_damaged_files_that_another_system_put_into_storage_are_rejected_for_their_reason(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    storage = open_storage(system.settings)
    storage.put(new_file_key(session_id, 1, FileKind.ID_IMAGE), demo_media.genuine_card)
    storage.put(new_file_key(session_id, 1, FileKind.SELFIE_VIDEO), demo_media.not_a_video)
    run = system.ended_run(start_from_ui(system, session_id=session_id).id)
    assert names([run]) == ["Rejected"]
    assert get_attempt(system.database, session_id).decision.reason.value == "VIDEO_UNREADABLE"  # type: ignore[union-attr]


def test_a_session_started_from_the_ui_without_files_expires_at_its_deadline(system: System, session_id: str) -> None:
    run = system.ended_run(start_from_ui(system, session_id=session_id, deadline_seconds=5).id)
    assert names([run]) == ["Expired"]
    assert run.state is not None
    assert str(run.state.message).startswith("BOTH_FILES_MISSING. ")
    assert "decision:expired" in run.tags
    assert executions(system, run.id) == 1, "The sweep has expired it."


def test_a_decided_session_run_again_gives_the_decision_that_is_there(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    verify(system, session_id, demo_media.genuine_card, demo_media.selfie_video)
    (run,) = system.session_runs(session_id)
    before = get_attempt(system.database, session_id).decision
    system.ended_run(run.id)

    async def retry(client: PrefectClient) -> object:
        return await client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)

    system.prefect(retry)
    eventually(lambda: True if names(system.session_runs(session_id)) == ["Match"] else None)
    assert get_attempt(system.database, session_id).decision == before
