"""Judgement: plain values in, decision and reason out."""

from typing import Any

import pytest

from tasks.contracts import DecisionKind, FaceComparison, Reason, Thresholds
from tasks.errors import ConfigurationError
from tasks.judgement import bounds_for, judge, thresholds_for
from tasks.settings import Settings
from tests.faces import frame, quality, scored

THRESHOLDS = Thresholds(match=0.416, review=0.358)
BOUNDS = bounds_for(Settings())


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
    verdict = judge(scored(similarity=similarity), THRESHOLDS, BOUNDS)
    assert (verdict.decision, verdict.reason) == (decision, reason)


def test_media_that_cannot_be_judged_is_rejected_for_its_reason() -> None:
    verdict = judge(FaceComparison(rejection=Reason.SEVERAL_FACES_IN_VIDEO), THRESHOLDS, BOUNDS)
    assert (verdict.decision, verdict.reason) == (DecisionKind.REJECTED, Reason.SEVERAL_FACES_IN_VIDEO)


def test_the_default_models_have_measured_thresholds() -> None:
    assert thresholds_for(Settings()) == THRESHOLDS


def test_the_operators_thresholds_go_first() -> None:
    assert thresholds_for(Settings(match_threshold=0.5, review_threshold=0.2)) == Thresholds(match=0.5, review=0.2)


def test_a_match_threshold_below_the_default_review_band_leaves_no_band() -> None:
    assert thresholds_for(Settings(match_threshold=0.3)) == Thresholds(match=0.3, review=0.3)


def test_a_model_without_measured_thresholds_asks_for_them() -> None:
    with pytest.raises(ConfigurationError, match="KYCFLOW_MATCH_THRESHOLD"):
        thresholds_for(Settings(detector="mtcnn"))


SPOILT: list[tuple[dict[str, Any], str]] = [
    ({"eye_distance": 15.9}, "FACE_TOO_SMALL"),
    ({"brightness": 0.07}, "FACE_TOO_DARK"),
    ({"brightness": 0.93}, "FACE_TOO_BRIGHT"),
    ({"contrast": 0.019}, "FACE_LOW_CONTRAST"),
    ({"yaw": -45.1}, "FACE_TURNED_AWAY"),
    ({"pitch": 45.1}, "FACE_TURNED_AWAY"),
    ({"sharpness": 0.0479}, "FACE_TOO_BLURRED"),
]


@pytest.mark.parametrize(("change", "reason"), SPOILT)
def test_a_face_that_cannot_be_judged_has_its_own_reason(change: dict[str, Any], reason: str) -> None:
    spoilt = quality(**change)
    verdict = judge(scored(frames=(frame(quality=spoilt),)), THRESHOLDS, BOUNDS)
    assert (verdict.decision, verdict.reason) == (DecisionKind.REJECTED, Reason(reason))
    assert verdict.detail is not None
    assert "needed" in verdict.detail or "allowed" in verdict.detail
    assert judge(scored(reference=spoilt), THRESHOLDS, BOUNDS).reason is Reason(f"ID_IMAGE_{reason}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spread": 0.249}, Reason.DIFFERENT_PEOPLE_IN_VIDEO),
        ({"motion": 0.0149}, Reason.STILL_PICTURE_AS_VIDEO),
        ({"anti_spoofing": 0.4}, Reason.PRESENTATION_ATTACK_SUSPECTED),
    ],
)
def test_a_video_that_shows_no_single_living_person(change: dict[str, Any], reason: Reason) -> None:
    assert judge(scored(**change), THRESHOLDS, BOUNDS).reason is reason


def test_bounds_belong_to_the_better_side() -> None:
    edge = quality(eye_distance=16, brightness=0.08, contrast=0.02, yaw=45, pitch=-45, sharpness=0.048)
    at_the_bounds = scored(reference=edge, frames=(frame(quality=edge),), spread=0.25, motion=0.015, anti_spoofing=0.5)
    assert judge(at_the_bounds, THRESHOLDS, BOUNDS).decision is DecisionKind.MATCH


def test_frames_that_weigh_half_are_enough() -> None:
    blurred = quality(sharpness=0.01)
    half = (frame(weight=0.5), frame(weight=0.5, quality=blurred))
    assert judge(scored(frames=half), THRESHOLDS, BOUNDS).decision is DecisionKind.MATCH
    less = (frame(weight=0.4), frame(weight=0.35, quality=blurred), frame(weight=0.25, quality=quality(yaw=60)))
    verdict = judge(scored(frames=less), THRESHOLDS, BOUNDS)
    assert verdict.reason is Reason.FACE_TOO_BLURRED
    assert verdict.detail == "Sharpness is 0.01, and 0.048 is needed."


def test_models_without_measured_figures_leave_the_spread_to_the_operator() -> None:
    assert BOUNDS.min_spread == 0.25
    assert bounds_for(Settings(detector="mtcnn")).min_spread is None
    assert bounds_for(Settings(detector="mtcnn", min_spread=0.2)).min_spread == 0.2
