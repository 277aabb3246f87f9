"""How long Prefect's server keeps what, as it says itself, and as the embedded one is told."""

import asyncio
from datetime import timedelta

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from deployments.server_retention import EVENT_RETENTION, RUN_RETENTION, VACUUM, Retention, read_retention
from deployments.stack import Addresses, environment
from tasks.settings import Settings

ADDRESSES = Addresses(prefect_ui="http://127.0.0.1:1", upload_api="http://127.0.0.1:2", stack="a")
WEEK, MONTH = timedelta(days=7), timedelta(days=30)


def said_by(answer: httpx.Response) -> Retention | None:
    """What is made of a server's answer."""

    async def ask() -> Retention | None:
        transport = httpx.MockTransport(lambda _: answer)
        async with PrefectClient("http://server/api", httpx_settings={"transport": transport}) as client:
            return await read_retention(client)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("enabled", "runs", "events"),
    [
        (["events"], None, WEEK),
        (["events", "flow_runs"], MONTH, WEEK),
        (["flow_runs"], MONTH, None),
        (True, MONTH, WEEK),
        (False, None, WEEK),
        (None, None, None),
    ],
)
def test_what_the_server_does_not_delete_is_kept_for_ever(
    enabled: object, runs: timedelta | None, events: timedelta | None
) -> None:
    vacuum = {"enabled": enabled, "retention_period": "P30D", "loop_seconds": 3600}
    settings = {"server": {"services": {"db_vacuum": vacuum}, "events": {"retention_period": "P7D"}}, "home": "/"}
    assert said_by(httpx.Response(200, json=settings)) == Retention(runs=runs, events=events)


@pytest.mark.parametrize("answer", [httpx.Response(404), httpx.Response(403), httpx.Response(200, json={"server": 1})])
def test_a_server_may_keep_its_settings_to_itself(answer: httpx.Response) -> None:
    assert said_by(answer) is None


def test_the_embedded_server_keeps_runs_as_long_as_media_and_events_no_longer() -> None:
    told = environment(Settings(media_retention_days=3), ADDRESSES)
    assert (told[VACUUM], told[RUN_RETENTION], told[EVENT_RETENTION]) == ("events,flow_runs", "259200", "3 days")
    assert environment(Settings(media_retention_days=90), ADDRESSES)[EVENT_RETENTION] == "7 days"


def test_what_the_operator_has_set_for_the_server_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_RETENTION, "7200")
    told = environment(Settings(), ADDRESSES)
    assert (told[RUN_RETENTION], told[VACUUM]) == ("7200", "events,flow_runs")
