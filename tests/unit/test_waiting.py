"""What a run that waits says of itself, and how quietly it does so."""

import logging
from datetime import UTC, datetime

import pytest

from tasks.contracts import Attempt, FilePair, StoredFile
from tasks.states import awaiting_comparison, awaiting_files, beside, woken
from tasks.waiting import QUIET, QuietWaiting

FILE = StoredFile(storage_key="key", sha256="a" * 64, size_bytes=1)


def waiting(files: FilePair, deadline: datetime) -> Attempt:
    return Attempt(session_id="s", attempt=1, created_at=deadline, deadline_at=deadline, files=files, announced=True)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (FilePair(), "the ID image and the selfie video"),
        (FilePair(id_image=FILE), "the selfie video"),
        (FilePair(selfie_video=FILE), "the ID image"),
    ],
)
def test_a_run_that_waits_says_for_what_and_until_when(files: FilePair, words: str) -> None:
    now = datetime.now(UTC).replace(hour=14, minute=5)
    assert awaiting_files(waiting(files, now)).message == f"Waiting for {words} until 14:05 UTC"
    later = datetime(2031, 1, 2, 14, 5, tzinfo=UTC)
    assert awaiting_files(waiting(files, later)).message == f"Waiting for {words} until 02 January 2031, 14:05 UTC"


def test_a_run_that_waits_has_no_time_out_and_a_key_of_its_own_and_is_rescheduled_by_resume() -> None:
    attempt = waiting(FilePair(), datetime.now(UTC))
    states = [awaiting_files(attempt), awaiting_files(attempt), awaiting_comparison(), awaiting_comparison()]
    assert {state.type.value for state in states} == {"PAUSED"}
    assert [state.state_details.pause_timeout for state in states] == [None] * 4
    assert len({state.state_details.pause_key for state in states}) == 4
    assert [state.state_details.pause_reschedule for state in states] == [True] * 4


def test_a_run_that_is_woken_is_due_now_and_not_since_its_creation() -> None:
    due = woken("Both files are there").state_details.scheduled_time
    assert due is not None
    assert abs(due.timestamp() - datetime.now(UTC).timestamp()) < 5


def test_a_run_beside_another_one_ends_and_says_what_the_session_waits_for() -> None:
    state = beside(awaiting_files(waiting(FilePair(id_image=FILE), datetime.now(UTC))))
    assert state.is_completed()
    assert "Waiting for the selfie video" in str(state.message)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("prefect.flow_runs", logging.ERROR, __file__, 1, message, None, None)


def test_waiting_is_no_error_in_the_log_and_other_ends_stay_as_they_are() -> None:
    states = ("AwaitingFiles", "AwaitingComparison", "Scheduled", "Cancelled", "Crashed")
    ends = [record(f"Finished in state {state}('…')") for state in states]
    for one in ends:
        assert QuietWaiting().filter(one)
    assert [one.levelno for one in ends] == [*[logging.INFO] * 4, logging.ERROR]


def test_the_log_has_its_filter_once_however_often_a_run_waits() -> None:
    logger = logging.Logger("any")
    for _ in range(100):
        logger.addFilter(QUIET)
    assert logger.filters == [QUIET]
