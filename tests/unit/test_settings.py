"""Settings come from the environment, bounded, and refuse what cannot work."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.settings import Settings, current_settings


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "MATCH_THRESHOLD", "SESSION_DEADLINE_SECONDS", "API_TOKEN"):
        monkeypatch.setenv(f"KYCFLOW_{name}", "")
    settings = Settings()
    assert settings.database.startswith("sqlite:///")
    assert settings.session_deadline_seconds == 3600
    assert settings.match_threshold is None
    assert settings.api_token is None


def test_the_state_folder_is_the_checkouts_wherever_a_worker_starts_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KYCFLOW_STATE_DIR")
    monkeypatch.chdir(tmp_path)
    assert Settings().state_dir == Path(__file__).parents[2] / ".kycflow"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SESSION_DEADLINE_SECONDS", "0"),
        ("STORAGE_URL", "ftp://somewhere"),
        ("BACKEND", "abacus"),
        ("WEIGHTS_SHA256", '{"a": "short"}'),
        ("MATCH_THRESHOLD", "2"),
    ],
)
def test_what_cannot_work_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"KYCFLOW_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_thresholds_stand_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYCFLOW_MATCH_THRESHOLD", "0.3")
    monkeypatch.setenv("KYCFLOW_REVIEW_THRESHOLD", "0.4")
    with pytest.raises(ValidationError, match="lower it"):
        Settings()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYCFLOW_API_TOKEN", "s3cret")
    assert "s3cret" not in repr(Settings())


def test_the_current_settings_are_read_once_for_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYCFLOW_LEASE_SECONDS", "11")
    first = current_settings()
    assert first == Settings()
    assert current_settings() is first
    monkeypatch.setenv("kycflow_lease_seconds", "12")  # their names may be in small letters
    monkeypatch.delenv("KYCFLOW_LEASE_SECONDS")
    assert current_settings().lease_seconds == 12
    monkeypatch.setenv("kycflow_lease_seconds", "none")
    with pytest.raises(ValidationError):
        current_settings()
