"""Metrics as pure functions of prediction rows, each able to be recomputed on thousands of resamples at once.

A metric turns the rows of `predictions.parquet` into row statistics and folds their totals into one number, so that the
same definition gives the reported value and every bootstrap replicate. All values are "higher is better".

Shapes: N rows, K statistics of a row, B resamples.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One metric: what it reads of a row, how totals fold into its value, and what guessing gives."""

    name: str
    statistics: Callable[[pd.DataFrame], Floats]  # rows -> [N, K]
    fold: Callable[[Floats, Floats], Floats]  # statistics [N, K], weights [B, N] (each sums to N) -> [B]
    guess: Callable[[pd.DataFrame], float]
    is_row_mean: bool = False
    higher_is_better: bool = True
    epsilon: float = 0.01
    beside: tuple[str, ...] = ()  # metrics of the same rows that are reported with it
    label: str = ""  # what its value is called where people read it; default: the name

    def value(self, rows: pd.DataFrame) -> float:
        """Value of the metric on these rows; raises ValueError on no rows, a lacking column or a non-finite number."""
        statistics = self.statistics(rows)
        return float(self.fold(statistics, np.ones((1, len(statistics))))[0])

    def chance(self, rows: pd.DataFrame) -> float:
        """Value that the best constant guess reaches on these rows; NaN where no guess is defined."""
        return float(self.guess(rows))

    def row_score(self, rows: pd.DataFrame) -> Floats | None:
        """Score of each row, [N], where the metric is their mean; else None."""
        return self.statistics(rows)[:, 0] if self.is_row_mean else None


def metric_named(name: str) -> Metric:
    """Metric of this name; raises ValueError with the nearest name."""
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(str(name), METRICS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(METRICS)}"
    raise ValueError(f"metric={name!r} is unknown: {hint}")


def spoken(name: str) -> str:
    """What a metric's value is called where people read it: `perplexity` is judged as −ln(perplexity)."""
    return METRICS[name].label or name if name in METRICS else name


def _columns(rows: pd.DataFrame, *names: str) -> list[NDArray]:
    """The named columns as arrays; raises ValueError on no rows, a lacking column or a non-finite number."""
    if not len(rows):
        raise ValueError("num_rows=0: a metric needs at least one evaluation row")
    arrays = []
    for name in names:
        if name not in rows.columns:
            raise ValueError(f"column {name!r} is missing from the predictions: they hold {', '.join(rows.columns)}")
        array = rows[name].to_numpy()
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ValueError(f"column {name!r} has {bad} non-finite of {len(array)} values: the model diverged")
        arrays.append(array)
    return arrays


# ---- means over rows -------------------------------------------------------------------------------------------------


def _mean(statistics: Floats, weights: Floats) -> Floats:
    return weights @ statistics[:, 0] / len(statistics)


def _correct(rows: pd.DataFrame) -> Floats:
    label, prediction = _columns(rows, "label", "prediction")
    return (label == prediction).astype(np.float64)[:, None]


def _column(name: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda rows: _columns(rows, name)[0].astype(np.float64)[:, None]


def majority_share(rows: pd.DataFrame) -> float:
    """Share of the most frequent label: the accuracy of the best constant guess."""
    (label,) = _columns(rows, "label")
    return float(np.unique(label, return_counts=True)[1].max() / len(label))


def guessed_share(rows: pd.DataFrame) -> float:
    """Share of the rows that the best single guess gets right, as the rows say themselves."""
    return float(_columns(rows, "guessed")[0].mean())


# ---- ratios of totals ------------------------------------------------------------------------------------------------


def _f1_counts(rows: pd.DataFrame) -> Floats:
    """True positives, and false ones of either kind; class 1 is positive (as in GLUE)."""
    label, prediction = (column == 1 for column in _columns(rows, "label", "prediction"))
    return np.stack([label & prediction, label ^ prediction], axis=1).astype(np.float64)


def _f1(statistics: Floats, weights: Floats) -> Floats:
    true, false = (weights @ statistics).T
    return _divide(2 * true, 2 * true + false)


def _f1_of_all_positive(rows: pd.DataFrame) -> float:
    share = float((_columns(rows, "label")[0] == 1).mean())
    return 2 * share / (1 + share)


def _likelihoods(rows: pd.DataFrame) -> Floats:
    return np.stack(_columns(rows, "log_likelihood", "num_tokens"), axis=1).astype(np.float64)


def _log_perplexity(statistics: Floats, weights: Floats) -> Floats:
    """Mean log-likelihood of a token in nats = −ln(perplexity)."""
    likelihood, tokens = (weights @ statistics).T
    return _divide(likelihood, tokens)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient, 0 where the denominator is 0 (nothing to be right about)."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


# ---- correlations ----------------------------------------------------------------------------------------------------


def _confusion(rows: pd.DataFrame) -> Floats:
    """Correctness, then one-hot labels, then one-hot predictions: [N, 1 + 2 classes]."""
    label, prediction = _columns(rows, "label", "prediction")
    classes = np.union1d(label, prediction)
    parts = [(label == prediction)[:, None], label[:, None] == classes, prediction[:, None] == classes]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _matthews(statistics: Floats, weights: Floats) -> Floats:
    """Matthews correlation of any number of classes (Gorodkin 2004, eq. 8); 0 for a constant prediction."""
    totals = weights @ statistics
    classes = (statistics.shape[1] - 1) // 2
    correct, true, guessed = totals[:, 0], totals[:, 1 : 1 + classes], totals[:, 1 + classes :]
    n = float(len(statistics))
    covariance = correct * n - (true * guessed).sum(1)
    spread = (n * n - (true**2).sum(1)) * (n * n - (guessed**2).sum(1))
    return _divide(covariance, np.sqrt(spread))


def _pairs(rows: pd.DataFrame) -> Floats:
    label, prediction = (column.astype(np.float64) for column in _columns(rows, "label", "prediction"))
    return np.stack([label - label.mean(), prediction - prediction.mean()], axis=1)


def _pearson(statistics: Floats, weights: Floats) -> Floats:
    """Correlation of label and prediction; 0 where either is constant. The pairs come centred, so sums keep digits."""
    x, y = statistics.T
    return _correlation(weights @ np.stack([x, y, x * x, y * y, x * y], axis=1), len(statistics))


def _correlation(totals: Floats, n: int) -> Floats:
    x, y, xx, yy, xy = totals.T / n
    spread = np.clip(xx - x * x, 0, None) * np.clip(yy - y * y, 0, None)
    scale = np.sqrt(xx * yy)
    constant = np.sqrt(spread) <= 1e-12 * scale  # what rounding leaves of a variance of zero
    return np.where(constant, 0.0, _divide(xy - x * y, np.sqrt(spread)))


def _spearman(statistics: Floats, weights: Floats) -> Floats:
    """Pearson correlation of midranks, ranked anew in each resample."""
    x, y = (_midranks(column, weights) - (len(statistics) + 1) / 2 for column in statistics.T)
    totals = [(weights * part).sum(1) for part in (x, y, x * x, y * y, x * y)]
    return _correlation(np.stack(totals, axis=1), len(statistics))


def _midranks(values: Floats, weights: Floats) -> Floats:
    """Rank of every value among the values repeated `weights` times, ties at their mean: [B, N]."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(counts, axis=1) - counts + (counts + 1) / 2)[:, group]


def _zero(rows: pd.DataFrame) -> float:
    return 0.0


def _undefined(rows: pd.DataFrame) -> float:
    return float("nan")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _correct, _mean, majority_share, is_row_mean=True),
        Metric("f1", _f1_counts, _f1, _f1_of_all_positive),
        Metric("matthews", _confusion, _matthews, _zero),
        Metric("pearson", _pairs, _pearson, _zero),
        Metric("spearman", _pairs, _spearman, _zero),
        Metric("score", _column("score"), _mean, _undefined, is_row_mean=True),  # of lm-eval, in its own units
        Metric("perplexity", _likelihoods, _log_perplexity, _undefined, label="−ln(perplexity)"),
        Metric("exact_match", _column("exact_match"), _mean, _zero, is_row_mean=True),
        Metric("squad_f1", _column("f1"), _mean, _zero, is_row_mean=True, beside=("exact_match",)),
        Metric("parsed_share", _column("parsed"), _mean, _zero, is_row_mean=True),
        Metric("expression_accuracy", _column("exact"), _mean, _zero, is_row_mean=True),
        Metric(
            "value_accuracy",
            _column("right"),
            _mean,
            guessed_share,
            is_row_mean=True,
            beside=("expression_accuracy", "parsed_share"),
        ),
    )
}

accuracy = METRICS["accuracy"].value
f1 = METRICS["f1"].value
matthews = METRICS["matthews"].value
pearson = METRICS["pearson"].value
spearman = METRICS["spearman"].value
perplexity = METRICS["perplexity"].value
exact_match = METRICS["exact_match"].value
squad_f1 = METRICS["squad_f1"].value
value_accuracy = METRICS["value_accuracy"].value
