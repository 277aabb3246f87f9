"""Sessions that a person cancels, as the Prefect UI does it, takes up again, and deletes, in a running system."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling
from sqlalchemy import func, select, update

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits
from tasks.contracts import Attempt, Status
from tasks.database.attempts import get_attempt
from tasks.database.audit import trail
from tasks.database.comparisons import get_comparison
from tasks.database.engine import reading, writing
from tasks.database.tables import ComparisonRow, DecisionRow, LeaseRow
from tasks.database.types import clock
from tasks.errors import Refused
from tasks.liveness import run_lease
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.keys import picture_key
from tests.acceptance.test_sessions import executions, names, verify
from tests.system import DECISION_SECONDS, System, eventually, kycflow_up


@pytest.fixture
def system(stock_system: System) -> System:
    """One with a process for each comparison, which can be halted."""
    return stock_system


@pytest.fixture
def card(tmp_path: Path, media_settings: Settings) -> Path:
    """A genuine card that was never compared."""
    made = tmp_path / "card.jpg"
    made.write_bytes(draw_card(portraits(media_settings)[0], serial=100_000 + secrets.randbelow(900_000)))
    return made


def begin(system: System, session_id: str, card: Path, video: Path | None = None) -> None:
    """Create a session and upload its files."""
    with system.client() as client:
        client.create_session(session_id)
        client.upload(session_id, "id_image", card)
        if video is not None:
            client.upload(session_id, "selfie_video", video)


def computing(system: System, session_id: str) -> tuple[Attempt, str, UUID]:
    """The attempt, its comparison's key and its flow run, as soon as that has begun to compute."""
    deadline = time.monotonic() + DECISION_SECONDS
    while time.monotonic() < deadline:
        attempt = get_attempt(system.database, session_id)
        if attempt.comparison_key and attempt.flow_run_id and system.audit(attempt.comparison_key):
            return attempt, attempt.comparison_key, attempt.flow_run_id
        time.sleep(0.01)
    raise AssertionError("Its comparison did not begin.")


@contextmanager
def halted(system: System, run_id: UUID) -> Iterator[psutil.Process]:
    """The process of a comparison, standing still inside: what happens there, it has not done itself.

    Its signs of life last on, so that it is not taken for lost.
    """
    process = eventually(lambda: process_of(system, run_id))
    process.suspend()
    try:
        with writing(system.database) as session:
            own = (LeaseRow.name == run_lease(run_id)) | (LeaseRow.owner == str(run_id))
            session.execute(update(LeaseRow).where(own).values(expires_at=clock(DECISION_SECONDS)))
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def process_of(system: System, run_id: UUID) -> psutil.Process | None:
    """The innermost of the processes that the worker has for a comparison."""
    for process in reversed(system.worker("gpu").children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run_id) and not process.children():
                return process
    return None


def gone(process: psutil.Process) -> bool | None:
    """True when it is."""
    return None if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else True


def cancel_in_the_ui(system: System, run_id: UUID) -> None:
    system.prefect(lambda client: client.set_flow_run_state(run_id, Cancelling()))


def the_run(system: System, session_id: str) -> UUID:
    (run,) = system.session_runs(session_id)
    return run.id


def cancelled(system: System, session_id: str) -> Attempt:
    """The attempt, when it is."""

    def look() -> Attempt | None:
        attempt = get_attempt(system.database, session_id)
        return attempt if attempt.status is Status.CANCELLED else None

    return eventually(look)


def lease_expiry(system: System, key: str) -> datetime | None:
    """Of a comparison's lease; None when it is free."""
    with reading(system.database) as session:
        return session.scalars(select(LeaseRow.expires_at).where(LeaseRow.name == f"comparison:{key}")).one()


def state_type(system: System, run_id: UUID) -> StateType | None:
    return system.prefect(lambda client: client.read_flow_run(run_id)).state_type


def objects(system: System, session_id: str) -> list[Path]:
    """What storage has of a session."""
    folder = system.settings.state_dir / "storage" / "sessions" / session_id
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_deleted(system: System, session_id: str, upload: Path) -> None:
    """No reader sees it, nothing is in storage, its audit trail is there."""
    with system.client() as client:
        calls: list[Callable[[], object]] = [
            lambda: client.session(session_id),
            lambda: client.create_session(session_id),
            lambda: client.resume(session_id),
            lambda: client.upload(session_id, "id_image", upload),
        ]
        for call in calls:
            with pytest.raises(Refused) as refused:
                call()
            assert (refused.value.status, refused.value.code) == (410, "SESSION_DELETED")
        assert [line["to_status"] for line in client.audit(session_id)].count("deleted") == 1
    assert objects(system, session_id) == []
    with reading(system.database) as session:
        decisions = select(func.count()).select_from(DecisionRow).where(DecisionRow.session_id == session_id)
        assert session.scalar(decisions) == 0


def test_cancelling_a_session_ends_its_comparison_at_once_and_resuming_decides_it(
    system: System, demo_media: DemoMedia, card: Path, session_id: str
) -> None:
    begin(system, session_id, card, demo_media.selfie_video)
    _, key, run = computing(system, session_id)
    with halted(system, run) as process:
        assert lease_expiry(system, key) is not None
        cancel_in_the_ui(system, run)
        cancelled(system, session_id)
        eventually(lambda: True if lease_expiry(system, key) is None else None, 10)
    assert names([system.ended_run(run)]) == ["Cancelled"]
    assert eventually(lambda: gone(process), 10)
    assert get_comparison(system.database, key) is None
    with system.client() as client:
        assert client.session(session_id)["status"] == "cancelled"

        assert client.resume(session_id)["status"] == "in_progress"
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
    assert names([system.ended_run(run)]) == ["Match"]
    assert the_run(system, session_id) == run
    with reading(system.database) as session:
        rows = session.scalars(select(ComparisonRow).where(ComparisonRow.comparison_key == key)).all()
    assert [(row.computations, row.finished_at is not None) for row in rows] == [(2, True)]
    events = [(line.event, line.to_status) for line in trail(system.database, session_id)]
    assert [to for event, to in events if event == "status_changed"] == [
        "in_progress",
        "cancelled",
        "in_progress",
        "decided",
    ]
    assert [event for event, _ in events].count("comparison_stored") == 1


def test_cancelling_stops_a_comparison_in_a_resident_worker_and_leaves_its_neighbours_alone(
    weights: list[Path], demo_media: DemoMedia, card: Path, session_id: str, tmp_path: Path
) -> None:
    # With so many frames there is time to cancel. From one to the next a face hardly moves.
    frames = {"KYCFLOW_FRAMES": "100", "KYCFLOW_FRAMES_USED": "100", "KYCFLOW_MIN_MOTION": "0"}
    with kycflow_up(tmp_path / "system", weights[0].parent, **frames) as system:
        worker, neighbour = system.worker("gpu"), f"{session_id}-neighbour"
        begin(system, session_id, card, demo_media.selfie_video)
        begin(system, neighbour, demo_media.impostor_card, demo_media.selfie_video)
        _, key, run = computing(system, session_id)
        cancel_in_the_ui(system, run)
        cancelled(system, session_id)
        assert names([system.ended_run(run)]) == ["Cancelled"]
        assert lease_expiry(system, key) is None
        with system.client() as client:
            assert client.wait(neighbour, DECISION_SECONDS)["decision"] == "no_match"
        assert get_comparison(system.database, key) is None, "It went on, unheard."
        assert system.worker("gpu") == worker
        system.database.dispose()


def test_a_session_that_was_cancelled_while_it_waited_takes_files_and_starts_when_it_is_resumed(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    begin(system, session_id, demo_media.genuine_card)
    run = the_run(system, session_id)
    cancel_in_the_ui(system, run)
    assert names([system.ended_run(run)]) == ["Cancelled"]
    with system.client() as client:
        stored = client.upload(session_id, "selfie_video", demo_media.selfie_video)
        assert (stored["status"], stored["started"]) == ("cancelled", False)
        assert client.session(session_id)["files"]["selfie_video"]["sha256"] == stored["sha256"]
        swept = system.kycflow("sweep", "--json")
        assert (swept.returncode, session_id in swept.stdout) == (0, False), swept.stderr
        assert names(system.session_runs(session_id)) == ["Cancelled"]

        resumed = system.kycflow("resume", session_id)
        assert (resumed.returncode, "in progress" in resumed.stdout) == (0, True), resumed.stderr
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
    assert the_run(system, session_id) == run


def test_a_run_that_waits_after_it_had_a_process_can_be_cancelled_and_resumed(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    begin(system, session_id, demo_media.genuine_card)
    run = the_run(system, session_id)
    with system.client() as client:
        client.resume(session_id)  # it looks again now, for which it needs a process

        def waits_again() -> bool | None:
            found = system.prefect(lambda prefect: prefect.read_flow_run(run))
            return True if executions(system, run) == 1 and names([found]) == ["AwaitingFiles"] else None

        eventually(waits_again)
        cancel_in_the_ui(system, run)
        cancelled(system, session_id)
        assert client.resume(session_id)["status"] == "awaiting_files"
        client.upload(session_id, "selfie_video", demo_media.selfie_video)
        assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"


def test_deleting_a_session_that_waits_leaves_nothing_but_its_audit_trail(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    begin(system, session_id, demo_media.genuine_card)
    assert len(objects(system, session_id)) == 1
    with system.client() as client:
        assert client.delete(session_id) is True
        assert client.delete(session_id) is True
    assert_deleted(system, session_id, demo_media.genuine_card)
    assert system.session_runs(session_id) == []


def test_deleting_a_decided_session_removes_media_picture_and_decision(
    system: System, demo_media: DemoMedia, card: Path, session_id: str
) -> None:
    verify(system, session_id, card, demo_media.selfie_video)
    system.ended_run(the_run(system, session_id))
    decision = get_attempt(system.database, session_id).decision
    assert decision is not None
    assert decision.comparison_key is not None
    picture = picture_key(decision.comparison_key)
    storage = open_storage(system.settings)
    assert storage.size(picture)
    with system.client() as client:
        assert client.delete(session_id) is True
    assert_deleted(system, session_id, card)
    assert storage.size(picture) is None
    assert get_comparison(system.database, decision.comparison_key) is None
    assert "comparison_stored" in [line.event for line in trail(system.database, session_id)]


def test_deleting_a_session_while_its_faces_are_compared_leaves_no_score_and_no_picture(
    system: System, demo_media: DemoMedia, card: Path, session_id: str
) -> None:
    begin(system, session_id, card, demo_media.selfie_video)
    _, key, run = computing(system, session_id)
    process = process_of(system, run)
    assert process is not None
    with system.client() as client:
        eventually(lambda: client.delete(session_id) or None)
    assert eventually(lambda: gone(process), 10)
    assert_deleted(system, session_id, card)
    assert open_storage(system.settings).size(picture_key(key)) is None
    with reading(system.database) as session:
        assert session.get(ComparisonRow, key) is None
