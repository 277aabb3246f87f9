"""What people read and look at: the table, the remarks, the charts, the picture of the worst pairs."""

import io

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from tasks.contracts import EngineConfig
from tasks.evaluation.charts import Drawn, det, histograms, roc
from tasks.evaluation.pairs import Pair
from tasks.evaluation.rates import summary
from tasks.evaluation.report import markdown, remarks, rows
from tasks.evaluation.results import Evaluation, Wanted
from tasks.evaluation.worst import Shown, as_jpeg, lowest_and_highest, worst_pairs

RANDOM = np.random.default_rng(7)
WANTED = [
    Wanted("match threshold", threshold=0.416),
    Wanted("FMR 0.001", fmr=1e-3),
    Wanted("FMR 0.0001", fmr=1e-4),
]


def drawn(name: str, genuine_mean: float, failures: dict[str, int], *more: Wanted) -> Drawn:
    genuine, impostor = RANDOM.normal(genuine_mean, 0.1, 100), RANDOM.normal(0.1, 0.09, 4000)
    unscored = (6, 10) if failures else (0, 0)
    found = summary(
        name, genuine, impostor, failures=failures, complaints={}, unscored=unscored, wanted=[*WANTED, *more]
    )
    return Drawn(found, genuine, impostor)


OURS = drawn("kycflow", 0.65, {})
THEIRS = drawn("DeepFace.verify", 0.4, {"NO_FACE_FOUND": 5}, Wanted("own threshold", threshold=0.407))


def evaluation(**changes: object) -> Evaluation:
    whole = Evaluation(
        pictures=277,
        pairs=4100,
        repeated=3,
        engine=EngineConfig(),
        device="cpu",
        wanted_fmr=1e-3,
        kycflow=OURS.result,
        deepface=THEIRS.result,
        embedded=0,
        seconds=1.0,
    )
    return whole.model_copy(update=changes)


def test_the_table_sets_both_pipelines_side_by_side() -> None:
    table = {row.what: row.cells for row in rows(evaluation())}
    assert table["Failures to acquire, pictures"] == ("0 of 277", "5 of 277")
    assert table["  NO_FACE_FOUND"] == ("0", "5")
    assert table["Genuine pairs scored"] == ("100", "100 of 106")
    assert table["At own threshold: threshold"] == ("", "0.4070")
    assert table["At FMR 0.0001: threshold"][0].endswith(", too few pairs")
    accuracy = OURS.result.accuracy
    assert table["Best accuracy"][0].startswith(f"{accuracy.value:.3%} ({accuracy.low * 100:.3f} to ")
    assert table["Best accuracy"][0].endswith(f"), {accuracy.count}/4100")
    assert all(len(cells) == 1 for _, cells in rows(evaluation(deepface=None)))


def test_the_suggestion_is_that_of_the_wanted_rate() -> None:
    assert evaluation().suggested == OURS.result.point("FMR 0.001")
    assert f"at most 0.001: {evaluation().suggested.threshold:.4f}" in remarks(evaluation())[0]


def test_remarks_say_what_the_figures_cannot() -> None:
    text = " ".join(remarks(evaluation()))
    for piece in (
        "30000 are needed",
        "4000 were scored",
        "the true intervals are wider",
        "3 pairs repeat",
        "FRR counts",
    ):
        assert piece in text, piece
    alone = " ".join(remarks(evaluation(deepface=None, repeated=0)))
    assert "repeat" not in alone
    assert "FRR counts" not in alone


def test_markdown_is_one_table_with_as_many_cells_in_each_line() -> None:
    lines = [line for line in markdown(evaluation()).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4}
    assert lines[1] == "| --- | --- | --- |"


@pytest.mark.parametrize("chart", [roc, det, histograms])
@pytest.mark.parametrize("pipelines", [[OURS], [OURS, THEIRS]], ids=["alone", "beside"])
def test_charts_are_pictures(chart: object, pipelines: list[Drawn]) -> None:
    with Image.open(io.BytesIO(chart(pipelines))) as picture:  # type: ignore[operator]
        picture.load()
        assert picture.format == "PNG"
        assert picture.width >= 1000
        assert len(picture.convert("L").getcolors() or []) > 20


def test_charts_of_a_perfect_and_of_a_useless_pipeline() -> None:
    high, low = np.array([0.9, 0.95]), np.array([0.1, 0.2, 0.3])
    for genuine, impostor in ((high, low), (low, high), (np.array([0.5]), np.array([0.5]))):
        found = summary("x", genuine, impostor, failures={}, complaints={}, unscored=(0, 0), wanted=WANTED)
        for chart in (roc, det, histograms):
            assert chart([Drawn(found, genuine, impostor)]).startswith(b"\x89PNG")


def test_charts_leave_no_figure_behind() -> None:
    for chart in (roc, det, histograms):
        chart([OURS, THEIRS])
    assert Gcf.figs == {}  # where pyplot keeps figures


def test_the_worst_pairs_are_chosen_once_each_and_only_where_scored() -> None:
    pairs = [
        Pair("a", "b", True),
        Pair("b", "a", True),
        Pair("a", "c", True),
        Pair("a", "d", False),
        Pair("b", "d", False),
        Pair("c", "d", False),
    ]
    scores = np.array([0.2, 0.2, 0.5, 0.4, np.nan, 0.1])
    assert lowest_and_highest(pairs, scores, 2) == ([0, 2], [3, 5])
    assert lowest_and_highest(pairs, scores, 1) == ([0], [3])


def test_the_worst_pairs_are_drawn_as_they_are() -> None:
    red = as_jpeg(np.full((112, 112, 3), (200, 30, 30), np.uint8))
    blue = as_jpeg(np.full((300, 300, 3), (30, 30, 200), np.uint8))
    with Image.open(io.BytesIO(blue)) as small:
        assert small.size == (160, 160)
    with Image.open(io.BytesIO(worst_pairs([Shown(0.31, red, blue)], [Shown(0.39, red, None)]))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for colour in ((200, 30, 30), (30, 30, 200)):
        faces = (np.abs(pixels - colour).max(axis=2) < 6).sum() / 132**2
        assert faces == pytest.approx(2 if colour[0] == 200 else 1, abs=0.05)
