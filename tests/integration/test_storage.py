"""Object store, on a folder and on a real S3 server."""

import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.contracts import StoredFile
from tasks.errors import ConfigurationError, ObjectChanged, ObjectMissing, StorageUnavailable
from tasks.settings import Settings
from tasks.storage import Storage, open_storage
from tasks.storage.files import fetch, hash_file
from tasks.storage.local import LocalStorage
from tasks.storage.s3 import S3Storage
from tests.s3_server import READER_KEY, READER_SECRET

BIG = 20 * 1024 * 1024  # several parts of a multipart upload


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"bytes of a picture")
    return path


def test_what_was_put_comes_back(storage: Storage, source: Path, tmp_path: Path) -> None:
    storage.check()
    storage.put("sessions/a/1/id_image/1-a", source)
    storage.download("sessions/a/1/id_image/1-a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert storage.size("sessions/a/1/id_image/1-a") == source.stat().st_size
    assert storage.url("sessions/a/1/id_image/1-a").endswith("sessions/a/1/id_image/1-a")


def test_a_large_file_comes_back_whole(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(BIG))
    storage.put("big", tmp_path / "big")
    storage.download("big", tmp_path / "back")
    assert hash_file(tmp_path / "back") == hash_file(tmp_path / "big")


def test_the_newest_is_the_greatest_name(storage: Storage, source: Path) -> None:
    for name in ("a/1/2", "a/1/3", "a/1/1", "a/10/9"):
        storage.put(name, source)
    assert storage.newest("a/1/") == "a/1/3"
    assert storage.newest("a/") == "a/10/9"
    assert storage.newest("a/2/") is None


def test_names_that_are_no_keys_are_never_the_newest(storage: Storage, source: Path) -> None:
    storage.put("a/1/2", source)
    for name in ("a/1/3/.part/x", "a/1/9/", "a/2/.hidden"):
        _put_by_other_means(storage, name)
    assert storage.newest("a/1/") == "a/1/2"
    assert storage.newest("a/2/") is None
    assert listed(storage, "a/") == ["a/1/2"]


def listed(storage: Storage, prefix: str) -> list[str]:
    return sorted(stored.key for stored in storage.listing(prefix))


def test_all_objects_under_a_prefix_are_listed_with_the_time_they_came(storage: Storage, source: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)  # a store counts in seconds
    os.utime(source, (0, 0))
    names = ["a/1/2", "a/1/3", "a/10/9", "b/1"]
    for name in names:
        storage.put(name, source)
    assert listed(storage, "a/") == names[:3]
    assert listed(storage, "a/1") == names[:3]
    assert listed(storage, "a/1/") == names[:2]
    assert listed(storage, "c/") == []
    for stored in storage.listing("a/"):
        assert before <= stored.modified_at <= datetime.now(UTC) + timedelta(seconds=5)


def test_a_listing_of_more_than_a_page_is_whole_though_its_objects_are_deleted_meanwhile(
    storage: Storage, source: Path
) -> None:
    names = {f"many/{number % 7}/{number:04d}" for number in range(1010)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.put(name, source), names))
    assert set(listed(storage, "many/")) == names
    for stored in storage.listing("many/"):
        storage.delete(stored.key)
        names.remove(stored.key)
    assert names == set()
    assert listed(storage, "many/") == []


def test_an_object_may_come_where_the_last_one_is_just_being_deleted(storage: Storage, source: Path) -> None:
    def put(number: int) -> None:
        for turn in range(40):
            key = f"a/b/c/{number}-{turn}"
            storage.put(key, source)
            storage.delete(key)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    storage.put("a/b/c/last", source)
    assert listed(storage, "a/") == ["a/b/c/last"]


def _put_by_other_means(storage: Storage, name: str) -> None:
    body = b"" if name.endswith("/") else b"x"
    if isinstance(storage, S3Storage):
        storage._client().put_object(Bucket=storage.bucket, Key=storage.prefix + name, Body=body)
    elif isinstance(storage, LocalStorage):
        (storage.folder / name).parent.mkdir(parents=True, exist_ok=True)
        if body:
            (storage.folder / name).write_bytes(body)


def test_a_deleted_object_is_gone_and_deleting_it_again_is_fine(storage: Storage, source: Path) -> None:
    for name in ("a/1", "a/2"):
        storage.put(name, source)
    for _ in range(2):
        storage.delete("a/1")
    storage.delete("never/there")
    assert [storage.size(name) for name in ("a/1", "a/2")] == [None, source.stat().st_size]


def test_a_missing_object_is_named(storage: Storage, tmp_path: Path) -> None:
    assert storage.size("not/there") is None
    with pytest.raises(ObjectMissing, match="not/there"):
        storage.download("not/there", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_put_replays_its_own_lost_answer_and_keeps_the_first_bytes(
    storage: Storage, source: Path, tmp_path: Path
) -> None:
    storage.put("key", source)
    (tmp_path / "other").write_bytes(b"other")
    storage.put("key", tmp_path / "other")
    assert storage.size("key") == source.stat().st_size


def test_two_racers_put_whole_objects(storage: Storage, source: Path) -> None:
    racers = [threading.Thread(target=storage.put, args=(f"race/{n % 4}", source)) for n in range(16)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
    assert {storage.size(f"race/{n}") for n in range(4)} == {source.stat().st_size}


def test_fetch_refuses_bytes_that_were_not_announced(storage: Storage, source: Path, tmp_path: Path) -> None:
    storage.put("key", source)
    sha256, size = hash_file(source)
    fetch(storage, StoredFile(storage_key="key", sha256=sha256, size_bytes=size), tmp_path / "good")
    assert (tmp_path / "good").exists()
    with pytest.raises(ObjectChanged, match="key"):
        fetch(storage, StoredFile(storage_key="key", sha256="0" * 64, size_bytes=size), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("key", ["../escape", "/etc/passwd", "a/../../b"])
def test_no_method_takes_a_key_that_leaves_the_store(storage: Storage, source: Path, key: str) -> None:
    calls = (
        lambda: storage.put(key, source),
        lambda: storage.newest(key),
        lambda: list(storage.listing(key)),
        lambda: storage.size(key),
        lambda: storage.download(key, source),
        lambda: storage.delete(key),
        lambda: storage.url(key),
    )
    for call in calls:
        with pytest.raises(ValueError, match="no storage key"):
            call()


def test_the_same_settings_give_the_same_store(storage_settings: Settings) -> None:
    assert open_storage(storage_settings) is open_storage(storage_settings)


def _every_method(store: Storage, source: Path) -> dict[str, object]:
    return {
        "put": lambda: store.put("key", source),
        "newest": lambda: store.newest("prefix/"),
        "listing": lambda: list(store.listing("prefix/")),
        "size": lambda: store.size("key"),
        "download": lambda: store.download("key", source.with_name("back")),
        "delete": lambda: store.delete("key"),
        "check": store.check,
    }


METHODS = ["put", "newest", "listing", "size", "download", "delete", "check"]


@pytest.mark.parametrize("method", METHODS)
def test_a_server_that_does_not_answer_is_tried_again(
    method: str, source: Path, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    store = open_storage(Settings(storage_url="s3://kycflow", s3_endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(StorageUnavailable, match="does not answer"):
        _every_method(store, source)[method]()  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_bucket_is_a_matter_of_configuration(method: str, source: Path, s3: str) -> None:
    store = open_storage(Settings(storage_url="s3://no-such-bucket", s3_endpoint_url=s3))
    with pytest.raises(ConfigurationError, match="no-such-bucket"):
        _every_method(store, source)[method]()  # type: ignore[operator]


@pytest.mark.parametrize("method", ["put", "delete", "check"])
def test_credentials_that_may_not_write_are_a_matter_of_configuration(
    method: str, source: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    store = open_storage(Settings(storage_url=f"s3://kycflow/reader-{method}", s3_endpoint_url=s3))
    with pytest.raises(ConfigurationError, match="403"):
        _every_method(store, source)[method]()  # type: ignore[operator]


class TestFolder:
    """What only a folder can do wrong."""

    def test_only_the_owner_may_read(self, tmp_path: Path, source: Path) -> None:
        open_storage(Settings(storage_url=f"file://{tmp_path}/store")).put("a/b", source)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").rglob("*")}
        assert modes == {"a": 0o700, "b": 0o600, ".incoming": 0o700}
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700

    @pytest.mark.parametrize("method", ["put", "newest", "listing", "size", "download", "delete"])
    def test_a_symbolic_link_does_not_lead_out(self, method: str, tmp_path: Path, source: Path) -> None:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "out").symlink_to(tmp_path)
        store = open_storage(Settings(storage_url=f"file://{tmp_path}/store"))
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: store.put("out/new", source),
            "newest": lambda: store.newest("out/"),
            "listing": lambda: list(store.listing("out/")),
            "size": lambda: store.size("out/source"),
            "download": lambda: store.download("out/source", tmp_path / "back"),
            "delete": lambda: store.delete("out/source"),
        }
        with pytest.raises(ValueError, match="leads out"):
            calls[method]()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store"]

    @pytest.mark.parametrize("method", METHODS)
    def test_a_folder_that_is_a_file_is_a_matter_of_configuration(
        self, method: str, tmp_path: Path, source: Path
    ) -> None:
        (tmp_path / "store").write_text("")
        store = open_storage(Settings(storage_url=f"file://{tmp_path}/store"))
        with pytest.raises(ConfigurationError, match="store"):
            _every_method(store, source)[method]()  # type: ignore[operator]

    def test_a_source_changed_later_changes_no_object(self, tmp_path: Path, source: Path) -> None:
        store = open_storage(Settings(storage_url=f"file://{tmp_path}/store"))
        store.put("key", source)
        source.write_bytes(b"other")
        assert store.size("key") == len(b"bytes of a picture")

    def test_folders_that_a_deletion_leaves_empty_go_with_it(self, tmp_path: Path, source: Path) -> None:
        store = open_storage(Settings(storage_url=f"file://{tmp_path}/store"))
        for name in ("sessions/a/1/x", "sessions/a/2/x", "sessions/b/1/x", "key"):
            store.put(name, source)
        for name in ("sessions/a/1/x", "sessions/b/1/x", "key"):
            store.delete(name)
        folders = {path.relative_to(tmp_path / "store").as_posix() for path in (tmp_path / "store").rglob("*")}
        assert folders == {".incoming", "sessions", "sessions/a", "sessions/a/2", "sessions/a/2/x"}
        (tmp_path / "store" / "sessions" / "a" / "3" / "left").mkdir(parents=True)
        store.delete("sessions/a/3/left/gone")
        store.delete("sessions/a/2/x")
        assert [path.name for path in (tmp_path / "store").iterdir() if path.name[0] != "."] == ["sessions"]
        assert list((tmp_path / "store" / "sessions").iterdir()) == []
