"""One look of the sweep: what it sees in SQL, at Prefect's server and in storage, and what there is to mend.

A look takes a few queries, whatever the number of sessions that wait.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from sqlalchemy import Engine

from tasks.contracts import Attempt, Plain
from tasks.database import database_for
from tasks.database.attempts import (
    MOST_NAMES,
    decided_beside,
    in_progress,
    of_another_system,
    overdue,
    some_attempts,
    without_run,
)
from tasks.database.comparisons import Loss, finished, losses
from tasks.database.leases import Held, comparison_lease, forget_expired, holders, told_runs
from tasks.dispatch import PAGE, SESSION, broken_runs, busy_runs, prefect_api, read_runs, seen, worker_of
from tasks.errors import KycflowError
from tasks.liveness import run_lease, worker_lease
from tasks.recovery import MOST_DEATHS, Action, Facts, Run, for_session, for_upkeep
from tasks.settings import Settings, current_settings
from tasks.sweep.arrivals import Name, arrivals

# An upload this fresh is just being announced by the upload service itself.
SETTLED_SECONDS = 20
UNKNOWN_WORKER_SECONDS = 300
"""A worker that was not started with `kycflow worker` gives no sign of life while it starts a run."""
UNNAMED_WORKER_SECONDS = 30
"""Workers of Prefect's own types name themselves at a run one call after it is Pending."""
ENDING_SECONDS = 20
"""What a worker has to end the process of a cancelled run, run its hooks, and set the last state."""
FORGET_SECONDS = 86_400
FIRST_LOOK_BACK = timedelta(hours=12)
"""How far back the first look goes for runs that were cancelled or failed. Later ones go on from there."""
OVERLAP = timedelta(minutes=2)
"""Between two looks, as clocks differ."""
LISTING_SHARE = 0.1
"""Of its time, the most that a sweep lists storage for the files of another system."""

log = logging.getLogger(__name__)


class Finding(Plain):
    """Something to mend."""

    action: Action
    run: Run | None = None
    attempt: Attempt | None = None
    loss: Loss = Loss()
    """What its run computed when its process was lost."""

    @property
    def why(self) -> str:
        """What is the matter, for people."""
        if self.action is Action.EXPIRE:
            return "its deadline is over, and a file is missing"
        if self.run is None:
            return "it has no flow run"
        if self.run.lost:
            computed = f", {self.loss.deaths} times while it computed" if self.loss.deaths >= MOST_DEATHS else ""
            return f"its process was lost in {self.run.name}{computed}"
        if self.action is Action.SHOW:
            return f"it is decided, and its flow run is {self.run.name}"
        tries = "" if self.attempt is None else f", started again {self.attempt.recoveries} times"
        return f"its flow run is {self.run.name}{tries}"

    @property
    def subject(self) -> str:
        """What it is about, for people."""
        if self.attempt is not None:
            return f"session {self.attempt.session_id} attempt {self.attempt.attempt}"
        return f"flow run {self.run.id}" if self.run else "nothing"

    @property
    def same(self) -> tuple[object, ...]:
        """Equal for the same finding at the next look."""
        return self.action, self.subject, None if self.run is None else (self.run.id, self.run.state_id)

    @property
    def certain(self) -> bool:
        """Whether one look is enough."""
        return self.run is None or not self.run.lost


class Looker:
    """Looks again and again, and remembers what need not be seen twice."""

    def __init__(self) -> None:
        self._broken_since = self._next_since = datetime.now(UTC) - FIRST_LOOK_BACK
        self._list_from = self._ask_storage_from = 0.0
        self._arrived: dict[Name, str] = {}
        self._woken_for: dict[Name, str] = {}

    async def look(self) -> list[Finding]:
        """What there is to mend, as of now.

        Raises:
            OrchestratorUnavailable, DatabaseUnavailable.
        """
        settings, began = current_settings(), datetime.now(UTC)
        database = database_for(settings)
        await asyncio.to_thread(forget_expired, database, FORGET_SECONDS)
        late, foreign, others = await asyncio.to_thread(self._attempts, database)
        told = await asyncio.to_thread(self._storage_tells, settings, late, foreign)
        came = [one for one in foreign if told is not None and (one.session_id, one.attempt) in told]
        attempts = {(one.session_id, one.attempt): one for one in [*late, *came, *others]}
        async with prefect_api() as client:
            busy = await busy_runs(client)
            broken = await broken_runs(client, self._broken_since)
            attempts |= await asyncio.to_thread(_attempts_of, database, broken, set(attempts))
            named = {one.flow_run_id for one in attempts.values() if one.flow_run_id is not None}
            runs = await read_runs(client, sorted(named - {run.id for run in busy}))
        self._next_since = began - OVERLAP
        overdue_now = {(one.session_id, one.attempt) for one in late}
        facts = {
            name: Facts(late=name in overdue_now, arrived=None if told is None else name in told) for name in attempts
        }
        return await asyncio.to_thread(_judged, database, settings, attempts, facts, busy, runs)

    def all_mended(self) -> None:
        """Note that all is done which the last look has found: runs that had ended by then need not be seen again."""
        self._broken_since = self._next_since

    def woken(self, finding: Finding) -> None:
        """Note that a run was woken for what lies in storage: if it goes on waiting, it need not look at that again."""
        if finding.attempt is not None:
            name = finding.attempt.session_id, finding.attempt.attempt
            self._woken_for[name] = self._arrived.get(name, "")

    def _attempts(self, database: Engine) -> tuple[list[Attempt], list[Attempt], list[Attempt]]:
        """Those that are overdue, those whose files another system stores, if it is time to look for these, and others
        that may need something: they have both files, no flow run, or a decision that this need not know of."""
        late = _pages(lambda after: overdue(database, PAGE, after))
        foreign: list[Attempt] = []
        if time.monotonic() >= self._list_from:
            foreign = _pages(lambda after: of_another_system(database, MOST_NAMES, after))
        both = _pages(lambda after: in_progress(database, PAGE, after, settled_seconds=SETTLED_SECONDS))
        others = without_run(database, PAGE, settled_seconds=SETTLED_SECONDS)
        since = self._broken_since
        shown = decided_beside(database, since=since)
        return late, foreign, [*both, *others, *shown]

    def _storage_tells(self, settings: Settings, late: list[Attempt], foreign: list[Attempt]) -> set[Name] | None:
        """Which of these have a new file in storage; None if storage does not tell."""
        began = time.monotonic()
        if began < self._ask_storage_from:
            return None
        try:
            self._arrived = arrivals(settings, [*late, *foreign])
        except KycflowError as exc:
            log.warning("storage not looked through: %s", exc, extra={"action": "sweep.storage"})
            self._ask_storage_from = time.monotonic() + settings.look_seconds
            return None
        now = time.monotonic()
        if foreign:
            self._list_from = now + max(settings.look_seconds, (now - began) / LISTING_SHARE)
        # An overdue one that is woken does not wait again.
        last = {(one.session_id, one.attempt) for one in late}
        return {name for name, files in self._arrived.items() if name in last or self._woken_for.get(name) != files}


def _pages(query: Callable[[Attempt | None], list[Attempt]]) -> list[Attempt]:
    found: list[Attempt] = []
    while page := query(found[-1] if found else None):
        found += page
    return found


def _attempts_of(database: Engine, runs: list[FlowRun], known: set[Name]) -> dict[Name, Attempt]:
    """The attempts that these are the flow runs of."""
    more = some_attempts(database, sorted({name for run in runs if (name := session_of(run)) not in known}))
    own = {run.id for run in runs}
    return {(one.session_id, one.attempt): one for one in more if one.flow_run_id in own}


def _judged(
    database: Engine,
    settings: Settings,
    attempts: dict[Name, Attempt],
    facts: dict[Name, Facts],
    busy: list[FlowRun],
    others: list[FlowRun],
) -> list[Finding]:
    runs = _with_life(database, busy, others, settings.lease_seconds)
    busy_sessions = [(session_of(run), runs[run.id]) for run in busy if SESSION in run.tags]
    more = some_attempts(database, sorted({name for name, _ in busy_sessions if name not in attempts}))
    known = attempts | {(one.session_id, one.attempt): one for one in more}
    keys = {one.comparison_key for one in known.values() if one.comparison_key}
    stored = finished(database, keys)
    leases = holders(database, [comparison_lease(key) for key in sorted(keys - stored)])
    computed = {key for key in keys if (held := leases.get(comparison_lease(key))) is not None and not held.expired}

    # One that a person started in the UI stands beside the attempt's own run, and is mended like it.
    pairs = [(one, runs.get(one.flow_run_id) if one.flow_run_id else None) for one in attempts.values()]
    pairs += [(known[name], run) for name, run in busy_sessions if name in known]
    gone = {run.id: one.comparison_key for one, run in pairs if run is not None and run.lost and one.comparison_key}
    lost = losses(database, gone, {run.id: worker_of(run) for run in busy})
    findings: dict[object, Finding] = {}
    for one, run in pairs:
        name, loss = (one.session_id, one.attempt), lost.get(run.id, Loss()) if run else Loss()
        seen_of = facts.get(name, Facts()).model_copy(
            update={
                "stored": one.comparison_key in stored,
                "computed": one.comparison_key in computed,
                "deaths": loss.deaths,
            }
        )
        action = for_session(one, run, seen_of, most_recoveries=settings.most_recoveries)
        findings[name, None if run is None else run.id] = Finding(action=action, run=run, attempt=one, loss=loss)
    for other in busy:
        if SESSION not in other.tags:
            findings[other.id] = Finding(action=for_upkeep(runs[other.id]), run=runs[other.id])
    return [finding for finding in findings.values() if finding.action is not Action.NOTHING]


def session_of(run: FlowRun) -> Name:
    """The attempt that a flow run of `verify-session` is about."""
    return str(run.parameters.get("session_id")), int(run.parameters.get("attempt") or 1)


def _with_life(database: Engine, busy: list[FlowRun], others: list[FlowRun], lease_seconds: float) -> dict[UUID, Run]:
    """The runs, each with whether its process is there: one query."""
    workers = {run.id: worker_lease(worker_of(run)) for run in busy}
    held = holders(database, [*{*workers.values()}, *(run_lease(run.id) for run in [*busy, *others])])
    # One that is being cancelled does not name its worker.
    cancelling = any(run.state is not None and run.state.type is StateType.CANCELLING for run in busy)
    told = told_runs(database) if cancelling else set()
    found = {run.id: seen(run, alive=_alive(run, held, held.get(workers[run.id]), lease_seconds, told)) for run in busy}
    for run in others:
        own = held.get(run_lease(run.id))
        found[run.id] = seen(run, lingers=own is not None and not own.expired)
    return found


def _alive(run: FlowRun, held: dict[str, Held], worker: Held | None, lease_seconds: float, told: set[str]) -> bool:
    own = held.get(run_lease(run.id))
    if run.state is None:
        return True
    since = (datetime.now(UTC) - run.state.timestamp).total_seconds()
    if run.state.type is StateType.CANCELLING:
        ending = since < ENDING_SECONDS and (worker is None or not worker.expired)
        return ending or (own is not None and not own.expired) or str(run.id) in told
    if own is not None and own.owner == str(run.state.id):
        return not own.expired
    # This execution gives no sign of life: its worker is starting it, has it in its own process, or is gone; or it has
    # ended, and its last state did not reach Prefect.
    if worker is not None:
        has = worker.runs is None or str(run.id) in worker.runs or since < lease_seconds
        return has and not worker.expired
    return since < (UNKNOWN_WORKER_SECONDS if worker_of(run) else UNNAMED_WORKER_SECONDS)
