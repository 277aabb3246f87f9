"""An evaluation with the real engine on real faces."""

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from deployments.cli import app
from tasks.errors import ConfigurationError
from tasks.evaluation.deepface_verify import verify_pipeline
from tasks.evaluation.pairs import read_pairs
from tasks.evaluation.results import Evaluation
from tasks.evaluation.run import REPORT_FILES, evaluate_files
from tasks.evaluation_tasks import StoredEvaluation, artifact_text
from tasks.faces.engine import FaceEngine, load_engine
from tasks.faces.models import engine_config
from tasks.settings import Settings
from tests.evaluation_media import MAN, NOBODY, WOMAN, write_pairs

NAMES = (*MAN, *WOMAN, NOBODY)


@pytest.fixture(scope="module")
def engine(media_settings: Settings, weights: list[Path]) -> FaceEngine:
    assert weights
    return load_engine(engine_config(media_settings), media_settings)


@pytest.fixture(scope="module")
def listed(media_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pairs(tmp_path_factory.mktemp("faces"), media_settings)


@pytest.fixture(scope="module")
def done(
    engine: FaceEngine, listed: tuple[Path, Path], media_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Path]:
    """A whole evaluation beside the baseline, and its folder."""
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return evaluate_files(*listed, out, media_settings, fmr=0.1, baseline=True), out


def test_two_people_are_told_apart_and_failures_are_counted_apart(done: tuple[Evaluation, Path]) -> None:
    evaluation, _ = done
    assert (evaluation.pictures, evaluation.pairs, evaluation.embedded) == (6, 11, 12)
    ours = evaluation.kycflow
    assert ours.failures == {"NO_FACE_IN_ID_IMAGE": 1}
    assert (ours.genuine, ours.genuine_unscored, ours.impostor, ours.impostor_unscored) == (4, 1, 6, 0)
    assert (ours.accuracy.value, ours.eer, ours.auc) == (1, 0, 1)
    match = ours.point("match threshold")
    assert match is not None
    assert (match.threshold, match.fmr.count, match.fnmr.count, match.frr.count) == (0.416, 0, 0, 1)
    assert evaluation.suggested.name == "FMR 0.1"
    assert not evaluation.suggested.supported
    assert evaluation.deepface is not None
    assert evaluation.deepface.failures == {"NO_FACE_FOUND": 1}


def test_the_report_has_all_its_files_for_their_owner_only(done: tuple[Evaluation, Path]) -> None:
    evaluation, out = done
    assert {path.name for path in out.iterdir()} == {*REPORT_FILES, "templates.sqlite"}
    assert out.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
    for path in out.glob("*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            picture.load()
            assert picture.format == "PNG"
    assert Evaluation.model_validate_json((out / "report.json").read_bytes()) == evaluation


def test_scores_are_those_of_the_engine(
    done: tuple[Evaluation, Path], engine: FaceEngine, listed: tuple[Path, Path], media_settings: Settings
) -> None:
    with (done[1] / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["reference"], row["probe"]) for row in rows] == [pair[:2] for pair in read_pairs(*listed)]
    for row in rows:
        embeddings = [engine.enrol(listed[1] / row[side], media_settings).embedding for side in ("reference", "probe")]
        if NOBODY in row.values():
            assert row["score kycflow"] == row["score DeepFace.verify"] == ""
        else:
            assert embeddings[0] is not None
            assert embeddings[1] is not None
            assert float(row["score kycflow"]) == pytest.approx(float(embeddings[0] @ embeddings[1]), abs=1e-5)
    with (done[1] / "failures.csv").open(newline="") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == [NOBODY, NOBODY]


def test_the_baseline_equals_deepfaces_verify_in_a_process_of_its_own(
    engine: FaceEngine, listed: tuple[Path, Path], media_settings: Settings, tmp_path: Path
) -> None:
    """Not in this one: the engine shares DeepFace's models, and what it may do to them must not count."""
    group = Image.new("RGB", (640, 320), "white")  # two faces: the more similar one decides
    for left, name in ((0, MAN[0]), (320, WOMAN[1])):
        with Image.open(listed[1] / name) as face:
            group.paste(face.convert("RGB").resize((320, 320)), (left, 0))
    group.save(tmp_path / "group.png")
    paths = [*(listed[1] / name for name in (MAN[0], MAN[2], WOMAN[1])), tmp_path / "group.png"]
    code = """
import json, sys
from deepface import DeepFace
paths = sys.argv[1:]
models = {"model_name": "SFace", "detector_backend": "yunet"}
print(json.dumps([[1 - DeepFace.verify(a, b, **models)["distance"] for b in paths] for a in paths]))
"""
    home = media_settings.weights_dir.parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        env={**os.environ, "DEEPFACE_HOME": str(home), "DEEPFACE_BACKEND_ENGINE": "onnx"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = np.array(json.loads(ran.stdout.splitlines()[-1]))
    pipeline = verify_pipeline(engine.config)
    made = [pipeline.make(path).embeddings for path in paths]
    assert [len(faces) for faces in made] == [1, 1, 1, 2]
    found = np.array([[(a @ b.T).max() for b in made] for a in made])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_baseline_counts_what_it_cannot_read(engine: FaceEngine, listed: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    pipeline = verify_pipeline(engine.config)
    assert pipeline.make(tmp_path / "text.jpg").failure == "NOT_READ"
    assert pipeline.make(listed[1] / NOBODY).failure == "NO_FACE_FOUND"


def test_a_killed_run_goes_on_where_it_was_and_embeds_nothing_twice(
    listed: tuple[Path, Path], media_settings: Settings, tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from tasks.evaluation.run import evaluate_files
from tasks.faces.engine import FaceEngine
from tasks.settings import Settings

pairs, images, out, log, kill_at = sys.argv[1:]
enrol = FaceEngine.enrol

def logged(self, path, settings, **options):
    with open(log, "a") as file:
        print(path.name, file=file)
    return enrol(self, path, settings, **options)

def progress(name, done, of):
    if done == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)

FaceEngine.enrol = logged
evaluate_files(Path(pairs), Path(images), Path(out), Settings(), progress=progress)
"""
    out, log = tmp_path / "out", tmp_path / "log"

    def ran(kill_at: int) -> int:
        arguments = [*map(str, (*listed, out, log)), str(kill_at)]
        environment = {**os.environ, "KYCFLOW_STATE_DIR": str(media_settings.state_dir)}
        return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False).returncode

    assert ran(3) == -signal.SIGKILL
    assert len(log.read_text().splitlines()) == 3
    assert not (out / "report.json").exists()
    assert ran(-1) == 0
    assert sorted(log.read_text().splitlines()) == sorted(NAMES)
    assert json.loads((out / "report.json").read_text())["embedded"] == 3


def kycflow(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", "evaluate", *arguments],
        env={**os.environ, "KYCFLOW_STATE_DIR": str(settings.state_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_command_prints_json_and_the_second_time_embeds_nothing(
    listed: tuple[Path, Path], media_settings: Settings, weights: list[Path], tmp_path: Path
) -> None:
    arguments = [str(listed[0]), "--images", str(listed[1]), "--out", str(tmp_path / "out"), "--json"]
    first, second = (kycflow(media_settings, *arguments) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    found, again = json.loads(first.stdout), json.loads(second.stdout)
    assert (found["embedded"], again["embedded"]) == (6, 0)
    assert found["kycflow"] == again["kycflow"]
    assert found["deepface"] is None
    assert (tmp_path / "out" / "roc.png").is_file()


def test_the_command_prints_a_table_beside_the_baseline(
    done: tuple[Evaluation, Path], listed: tuple[Path, Path], media_settings: Settings
) -> None:
    ran = kycflow(
        media_settings, str(listed[0]), "--images", str(listed[1]), "--out", str(done[1]), "--beside-deepface"
    )
    assert ran.returncode == 0, ran.stderr
    for piece in ("11 pairs of 6 pictures", "DeepFace.verify", "NO_FACE_IN_ID_IMAGE", "At FMR 0.001", str(done[1])):
        assert piece in ran.stdout, piece


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--fmr", "0"], "above 0 and below 1"), (["--out", "{csv}"], "cannot be used")]
)
def test_the_command_ends_with_2_and_one_line(
    arguments: list[str], message: str, listed: tuple[Path, Path], media_settings: Settings, weights: list[Path]
) -> None:
    arguments = [each.format(csv=listed[0] / "below") for each in arguments]
    ran = kycflow(media_settings, str(listed[0]), "--images", str(listed[1]), *arguments)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_missing_library_is_named_before_anything_is_done(
    listed: tuple[Path, Path], media_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(ConfigurationError, match=r"sklearn not installed\. Install kycflow with its extra `evaluate`"):
        evaluate_files(*listed, tmp_path / "out", media_settings)
    assert not (tmp_path / "out").exists()


def test_pictures_that_give_no_pair_to_score_are_an_error_of_the_list(
    engine: FaceEngine, listed: tuple[Path, Path], media_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "pairs.csv").write_text(
        f"reference,probe,same_person\n{MAN[0]},{NOBODY},1\n{MAN[0]},{WOMAN[0]},0\n", newline=""
    )
    with pytest.raises(ConfigurationError, match="scored no genuine pair: of 3 pictures failed NO_FACE_IN_ID_IMAGE 1"):
        evaluate_files(tmp_path / "pairs.csv", listed[1], tmp_path / "out", media_settings)


def test_quality_bounds_are_counted_without_embedding_anew(
    done: tuple[Evaluation, Path], engine: FaceEngine, listed: tuple[Path, Path], media_settings: Settings
) -> None:
    stricter = media_settings.model_copy(update={"min_id_eye_distance": 90.0})
    evaluation = evaluate_files(*listed, done[1], stricter)
    assert evaluation.embedded == 0
    assert set(evaluation.kycflow.complaints) == {"FACE_TOO_SMALL"}
    assert evaluation.kycflow.failures == done[0].kycflow.failures
    assert evaluation.kycflow.accuracy == done[0].kycflow.accuracy


def test_neither_report_nor_artifact_names_a_picture(done: tuple[Evaluation, Path]) -> None:
    evaluation, out = done
    keys = tuple(f"evaluations/run/{name}" for name in REPORT_FILES)
    texts = [
        artifact_text(StoredEvaluation(evaluation=evaluation, storage_keys=keys)),
        (out / "report.md").read_text(),
        (out / "report.json").read_text(),
    ]
    for text in texts:
        assert [name for name in NAMES if name.split(".")[0] in text] == []
    assert all(key in texts[0] for key in keys)


def test_ctrl_c_says_how_to_go_on(listed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.evaluation.run.evaluate_files", interrupted)
    arguments = ["evaluate", str(listed[0]), "--images", str(listed[1]), "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 130
    assert "the same command goes on from there" in ran.stderr
