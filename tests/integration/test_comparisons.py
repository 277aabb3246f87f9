"""Comparisons, on SQLite and PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from tasks.contracts import Comparison, EngineConfig, FaceComparison, Reason
from tasks.database.comparisons import begin_comparison, finish_comparison, get_comparison
from tests.faces import scored

KEY, CARD, VIDEO = "c" * 64, "a" * 64, "b" * 64
ENGINE = EngineConfig(weights_sha256={"model.onnx": "d" * 64})
RESULT = scored()


def begin(database: Engine, owner: str = "run") -> Comparison | None:
    return begin_comparison(database, KEY, CARD, VIDEO, ENGINE, owner)


def finish(database: Engine, result: FaceComparison = RESULT) -> Comparison:
    return finish_comparison(database, KEY, CARD, VIDEO, ENGINE, result=result, picture_key="picture")


def test_a_comparison_is_begun_finished_and_found(database: Engine) -> None:
    assert begin(database) is None
    assert get_comparison(database, KEY) is None
    made = finish(database)
    assert (made.result, made.engine, made.picture_key, made.computations) == (RESULT, ENGINE, "picture", 1)
    assert made.finished_at >= made.started_at
    assert get_comparison(database, KEY) == begin(database, "another") == made


def test_each_start_is_counted(database: Engine) -> None:
    assert [begin(database, f"run {number}") for number in range(3)] == [None] * 3
    assert finish(database).computations == 3


def test_finishing_replays_its_own_lost_commit(database: Engine) -> None:
    begin(database)
    first = finish(database)
    assert finish(database, FaceComparison(rejection=Reason.NO_FACE_IN_VIDEO)) == first


def test_two_racers_finish_once(database: Engine) -> None:
    begin(database)
    results = [FaceComparison(similarity=number / 10) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda result: finish(database, result), results))
    assert len({row.result.similarity for row in rows}) == 1


def test_racers_that_begin_are_all_counted(database: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: begin(database, f"run {number}"), range(8))) == [None] * 8
    assert finish(database).computations == 8


def test_a_result_is_stored_though_its_row_was_never_begun_here(database: Engine) -> None:
    assert finish(database).computations == 1
