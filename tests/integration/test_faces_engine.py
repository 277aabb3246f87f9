"""The engine on real recordings and real weights."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits, samples
from tasks.contracts import DecisionKind, FaceComparison, Reason
from tasks.errors import ConfigurationError
from tasks.faces.alignment import align
from tasks.faces.detection import find_faces
from tasks.faces.engine import FaceEngine, load_engine
from tasks.faces.models import engine_config, measured
from tasks.faces.native import load_models
from tasks.faces.picture import report
from tasks.faces.pooling import unit
from tasks.judgement import bounds_for, judge, thresholds_for
from tasks.media import read_id_image
from tasks.settings import Settings
from tests.media_fixtures import write_pictures, write_video

MATCH, REVIEW = 0.416, 0.358


def untimed(comparison: FaceComparison) -> FaceComparison:
    return comparison.model_copy(update={"seconds": {}})


@pytest.fixture(scope="module")
def engine(media_settings: Settings, weights: list[Path]) -> FaceEngine:
    assert weights
    return load_engine(engine_config(media_settings), media_settings)


def test_the_same_person_matches(engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings) -> None:
    compared = engine.compare(demo_media.genuine_card, demo_media.selfie_video, media_settings)
    comparison = compared.comparison
    assert comparison.similarity is not None
    assert comparison.similarity >= MATCH
    assert len(comparison.frames) == 3
    assert 3 <= comparison.frames_looked_at <= 10
    assert all(frame.similarity > REVIEW and frame.quality.confidence > 0.8 for frame in comparison.frames)
    assert sum(frame.weight for frame in comparison.frames) == pytest.approx(1)
    times = [frame.time_seconds for frame in comparison.frames]
    assert times == sorted(set(times))
    assert times[0] < 0.5
    assert times[-1] > 1.2
    assert comparison.spread is not None
    assert comparison.spread > 0.5
    assert comparison.motion is not None
    assert comparison.motion > 0.05
    assert comparison.anti_spoofing is None
    assert set(comparison.seconds) == {"decode", "detect", "align", "embed", "motion", "total"}
    verdict = judge(comparison, thresholds_for(media_settings), bounds_for(media_settings))
    assert verdict.decision is DecisionKind.MATCH


def test_boxes_and_eyes_are_in_the_files_own_pixels(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path
) -> None:
    """A 4K video is looked at in 1920 pixels; what is reported is about the video."""
    small = engine.compare(demo_media.genuine_card, demo_media.selfie_video, media_settings).comparison
    with av.open(str(demo_media.selfie_video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    large = [np.asarray(Image.fromarray(pixels).resize((2880, 2160))) for pixels in frames[::6]]
    path = write_pictures(tmp_path / "4k.mp4", large, rate=5)
    found = engine.compare(demo_media.genuine_card, path, media_settings).comparison
    eyes = [np.median([frame.quality.eye_distance for frame in each.frames]) for each in (small, found)]
    assert eyes[1] == pytest.approx(4.5 * eyes[0], rel=0.15)
    left, top, width, height = found.frames[0].box
    assert 700 < left + width / 2 < 2400
    assert 500 < top + height / 2 < 1800
    assert found.similarity is not None
    assert found.similarity >= MATCH


def test_another_person_does_not(engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings) -> None:
    comparison = engine.compare(demo_media.impostor_card, demo_media.selfie_video, media_settings).comparison
    assert comparison.similarity is not None
    assert comparison.similarity < REVIEW


def test_the_same_files_give_the_same_result(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings
) -> None:
    first, second = (
        engine.compare(demo_media.genuine_card, demo_media.selfie_video, media_settings).comparison for _ in range(2)
    )
    assert untimed(first) == untimed(second)


def test_eight_threads_find_what_one_finds(engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings) -> None:
    """25 comparisons in each of 8 threads, of four kinds that run at the same time: identical to the last bit."""
    cards = (demo_media.genuine_card, demo_media.impostor_card, demo_media.faceless_card)
    jobs = [(card, demo_media.selfie_video) for card in cards] + [(cards[0], demo_media.not_a_video)]
    alone = [untimed(engine.compare(*job, media_settings).comparison) for job in jobs]

    def run(thread: int) -> list[bool]:
        kinds = [(thread + turn) % len(jobs) for turn in range(25)]
        return [untimed(engine.compare(*jobs[kind], media_settings).comparison) == alone[kind] for kind in kinds]

    with ThreadPoolExecutor(8) as threads:
        same = list(threads.map(run, range(8)))
    assert same == [[True] * 25] * 8


def test_two_hundred_comparisons_do_not_grow_the_process(weights: list[Path], demo_media: DemoMedia) -> None:
    """In a process of its own, after forty to fill caches: less than 12 MiB a hundred, and no thread or file."""
    code = """
import gc, sys
from pathlib import Path
import psutil
from tasks.settings import Settings
from tasks.faces.engine import load_engine
from tasks.faces.models import engine_config
settings, me = Settings(), psutil.Process()
engine = load_engine(engine_config(settings), settings)
def run(times):
    for _ in range(times):
        engine.compare(Path(sys.argv[1]), Path(sys.argv[2]), settings)
    gc.collect()
    return me.memory_info().rss, me.num_threads(), me.num_fds()
before, between, after = run(40), run(100), run(100)
grown = min(between[0] - before[0], after[0] - between[0])  # the allocator may take a step, once
print(grown // 1024**2, after[1] - before[1], after[2] - before[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo_media.genuine_card), str(demo_media.selfie_video)],
        env={**os.environ, "KYCFLOW_STATE_DIR": str(weights[0].parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    grown, threads, files = (int(figure) for figure in done.stdout.split())
    assert grown < 12
    assert (threads, files) == (0, 0)


def test_a_card_without_a_face(engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings) -> None:
    compared = engine.compare(demo_media.faceless_card, demo_media.selfie_video, media_settings)
    assert compared.comparison.rejection is Reason.NO_FACE_IN_ID_IMAGE
    assert compared.comparison.similarity is None


def test_a_card_with_two_faces(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path
) -> None:
    genuine, impostor = (portrait.resize((300, 380)) for portrait in portraits(media_settings))
    both = Image.new("RGB", (700, 400), "white")
    both.paste(genuine, (20, 10))
    both.paste(impostor, (380, 10))
    both.save(tmp_path / "card.png")
    comparison = engine.compare(tmp_path / "card.png", demo_media.selfie_video, media_settings).comparison
    assert comparison.rejection is Reason.SEVERAL_FACES_IN_ID_IMAGE


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_card_that_is_not_upright(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path, turns: int
) -> None:
    with Image.open(demo_media.genuine_card) as card:
        card.rotate(90 * turns, expand=True).save(tmp_path / "card.jpg", quality=95)
    comparison = engine.compare(tmp_path / "card.jpg", demo_media.selfie_video, media_settings).comparison
    assert comparison.similarity is not None
    assert comparison.similarity >= MATCH


@pytest.mark.parametrize("side", [600, 5000])
def test_small_and_large_cards(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path, side: int
) -> None:
    with Image.open(demo_media.genuine_card) as card:
        card.resize((side, side * card.height // card.width)).save(tmp_path / "card.jpg", quality=90)
    comparison = engine.compare(tmp_path / "card.jpg", demo_media.selfie_video, media_settings).comparison
    assert comparison.similarity is not None
    assert comparison.similarity >= MATCH


def test_cards_of_one_face_differ_in_bytes_not_in_answer(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path
) -> None:
    portrait, _ = portraits(media_settings)
    contents = [draw_card(portrait, serial) for serial in (10, 11)]
    assert contents[0] != contents[1]
    for content in contents:
        (tmp_path / "card.jpg").write_bytes(content)
        comparison = engine.compare(tmp_path / "card.jpg", demo_media.selfie_video, media_settings).comparison
        assert comparison.similarity is not None
        assert comparison.similarity >= MATCH


def test_unreadable_files_are_rejections(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "card.jpg").write_bytes(demo_media.genuine_card.read_bytes()[:5000])
    answers = [
        engine.compare(tmp_path / "card.jpg", demo_media.selfie_video, media_settings),
        engine.compare(demo_media.genuine_card, demo_media.not_a_video, media_settings),
        engine.compare(demo_media.genuine_card, write_video(tmp_path / "square.mp4"), media_settings),
    ]
    assert [answer.comparison.rejection for answer in answers] == [
        Reason.ID_IMAGE_UNREADABLE,
        Reason.VIDEO_UNREADABLE,
        Reason.NO_FACE_IN_VIDEO,
    ]


def test_two_people_in_the_video(
    engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings, tmp_path: Path
) -> None:
    genuine, impostor = (portrait.resize((300, 380)) for portrait in portraits(media_settings))
    both = Image.new("RGB", (640, 400), "white")
    both.paste(genuine, (10, 10))
    both.paste(impostor, (330, 10))
    video = write_pictures(tmp_path / "both.mp4", [np.asarray(both)] * 10)
    comparison = engine.compare(demo_media.genuine_card, video, media_settings).comparison
    assert comparison.rejection is Reason.SEVERAL_FACES_IN_VIDEO


def test_alignment_equals_opencvs(media_settings: Settings, weights: list[Path], demo_media: DemoMedia) -> None:
    import cv2

    models = load_models(engine_config(media_settings), media_settings.weights_dir)
    opencv = cv2.FaceRecognizerSF.create(str(weights[1]), "")
    for path in (samples(media_settings)[1], demo_media.genuine_card):
        image = np.asarray(read_id_image(path, media_settings))
        (face, *_) = find_faces(models, image)
        row = np.concatenate([np.zeros(4), face.points.ravel(), [face.confidence]]).astype(np.float32)
        expected, found = opencv.alignCrop(image, row), align(image, face.points, (112, 112))
        difference = np.abs(expected.astype(int) - found.astype(int))
        assert difference.mean() < 0.1
        assert difference.max() <= 8


def test_embeddings_in_a_batch_equal_opencvs_and_deepfaces(media_settings: Settings, weights: list[Path]) -> None:
    """The rewritten graph is the published one."""
    import cv2
    from deepface import DeepFace

    models = load_models(engine_config(media_settings), media_settings.weights_dir)
    crops = np.stack([np.asarray(portrait.resize((112, 112))) for portrait in portraits(media_settings)])
    found = unit(models.embed(crops))
    assert found.shape == (2, 128)
    opencv = cv2.FaceRecognizerSF.create(str(weights[1]), "")
    for crop, embedding in zip(crops, found, strict=True):
        bgr = np.ascontiguousarray(crop[:, :, ::-1])
        assert embedding @ unit(opencv.feature(bgr)[0].astype(np.float64)) > 1 - 1e-5
        (answer,) = DeepFace.represent(bgr, "SFace", detector_backend="skip", align=False, enforce_detection=False)
        assert embedding @ unit(np.array(answer["embedding"])) > 1 - 1e-5


def test_picture_of_a_comparison(engine: FaceEngine, demo_media: DemoMedia, media_settings: Settings) -> None:
    known = measured("SFace", "yunet")
    assert known is not None
    for card in (demo_media.genuine_card, demo_media.faceless_card):
        compared = engine.compare(card, demo_media.selfie_video, media_settings)
        content = report(compared, known.thresholds, known, "comparison 0a1b2c")
        assert content.startswith(b"\xff\xd8")
        assert len(content) < 1_000_000


def test_wrong_weights_are_refused(media_settings: Settings, weights: list[Path], tmp_path: Path) -> None:
    """In a fresh process each, as a process's DeepFace stays with its folder."""
    settings = Settings(state_dir=tmp_path)
    settings.weights_dir.mkdir(parents=True)
    code = """
from tasks.settings import Settings
from tasks.faces.engine import load_engine
from tasks.faces.models import engine_config
settings = Settings()
load_engine(engine_config(settings), settings)
"""

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"KYCFLOW_STATE_DIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr

    assert "is missing. Run `kycflow models pull`" in run()
    for path in weights:
        shutil.copy(path, settings.weights_dir)
    with (settings.weights_dir / weights[1].name).open("ab") as file:
        file.write(b"x")
    assert "another SHA-256 than pinned" in run()


def test_one_process_stays_with_one_device(engine: FaceEngine, media_settings: Settings) -> None:
    other = media_settings.model_copy(update={"device": "cpu"})
    with pytest.raises(ConfigurationError, match="another process"):
        load_engine(engine_config(other), other)
    assert load_engine(engine.config, media_settings) is engine


def test_tensorflow_stays_out_of_the_default_engines_process(
    weights: list[Path], demo_media: DemoMedia, media_settings: Settings
) -> None:
    code = """
import json, sys, warnings
from pathlib import Path
from tasks.settings import Settings
from tasks.faces.engine import load_engine
from tasks.faces.models import engine_config
before = list(warnings.filters)
settings = Settings()
compared = load_engine(engine_config(settings), settings).compare(Path(sys.argv[1]), Path(sys.argv[2]), settings)
print(json.dumps([compared.comparison.similarity, "tensorflow" in sys.modules, warnings.filters == before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo_media.genuine_card), str(demo_media.selfie_video)],
        env={**os.environ, "KYCFLOW_STATE_DIR": str(media_settings.state_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    similarity, tensorflow, filters_kept = json.loads(done.stdout.splitlines()[-1])
    assert similarity >= MATCH
    assert not tensorflow
    assert filters_kept
