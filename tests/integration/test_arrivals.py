"""What the sweep sees in storage: files that count and are not recorded. In a folder and on a real S3 server."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

import tasks.storage.s3
from tasks.contracts import Attempt, FileKind, StoredFile
from tasks.database.attempts import get_attempt, open_attempt, register_upload
from tasks.errors import StorageUnavailable
from tasks.recovery import Action
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.keys import new_file_key
from tasks.sweep.arrivals import arrivals
from tasks.sweep.findings import Finding, Looker

CARD, VIDEO = FileKind.ID_IMAGE, FileKind.SELFIE_VIDEO


class World:
    """A database and a store, and sessions whose files come without anybody's telling."""

    def __init__(self, settings: Settings, database: Engine, folder: Path) -> None:
        self.settings, self.database, self.folder = settings, database, folder

    def put(self, session_id: str, kind: FileKind, size: int = 5, *, record: bool = False, attempt: int = 1) -> str:
        key, file = new_file_key(session_id, attempt, kind), self.folder / "file"
        file.write_bytes(bytes(size))
        open_storage(self.settings).put(key, file)
        if record:
            stored = StoredFile(storage_key=key, sha256="a" * 64, size_bytes=size)
            register_upload(self.database, session_id, attempt, kind, stored)
        return key

    def attempts(self, *names: str) -> list[Attempt]:
        for name in names:
            open_attempt(self.database, name, 1, 60, by="another system")
        return [get_attempt(self.database, name) for name in names]

    def arrived(self, *names: str) -> set[str]:
        return {name for name, _ in arrivals(self.settings, self.attempts(*names))}


@pytest.fixture
def world(storage_settings: Settings, database: Engine, tmp_path: Path) -> World:
    url = database.url.render_as_string(hide_password=False)
    return World(storage_settings.model_copy(update={"database_url": url}), database, tmp_path)


def test_a_file_that_is_not_recorded_has_arrived_and_one_that_is_has_not(world: World) -> None:
    assert world.arrived("a", "b", "c") == set()
    world.put("a", CARD)
    world.put("b", CARD, record=True)
    world.put("other", CARD)
    assert world.arrived("a", "b", "c") == {"a"}
    world.put("b", VIDEO)
    assert world.arrived("a", "b", "c") == {"a", "b"}


@pytest.mark.parametrize("size", [0, 2_000_000])
def test_of_a_kind_only_the_newest_counts_and_only_with_a_size_that_is_accepted(size: int, world: World) -> None:
    world.settings = world.settings.model_copy(update={"max_id_image_bytes": 1_000_000})
    world.put("a", CARD)
    world.put("a", CARD, size)
    assert world.arrived("a") == set()
    world.put("a", CARD)
    assert world.arrived("a") == {"a"}


def test_files_of_another_attempt_and_names_that_look_alike_do_not_count(world: World) -> None:
    world.put("a", CARD, attempt=2)
    world.put("a-b", CARD)
    world.put("aa", VIDEO)
    assert world.arrived("a") == set()


def test_a_recorded_file_that_is_gone_is_told_by_the_flow_run_and_not_hidden_by_an_expiry(world: World) -> None:
    world.attempts("a")
    key = world.put("a", CARD, record=True)
    assert world.arrived("a") == set()
    open_storage(world.settings).delete(key)
    assert world.arrived("a") == {"a"}


def test_many_are_found_by_one_listing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.storage.s3, "FEW", 3)
    names = [f"s{number}" for number in range(9)]
    for name in names[::2]:
        world.put(name, CARD)
    assert world.arrived(*names) == set(names[::2])
    assert world.arrived(*names[:2]) == {"s0"}


def test_where_storage_does_not_answer_nobody_is_said_to_have_no_file(database: Engine) -> None:
    away = Settings(
        database_url=database.url.render_as_string(hide_password=False),
        storage_url="s3://kycflow/nowhere",
        s3_endpoint_url="http://127.0.0.1:9",  # discard: nothing listens there
    )
    open_attempt(database, "a", 1, -1)
    late = [get_attempt(database, "a")]
    with pytest.raises(StorageUnavailable):
        arrivals(away, late)
    assert Looker()._storage_tells(away, late, []) is None


def test_a_run_is_woken_once_for_the_same_files_unless_its_deadline_is_over(world: World) -> None:
    """Where a worker takes other sizes than the sweep, it would be woken and wait on, again and again."""
    world.put("a", CARD)
    looker, found = Looker(), world.attempts("a")
    assert looker._storage_tells(world.settings, [], found) == {("a", 1)}
    looker.woken(Finding(action=Action.WAKE, attempt=found[0]))
    assert looker._storage_tells(world.settings, [], found) == set()
    assert looker._storage_tells(world.settings, found, []) == {("a", 1)}
    world.put("a", VIDEO)
    assert looker._storage_tells(world.settings, [], found) == {("a", 1)}
