"""Differences over pre-trainings are Student's, small samples say so, and budgets are made equal by reading off."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from essential_sparsity.analysis import SparsityCurve
from essential_sparsity.analysis.contrast import Pretraining, contrast, images_at, matched, replicate_crossings

LEVELS = [0.0, 0.2, 0.4, 0.6, 0.8]


def curve_of(*accuracies: list[float]) -> SparsityCurve:
    """A curve with a seed per list, each value exactly this share of 1,000 rows."""
    shares = np.array(accuracies).T[:, :, None]
    return SparsityCurve.from_scores(LEVELS, (np.arange(1000) < 1000 * shares).astype(float))


EARLY = [0.9, 0.9, 0.88, 0.7, 0.5]  # falls by a point at 0.3
LATE = [0.9, 0.9, 0.9, 0.88, 0.5]  # at 0.5


def test_every_pre_training_has_its_own_crossing() -> None:
    assert replicate_crossings([(curve_of(EARLY, LATE), {0: 7, 1: 9})], epsilon=0.01) == {
        7: pytest.approx(0.3),
        9: pytest.approx(0.5),
    }


def test_fine_tunings_of_one_pre_training_are_averaged_first() -> None:
    found = replicate_crossings([(curve_of(EARLY, LATE), {0: 7, 1: 7})], epsilon=0.01)
    assert found == {7: pytest.approx(0.4)}  # the mean loses 0.01 at 0.4
    apart = [(curve_of(EARLY), {0: 7}), (curve_of(LATE), {0: 7})]
    assert replicate_crossings(apart, epsilon=0.01) == found


def test_a_curve_that_never_turns_is_open() -> None:
    flat = curve_of([0.9] * 5)
    assert replicate_crossings([(flat, {0: 1})], epsilon=0.01) == {1: math.inf}
    found = contrast("ssl", "sl", {0: math.inf, 1: 0.5}, {0: 0.4, 1: 0.4})
    assert found.difference is None and found.reason == "never turned on the grid: pre-training 0"
    assert found.pairs[0]["arm"] is None and found.pairs[1]["difference"] == pytest.approx(0.1)


def test_above_a_floor_a_better_dense_value_has_more_to_lose() -> None:
    better = [0.95, 0.94, 0.92, 0.88, 0.5]
    both = [(curve_of(EARLY, better), {0: 0, 1: 1})]
    assert replicate_crossings(both, epsilon=0.01)[1] == pytest.approx(0.2)
    assert replicate_crossings(both, epsilon=0.01, floor=0.89) == {0: pytest.approx(0.3), 1: pytest.approx(0.55)}
    assert replicate_crossings(both, epsilon=0.01, floor=0.92)[0] == 0.0  # its dense runs lie below already


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_the_interval_is_that_of_the_paired_t_test(count: int) -> None:
    random = np.random.default_rng(count)
    ours, theirs = (dict(enumerate(random.uniform(0.2, 0.8, count))) for _ in range(2))
    oracle = stats.ttest_rel([*ours.values()], [*theirs.values()])
    interval = oracle.confidence_interval(0.95)
    found = contrast("a", "b", ours, theirs)
    assert (found.ci_low, found.ci_high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.difference == pytest.approx(np.mean([ours[s] - theirs[s] for s in ours]))
    assert found.num_pairs == count and len(found.pairs) == count
    if count < 6:
        assert found.p is None and found.reason == "fewer than 6 pairs: no p-value"
    else:
        assert found.p == pytest.approx(oracle.pvalue) and found.reason == ""


def test_what_one_pre_training_cannot_say() -> None:
    one = contrast("a", "b", {0: 0.5, 1: 0.4}, {0: 0.4, 2: 0.1})
    assert one.difference == pytest.approx(0.1) and one.ci_low is None and "one pre-training each" in one.reason
    assert contrast("a", "b", {0: 0.5}, {1: 0.5}).reason == "no pre-training is finished and above chance in both"
    with pytest.raises(ValueError, match="confidence=95 lies outside"):
        contrast("a", "b", {0: 0.5}, {0: 0.5}, confidence=95)


def side(images: float, flops: float, knn: list[float], near: list[float]) -> Pretraining:
    """A pre-training with evenly spaced probes and records."""
    at = np.linspace(0, images, len(knn))
    probes = pd.DataFrame({"num_images": at, "knn": knn, "linear": np.nan})
    return Pretraining(images, flops, probes, pd.DataFrame({"num_images": at, "near_zero": near}))


def test_budgets_are_made_equal_by_reading_off_the_longer_side() -> None:
    dino = side(100, 400.0, [0.5, 0.7, 0.8], [0.04, 0.05, 0.06])  # 4 FLOPs an image
    twin = side(200, 200.0, [0.5, 0.8, 0.9], [0.04, 0.06, 0.08])  # 1 an image
    table = matched(dino, twin).set_index(["match", "side"])
    assert table.loc[("images", "ours"), "knn"] == pytest.approx(0.8)
    assert table.loc[("images", "theirs"), "knn"] == pytest.approx(0.8)
    assert table.loc[("images", "theirs"), "train_flops"] == pytest.approx(100)
    assert table.loc[("flops", "ours"), "num_images"] == pytest.approx(50)
    assert table.loc[("flops", "ours"), "knn"] == pytest.approx(0.7)
    assert table.loc[("flops", "ours"), "near_zero"] == pytest.approx(0.05)
    assert table.loc[("flops", "theirs"), "num_images"] == pytest.approx(200)
    assert table.loc[("probe", "ours"), "num_images"] == pytest.approx(100)
    assert table.loc[("probe", "theirs"), "num_images"] == pytest.approx(100)
    assert np.isnan(table["linear"].to_numpy(float)).all()


def test_a_level_that_was_never_reached_and_an_unknown_budget_are_not_numbers() -> None:
    probes = pd.DataFrame({"num_images": [0.0, 10.0, 20.0], "knn": [0.5, 0.7, 0.6]})
    assert images_at(probes, 0.6) == pytest.approx(5) and images_at(probes, 0.5) == 0.0
    assert math.isnan(images_at(probes, 0.8))
    blank = Pretraining(math.nan, math.nan, probes.iloc[:0].assign(linear=0.0), pd.DataFrame(
        {"num_images": [], "near_zero": []}
    ))  # fmt: skip
    assert np.isnan(matched(blank, side(10, 10.0, [0.5, 0.6], [0.1, 0.1]))[["num_images", "knn"]].to_numpy(float)).all()
