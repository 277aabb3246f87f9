"""Cancelled, given up and deleted sessions over real HTTP, and the audit trail, while Prefect is away.

What Prefect does then is seen in tests/acceptance/test_cancel_and_delete.py.
"""

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import Engine, update

from deployments.upload_service.app import create_app
from tasks.contracts import EngineConfig, FaceComparison, Reason, Status
from tasks.database import database_for
from tasks.database.attempts import (
    close,
    get_attempt,
    next_attempt,
    note_comparison,
    note_run,
    open_attempt,
    record_decision,
    take_up,
)
from tasks.database.audit import trail
from tasks.database.comparisons import begin_comparison, finish_comparison
from tasks.database.engine import writing
from tasks.database.leases import Lease, holders, take
from tasks.database.tables import UploadRow
from tasks.database.types import clock
from tasks.deletion import delete_session
from tasks.errors import OrchestratorUnavailable, SessionDecided, SessionDeleted, UnknownSession
from tasks.settings import Settings
from tasks.trigger import resume, trigger
from tests.attempts import MATCH, stored, with_both
from tests.http_server import serving
from tests.prefect_server import prefect_server
from tests.uploading import CARD, VIDEO, Recorder, assert_problem, client_of, decide, movie, objects, picture

KEY, OTHER_KEY = "c" * 64, "d" * 64
RUN = UUID(int=1)
NOBODY = "http://127.0.0.1:9/api"


@pytest.fixture
def served(session: httpx.Client, settings: Settings) -> Engine:
    """The database of a service that has the session s-1, with both files."""
    session.put(CARD, content=picture())
    session.put(VIDEO, content=movie())
    return database_for(settings)


def compared(database: Engine, key: str) -> None:
    """Compute a comparison and store it."""
    lease = take(database, f"comparison:{key}", "flow run 7", 60)
    assert isinstance(lease, Lease)
    begin_comparison(database, lease, key, stored("card"), stored("video"), EngineConfig(), by="flow run 7")
    result = FaceComparison(rejection=Reason.NO_FACE_IN_VIDEO)
    finish_comparison(database, lease, key, result=result, picture_key=None, by="flow run 7")


class TestAudit:
    def test_it_tells_of_all_attempts_and_their_comparisons_in_order(self, database: Engine) -> None:
        with_both(database, "a")
        note_run(database, "a", 1, RUN, by="upload service")
        note_comparison(database, "a", 1, KEY, by="test")
        compared(database, KEY)
        files = get_attempt(database, "a").files
        record_decision(database, "a", 1, verdict=MATCH, files=files, comparison_key=KEY, flow_run_id=str(RUN))
        next_attempt(database, "a", 60)
        note_comparison(database, "a", 2, OTHER_KEY, by="test")
        compared(database, OTHER_KEY)
        lines = trail(database, "a")
        assert [(line.attempt, line.event, line.comparison_key) for line in lines] == [
            (1, "attempt_opened", None),
            (1, "file_stored", None),
            (1, "file_stored", None),
            (1, "status_changed", None),
            (1, "run_created", None),
            (1, "comparison_requested", KEY),
            (None, "computation_started", KEY),
            (None, "comparison_stored", KEY),
            (1, "status_changed", None),
            (2, "attempt_opened", None),
            (2, "comparison_requested", OTHER_KEY),
            (None, "computation_started", OTHER_KEY),
            (None, "comparison_stored", OTHER_KEY),
        ]
        assert [line.at for line in lines] == sorted(line.at for line in lines)
        decided = lines[8]
        assert (decided.from_status, decided.to_status) == ("in_progress", "decided")
        assert (decided.actor, decided.detail) == (f"flow run {RUN}", "SIMILARITY_SUFFICIENT")

    def test_it_tells_nothing_of_other_sessions_even_with_the_same_comparison(self, database: Engine) -> None:
        for name in ("a", "b"):
            with_both(database, name)
            note_comparison(database, name, 1, KEY, by="test")
        with_both(database, "c")
        note_comparison(database, "c", 1, OTHER_KEY, by="test")
        compared(database, KEY)
        compared(database, OTHER_KEY)
        own = ["attempt_opened", "file_stored", "file_stored", "status_changed", "comparison_requested"]
        assert [line.event for line in trail(database, "a")] == [*own, "computation_started", "comparison_stored"]

    def test_an_unknown_session_has_none(self, database: Engine) -> None:
        with pytest.raises(UnknownSession):
            trail(database, "nobody")

    def test_it_is_read_over_http(self, session: httpx.Client, served: Engine) -> None:
        answer = session.get("/sessions/s-1/audit").json()
        assert answer["session_id"] == "s-1"
        events = ["attempt_opened", "file_stored", "file_stored", "status_changed"]
        assert [line["event"] for line in answer["lines"]] == events
        assert {line["actor"] for line in answer["lines"]} == {"upload service"}
        assert_problem(session.get("/sessions/none/audit"), 404, "UNKNOWN_SESSION")


class TestDeletion:
    def test_a_deleted_session_is_gone_for_every_reader_and_its_media_are_gone(
        self, session: httpx.Client, served: Engine, settings: Settings, trigger: Recorder
    ) -> None:
        told = len(trigger.told)
        assert session.delete("/sessions/s-1").status_code in (202, 204)
        assert objects(settings) == []
        for answer in (
            session.get("/sessions/s-1"),
            session.get("/sessions/s-1?attempt=1"),
            session.post("/sessions", json={"session_id": "s-1"}),
            session.post("/sessions/s-1/attempts"),
            session.post("/sessions/s-1/resume"),
            session.put(CARD, content=picture()),
            session.put(VIDEO, content=movie()),
        ):
            assert_problem(answer, 410, "SESSION_DELETED")
        assert objects(settings) == []
        assert len(trigger.told) == told
        lines = session.get("/sessions/s-1/audit").json()["lines"]
        changes = [(line["to_status"], line["actor"]) for line in lines if line["event"] == "status_changed"]
        assert changes == [("in_progress", "upload service"), ("deleted", "upload service")]

    def test_every_attempt_is_deleted_and_no_further_one_is_made(
        self, session: httpx.Client, served: Engine, settings: Settings
    ) -> None:
        decide(settings)
        session.post("/sessions/s-1/attempts")
        session.delete("/sessions/s-1")
        assert [get_attempt(served, "s-1", attempt).status for attempt in (1, 2)] == [Status.DELETED] * 2
        assert_problem(session.post("/sessions/s-1/attempts"), 410, "SESSION_DELETED")

    def test_it_may_be_repeated_and_asked_for_many_times_at_once(self, session: httpx.Client, served: Engine) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: session.delete("/sessions/s-1"), range(8)))
        assert {answer.status_code for answer in answers} <= {202, 204}
        assert session.delete("/sessions/s-1").status_code in (202, 204)
        assert [line.to_status for line in trail(served, "s-1")].count("deleted") == 1

    def test_an_unknown_session_cannot_be_deleted(self, client: httpx.Client) -> None:
        assert_problem(client.delete("/sessions/none"), 404, "UNKNOWN_SESSION")

    def test_when_prefect_is_away_it_is_deleted_all_the_same_and_its_comparison_can_write_nothing(
        self, session: httpx.Client, served: Engine, settings: Settings
    ) -> None:
        note_run(served, "s-1", 1, RUN, by="upload service")
        note_comparison(served, "s-1", 1, KEY, by="test")
        assert isinstance(take(served, f"comparison:{KEY}", str(RUN), 600), Lease)
        assert session.delete("/sessions/s-1").status_code == 202
        assert holders(served, [f"comparison:{KEY}"]) == {}
        assert objects(settings) == []
        assert_problem(session.get("/sessions/s-1"), 410, "SESSION_DELETED")

    def test_a_comparison_that_another_sessions_run_computes_goes_on(
        self, session: httpx.Client, served: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KYCFLOW_LEASE_SECONDS", "1")
        with_both(served, "other")
        for name, run in (("s-1", RUN), ("other", UUID(int=3))):
            note_run(served, name, 1, run, by="upload service")
            note_comparison(served, name, 1, KEY, by="test")
        take(served, f"comparison:{KEY}", str(UUID(int=3)), 600)
        session.delete("/sessions/s-1")
        assert holders(served, [f"comparison:{KEY}"])[f"comparison:{KEY}"].owner == str(UUID(int=3))

    def test_one_that_is_not_known_to_be_stopped_is_not_said_to_be_gone(self, settings: Settings) -> None:
        database = database_for(settings)
        open_attempt(database, "a", 1, 60)
        note_run(database, "a", 1, RUN, by="upload service")
        with temporary_settings({PREFECT_API_URL: NOBODY}):
            assert asyncio.run(delete_session("a", by="test")) is False
        assert get_attempt(database, "a").status is Status.DELETED


class TestResume:
    @pytest.mark.parametrize("status", [Status.CANCELLED, Status.ERROR])
    def test_when_prefect_does_not_answer_nothing_changes(self, settings: Settings, status: Status) -> None:
        database = database_for(settings)
        with_both(database, "a")
        note_run(database, "a", 1, RUN, by="upload service")
        close(database, "a", 1, status, by="test")
        with temporary_settings({PREFECT_API_URL: NOBODY}), pytest.raises(OrchestratorUnavailable):
            asyncio.run(resume(get_attempt(database, "a")))
        assert get_attempt(database, "a").status is status

    def test_a_session_without_a_flow_run_is_open_again_before_prefect_is_asked_for_one(
        self, settings: Settings
    ) -> None:
        database = database_for(settings)
        with_both(database, "a")
        close(database, "a", 1, Status.CANCELLED, by="test")
        with temporary_settings({PREFECT_API_URL: NOBODY}), pytest.raises(OrchestratorUnavailable):
            asyncio.run(resume(get_attempt(database, "a")))
        assert get_attempt(database, "a").status is Status.IN_PROGRESS, "The sweep starts it."

    def test_a_decided_session_stays_decided(self, session: httpx.Client, served: Engine, settings: Settings) -> None:
        decide(settings)
        assert_problem(session.post("/sessions/s-1/resume"), 409, "SESSION_DECIDED")
        with pytest.raises(SessionDecided):
            asyncio.run(resume(get_attempt(served, "s-1")))

    def test_a_deleted_session_stays_deleted_though_it_was_read_before(self, settings: Settings) -> None:
        database = database_for(settings)
        with_both(database, "a")
        close(database, "a", 1, Status.DELETED, by="test")
        with pytest.raises(SessionDeleted):
            asyncio.run(resume(get_attempt(database, "a")))

    def test_unknown_sessions_and_attempts_are_refused(self, session: httpx.Client) -> None:
        assert_problem(session.post("/sessions/none/resume"), 404, "UNKNOWN_SESSION")
        assert_problem(session.post("/sessions/s-1/resume?attempt=2"), 404, "UNKNOWN_SESSION")
        assert_problem(session.post("/sessions/s-1/resume?attempt=0"), 422, "INVALID_REQUEST")


class TestStatus:
    @pytest.mark.parametrize("status", [Status.CANCELLED, Status.ERROR])
    def test_readers_see_it(self, session: httpx.Client, served: Engine, status: Status) -> None:
        close(served, "s-1", 1, status, by="test")
        seen = session.get("/sessions/s-1").json()
        assert (seen["status"], seen["decision"]) == (status.value, None)

    def test_a_file_for_a_cancelled_session_is_stored_and_starts_nothing(self, settings: Settings) -> None:
        """With the service's own trigger, which would fail here if it asked Prefect."""
        with serving(create_app(settings)) as url, httpx.Client(base_url=url, trust_env=False) as client:
            client.post("/sessions", json={"session_id": "s-1"})
            close(database_for(settings), "s-1", 1, Status.CANCELLED, by="test")
            answer = client.put(CARD, content=picture())
            assert (answer.status_code, answer.json()["started"], answer.json()["status"]) == (201, False, "cancelled")
            assert client.get("/sessions/s-1").json()["files"]["id_image"] is not None
        assert len(objects(settings)) == 1
        assert asyncio.run(trigger(get_attempt(database_for(settings), "s-1"))) is False

    def test_an_upload_answers_with_the_status_after_the_session_was_taken_up_again(self, settings: Settings) -> None:
        class TakesUp(Recorder):
            async def __call__(self, attempt: object) -> bool:
                take_up(database_for(settings), "s-1", 1, by="test")
                return True

        with client_of(settings, TakesUp()) as client:
            client.post("/sessions", json={"session_id": "s-1"})
            close(database_for(settings), "s-1", 1, Status.ERROR, by="test")
            assert client.put(CARD, content=picture()).json()["status"] == "awaiting_files"


class Kycflow:
    """The command line, told where the upload API or Prefect's is."""

    def __init__(self, **environment: str) -> None:
        given = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        self.environment = given | environment

    def __call__(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        """Run it; `answer` is what is typed."""
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments],
            env=self.environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


class TestCommands:
    """As a user types them."""

    @pytest.fixture
    def kycflow(self, session: httpx.Client, served: Engine) -> Kycflow:
        return Kycflow(KYCFLOW_API_URL=str(session.base_url))

    @pytest.mark.parametrize("status", [Status.CANCELLED, Status.ERROR])
    def test_status_says_what_to_do_next(self, kycflow: Kycflow, served: Engine, status: Status) -> None:
        close(served, "s-1", 1, status, by="test")
        done = kycflow("status", "s-1")
        assert done.returncode == 0, done.stderr
        assert status.value in done.stdout
        assert "kycflow resume s-1" in done.stdout

    def test_audit_prints_the_trail(self, kycflow: Kycflow, served: Engine) -> None:
        note_comparison(served, "s-1", 1, KEY, by="test")
        compared(served, KEY)
        shown = kycflow("audit", "s-1").stdout.splitlines()
        assert shown[0].split()[:4] == ["Time", "(UTC)", "Attempt", "Event"]
        assert [line.split()[3] for line in shown[1:4]] == ["attempt_opened", "file_stored", "file_stored"]
        assert "awaiting_files to in_progress" in shown[4]
        assert f"comparison {KEY[:12]}" in shown[5]
        assert f"comparison {KEY[:12]} start 1" in shown[6]
        lines = json.loads(kycflow("audit", "s-1", "--json").stdout)
        assert [line["event"] for line in lines][-1] == "comparison_stored"

    def test_delete_asks_first(self, kycflow: Kycflow, served: Engine) -> None:
        refused = kycflow("delete", "s-1", answer="n\n")
        assert (refused.returncode, "for good?" in refused.stdout) == (1, True)
        assert get_attempt(served, "s-1").status is Status.IN_PROGRESS
        done = kycflow("delete", "s-1", answer="y\n")
        assert (done.returncode, "Session s-1 is deleted." in done.stdout) == (0, True), done.stderr
        assert get_attempt(served, "s-1").status is Status.DELETED

    def test_delete_does_not_ask_a_script(self, kycflow: Kycflow, served: Engine) -> None:
        assert kycflow("delete", "s-1", "--yes").returncode == 0
        gone = kycflow("status", "s-1")
        assert (gone.returncode, "SESSION_DELETED" in gone.stderr) == (2, True)
        assert "deleted" in kycflow("audit", "s-1").stdout

    def test_resume_of_a_decided_session_is_refused(self, kycflow: Kycflow, settings: Settings) -> None:
        decide(settings)
        done = kycflow("resume", "s-1")
        assert (done.returncode, "error: SESSION_DECIDED" in done.stderr) == (2, True)

    def test_sweep_without_prefect_says_what_is_missing(self, kycflow: Kycflow) -> None:
        done = kycflow("sweep", "--dry-run")
        assert (done.returncode, "PREFECT_API_URL" in done.stderr) == (2, True)
        assert "Traceback" not in done.stderr


def test_sweep_shows_and_mends_what_was_lost(settings: Settings, tmp_path: Path) -> None:
    """On a Prefect server without workers, and so without sweeps of its own."""
    database = database_for(settings)
    with prefect_server(tmp_path / "prefect") as prefect:
        kycflow = Kycflow(PREFECT_API_URL=prefect)
        assert kycflow("deploy").returncode == 0
        assert kycflow("sweep").stdout == "Nothing to mend.\n"

        with_both(database, "lost")
        with writing(database) as session:
            session.execute(update(UploadRow).values(uploaded_at=clock(-3600)))
        dry = kycflow("sweep", "--dry-run").stdout.splitlines()
        assert [row.split() for row in dry] == [
            ["Subject", "To", "do", "Why"],
            ["session", "lost", "attempt", "1", "start", "it", "has", "no", "flow", "run"],
        ]
        assert get_attempt(database, "lost").flow_run_id is None

        (finding,) = json.loads(kycflow("sweep", "--json").stdout)
        assert (finding["session_id"], finding["attempt"], finding["action"]) == ("lost", 1, "start")
        assert get_attempt(database, "lost").flow_run_id is not None
        assert json.loads(kycflow("sweep", "--json").stdout) == []
