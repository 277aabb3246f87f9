"""Media, scores, decisions and audit past their age: on both databases, both stores, and a real Prefect server."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import TypeVar
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import FlowRunUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings
from prefect.states import Completed, Running
from pydantic import ValidationError
from sqlalchemy import Engine, delete, func, insert, select, update

import tasks.erasing
import tasks.purge
from tasks.contracts import (
    Attempt,
    DecisionKind,
    EngineConfig,
    FileKind,
    FilePair,
    Reason,
    Status,
    StoredFile,
    Thresholds,
    Verdict,
    comparison_key,
)
from tasks.database.attempts import (
    close,
    get_attempt,
    next_attempt,
    note_comparison,
    note_run,
    open_attempt,
    record_decision,
    register_upload,
    take_up,
)
from tasks.database.comparisons import begin_comparison, finish_comparison, get_comparison
from tasks.database.engine import reading, writing
from tasks.database.leases import Lease, release, take
from tasks.database.retention import (
    begin_erasing,
    due_for_erasing,
    finish_erasing,
    forget_audit,
    forget_comparison,
    forget_sessions,
    reopen_erased,
    unneeded_comparisons,
)
from tasks.database.tables import AttemptRow, AuditRow, ComparisonRow, DecisionRow, LeaseRow, UploadRow
from tasks.database.types import clock
from tasks.ending import give_up
from tasks.erasing import Erased, erase_attempt, erase_session
from tasks.errors import (
    ConfigurationError,
    LeaseHeld,
    LeaseLost,
    RetryableError,
    SessionDeleted,
    StorageUnavailable,
    UnknownSession,
)
from tasks.purge import Purged, delete_orphans, purge
from tasks.report import publish_decision
from tasks.settings import Settings
from tasks.storage import Storage
from tasks.storage.files import hash_file
from tasks.storage.keys import COMPARISON_RESULTS, SESSION_RESULTS, evaluation_key, new_file_key, picture_key
from tests.faces import scored
from tests.prefect_server import prefect_server

# Tasks are called without Prefect's engine here.
pytestmark = pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow:FutureWarning")

DAY = 86_400
OLD = 31 * DAY
MEDIA_AGE, DECISION_AGE = 30 * DAY, 1825 * DAY
MATCH = Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT, detail="similarity 0.7")
THRESHOLDS = Thresholds(match=0.5, review=0.4)
ENGINE = EngineConfig()
CARD, VIDEO = "a" * 64, "b" * 64
KEY = comparison_key(CARD, VIDEO, ENGINE)
T = TypeVar("T")


def stored(key: str, sha256: str) -> StoredFile:
    return StoredFile(storage_key=key, sha256=sha256, size_bytes=5)


def with_files(database: Engine, session_id: str, *, card: str = CARD, video: str = VIDEO) -> Attempt:
    open_attempt(database, session_id, 1, 3600)
    register_upload(database, session_id, 1, FileKind.ID_IMAGE, stored(f"{session_id}/card", card))
    return register_upload(database, session_id, 1, FileKind.SELFIE_VIDEO, stored(f"{session_id}/video", video))


def compared(database: Engine, *, card: str = CARD, video: str = VIDEO) -> str:
    """A comparison that is computed, unless it is there; its key."""
    key = comparison_key(card, video, ENGINE)
    lease = take(database, f"comparison:{key}", "test", 60)
    assert isinstance(lease, Lease)
    begin_comparison(database, lease, key, stored("card", card), stored("video", video), ENGINE, by="test")
    finish_comparison(database, lease, key, result=scored(), picture_key=picture_key(key), by="test")
    release(database, lease)
    return key


def decided(database: Engine, session_id: str, *, key: str | None = KEY, files: FilePair | None = None) -> None:
    made = record_decision(
        database,
        session_id,
        1,
        verdict=MATCH,
        files=with_files(database, session_id).files if files is None else files,
        similarity=0.7,
        thresholds=THRESHOLDS,
        comparison_key=key,
    )
    assert made is not None


def age(database: Engine, session_id: str, seconds: float = OLD) -> None:
    """Have a session's closed attempts closed so long ago."""
    of_session = (AttemptRow.session_id == session_id) & AttemptRow.closed_at.is_not(None)
    with writing(database) as session:
        session.execute(update(AttemptRow).where(of_session).values(closed_at=clock(-seconds)))


def due(database: Engine) -> list[str]:
    return [one.session_id for one in due_for_erasing(database, MEDIA_AGE, 100)]


def erased(database: Engine, session_id: str) -> None:
    begin_erasing(database, session_id, 1, by="test")
    assert finish_erasing(database, session_id, 1, by="test")


def count(database: Engine, table: type[AttemptRow | UploadRow | DecisionRow | ComparisonRow | LeaseRow]) -> int:
    with reading(database) as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def events(database: Engine, session_id: str) -> list[str]:
    with reading(database) as session:
        return list(session.scalars(select(AuditRow.event).where(AuditRow.session_id == session_id)))


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Real threads that begin together, with this thread's Prefect settings."""
    barrier = Barrier(len(calls))

    def one(call: Callable[[], T]) -> T:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(copy_context().run, one, call) for call in calls]]


class TestDue:
    def test_what_is_closed_for_long_or_deleted_and_nothing_else(self, database: Engine) -> None:
        for name in ("old", "young", "cancelled", "gone", "erased"):
            decided(database, name) if name not in ("cancelled", "gone") else with_files(database, name)
        close(database, "cancelled", 1, Status.CANCELLED, by="test")
        close(database, "gone", 1, Status.DELETED, by="test")
        with_files(database, "open")
        for name, seconds in (("old", OLD), ("cancelled", OLD + DAY), ("erased", OLD)):
            age(database, name, seconds)
        erased(database, "erased")
        assert due(database) == ["cancelled", "old", "gone"]

    def test_pages_leave_nothing_out(self, database: Engine) -> None:
        for number in range(7):
            decided(database, f"s{number}")
        with writing(database) as session:
            session.execute(update(AttemptRow).values(closed_at=datetime(2020, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)))
        seen, page = [], due_for_erasing(database, MEDIA_AGE, 3)
        while page:
            seen += [one.session_id for one in page]
            page = due_for_erasing(database, MEDIA_AGE, 3, page[-1])
        assert seen == [f"s{number}" for number in range(7)]

    def test_a_session_deleted_after_its_media_were_erased_is_due_again_once(self, database: Engine) -> None:
        decided(database, "a")
        age(database, "a")
        erased(database, "a")
        assert reopen_erased(database) == 0
        close(database, "a", 1, Status.DELETED, by="test")
        assert reopen_erased(database) == 1
        assert due(database) == ["a"]
        erased(database, "a")
        assert count(database, DecisionRow) == 0
        assert (reopen_erased(database), due(database)) == (0, [])


class TestRows:
    def test_a_decision_stays_without_its_score_and_the_files_rows_go(self, database: Engine) -> None:
        decided(database, "a")
        before = get_attempt(database, "a").decision
        assert before is not None
        erased(database, "a")
        found = get_attempt(database, "a")
        assert found.decision == before.model_copy(update={"similarity": None, "detail": None})
        assert found.decision is not None
        assert found.decision.thresholds == THRESHOLDS
        assert (found.status, found.files, count(database, UploadRow)) == (Status.DECIDED, FilePair(), 0)

    def test_erasing_replays_its_own_lost_commit(self, database: Engine) -> None:
        decided(database, "a")
        erased(database, "a")
        assert not finish_erasing(database, "a", 1, by="test")
        assert begin_erasing(database, "a", 1, by="test") is None
        assert events(database, "a").count("media_erased") == 1

    @pytest.mark.parametrize("status", [Status.ERROR, Status.CANCELLED])
    def test_what_could_be_taken_up_again_is_deleted_when_its_media_are(self, status: Status, database: Engine) -> None:
        with_files(database, "a")
        close(database, "a", 1, status, by="test")
        assert begin_erasing(database, "a", 1, by="test") is not None
        with pytest.raises(SessionDeleted):
            take_up(database, "a", 1, by="test")
        assert due(database) == ["a"]

    def test_an_attempt_that_somebody_is_at_work_on_is_left_alone(self, database: Engine) -> None:
        with_files(database, "a")
        assert begin_erasing(database, "a", 1, by="test") is None
        assert not finish_erasing(database, "a", 1, by="test")
        assert begin_erasing(database, "unknown", 1, by="test") is None
        assert get_attempt(database, "a").files.complete

    def test_what_belongs_to_it_elsewhere_is_its_comparison_and_its_flow_run(self, database: Engine) -> None:
        attempt = with_files(database, "a")
        note_comparison(database, "a", 1, KEY, by="test")
        note_run(database, "a", 1, UUID(int=2), by="test")
        decided(database, "a", files=attempt.files)
        found = begin_erasing(database, "a", 1, by="test")
        assert found is not None
        assert found.comparison_keys == {KEY}
        assert found.flow_run_id == UUID(int=2)


class TestComparisons:
    def forget(self, database: Engine, besides: Attempt | None = None) -> int | None:
        lease = take(database, f"comparison:{KEY}", "test", 60)
        assert isinstance(lease, Lease)
        forgotten = forget_comparison(database, lease, KEY, besides=besides)
        release(database, lease)
        return forgotten

    def test_one_that_nobody_needs_goes_once(self, database: Engine) -> None:
        compared(database)
        with_files(database, "other", video="c" * 64)
        assert [self.forget(database) for _ in range(2)] == [1, 0]

    def test_one_that_an_attempt_was_decided_by_stays(self, database: Engine) -> None:
        compared(database)
        decided(database, "a")
        assert self.forget(database) is None
        assert get_comparison(database, KEY) is not None
        assert self.forget(database, besides=get_attempt(database, "a")) == 1

    def test_one_that_an_attempt_has_asked_for_stays(self, database: Engine) -> None:
        compared(database)
        with_files(database, "a", video="c" * 64)
        note_comparison(database, "a", 1, KEY, by="test")
        assert self.forget(database) is None
        close(database, "a", 1, Status.DELETED, by="test")
        assert self.forget(database) is None
        erased(database, "a")
        assert self.forget(database) == 1

    def test_one_that_an_attempt_is_about_to_find_stays(self, database: Engine) -> None:
        compared(database)
        attempt = with_files(database, "a")
        assert self.forget(database) is None
        decided(database, "a", key=None, files=attempt.files)
        assert self.forget(database) == 1

    def test_only_its_leases_owner_forgets_it(self, database: Engine) -> None:
        compared(database)
        lease = take(database, f"comparison:{KEY}", "test", 60)
        assert isinstance(lease, Lease)
        release(database, lease)
        with pytest.raises(LeaseLost):
            forget_comparison(database, lease, KEY, besides=None)
        assert get_comparison(database, KEY) is not None

    def test_those_that_erased_attempts_left_and_old_ones_are_unneeded(self, database: Engine) -> None:
        keys = {name: compared(database, video=name * 64) for name in "abcd"}
        with_files(database, "left", video="0" * 64)
        note_comparison(database, "left", 1, keys["a"], by="test")
        close(database, "left", 1, Status.DELETED, by="test")
        erased(database, "left")
        decided(database, "needed", key=keys["c"])
        with writing(database) as session:
            old = ComparisonRow.comparison_key.in_([keys["b"], keys["c"]])
            session.execute(update(ComparisonRow).where(old).values(started_at=clock(-OLD)))
        unneeded = unneeded_comparisons(database, MEDIA_AGE, 10)
        assert unneeded == sorted([keys["a"], keys["b"]])
        assert unneeded_comparisons(database, MEDIA_AGE, 10, unneeded[0]) == unneeded[1:]


class TestForgetting:
    VERY_OLD = DECISION_AGE + DAY

    def test_a_session_goes_when_all_of_it_is_erased_and_old(self, database: Engine) -> None:
        for name in ("a", "young", "unerased", "further"):
            decided(database, name)
        next_attempt(database, "further", 3600)
        for name in ("a", "unerased", "further"):
            age(database, name, self.VERY_OLD)
        for name in ("a", "young", "further"):
            erased(database, name)
        assert forget_sessions(database, DECISION_AGE, 10) == (1, 1)
        assert forget_sessions(database, DECISION_AGE, 10) == (0, 0)
        with reading(database) as session:
            left = session.execute(select(AttemptRow.session_id, AttemptRow.attempt))
            assert sorted(tuple(row) for row in left) == [("further", 1), ("further", 2), ("unerased", 1), ("young", 1)]
        assert "media_erased" in events(database, "a"), "The audit trail has an age of its own."

    def test_a_further_attempt_never_stays_without_the_first(self, database: Engine) -> None:
        for number in range(5):
            name = f"s{number}"
            decided(database, name)
            erased(database, name)
            age(database, name, self.VERY_OLD)

            def further(name: str = name) -> int:
                with suppress(UnknownSession):
                    return next_attempt(database, name, 3600).attempt
                return 0

            made, forgotten = at_once(further, lambda: forget_sessions(database, DECISION_AGE, 10)[0])
            assert (made, forgotten) in [(2, 0), (0, 1)]

    def test_only_old_lines_of_the_audit_trail_go(self, database: Engine) -> None:
        open_attempt(database, "a", 1, 3600)
        with writing(database) as session:
            for number in range(5):
                session.execute(insert(AuditRow).values(at=clock(-self.VERY_OLD), actor="test", event=f"old {number}"))
        assert [forget_audit(database, DECISION_AGE, 3) for _ in range(3)] == [3, 2, 0]
        assert events(database, "a") == ["attempt_opened"]


def test_decisions_are_kept_at_least_as_long_as_media(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYCFLOW_MEDIA_RETENTION_DAYS", "60")
    monkeypatch.setenv("KYCFLOW_DECISION_RETENTION_DAYS", "59")
    with pytest.raises(ValidationError, match="raise it or lower the other"):
        Settings()
    monkeypatch.setenv("KYCFLOW_DECISION_RETENTION_DAYS", "60")
    assert Settings().decision_retention_days == 60


@flow(name="verify-session")
def as_verify_session() -> None:
    """Has the name under which Prefect knows the sessions' flow."""


class World:
    """A database, a store and a Prefect server that the product finds by its settings."""

    def __init__(self, database: Engine, storage: Storage, folder: Path) -> None:
        self.database, self.storage, self.folder = database, storage, folder

    def prefect(self, call: Callable[[PrefectClient], Awaitable[T]]) -> T:
        async def ask() -> T:
            async with PrefectClient(PREFECT_API_URL.value()) as client:
                return await call(client)

        return asyncio.run(ask())

    def put(self, key: str, content: bytes) -> StoredFile:
        path = self.folder / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        self.storage.put(key, path)
        sha256, size_bytes = hash_file(path)
        return StoredFile(storage_key=key, sha256=sha256, size_bytes=size_bytes)

    def upload(self, session_id: str, content: str) -> FilePair:
        """Both files of an attempt, made up of what is given."""
        open_attempt(self.database, session_id, 1, 3600)
        for kind in FileKind:
            file = self.put(new_file_key(session_id, 1, kind), f"{kind} {content}".encode())
            attempt = register_upload(self.database, session_id, 1, kind, file)
        return attempt.files

    def verified(self, session_id: str, content: str = "") -> str:
        """A session that was compared and decided, with all that this leaves; the comparison's key."""
        files = self.upload(session_id, content or session_id)
        assert files.id_image is not None
        assert files.selfie_video is not None
        key = compared(self.database, card=files.id_image.sha256, video=files.selfie_video.sha256)
        self.put(picture_key(key), b"picture")
        self.storage.replace(f"{SESSION_RESULTS.format(session_id=session_id, attempt=1)}decide", b"cached")
        self.storage.replace(f"{COMPARISON_RESULTS.format(key=key)}compute-comparison", b"cached")
        run = self.run_of(session_id, Completed(name="Match", message="SIMILARITY_SUFFICIENT, similarity 0.700"))
        note_run(self.database, session_id, 1, run.id, by="test")
        decided(self.database, session_id, key=key, files=files)
        decision = get_attempt(self.database, session_id).decision
        assert decision is not None
        asyncio.run(publish_decision(decision))
        return key

    def run_of(self, session_id: str, state: State) -> FlowRun:
        name = f"{session_id} attempt 1"
        return self.prefect(lambda client: client.create_flow_run(as_verify_session, name=name, state=state))

    def runs(self, session_id: str) -> list[str | None]:
        async def read(client: PrefectClient) -> list[FlowRun]:
            return await client.read_flow_runs(limit=200)

        return [run.state_name for run in self.prefect(read) if run.name.startswith(f"{session_id} attempt")]

    def artifacts(self, key: str) -> int:
        of_key = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        return len(self.prefect(lambda client: client.read_artifacts(artifact_filter=of_key)))

    async def clear(self, client: PrefectClient) -> None:
        """The server is the next test's, too."""
        for run in await client.read_flow_runs(limit=200):
            await client.delete_flow_run(run.id)
        for artifact in await client.read_artifacts(limit=200):
            await client.delete_artifact(artifact.id)

    def objects(self, prefix: str) -> list[str]:
        return sorted(found.key for found in self.storage.listing(prefix))

    def assert_erased(self, session_id: str, key: str) -> None:
        """Nothing is left of a session's media and scores, neither here nor there."""
        assert self.objects(f"sessions/{session_id}/") == []
        assert self.objects(f"comparisons/{key}/") == []
        assert self.objects(f"results/sessions/{session_id}/") == []
        assert self.objects(f"results/comparisons/{key}/") == []
        assert get_comparison(self.database, key) is None
        assert self.runs(session_id) == []
        assert self.artifacts(f"decision-{session_id}-1") == 0
        with reading(self.database) as session:
            row = session.get_one(AttemptRow, (session_id, 1))
            assert row.erased_at is not None
            assert session.get(LeaseRow, f"comparison:{key}") is None
        found = get_attempt(self.database, session_id)
        assert found.files == FilePair()
        assert found.decision is None or (found.decision.similarity, found.decision.detail) == (None, None)

    def purge(self) -> Purged:
        return asyncio.run(purge.fn())


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server, and this process as its client."""
    with (
        prefect_server(tmp_path_factory.mktemp("server") / "prefect") as address,
        temporary_settings({PREFECT_API_URL: address, PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore"}),
    ):
        yield


@pytest.fixture
def world(
    database: Engine,
    storage: Storage,
    storage_settings: Settings,
    prefect_api: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    monkeypatch.setenv("KYCFLOW_DATABASE_URL", database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("KYCFLOW_STORAGE_URL", storage_settings.storage)
    monkeypatch.setenv("KYCFLOW_S3_ENDPOINT_URL", str(storage_settings.s3_endpoint_url or ""))
    made = World(database, storage, tmp_path)
    yield made
    made.prefect(made.clear)


# Not each with each: what one does is not a matter of the other.
BACKENDS = pytest.mark.parametrize(
    ("empty_database_url", "storage_settings"), [("sqlite", "local"), ("postgresql", "s3")], indirect=True
)


@BACKENDS
class TestErasing:
    def test_nothing_is_left_of_media_and_scores_and_the_decision_stays(self, world: World) -> None:
        key = world.verified("a")
        world.run_of("a", Completed(name="Match", message="a person started it"))
        world.verified("ab")
        done = asyncio.run(erase_attempt("a", 1, by="test"))
        assert done == Erased(attempts=1, objects=5, comparisons=1, runs=2)
        world.assert_erased("a", key)
        decision = get_attempt(world.database, "a").decision
        assert decision is not None
        assert (decision.decision, decision.reason) == (DecisionKind.MATCH, Reason.SIMILARITY_SUFFICIENT)
        assert events(world.database, "a")[-1] == "media_erased"
        assert (len(world.objects("sessions/ab/")), world.runs("ab")) == (2, ["Match"])
        assert asyncio.run(erase_attempt("a", 1, by="test")) == Erased()

    def test_a_comparison_goes_with_the_last_session_that_needs_it(self, world: World) -> None:
        key = world.verified("a", "the same")
        assert world.verified("b", "the same") == key
        assert asyncio.run(erase_session("a", by="test")).comparisons == 0
        assert get_comparison(world.database, key) is not None
        assert world.objects(f"comparisons/{key}/") == [picture_key(key)]
        assert asyncio.run(erase_session("b", by="test")).comparisons == 1
        for session_id in ("a", "b"):
            world.assert_erased(session_id, key)

    def test_of_a_deleted_session_no_decision_stays(self, world: World) -> None:
        key = world.verified("a")
        close(world.database, "a", 1, Status.DELETED, by="test")
        asyncio.run(erase_session("a", by="test"))
        world.assert_erased("a", key)
        assert get_attempt(world.database, "a").decision is None
        assert asyncio.run(erase_session("unknown", by="test")) == Erased()

    def test_artifacts_of_a_session_with_nearly_the_same_name_stay(self, world: World) -> None:
        world.verified("a_b")
        world.verified("a-b")
        assert world.artifacts("decision-a-b-1") == 2
        asyncio.run(erase_session("a_b", by="test"))
        assert world.artifacts("decision-a-b-1") == 1
        asyncio.run(erase_session("a-b", by="test"))
        assert world.artifacts("decision-a-b-1") == 0

    def test_the_artifact_of_a_session_that_was_given_up_goes(self, world: World) -> None:
        world.upload("a", "x")
        assert asyncio.run(give_up("a", 1, "for a test", by="test"))
        assert world.artifacts("error-a-1") == 1
        asyncio.run(erase_session("a", by="test"))
        assert world.artifacts("error-a-1") == 0
        assert get_attempt(world.database, "a").status is Status.DELETED

    def test_two_at_once_erase_it_once(self, world: World) -> None:
        key = world.verified("a")
        one, other = at_once(*[lambda: asyncio.run(erase_session("a", by="test"))] * 2)
        assert (one + other).attempts == 1
        world.assert_erased("a", key)

    def test_a_comparison_that_is_being_computed_leaves_the_attempt_due(self, world: World) -> None:
        key = world.verified("a")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KYCFLOW_LEASE_SECONDS", "1")
            lease = take(world.database, f"comparison:{key}", "somebody", 60)
            assert isinstance(lease, Lease)
            with pytest.raises(LeaseHeld):
                asyncio.run(erase_session("a", by="test"))
            age(world.database, "a")
            assert due(world.database) == ["a"]
            release(world.database, lease)
        asyncio.run(erase_session("a", by="test"))
        world.assert_erased("a", key)

    def test_a_flow_run_that_goes_on_is_cancelled_and_deleted_when_it_has_ended(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = world.verified("a")
        run = world.run_of("a", Running())
        process = FlowRunUpdate(infrastructure_pid="somewhere:1")

        async def give_process(client: PrefectClient) -> None:
            await client._client.patch(f"/flow_runs/{run.id}", json=process.model_dump(mode="json", exclude_unset=True))

        world.prefect(give_process)
        monkeypatch.setattr(tasks.erasing, "ENDING_SECONDS", 0)
        with pytest.raises(RetryableError, match="has not ended"):
            asyncio.run(erase_session("a", by="test"))
        assert world.runs("a").count("Cancelling") == 1
        assert world.objects("sessions/a/") == []
        world.prefect(lambda client: client.set_flow_run_state(run.id, Completed(), force=True))
        asyncio.run(erase_session("a", by="test"))
        world.assert_erased("a", key)


STEPS: list[tuple[ModuleType, str]] = [
    (tasks.erasing, "begin_erasing"),
    (tasks.erasing, "delete_objects"),
    (tasks.erasing, "forget_comparison"),
    (tasks.erasing, "release"),
    (tasks.erasing, "_erase_from_prefect"),
    (tasks.erasing, "_delete_artifacts"),
    (tasks.erasing, "finish_erasing"),
]


@BACKENDS
class TestPurge:
    def test_it_erases_what_is_old_and_publishes_how_much(self, world: World) -> None:
        key, young = world.verified("a"), world.verified("b")
        age(world.database, "a")
        before = world.artifacts("purge-report")
        purged = world.purge()
        assert purged == Purged(erased=Erased(attempts=1, objects=5, comparisons=1, runs=1))
        world.assert_erased("a", key)
        assert get_comparison(world.database, young) is not None
        assert len(world.objects("sessions/b/")) == 2
        assert world.artifacts("purge-report") == before + 1
        assert world.purge() == Purged()

    @pytest.mark.parametrize(("module", "step"), STEPS, ids=[name for _, name in STEPS])
    def test_killed_half_way_the_next_one_finishes(
        self, module: ModuleType, step: str, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = {name: world.verified(name) for name in ("a", "b")}
        for name, seconds in (("a", OLD + DAY), ("b", OLD)):
            age(world.database, name, seconds)
        original, calls = getattr(module, step), []

        def killed(*args: object, **named: object) -> object:
            calls.append(step)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*args, **named)

        monkeypatch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            world.purge()
        assert due(world.database)
        monkeypatch.setattr(module, step, original)
        world.purge()
        for name, key in keys.items():
            world.assert_erased(name, key)
        assert due(world.database) == []

    def test_a_store_that_fails_once_leaves_one_attempt_for_the_next_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = {name: world.verified(name) for name in ("a", "b", "c")}
        for number, name in enumerate(keys):
            age(world.database, name, OLD - number)
        failed: list[str] = []
        deletion = type(world.storage).delete

        def fails_once(storage: Storage, key: str) -> None:
            if "/b/" in key and not failed:
                failed.append(key)
                raise StorageUnavailable("It does not answer.")
            deletion(storage, key)

        monkeypatch.setattr(type(world.storage), "delete", fails_once)
        with pytest.raises(RetryableError, match="1 things could not be erased: It does not answer"):
            world.purge()
        assert due(world.database) == ["b"]
        assert world.purge().erased.attempts == 1
        for name, key in keys.items():
            world.assert_erased(name, key)

    def test_a_store_that_refuses_is_not_asked_for_each_of_thousands(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(12):
            world.upload(f"s{number}", "x")
            close(world.database, f"s{number}", 1, Status.DELETED, by="test")
        asked: list[str] = []

        def refuses(_storage: Storage, key: str) -> None:
            asked.append(key)
            raise ConfigurationError("403")

        monkeypatch.setattr(type(world.storage), "delete", refuses)
        with pytest.raises(ConfigurationError):
            world.purge()
        assert len(asked) == tasks.purge.MOST_FAILURES
        assert len(due(world.database)) == 12

    def test_a_comparison_that_two_erasings_at_once_left_goes(self, world: World) -> None:
        key = world.verified("a")
        with writing(world.database) as session:
            session.execute(update(AttemptRow).values(comparison_key=key, erased_at=clock(), status=Status.DELETED))
            session.execute(delete(DecisionRow))
        assert world.purge().erased == Erased(objects=2, comparisons=1)
        assert get_comparison(world.database, key) is None

    def test_old_decisions_and_audit_lines_are_forgotten(self, world: World) -> None:
        world.verified("a")
        age(world.database, "a", DECISION_AGE + DAY)
        with writing(world.database) as session:
            session.execute(insert(AuditRow).values(at=clock(-DECISION_AGE - DAY), actor="test", event="old"))
        purged = world.purge()
        assert (purged.forgotten_attempts, purged.forgotten_decisions, purged.forgotten_audit_lines) == (1, 1, 1)
        assert count(world.database, AttemptRow) == 0


@BACKENDS
class TestOrphans:
    def orphans(self, before: timedelta = timedelta(hours=1)) -> int:
        """Delete what was stored before a moment from now."""
        return delete_orphans(Settings(), datetime.now(UTC) + before, by="test")

    def test_objects_of_no_attempt_and_of_erased_ones_go(self, world: World) -> None:
        world.verified("known")
        asyncio.run(erase_session(world.verified("erased") and "erased", by="test"))
        for key in ("foreign/1/id_image/1", "known/2/id_image/1", "erased/1/selfie_video/late", "odd", "known/x/1"):
            world.put(f"sessions/{key}", b"orphan")
            world.storage.replace(f"results/sessions/{key}", b"orphan")
        kept = [world.objects(f"{top}sessions/known/1/") for top in ("", "results/")]
        assert self.orphans(-timedelta(hours=1)) == 0
        assert self.orphans() == 10
        assert [world.objects(f"{top}sessions/") for top in ("", "results/")] == kept
        assert self.orphans() == 0

    def test_pictures_without_a_row_and_evaluations_go(self, world: World) -> None:
        key = world.verified("a")
        world.put(picture_key("f" * 64), b"picture")
        world.put("comparisons/odd", b"?")
        for name in ("e" * 64 + "/compute-comparison-1", "odd"):
            world.storage.replace(f"results/comparisons/{name}", b"cached")
        world.put(evaluation_key("run", "worst.png"), b"pictures")
        assert self.orphans(-timedelta(hours=1)) == 0
        assert self.orphans() == 5
        assert world.objects("comparisons/") == [picture_key(key)]
        assert world.objects("results/comparisons/") == [f"{COMPARISON_RESULTS.format(key=key)}compute-comparison"]
        assert world.objects("evaluations/") == []
