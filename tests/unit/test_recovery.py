"""What the sweep makes of what it sees: one row a case."""

from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

import pytest

from tasks.contracts import Attempt, Decision, DecisionKind, FilePair, Reason, Status, StoredFile
from tasks.recovery import UNAVAILABLE, Action, Run, for_comparison, for_session, for_upkeep

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(minutes=1), NOW - timedelta(minutes=1)
MOST = 3
FILE = StoredFile(storage_key="key", sha256="a" * 64, size_bytes=1)
BOTH, ONE = FilePair(id_image=FILE, selfie_video=FILE), FilePair(id_image=FILE)
DECISION = Decision(
    session_id="s", attempt=1, decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT, decided_at=EARLIER
)


def session(
    status: Status = Status.IN_PROGRESS, files: FilePair = BOTH, deadline: datetime = LATER, recoveries: int = 0
) -> Attempt:
    return Attempt(
        session_id="s",
        attempt=1,
        created_at=EARLIER,
        deadline_at=deadline,
        status=status,
        files=files,
        decision=DECISION if status is Status.DECIDED else None,
        recoveries=recoveries,
    )


def run(kind: str, name: str | None = None, *, alive: bool = True, due: datetime | None = None, count: int = 1) -> Run:
    return Run(
        id=UUID(int=1),
        state_id=UUID(int=2),
        type=kind,
        name=name or kind.capitalize(),
        due=due,
        run_count=count,
        alive=alive,
    )


def lost(kind: str, count: int = 1) -> Run:
    return run(kind, alive=False, count=count)


IN_PROGRESS = session()
WAITING = session(Status.AWAITING_FILES, ONE)
OVERDUE = session(Status.AWAITING_FILES, ONE, deadline=EARLIER)
TRIED = session(recoveries=MOST)
TRIED_BEFORE = session(recoveries=MOST - 1)
DECIDED, CANCELLED, FAILED, DELETED = (
    session(status) for status in (Status.DECIDED, Status.CANCELLED, Status.ERROR, Status.DELETED)
)
DECIDED_TRIED = session(Status.DECIDED, recoveries=MOST)

RUNNING, PENDING, PAUSED = run("RUNNING"), run("PENDING"), run("PAUSED")
SCHEDULED, CANCELLING = run("SCHEDULED", due=NOW), run("CANCELLING")
AWAITING_FILES = run("SCHEDULED", "AwaitingFiles", due=LATER)
AWAITING_FILES_NOW = run("SCHEDULED", "AwaitingFiles", due=EARLIER)
AWAITING_FILES_EVER = run("SCHEDULED", "AwaitingFiles")
AWAITING_COMPARISON = run("SCHEDULED", "AwaitingComparison", due=LATER)
ENDED_UNAVAILABLE, ENDED_FAILED = run("FAILED", UNAVAILABLE), run("FAILED")
ENDED_CRASHED, ENDED_CANCELLED, ENDED = run("CRASHED"), run("CANCELLED"), run("COMPLETED", "Match")
SPENT = run("FAILED", UNAVAILABLE, count=MOST + 1)

SESSIONS: dict[str, tuple[Attempt, Run | None, Action]] = {
    "no flow run, both files": (IN_PROGRESS, None, Action.START),
    "no flow run, deadline over": (OVERDUE, None, Action.START),
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
    "failed for now, tried too often": (TRIED, ENDED_UNAVAILABLE, Action.GIVE_UP),
    "failed for good": (IN_PROGRESS, ENDED_FAILED, Action.GIVE_UP),
    "ended without a decision": (IN_PROGRESS, ENDED, Action.RECOVER),
    "ended without a decision, tried too often": (TRIED, ENDED, Action.GIVE_UP),
    "cancelled by a person": (IN_PROGRESS, ENDED_CANCELLED, Action.CANCEL),
    "cancelled by a person, tried too often": (TRIED, ENDED_CANCELLED, Action.CANCEL),
    "being cancelled": (IN_PROGRESS, CANCELLING, Action.NOTHING),
    "lost while it was cancelled": (IN_PROGRESS, lost("CANCELLING"), Action.CANCEL),
    "waits for a file": (WAITING, AWAITING_FILES, Action.NOTHING),
    "waits for files that are there": (IN_PROGRESS, AWAITING_FILES, Action.WAKE),
    "waits past its deadline": (OVERDUE, AWAITING_FILES, Action.WAKE),
    "waits past its deadline with no look to come": (OVERDUE, AWAITING_FILES_EVER, Action.WAKE),
    "waits past its deadline, its look is due": (OVERDUE, AWAITING_FILES_NOW, Action.NOTHING),
    "waits for a comparison": (IN_PROGRESS, AWAITING_COMPARISON, Action.NOTHING),
    "decided, ended": (DECIDED, ENDED, Action.NOTHING),
    "decided, without a flow run": (DECIDED, None, Action.NOTHING),
    "decided, shows its decision": (DECIDED, RUNNING, Action.NOTHING),
    "decided, lost before it showed that": (DECIDED, lost("RUNNING"), Action.RECOVER),
    "decided, lost too often": (DECIDED_TRIED, lost("RUNNING"), Action.CRASH),
    "decided, lost while it was cancelled": (DECIDED, lost("CANCELLING"), Action.CRASH),
    "decided, crashed": (DECIDED, ENDED_CRASHED, Action.NOTHING),
    "cancelled, at work": (CANCELLED, RUNNING, Action.NOTHING),
    "cancelled, lost": (CANCELLED, lost("RUNNING"), Action.CRASH),
    "given up, lost": (FAILED, lost("PENDING"), Action.CRASH),
    "deleted, lost": (DELETED, lost("CANCELLING"), Action.CRASH),
    "deleted, without a flow run": (DELETED, None, Action.NOTHING),
    "given up, its run crashed": (FAILED, ENDED_CRASHED, Action.NOTHING),
}


@pytest.mark.parametrize(("attempt", "its_run", "action"), SESSIONS.values(), ids=SESSIONS)
def test_a_session_gets_what_it_needs(attempt: Attempt, its_run: Run | None, action: Action) -> None:
    assert for_session(attempt, its_run, None, stored=False, deaths=0, now=NOW, most_recoveries=MOST) is action


WAITING_FOR_COMPARISON: dict[str, tuple[Run | None, bool, Action]] = {
    "is stored": (ENDED, True, Action.WAKE),
    "is stored, its run unknown": (None, True, Action.WAKE),
    "is stored, its run was lost": (lost("RUNNING"), True, Action.WAKE),
    "has an unknown run": (None, False, Action.NOTHING),
    "waits for a worker": (SCHEDULED, False, Action.NOTHING),
    "is computed": (RUNNING, False, Action.NOTHING),
    "was lost": (lost("RUNNING"), False, Action.NOTHING),
    "failed for now and is started again": (ENDED_UNAVAILABLE, False, Action.NOTHING),
    "crashed and is started again": (ENDED_CRASHED, False, Action.NOTHING),
    "failed for now too often": (SPENT, False, Action.WAKE),
    "failed for good": (ENDED_FAILED, False, Action.WAKE),
    "was cancelled": (ENDED_CANCELLED, False, Action.WAKE),
    "ended without a row": (ENDED, False, Action.WAKE),
}


@pytest.mark.parametrize(
    ("comparison", "stored", "action"), WAITING_FOR_COMPARISON.values(), ids=WAITING_FOR_COMPARISON
)
def test_a_session_that_waits_is_woken_when_its_comparison(
    comparison: Run | None, stored: bool, action: Action
) -> None:
    found = for_session(
        IN_PROGRESS, AWAITING_COMPARISON, comparison, stored=stored, deaths=0, now=NOW, most_recoveries=MOST
    )
    assert found is action


COMPARISONS: dict[str, tuple[Run, bool, Action]] = {
    "computes": (RUNNING, False, Action.NOTHING),
    "waits for a worker": (SCHEDULED, False, Action.NOTHING),
    "is started": (PENDING, False, Action.NOTHING),
    "is being cancelled": (CANCELLING, False, Action.NOTHING),
    "was lost": (lost("RUNNING"), False, Action.RECOVER),
    "was lost while it was started": (lost("PENDING"), False, Action.RECOVER),
    "was lost after its row was stored": (lost("RUNNING"), True, Action.COMPLETE),
    "was lost for the last time": (lost("RUNNING", MOST), False, Action.RECOVER),
    "was lost too often": (lost("RUNNING", MOST + 1), False, Action.CRASH),
    "was lost too often after its row was stored": (lost("RUNNING", MOST + 1), True, Action.COMPLETE),
    "was lost while it was cancelled": (lost("CANCELLING"), False, Action.CRASH),
    "crashed": (ENDED_CRASHED, False, Action.RECOVER),
    "crashed after its row was stored": (ENDED_CRASHED, True, Action.NOTHING),
    "failed for now": (ENDED_UNAVAILABLE, False, Action.RECOVER),
    "failed for now too often": (SPENT, False, Action.NOTHING),
    "failed for good": (ENDED_FAILED, False, Action.NOTHING),
    "was cancelled": (ENDED_CANCELLED, False, Action.NOTHING),
    "has ended": (ENDED, True, Action.NOTHING),
}


@pytest.mark.parametrize(("its_run", "stored", "action"), COMPARISONS.values(), ids=COMPARISONS)
def test_the_run_of_a_comparison_gets_what_it_needs(its_run: Run, stored: bool, action: Action) -> None:
    assert for_comparison(its_run, stored=stored, deaths=1, most_recoveries=MOST) is action


@pytest.mark.parametrize("kind", ["PENDING", "RUNNING", "CANCELLING"])
def test_any_other_run_that_was_lost_is_ended_and_its_schedule_brings_the_next(kind: str) -> None:
    assert for_upkeep(lost(kind)) is Action.CRASH
    assert for_upkeep(run(kind)) is Action.NOTHING


RUNS = [
    run(kind, name, alive=alive, due=due, count=count)
    for kind, name in [
        *[(kind, None) for kind in ("PENDING", "RUNNING", "CANCELLING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")],
        *[("FAILED", UNAVAILABLE), ("SCHEDULED", "AwaitingFiles"), ("SCHEDULED", "AwaitingComparison")],
    ]
    for alive, due, count in product([True, False], [None, EARLIER, LATER], [1, MOST + 1])
]
ATTEMPTS = [
    session(status, files, deadline, recoveries)
    for status, files, deadline, recoveries in product(Status, [ONE, BOTH], [EARLIER, LATER], [0, MOST])
]


def judged(attempt: Attempt, its_run: Run | None, stored: bool = False) -> Action:
    return for_session(attempt, its_run, None, stored=stored, deaths=0, now=NOW, most_recoveries=MOST)


def test_a_closed_attempt_is_never_started_given_up_or_cancelled() -> None:
    closed = [attempt for attempt in ATTEMPTS if not attempt.open]
    found = {judged(*case) for case in product(closed, [*RUNS, None], [True, False])}
    assert found == {Action.NOTHING, Action.RECOVER, Action.CRASH}


def test_a_process_that_lives_is_left_alone() -> None:
    living = [one for one in RUNS if one.alive and one.type in {"PENDING", "RUNNING", "CANCELLING"}]
    assert {judged(*case) for case in product(ATTEMPTS, living, [True, False])} == {Action.NOTHING}
    assert {
        for_comparison(one, stored=stored, deaths=1, most_recoveries=MOST) for one in living for stored in (True, False)
    } == {Action.NOTHING}


def test_nothing_is_started_again_without_end() -> None:
    tried = [attempt for attempt in ATTEMPTS if attempt.recoveries == MOST]
    assert Action.RECOVER not in {judged(*case) for case in product(tried, [*RUNS, None], [True, False])}
    often = [one for one in RUNS if one.run_count > MOST]
    assert Action.RECOVER not in {for_comparison(one, stored=False, deaths=1, most_recoveries=MOST) for one in often}


def test_a_comparison_that_took_two_processes_along_is_not_tried_again() -> None:
    running = lost("RUNNING")
    actions = [for_comparison(running, stored=False, deaths=deaths, most_recoveries=MOST) for deaths in (0, 1, 2)]
    assert actions == [Action.RECOVER, Action.RECOVER, Action.GIVE_UP]
    assert for_comparison(running, stored=True, deaths=2, most_recoveries=MOST) is Action.COMPLETE
    cancelled = lost("CANCELLING")
    assert for_comparison(cancelled, stored=False, deaths=2, most_recoveries=MOST) is Action.CRASH


def test_a_session_whose_own_computation_took_two_processes_along_is_given_up() -> None:
    def judged_after(deaths: int, its_run: Run, *, stored: bool = False) -> Action:
        return for_session(IN_PROGRESS, its_run, its_run, stored=stored, deaths=deaths, now=NOW, most_recoveries=MOST)

    gone = lost("RUNNING")
    assert [judged_after(deaths, gone) for deaths in (0, 1, 2)] == [Action.RECOVER, Action.RECOVER, Action.GIVE_UP]
    assert judged_after(2, gone, stored=True) is Action.RECOVER, "It only has to decide."
    assert judged_after(2, RUNNING) is Action.NOTHING
    assert judged_after(2, lost("CANCELLING")) is Action.CANCEL
