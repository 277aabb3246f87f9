"""Odd media through the upload service's checks and the engine: each has its reason, none a traceback, none is slow."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia
from tasks.contracts import Reason, Verdict
from tasks.errors import MediaRefused
from tasks.faces.engine import FaceEngine, load_engine
from tasks.faces.models import engine_config
from tasks.faces.models import measured as measured_of
from tasks.faces.picture import report
from tasks.judgement import bounds_for, judge, thresholds_for
from tasks.media import check_id_image, check_selfie_video
from tasks.settings import Settings
from tests.corpus_cards import CARDS, encoded
from tests.corpus_videos import VIDEOS, write_laborious, write_masked
from tests.media_corpus import Case, Footage, resized, write_clip

MOST_SECONDS = 20.0
"""For one pair of files. Measured on two busy cores: at most 6, cards in which no face is found at any size."""

PLACES = 20

MATCH, STILL = Reason.SIMILARITY_SUFFICIENT, Reason.STILL_PICTURE_AS_VIDEO
ID_IMAGE_UNREADABLE, VIDEO_UNREADABLE = Reason.ID_IMAGE_UNREADABLE, Reason.VIDEO_UNREADABLE


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, media_settings: Settings) -> Footage:
    return Footage(media_settings, tmp_path_factory.mktemp("footage"))


@pytest.fixture(scope="module")
def engine(media_settings: Settings, weights: list[Path]) -> FaceEngine:
    assert weights
    return load_engine(engine_config(media_settings), media_settings)


def judged(engine: FaceEngine, id_image: Path, selfie_video: Path, settings: Settings) -> Verdict:
    """The decision on two files, with its picture for people drawn, within MOST_SECONDS."""
    begin = time.perf_counter()
    compared = engine.compare(id_image, selfie_video, settings)
    thresholds = thresholds_for(settings)
    verdict = judge(compared.comparison, thresholds, bounds_for(settings))
    picture = report(compared, thresholds, measured_of(settings.recogniser, settings.detector), verdict=verdict)
    assert time.perf_counter() - begin < MOST_SECONDS
    assert picture.startswith(b"\xff\xd8")  # JPEG
    if verdict.detail is not None:  # a sentence, and nothing of a file's content
        assert len(verdict.detail) < 160
        assert verdict.detail.isascii()
        assert verdict.detail.isprintable()
        assert verdict.detail.endswith(".")
    return verdict


def refusal(path: Path, settings: Settings) -> str | None:
    """The code with which the upload service refuses a selfie video."""
    try:
        check_selfie_video(path, settings)
    except MediaRefused as exc:
        return exc.code
    return None


@pytest.mark.parametrize("case", CARDS, ids=lambda case: case.name)
def test_odd_cards(case: Case, engine: FaceEngine, footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "card"
    case.build(footage, path)
    verdict = judged(engine, path, footage.selfie_video, footage.settings)
    assert verdict.reason is case.gives, verdict
    assert case.says in (verdict.detail or "")
    if case.refused is None:
        check_id_image(path, footage.settings)
    else:
        with pytest.raises(MediaRefused) as caught:
            check_id_image(path, footage.settings)
        assert (caught.value.code, str(caught.value)) == (case.refused, verdict.detail)


@pytest.mark.parametrize("case", VIDEOS, ids=lambda case: case.name)
def test_odd_videos(case: Case, engine: FaceEngine, footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "video"
    case.build(footage, path)
    verdict = judged(engine, footage.genuine_card, path, footage.settings)
    assert verdict.reason is case.gives, verdict
    assert case.says in (verdict.detail or "")
    assert refusal(path, footage.settings) == case.refused


def cut(content: bytes, path: Path) -> list[Path]:
    """Files that end at PLACES places, evenly spaced, of a content."""
    paths = []
    for place in range(1, PLACES + 1):
        paths.append(path.with_name(f"{path.name}-{place}"))
        paths[-1].write_bytes(content[: len(content) * place // (PLACES + 1)])
    return paths


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP"])
def test_truncated_cards_are_unreadable(kind: str, engine: FaceEngine, footage: Footage, tmp_path: Path) -> None:
    card = footage.card.resize((640, 450))
    content = encoded(card, "JPEG", progressive=True) if kind == "progressive" else encoded(card, kind)
    for path in cut(content, tmp_path / "card"):
        verdict = judged(engine, path, footage.selfie_video, footage.settings)
        assert (path.name, verdict.reason) == (path.name, ID_IMAGE_UNREADABLE)
        with pytest.raises(MediaRefused) as caught:
            check_id_image(path, footage.settings)
        assert (path.name, caught.value.code) == (path.name, "TRUNCATED")


@pytest.mark.parametrize(
    ("name", "codec", "movflags", "allowed"),
    [
        ("index-last.mp4", "libx264", "", {VIDEO_UNREADABLE}),
        ("index-first.mp4", "libx264", "+faststart", {VIDEO_UNREADABLE, STILL, MATCH}),
        ("fragmented.mp4", "libx264", "frag_every_frame+empty_moov", {VIDEO_UNREADABLE, STILL, MATCH}),
        ("vp8.webm", "libvpx", "", {VIDEO_UNREADABLE, STILL, MATCH}),
    ],
)
def test_truncated_videos(
    name: str, codec: str, movflags: str, allowed: set[Reason], engine: FaceEngine, footage: Footage, tmp_path: Path
) -> None:
    """The upload service refuses them all. The engine uses what is there: too little is a still picture, or nothing."""
    options = {"movflags": movflags} if movflags else {}
    video = write_clip(tmp_path / name, footage.clip[::2], rate=5, codec=codec, container_options=options)
    reasons = []
    for path in cut(video.read_bytes(), video):
        reasons.append(judged(engine, footage.genuine_card, path, footage.settings).reason)
        assert (path.name, refusal(path, footage.settings)) == (path.name, "TRUNCATED")
    assert set(reasons) <= allowed
    assert reasons[0] is VIDEO_UNREADABLE
    if not movflags.startswith("frag"):  # FFmpeg gives up on a fragment that is not all there
        assert reasons[-1] is (MATCH if MATCH in allowed else VIDEO_UNREADABLE)
        order = [VIDEO_UNREADABLE, STILL, MATCH]
        assert reasons == sorted(reasons, key=order.index), "more of the same file gave less"


def test_a_mask_makes_nobody_else_of_him(
    engine: FaceEngine, demo_media: DemoMedia, footage: Footage, tmp_path: Path
) -> None:
    write_masked(footage, tmp_path / "masked.mp4")
    verdict = judged(engine, demo_media.impostor_card, tmp_path / "masked.mp4", footage.settings)
    assert verdict.reason is Reason.SIMILARITY_INSUFFICIENT


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_video_that_is_turned_and_does_not_say_so(
    turns: int, engine: FaceEngine, footage: Footage, tmp_path: Path
) -> None:
    """YuNet takes some of these faces for upright ones, and is surer of them when they are."""
    frames = [np.rot90(resized(picture, 640, 480), turns) for picture in footage.clip]
    verdict = judged(engine, footage.genuine_card, write_clip(tmp_path / "turned.mp4", frames), footage.settings)
    assert verdict.reason is MATCH


@pytest.mark.parametrize("angle", [20, 35, 50, 120, 200, 330])
def test_a_card_that_lies_askew(angle: int, engine: FaceEngine, footage: Footage, tmp_path: Path) -> None:
    askew = footage.card.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(120, 110, 100))
    askew.save(tmp_path / "card.jpg", quality=92)
    verdict = judged(engine, tmp_path / "card.jpg", footage.selfie_video, footage.settings)
    assert verdict.reason is MATCH
    (tmp_path / "woman.jpg").write_bytes(draw_card(footage.portraits[1], serial=7))
    with Image.open(tmp_path / "woman.jpg") as card:
        card.rotate(angle, Image.Resampling.BICUBIC, expand=True).save(tmp_path / "woman.jpg")
    verdict = judged(engine, tmp_path / "woman.jpg", footage.selfie_video, footage.settings)
    assert verdict.reason is Reason.SIMILARITY_INSUFFICIENT


def test_a_video_that_is_laborious_to_decode(engine: FaceEngine, footage: Footage, tmp_path: Path) -> None:
    """It keeps every bound on size, length and pixels, and would take a worker minutes."""
    write_laborious(footage, tmp_path / "video")
    verdict = judged(engine, footage.genuine_card, tmp_path / "video", footage.settings)
    assert verdict.reason is VIDEO_UNREADABLE
    assert "too few key frames" in (verdict.detail or "")
