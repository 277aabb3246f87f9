"""Comparisons, on SQLite and PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from tasks.contracts import Comparison, EngineConfig, FaceComparison, Reason, StoredFile
from tasks.database.comparisons import begin_comparison, finish_comparison, finished, get_comparison
from tasks.database.leases import Lease, release, take
from tests.attempts import trail
from tests.faces import scored

KEY = "c" * 64
CARD = StoredFile(storage_key="card", sha256="a" * 64, size_bytes=5)
VIDEO = StoredFile(storage_key="video", sha256="b" * 64, size_bytes=5)
ENGINE = EngineConfig(weights_sha256={"model.onnx": "d" * 64})
RESULT = scored()


@pytest.fixture
def lease(database: Engine) -> Lease:
    """Of the comparison, and ours."""
    return taken(database)


def taken(database: Engine) -> Lease:
    found = take(database, f"comparison:{KEY}", "run", 60)
    assert isinstance(found, Lease)
    return found


def begin(database: Engine, lease: Lease, by: str = "run") -> Comparison | None:
    return begin_comparison(database, lease, KEY, CARD, VIDEO, ENGINE, by=by)


def finish(database: Engine, lease: Lease, result: FaceComparison = RESULT) -> Comparison:
    return finish_comparison(database, lease, KEY, result=result, picture_key="picture", by="run")


def test_a_comparison_is_begun_finished_and_found(database: Engine, lease: Lease) -> None:
    assert begin(database, lease) is None
    assert get_comparison(database, KEY) is None
    assert finished(database, {KEY}) == set()
    made = finish(database, lease)
    assert (made.result, made.engine, made.picture_key, made.computations) == (RESULT, ENGINE, "picture", 1)
    assert made.finished_at >= made.started_at
    assert get_comparison(database, KEY) == begin(database, lease, "another") == made
    assert finished(database, [KEY, "e" * 64]) == {KEY}


def test_each_start_is_counted_and_traced(database: Engine, lease: Lease) -> None:
    assert [begin(database, lease, f"run {number}") for number in range(3)] == [None] * 3
    assert finish(database, lease).computations == 3
    begin(database, lease, "run 4")
    assert [(line.event, line.actor, line.detail, line.comparison_key) for line in trail(database)] == [
        ("computation_started", "run 0", "start 1", KEY),
        ("computation_started", "run 1", "start 2", KEY),
        ("computation_started", "run 2", "start 3", KEY),
        ("comparison_stored", "run", None, KEY),
    ]


def test_finishing_replays_its_own_lost_commit(database: Engine, lease: Lease) -> None:
    begin(database, lease)
    first = finish(database, lease)
    assert finish(database, lease, FaceComparison(rejection=Reason.NO_FACE_IN_VIDEO)) == first


def test_a_later_owner_finds_the_row_and_changes_nothing(database: Engine, lease: Lease) -> None:
    begin(database, lease)
    first = finish(database, lease)
    release(database, lease)
    later = taken(database)
    assert later.token > lease.token
    assert begin(database, later, "later") == first
    assert finish(database, later, FaceComparison(similarity=0.1)) == first


def test_two_racers_finish_once(database: Engine, lease: Lease) -> None:
    begin(database, lease)
    results = [FaceComparison(similarity=number / 10) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda result: finish(database, lease, result), results))
    assert len({row.result.similarity for row in rows}) == 1
    assert [line.event for line in trail(database)] == ["computation_started", "comparison_stored"]


def test_racers_that_begin_are_all_counted(database: Engine, lease: Lease) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: begin(database, lease, f"run {number}"), range(8))) == [None] * 8
    assert finish(database, lease).computations == 8


def test_finishing_what_was_never_begun_is_a_bug(database: Engine, lease: Lease) -> None:
    with pytest.raises(AssertionError, match="never begun"):
        finish(database, lease)
