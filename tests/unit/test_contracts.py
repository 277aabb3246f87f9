"""Keys, identifiers and derived values of the contracts."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.contracts import (
    Attempt,
    EngineConfig,
    FilePair,
    Reason,
    SessionId,
    StoredFile,
    comparison_key,
)

FILE = StoredFile(storage_key="sessions/a/1/id_image/x", sha256="0" * 64, size_bytes=1)


@pytest.mark.parametrize("bad", ["", "-a", "A", "a/b", "../a", "a b", "ä", "a" * 65, "a\n", "a\x00"])
def test_a_session_id_that_could_be_a_path_or_a_surprise_is_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SessionId).validate_python(bad)


@pytest.mark.parametrize("good", ["a", "7f9c24e8-3b1d", "0_1", "a" * 64])
def test_ordinary_session_ids_are_taken(good: str) -> None:
    assert TypeAdapter(SessionId).validate_python(good) == good


def test_the_comparison_key_depends_on_both_files_their_roles_and_the_engine() -> None:
    engine = EngineConfig(weights_sha256={"a": "1" * 64})
    keys = {
        comparison_key("a" * 64, "b" * 64, engine),
        comparison_key("b" * 64, "a" * 64, engine),
        comparison_key("a" * 64, "c" * 64, engine),
        comparison_key("a" * 64, "b" * 64, engine.model_copy(update={"frames": 11})),
        comparison_key("a" * 64, "b" * 64, EngineConfig(weights_sha256={"a": "2" * 64})),
    }
    assert len(keys) == 5


def test_the_fingerprint_does_not_depend_on_the_order_of_weights() -> None:
    one = EngineConfig(weights_sha256={"a": "1" * 64, "b": "2" * 64})
    other = EngineConfig(weights_sha256={"b": "2" * 64, "a": "1" * 64})
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("pair", "missing"),
    [
        (FilePair(), Reason.BOTH_FILES_MISSING),
        (FilePair(selfie_video=FILE), Reason.ID_IMAGE_MISSING),
        (FilePair(id_image=FILE), Reason.SELFIE_VIDEO_MISSING),
        (FilePair(id_image=FILE, selfie_video=FILE), None),
    ],
)
def test_what_is_missing_has_its_own_reason(pair: FilePair, missing: Reason | None) -> None:
    assert pair.missing() == missing
    assert pair.complete is (missing is None)


def test_an_attempt_is_overdue_from_its_deadline_on() -> None:
    now = datetime.now(UTC)
    attempt = Attempt(session_id="a", attempt=1, created_at=now, deadline_at=now)
    assert attempt.overdue()
    assert not attempt.model_copy(update={"deadline_at": now + timedelta(minutes=1)}).overdue()
