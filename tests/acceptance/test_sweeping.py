"""One sweep is at work at a time, whatever happens to its worker, and none leaves a run behind that says otherwise."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.prefect_access import read_secret
from tasks.dispatch import SWEEP, start_sweep
from tests.system import System, eventually, kycflow_up

REPLACED_SECONDS = 30
ORDERLY = {"COMPLETED", "CANCELLED"}


def begun(system: System) -> list[FlowRun]:
    """The runs of sweeps that are not only planned, the newest first."""
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[SWEEP]))
    runs = system.prefect(
        lambda client: client.read_flow_runs(flow_run_filter=tagged, sort=FlowRunSort.START_TIME_DESC, limit=200)
    )
    return [run for run in runs if run.start_time is not None]


def only_one(system: System, before: FlowRun | None = None, seconds: float = REPLACED_SECONDS) -> FlowRun:
    """The one sweep at work, another one than before, once all others have ended in order."""

    def look() -> FlowRun | None:
        runs = begun(system)
        at_work = [run for run in runs if run.state_type is StateType.RUNNING]
        ended = {run.state_type.value for run in runs if run not in at_work and run.state_type}
        replaced = before is None or before.id not in {run.id for run in at_work}
        return at_work[0] if len(at_work) == 1 and replaced and ended <= ORDERLY else None

    return eventually(look, seconds)


def left(state_dir: Path, kind: str) -> set[str]:
    """The types of the states that all runs have, planned ones too, at the Prefect server of a stopped system."""
    with closing(sqlite3.connect(state_dir / "prefect" / "prefect.db")) as database:
        rows = database.execute(f"SELECT DISTINCT state_type FROM {kind}").fetchall()
    return {str(row[0]) for row in rows}


@pytest.mark.parametrize("worker_type", ["resident", "process"])
def test_a_start_a_kill_and_a_stop_leave_nothing_crashed_or_running(
    worker_type: str, tmp_path: Path, weights: list[Path]
) -> None:
    state = tmp_path / "state"
    own = {"KYCFLOW_WORKER_TYPE": worker_type, "KYCFLOW_PREFECT_PORT": "4700", "KYCFLOW_API_PORT": "8920"}
    with kycflow_up(state, weights[0].parent, **own) as system:
        first = only_one(system)
        system.kill_worker("upkeep")
        only_one(system, first)
        system.database.dispose()
    assert left(state, "flow_run") <= ORDERLY | {"SCHEDULED"}
    with kycflow_up(state, weights[0].parent, **own) as system:
        only_one(system)
        system.database.dispose()
    assert left(state, "flow_run") <= ORDERLY | {"SCHEDULED"}
    assert left(state, "task_run") <= ORDERLY


def test_a_newer_sweep_takes_the_place_of_the_one_at_work(system: System) -> None:
    before = only_one(system)
    access = {PREFECT_API_URL: system.addresses.prefect_api, PREFECT_API_AUTH_STRING: read_secret(system.settings)}
    with temporary_settings(access):
        asyncio.run(start_sweep())
    only_one(system, before)
    ended = system.ended_run(before.id).state
    assert ended is not None
    assert ended.type is StateType.COMPLETED
    assert "a newer sweep goes on" in str(ended.message)
