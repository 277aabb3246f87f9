"""What has to be true after a chaos run, and the table that says so."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from rich.table import Table
from sqlalchemy import func, select

from deployments.prefect_access import read_secret
from tasks.contracts import Status
from tasks.database import database_for
from tasks.database.engine import reading
from tasks.database.tables import AttemptRow, AuditRow, ComparisonRow, DecisionRow
from tasks.dispatch import busy_runs
from tasks.errors import DatabaseUnavailable
from tasks.states import DECIDED, DECISION_TAG
from tasks.sweep.place import at_work
from tests.chaos.clients import Clients
from tests.chaos.faults import Faults
from tests.chaos.plan import Plan
from tests.chaos.world import World

SETTLE_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    what: str
    found: object
    wanted: str
    right: bool


def wait_for_decisions(world: World, plan: Plan, seconds: float, seen: Callable[[int], None]) -> None:
    """Until every session is decided, given up or cancelled, or the time is over."""
    deadline = time.monotonic() + seconds
    closed = select(func.count()).where(AttemptRow.closed_at.is_not(None))
    while time.monotonic() < deadline and not world.trouble:
        try:
            with reading(database_for(world.settings)) as session:
                count = session.scalar(closed) or 0
        except DatabaseUnavailable:
            count = 0
        seen(count)
        if count >= len(plan.sessions):
            return
        time.sleep(1)


def judge(world: World, plan: Plan, clients: Clients, faults: Faults) -> list[Check]:
    """Look at SQL and at Prefect's server. Runs get a while to set their last state."""
    wanted = {one.session_id: one.card.value for one in plan.sessions}
    pairs = len({(one.card, one.serial) for one in plan.sessions})
    runs, left, untrue = _runs(world)
    with reading(database_for(world.settings)) as session:
        decisions = session.scalars(select(DecisionRow)).all()
        comparisons = session.scalars(select(ComparisonRow)).all()
        errors = session.scalar(select(func.count()).where(AttemptRow.status == Status.ERROR))
        again = session.scalar(select(func.count()).where(AuditRow.event == "run_started_again"))
    count = len(plan.sessions)
    right = sum(one.decision.value == wanted.get(one.session_id) for one in decisions)
    finished = [one for one in comparisons if one.finished_at is not None]
    twice = sum(one.computations for one in comparisons) - len(comparisons)
    decided = {one.session_id for one in decisions}
    waits = [_wait(one.decided_at, clients.last_upload.get(one.session_id), faults.at) for one in decisions]
    kills = sum(faults.kills.values())
    checks = [
        Check("sessions decided", f"{len(decided)} of {count}", f"{count}", len(decided) == count),
        Check("right decisions", right, f"{count}", right == count),
        Check("decision rows", len(decisions), f"{count}", len(decisions) == count),
        Check("comparison rows", len(finished), f"{pairs} distinct pairs", len(finished) == len(comparisons) == pairs),
        Check(
            "computations started more than once",
            twice,
            f"<= {len(faults.hit)} kills that hit one",
            0 <= twice <= len(faults.hit),
        ),
        Check("flow runs of sessions", runs, f"{count}", runs == count),
        Check("runs left Running or Pending", left, "0", left == 0),
        Check("sessions of which Prefect says something else", untrue, "0", untrue == 0),
        Check("sessions given up", errors, "0", errors == 0),
        Check("workers killed", kills, f">= {len(plan.kills)}", kills >= len(plan.kills)),
        Check("processes that did not come back", len(world.trouble), "0", not world.trouble),
        Check("session runs started again after a fault", again, "", True),
        Check("calls of clients that were sent again", clients.refusals, "", True),
        Check("longest time from last upload or fault to decision", f"{max(waits, default=0):.0f} s", "", True),
    ]
    if faults.outage_seconds:
        slowest = max(faults.outage_seconds)
        checks.append(Check("slowest to be done with what an outage left", f"{slowest:.0f} s", "", True))
    if faults.recovery_seconds:
        slowest = max(faults.recovery_seconds)
        checks.append(Check("slowest restart of a killed computation", f"{slowest:.0f} s", "", True))
    return checks


def table(checks: list[Check], faults: Faults) -> Table:
    """For people."""
    drawn = Table("", "What", "Found", "Wanted", box=None, pad_edge=False)
    for check in checks:
        mark = "" if not check.wanted else "[green]ok[/]" if check.right else "[red]NO[/]"
        drawn.add_row(mark, check.what, str(check.found), check.wanted)
    for moment, number in sorted(faults.kills.items()):
        drawn.add_row("", f"killed, {moment.value}", str(number), "")
    return drawn


def _wait(decided_at: datetime, uploaded: float | None, faults: list[float]) -> float:
    decided = decided_at.replace(tzinfo=decided_at.tzinfo or UTC).timestamp()
    return decided - max([uploaded or 0.0, *(at for at in faults if at < decided)])


def _runs(world: World) -> tuple[int, int, int]:
    """How many flow runs sessions have; how many runs are left Running or Pending, but for the sweep at work; how many
    decisions are not the names of their flow runs' states, and their tags."""
    return asyncio.run(_ask(world))


def decisions_of(run: FlowRun) -> list[str]:
    """The decisions that a run is tagged with."""
    return [tag.removeprefix(DECISION_TAG) for tag in run.tags if tag.startswith(DECISION_TAG)]


async def _ask(world: World) -> tuple[int, int, int]:
    deadline = time.monotonic() + SETTLE_SECONDS
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=["session"]))
    async with PrefectClient(world.stack.addresses.prefect_api, auth_string=read_secret(world.settings)) as client:
        while True:
            busy = await busy_runs(client)
            sweep = await asyncio.to_thread(at_work, database_for(world.settings))
            left = [run for run in busy if sweep is None or sweep.expired or sweep.owner != str(run.id)]
            sessions: list[FlowRun] = []
            while page := await client.read_flow_runs(flow_run_filter=tagged, limit=200, offset=len(sessions)):
                sessions += page
            said = {str(run.parameters["session_id"]): (run.state_name, decisions_of(run)) for run in sessions}
            with reading(database_for(world.settings)) as session:
                rows = session.scalars(select(DecisionRow)).all()
                stored = {one.session_id: (DECIDED[one.decision], [one.decision.value]) for one in rows}
            untrue = sum(said.get(one) != told for one, told in stored.items())
            if not (left or untrue) or time.monotonic() > deadline:
                return len(sessions), len(left), untrue
            await asyncio.sleep(1)
