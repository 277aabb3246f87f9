"""The comparison's tasks, run in this process against a real Prefect server, with the real engine."""

import asyncio
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from deployments.demo_media import DemoMedia
from flows.verify_session import verify_session
from tasks.comparison import compute_comparison, store_picture
from tasks.contracts import Comparison, EngineConfig, FileKind, StoredFile, comparison_key
from tasks.database import database_for
from tasks.database.comparisons import get_comparison
from tasks.database.leases import Lease, comparison_lease, holders, release, take
from tasks.errors import ObjectChanged, ObjectMissing, StorageUnavailable
from tasks.faces.engine import FaceEngine
from tasks.faces.models import engine_config
from tasks.faces.shown import ComparedFaces
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import new_file_key
from tasks.storage.local import LocalStorage
from tests.pictures import drawn_thresholds
from tests.system import System, eventually

# Prefect's engine leaves sockets to the process' end, which here comes much later: they are collected in their test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def stored(path: Path, kind: FileKind) -> StoredFile:
    """The file, put into storage."""
    key = new_file_key("session", 1, kind)
    open_storage(Settings()).put(key, path)
    sha256, size_bytes = hash_file(path)
    return StoredFile(storage_key=key, sha256=sha256, size_bytes=size_bytes)


@flow
def compare_faces(reference: StoredFile, probe: StoredFile, engine: EngineConfig | None = None) -> Comparison | None:
    """What a session's flow run does once it has both files."""
    engine = engine or engine_config(Settings())
    key = comparison_key(reference.sha256, probe.sha256, engine)
    compute_comparison(key, reference, probe, engine, "session", 1)
    return get_comparison(database_for(Settings()), key)


@pytest.fixture
def pair(worker: None, demo_media: DemoMedia) -> tuple[StoredFile, StoredFile]:
    """A genuine pair in storage."""
    return stored(demo_media.genuine_card, FileKind.ID_IMAGE), stored(demo_media.selfie_video, FileKind.SELFIE_VIDEO)


def test_a_process_computes_one_comparison_at_a_time(
    pair: tuple[StoredFile, StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, probe = pair
    engine, real, at_once = engine_config(Settings()), FaceEngine.compare, [0]
    most = [0]

    def watched(self: FaceEngine, card: Path, video: Path, settings: Settings) -> ComparedFaces:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            return real(self, card, video, settings)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(FaceEngine, "compare", watched)
    others = [engine.model_copy(update={"frames": frames}) for frames in (4, 5, 6)]

    with ThreadPoolExecutor(len(others)) as pool:  # each in this context, which has Prefect's settings
        runs = [pool.submit(copy_context().run, compare_faces, reference, probe, config) for config in others]
    rows = [run.result() for run in runs]
    assert [row.engine for row in rows if isinstance(row, Comparison)] == others
    assert most == [1]


def task_runs(system: System, flow_run_id: uuid.UUID | None, count: int) -> dict[str, TaskRun]:
    """The ended task runs of a flow run, by name; the server learns of them from events, a little later."""
    assert flow_run_id is not None
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))

    def look() -> dict[str, TaskRun] | None:
        runs = system.prefect(lambda client: client.read_task_runs(flow_run_filter=of_run))
        ended = {run.name.rsplit("-", 1)[0]: run for run in runs if run.state and run.state.is_final()}
        return ended if len(ended) == count else None

    return eventually(look, 60)


def test_a_comparison_is_computed_once_and_found_afterwards(pair: tuple[StoredFile, StoredFile]) -> None:
    first = compare_faces(*pair)
    assert isinstance(first, Comparison)
    assert first.result.similarity is not None
    assert first.result.similarity >= 0.416
    assert first.computations == 1
    assert compare_faces(*pair) == first


def test_its_lease_is_given_back(pair: tuple[StoredFile, StoredFile]) -> None:
    first = compare_faces(*pair)
    assert isinstance(first, Comparison)
    assert holders(database_for(Settings()), [f"comparison:{first.comparison_key}"]) == {}


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("storage_key", "sessions/session/1/id_image/gone", ObjectMissing), ("sha256", "0" * 64, ObjectChanged)],
)
def test_what_trying_again_does_not_mend_fails_at_the_first_try(
    field: str, value: str, error: type[Exception], pair: tuple[StoredFile, StoredFile], system: System
) -> None:
    reference, probe = pair
    state = compare_faces(reference.model_copy(update={field: value}), probe, return_state=True)
    assert isinstance(state.result(raise_on_failure=False), error)
    assert task_runs(system, state.state_details.flow_run_id, 1)["compute comparison"].run_count == 1


def test_storage_that_does_not_answer_is_tried_again(
    pair: tuple[StoredFile, StoredFile], system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYCFLOW_STORAGE_URL", "s3://kycflow/nowhere")
    monkeypatch.setenv("KYCFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nothing listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    quick = compute_comparison.with_options(retries=2, retry_delay_seconds=0)
    monkeypatch.setattr(sys.modules[__name__], "compute_comparison", quick)
    state = compare_faces(*pair, return_state=True)
    assert isinstance(state.result(raise_on_failure=False), StorageUnavailable)
    assert task_runs(system, state.state_details.flow_run_id, 1)["compute comparison"].run_count == 3


def test_the_stored_picture_shows_the_operators_thresholds(
    pair: tuple[StoredFile, StoredFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYCFLOW_MATCH_THRESHOLD", "0.9")
    stored = compare_faces(*pair)
    assert isinstance(stored, Comparison)
    assert stored.picture_key is not None
    open_storage(Settings()).download(stored.picture_key, tmp_path / "faces.jpg")
    shown = drawn_thresholds((tmp_path / "faces.jpg").read_bytes())
    assert shown == pytest.approx((0.358, 0.9), abs=0.002)


def test_a_picture_that_cannot_be_stored_costs_no_second_computation(
    pair: tuple[StoredFile, StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageUnavailable("away")

    monkeypatch.setattr(LocalStorage, "put", away)
    quick = store_picture.with_options(retries=1, retry_delay_seconds=0)
    monkeypatch.setattr("tasks.comparison.store_picture", quick)
    stored = compare_faces(*pair)
    assert isinstance(stored, Comparison)
    assert (stored.picture_key, stored.computations) == (None, 1)


def test_a_fault_that_may_pass_is_left_to_the_sweep_at_the_end(
    worker: None, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StorageUnavailable("away")

    monkeypatch.setattr(sys.modules["flows.verify_session"], "find_files", away)
    state: State[Any] = asyncio.run(_ended("session"))
    assert (state.type.value, state.name, state.message) == ("CRASHED", "Unavailable", "StorageUnavailable: away")


async def _ended(session_id: str) -> State[Any]:
    return await verify_session(session_id, return_state=True)


def test_who_finds_another_one_computing_gives_up_its_place_after_a_while(
    pair: tuple[StoredFile, StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.comparison.PATIENCE_SECONDS", 0.5)
    reference, probe = pair
    key = comparison_key(reference.sha256, probe.sha256, engine_config(Settings()))
    lease = take(database_for(Settings()), comparison_lease(key), "another flow run", 60)
    assert isinstance(lease, Lease)
    assert compare_faces(reference, probe) is None
    release(database_for(Settings()), lease)
    assert isinstance(compare_faces(reference, probe), Comparison)


def test_who_finds_a_lease_that_nobody_renews_takes_it_over_and_does_not_come_again_and_again(
    pair: tuple[StoredFile, StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watching it takes longer than patience lasts. Given up before that, the sweep would wake it, for ever."""
    monkeypatch.setattr("tasks.comparison.PATIENCE_SECONDS", 0.1)
    monkeypatch.setenv("KYCFLOW_LEASE_SECONDS", "2")
    reference, probe = pair
    key = comparison_key(reference.sha256, probe.sha256, engine_config(Settings()))
    take(database_for(Settings()), comparison_lease(key), "a flow run that was lost", 0.01)
    assert isinstance(compare_faces(reference, probe), Comparison)
