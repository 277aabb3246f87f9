"""The report picture of a comparison, on drawn faces."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.contracts import (
    DecisionKind,
    FaceComparison,
    FaceQuality,
    FrameScore,
    Reason,
    Thresholds,
    Verdict,
)
from tasks.faces.models import Measured
from tasks.faces.picture import report
from tasks.faces.picture_parts import text_width, wrapped
from tasks.faces.picture_video import _apart
from tasks.faces.shown import ComparedFaces, Shown
from tests.pictures import drawn_thresholds

THRESHOLDS = Thresholds(match=0.416, review=0.358)
MEASURED = Measured(THRESHOLDS, 0.3, (0.02, 0.1), (0.66, 0.12), "Labeled Faces in the Wild")
MATCH = Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT, detail="0.612 is at or above 0.416.")
KINDS = ("spare", "no face", "several faces")
QUALITY = FaceQuality(
    eye_distance=84.2, sharpness=0.41, brightness=0.5, contrast=0.17, yaw=-3.4, pitch=2.2, roll=-0.2, confidence=0.93
)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """Grain on a gradient: it shrinks in a file as little as a photograph of a poor camera."""
    grain = np.random.default_rng(height).normal(0, 6, (height, width, 3))
    return np.clip(np.linspace(60, 200, width)[None, :, None] + grain, 0, 255).astype(np.uint8)


def face(height: int = 480, width: int = 640, points: int = 5) -> Shown:
    x, y = width * 0.3, height * 0.2
    marks = np.array([[0.35, 0.35], [0.5, 0.35], [0.42, 0.5], [0.36, 0.62], [0.5, 0.62]])[:points]
    return Shown(noise(height, width), (x, y, width * 0.3, height * 0.6), marks * (width, height), noise(112, 112))


def compared(frames: int, shown: Shown | None = None) -> ComparedFaces:
    """A comparison whose video lasts 4 s and was looked at in 12 places."""
    scores = tuple(
        FrameScore(
            time_seconds=0.3 * index,
            similarity=0.5 + 0.02 * index,
            weight=1 / frames,
            box=(1, 2, 3, 4),
            quality=QUALITY,
        )
        for index in range(frames)
    )
    shown = shown or face()
    comparison = FaceComparison(
        similarity=0.612,
        reference=QUALITY,
        frames=scores,
        frames_looked_at=12,
        spread=0.7,
        motion=1.3,
        seconds={"decode": 0.3, "total": 0.4},
    )
    looked_at = tuple((0.3 * index, "used" if index < frames else KINDS[index % 3]) for index in range(12))
    return ComparedFaces(comparison, shown, None, (shown,) * frames, 4.0, looked_at)


def rejected(reason: Reason, detail: str = "Nothing to see. " * 3, **given: Any) -> ComparedFaces:
    return replace(ComparedFaces(FaceComparison(rejection=reason, detail=detail)), **given)


@pytest.mark.parametrize(
    ("case", "thresholds", "measured", "verdict"),
    [
        pytest.param(compared(5), THRESHOLDS, None, MATCH, id="match"),
        pytest.param(compared(5), THRESHOLDS, MEASURED, MATCH, id="measured"),
        pytest.param(compared(5), None, None, None, id="no-thresholds"),
        pytest.param(compared(10), THRESHOLDS, MEASURED, None, id="ten-frames"),
        pytest.param(compared(1), THRESHOLDS, None, None, id="one-frame"),
        pytest.param(compared(12), THRESHOLDS, None, None, id="more-than-a-row"),
        pytest.param(compared(2, face(points=2)), THRESHOLDS, None, None, id="eyes-only"),
        pytest.param(replace(compared(3), frames=(), looked_at=()), THRESHOLDS, None, None, id="nothing-shown"),
        pytest.param(rejected(Reason.ID_IMAGE_UNREADABLE), THRESHOLDS, None, None, id="no-card"),
        pytest.param(
            rejected(Reason.NO_FACE_IN_ID_IMAGE, card_pixels=noise(400, 640)), THRESHOLDS, None, None, id="card-no-face"
        ),
        pytest.param(
            rejected(Reason.NO_FACE_IN_VIDEO, card=face(), duration_seconds=2.0, looked_at=((0.5, "no face"),)),
            THRESHOLDS,
            MEASURED,
            Verdict(decision=DecisionKind.REJECTED, reason=Reason.NO_FACE_IN_VIDEO),
            id="no-face-in-video",
        ),
    ],
)
def test_every_case_has_its_picture(
    case: ComparedFaces, thresholds: Thresholds | None, measured: Measured | None, verdict: Verdict | None
) -> None:
    content = report(case, thresholds, measured, "comparison 0a1b2c", verdict)
    assert len(content) < 1_500_000
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert (image.format, image.mode, image.width) == ("JPEG", "RGB", 1200)
        assert 700 < image.height < 1800
        assert set(image.info) == {"jfif", "jfif_version", "jfif_unit", "jfif_density"}  # no comment, no Exif


@pytest.mark.parametrize(("height", "width"), [(1, 1), (10, 640), (640, 10), (2, 300)])
def test_hostile_sizes(height: int, width: int) -> None:
    tiny = replace(face(height, width), aligned=noise(height, width))
    assert report(compared(4, tiny), THRESHOLDS)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (-900, -900, 5, 5), (1e9, 1e9, 1e9, 1e9), (-1e9, -1e9, 2e9, 2e9)])
def test_boxes_outside_of_the_picture(box: tuple[float, float, float, float]) -> None:
    assert report(compared(2, replace(face(), box=box, points=np.full((5, 2), box[0]))), THRESHOLDS)


@pytest.mark.parametrize(("review", "match"), [(-1, -1), (-0.2, -0.19), (0.5, 0.4), (0.99, 1), (1, 1)])
def test_any_thresholds(review: float, match: float) -> None:
    assert report(compared(1), Thresholds(match=match, review=review), Measured(THRESHOLDS, 0.3, (-3, 0), (5, 0), ""))


@pytest.mark.parametrize("thresholds", [THRESHOLDS, Thresholds(match=0.9, review=0.358)])
def test_the_scale_turns_where_the_thresholds_are(thresholds: Thresholds) -> None:
    shown = drawn_thresholds(report(compared(1), thresholds, MEASURED))
    assert shown == pytest.approx((thresholds.review, thresholds.match), abs=0.002)


def test_long_texts_make_it_longer_to_a_bound() -> None:
    heights = []
    for detail in ("short", "some words " * 60, "unbroken" * 2000):
        content = report(rejected(Reason.VIDEO_UNREADABLE, detail), None, caption=detail)
        heights.append(Image.open(io.BytesIO(content)).height)
    assert heights[0] < heights[1] < heights[2] < 1200


def test_wrapped_lines_fit() -> None:
    lines = wrapped(["several", "words", "W" * 100, "i" * 400], 16, 200)
    assert all(text_width(line, 16) <= 200 for line in lines)
    assert len(lines) == 8
    assert lines[-1].endswith("…")
    assert wrapped([], 16, 200) == []
    assert wrapped(["one", "two"], 16, 200, joint=" · ") == ["one · two"]


def test_neighbours_keep_their_distance_and_stay_near_their_time() -> None:
    assert _apart([300, 500], 100, 50, 950) == [300, 500]
    assert _apart([300, 320], 100, 50, 950) == [260, 360]
    assert _apart([950] * 3, 100, 50, 950) == [750, 850, 950]
    assert _apart([0] * 10, 100, 50, 950) == list(range(50, 951, 100))
    assert _apart([], 100, 50, 950) == []


def test_the_same_comparison_gives_the_same_bytes() -> None:
    assert report(compared(3), THRESHOLDS) == report(compared(3), THRESHOLDS)
