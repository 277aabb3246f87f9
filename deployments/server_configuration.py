"""What Prefect's server is told beside pools and deployments: when a run counts as lost. An automation does it."""

from datetime import timedelta

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from tasks.dispatch import TAG

LOST_RUNS = "kycflow: end runs whose process is gone"
SILENCE = timedelta(seconds=90)
"""How long a run's process may send no heartbeat."""
HEARTBEAT_SECONDS = 30
"""How often it sends one: Prefect's least."""
WATCHED_TAGS = ("comparison", "evaluation", "upkeep")
"""Of the deployments in prefect.yaml, those whose runs have a process from their beginning to their end."""


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
