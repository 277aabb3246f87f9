"""What doctor finds in the database."""

import pytest

from deployments.doctor import examine_sessions
from tasks.contracts import Status
from tasks.database import database_for
from tasks.database.attempts import close, open_attempt, take_up
from tasks.database.schema import upgrade
from tasks.settings import Settings


@pytest.fixture
def deployed(empty_database_url: str) -> Settings:
    """Settings with a database that has this version's tables."""
    upgrade(empty_database_url)
    return Settings(database_url=empty_database_url)


def test_sessions_in_error_are_counted_and_the_newest_named(deployed: Settings) -> None:
    database = database_for(deployed)
    names = [f"session-{number}" for number in range(5)]
    for name in names:
        open_attempt(database, name, 1, 3600)
    assert examine_sessions(deployed).state == "ok"

    for name in names[:4]:
        close(database, name, 1, Status.ERROR, by="test")
    shown = examine_sessions(deployed)
    assert (shown.state, shown.finding.split(":")[0]) == ("warning", "4 in status error")
    assert "session-3" in shown.finding
    assert shown.finding.endswith(", …")
    assert "kycflow audit" in shown.remedy

    for name in names[:3]:
        take_up(database, name, 1, by="test")
    assert examine_sessions(deployed).finding == "1 in status error: session-3"


def test_a_database_that_does_not_answer_is_missing() -> None:
    shown = examine_sessions(Settings(database_url="postgresql://127.0.0.1:1/kycflow"))
    assert (shown.state, shown.finding) == ("missing", "DatabaseUnavailable")
