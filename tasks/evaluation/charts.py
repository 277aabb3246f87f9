"""Charts as PNG: ROC, DET, and how the scores are spread.

Drawn with matplotlib's objects, never pyplot: that keeps figures in the process, and is for one thread.
"""

import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tasks.evaluation.rates import Curve, Floats, curve
from tasks.evaluation.results import OperatingPoint, PipelineResult

COLOURS = ("#1f5f99", "#d98c1f")  # apart for colour-blind eyes too
_GENUINE, _IMPOSTOR, _INK, _QUIET, _GRID = "#2f8f5b", "#c0504d", "#1b2733", "#66727f", "#e3e7eb"


class Drawn(NamedTuple):
    """A pipeline's figures and scores, to be drawn."""

    result: PipelineResult
    genuine: Floats
    impostor: Floats


def roc(pipelines: Sequence[Drawn]) -> bytes:
    """Receiver operating characteristic: share of genuine pairs that match over FMR. PNG."""
    figure, (axes,) = _figure("ROC: genuine pairs that match, by false match rate", 1)
    for colour, drawn in zip(COLOURS, pipelines, strict=False):
        line = curve(drawn.genuine, drawn.impostor)
        axes.step(
            _floored(line.fmr, drawn.impostor), 1 - line.fnmr, where="post", color=colour, lw=2, label=_label(drawn)
        )
        for point in _configured(drawn):
            axes.plot(_floored(point.fmr.value, drawn.impostor), 1 - point.fnmr.value, "o", color=colour, ms=7)
    _fmr_axis(axes, pipelines)
    lowest = min(1 - point.fnmr.value for drawn in pipelines for point in drawn.result.points)
    axes.set_ylim(max(0.0, min(0.95, lowest - 0.05)), 1.005)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_ylabel("genuine pairs that match (1 - FNMR)")
    _legend(axes, "lower right")
    return _png(figure)


def det(pipelines: Sequence[Drawn]) -> bytes:
    """Detection error trade-off: FNMR over FMR, both logarithmic. No errors are drawn at half an error. PNG."""
    figure, (axes,) = _figure("DET: false non-match rate by false match rate", 1)
    for colour, drawn in zip(COLOURS, pipelines, strict=False):
        line: Curve = curve(drawn.genuine, drawn.impostor)
        x, y = _floored(line.fmr, drawn.impostor), _floored(line.fnmr, drawn.genuine)
        axes.step(x, y, where="post", color=colour, lw=2, label=_label(drawn))
        for point in _configured(drawn):
            at = _floored(point.fmr.value, drawn.impostor), _floored(point.fnmr.value, drawn.genuine)
            axes.plot(*at, "o", color=colour, ms=7)
    lowest = min(0.5 / drawn.genuine.size for drawn in pipelines)
    axes.plot([1e-9, 1], [1e-9, 1], ":", color=_QUIET, lw=1, label="equal error rate")
    _fmr_axis(axes, pipelines)
    axes.set_yscale("log")
    axes.set_ylim(lowest * 0.8, 1)
    axes.yaxis.set_major_formatter(_percent)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("false non-match rate (FNMR)")
    _legend(axes, "best")
    return _png(figure)


def histograms(pipelines: Sequence[Drawn]) -> bytes:
    """How genuine and impostor scores are spread, each as shares of their own number, with the thresholds. PNG."""
    figure, all_axes = _figure("Scores of genuine and of impostor pairs", len(pipelines))
    both = np.concatenate([scores for drawn in pipelines for scores in (drawn.genuine, drawn.impostor)])
    bins = np.linspace(both.min() - 0.01, both.max() + 0.01, 61)
    for axes, drawn in zip(all_axes, pipelines, strict=True):
        for scores, colour, kind in ((drawn.impostor, _IMPOSTOR, "impostor"), (drawn.genuine, _GENUINE, "genuine")):
            shares = np.full(scores.size, 1 / scores.size)
            label = f"{scores.size} {kind} pairs"
            axes.hist(scores, bins=list(bins), weights=shares, color=colour, alpha=0.45, label=label)
            axes.hist(scores, bins=list(bins), weights=shares, color=colour, histtype="step", lw=1.3)
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * 1.3)
        for level, point in enumerate(sorted(_configured(drawn), key=lambda point: point.threshold)):
            axes.axvline(point.threshold, color=_INK, lw=1, ls="--")
            text = f" {point.name} {point.threshold:.3f}"
            axes.text(point.threshold, top * (1.24 - 0.08 * level), text, color=_INK, fontsize=9, va="center")
        axes.set_title(drawn.result.name, loc="left", fontsize=11, color=_INK)
        axes.set_ylabel("share of pairs")
        axes.yaxis.set_major_formatter(_percent)
        _legend(axes, "upper left")
    all_axes[-1].set_xlabel("score (cosine)")
    return _png(figure)


_percent = FuncFormatter(lambda value, _: f"{value * 100:.4g} %")


def _figure(title: str, rows: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, 5.2 if rows == 1 else 3.6 * rows), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, color=_INK, x=0.02, ha="left")
    all_axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in all_axes:
        axes.grid(visible=True, color=_GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_QUIET, labelcolor=_INK)
    return figure, all_axes


def _configured(drawn: Drawn) -> Sequence[OperatingPoint]:
    """Thresholds that were given, not found on these pairs."""
    return [point for point in drawn.result.points if point.wanted_fmr is None]


def _floored(rates: Floats | float, scores: Floats) -> Floats:
    """A logarithmic axis has no zero: no errors in n are drawn at half an error."""
    return np.maximum(rates, 0.5 / scores.size)


def _fmr_axis(axes: Axes, pipelines: Sequence[Drawn]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(0.5 / drawn.impostor.size for drawn in pipelines) * 0.8, 1)
    axes.xaxis.set_major_formatter(_percent)
    axes.set_xlabel("false match rate (FMR); no errors are drawn at half an error")


def _label(drawn: Drawn) -> str:
    return f"{drawn.result.name}: EER {drawn.result.eer:.2%}, AUC {drawn.result.auc:.4f}"


def _legend(axes: Axes, where: Literal["upper left", "lower right", "best"]) -> None:
    axes.legend(loc=where, frameon=True, framealpha=0.9, edgecolor=_GRID, fontsize=9.5)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
