"""Attempts, uploads and decisions, on SQLite and PostgreSQL."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from threading import Barrier
from typing import TypeVar

import pytest
from sqlalchemy import Engine, event, func, select, text

from tasks.contracts import Attempt, Decision, DecisionKind, FileKind, FilePair, Reason, StoredFile, Thresholds, Verdict
from tasks.database.attempts import (
    due_attempts,
    get_attempt,
    is_registered,
    next_attempt,
    open_attempt,
    record_decision,
    register_upload,
)
from tasks.database.engine import reading, writing
from tasks.database.tables import DecisionRow, UploadRow
from tasks.errors import SessionDecided, SessionUndecided, UnknownSession

MATCH = Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT)
NO_MATCH = Verdict(decision=DecisionKind.NO_MATCH, reason=Reason.SIMILARITY_INSUFFICIENT)
EXPIRED = Verdict(decision=DecisionKind.EXPIRED, reason=Reason.BOTH_FILES_MISSING)


T = TypeVar("T")


def stored(key: str) -> StoredFile:
    return StoredFile(storage_key=key, sha256="a" * 64, size_bytes=5)


def with_both(database: Engine, session_id: str, deadline_seconds: float = 100) -> Attempt:
    open_attempt(database, session_id, 1, deadline_seconds)
    register_upload(database, session_id, 1, FileKind.ID_IMAGE, stored(f"{session_id}/card"))
    return register_upload(database, session_id, 1, FileKind.SELFIE_VIDEO, stored(f"{session_id}/video"))


def at_once(number: int, call: Callable[[int], T]) -> list[T]:
    """Real threads that begin together."""
    barrier = Barrier(number)

    def one(index: int) -> T:
        barrier.wait(10)
        return call(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number), timeout=60))


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
        assert not is_registered(database, "late")

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


class TestDue:
    def test_what_should_be_at_work_and_nothing_else(self, database: Engine) -> None:
        open_attempt(database, "waiting", 1, 90)
        open_attempt(database, "over", 1, -1)
        with_both(database, "fresh")
        with_both(database, "settled")
        age(database, "settled", 60)
        decided = with_both(database, "decided", -5)
        record_decision(database, "decided", 1, verdict=MATCH, files=decided.files)
        open_attempt(database, "half", 1, 90)
        register_upload(database, "half", 1, FileKind.ID_IMAGE, stored("half/card"))
        age(database, "half", 60)
        due = due_attempts(database, settled_seconds=30, limit=10)
        assert [attempt.session_id for attempt in due] == ["over", "settled"]
        assert due[1] == get_attempt(database, "settled")

    def test_pages_leave_nothing_out(self, database: Engine) -> None:
        for number in range(7):
            open_attempt(database, f"s{number}", 1, -1)
        seen: list[str] = []
        page = due_attempts(database, settled_seconds=0, limit=3)
        while page:
            seen += [attempt.session_id for attempt in page]
            page = due_attempts(database, settled_seconds=0, limit=3, after=page[-1])
        assert sorted(seen) == [f"s{number}" for number in range(7)]

    def test_any_number_of_sessions_costs_two_queries(self, database: Engine) -> None:
        for number in range(20):
            with_both(database, f"s{number}", -1)
        statements: list[str] = []
        event.listen(database, "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert len(due_attempts(database, settled_seconds=0, limit=100)) == 20
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
