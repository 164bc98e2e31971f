"""Paired differences to dense, their hierarchical bootstrap (seeds, then rows) and their bounds.

Shapes: L levels (dense first), S seeds, N rows, B resamples. D is metric(level) − metric(dense) of one seed on the same
rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes a second to import

from essential_sparsity.analysis.curves import SparsityCurve
from essential_sparsity.analysis.metrics import Floats, Metric

BATCH_WEIGHTS = 1 << 22  # row weights held at once: 32 MiB


@dataclass(frozen=True)
class PairedDifferences:
    """Differences to dense per level and seed, as observed and as resampled."""

    levels: Floats  # [L]
    seeds: tuple[int, ...]  # [S]
    values: Floats  # [L, S] the metric of every run
    observed: Floats  # [L, S] D
    resampled: Floats  # [B, L, S] D on resampled rows; one draw of rows serves all levels and seeds
    draws: Floats  # [B, L] mean D over resampled seeds and rows
    num_rows: int
    is_row_mean: NDArray[np.bool_]  # [L] D is a mean over rows of two runs, each row within ±1

    @property
    def mean(self) -> Floats:
        """Mean D over the paired seeds, [L]."""
        return self.observed.mean(1)

    def row_variance(self) -> Floats:
        """Variance of mean D that comes from the choice of rows, [L]."""
        return self.resampled.mean(2).var(0)

    def seed_variance(self) -> Floats:
        """Variance of one seed's D beyond what its rows explain, [L]; zero for a single seed."""
        num_seeds = len(self.seeds)
        if num_seeds == 1:
            return np.zeros(len(self.levels))
        centred = self.resampled - self.resampled.mean(2, keepdims=True)
        interaction = centred.var(0).mean(1) * num_seeds / (num_seeds - 1)
        return np.clip(self.observed.var(1, ddof=1) - interaction, 0, None)

    def bounds(self, confidence: float) -> tuple[Floats, Floats]:
        """One-sided lower and upper bound of mean D at every level, each at this confidence.

        Rows and seeds add up: the variance of the row bootstrap, and that of the seeds over S. The quantile is
        Student's, with the degrees of freedom of Satterthwaite (1946), so that few seeds widen the bound only as far
        as seeds matter. Row means reach at least as far as rows that all agree leave open.
        """
        num_seeds = len(self.seeds)
        rows, seeds = self.row_variance(), self.seed_variance() / num_seeds
        total = rows + seeds
        weight = seeds**2 / max(num_seeds - 1, 1) + rows**2 / max(self.num_rows - 1, 1)
        freedom = np.divide(total**2, weight, out=np.full_like(total, 1e9), where=weight > 0)
        reach = stdtrit(np.maximum(freedom, 1), confidence) * np.sqrt(total)
        reach = np.maximum(reach, np.where(self.is_row_mean, unseen_share(self.num_rows, confidence), 0.0))
        return self.mean - reach, self.mean + reach


def unseen_share(num_rows: int, confidence: float) -> float:
    """Share of rows that may differ though none of n did: 1 − (1 − confidence)^(1/n), the rule of three (3/n)."""
    return 1 - (1 - confidence) ** (1 / num_rows)


def paired_differences(
    curve: SparsityCurve, *, num_resamples: int = 2000, seed: int = 0, seeds: Sequence[int] | None = None
) -> PairedDifferences:
    """Differences to dense on the largest complete part of a curve, or on these seeds of it.

    Equal seeds and numbers of rows give equal draws, so that two curves resampled alike may be subtracted.
    """
    levels, paired = curve.complete()
    used = [s for s in paired if seeds is None or s in seeds]
    statistics = [curve.statistics[level, s] for level in levels for s in used]
    values, resampled = resample_rows(curve.measure, statistics, num_resamples=num_resamples, seed=seed)
    values = values.reshape(len(levels), len(used))
    resampled = resampled.reshape(-1, len(levels), len(used))
    differences = resampled - resampled[:, :1]
    return PairedDifferences(
        np.array(levels), tuple(used), values, values - values[:1], differences,
        resample_seeds(differences, seed=seed), curve.num_rows, (np.array(levels) > 0) & curve.measure.is_row_mean,
    )  # fmt: skip


def resample_rows(
    measure: Metric, statistics: Sequence[Floats], *, num_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """The metric of every run, [M], and on each of B draws of rows, [B, M]; one draw serves all runs."""
    num_rows = len(statistics[0])
    values = _fold(measure, statistics, np.ones((1, num_rows)))[0]
    resampled = np.empty((num_resamples, len(statistics)))
    random = np.random.default_rng((seed, 0))
    step = max(1, BATCH_WEIGHTS // num_rows)
    for start in range(0, num_resamples, step):
        weights = row_weights(random, min(step, num_resamples - start), num_rows)
        resampled[start : start + len(weights)] = _fold(measure, statistics, weights)
    return values, resampled


def row_weights(random: np.random.Generator, num_resamples: int, num_rows: int) -> Floats:
    """How often each row is drawn in each resample: [B, N], every line sums to N."""
    drawn = random.integers(0, num_rows, (num_resamples, num_rows), dtype=np.int32)
    drawn += np.arange(num_resamples, dtype=np.int32)[:, None] * num_rows
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_rows)
    return counts.reshape(num_resamples, num_rows).astype(np.float64)


def resample_seeds(differences: Floats, *, seed: int) -> Floats:
    """Mean D over seeds drawn with replacement, [B, L], from D on resampled rows, [B, L, S].

    Deviations are scaled by √(S/(S−1)): the plain bootstrap of S values has that much too small a spread.
    """
    num_resamples, _, num_seeds = differences.shape
    centre = differences.mean(2)
    if num_seeds == 1:
        return centre
    random = np.random.default_rng((seed, 1))
    weights = row_weights(random, num_resamples, num_seeds) / num_seeds
    drawn = np.einsum("bls,bs->bl", differences, weights)
    return centre + np.sqrt(num_seeds / (num_seeds - 1)) * (drawn - centre)


def _fold(measure: Metric, statistics: Sequence[Floats], weights: Floats) -> Floats:
    """The metric of each run under each line of weights: [B, M]. Row means share one matrix product."""
    if measure.is_row_mean:
        return weights @ np.concatenate(statistics, axis=1) / weights.shape[1]
    return np.stack([measure.fold(run, weights) for run in statistics], axis=1)
