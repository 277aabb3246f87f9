"""The purge on a running system: what is past its age goes from storage, SQL and Prefect, and nothing else does."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from sqlalchemy import select, update

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits
from flows.purge_sessions import purge_sessions
from tasks.contracts import Attempt
from tasks.database.attempts import get_attempt
from tasks.database.comparisons import get_comparison
from tasks.database.engine import reading, writing
from tasks.database.tables import AttemptRow, AuditRow
from tasks.database.types import clock
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.keys import picture_key
from tests.acceptance.test_sessions import verify
from tests.system import System

# Prefect's engine leaves sockets to the process' end, which here comes much later: they are collected in their test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def inside(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as one of the system's own."""
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(system.settings.state_dir))
    with temporary_settings(system.prefect_settings | {PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield
        gc.collect()


def verified(system: System, session_id: str, card: Path, video: Path) -> Attempt:
    """A session once its flow run has ended."""
    assert verify(system, session_id, card, video)["decision"] == "match"
    (run,) = system.session_runs(session_id)
    system.ended_run(run.id)
    return get_attempt(system.database, session_id)


def free_box(text: str) -> bytes:
    """A part of an MP4 file that readers pass over (ISO/IEC 14496-12, 8.1.2)."""
    return (8 + len(text)).to_bytes(4, "big") + b"free" + text.encode()


def key_of(attempt: Attempt) -> str:
    assert attempt.decision is not None
    assert attempt.decision.comparison_key is not None
    return attempt.decision.comparison_key


def objects(system: System, prefix: str) -> list[str]:
    return [stored.key for stored in open_storage(system.settings).listing(prefix)]


def artifacts(system: System, key: str) -> int:
    of_key = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    return len(system.prefect(lambda client: client.read_artifacts(artifact_filter=of_key)))


def test_media_crops_and_scores_past_their_age_go_and_decision_and_audit_stay(
    system: System, demo_media: DemoMedia, media_settings: Settings, session_id: str, tmp_path: Path, inside: None
) -> None:
    # A video of its own: another test's session that is in progress with the same one would need the comparison.
    video = tmp_path / "selfie.mp4"
    video.write_bytes(demo_media.selfie_video.read_bytes() + free_box(session_id))
    cards = [tmp_path / f"{number}.jpg" for number in range(2)]
    for number, card in enumerate(cards):
        card.write_bytes(draw_card(portraits(media_settings)[0], serial=9000 + number))
    alone, old, young = f"{session_id}-alone", f"{session_id}-old", f"{session_id}-young"
    before = {
        name: verified(system, name, card, video)
        for name, card in ((alone, cards[0]), (old, cards[1]), (young, cards[1]))
    }
    assert key_of(before[old]) == key_of(before[young])
    with writing(system.database) as session:
        past = update(AttemptRow).where(AttemptRow.session_id.in_([alone, old]))
        session.execute(past.values(closed_at=clock(-31 * 86_400)))

    reports = artifacts(system, "purge-report")
    purged = asyncio.run(purge_sessions())
    assert (purged.erased.attempts, purged.left) == (2, 0)
    assert artifacts(system, "purge-report") == reports + 1

    for name in (alone, old):
        assert objects(system, f"sessions/{name}/") == []
        assert system.session_runs(name) == []
        assert artifacts(system, f"decision-{name}-1") == 0
        after, earlier = get_attempt(system.database, name).decision, before[name].decision
        assert after is not None
        assert earlier is not None
        assert after == earlier.model_copy(update={"similarity": None, "detail": None})
        with reading(system.database) as session:
            trail = session.scalars(select(AuditRow.event).where(AuditRow.session_id == name)).all()
        assert (trail[0], trail[-1]) == ("attempt_opened", "media_erased")
        with system.client() as client:
            assert client.session(name)["decision"] == "match"

    assert get_comparison(system.database, key_of(before[alone])) is None
    assert objects(system, f"comparisons/{key_of(before[alone])}/") == []
    run_id = before[alone].flow_run_id
    assert run_id is not None
    assert run_id not in {run.id for run in system.prefect(lambda client: client.read_flow_runs(limit=200))}

    assert get_attempt(system.database, young) == before[young]
    assert get_comparison(system.database, key_of(before[young])) is not None
    assert objects(system, f"comparisons/{key_of(before[young])}/") == [picture_key(key_of(before[young]))]
    assert len(objects(system, f"sessions/{young}/")) == 2
    assert len(system.session_runs(young)) == artifacts(system, f"decision-{young}-1") == 1
