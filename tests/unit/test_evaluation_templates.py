"""Templates are made once, kept privately, and found again."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tasks.contracts import FaceQuality
from tasks.errors import ComputeUnavailable, ConfigurationError
from tasks.evaluation.gallery import Gallery, Pipeline, collect
from tasks.evaluation.pairs import Pair
from tasks.evaluation.templates import FILE, Template, TemplateStore

QUALITY = FaceQuality(
    eye_distance=40, sharpness=1, brightness=0.5, contrast=0.2, yaw=1, pitch=-2, roll=3, confidence=0.9
)


class Counting:
    """Makes a template of each file, and remembers which. `fails_at`: the picture at which the machine breaks."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.made: list[str] = []
        self.fails_at = fails_at

    def __call__(self, path: Path) -> Template:
        if path.name == self.fails_at:
            raise ComputeUnavailable("gone")
        self.made.append(path.name)
        angle = float(path.read_text())
        return Template(np.array([[np.cos(angle), np.sin(angle)]]), None, QUALITY, b"jpeg")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, name in enumerate("abc"):
        (folder / name).write_text(str(index))
    return folder


def gallery(images: Path, make: Counting, out: Path, fingerprint: str = "f") -> Gallery:
    with TemplateStore(out) as store:
        return collect("abc", images, Pipeline("test", fingerprint, make), store, lambda name, done, of: None)


def test_a_template_comes_back_as_it_was(tmp_path: Path) -> None:
    several = Template(np.array([[0.6, 0.8], [1.0, 0.0]]), None, QUALITY, b"jpeg")
    failed = Template(np.empty((0, 0)), "NO_FACE")
    with TemplateStore(tmp_path) as store:
        store.put("f", "1", several)
        store.put("f", "2", failed)
        store.put("f", "1", failed)  # the first stays
    with TemplateStore(tmp_path) as store:
        found, none = store.get("f", "1"), store.get("f", "2")
        assert found is not None
        assert none is not None
        np.testing.assert_array_equal(found.embeddings, several.embeddings)
        assert (found.failure, found.quality, store.crop("f", "1")) == (None, QUALITY, b"jpeg")
        assert (none.failure, none.quality, len(none.embeddings), store.crop("f", "2")) == ("NO_FACE", None, 0, None)
        assert store.get("other", "1") is None
        assert store.get("f", "3") is None


def test_folder_and_file_are_their_owners_only(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    TemplateStore(out).__exit__()
    assert (out.stat().st_mode & 0o777, (out / FILE).stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database, but long enough to be looked at by SQLite" * 50)
    with pytest.raises(ConfigurationError, match=f"{FILE} cannot be used"):
        TemplateStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        TemplateStore(tmp_path / "file")


def test_what_was_made_before_a_failure_is_not_made_again(images: Path, tmp_path: Path) -> None:
    broken = Counting(fails_at="c")
    with pytest.raises(ComputeUnavailable):
        gallery(images, broken, tmp_path / "out")
    mended = Counting()
    assert gallery(images, mended, tmp_path / "out").computed == 1
    assert (broken.made, mended.made) == (["a", "b"], ["c"])
    assert gallery(images, mended, tmp_path / "out").computed == 0


def test_another_pipeline_and_other_bytes_are_made_anew(images: Path, tmp_path: Path) -> None:
    gallery(images, Counting(), tmp_path / "out")
    assert gallery(images, Counting(), tmp_path / "out", fingerprint="g").computed == 3
    (images / "b").write_text("9")
    changed = Counting()
    gallery(images, changed, tmp_path / "out")
    assert changed.made == ["b"]


def test_the_same_bytes_under_two_names_are_made_once(images: Path, tmp_path: Path) -> None:
    (images / "c").write_text("0")
    make = Counting()
    assert gallery(images, make, tmp_path / "out").computed == 2
    assert make.made == ["a", "b"]


def test_a_complaint_is_asked_anew_and_never_stored(images: Path, tmp_path: Path) -> None:
    def collected(complaint: str | None) -> Gallery:
        with TemplateStore(tmp_path / "out") as store:
            pipeline = Pipeline("test", "f", Counting(), lambda template: complaint)
            return collect("abc", images, pipeline, store, lambda name, done, of: None)

    complaining = collected("FACE_TOO_DARK")
    assert (complaining.complaints(), complaining.failures()) == ({"FACE_TOO_DARK": 3}, {})
    assert collected(None).complaints() == {}


def test_scores_are_the_largest_cosine_or_nothing(images: Path, tmp_path: Path) -> None:
    templates = {
        "a": Template(np.array([[1.0, 0.0], [0.0, 1.0]])),
        "b": Template(np.array([[0.6, 0.8]])),
        "c": Template(np.empty((0, 0)), "NO_FACE"),
    }
    found = Gallery(Pipeline("test", "f", Counting()), templates, {}, 0)
    scores = found.scores([Pair("a", "b", True), Pair("b", "c", False)])
    assert scores[0] == pytest.approx(0.8)
    assert np.isnan(scores[1])


def test_progress_goes_from_none_to_all(images: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with TemplateStore(tmp_path / "out") as store:
        collect("abc", images, Pipeline("test", "f", Counting()), store, lambda *progress: told.append(progress))
    assert told == [("test", done, 3) for done in range(4)]


def test_a_picture_that_cannot_be_read_is_not_named(images: Path, tmp_path: Path) -> None:
    (images / "b").unlink()
    with pytest.raises(ConfigurationError, match=r"Picture 2 in the order of the list cannot be read") as caught:
        gallery(images, Counting(), tmp_path / "out")
    assert caught.value.__suppress_context__


def test_each_template_is_committed_by_itself(images: Path, tmp_path: Path) -> None:
    def count() -> int:
        connection = sqlite3.connect(tmp_path / "out" / FILE)
        try:
            (found,) = connection.execute("SELECT count(*) FROM templates").fetchone()
        finally:
            connection.close()
        return int(found)

    seen: list[int] = []
    with TemplateStore(tmp_path / "out") as store:
        collect("abc", images, Pipeline("test", "f", Counting()), store, lambda name, done, of: seen.append(count()))
    assert seen == [0, 1, 2, 3]
