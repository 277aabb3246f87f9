"""On which pool sessions run."""

import pytest

from deployments.provision import flow_modules, sessions_pool
from tasks.settings import Settings

SESSION, COMPARISON, SWEEP = "flows.verify_session", "flows.compare_faces", "flows.sweep_sessions"


@pytest.mark.parametrize(
    ("worker_type", "asked", "pool"),
    [
        ("resident", None, "gpu"),
        ("process", None, "sessions"),
        ("kubernetes", None, "sessions"),
        ("resident", "sessions", "sessions"),
        ("process", "gpu", "gpu"),
    ],
)
def test_sessions_run_where_the_engine_is_loaded_unless_it_is_set(
    worker_type: str, asked: str | None, pool: str
) -> None:
    settings = Settings.model_validate({"worker_type": worker_type, "sessions_pool": asked})
    assert sessions_pool(settings) == pool
    assert [SESSION in flow_modules(settings, one) for one in ("gpu", "sessions")] == [pool == "gpu", pool != "gpu"]
    assert COMPARISON in flow_modules(settings, "gpu")
    assert SWEEP in flow_modules(settings, "sessions")
    assert {SESSION, COMPARISON, SWEEP} < set(flow_modules(settings))
