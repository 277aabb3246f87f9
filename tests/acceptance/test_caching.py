"""Cached tasks of sessions, run in this process against a real Prefect server, with the real engine."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from deployments.demo_media import DemoMedia
from flows.verify_session import verify_session
from tasks.comparison import compared
from tasks.contracts import Attempt, Comparison, FileKind, FilePair, StoredFile, comparison_key
from tasks.database import database_for
from tasks.database.attempts import get_attempt, open_attempt, register_upload
from tasks.database.comparisons import get_comparison
from tasks.database.schema import upgrade
from tasks.decision import decide
from tasks.deletion import delete_session
from tasks.errors import StorageUnavailable
from tasks.faces.models import engine_config
from tasks.files import find_files
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import new_file_key
from tasks.storage.local import LocalStorage
from tests.databases import sqlite_url
from tests.system import System, eventually

# Prefect's engine leaves sockets to the process' end, which here comes much later: they are collected in their test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("worker"),
]

FOUND = ("find id image", "find selfie video")
NEW = {(name, "Completed") for name in ("open attempt", *FOUND, "compute comparison", "decide")}
STORED = {("store picture", "Completed"), ("store comparison", "Completed")}
AGAIN = {("open attempt", "Completed"), *((name, "Cached") for name in (*FOUND, "compute comparison", "decide"))}


def put(session_id: str, kind: FileKind, path: Path) -> StoredFile:
    """A file in storage, not recorded."""
    key = new_file_key(session_id, 1, kind)
    open_storage(Settings()).put(key, path)
    sha256, size_bytes = hash_file(path)
    return StoredFile(storage_key=key, sha256=sha256, size_bytes=size_bytes)


def put_pair(session_id: str, media: DemoMedia) -> FilePair:
    """A genuine pair in storage, not recorded."""
    return FilePair(
        id_image=put(session_id, FileKind.ID_IMAGE, media.genuine_card),
        selfie_video=put(session_id, FileKind.SELFIE_VIDEO, media.selfie_video),
    )


def record(session_id: str, files: FilePair) -> None:
    """The session as the upload service leaves it."""
    database = database_for(Settings())
    open_attempt(database, session_id, 1, 3600)
    for kind in FileKind:
        file = files.of(kind)
        assert file is not None
        register_upload(database, session_id, 1, kind, file)


def uploaded(session_id: str, media: DemoMedia) -> FilePair:
    """A session with a genuine pair."""
    files = put_pair(session_id, media)
    record(session_id, files)
    return files


@pytest.fixture
def pair(demo_media: DemoMedia) -> FilePair:
    """That of a session called `session`."""
    return uploaded("session", demo_media)


def verified(session_id: str = "session") -> State[Any]:
    """The state in which a run of a session ends."""

    async def run() -> State[Any]:
        return await verify_session(session_id, return_state=True)

    return asyncio.run(run())


def assert_tasks(system: System, state: State[Any], expected: set[tuple[str, str]]) -> None:
    """These are the names and final states of a flow run's tasks; the server learns of them a little later."""
    assert state.state_details.flow_run_id is not None
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))

    def look() -> set[tuple[str, str | None]] | None:
        runs = system.prefect(lambda client: client.read_task_runs(flow_run_filter=of_run))
        ended = {(run.name.rsplit("-", 1)[0], run.state.name) for run in runs if run.state and run.state.is_final()}
        return ended if len(ended) >= len(expected) else None

    assert eventually(look, 60) == expected


def _found(state: str) -> set[tuple[str, str]]:
    return {(name, state) for name in FOUND}


def results(prefix: str = "") -> list[str]:
    return sorted(found.key for found in open_storage(Settings()).listing(f"results/{prefix}"))


def the_comparison(files: FilePair) -> Comparison | None:
    assert files.id_image is not None
    assert files.selfie_video is not None
    key = comparison_key(files.id_image.sha256, files.selfie_video.sha256, engine_config(Settings()))
    return get_comparison(database_for(Settings()), key)


def attempt_of(session_id: str) -> Attempt:
    return get_attempt(database_for(Settings()), session_id)


@pytest.fixture(params=["folder", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's storage: a folder or S3."""
    if request.param == "s3":
        monkeypatch.setenv("KYCFLOW_S3_ENDPOINT_URL", request.getfixturevalue("s3"))
        monkeypatch.setenv("KYCFLOW_STORAGE_URL", f"s3://kycflow/{tmp_path.name}")


@pytest.mark.usefixtures("anywhere")
def test_a_run_that_is_repeated_ends_with_its_tasks_cached(system: System, demo_media: DemoMedia) -> None:
    files = uploaded("session", demo_media)
    first, again = verified(), verified()
    assert (first.name, again.name) == ("Match", "Match")
    assert_tasks(system, first, NEW | STORED)
    assert_tasks(system, again, AGAIN)
    made = the_comparison(files)
    assert made is not None
    assert made.computations == 1


def test_two_sessions_with_the_same_two_files_get_a_decision_each(system: System, demo_media: DemoMedia) -> None:
    uploaded("session", demo_media)
    uploaded("twin", demo_media)
    verified()
    second = verified("twin")
    assert_tasks(system, second, NEW - {("compute comparison", "Completed")} | {("compute comparison", "Cached")})
    decisions = [attempt_of(name).decision for name in ("session", "twin")]
    assert [decision and decision.decision for decision in decisions] == ["match", "match"]


def test_results_hold_names_only_and_lie_nowhere_else(
    pair: FilePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def ask(client: PrefectClient) -> None:
        asked.append(client)

    monkeypatch.setattr(PrefectClient, "read_server_default_result_storage", ask)
    verified()
    made = the_comparison(pair)
    assert made is not None
    assert made.result.similarity is not None
    kept = results()
    assert [key.rsplit("/", 1)[1].rsplit("-", 1)[0] for key in kept] == [
        "compute-comparison",
        "decide",
        "find-id-image",
        "find-selfie-video",
    ]
    text = "".join((open_storage(Settings()).read(key, 4096) or b"").decode() for key in kept)
    assert made.comparison_key in text
    for secret in (str(made.result.similarity)[:6], *(file.sha256 for file in pair.there())):
        assert secret not in text
    assert asked == [], "Prefect's server was asked where results go."
    assert not list((tmp_path / "results").rglob("*")), f"In {PREFECT_LOCAL_STORAGE_PATH.name}"


@flow
async def look() -> FilePair:
    """What a session's run finds in one look."""
    return await find_files("session", 1)


def test_a_file_that_replaces_another_is_found_anew(system: System, pair: FilePair, demo_media: DemoMedia) -> None:
    first = asyncio.run(_state_of_look())
    newer = put("session", FileKind.ID_IMAGE, demo_media.impostor_card)
    register_upload(database_for(Settings()), "session", 1, FileKind.ID_IMAGE, newer)
    second = asyncio.run(_state_of_look())
    found = second.result(raise_on_failure=False)
    assert_tasks(system, first, _found("Completed"))
    assert_tasks(system, second, {("find id image", "Completed"), ("find selfie video", "Cached")})
    assert isinstance(found, FilePair)
    assert (found.id_image, found.selfie_video) == (newer, pair.selfie_video)


async def _state_of_look() -> State[Any]:
    return await look(return_state=True)


@flow
async def judge_what_was_replaced(files: FilePair) -> Attempt:
    """A session's run, beside which a newer file is recorded while it compares."""
    assert files.id_image is not None
    assert files.selfie_video is not None
    row = await compared("session", 1, files.id_image, files.selfie_video, engine_config(Settings()))
    newer = files.id_image.model_copy(update={"storage_key": f"{files.id_image.storage_key}-newer"})
    register_upload(database_for(Settings()), "session", 1, FileKind.ID_IMAGE, newer)
    return await decide(attempt_of("session"), files, row, "a flow run")


def test_a_decision_that_a_newer_file_kept_from_being_recorded_is_not_cached(pair: FilePair) -> None:
    assert asyncio.run(judge_what_was_replaced(pair)).decision is None
    assert results("sessions/") == []


def test_files_of_another_system_are_recorded_once(system: System, demo_media: DemoMedia) -> None:
    put_pair("session", demo_media)
    first, again = verified(), verified()
    assert_tasks(system, first, NEW | STORED)
    assert_tasks(system, again, AGAIN)
    assert attempt_of("session").files.complete


def test_where_an_older_database_was_restored_all_is_done_again(
    system: System, pair: FilePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of all tasks lie in storage, and no row of theirs is there."""
    verified()
    kept = results()
    (tmp_path / "restored").mkdir()
    monkeypatch.setenv("KYCFLOW_DATABASE_URL", sqlite_url(tmp_path / "restored"))
    upgrade(sqlite_url(tmp_path / "restored"))
    open_attempt(database_for(Settings()), "session", 1, 3600)
    again = verified()
    assert again.name == "Match"
    assert_tasks(system, again, NEW | STORED | {("compute comparison", "Cached"), ("decide", "Cached")})
    assert attempt_of("session").decision is not None
    made = the_comparison(pair)
    assert made is not None
    assert made.computations == 1
    assert results() == kept


def test_killed_between_the_row_and_its_result_nothing_is_computed_again(
    system: System, pair: FilePair, weights: list[Path]
) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.killed_before_result", "session"],
        env=os.environ | system.prefect_variables | {"KYCFLOW_MODELS_FOLDER": str(weights[0].parent)},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert the_comparison(pair) is not None
    assert results("comparisons/") == []
    again = verified()
    assert again.name == "Match"
    assert_tasks(system, again, NEW - _found("Completed") | _found("Cached"))
    made = the_comparison(pair)
    assert made is not None
    assert made.computations == 1
    assert len(results("comparisons/")) == 1


def test_storage_that_is_away_for_results_costs_no_decision(
    system: System, pair: FilePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageUnavailable("away")

    monkeypatch.setattr(LocalStorage, "read", away)
    monkeypatch.setattr(LocalStorage, "replace", away)
    state = verified()
    assert state.name == "Match"
    assert_tasks(system, state, NEW | STORED)


def test_a_record_that_lies_about_a_decision_decides_nothing(
    system: System, pair: FilePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to storage can write a record that is like ours, for a session that is not decided yet."""
    verified()
    lies = {key: open_storage(Settings()).read(key, 4096) for key in results()}
    monkeypatch.setenv("KYCFLOW_DATABASE_URL", f"{Settings().database_url}.other")
    upgrade(str(Settings().database_url))
    record("session", pair)
    for key, lie in lies.items():
        open_storage(Settings()).replace(key, lie or b"")
    assert verified().name == "Match"
    assert attempt_of("session").decision is not None


def test_deleting_a_session_leaves_no_result(demo_media: DemoMedia, session_id: str) -> None:
    uploaded(session_id, demo_media)
    verified(session_id)
    assert results() != []
    assert asyncio.run(delete_session(session_id, by="test"))
    assert results() == []
