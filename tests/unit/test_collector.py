"""The garbage collector is spared what stays, and still finds what does not."""

import gc
from collections.abc import Iterator

import pytest

from deployments.collector import YOUNG_OBJECTS, leave_loaded_alone


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
