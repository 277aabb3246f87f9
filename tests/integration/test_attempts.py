"""Attempts, uploads and decisions, on SQLite and PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, func, select, text

from tasks.contracts import Attempt, Decision, DecisionKind, FileKind, FilePair, Reason, Status, Thresholds
from tasks.database.attempts import (
    close,
    count_recovery,
    decided_beside,
    get_attempt,
    in_progress,
    next_attempt,
    note_comparison,
    note_run,
    open_attempt,
    overdue,
    record_decision,
    register_upload,
    registered,
    some_attempts,
    take_up,
    waiting_for,
)
from tasks.database.engine import reading, writing
from tasks.database.tables import DecisionRow, UploadRow
from tasks.errors import SessionDecided, SessionDeleted, SessionUndecided, UnknownSession
from tests.attempts import EXPIRED, MATCH, NO_MATCH, at_once, put, stored, trail, with_both

KEY, OTHER_KEY = "c" * 64, "d" * 64
RUN, OTHER_RUN = UUID(int=1), UUID(int=2)


def age(database: Engine, session_id: str, seconds: int) -> None:
    """Move a session's uploads into the past."""
    with writing(database) as session:
        for row in session.scalars(select(UploadRow).where(UploadRow.session_id == session_id)):
            row.uploaded_at = row.uploaded_at.fromtimestamp(row.uploaded_at.timestamp() - seconds, UTC)


class TestOpening:
    def test_a_new_session_awaits_its_files_until_its_deadline(self, database: Engine) -> None:
        attempt, made = open_attempt(database, "a", 1, 90)
        assert made
        assert (attempt.status, attempt.files, attempt.decision) == ("awaiting_files", FilePair(), None)
        assert attempt.created_at.tzinfo is UTC
        assert (attempt.deadline_at - attempt.created_at).total_seconds() == pytest.approx(90, abs=0.1)

    def test_opening_replays_its_own_lost_commit_and_keeps_the_deadline(self, database: Engine) -> None:
        first, _ = open_attempt(database, "a", 1, 90)
        assert open_attempt(database, "a", 1, 5) == (first, False)

    def test_racers_open_once(self, database: Engine) -> None:
        opened = at_once(8, lambda _: open_attempt(database, "a", 1, 90))
        assert sum(made for _, made in opened) == 1
        assert len({attempt.created_at for attempt, _ in opened}) == 1

    def test_a_further_attempt_is_not_opened_out_of_turn(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 90)
        with pytest.raises(UnknownSession, match="attempt 2"):
            open_attempt(database, "a", 2, 90)

    def test_the_latest_attempt_is_the_default(self, database: Engine) -> None:
        with pytest.raises(UnknownSession, match="'a'"):
            get_attempt(database, "a")
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        next_attempt(database, "a", 90)
        assert get_attempt(database, "a").attempt == 2
        assert get_attempt(database, "a", 1).status == "decided"
        with pytest.raises(UnknownSession, match="attempt 3"):
            get_attempt(database, "a", 3)


class TestNextAttempt:
    def test_an_undecided_session_gets_none(self, database: Engine) -> None:
        with pytest.raises(UnknownSession):
            next_attempt(database, "a", 90)
        open_attempt(database, "a", 1, 90)
        with pytest.raises(SessionUndecided, match="Attempt 1"):
            next_attempt(database, "a", 90)

    def test_two_racers_get_the_same_one(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        assert {attempt.attempt for attempt in at_once(4, lambda _: next_attempt(database, "a", 90))} == {2}

    def test_it_replays_its_own_lost_commit_until_it_has_a_file(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        assert next_attempt(database, "a", 90) == next_attempt(database, "a", 90)
        register_upload(database, "a", 2, FileKind.ID_IMAGE, stored("second"))
        with pytest.raises(SessionUndecided, match="Attempt 2"):
            next_attempt(database, "a", 90)


class TestUploads:
    def test_the_newest_of_each_kind_counts(self, database: Engine) -> None:
        assert with_both(database, "a").status == "in_progress"
        # Keys may sort otherwise: machines' clocks differ.
        attempt = register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/Aa"))
        assert attempt.files == FilePair(id_image=stored("a/Aa"), selfie_video=stored("a/video"))
        assert get_attempt(database, "a") == attempt

    def test_registering_replays_its_own_lost_commit(self, database: Engine) -> None:
        attempt = with_both(database, "a")
        register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/new"))
        assert register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/card")).files != attempt.files
        with reading(database) as session:
            assert session.scalar(select(func.count()).select_from(UploadRow)) == 3

    def test_an_unknown_attempt_takes_none(self, database: Engine) -> None:
        with pytest.raises(UnknownSession):
            register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("x"))

    def test_a_decided_attempt_takes_none(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        with pytest.raises(SessionDecided):
            register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("late"))
        assert registered(database, ["late"]) == set()

    def test_a_recorded_file_is_not_refused_after_the_decision_that_rests_on_it(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        assert register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/card")) == get_attempt(database, "a")


class TestDecisions:
    def test_it_is_recorded_with_all_that_it_rests_on(self, database: Engine) -> None:
        thresholds = Thresholds(match=0.5, review=0.4)
        made = record_decision(
            database,
            "a",
            1,
            verdict=MATCH,
            files=with_both(database, "a").files,
            similarity=0.75,
            thresholds=thresholds,
            comparison_key="c" * 64,
            flow_run_id="run",
        )
        assert made is not None
        assert made == Decision(
            session_id="a",
            attempt=1,
            decision=DecisionKind.MATCH,
            reason=Reason.SIMILARITY_SUFFICIENT,
            similarity=0.75,
            thresholds=thresholds,
            comparison_key="c" * 64,
            decided_at=made.decided_at,
        )
        assert get_attempt(database, "a").decision == made

    def test_a_decision_replays_its_own_lost_commit(self, database: Engine) -> None:
        files = with_both(database, "a").files
        first = record_decision(database, "a", 1, verdict=MATCH, files=files)
        assert first == record_decision(database, "a", 1, verdict=NO_MATCH, files=files)
        assert first == record_decision(database, "a", 1, verdict=NO_MATCH, files=FilePair())

    def test_two_racers_decide_once(self, database: Engine) -> None:
        files = with_both(database, "a").files
        verdicts = [MATCH, NO_MATCH]
        made = at_once(8, lambda index: record_decision(database, "a", 1, verdict=verdicts[index % 2], files=files))
        assert None not in made
        assert len(set(made)) == 1
        with reading(database) as session:
            assert session.scalar(select(func.count()).select_from(DecisionRow)) == 1

    def test_a_newer_file_is_not_decided_over(self, database: Engine) -> None:
        files = with_both(database, "a").files
        register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/newer"))
        assert record_decision(database, "a", 1, verdict=MATCH, files=files) is None
        assert get_attempt(database, "a").decision is None

    def test_an_upload_and_a_decision_at_once_never_both_count(self, database: Engine) -> None:
        for number in range(10):
            files = with_both(database, f"s{number}").files
            name = f"s{number}"

            def one(index: int, name: str = name, files: FilePair = files) -> object:
                if index:
                    return record_decision(database, name, 1, verdict=MATCH, files=files)
                try:
                    return register_upload(database, name, 1, FileKind.ID_IMAGE, stored(f"{name}/new"))
                except SessionDecided:
                    return None

            uploaded, decided = at_once(2, one)
            assert (uploaded is None) != (decided is None)

    def test_an_attempt_without_files_can_expire(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 90)
        made = record_decision(database, "a", 1, verdict=EXPIRED, files=FilePair())
        assert made is not None
        assert made.decision is DecisionKind.EXPIRED

    def test_an_unknown_attempt_gets_none(self, database: Engine) -> None:
        with pytest.raises(UnknownSession):
            record_decision(database, "a", 1, verdict=EXPIRED, files=FilePair())


class TestStatus:
    def test_an_attempt_is_in_progress_from_its_second_file_on(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 90)
        files = [(FileKind.ID_IMAGE, "card"), (FileKind.ID_IMAGE, "card again"), (FileKind.SELFIE_VIDEO, "video")]
        seen = [register_upload(database, "a", 1, kind, stored(key)).status for kind, key in files]
        assert seen == [Status.AWAITING_FILES, Status.AWAITING_FILES, Status.IN_PROGRESS]

    @pytest.mark.parametrize("status", [Status.CANCELLED, Status.ERROR])
    def test_an_upload_to_a_closed_attempt_is_stored_and_does_not_open_it(
        self, status: Status, database: Engine
    ) -> None:
        open_attempt(database, "a", 1, 90)
        register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/card"))
        close(database, "a", 1, status, by="test")
        after = register_upload(database, "a", 1, FileKind.SELFIE_VIDEO, stored("a/video"))
        assert (after.status, after.files.complete) == (status, True)

    @pytest.mark.parametrize("status", [Status.CANCELLED, Status.ERROR])
    def test_who_takes_it_up_again_finds_it_open_and_its_faults_forgotten(
        self, status: Status, database: Engine
    ) -> None:
        with_both(database, "a")
        open_attempt(database, "half", 1, 90)
        for name in ("a", "half"):
            note_comparison(database, name, 1, KEY, by="test")
            assert count_recovery(database, name, 1, 0, by="test", detail="a fault")
            assert close(database, name, 1, status, by="test")
        taken = take_up(database, "a", 1, by="a person")
        assert (taken.status, taken.recoveries, taken.comparison_key) == (Status.IN_PROGRESS, 0, None)
        assert take_up(database, "half", 1, by="a person").status is Status.AWAITING_FILES
        assert take_up(database, "a", 1, by="another") == taken
        assert [line.actor for line in trail(database, "a")][-1] == "a person"

    def test_a_decided_attempt_is_not_taken_up(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        assert take_up(database, "a", 1, by="a person").status is Status.DECIDED

    def test_a_deleted_session_is_refused_whatever_is_asked_of_it(self, database: Engine) -> None:
        files = with_both(database, "a").files
        close(database, "a", 1, Status.DELETED, by="test")
        for ask in (
            lambda: open_attempt(database, "a", 1, 90),
            lambda: next_attempt(database, "a", 90),
            lambda: register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("late")),
            lambda: register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("a/card")),
            lambda: record_decision(database, "a", 1, verdict=MATCH, files=files),
            lambda: take_up(database, "a", 1, by="test"),
        ):
            with pytest.raises(SessionDeleted):
                ask()
        assert registered(database, ["late"]) == set()


class TestRuns:
    def test_the_flow_run_is_remembered_and_traced_once(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 90)
        for run in (RUN, RUN, OTHER_RUN):
            note_run(database, "a", 1, run, by="test")
        assert get_attempt(database, "a").flow_run_id == OTHER_RUN
        assert [line.detail for line in trail(database, "a") if line.event == "run_created"] == [
            str(RUN),
            str(OTHER_RUN),
        ]

    def test_a_closed_attempt_asks_for_no_comparison(self, database: Engine) -> None:
        with_both(database, "a")
        close(database, "a", 1, Status.CANCELLED, by="test")
        note_comparison(database, "a", 1, KEY, by="test")
        assert get_attempt(database, "a").comparison_key is None

    def test_sweeps_that_see_the_same_fault_count_it_once(self, database: Engine) -> None:
        with_both(database, "a")
        counted = at_once(8, lambda _: count_recovery(database, "a", 1, 0, by="sweep", detail="its process was lost"))
        assert sum(counted) == 1
        assert get_attempt(database, "a").recoveries == 1
        assert count_recovery(database, "a", 1, 1, by="sweep", detail="again")
        assert [line.detail for line in trail(database, "a") if line.event == "run_started_again"] == [
            "its process was lost",
            "again",
        ]


class TestWhatTheSweepAsks:
    def test_overdue_is_what_waits_past_its_deadline_the_longest_first(self, database: Engine) -> None:
        open_attempt(database, "waiting", 1, 90)
        open_attempt(database, "over", 1, -1)
        open_attempt(database, "half", 1, -9)
        register_upload(database, "half", 1, FileKind.ID_IMAGE, stored("half/card"))
        with_both(database, "complete", -5)
        open_attempt(database, "decided", 1, -5)
        record_decision(database, "decided", 1, verdict=EXPIRED, files=FilePair())
        for name, status in (("cancelled", Status.CANCELLED), ("failed", Status.ERROR), ("deleted", Status.DELETED)):
            open_attempt(database, name, 1, -5)
            put(database, name, status)
        assert overdue(database, 10) == [get_attempt(database, name) for name in ("half", "over")]
        assert [attempt.session_id for attempt in overdue(database, 1)] == ["half"]

    def test_in_progress_is_what_has_both_files_for_a_while(self, database: Engine) -> None:
        open_attempt(database, "waiting", 1, 90)
        with_both(database, "fresh")
        with_both(database, "settled")
        record_decision(database, "decided", 1, verdict=MATCH, files=with_both(database, "decided").files)
        for status in (Status.CANCELLED, Status.ERROR, Status.DELETED):
            with_both(database, status.value)
            put(database, status.value, status)
        for name in ("settled", "decided", "cancelled", "error", "deleted"):
            age(database, name, 60)
        found = in_progress(database, settled_seconds=30, limit=10)
        assert found == [get_attempt(database, "settled")]

    def test_pages_leave_nothing_out(self, database: Engine) -> None:
        for number in range(7):
            with_both(database, f"s{number}")
        for number in range(0, 7, 2):
            record_decision(database, f"s{number}", 1, verdict=MATCH, files=get_attempt(database, f"s{number}").files)
            next_attempt(database, f"s{number}", 90)
            register_upload(database, f"s{number}", 2, FileKind.ID_IMAGE, stored(f"{number}/card 2"))
            register_upload(database, f"s{number}", 2, FileKind.SELFIE_VIDEO, stored(f"{number}/video 2"))
        seen: list[tuple[str, int]] = []
        last: Attempt | None = None
        while page := in_progress(database, settled_seconds=0, limit=3, after=last):
            assert len(page) <= 3
            seen += [(attempt.session_id, attempt.attempt) for attempt in page]
            last = page[-1]
        assert seen == [(f"s{number}", 1 if number % 2 else 2) for number in range(7)]

    def test_decided_beside_are_those_that_another_run_than_their_own_has_decided(self, database: Engine) -> None:
        before = datetime.now(UTC) - timedelta(minutes=1)
        for name, decides in {"own": RUN, "beside": OTHER_RUN, "by-none": None}.items():
            files = with_both(database, name).files
            note_run(database, name, 1, RUN, by="test")
            record_decision(
                database, name, 1, verdict=MATCH, files=files, flow_run_id=None if decides is None else str(decides)
            )
        assert [one.session_id for one in decided_beside(database, since=before)] == ["beside"]
        assert decided_beside(database, since=datetime.now(UTC) + timedelta(minutes=1)) == []

    def test_some_attempts_are_those_that_are_known(self, database: Engine) -> None:
        with_both(database, "a")
        record_decision(database, "a", 1, verdict=MATCH, files=get_attempt(database, "a").files)
        next_attempt(database, "a", 90)
        open_attempt(database, "b", 1, 90)
        found = some_attempts(database, [("a", 2), ("b", 1), ("b", 2), ("none", 1)])
        assert {(attempt.session_id, attempt.attempt) for attempt in found} == {("a", 2), ("b", 1)}
        assert some_attempts(database, []) == []

    def test_a_comparison_is_waited_for_by_the_open_attempts_that_asked_for_it(self, database: Engine) -> None:
        for name, key in (("a", KEY), ("b", KEY), ("other", OTHER_KEY), ("cancelled", KEY), ("decided", KEY)):
            files = with_both(database, name).files
            note_comparison(database, name, 1, key, by="test")
            if name == "decided":
                record_decision(database, name, 1, verdict=MATCH, files=files)
        close(database, "cancelled", 1, Status.CANCELLED, by="test")
        assert sorted(attempt.session_id for attempt in waiting_for(database, KEY)) == ["a", "b"]

    def test_any_number_of_sessions_costs_two_queries(self, database: Engine) -> None:
        for number in range(20):
            with_both(database, f"s{number}")
            open_attempt(database, f"over{number}", 1, -1)
        statements: list[str] = []
        event.listen(database, "before_cursor_execute", lambda *given: statements.append(given[2]))
        looks: list[Callable[[], list[Attempt]]] = [
            lambda: overdue(database, 100),
            lambda: in_progress(database, settled_seconds=0, limit=100),
            lambda: some_attempts(database, [(f"s{number}", 1) for number in range(20)]),
        ]
        for look in looks:
            statements.clear()
            assert len(look()) == 20
            assert len([statement for statement in statements if statement.startswith("SELECT")]) == 2


def test_the_clock_is_the_databases_own(database: Engine) -> None:
    attempt, _ = open_attempt(database, "a", 1, 90)
    with reading(database) as session:
        clocks = {
            "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
            "sqlite": "SELECT strftime('%s', 'now')",
        }
        now = float(session.execute(text(clocks[database.dialect.name])).scalar_one())
    assert now == pytest.approx(attempt.created_at.timestamp(), abs=10)
