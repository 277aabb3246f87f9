"""Judgement: scores in, decision and reason out (pure); and the task that records it once."""

import asyncio

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.contracts import (
    Attempt,
    Comparison,
    DecisionKind,
    FaceComparison,
    FilePair,
    Reason,
    Thresholds,
    Verdict,
)
from tasks.database import database_for
from tasks.database.attempts import get_attempt, record_decision
from tasks.errors import ConfigurationError
from tasks.faces.models import default_thresholds
from tasks.retries import retried
from tasks.settings import Settings


def thresholds_for(settings: Settings) -> Thresholds:
    """The operator's thresholds, or the measured ones of the models in use.

    Raises:
        ConfigurationError: a threshold is not set, and the models have no measured one.
    """
    default = default_thresholds(settings.recogniser, settings.detector)
    match, review = settings.match_threshold, settings.review_threshold
    if default is not None:
        match = default.match if match is None else match
        review = min(default.review, match) if review is None else review
    if match is None or review is None:
        raise ConfigurationError(
            f"{settings.recogniser} with {settings.detector} has no measured thresholds: "
            "set KYCFLOW_MATCH_THRESHOLD and KYCFLOW_REVIEW_THRESHOLD."
        )
    if review > match:
        raise ConfigurationError(
            f"The review threshold {review} is above the match threshold {match}: set KYCFLOW_MATCH_THRESHOLD too."
        )
    return Thresholds(match=match, review=review)


def judge(result: FaceComparison, thresholds: Thresholds) -> Verdict:
    """Decide on a comparison: match at or above the match threshold, review at or above the review threshold."""
    if result.rejection is not None:
        return Verdict(decision=DecisionKind.REJECTED, reason=result.rejection)
    if result.similarity is None:
        raise ValueError("A comparison has either a similarity or a rejection.")
    if result.similarity >= thresholds.match:
        return Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT)
    if result.similarity >= thresholds.review:
        return Verdict(decision=DecisionKind.REVIEW, reason=Reason.SIMILARITY_IN_REVIEW_BAND)
    return Verdict(decision=DecisionKind.NO_MATCH, reason=Reason.SIMILARITY_INSUFFICIENT)


@task(name="decide", cache_policy=NO_CACHE, **retried(3))
async def decide(
    session_id: str, attempt: int, files: FilePair, comparison: Comparison | None, flow_run_id: str
) -> Attempt:
    """Judge and record, once: the attempt with the decision that stands, whoever recorded it.

    Without a comparison the attempt has expired. When a newer file has come meanwhile, nothing is recorded and the
    attempt comes back undecided: the latest complete pair counts.

    Raises:
        ConfigurationError: no thresholds. DatabaseUnavailable: the database does not answer.
    """
    settings = Settings()
    thresholds = None if comparison is None else thresholds_for(settings)
    if comparison is not None and thresholds is not None:
        verdict = judge(comparison.result, thresholds)
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
        comparison_key=None if comparison is None else comparison.comparison_key,
        flow_run_id=flow_run_id,
    )
    return await asyncio.to_thread(get_attempt, database, session_id, attempt)
