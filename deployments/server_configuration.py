"""What Prefect's server is told beside pools and deployments: when a run counts as lost, and how long it keeps what.

The first is an automation, made through the API. The second is in the environment of the server's process only:
`retention_variables` are those that kycflow wants, and `read_retention` asks a server what it has.
"""

from dataclasses import dataclass
from datetime import timedelta

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import BaseModel, ValidationError

from tasks.dispatch import TAG

LOST_RUNS = "kycflow: end runs whose process is gone"
SILENCE = timedelta(seconds=90)
"""How long a run's process may send no heartbeat."""
HEARTBEAT_SECONDS = 30
"""How often it sends one: Prefect's least."""
WATCHED_TAGS = ("comparison", "evaluation", "upkeep")
"""Of the deployments in prefect.yaml, those whose runs have a process from their beginning to their end."""
EVENT_DAYS = 7

VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
RUN_RETENTION = "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"
EVENT_RETENTION = "PREFECT_SERVER_EVENTS_RETENTION_PERIOD"


def lost_runs_automation() -> AutomationCore:
    """The automation that marks runs without heartbeats Crashed: the second net, under `tasks/sweep.py`.

    Any event of a run counts as a sign of life, not only those of Prefect's own states: events are named after states,
    and a run that waits in a queue, say, sends no heartbeat. Runs of sessions are left to the sweep: that they went
    over to waiting is told by one event, the last for up to hours, and a busy Prefect server (3.8.8, SQLite) has missed
    it and marked runs that waited Crashed.
    """
    watched = [f"prefect.tag.{tag}" for tag in WATCHED_TAGS]
    return AutomationCore(
        name=LOST_RUNS,
        description=f"A run of kycflow that is not heard of for {SILENCE.seconds} s is marked Crashed. Runs of "
        "sessions wait without a process, and are watched by the sweep alone. `kycflow deploy` puts changes right, "
        "and leaves it off where it was switched off.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=[_tagged(f"prefect.tag.{TAG}"), _tagged(watched)],
            for_each={"prefect.resource.id"},
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name="Crashed", message="Its process sent no heartbeat any more."
            )
        ],
    )


def _tagged(tag: str | list[str]) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.id": tag, "prefect.resource.role": "tag"})


async def configure_server(client: PrefectClient) -> None:
    """Have exactly one automation for lost runs, as this version wants it. Safe to repeat, also by two at once.

    Raises:
        OrchestratorUnavailable, ConfigurationError: from `prefect_api`, which the client belongs to.
    """
    wanted = lost_runs_automation()
    if not await client.read_automations_by_name(LOST_RUNS):
        await client.create_automation(wanted)
    # Names are not unique. Whoever else has just made one too deletes the same ones.
    found = sorted(await client.read_automations_by_name(LOST_RUNS), key=lambda one: one.id)
    for other in found[1:]:
        await _delete(client, other)
    if found and not as_wanted(found[0]):  # an update forgets the silences that are being measured
        await client.update_automation(found[0].id, wanted)


async def _delete(client: PrefectClient, automation: Automation) -> None:
    try:
        await client.delete_automation(automation.id)
    except httpx.HTTPStatusError as exc:
        if exc.response.status_code != 404:  # somebody else was faster
            raise


def as_wanted(found: Automation) -> bool:
    """Whether an automation is what this version makes, on or off."""
    return found.model_dump(exclude={"id", "enabled"}) == lost_runs_automation().model_dump(exclude={"enabled"})


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


async def read_retention(client: PrefectClient) -> Retention | None:
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
