"""The task that judges a comparison and records the decision, once."""

import asyncio
from contextlib import suppress
from uuid import UUID

from prefect import task

from tasks.caching import cached
from tasks.contracts import (
    Attempt,
    Bounds,
    Comparison,
    Decision,
    DecisionKind,
    FaceComparison,
    FilePair,
    Reason,
    Thresholds,
    Verdict,
)
from tasks.database import database_for
from tasks.database.attempts import get_attempt, record_decision
from tasks.errors import SessionCancelled, SessionDeleted
from tasks.judgement import bounds_for, judge, thresholds_for
from tasks.retries import patiently, retried
from tasks.settings import current_settings
from tasks.storage.keys import SESSION_RESULTS


async def decide(found: Attempt, files: FilePair, comparison: Comparison | None, flow_run_id: str) -> Attempt:
    """Judge and record, once: the attempt with the decision that stands, whoever recorded it.

    Without a comparison the attempt has expired. When a newer file has come meanwhile, nothing is recorded and the
    attempt comes back undecided: the latest complete pair counts.

    Raises:
        ConfigurationError: no thresholds. SessionCancelled, SessionDeleted: nobody waits for it any more.
        DatabaseUnavailable: tried again.
    """
    settings = current_settings()
    thresholds = bounds = key = measured = None
    if comparison is not None:
        thresholds, bounds = thresholds_for(settings), bounds_for(settings)
        key, measured = comparison.comparison_key, comparison.result
    asked = (found.session_id, found.attempt, files, key, thresholds, bounds, measured, flow_run_id)

    async def standing() -> Attempt:
        return await asyncio.to_thread(get_attempt, database_for(settings), found.session_id, found.attempt)

    recorded = await record(*asked)
    decided = await patiently(7, standing)
    if recorded is not None and decided.decision is None:
        # Kept by Prefect's cache, and not in the database any more: an older one was restored.
        await record.with_options(refresh_cache=True)(*asked)
        decided = await patiently(7, standing)
    return decided


async def decided_before(found: Attempt, decision: Decision, measured: FaceComparison | None, flow_run_id: str) -> None:
    """Have the task `decide` tell once more of a decision that stands. Nothing is judged anew."""
    named = (decision.comparison_key, decision.thresholds, decision.bounds)
    await record(found.session_id, found.attempt, found.files, *named, measured, flow_run_id)


@task(
    name="decide",
    **cached(SESSION_RESULTS, "session_id", "attempt", "files", "comparison_key", "thresholds", "bounds"),
    **retried(7),
)
async def record(
    session_id: str,
    attempt: int,
    files: FilePair,
    comparison_key: str | None,
    thresholds: Thresholds | None,
    bounds: Bounds | None,
    measured: FaceComparison | None,
    flow_run_id: str,
) -> str | None:
    """Judge what was measured, and record the decision, once: the attempt's name when a decision is there.

    None, which is not cached, when the attempt's newest files are others.

    Raises:
        SessionCancelled, SessionDeleted: nobody waits for it any more. DatabaseUnavailable: tried again.
    """
    if measured is None or thresholds is None or bounds is None:
        verdict = _expired(files)
    else:
        verdict = judge(measured, thresholds, bounds)
    standing = await asyncio.to_thread(
        record_decision,
        database_for(current_settings()),
        session_id,
        attempt,
        verdict=verdict,
        files=files,
        similarity=None if measured is None else measured.similarity,
        thresholds=thresholds,
        bounds=bounds,
        comparison_key=comparison_key,
        flow_run_id=flow_run_id,
    )
    return None if standing is None else f"sessions/{session_id}/{attempt}"


async def expire(attempt: Attempt, flow_run_id: UUID) -> Attempt:
    """Decide, once, that an attempt has expired with these files: the attempt as it stands then.

    Undecided when another file was recorded meanwhile, or a person has closed it.

    Raises:
        UnknownSession. DatabaseUnavailable.
    """
    database = database_for(current_settings())
    with suppress(SessionCancelled, SessionDeleted):
        await asyncio.to_thread(
            record_decision,
            database,
            attempt.session_id,
            attempt.attempt,
            verdict=_expired(attempt.files),
            files=attempt.files,
            flow_run_id=str(flow_run_id),
        )
    return await asyncio.to_thread(get_attempt, database, attempt.session_id, attempt.attempt)


def _expired(files: FilePair) -> Verdict:
    return Verdict(decision=DecisionKind.EXPIRED, reason=files.missing() or Reason.BOTH_FILES_MISSING)
