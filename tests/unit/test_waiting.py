"""When a waiting session looks again, and how quietly."""

import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from tasks.contracts import Attempt
from tasks.dispatch import first_look
from tasks.waiting import QuietWaiting, next_look

CREATED = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
DEADLINE = CREATED + timedelta(hours=1)


def looks(first: float = 10, longest: float = 300) -> list[float]:
    """Seconds after creation at which a session that never gets its files is looked at."""
    now, moments = CREATED, []
    while now < DEADLINE:
        now = next_look(now, CREATED, DEADLINE, first, longest)
        moments.append(round((now - CREATED).total_seconds(), 3))
    return moments


def test_intervals_grow_from_the_first_to_the_longest_and_end_at_the_deadline() -> None:
    moments = looks()
    intervals = [round(later - earlier, 3) for earlier, later in pairwise([0.0, *moments])]
    assert intervals[0] == 10
    assert all(earlier <= later for earlier, later in pairwise(intervals[:-1]))
    assert max(intervals) == 300
    assert moments[-1] == 3600


def test_an_hour_costs_about_twenty_looks() -> None:
    assert 15 <= len(looks()) <= 22


def test_a_deadline_before_the_first_interval_is_looked_at_in_time() -> None:
    deadline = CREATED + timedelta(seconds=3)
    assert next_look(CREATED, CREATED, deadline, 10, 300) == deadline


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("prefect.flow_runs", logging.ERROR, __file__, 1, message, None, None)


def test_waiting_is_no_error_in_the_log_and_other_ends_stay_as_they_are() -> None:
    states = ("AwaitingFiles", "AwaitingComparison", "Scheduled", "Crashed")
    ends = [record(f"Finished in state {state}('…')") for state in states]
    for one in ends:
        assert QuietWaiting().filter(one)
    assert [one.levelno for one in ends] == [logging.INFO, logging.INFO, logging.INFO, logging.ERROR]


@pytest.mark.parametrize(
    ("announced", "seconds", "looks_after"),
    [
        (True, 10, 3600),  # each upload wakes it
        (False, 10, 10),
        (False, 7200, 3600),
    ],
)
def test_a_run_that_is_woken_by_uploads_looks_at_its_deadline_only(
    announced: bool, seconds: float, looks_after: float
) -> None:
    attempt = Attempt(session_id="s", attempt=1, created_at=CREATED, deadline_at=DEADLINE, announced=announced)
    assert (first_look(attempt, CREATED, seconds) - CREATED).total_seconds() == looks_after
