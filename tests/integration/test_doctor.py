"""What doctor finds in the database, and how the command shows it."""

import json
import os
import subprocess
import sys

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


def doctor(*arguments: str) -> str:
    """What `kycflow doctor` prints in a narrow terminal, on a machine where nothing runs."""
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", "doctor", *arguments],
        env={**os.environ, "PREFECT_API_URL": "", "COLUMNS": "40"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout


def test_what_is_to_be_typed_stands_whole_in_one_line() -> None:
    findings = json.loads(doctor("--json"))
    remedies = [finding["remedy"] for finding in findings if finding["remedy"]]
    assert len(max(remedies, key=len)) > 80
    lines = [line.strip() for line in doctor().splitlines()]
    assert [line for line in lines if line in remedies] == remedies
    assert len(lines) == len(findings) + len(remedies)
