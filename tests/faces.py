"""Measured faces and scored frames, for tests that need no pixels."""

from typing import Any

from tasks.contracts import FaceComparison, FaceQuality, FrameScore


def quality(**change: Any) -> FaceQuality:
    """A face that keeps every bound."""
    good = {
        "eye_distance": 80.0,
        "sharpness": 0.3,
        "brightness": 0.5,
        "contrast": 0.15,
        "yaw": 2.0,
        "pitch": -3.0,
        "roll": 1.0,
        "confidence": 0.93,
    }
    return FaceQuality(**{**good, **change})


def frame(**change: Any) -> FrameScore:
    """A frame that took part."""
    good = {
        "time_seconds": 0.5,
        "similarity": 0.7,
        "weight": 1.0,
        "box": (10.0, 20.0, 100.0, 130.0),
        "quality": quality(),
    }
    return FrameScore(**{**good, **change})


def scored(**change: Any) -> FaceComparison:
    """A comparison with two frames that keeps every bound."""
    good = {
        "similarity": 0.7,
        "reference": quality(),
        "frames": (frame(time_seconds=0.5, weight=0.5), frame(time_seconds=1.5, weight=0.5)),
        "frames_looked_at": 10,
        "spread": 0.8,
        "motion": 0.1,
    }
    return FaceComparison(**{**good, **change})
