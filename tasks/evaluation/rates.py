"""Error rates of a biometric comparison, from arrays of genuine and of impostor scores. Pure.

Definitions are those of ISO/IEC 19795-1 (biometric performance testing). A pair matches when its score is at or above
the threshold.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from tasks.evaluation.results import OperatingPoint, PipelineResult, Rate, Wanted

Floats = NDArray[np.float64]

GRID = 10_000
"""Suggested thresholds have four decimals, so that what is read and set is what was measured."""


class Curve(NamedTuple):
    """FMR and FNMR at each threshold that makes a difference, from the strictest (infinite) to the laxest."""

    thresholds: Floats
    fmr: Floats
    fnmr: Floats


def rate(count: int, of: int) -> Rate:
    """A share with the 95 % score interval of Wilson (1927), which holds for few trials and for no errors too.

    It takes trials for independent. Pairs that share pictures or people are not: then the true interval is wider.
    """
    interval = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(count=count, of=of, value=count / of, low=float(interval.low), high=float(interval.high))


def curve(genuine: Floats, impostor: Floats) -> Curve:
    """The rates over all thresholds: what a ROC and a DET curve are drawn from."""
    fmr, tmr, thresholds = roc_curve(*_labelled(genuine, impostor), drop_intermediate=False)
    return Curve(thresholds, fmr, 1 - tmr)


def best_accuracy(genuine: Floats, impostor: Floats) -> tuple[Rate, float]:
    """The largest share of pairs that one threshold decides rightly, and the strictest threshold that does.

    The threshold lies midway between the scores on its sides. It is found on the pairs that it is measured on, so the
    accuracy flatters.
    """
    thresholds, fmr, fnmr = curve(genuine, impostor)
    wrong = np.rint(fmr * impostor.size + fnmr * genuine.size)
    best = int(np.argmin(wrong))
    above, below = thresholds[best], thresholds[min(best + 1, thresholds.size - 1)]
    threshold = (above + below) / 2 if np.isfinite(above) else np.nextafter(below, np.inf)
    pairs = genuine.size + impostor.size
    return rate(int(pairs - wrong[best]), pairs), float(threshold)


def equal_error_rate(genuine: Floats, impostor: Floats) -> tuple[float, float]:
    """The rate at which FMR and FNMR are the same, and its threshold; linear between the curve's points."""
    thresholds, fmr, fnmr = curve(genuine, impostor)
    finite = np.where(np.isfinite(thresholds), thresholds, thresholds[1])
    difference = fmr - fnmr  # rises at every point
    return float(np.interp(0.0, difference, fmr)), float(np.interp(0.0, difference, finite))


def area_under_curve(genuine: Floats, impostor: Floats) -> float:
    """The chance that a genuine pair scores above an impostor pair, ties counted half."""
    return float(roc_auc_score(*_labelled(genuine, impostor)))


def threshold_for(impostor: Floats, fmr: float) -> float:
    """The smallest threshold of four decimals whose FMR on these impostor scores is at most `fmr`."""
    allowed = math.floor(fmr * impostor.size * (1 + 1e-12))
    if allowed >= impostor.size:
        return -1.0
    # One more than allowed would match at this score, so the threshold is above it.
    first_refused = float(np.sort(impostor)[impostor.size - 1 - allowed])
    return (math.floor(first_refused * GRID) + 1) / GRID


def pairs_needed(fmr: float) -> int:
    """Impostor pairs needed to show an FMR, by the rule of 3: no error in n leaves up to 3 / n at 95 % confidence.

    Jovanovic and Levy, "A look at the rule of three" (1997); ISO/IEC 19795-1 names it for the size of a test.
    """
    return math.ceil(3 / fmr * (1 - 1e-12))


def operating_point(genuine: Floats, impostor: Floats, unscored: int, wanted: Wanted) -> OperatingPoint:
    """FMR, FNMR and FRR there. `unscored`: genuine pairs without a score, which are rejected at every threshold."""
    if wanted.threshold is not None:
        threshold = wanted.threshold
    elif wanted.fmr is not None:
        threshold = threshold_for(impostor, wanted.fmr)
    else:
        raise ValueError("An operating point needs a threshold or a false match rate.")
    rejected = int((genuine < threshold).sum())
    return OperatingPoint(
        name=wanted.name,
        threshold=threshold,
        wanted_fmr=wanted.fmr,
        pairs_needed=None if wanted.fmr is None else pairs_needed(wanted.fmr),
        fmr=rate(int((impostor >= threshold).sum()), impostor.size),
        fnmr=rate(rejected, genuine.size),
        frr=rate(rejected + unscored, genuine.size + unscored),
    )


def summary(
    name: str,
    genuine: Floats,
    impostor: Floats,
    *,
    failures: dict[str, int],
    complaints: dict[str, int],
    unscored: tuple[int, int],
    wanted: Sequence[Wanted],
) -> PipelineResult:
    """All figures of one pipeline. `unscored`: genuine and impostor pairs without a score.

    Both arrays need at least one score.
    """
    accuracy, accuracy_threshold = best_accuracy(genuine, impostor)
    eer, eer_threshold = equal_error_rate(genuine, impostor)
    return PipelineResult(
        name=name,
        failures=failures,
        complaints=complaints,
        genuine=genuine.size,
        impostor=impostor.size,
        genuine_unscored=unscored[0],
        impostor_unscored=unscored[1],
        accuracy=accuracy,
        accuracy_threshold=accuracy_threshold,
        eer=eer,
        eer_threshold=eer_threshold,
        genuine_spread=(float(genuine.mean()), float(genuine.std())),
        impostor_spread=(float(impostor.mean()), float(impostor.std())),
        auc=area_under_curve(genuine, impostor),
        points=tuple(operating_point(genuine, impostor, unscored[0], each) for each in wanted),
    )


def _labelled(genuine: Floats, impostor: Floats) -> tuple[NDArray[np.int64], Floats]:
    labels = np.concatenate([np.ones(genuine.size, np.int64), np.zeros(impostor.size, np.int64)])
    return labels, np.concatenate([genuine, impostor])
