"""Where an attempt may go from where it stands, who wins a race for it, and the trail that this leaves."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from tasks.contracts import Attempt, DecisionKind, FileKind, FilePair, Reason, Status, Verdict
from tasks.database.attempts import close, get_attempt, open_attempt, record_decision, register_upload, take_up
from tasks.database.engine import reading, writing
from tasks.database.status import move, trace
from tasks.database.tables import AttemptRow, AuditRow, DecisionRow
from tasks.errors import ConfigurationError, SessionCancelled, SessionDeleted
from tests.attempts import MATCH, at_once, put, stored, trail, with_both
from tests.databases import everything

AWAITING, IN_PROGRESS, DECIDED, ERROR, CANCELLED, DELETED = Status

MAY_GO_TO: dict[Status, set[Status]] = {
    AWAITING: {IN_PROGRESS, DECIDED, ERROR, CANCELLED, DELETED},
    IN_PROGRESS: {DECIDED, ERROR, CANCELLED, DELETED},
    DECIDED: {DELETED},
    ERROR: {AWAITING, IN_PROGRESS, CANCELLED, DELETED},
    CANCELLED: {AWAITING, IN_PROGRESS, DELETED},
    DELETED: set(),
}
"""Written down a second time, from where to where: `tasks/database/status.py` has it the other way round."""

REFUSED = (DBAPIError, ConfigurationError)
"""PostgreSQL's refusal to change the trail is no broken constraint, and is translated."""


def closed_at(database: Engine, session_id: str) -> datetime | None:
    with reading(database) as session:
        return session.scalar(select(AttemptRow.closed_at).where(AttemptRow.session_id == session_id))


def decisions(database: Engine) -> int:
    with reading(database) as session:
        return session.scalar(select(func.count()).select_from(DecisionRow)) or 0


def changes(database: Engine, session_id: str) -> list[tuple[str | None, str | None]]:
    return [
        (line.from_status, line.to_status) for line in trail(database, session_id) if line.event == "status_changed"
    ]


class TestMoves:
    @pytest.mark.parametrize("before", Status)
    def test_an_attempt_goes_where_it_may_and_stays_where_it_is_otherwise(
        self, before: Status, database: Engine
    ) -> None:
        went = set()
        for to in Status:
            open_attempt(database, to.value, 1, 90)
            put(database, to.value, before)
            with writing(database) as session:
                moved = move(session, to.value, 1, to, by="test", detail="why")
            assert get_attempt(database, to.value).status is (to if moved else before)
            assert changes(database, to.value) == ([(before, to)] if moved else [])
            if moved:
                went.add(to)
        assert went == MAY_GO_TO[before]

    def test_an_unknown_attempt_goes_nowhere(self, database: Engine) -> None:
        with writing(database) as session:
            assert not move(session, "none", 1, CANCELLED, by="test")
        assert trail(database, "none") == []

    def test_other_attempts_stay_where_they_are(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        with_both(database, "b")
        close(database, "b", 1, CANCELLED, by="test")
        assert get_attempt(database, "a").status is DECIDED

    def test_it_is_known_since_when_nobody_is_at_work_on_it(self, database: Engine) -> None:
        with_both(database, "a")
        assert closed_at(database, "a") is None
        close(database, "a", 1, ERROR, by="test")
        closed = closed_at(database, "a")
        assert closed is not None
        assert abs(datetime.now(UTC) - closed) < timedelta(seconds=10)
        take_up(database, "a", 1, by="test")
        assert closed_at(database, "a") is None

    def test_racing_moves_leave_one_trace_each_way(self, database: Engine) -> None:
        with_both(database, "a")
        assert sum(at_once(8, lambda number: close(database, "a", 1, CANCELLED, by=f"racer {number}"))) == 1
        assert changes(database, "a") == [(AWAITING, IN_PROGRESS), (IN_PROGRESS, CANCELLED)]


class TestDecisions:
    @pytest.mark.parametrize(
        ("status", "refusal"), [(CANCELLED, SessionCancelled), (ERROR, SessionCancelled), (DELETED, SessionDeleted)]
    )
    def test_a_late_writer_records_nothing_on_a_closed_attempt(
        self, status: Status, refusal: type[Exception], database: Engine
    ) -> None:
        files = with_both(database, "a").files
        close(database, "a", 1, status, by="a person")
        before = everything(database)
        with pytest.raises(refusal, match="'a'"):
            record_decision(database, "a", 1, verdict=MATCH, files=files, similarity=0.9)
        assert everything(database) == before

    def test_of_many_different_verdicts_at_once_one_counts_and_is_told_to_all(self, database: Engine) -> None:
        files = with_both(database, "a").files
        reasons = list(Reason)[:8]

        def decide(number: int) -> object:
            verdict = Verdict(decision=list(DecisionKind)[number % 5], reason=reasons[number])
            return record_decision(database, "a", 1, verdict=verdict, files=files, flow_run_id=str(number))

        told = at_once(8, decide)
        assert told == [get_attempt(database, "a").decision] * 8
        assert decisions(database) == 1
        assert changes(database, "a") == [(AWAITING, IN_PROGRESS), (IN_PROGRESS, DECIDED)]

    def test_the_decision_the_trail_and_the_winner_agree(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files, flow_run_id="the first")
        last = trail(database, "a")[-1]
        assert (last.to_status, last.actor, last.detail) == (DECIDED, "flow run the first", MATCH.reason)

    @pytest.mark.parametrize("status", [CANCELLED, DELETED, ERROR])
    def test_of_a_decision_and_another_end_at_once_one_counts(self, status: Status, database: Engine) -> None:
        for number in range(10):
            name = f"s{number}"
            files = with_both(database, name).files

            def one(index: int, name: str = name, files: FilePair = files) -> object:
                if index:
                    return close(database, name, 1, status, by="a person")
                try:
                    return record_decision(database, name, 1, verdict=MATCH, files=files)
                except (SessionCancelled, SessionDeleted):
                    return None

            decided, closed = at_once(2, one)
            stands = get_attempt(database, name)
            if status is DELETED:
                assert closed
                assert stands.status is DELETED
            else:
                assert (decided is None) == closed
                assert stands.status is (status if closed else DECIDED)
            assert (stands.decision is None) == (decided is None)

    def test_the_database_itself_refuses_a_second_decision(self, database: Engine) -> None:
        record_decision(database, "a", 1, verdict=MATCH, files=with_both(database, "a").files)
        second = {
            "session_id": "a",
            "attempt": 1,
            "decision": DecisionKind.NO_MATCH,
            "reason": Reason.SIMILARITY_INSUFFICIENT,
            "decided_at": datetime.now(UTC),
        }
        with pytest.raises(IntegrityError), writing(database) as session:
            session.execute(insert(DecisionRow).values(**second))


def opened_to_decided(database: Engine) -> Attempt:
    open_attempt(database, "a", 1, 90)
    register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("card"))
    files = register_upload(database, "a", 1, FileKind.SELFIE_VIDEO, stored("video"), by="flow run 1").files
    record_decision(database, "a", 1, verdict=MATCH, files=files, flow_run_id="1")
    return get_attempt(database, "a")


class TestTrail:
    def test_it_tells_a_session_from_its_opening_to_its_decision(self, database: Engine) -> None:
        attempt = opened_to_decided(database)
        lines = trail(database, "a")
        assert [(line.actor, line.event, line.from_status, line.to_status, line.detail) for line in lines] == [
            ("upload service", "attempt_opened", None, "awaiting_files", None),
            ("upload service", "file_stored", None, None, "id_image"),
            ("flow run 1", "file_stored", None, None, "selfie_video"),
            ("flow run 1", "status_changed", "awaiting_files", "in_progress", None),
            ("flow run 1", "status_changed", "in_progress", "decided", "SIMILARITY_SUFFICIENT"),
        ]
        assert {line.attempt for line in lines} == {1}
        moments = [line.at for line in lines]
        assert moments == sorted(moments)
        assert attempt.created_at <= moments[0]

    def test_calls_that_are_repeated_leave_no_second_line(self, database: Engine) -> None:
        opened_to_decided(database)
        before = len(trail(database, "a"))
        attempt = get_attempt(database, "a")
        open_attempt(database, "a", 1, 90)
        register_upload(database, "a", 1, FileKind.ID_IMAGE, stored("card"))
        record_decision(database, "a", 1, verdict=MATCH, files=attempt.files)
        close(database, "a", 1, CANCELLED, by="too late")
        assert len(trail(database, "a")) == before

    def test_what_is_undone_leaves_no_line(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 90)
        before = everything(database)

        def fail_after_the_move() -> None:
            with writing(database) as session:
                assert move(session, "a", 1, CANCELLED, by="test")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_after_the_move()
        assert everything(database) == before

    def test_long_words_are_cut_and_break_nothing(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 90)
        assert close(database, "a", 1, ERROR, by="b" * 500, detail="d" * 5000)
        last = trail(database, "a")[-1]
        assert (last.actor, last.detail) == ("b" * 192, "d" * 512)

    def test_the_database_refuses_to_change_a_line(self, database: Engine) -> None:
        opened_to_decided(database)
        before = everything(database)
        with pytest.raises(REFUSED, match="append-only"), writing(database) as session:
            session.execute(update(AuditRow).values(actor="nobody"))
        assert everything(database) == before

    def test_the_database_refuses_to_delete_a_line_that_is_not_old(self, database: Engine) -> None:
        opened_to_decided(database)
        before = everything(database)
        for query in (delete(AuditRow), delete(AuditRow).where(AuditRow.event == "status_changed")):
            with pytest.raises(REFUSED, match="append-only"), writing(database) as session:
                session.execute(query)
        assert everything(database) == before

    def test_a_line_of_more_than_thirty_days_may_be_deleted_and_not_changed(self, database: Engine) -> None:
        for days in (31, 29):
            with writing(database) as session:
                old = datetime.now(UTC) - timedelta(days=days)
                session.execute(insert(AuditRow).values(at=old, actor="test", event=f"{days} days ago"))
        with pytest.raises(REFUSED, match="append-only"), writing(database) as session:
            session.execute(update(AuditRow).values(actor="nobody"))
        with writing(database) as session:
            session.execute(delete(AuditRow).where(AuditRow.event == "31 days ago"))
        with pytest.raises(REFUSED, match="append-only"), writing(database) as session:
            session.execute(delete(AuditRow))
        assert [line.event for line in trail(database)] == ["29 days ago"]


def test_statuses_are_stored_by_their_names(database: Engine) -> None:
    open_attempt(database, "a", 1, 90)
    with writing(database) as session:
        trace(session, "test", by="test", session_id="a", attempt=1, to_status=CANCELLED)
    with reading(database) as session:
        assert session.execute(text("SELECT status FROM attempts")).scalar() == "awaiting_files"
        assert session.execute(text("SELECT to_status FROM audit WHERE event = 'test'")).scalar() == "cancelled"
