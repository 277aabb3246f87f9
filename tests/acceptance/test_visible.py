"""That people see every session, from its creation to its decision and after: by the queries that the UI's pages send,
and by the pages themselves, in a browser.

The bodies are those that the pages of both versions of the UI sent with their default filters, recorded in a browser
with Prefect 3.8.8.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import pytest

from deployments.demo_media import DemoMedia
from tasks.contracts import DecisionKind
from tasks.states import DECIDED
from tests.acceptance.test_prefect import deployment
from tests.acceptance.test_sessions import verify
from tests.prefect_ui import PrefectUi, Rows, Version, prefect_ui
from tests.readme import README
from tests.system import System, eventually

FIRST_VERSION_NAMES = [
    *["Late", "Resuming", "AwaitingRetry", "AwaitingConcurrencySlot", "Pending", "Paused", "Suspended", "Running"],
    *["Retrying", "Completed", "Cached", "Cancelled", "Cancelling", "Crashed", "Failed", "TimedOut"],
]
SECOND_VERSION_NAMES = [*FIRST_VERSION_NAMES, "Submitting", "InfrastructurePending"]

Body = dict[str, Any]


def last(days: int) -> dict[str, str]:
    """The range of dates that a page begins with."""
    now = datetime.now(UTC)
    return {"before_": now.isoformat(), "after_": (now - timedelta(days=days)).isoformat()}


PAGES: dict[str, Callable[[str], tuple[str, Body]]] = {
    "dashboard, version 1": lambda _: (
        "filter",
        {"flow_runs": {"expected_start_time": last(1)}, "sort": "START_TIME_DESC", "limit": 42},
    ),
    "dashboard, version 2": lambda _: (
        "filter",
        {
            "flow_runs": {"operator": "and_", "expected_start_time": last(1)},
            "sort": "EXPECTED_START_TIME_DESC",
            "offset": 0,
        },
    ),
    "run list, version 1": lambda _: (
        "paginate",
        {"flow_runs": {"start_time": last(7)}, "sort": "START_TIME_DESC", "limit": 100, "page": 1},
    ),
    "run list, version 2": lambda _: (
        "paginate",
        {
            "flow_runs": {"operator": "and_", "expected_start_time": last(7)},
            "sort": "START_TIME_DESC",
            "limit": 100,
            "page": 1,
        },
    ),
    "deployment, version 1": lambda id_: (
        "paginate",
        {
            "flow_runs": {"state": {"name": {"any_": FIRST_VERSION_NAMES}}},
            "deployments": {"id": {"any_": [id_]}},
            "sort": "START_TIME_DESC",
            "limit": 10,
            "page": 1,
        },
    ),
    "deployment, version 2": lambda id_: (
        "paginate",
        {
            "flow_runs": {
                "name": {},
                "state": {"name": {"any_": SECOND_VERSION_NAMES}, "operator": "or_"},
                "operator": "and_",
            },
            "deployments": {"operator": "and_", "id": {"any_": [id_]}},
            "sort": "START_TIME_DESC",
            "limit": 10,
            "page": 1,
        },
    ),
}


def shown(system: System, page: str) -> dict[UUID, str]:
    """The states of the flow runs on a page, the newest first."""
    path, body = PAGES[page](str(deployment(system, "verify-session")["id"]))
    with system.prefect_http() as prefect:
        answer = prefect.post(f"/flow_runs/{path}", json=body).raise_for_status().json()
    return {UUID(run["id"]): run["state_name"] for run in (answer["results"] if path == "paginate" else answer)}


STATES = ("Match", "NoMatch", "Rejected", "Expired", "AwaitingFiles", "Cancelled")


def session_of(state: str) -> str:
    """The session that is in this state."""
    return f"seen-{state.lower()}"


@pytest.fixture(scope="module")
def sessions(system: System, demo_media: DemoMedia) -> dict[UUID, str]:
    """Flow runs of sessions that wait, and of some that are decided, and the states that they are in."""
    wanted: dict[UUID, str] = {}
    cards = {
        "Match": demo_media.genuine_card,
        "NoMatch": demo_media.impostor_card,
        "Rejected": demo_media.faceless_card,
    }
    for state in STATES:
        name = session_of(state)
        with system.client() as client:
            if state in cards:
                verify(system, name, cards[state], demo_media.selfie_video)
            else:
                client.create_session(name, deadline_seconds=5 if state == "Expired" else 3600)
        (run,) = system.session_runs(name)
        if state == "Cancelled":
            ui = {"state": {"type": "CANCELLING", "name": "Cancelling", "message": "Cancelled from the UI"}}
            with system.prefect_http() as prefect:
                prefect.post(f"/flow_runs/{run.id}/set_state", json=ui).raise_for_status()
        wanted[run.id] = state
    return wanted


@pytest.mark.parametrize("page", PAGES)
def test_a_session_is_on_the_page_with_its_state(page: str, system: System, sessions: dict[UUID, str]) -> None:
    def look() -> bool | None:
        found = shown(system, page)
        return {run: found.get(run) for run in sessions} == sessions or None

    eventually(look, 30)


def test_no_run_that_waits_is_late_or_planned_for_later(system: System, sessions: dict[UUID, str]) -> None:
    for run_id, state in sessions.items():
        run = system.prefect(lambda client, run_id=run_id: client.read_flow_run(run_id))  # type: ignore[misc]
        assert run.expected_start_time is not None
        assert run.expected_start_time.timestamp() <= datetime.now(UTC).timestamp()
        assert state != "AwaitingFiles" or run.next_scheduled_start_time is None


NAMED = {f"{session_of(state)} attempt 1": state for state in STATES}
ON_PAGES: dict[str, Callable[[PrefectUi, str], Rows]] = {
    "dashboard": lambda ui, _: ui.on_dashboard("verify-session"),
    "run list": lambda ui, _: ui.open("/runs").listed(),
    "deployment": lambda ui, id_: ui.open(f"/deployments/deployment/{id_}").listed(),
}
# The dashboard ends at the last full minute.
MINUTE = 90


def sees(look: Callable[[], Rows], wanted: Rows, seconds: float = MINUTE) -> None:
    """That these rows come into sight, and none of the others in `NAMED`."""
    deadline = time.monotonic() + seconds
    while (seen := {name: state for name, state in look().items() if name in NAMED or name in wanted}) != wanted:
        if time.monotonic() > deadline:
            assert seen == wanted


@pytest.mark.parametrize("version", get_args(Version))
@pytest.mark.parametrize("place", ON_PAGES)
def test_people_see_each_session_with_its_state_without_setting_a_filter(
    place: str, version: Version, system: System, sessions: dict[UUID, str]
) -> None:
    assert len(sessions) == len(NAMED)
    deployment_id = str(deployment(system, "verify-session")["id"])
    with prefect_ui(system, version) as ui:
        sees(lambda: ON_PAGES[place](ui, deployment_id), NAMED)


LINKS = {  # in README's table
    kind: {"v2": second, "v1": first}
    for kind, second, first in re.findall(r"\| `decision:(\w+)` \| `(\S+)` \| `(\S+)` \|", README.read_text())
}


@pytest.mark.parametrize("version", get_args(Version))
def test_a_link_shows_the_sessions_with_one_decision(
    version: Version, system: System, sessions: dict[UUID, str]
) -> None:
    assert len(sessions) == len(NAMED)
    with prefect_ui(system, version) as ui:
        for kind, links in LINKS.items():
            state = DECIDED[DecisionKind(kind)]
            wanted = {name: named for name, named in NAMED.items() if named == state}
            sees(lambda link=links[version]: ui.open_link(link).rows(), wanted)  # type: ignore[misc]


def test_there_is_a_link_for_each_decision() -> None:
    assert [*LINKS] == [kind.value for kind in DecisionKind]


@pytest.mark.parametrize("version", get_args(Version))
def test_tasks_of_a_run_repeated_by_a_person_are_cached(
    version: Version, system: System, sessions: dict[UUID, str]
) -> None:
    assert "Match" in sessions.values()
    session_id, deployment_id = session_of("Match"), str(deployment(system, "verify-session")["id"])
    before = {run.id for run in system.session_runs(session_id)}
    with prefect_ui(system, version) as ui:
        ui.run_again(deployment_id, session_id)
    (again,) = eventually(lambda: [run for run in system.session_runs(session_id) if run.id not in before] or None)
    system.ended_run(again.id)
    wanted = {name: "Cached" for name in ("find id image", "find selfie video", "compute comparison", "decide")}
    wanted["open attempt"] = "Completed"
    with prefect_ui(system, version) as ui:
        sees(lambda: {name.rpartition("-")[0]: state for name, state in ui.task_runs(str(again.id)).items()}, wanted)
