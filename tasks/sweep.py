"""Task: find sessions and flow runs that should be at work and are not, and mend them.

A look takes a few queries, whatever the number of sessions that wait. What rests on a missing sign of life is only done
when a second look, some seconds later, finds the same: after an outage of the database all signs of life have expired,
and are renewed within a second. What is done is safe to do twice, so two sweeps at once do no harm.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed
from pydantic import ValidationError
from sqlalchemy import Engine

from tasks.contracts import Attempt, EngineConfig, Plain, StoredFile, comparison_key
from tasks.database import database_for
from tasks.database.attempts import count_recovery, in_progress, overdue, some_attempts
from tasks.database.comparisons import Loss, finished, losses, note_loss
from tasks.database.leases import Held, Lease, break_leases, claim, forget_expired, holders, renew
from tasks.dispatch import PAGE, busy_runs, prefect_api, read_runs, schedule_now, seen, worker_of
from tasks.ending import cancel_session, give_up
from tasks.errors import RetryableError
from tasks.faces.models import engine_config
from tasks.liveness import run_lease, worker_lease
from tasks.recovery import MOST_DEATHS, Action, Run, for_comparison, for_session, for_upkeep
from tasks.retries import retried
from tasks.settings import Settings, current_settings
from tasks.trigger import trigger

# An upload this fresh is just being announced by the upload service itself.
SETTLED_SECONDS = 20
PAUSE_SECONDS = 3
LONGEST_PAUSE_SECONDS = 30
PLACE = "sweep"
"""Name of the lease of the newest sweep."""
# A worker that was not started with `kycflow worker` gives no sign of life while it starts a run.
UNKNOWN_WORKER_SECONDS = 300
ENDING_SECONDS = 20
FORGET_SECONDS = 86_400
DEADLY = "ProcessDied"
"""Name of the state of a comparison's run that is not tried again."""
# Tags of the deployments in prefect.yaml.
SESSION, COMPARISON = "session", "comparison"

log = logging.getLogger(__name__)


class Finding(Plain):
    """Something to mend."""

    action: Action
    run: Run | None = None
    attempt: Attempt | None = None
    comparison_key: str | None = None
    """What its run computes, or would."""
    loss: Loss = Loss()
    """What its run computed when its process was lost."""

    @property
    def why(self) -> str:
        """What is the matter, for people."""
        if self.run is None:
            return "it has no flow run"
        if self.run.lost:
            computed = f", {self.loss.deaths} times while it computed" if self.loss.deaths >= MOST_DEATHS else ""
            return f"its process was lost in {self.run.name}{computed}"
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


@task(name="sweep", cache_policy=NO_CACHE, **retried(3))
async def sweep(repeat_seconds: float, dry_run: bool) -> int:
    """Look and mend, again and again for so many seconds, at least once; how much was mended, or would be.

    One that repeats itself ends when a newer one has begun: they would only ask the same.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable: tried again at once by a sweep that repeats itself.
    """
    begin = time.monotonic()
    before: set[tuple[object, ...]] | None = None
    mended = 0
    place: Lease | None = None
    while True:
        looked = time.monotonic()
        try:
            if repeat_seconds and not dry_run:
                database = database_for(current_settings())
                if place is None:
                    place = await asyncio.to_thread(claim, database, PLACE, str(flow_run.id), FORGET_SECONDS)
                if not await asyncio.to_thread(renew, database, place, FORGET_SECONDS):
                    return mended
            found = await look()
            now = [finding for finding in found if finding.certain or (before is not None and finding.same in before)]
            for finding in now:
                log.warning("%s: %s, %s", finding.subject, finding.action.value, finding.why, extra=_ids(finding))
                if not dry_run:
                    await mend(finding)
            mended += len(now)
            certain = before is not None or all(finding.certain for finding in found)
            before = {finding.same for finding in found}
        except RetryableError as exc:
            if time.monotonic() - begin >= repeat_seconds:
                raise
            certain, before = True, None
            log.warning("sweep interrupted: %s", exc, extra={"action": "sweep.trouble"})
        if certain and time.monotonic() - begin >= repeat_seconds:
            return mended
        # With thousands at work a look takes long: it must not keep the servers busy.
        took = time.monotonic() - looked
        await asyncio.sleep(min(max(PAUSE_SECONDS, 5 * took), LONGEST_PAUSE_SECONDS))


async def sweep_once(*, dry_run: bool) -> list[Finding]:
    """Look and mend once, with a second look where one is not enough; what was mended, or would be.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable, ConfigurationError.
    """
    found = await look()
    if not all(finding.certain for finding in found):
        await asyncio.sleep(PAUSE_SECONDS)
        before = {finding.same for finding in found}
        found = [finding for finding in await look() if finding.certain or finding.same in before]
    for finding in [] if dry_run else found:
        await mend(finding)
    return found


def _ids(finding: Finding) -> dict[str, object]:
    ids: dict[str, object] = {"action": f"sweep.{finding.action.name.lower()}"}
    if finding.attempt is not None:
        ids |= {"session_id": finding.attempt.session_id, "attempt": finding.attempt.attempt}
    return ids | ({} if finding.run is None else {"flow_run_id": str(finding.run.id)})


async def look() -> list[Finding]:
    """What there is to mend, as of now.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable.
    """
    database = database_for(current_settings())
    await asyncio.to_thread(forget_expired, database, FORGET_SECONDS)
    attempts = await asyncio.to_thread(_attempts, database)
    async with prefect_api() as client:
        busy = await busy_runs(client)
        known = {run.id for run in busy}
        named = {run for one in attempts for run in (one.flow_run_id, one.comparison_run_id) if run is not None}
        others = await read_runs(client, sorted(named - known))
    return await asyncio.to_thread(_judged, database, attempts, busy, others)


def _attempts(database: Engine) -> list[Attempt]:
    found = overdue(database, PAGE)
    last: Attempt | None = None
    while page := in_progress(database, settled_seconds=SETTLED_SECONDS, limit=PAGE, after=last):
        found += page
        last = page[-1]
    return found


def _judged(database: Engine, attempts: list[Attempt], busy: list[FlowRun], others: list[FlowRun]) -> list[Finding]:
    settings, now = current_settings(), datetime.now(UTC)
    most = settings.most_recoveries
    runs = _with_life(database, busy, others)
    keys = {run.id: key for run in [*busy, *others] if (key := _comparison_of(run, settings)) is not None}
    stored = finished(database, {*keys.values(), *(one.comparison_key for one in attempts if one.comparison_key)})
    known = {(one.session_id, one.attempt): one for one in attempts}
    busy_sessions = [(_session_of(run), runs[run.id]) for run in busy if SESSION in run.tags]
    more = some_attempts(database, [name for name, _ in busy_sessions if name not in known])

    # The run that computes a comparison: one of `compare-faces`, or a session's own.
    computed = {one.comparison_run_id: one.comparison_key for one in [*attempts, *more]} | keys
    gone = {run.id: key for run in busy if runs[run.id].lost and (key := computed.get(run.id))}
    lost = losses(database, gone, {run.id: worker_of(run) for run in busy})

    # One that a person started in the UI stands beside the attempt's own run, and is mended like it.
    pairs = [(one, runs.get(one.flow_run_id) if one.flow_run_id else None) for one in attempts]
    by_name = known | {(one.session_id, one.attempt): one for one in more}
    pairs += [(by_name[name], run) for name, run in busy_sessions if name in by_name]
    findings: dict[object, Finding] = {}
    for one, run in pairs:
        comparison = runs.get(one.comparison_run_id) if one.comparison_run_id else None
        done = one.comparison_key in stored
        loss = lost.get(run.id, Loss()) if run else Loss()
        action = for_session(one, run, comparison, stored=done, deaths=loss.deaths, now=now, most_recoveries=most)
        key = computed.get(run.id) if run else None
        findings[one.session_id, one.attempt, None if run is None else run.id] = Finding(
            action=action, run=run, attempt=one, comparison_key=key, loss=loss
        )
    for run_id, key in keys.items():
        loss = lost.get(run_id, Loss())
        action = for_comparison(runs[run_id], stored=key in stored, deaths=loss.deaths, most_recoveries=most)
        findings[run_id] = Finding(action=action, run=runs[run_id], comparison_key=key, loss=loss)
    for other in busy:
        if other.id not in keys and not any(run.id == other.id for _, run in busy_sessions):
            findings[other.id] = Finding(action=for_upkeep(runs[other.id]), run=runs[other.id])
    return [finding for finding in findings.values() if finding.action is not Action.NOTHING]


def _session_of(run: FlowRun) -> tuple[str, int]:
    return str(run.parameters.get("session_id")), int(run.parameters.get("attempt") or 1)


def _comparison_of(run: FlowRun, settings: Settings) -> str | None:
    """The comparison key of a run of `compare-faces`; None for any other run."""
    if COMPARISON not in run.tags:
        return None
    given = run.parameters
    try:
        engine = EngineConfig.model_validate(given["engine"]) if given.get("engine") else engine_config(settings)
        reference, probe = (StoredFile.model_validate(given[name]) for name in ("reference", "probe"))
    except (KeyError, ValidationError):
        return None  # it fails by itself
    return comparison_key(reference.sha256, probe.sha256, engine)


def _with_life(database: Engine, busy: list[FlowRun], others: list[FlowRun]) -> dict[UUID, Run]:
    """The runs, each with whether its process is there: one query."""
    workers = {run.id: worker_lease(worker_of(run)) for run in busy}
    held = holders(database, [*{*workers.values()}, *(run_lease(run.id) for run in [*busy, *others])])
    found = {run.id: seen(run, alive=_alive(run, held, held.get(workers[run.id]))) for run in busy}
    for run in others:
        own = held.get(run_lease(run.id))
        found[run.id] = seen(run, lingers=own is not None and not own.expired)
    return found


def _alive(run: FlowRun, held: dict[str, Held], worker: Held | None) -> bool:
    own = held.get(run_lease(run.id))
    if run.state is None:
        return True
    if run.state.type is StateType.CANCELLING:
        # Its worker ends the process, runs the hooks, and sets the last state.
        ending = datetime.now(UTC) - run.state.timestamp < timedelta(seconds=ENDING_SECONDS)
        return (ending and (worker is None or not worker.expired)) or (own is not None and not own.expired)
    if own is not None and own.owner == str(run.state.id):
        return not own.expired
    # This execution has not given a sign of life yet: its worker is starting it, or is gone.
    if worker is not None:
        return not worker.expired
    return datetime.now(UTC) - run.state.timestamp < timedelta(seconds=UNKNOWN_WORKER_SECONDS)


async def mend(finding: Finding) -> None:
    """Do what was found. Nothing happens when the run has changed since.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable: the next look finds it again.
    """
    database = database_for(current_settings())
    attempt, run, by = finding.attempt, finding.run, f"sweep {flow_run.id or ''}".strip()
    if attempt is not None and finding.action is Action.START:
        await trigger(attempt, by=by)
    if run is None:
        return
    async with prefect_api() as client:
        current = await client.read_flow_run(run.id)
        if current.state is None or current.state.id != run.state_id:
            return
        match finding.action:
            case Action.WAKE:
                await schedule_now(client, current, "Woken by the sweep")
            case Action.RECOVER:
                if attempt is not None and not await asyncio.to_thread(
                    count_recovery, database, attempt.session_id, attempt.attempt, attempt.recoveries,
                    by=by, detail=finding.why,
                ):  # fmt: skip
                    return
                await _broken(database, finding, by)
                # One that died while it computed may do so again: the others come first.
                why = f"Started again by the sweep: {finding.why}"
                await schedule_now(client, current, why, force=True, behind=finding.loss.computing)
            case Action.GIVE_UP if attempt is not None:
                await _broken(database, finding, by)
                await give_up(attempt.session_id, attempt.attempt, finding.why, by=by)
                await _end(client, run, Crashed(message=finding.why))
            case Action.CANCEL if attempt is not None:
                await cancel_session(attempt.session_id, attempt.attempt, "Its flow run was cancelled")
                await _end(client, run, Cancelled(message=finding.why))
            case Action.COMPLETE | Action.CRASH | Action.GIVE_UP:
                await _broken(database, finding, by)
                await _end(client, run, _last_state(finding, run))
            case _:
                pass


async def _broken(database: Engine, finding: Finding, by: str) -> None:
    """Note what a lost run has computed in vain, and free its lease."""
    if finding.run is not None and finding.comparison_key is not None:
        ids, computing = (finding.comparison_key, finding.run.id), finding.loss.computing
        await asyncio.to_thread(note_loss, database, *ids, computing=computing, by=by)
    if finding.run is not None:
        await asyncio.to_thread(break_leases, database, str(finding.run.id))


def _last_state(finding: Finding, run: Run) -> State[Any]:
    match finding.action:
        case Action.COMPLETE:
            return Completed(message=f"The comparison was stored before: {finding.why}")
        case Action.GIVE_UP:
            return Failed(name=DEADLY, message=finding.why)
    return (Cancelled if run.type == "CANCELLING" else Crashed)(message=finding.why)


async def _end(client: PrefectClient, run: Run, state: State[Any]) -> None:
    if not run.ended:
        await client.set_flow_run_state(run.id, state, force=True)
