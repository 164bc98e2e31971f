"""Metrics against slow oracles: scipy, scikit-learn, and resampling by really repeating rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from essential_sparsity.analysis import metrics
from essential_sparsity.analysis.metrics import METRICS, metric_named

CLASSES = pd.DataFrame({"label": [0, 1, 1, 0, 1, 1], "prediction": [0, 1, 0, 0, 1, 1]})
FLOATS = pd.DataFrame({"label": [1.0, 2.0, 3.5, 3.5, 5.0], "prediction": [0.9, 2.5, 2.5, 4.0, 4.8]})


def rows_for(name: str, *, num_rows: int = 40, seed: int = 0) -> pd.DataFrame:
    """Random rows that fit any metric of this name."""
    random = np.random.default_rng(seed)
    if name in ("pearson", "spearman"):
        label = random.integers(0, 6, num_rows).astype(np.float32)
        return pd.DataFrame({"label": label, "prediction": (label + random.normal(size=num_rows)).astype(np.float32)})
    label = random.integers(0, 2, num_rows)
    return pd.DataFrame(
        {
            "label": label,
            "prediction": np.where(random.random(num_rows) < 0.7, label, 1 - label),
            "log_likelihood": -random.exponential(50, num_rows),
            "num_tokens": random.integers(5, 60, num_rows),
            "exact_match": random.integers(0, 2, num_rows),
            "f1": random.random(num_rows),
            "score": random.random(num_rows),
            **{name: random.integers(0, 2, num_rows) for name in ("right", "parsed", "exact", "guessed")},
        }
    )


def test_accuracy_is_the_share_of_correct_rows() -> None:
    assert metrics.accuracy(CLASSES) == 5 / 6


def test_chance_of_accuracy_is_the_majority_share() -> None:
    assert METRICS["accuracy"].chance(CLASSES) == 4 / 6


def test_chance_of_f1_is_that_of_calling_everything_positive() -> None:
    guessed = CLASSES.assign(prediction=1)
    assert METRICS["f1"].chance(CLASSES) == pytest.approx(metrics.f1(guessed))


def test_chance_of_correlations_is_zero_and_of_perplexity_undefined() -> None:
    assert [METRICS[name].chance(CLASSES) for name in ("matthews", "pearson", "spearman")] == [0.0, 0.0, 0.0]
    assert np.isnan(METRICS["perplexity"].chance(rows_for("perplexity")))


@pytest.mark.parametrize("seed", range(5))
def test_class_metrics_equal_those_of_scikit_learn(seed: int) -> None:
    rows = rows_for("f1", seed=seed)
    assert metrics.f1(rows) == pytest.approx(oracle.f1_score(rows.label, rows.prediction), abs=1e-14)
    assert metrics.matthews(rows) == pytest.approx(oracle.matthews_corrcoef(rows.label, rows.prediction), abs=1e-14)
    random = np.random.default_rng(seed)
    many = pd.DataFrame({"label": random.integers(0, 4, 60), "prediction": random.integers(0, 5, 60)})
    assert metrics.matthews(many) == pytest.approx(oracle.matthews_corrcoef(many.label, many.prediction), abs=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_those_of_scipy(seed: int) -> None:
    rows = rows_for("pearson", seed=seed).astype(np.float64)
    assert metrics.pearson(rows) == pytest.approx(stats.pearsonr(rows.label, rows.prediction)[0], abs=1e-13)
    assert metrics.spearman(rows) == pytest.approx(stats.spearmanr(rows.label, rows.prediction)[0], abs=1e-13)


def test_pearson_keeps_its_digits_far_from_zero() -> None:
    shifted = FLOATS + 1e8
    assert metrics.pearson(shifted) == pytest.approx(metrics.pearson(FLOATS), abs=1e-7)


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
def test_a_constant_prediction_correlates_with_nothing(name: str) -> None:
    assert METRICS[name].value(FLOATS.assign(prediction=0.1)) == 0.0


def test_f1_without_any_positive_is_zero() -> None:
    assert metrics.f1(pd.DataFrame({"label": [0, 0], "prediction": [0, 0]})) == 0.0


def test_perplexity_is_minus_its_logarithm_over_tokens_not_rows() -> None:
    rows = pd.DataFrame({"log_likelihood": [-10.0, -2.0], "num_tokens": [9, 1]})
    assert metrics.perplexity(rows) == pytest.approx(-1.2)


def test_squad_metrics_are_means_of_their_columns() -> None:
    rows = rows_for("squad_f1")
    assert metrics.squad_f1(rows) == pytest.approx(rows.f1.mean(), abs=1e-15)
    assert metrics.exact_match(rows) == pytest.approx(rows.exact_match.mean(), abs=1e-15)


def test_chance_of_values_is_what_the_rows_say_that_one_guess_reaches() -> None:
    rows = pd.DataFrame({"right": [1, 1, 0, 0], "guessed": [0, 1, 0, 0]})
    assert (metrics.value_accuracy(rows), METRICS["value_accuracy"].chance(rows)) == (0.5, 0.25)


@pytest.mark.parametrize("name", METRICS)
def test_row_scores_average_to_the_value_where_there_are_any(name: str) -> None:
    rows = rows_for(name)
    scores = METRICS[name].row_score(rows)
    assert (scores is None) != METRICS[name].is_row_mean
    if scores is not None:
        assert scores.mean() == pytest.approx(METRICS[name].value(rows), abs=1e-15)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_folding_with_weights_equals_repeating_the_rows(name: str, seed: int) -> None:
    rows, random = rows_for(name, seed=seed), np.random.default_rng(seed)
    drawn = random.integers(0, len(rows), (3, len(rows)))
    weights = np.stack([np.bincount(draw, minlength=len(rows)) for draw in drawn]).astype(np.float64)
    folded = METRICS[name].fold(METRICS[name].statistics(rows), weights)
    repeated = [METRICS[name].value(rows.iloc[draw]) for draw in drawn]
    np.testing.assert_allclose(folded, repeated, atol=1e-12)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="column 'prediction' is missing from the predictions: they hold label"):
        metrics.accuracy(pd.DataFrame({"label": [1]}))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="num_rows=0"):
        metrics.accuracy(CLASSES.iloc[:0])


def test_a_diverged_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="column 'prediction' has 1 non-finite of 5 values: the model diverged"):
        metrics.pearson(FLOATS.assign(prediction=[0.0, 1.0, np.nan, 2.0, 3.0]))


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"metric='acuracy' is unknown: did you mean accuracy\?"):
        metric_named("acuracy")
