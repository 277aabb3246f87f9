"""What the sweep makes of what it sees: one row a case."""

from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

import pytest

from tasks.contracts import Attempt, Decision, DecisionKind, FilePair, Reason, Status, StoredFile
from tasks.recovery import Action, Facts, Run, for_session, for_upkeep
from tasks.states import UNAVAILABLE

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(minutes=1), NOW - timedelta(minutes=1)
MOST = 3
FILE = StoredFile(storage_key="key", sha256="a" * 64, size_bytes=1)
BOTH, ONE = FilePair(id_image=FILE, selfie_video=FILE), FilePair(id_image=FILE)
DECISION = Decision(
    session_id="s", attempt=1, decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT, decided_at=EARLIER
)


def session(status: Status = Status.IN_PROGRESS, files: FilePair = BOTH, recoveries: int = 0) -> Attempt:
    return Attempt(
        session_id="s",
        attempt=1,
        created_at=EARLIER,
        deadline_at=LATER,
        status=status,
        files=files,
        decision=DECISION if status is Status.DECIDED else None,
        recoveries=recoveries,
    )


def run(kind: str, name: str | None = None, *, alive: bool = True, lingers: bool = False) -> Run:
    return Run(
        id=UUID(int=1),
        state_id=UUID(int=2),
        type=kind,
        name=name or kind.capitalize(),
        alive=alive,
        lingers=lingers,
    )


def lost(kind: str) -> Run:
    return run(kind, alive=False)


IN_PROGRESS = session()
WAITING = session(Status.AWAITING_FILES, ONE)
TRIED = session(recoveries=MOST)
TRIED_BEFORE = session(recoveries=MOST - 1)
DECIDED, CANCELLED, FAILED, DELETED = (
    session(status) for status in (Status.DECIDED, Status.CANCELLED, Status.ERROR, Status.DELETED)
)
DECIDED_TRIED = session(Status.DECIDED, recoveries=MOST)

RUNNING, PENDING, PAUSED = run("RUNNING"), run("PENDING"), run("PAUSED")
SCHEDULED, CANCELLING = run("SCHEDULED"), run("CANCELLING")
AWAITING_FILES, AWAITING_COMPARISON = run("PAUSED", "AwaitingFiles"), run("PAUSED", "AwaitingComparison")
ENDED_UNAVAILABLE, ENDED_FAILED = run("CRASHED", UNAVAILABLE), run("FAILED")
ENDED_CRASHED, ENDED_CANCELLED, ENDED = run("CRASHED"), run("CANCELLED"), run("COMPLETED", "Match")
LINGERS = run("CRASHED", lingers=True)

SESSIONS: dict[str, tuple[Attempt, Run | None, Action]] = {
    "no flow run, both files": (IN_PROGRESS, None, Action.START),
    "no flow run, a file missing": (WAITING, None, Action.START),
    "no flow run, tried too often": (TRIED, None, Action.START),
    "at work": (IN_PROGRESS, RUNNING, Action.NOTHING),
    "being started": (IN_PROGRESS, PENDING, Action.NOTHING),
    "about to be started": (IN_PROGRESS, SCHEDULED, Action.NOTHING),
    "paused by a person": (IN_PROGRESS, PAUSED, Action.NOTHING),
    "lost at work": (IN_PROGRESS, lost("RUNNING"), Action.RECOVER),
    "lost while it was started": (IN_PROGRESS, lost("PENDING"), Action.RECOVER),
    "lost, tried often": (TRIED_BEFORE, lost("RUNNING"), Action.RECOVER),
    "lost, tried too often": (TRIED, lost("RUNNING"), Action.GIVE_UP),
    "lost while it looked for files": (WAITING, lost("RUNNING"), Action.RECOVER),
    "crashed": (IN_PROGRESS, ENDED_CRASHED, Action.RECOVER),
    "crashed, tried too often": (TRIED, ENDED_CRASHED, Action.GIVE_UP),
    "failed for now": (IN_PROGRESS, ENDED_UNAVAILABLE, Action.RECOVER),
    "failed for now, in version 0.1.0": (IN_PROGRESS, run("FAILED", UNAVAILABLE), Action.RECOVER),
    "failed for now, and often before": (TRIED, ENDED_UNAVAILABLE, Action.RECOVER),
    "failed for good": (IN_PROGRESS, ENDED_FAILED, Action.GIVE_UP),
    "ended without a decision": (IN_PROGRESS, ENDED, Action.RECOVER),
    "ended without a decision, tried too often": (TRIED, ENDED, Action.GIVE_UP),
    "cancelled by a person": (IN_PROGRESS, ENDED_CANCELLED, Action.CANCEL),
    "cancelled by a person, tried too often": (TRIED, ENDED_CANCELLED, Action.CANCEL),
    "being cancelled": (IN_PROGRESS, CANCELLING, Action.CANCEL),
    "cancelled, its process is being ended": (CANCELLED, CANCELLING, Action.NOTHING),
    "lost while it was cancelled": (IN_PROGRESS, lost("CANCELLING"), Action.CANCEL),
    "waits for a file": (WAITING, AWAITING_FILES, Action.NOTHING),
    "waits for files that are there": (IN_PROGRESS, AWAITING_FILES, Action.WAKE),
    "waits as version 0.1.0 did": (IN_PROGRESS, run("SCHEDULED", "AwaitingFiles"), Action.WAKE),
    "crashed, its process lives on": (IN_PROGRESS, LINGERS, Action.NOTHING),
    "decided, ended": (DECIDED, ENDED, Action.NOTHING),
    "decided, without a flow run": (DECIDED, None, Action.NOTHING),
    "decided, shows its decision": (DECIDED, RUNNING, Action.NOTHING),
    "decided, lost before it showed that": (DECIDED, lost("RUNNING"), Action.SHOW),
    "decided, lost, tried too often": (DECIDED_TRIED, lost("PENDING"), Action.SHOW),
    "decided, lost while it was cancelled": (DECIDED, lost("CANCELLING"), Action.SHOW),
    "decided, crashed": (DECIDED, ENDED_CRASHED, Action.SHOW),
    "decided, failed": (DECIDED, ENDED_FAILED, Action.SHOW),
    "decided, failed for now": (DECIDED, ENDED_UNAVAILABLE, Action.SHOW),
    "decided, crashed, its process lives on": (DECIDED, LINGERS, Action.NOTHING),
    "decided, its run has expired": (DECIDED, run("COMPLETED", "Expired"), Action.SHOW),
    "decided by another run, waits": (DECIDED, AWAITING_COMPARISON, Action.SHOW),
    "decided, about to show its decision": (DECIDED, SCHEDULED, Action.NOTHING),
    "decided, its run was cancelled": (DECIDED, ENDED_CANCELLED, Action.SHOW),
    "cancelled, at work": (CANCELLED, RUNNING, Action.NOTHING),
    "cancelled, lost": (CANCELLED, lost("RUNNING"), Action.CRASH),
    "given up, lost": (FAILED, lost("PENDING"), Action.CRASH),
    "deleted, lost": (DELETED, lost("CANCELLING"), Action.CRASH),
    "deleted, without a flow run": (DELETED, None, Action.NOTHING),
    "given up, its run crashed": (FAILED, ENDED_CRASHED, Action.NOTHING),
}


@pytest.mark.parametrize(("attempt", "its_run", "action"), SESSIONS.values(), ids=SESSIONS)
def test_a_session_gets_what_it_needs(attempt: Attempt, its_run: Run | None, action: Action) -> None:
    # Somebody computes what it waits for, its deadline is not over, and nobody has looked at storage.
    assert judged(attempt, its_run, computed=True) is action


def judged(attempt: Attempt, its_run: Run | None, **facts: object) -> Action:
    return for_session(attempt, its_run, Facts.model_validate(facts), most_recoveries=MOST)


@pytest.mark.parametrize(
    ("stored", "computed", "action"),
    [
        (True, False, Action.WAKE),
        (True, True, Action.WAKE),
        (False, False, Action.WAKE),
        (False, True, Action.NOTHING),
    ],
)
def test_a_session_waits_for_a_comparison_only_while_somebody_computes_it(
    stored: bool, computed: bool, action: Action
) -> None:
    assert judged(IN_PROGRESS, AWAITING_COMPARISON, stored=stored, computed=computed) is action


OVERDUE: dict[str, tuple[Run | None, bool | None, Action]] = {
    "it waits": (AWAITING_FILES, False, Action.EXPIRE),
    "it waits, and a file is there": (AWAITING_FILES, True, Action.WAKE),
    "it waits, and storage does not tell": (AWAITING_FILES, None, Action.NOTHING),
    "it has no flow run": (None, False, Action.EXPIRE),
    "it has no flow run, and a file is there": (None, True, Action.START),
    "it was woken, and no worker takes it": (SCHEDULED, False, Action.EXPIRE),
    "it was woken for a file, and no worker takes it": (SCHEDULED, True, Action.NOTHING),
    "it was suspended by a person": (PAUSED, False, Action.EXPIRE),
    "it is at work": (RUNNING, False, Action.NOTHING),
    "it was lost": (lost("RUNNING"), False, Action.EXPIRE),
    "it was lost, and a file is there": (lost("RUNNING"), True, Action.RECOVER),
    "it has crashed": (ENDED_CRASHED, False, Action.EXPIRE),
    "it has crashed, and its process lives on": (LINGERS, False, Action.NOTHING),
    "its run was ended as expired before that was recorded": (run("COMPLETED", "Expired"), False, Action.EXPIRE),
    "it was cancelled": (ENDED_CANCELLED, False, Action.CANCEL),
}


@pytest.mark.parametrize(("its_run", "arrived", "action"), OVERDUE.values(), ids=OVERDUE)
def test_a_session_beyond_its_deadline_expires_only_where_storage_has_no_file(
    its_run: Run | None, arrived: bool | None, action: Action
) -> None:
    assert judged(WAITING, its_run, late=True, arrived=arrived) is action


def test_a_session_is_woken_for_a_file_of_another_system() -> None:
    assert judged(WAITING, AWAITING_FILES, arrived=True) is Action.WAKE
    assert judged(WAITING, AWAITING_FILES, arrived=False) is Action.NOTHING


@pytest.mark.parametrize("kind", ["PENDING", "RUNNING", "CANCELLING"])
def test_any_other_run_that_was_lost_is_ended_and_its_schedule_brings_the_next(kind: str) -> None:
    assert for_upkeep(lost(kind)) is Action.CRASH
    assert for_upkeep(run(kind)) is Action.NOTHING


RUNS = [
    run(kind, name, alive=alive)
    for kind, name in [
        *[(kind, None) for kind in ("PENDING", "RUNNING", "CANCELLING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")],
        *[("CRASHED", UNAVAILABLE), ("PAUSED", "AwaitingFiles"), ("PAUSED", "AwaitingComparison")],
    ]
    for alive in (True, False)
]
ATTEMPTS = [session(status, files, recoveries) for status, files, recoveries in product(Status, [ONE, BOTH], [0, MOST])]
FACTS = [
    {"late": late, "arrived": arrived, "stored": stored, "computed": computed}
    for late, arrived, stored, computed in product([True, False], [True, False, None], [True, False], [True, False])
]


def test_a_closed_attempt_is_never_started_given_up_cancelled_or_expired() -> None:
    closed = [attempt for attempt in ATTEMPTS if not attempt.open]
    found = {judged(attempt, one, **facts) for attempt, one, facts in product(closed, [*RUNS, None], FACTS)}
    assert found == {Action.NOTHING, Action.SHOW, Action.CRASH}


def test_a_process_that_lives_is_left_alone() -> None:
    living = [one for one in RUNS if one.alive and one.type in {"PENDING", "RUNNING", "CANCELLING"}]
    for attempt, one, facts in product(ATTEMPTS, living, FACTS):
        cancelling = one.type == "CANCELLING" and attempt.open
        assert judged(attempt, one, **facts) is (Action.CANCEL if cancelling else Action.NOTHING)


def test_nothing_expires_where_storage_does_not_tell_or_has_a_file_or_there_is_time() -> None:
    never = [facts for facts in FACTS if not facts["late"] or facts["arrived"] is not False]
    assert Action.EXPIRE not in {
        judged(attempt, one, **facts) for attempt, one, facts in product(ATTEMPTS, [*RUNS, None], never)
    }


def test_nothing_is_started_again_without_end_but_what_waits_for_a_service_that_is_away() -> None:
    tried = [attempt for attempt in ATTEMPTS if attempt.recoveries == MOST]
    again = {
        one for attempt, one, facts in product(tried, RUNS, FACTS) if judged(attempt, one, **facts) is Action.RECOVER
    }
    assert again == {one for one in RUNS if one.unavailable}
    assert Action.RECOVER not in {judged(attempt, None, **facts) for attempt, facts in product(tried, FACTS)}


def test_a_session_whose_computation_took_two_processes_along_is_given_up() -> None:
    gone = lost("RUNNING")
    assert [judged(IN_PROGRESS, gone, deaths=deaths) for deaths in (0, 1, 2)] == [
        Action.RECOVER,
        Action.RECOVER,
        Action.GIVE_UP,
    ]
    assert judged(IN_PROGRESS, gone, deaths=2, stored=True) is Action.RECOVER, "It only has to decide."
    assert judged(IN_PROGRESS, RUNNING, deaths=2) is Action.NOTHING
    assert judged(IN_PROGRESS, lost("CANCELLING"), deaths=2) is Action.CANCEL
