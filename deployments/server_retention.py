"""How long Prefect's server keeps what. That is in the environment of the server's process only.

`retention_variables` are those that kycflow wants, and `read_retention` asks a server what it has.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:  # importing Prefect takes a second, which `kycflow up` has before it needs it
    from prefect.client.orchestration import PrefectClient

EVENT_DAYS = 7

VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
RUN_RETENTION = "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"
EVENT_RETENTION = "PREFECT_SERVER_EVENTS_RETENTION_PERIOD"


def retention_variables(days: int) -> dict[str, str]:
    """What has Prefect's server forget runs, with their logs and artifacts, after so many days, and events by then."""
    return {
        VACUUM: "events,flow_runs",
        RUN_RETENTION: str(days * 86_400),
        EVENT_RETENTION: f"{min(days, EVENT_DAYS)} days",  # a bare number keeps every Prefect process from starting
    }


@dataclass(frozen=True)
class Retention:
    """How long a server keeps ended runs, and events. None: for ever."""

    runs: timedelta | None
    events: timedelta | None


class _Vacuum(BaseModel):
    enabled: set[str] | bool | None
    retention_period: timedelta

    def deletes(self, what: str) -> bool:
        """In Prefect's words: true means everything, false only events."""
        if isinstance(self.enabled, bool):
            return self.enabled or what == "events"
        return what in (self.enabled or ())


class _Services(BaseModel):
    db_vacuum: _Vacuum


class _Events(BaseModel):
    retention_period: timedelta


class _Server(BaseModel):
    services: _Services
    events: _Events


class _ServerSettings(BaseModel):
    server: _Server


async def read_retention(client: "PrefectClient") -> Retention | None:
    """What the server says of itself; None when it does not say, as Prefect Cloud.

    Raises:
        OrchestratorUnavailable: from `prefect_api`, which the client belongs to.
    """
    try:
        answer = await client.request("GET", "/admin/settings")
        server = _ServerSettings.model_validate_json(answer.content).server
    except httpx.HTTPStatusError as exc:
        if exc.response.status_code in {403, 404, 405}:
            return None
        raise
    except ValidationError:
        return None
    vacuum = server.services.db_vacuum
    return Retention(
        runs=vacuum.retention_period if vacuum.deletes("flow_runs") else None,
        events=server.events.retention_period if vacuum.deletes("events") else None,
    )
