"""Judgement: what was measured in, decision and reason out. Pure: other bounds need no new comparison.

The defaults of the bounds, in `tasks/settings.py`, and where they come from. "Measured" is SFace with YuNet on 106
genuine pairs of Labeled Faces in the Wild, one picture of each spoilt in that way, false non-matches at 0.416
(`make bench-quality` does it again); untouched they are 1 %.

- min_eye_distance, min_id_eye_distance 16 pixels: measured 4 % at 17.5 pixels, 6 % at 13.6; below 12 the detector
  begins to lose faces. ISO/IEC 19794-5 asks for 90 of passport photographs, which would refuse most cards.
- min_sharpness 0.048: measured 8 % at 0.082 (Gaussian blur of 2 pixels, eyes 43 pixels apart), 18 % at 0.055, 54 % at
  0.042. Untouched pictures have 0.076 to 0.20.
- min_brightness 0.08, min_contrast 0.02: measured 6 % at 0.10 and 0.029, 11 % at 0.05 and 0.016, where one face in
  seven is not found at all. Dark skin in plain light comes down to 0.25. max_brightness 0.92: where OFIQ, the
  reference implementation of ISO/IEC 29794-5, scores LuminanceMean as low as at 0.08: 8 of 100.
- max_angle 45 degrees: where OFIQ scores HeadPose 50 of 100.
- min_motion 0.015: see `tasks/faces/motion.py`.
- min_spread: see `tasks/faces/models.py`.
"""

import math
from collections import Counter

from tasks.contracts import Bounds, DecisionKind, FaceComparison, FaceQuality, Reason, Thresholds, Verdict
from tasks.errors import ConfigurationError
from tasks.faces.models import measured
from tasks.settings import Settings

_ID_IMAGE = {
    Reason.FACE_TOO_SMALL: Reason.ID_IMAGE_FACE_TOO_SMALL,
    Reason.FACE_TOO_BLURRED: Reason.ID_IMAGE_FACE_TOO_BLURRED,
    Reason.FACE_TOO_DARK: Reason.ID_IMAGE_FACE_TOO_DARK,
    Reason.FACE_TOO_BRIGHT: Reason.ID_IMAGE_FACE_TOO_BRIGHT,
    Reason.FACE_LOW_CONTRAST: Reason.ID_IMAGE_FACE_LOW_CONTRAST,
    Reason.FACE_TURNED_AWAY: Reason.ID_IMAGE_FACE_TURNED_AWAY,
}

Complaint = tuple[Reason, str]
"""What is wrong with a face, and the figure with its bound, for people."""


def thresholds_for(settings: Settings) -> Thresholds:
    """The operator's thresholds, or the measured ones of the models in use.

    Raises:
        ConfigurationError: a threshold is not set, and the models have no measured one.
    """
    known = measured(settings.recogniser, settings.detector)
    match, review = settings.match_threshold, settings.review_threshold
    if known is not None:
        match = known.thresholds.match if match is None else match
        review = min(known.thresholds.review, match) if review is None else review
    if match is None or review is None:
        raise ConfigurationError(
            f"{settings.recogniser} with {settings.detector} has no measured thresholds: measure them on your own data "
            "with `kycflow evaluate`, and set KYCFLOW_MATCH_THRESHOLD and KYCFLOW_REVIEW_THRESHOLD."
        )
    if review > match:
        raise ConfigurationError(
            f"The review threshold {review} is above the match threshold {match}: set KYCFLOW_MATCH_THRESHOLD too."
        )
    return Thresholds(match=match, review=review)


def bounds_for(settings: Settings) -> Bounds:
    """The bounds in use."""
    known = measured(settings.recogniser, settings.detector)
    return Bounds(
        min_eye_distance=settings.min_eye_distance,
        min_id_eye_distance=settings.min_id_eye_distance,
        min_sharpness=settings.min_sharpness,
        min_brightness=settings.min_brightness,
        max_brightness=settings.max_brightness,
        min_contrast=settings.min_contrast,
        max_angle=settings.max_angle,
        min_motion=settings.min_motion,
        min_spread=known.min_spread if settings.min_spread is None and known else settings.min_spread,
    )


def judge(result: FaceComparison, thresholds: Thresholds, bounds: Bounds) -> Verdict:
    """Decide on a comparison.

    Media that cannot be judged are rejected first. Else match at or above the match threshold, review at or above the
    review threshold, no match below.
    """
    if result.rejection is not None:
        return Verdict(decision=DecisionKind.REJECTED, reason=result.rejection, detail=result.detail)
    if result.similarity is None:
        raise ValueError("A comparison has either a similarity or a rejection.")
    complaint = _complaint(result, bounds)
    if complaint is not None:
        return Verdict(decision=DecisionKind.REJECTED, reason=complaint[0], detail=complaint[1])
    if result.similarity >= thresholds.match:
        return Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT)
    if result.similarity >= thresholds.review:
        return Verdict(decision=DecisionKind.REVIEW, reason=Reason.SIMILARITY_IN_REVIEW_BAND)
    return Verdict(decision=DecisionKind.NO_MATCH, reason=Reason.SIMILARITY_INSUFFICIENT)


def face_complaint(quality: FaceQuality, bounds: Bounds, min_eye_distance: float) -> Complaint | None:
    """The first bound that a face does not keep, or None. The order is what helps most to mend first."""
    angle = max(abs(quality.yaw), abs(quality.pitch))
    checks = (
        (Reason.FACE_TOO_SMALL, "The eyes' distance in pixels", quality.eye_distance, min_eye_distance, math.inf),
        (Reason.FACE_TOO_DARK, "Brightness", quality.brightness, bounds.min_brightness, math.inf),
        (Reason.FACE_TOO_BRIGHT, "Brightness", quality.brightness, 0.0, bounds.max_brightness),
        (Reason.FACE_LOW_CONTRAST, "Contrast", quality.contrast, bounds.min_contrast, math.inf),
        (Reason.FACE_TURNED_AWAY, "The head's angle in degrees", angle, 0.0, bounds.max_angle),
        (Reason.FACE_TOO_BLURRED, "Sharpness", quality.sharpness, bounds.min_sharpness, math.inf),
    )
    for reason, what, figure, least, most in checks:
        if figure < least:
            return reason, f"{what} is {figure:.3g}, and {least:g} is needed."
        if figure > most:
            return reason, f"{what} is {figure:.3g}, and at most {most:g} is allowed."
    return None


def _complaint(result: FaceComparison, bounds: Bounds) -> Complaint | None:
    """What makes a scored comparison void: the card's face, the frames' faces, several people, a still picture."""
    if result.reference is not None:
        found = face_complaint(result.reference, bounds, bounds.min_id_eye_distance)
        if found is not None:
            return _ID_IMAGE[found[0]], found[1]
    if (found := _frames_complaint(result, bounds)) is not None:
        return found
    if result.spread is not None and bounds.min_spread is not None and result.spread < bounds.min_spread:
        figure = f"Two frames have a similarity of {result.spread:.3f}, and {bounds.min_spread:g} is needed."
        return Reason.DIFFERENT_PEOPLE_IN_VIDEO, figure
    if result.motion is not None and result.motion < bounds.min_motion:
        count = len(result.frames)
        figure = f"Motion is {result.motion:.4f} over {count} frames, and {bounds.min_motion:g} is needed."
        return Reason.STILL_PICTURE_AS_VIDEO, figure
    if result.anti_spoofing is not None and result.anti_spoofing < 0.5:
        figure = f"Anti-spoofing takes {result.anti_spoofing:.0%} of the frames for real, and half is needed."
        return Reason.PRESENTATION_ATTACK_SUSPECTED, figure
    return None


def _frames_complaint(result: FaceComparison, bounds: Bounds) -> Complaint | None:
    """The commonest complaint by weight, when frames without one have less than half of the weight."""
    weights: Counter[Reason | None] = Counter()
    figures: dict[Reason, str] = {}
    for frame in sorted(result.frames, key=lambda each: -each.weight):
        found = face_complaint(frame.quality, bounds, bounds.min_eye_distance)
        weights[found[0] if found else None] += frame.weight  # type: ignore[assignment]  # counters add floats too
        if found:
            figures.setdefault(*found)
    total = sum(weights.values())
    if not figures or weights[None] * 2 >= total:
        return None
    worst = max(figures, key=lambda reason: weights[reason])
    return worst, figures[worst]
