"""The bootstrap and its bounds against slow oracles: loops over resamples, closed forms, simulations."""

import numpy as np
import pandas as pd
import pytest

from essential_sparsity.analysis import METRICS, SparsityCurve
from essential_sparsity.analysis.resampling import paired_differences, resample_rows, resample_seeds, row_weights

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.random((3, 4, 200)) < np.array([0.9, 0.85, 0.6])[:, None, None]
CURVE = SparsityCurve.from_scores([0.0, 0.3, 0.6], SCORES)


def test_every_resample_draws_as_many_rows_as_there_are() -> None:
    weights = row_weights(np.random.default_rng(0), 50, 30)
    np.testing.assert_array_equal(weights.sum(1), 30)
    assert weights.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["accuracy", "f1", "spearman"])
def test_resampled_values_equal_a_loop_over_repeated_rows(name: str) -> None:
    random = np.random.default_rng(1)
    runs = [pd.DataFrame({"label": random.integers(0, 2, 60), "prediction": random.integers(0, 2, 60)}) for _ in "ab"]
    measure = METRICS[name]
    values, resampled = resample_rows(measure, [measure.statistics(run) for run in runs], num_resamples=5, seed=3)
    weights = row_weights(np.random.default_rng((3, 0)), 5, 60).astype(int)
    oracle = [[measure.value(run.iloc[np.repeat(np.arange(60), line)]) for run in runs] for line in weights]
    np.testing.assert_allclose(resampled, oracle, atol=1e-12)
    np.testing.assert_allclose(values, [measure.value(run) for run in runs], atol=1e-15)


def test_one_draw_of_rows_serves_all_levels_and_seeds() -> None:
    same = SparsityCurve.from_scores([0.0, 0.3], np.repeat(SCORES[:1], 2, axis=0))
    assert not paired_differences(same, num_resamples=200).resampled.any()


def test_differences_are_paired_by_seed() -> None:
    pairs = paired_differences(CURVE, num_resamples=200)
    share = SCORES.mean(2)
    np.testing.assert_allclose(pairs.observed, share - share[:1], atol=1e-15)


def test_row_variance_is_that_of_a_mean_of_paired_differences() -> None:
    pairs = paired_differences(CURVE, num_resamples=4000)
    per_row = (SCORES[1:].astype(float) - SCORES[:1]).mean(1)
    np.testing.assert_allclose(pairs.row_variance()[1:], per_row.var(1) / 200, rtol=0.1)


def test_seed_variance_leaves_out_what_rows_explain() -> None:
    """Independent coin flips have no spread over seeds of their own; a shift by seed is found whole."""
    random = np.random.default_rng(2)
    share = np.full((2, 40, 1), 0.8)
    flips = paired_differences(SparsityCurve.from_scores([0, 0.5], random.random((2, 40, 500)) < share))
    share[1, ::2] -= 0.1
    shifted = paired_differences(SparsityCurve.from_scores([0, 0.5], random.random((2, 40, 500)) < share))
    assert flips.seed_variance()[1] < 2e-4
    assert shifted.seed_variance()[1] == pytest.approx(0.05**2, rel=0.35)


def test_drawing_seeds_has_the_spread_of_their_mean_without_the_plain_bootstraps_shortfall() -> None:
    seeds = np.array([-0.01, 0.0, 0.02])
    draws = resample_seeds(np.broadcast_to(seeds, (20000, 1, 3)), seed=0)[:, 0]
    assert draws.mean() == pytest.approx(seeds.mean(), abs=2e-4)
    assert draws.var() == pytest.approx(seeds.var(ddof=1) / 3, rel=0.05)


def test_a_single_seed_is_bounded_by_its_rows_alone() -> None:
    curve = SparsityCurve.from_scores([0.0, 0.6], SCORES[[0, 2], :1])
    low, high = paired_differences(curve, num_resamples=4000).bounds(0.95)
    per_row = SCORES[2, 0].astype(float) - SCORES[0, 0]
    reach = 1.6525 * per_row.std(ddof=1) / np.sqrt(200)  # Student's t, 199 degrees of freedom
    assert (low[1], high[1]) == pytest.approx((per_row.mean() - reach, per_row.mean() + reach), abs=0.005)


def test_seeds_without_rows_noise_are_bounded_by_students_t() -> None:
    """All rows alike: nothing but seeds varies, so the bound is the t-interval of the seeds."""
    from scipy import stats

    shift = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    scores = np.stack([np.ones((5, 300)), np.repeat(shift[:, None], 300, axis=1)])
    low, _ = paired_differences(SparsityCurve.from_scores([0.0, 0.5], scores), num_resamples=300).bounds(0.95)
    oracle = stats.t(4).ppf(0.05) * shift.std(ddof=1) / np.sqrt(5) + shift.mean() - 1
    assert low[1] == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize("seeds", [2, 5])
def test_one_sided_bounds_hold_as_often_as_they_say(seeds: int) -> None:
    random, held = np.random.default_rng(4), []
    for _ in range(400):
        share = 0.8 + 0.01 * random.normal(size=(2, seeds, 1)) - np.array([0.0, 0.02])[:, None, None]
        curve = SparsityCurve.from_scores([0.0, 0.5], random.random((2, seeds, 400)) < share)
        held.append(paired_differences(curve, num_resamples=200).bounds(0.95)[0][1] < -0.02)
    assert np.mean(held) > 0.93
