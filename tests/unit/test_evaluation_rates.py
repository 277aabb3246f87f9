"""Error rates against cases worked out by hand, and against scikit-learn where it is not what computes them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, det_curve

from tasks.evaluation.rates import (
    area_under_curve,
    best_accuracy,
    curve,
    equal_error_rate,
    operating_point,
    pairs_needed,
    rate,
    summary,
    threshold_for,
)
from tasks.evaluation.results import Wanted

Floats = NDArray[np.float64]

GENUINE = np.array([0.9, 0.8, 0.7, 0.3])
IMPOSTOR = np.array([0.4, 0.2, 0.1, 0.0, -0.1])

# Scores with ties: a coarse grid makes them frequent.
scores = st.lists(st.integers(-20, 20).map(lambda n: n / 20), min_size=1, max_size=40).map(np.array)


def test_the_interval_is_wilsons() -> None:
    # Worked out from Wilson's formula with z = 1.959964: (p + z2/2n +- z sqrt(p q/n + z2/4n2)) / (1 + z2/n).
    found = rate(5, 100)
    assert (found.count, found.of, found.value) == (5, 100, 0.05)
    assert (found.low, found.high) == pytest.approx((0.02154368, 0.11175047), abs=1e-7)
    none = rate(0, 1000)
    assert (none.low, none.high) == pytest.approx((0.0, 0.00382676), abs=1e-7)
    assert rate(7, 7).high == 1.0


@given(st.integers(1, 2000), st.data())
def test_every_interval_holds_its_rate(of: int, data: st.DataObject) -> None:
    found = rate(data.draw(st.integers(0, of)), of)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_a_point_is_counted_with_the_threshold_on_the_matching_side() -> None:
    point = operating_point(GENUINE, IMPOSTOR, 1, Wanted("at 0.4", threshold=0.4))
    assert (point.fmr.count, point.fmr.of) == (1, 5)
    assert (point.fnmr.count, point.fnmr.of) == (1, 4)
    assert (point.frr.count, point.frr.of) == (2, 5)
    assert point.supported
    with pytest.raises(ValueError, match="threshold or a false match rate"):
        operating_point(GENUINE, IMPOSTOR, 0, Wanted("neither"))


@given(scores, scores, st.floats(-1, 1))
def test_a_point_equals_scikit_learns_confusion_matrix(genuine: Floats, impostor: Floats, threshold: float) -> None:
    point = operating_point(genuine, impostor, 0, Wanted("any", threshold=threshold))
    labels = np.r_[np.ones(genuine.size), np.zeros(impostor.size)]
    found = np.r_[genuine, impostor] >= threshold
    _, false_matches, false_non_matches, _ = confusion_matrix(labels, found, labels=[0, 1]).ravel()
    assert (point.fmr.count, point.fnmr.count) == (false_matches, false_non_matches)


def test_best_accuracy_by_hand() -> None:
    found, threshold = best_accuracy(GENUINE, IMPOSTOR)
    # 0.7 and above match: all but the genuine 0.3 are right. Midway to the next score, 0.4.
    assert (found.count, found.of) == (8, 9)
    assert threshold == pytest.approx(0.55)


def test_best_accuracy_where_rejecting_all_is_best() -> None:
    found, threshold = best_accuracy(np.array([0.1]), np.array([0.2, 0.3, 0.4]))
    assert (found.count, found.of) == (3, 4)
    assert threshold > 0.4


@given(scores, scores)
def test_no_threshold_is_more_accurate(genuine: Floats, impostor: Floats) -> None:
    found, threshold = best_accuracy(genuine, impostor)
    labels = np.r_[np.ones(genuine.size), np.zeros(impostor.size)]
    everything = np.r_[genuine, impostor]
    assert accuracy_score(labels, everything >= threshold) == pytest.approx(found.value)
    candidates = [*everything, 2.0]
    assert max(accuracy_score(labels, everything >= each) for each in candidates) == pytest.approx(found.value)


def test_equal_error_rate_by_hand() -> None:
    # At 0.4: FMR 1/5, FNMR 1/4. At 0.3: FMR 1/5, FNMR 0. The curve between them has FMR 1/5 throughout.
    rate_found, threshold = equal_error_rate(GENUINE, IMPOSTOR)
    assert rate_found == pytest.approx(0.2)
    assert 0.3 <= threshold <= 0.4
    assert equal_error_rate(np.array([0.8, 0.9]), np.array([0.1, 0.2]))[0] == 0
    assert equal_error_rate(np.array([0.1, 0.2]), np.array([0.8, 0.9]))[0] == 1
    assert equal_error_rate(np.array([0.5]), np.array([0.5])) == pytest.approx((0.5, 0.5))


@given(scores, scores)
def test_equal_error_rate_lies_between_the_rates_around_it(genuine: Floats, impostor: Floats) -> None:
    found, _ = equal_error_rate(genuine, impostor)
    _, fmr, fnmr = curve(genuine, impostor)
    before = int(np.flatnonzero(fmr <= fnmr)[-1])
    assert min(fmr[before], fnmr[before]) - 1e-9 <= found <= max(fmr[before], fnmr[before]) + 1e-9


@given(scores, scores)
def test_area_is_the_chance_that_a_genuine_pair_scores_higher(genuine: Floats, impostor: Floats) -> None:
    won = (genuine[:, None] > impostor).mean() + 0.5 * (genuine[:, None] == impostor).mean()
    assert area_under_curve(genuine, impostor) == pytest.approx(won)


def test_the_curve_equals_scikit_learns_det_curve() -> None:
    random = np.random.default_rng(1)
    genuine, impostor = random.normal(0.6, 0.1, 200), random.normal(0.1, 0.1, 900)
    labels = np.r_[np.ones(200), np.zeros(900)]
    fmr, fnmr, thresholds = det_curve(labels, np.r_[genuine, impostor])
    ours = curve(genuine, impostor)
    at = {threshold: (a, b) for threshold, a, b in zip(*ours, strict=True)}
    for threshold, a, b in zip(thresholds, fmr, fnmr, strict=True):
        if threshold in at:  # its last point stands for all thresholds above
            assert at[threshold] == pytest.approx((a, b))


def test_suggested_threshold_by_hand() -> None:
    impostor = np.arange(1000) / 1000  # 0.000 to 0.999
    assert threshold_for(impostor, 0.001) == pytest.approx(0.9981)  # one may match: 0.999
    assert threshold_for(impostor, 0.01) == pytest.approx(0.9891)
    assert threshold_for(impostor, 0.0001) == pytest.approx(0.9991)  # none may
    assert threshold_for(np.array([0.5, 0.5, 0.5]), 0.4) == pytest.approx(0.5001)  # all three or none
    assert threshold_for(np.array([0.5]), 1.0) == -1


@given(scores, st.floats(0.0005, 0.9999))
def test_suggested_threshold_is_the_smallest_that_serves(impostor: Floats, wanted: float) -> None:
    threshold = threshold_for(impostor, wanted)
    assert (impostor >= threshold).mean() <= wanted
    assert threshold == -1 or (impostor >= threshold - 2e-4).mean() > wanted


def test_pairs_needed_follow_the_rule_of_three() -> None:
    assert [pairs_needed(fmr) for fmr in (0.1, 0.01, 0.001, 0.0001)] == [30, 300, 3000, 30000]
    # The rule's own claim: with 3000 pairs and no error, an FMR of 1e-3 is excluded at 95 %.
    assert math.pow(1 - 0.001, 3000) < 0.05
    few = operating_point(GENUINE, IMPOSTOR, 0, Wanted("FMR 0.001", fmr=0.001))
    assert not few.supported
    assert few.fmr.count == 0


def test_the_summary_has_every_figure() -> None:
    wanted = [Wanted("match", threshold=0.35), Wanted("FMR 0.2", fmr=0.2)]
    found = summary("x", GENUINE, IMPOSTOR, failures={"NO_FACE": 1}, complaints={}, unscored=(1, 2), wanted=wanted)
    assert (found.genuine, found.impostor, found.genuine_unscored, found.impostor_unscored) == (4, 5, 1, 2)
    assert found.genuine_spread == pytest.approx((0.675, 0.2277608))
    assert found.auc == pytest.approx(0.95)
    assert [point.name for point in found.points] == ["match", "FMR 0.2"]
    assert found.point("FMR 0.2") == found.points[1]
    assert found.point("none") is None
    assert found.points[1].threshold == pytest.approx(0.2001)
