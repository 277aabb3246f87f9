"""Prefect's cache on kycflow's storage, a folder and S3: what is kept, and what of a stored record is believed."""

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.results import ResultStore

from tasks.caching import MOST_BYTES, OWN_STORAGE, SERIALIZER, cached
from tasks.settings import Settings
from tasks.storage import Storage
from tasks.storage.local import LocalStorage

KEY = "results/comparisons/abc/compute-comparison-1"
PICKLE = {"type": "pickle", "picklelib": "cloudpickle", "picklelib_version": None}
Record = dict[str, Any]


@pytest.fixture
def kept(storage: Storage, storage_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The storage that results go to."""
    monkeypatch.setenv("KYCFLOW_STORAGE_URL", storage_settings.storage)
    monkeypatch.setenv("KYCFLOW_S3_ENDPOINT_URL", str(storage_settings.s3_endpoint_url or ""))
    return storage


@pytest.fixture
def results(kept: Storage) -> ResultStore:
    """Prefect's store of a cached task."""
    del kept
    return ResultStore(result_storage=OWN_STORAGE, serializer=SERIALIZER, cache_result_in_memory=False)


def record(**change: Any) -> Record:
    """A record as kycflow writes it, changed."""
    about = {"storage_key": KEY, "serializer": SERIALIZER.model_dump()}
    return {"metadata": about | change.pop("metadata", {}), "result": json.dumps("abc"), **change}


def test_a_name_that_was_kept_comes_back_and_a_later_one_takes_its_place(results: ResultStore) -> None:
    assert not results.exists(KEY)
    for name in ("first", "second"):
        results.write(name, key=KEY)
        assert results.exists(KEY)
        assert results.read(KEY).result == name


def test_a_record_as_kycflow_writes_it_is_a_hit(kept: Storage, results: ResultStore) -> None:
    """Else none of the refusals below says anything."""
    kept.replace(KEY, json.dumps(record()).encode())
    assert results.read(KEY).result == "abc"


@pytest.mark.parametrize("result", [None, 0.767, {"similarity": 0.767}, ["a"], ValueError("why"), "x" * MOST_BYTES])
def test_nothing_is_kept_that_is_not_a_short_name(result: object, kept: Storage, results: ResultStore) -> None:
    results.write(result, key=KEY)
    assert not results.exists(KEY)
    if not isinstance(result, str):
        assert list(kept.listing("results/")) == []


def test_what_has_no_key_of_a_task_is_not_kept(kept: Storage, results: ResultStore) -> None:
    """Prefect writes the exceptions of tasks whose results are kept under random names."""
    results.write("a message", key="0b5d")
    assert kept.size("0b5d") is None


class Mine:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


def hostile(trace: Path) -> dict[str, bytes]:
    """Records that somebody else has put into storage. Some make Prefect's own reader run their code."""
    pickled = base64.encodebytes(pickle.dumps(Mine(trace))).decode()
    decoder = SERIALIZER.model_dump() | {"object_decoder": "pathlib.Path"}
    other = {
        "pickle": record(metadata={"serializer": PICKLE}, result=pickled),
        "pickle of an old version": {"serializer": PICKLE, "data": pickled},
        "compressed pickle": record(metadata={"serializer": {"type": "compressed/pickle"}}, result=pickled),
        "decoder": record(metadata={"serializer": decoder}, result='{"a": 1}'),
        "library": record(metadata={"serializer": SERIALIZER.model_dump() | {"jsonlib": "cloudpickle"}}),
        "no serializer": {"metadata": {"storage_key": KEY}, "result": pickled},
        "of another key": record(metadata={"storage_key": f"{KEY}2"}),
        "no name": record(result="0.767"),
        "no text": record(result=["abc"]),
        "padded": record(padding="x" * MOST_BYTES),
    }
    written = {what: json.dumps(made).encode() for what, made in other.items()}
    whole = json.dumps(record()).encode()
    duplicate = whole[:-1] + b', "metadata": ' + json.dumps({"storage_key": KEY, "serializer": PICKLE}).encode() + b"}"
    return written | {
        "truncated": whole[:-10],
        "empty": b"",
        "deep": b"[" * MOST_BYTES,
        "a list": b"[]",
        "binary": b"\xff\xfe\x00" * 20,
        "twice": duplicate,
    }


@pytest.mark.parametrize("what", [*hostile(Path())])
def test_a_record_that_is_not_ours_is_a_miss_and_runs_nothing(
    what: str, kept: Storage, results: ResultStore, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    kept.replace(KEY, hostile(trace)[what])
    assert not results.exists(KEY)
    assert not trace.exists()
    results.write("made again", key=KEY)
    assert results.read(KEY).result == "made again"


def test_prefects_own_reader_runs_what_ours_refuses(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    from prefect._internal.result_records import ResultRecord

    trace = tmp_path / "trace"
    ResultRecord.deserialize(hostile(trace)["pickle"])
    assert trace.exists()


def test_only_the_name_of_a_record_reaches_prefect(kept: Storage, results: ResultStore) -> None:
    made = record(metadata={"prefect_version": "<script>", "expiration": "2000-01-01T00:00:00Z", "other": 1}, more=1)
    kept.replace(KEY, json.dumps(made).encode())
    read = results.read(KEY)
    assert (read.result, read.metadata.expiration) == ("abc", None)
    assert read.metadata.prefect_version != "<script>"


def test_a_task_keeps_its_results_in_kycflows_storage_and_nowhere_else() -> None:
    options = cached("results/", "a")
    assert options["result_storage"] is OWN_STORAGE
    assert options["cache_policy"].isolation_level is None, "Locks would outlive a killed process."
    assert options["cache_policy"].lock_manager is None


def test_a_folder_that_cannot_be_written_to_costs_the_result_only(results: ResultStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KYCFLOW_STORAGE_URL", f"file://{tmp_path}/file")
        results.write("a name", key=KEY)
        assert not results.exists(KEY)


def test_small_objects_are_readable_by_their_owner_only(kept: Storage) -> None:
    kept.replace(KEY, b"content")
    assert kept.read(KEY, 7) == b"content"
    assert kept.read(KEY, 6) is None
    assert kept.read(f"{KEY}2", 7) is None
    if isinstance(kept, LocalStorage):
        assert Path(kept.url(KEY)).stat().st_mode & 0o777 == 0o600
        assert list((kept.folder / ".incoming").iterdir()) == []
