"""The task that judges a comparison and records the decision, once."""

import asyncio

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.contracts import Attempt, Comparison, DecisionKind, FilePair, Reason, Verdict
from tasks.database import database_for
from tasks.database.attempts import get_attempt, record_decision
from tasks.judgement import bounds_for, judge, thresholds_for
from tasks.retries import retried
from tasks.settings import current_settings


@task(name="decide", cache_policy=NO_CACHE, **retried(7))
async def decide(
    session_id: str, attempt: int, files: FilePair, comparison: Comparison | None, flow_run_id: str
) -> Attempt:
    """Judge and record, once: the attempt with the decision that stands, whoever recorded it.

    Without a comparison the attempt has expired. When a newer file has come meanwhile, nothing is recorded and the
    attempt comes back undecided: the latest complete pair counts.

    Raises:
        ConfigurationError: no thresholds. SessionCancelled, SessionDeleted: nobody waits for it any more.
        DatabaseUnavailable: tried again.
    """
    settings = current_settings()
    thresholds, bounds = None, None
    if comparison is not None:
        thresholds, bounds = thresholds_for(settings), bounds_for(settings)
        verdict = judge(comparison.result, thresholds, bounds)
    else:
        verdict = Verdict(decision=DecisionKind.EXPIRED, reason=files.missing() or Reason.BOTH_FILES_MISSING)
    database = database_for(settings)
    await asyncio.to_thread(
        record_decision,
        database,
        session_id,
        attempt,
        verdict=verdict,
        files=files,
        similarity=None if comparison is None else comparison.result.similarity,
        thresholds=thresholds,
        bounds=bounds,
        comparison_key=None if comparison is None else comparison.comparison_key,
        flow_run_id=flow_run_id,
    )
    return await asyncio.to_thread(get_attempt, database, session_id, attempt)
