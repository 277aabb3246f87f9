"""What Prefect's server is given to bear load, and what is derived from what a flow run costs."""

import gc
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prefect.settings import Settings as PrefectSettings

from deployments.server_load import LOAD_VARIABLES, YOUNG_OBJECTS, leave_loaded_alone
from deployments.stack import Addresses, environment
from tasks.settings import Settings
from tests.benchmarks.scale import LOAD, PARTS, SETTLE_SECONDS, Point, need

ADDRESSES = Addresses(prefect_ui="http://127.0.0.1:1", upload_api="http://127.0.0.1:2", stack="a")


def test_the_embedded_server_is_told_and_prefect_has_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(Settings(), ADDRESSES)
    for name in LOAD_VARIABLES:
        monkeypatch.setenv(name, told[name])
    server = PrefectSettings().server
    assert server.database.sqlalchemy.pool_size == 20
    assert server.services.late_runs.after_seconds == timedelta(seconds=60)


@pytest.mark.parametrize("name", LOAD_VARIABLES)
def test_what_the_operator_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    assert environment(Settings(), ADDRESSES)[name] == "7"


@pytest.fixture
def _collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("_collector")
def test_what_is_loaded_is_left_alone_and_garbage_is_still_found() -> None:
    leave_loaded_alone()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] == YOUNG_OBJECTS
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1


def point(workers: int, cost: float, idle: float) -> Point:
    """One whose parts all cost the same."""
    seconds = 0.5 + SETTLE_SECONDS / 10
    executing, creating = dict.fromkeys(PARTS, cost + idle * seconds), dict.fromkeys(PARTS, cost)
    return Point(1, workers, 10, 2.0, cpu=executing, creating=creating, idle=dict.fromkeys(PARTS, idle))


def test_a_rate_needs_what_its_runs_cost_and_what_the_asking_of_its_workers_costs() -> None:
    found = need([point(1, 0.01, 0.02), point(2, 0.02, 0.04), point(4, 0.03, 0.08)], rate=20)
    busy = 20 * (0.02 + 0.02)  # medians
    workers = 2  # 0.8 cores at most 70 % used
    expected = (busy + workers * 0.02) / LOAD
    assert found.cores == {part: pytest.approx(expected) for part in PARTS}
    assert found.processes == {"API": 2, "services": 2, "workers": 2}
