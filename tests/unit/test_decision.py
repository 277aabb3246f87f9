"""Judgement: plain values in, decision and reason out."""

import pytest

from tasks.contracts import DecisionKind, FaceComparison, Reason, Thresholds
from tasks.decision import judge, thresholds_for
from tasks.errors import ConfigurationError
from tasks.settings import Settings

BOUNDS = Thresholds(match=0.416, review=0.358)


@pytest.mark.parametrize(
    ("similarity", "decision", "reason"),
    [
        (1.0, DecisionKind.MATCH, Reason.SIMILARITY_SUFFICIENT),
        (0.416, DecisionKind.MATCH, Reason.SIMILARITY_SUFFICIENT),
        (0.4159, DecisionKind.REVIEW, Reason.SIMILARITY_IN_REVIEW_BAND),
        (0.358, DecisionKind.REVIEW, Reason.SIMILARITY_IN_REVIEW_BAND),
        (0.3579, DecisionKind.NO_MATCH, Reason.SIMILARITY_INSUFFICIENT),
        (-1.0, DecisionKind.NO_MATCH, Reason.SIMILARITY_INSUFFICIENT),
    ],
)
def test_thresholds_belong_to_the_better_side(similarity: float, decision: DecisionKind, reason: Reason) -> None:
    verdict = judge(FaceComparison(similarity=similarity), BOUNDS)
    assert (verdict.decision, verdict.reason) == (decision, reason)


def test_media_that_cannot_be_judged_is_rejected_for_its_reason() -> None:
    verdict = judge(FaceComparison(rejection=Reason.SEVERAL_FACES_IN_VIDEO), BOUNDS)
    assert (verdict.decision, verdict.reason) == (DecisionKind.REJECTED, Reason.SEVERAL_FACES_IN_VIDEO)


def test_the_default_models_have_measured_thresholds() -> None:
    assert thresholds_for(Settings()) == BOUNDS


def test_the_operators_thresholds_go_first() -> None:
    assert thresholds_for(Settings(match_threshold=0.5, review_threshold=0.2)) == Thresholds(match=0.5, review=0.2)


def test_a_match_threshold_below_the_default_review_band_leaves_no_band() -> None:
    assert thresholds_for(Settings(match_threshold=0.3)) == Thresholds(match=0.3, review=0.3)


def test_a_model_without_measured_thresholds_asks_for_them() -> None:
    with pytest.raises(ConfigurationError, match="KYCFLOW_MATCH_THRESHOLD"):
        thresholds_for(Settings(detector="mtcnn"))
