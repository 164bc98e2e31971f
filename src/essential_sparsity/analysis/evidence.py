"""What finished runs prove about each visited sparsity, and between which two levels the turn must lie.

Shapes: K visited pruned levels (ascending). D is metric(level) − metric(dense) of one seed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import stdtr, stdtrit

from essential_sparsity.analysis.crossing import ROUNDING, first_crossing
from essential_sparsity.analysis.curves import Cell
from essential_sparsity.analysis.metrics import Floats

PEERS = 3.0
"""Levels that lose up to this many ε share one variance: on a cliff runs differ more than on the flat before it."""

CORRELATION = 0.5
"""Of the differences of one seed at two levels: two independent runs, one dense run that both are compared with."""

TOP = 1.0
"""End of the range that is searched; never itself a level."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Visited levels with their mean differences, how far these reach, and the bracket that follows."""

    levels: Floats  # [K]
    means: Floats  # [K] mean D
    counts: NDArray[np.int64]  # [K] seeds
    variances: Floats  # [K] of one seed's D; 0 where the curve is deterministic
    freedom: Floats  # [K] degrees of freedom of that variance
    errors: Floats  # [K] standard error of mean D
    epsilon: float
    confidence: float
    free: Flags  # [K] mean D lies above −ε, beyond doubt
    costly: Flags  # [K] below −ε, beyond doubt
    non_monotone: bool  # a costly level lies below a free one

    @property
    def low(self) -> float:
        """Highest visited level up to which every one is free; 0 before the first."""
        return float(self.levels[np.cumprod(self.free & ~self._after_turn()).astype(bool)].max(initial=0.0))

    @property
    def high(self) -> float:
        """Level from which on it is costly: where the curve falls, every level from there; else the first such."""
        if self.non_monotone:
            return float(self.levels[self.costly].min())
        from_here = np.cumprod(self.costly[::-1]).astype(bool)[::-1]
        return float(self.levels[from_here].min(initial=TOP))

    def _after_turn(self) -> Flags:
        return np.cumsum(self.costly).astype(bool) if self.non_monotone else np.zeros(len(self.levels), bool)

    @property
    def fitted(self) -> Floats:
        """Falling fit of mean D, weighted by seeds and at most 0, [K]."""
        if not len(self.levels):
            return np.empty(0)
        fit = isotonic_regression(self.means, weights=self.counts.astype(float), increasing=False).x
        return np.minimum(np.asarray(fit, np.float64), 0.0)

    @property
    def estimate(self) -> float | None:
        """First linear crossing of −ε by the fit, within the bracket; None where it never crosses."""
        levels, fitted = np.concatenate([[0.0], self.levels]), np.concatenate([[0.0], self.fitted])
        if self.non_monotone:  # the fit would average a dip away
            kept = levels <= self.high
            levels, fitted = levels[kept], np.concatenate([[0.0], self.means])[kept]
        crossing = float(first_crossing(levels, fitted[None], self.epsilon)[0])
        return float(np.clip(crossing, self.low, self.high)) if np.isfinite(crossing) else None

    def probability_free(self) -> Floats:
        """How likely mean D lies above −ε, given what its seeds say, [K]."""
        margin = self.means + self.epsilon
        certain = (margin >= -ROUNDING).astype(np.float64)
        score = np.divide(margin, self.errors, out=np.zeros_like(margin), where=self.errors > 0)
        return np.where(self.errors > 0, stdtr(np.maximum(self.freedom, 0.5), score), certain)

    def reach(self) -> Floats:
        """Distance from mean D to its bound at each level, at the level's own share of 1 − confidence, [K]."""
        return stdtrit(np.maximum(self.freedom, 0.5), 1 - own_share(self.confidence)) * self.errors


def own_share(confidence: float) -> float:
    """Probability of error that a level's own bound may spend: half of one side's."""
    return (1 - confidence) / 4


def paired(values: Mapping[Cell, float]) -> dict[float, dict[int, float]]:
    """Differences to the dense run of the same seed: level → seed → D, levels ascending."""
    dense = {seed: value for (level, seed), value in values.items() if level == 0.0}
    found: dict[float, dict[int, float]] = defaultdict(dict)
    for (level, seed), value in sorted(values.items()):
        if level and seed in dense:
            found[level][seed] = value - dense[seed]
    return dict(found)


def judge(
    values: Mapping[Cell, float],
    *,
    epsilon: float,
    confidence: float = 0.95,
    noisy: bool = True,
    grain: float = 0.0,
    of_rows: Mapping[float, float] | None = None,
    num_rows: int = 0,
) -> Evidence:
    """Say of every visited level whether it is free, costly or open.

    Without noise and rows, D itself decides. With noise the variance of one seed's D is pooled over levels, `grain` is
    the smallest step of the metric (1/rows, for a mean of right and wrong). `of_rows` adds each level's variance from
    the choice of `num_rows` rows, common to all seeds: then the verdicts are about other rows like these, too.

    A level's own bound spends a quarter of 1 − confidence; where it does not clear, a higher (for costly: a lower)
    level's does that clears at that share divided by the number of levels, since the curve falls.
    """
    differences = paired(values)
    levels = np.array(list(differences), np.float64)
    each = [np.array(list(of.values())) for of in differences.values()]
    means, counts = np.array([d.mean() for d in each]), np.array([len(d) for d in each], np.int64)
    variances, freedom = np.zeros(len(levels)), np.full(len(levels), 1e9)
    if noisy:
        variances, freedom = _noise(means, each, PEERS * epsilon)
        variances = np.maximum(variances, grain**2 / 6)  # two rounded values: two uniform errors
    errors = variances / np.maximum(counts, 1)
    if of_rows is not None:
        shared = np.array([of_rows.get(float(level), 0.0) for level in levels])
        weight = errors**2 / freedom + shared**2 / max(num_rows - 1, 1)
        errors = errors + shared
        freedom = np.divide(errors**2, weight, out=np.full_like(errors, 1e9), where=weight > 0)
    errors = np.sqrt(errors)
    verdicts = _verdicts(means, errors, freedom, epsilon, own_share(confidence))
    return Evidence(levels, means, counts, variances, freedom, errors, epsilon, confidence, *verdicts)


def _noise(means: Floats, each: Sequence[Floats], same_up_to: float) -> tuple[Floats, Floats]:
    """Variance of one seed's D at every level, pooled over those that lose no more, and its degrees of freedom.

    Levels share their dense runs, so that their variances are no independent draws: with correlation r of D the
    freedom of K levels of n seeds is K(n − 1) / (1 + (K − 1) r²) (Satterthwaite).
    """
    squares = np.array([((d - d.mean()) ** 2).sum() for d in each])
    single = np.array([len(d) - 1 for d in each], np.float64)
    common = CORRELATION**2 * np.minimum.outer(single, single)
    np.fill_diagonal(common, single)
    losses = -means
    variances, freedom = np.full(len(each), np.inf), np.zeros(len(each))
    for k, loss in enumerate(losses):
        peers = losses <= max(loss, same_up_to)
        total = single[peers].sum()
        if total > 0:
            variances[k] = squares[peers].sum() / total
            freedom[k] = total**2 / common[np.ix_(peers, peers)].sum()
    return variances, freedom


def _verdicts(
    means: Floats, errors: Floats, freedom: Floats, epsilon: float, share: float
) -> tuple[Flags, Flags, bool]:
    """Which levels are free, which costly, and whether a strictly costly one lies below a strictly free one."""
    if not len(means):
        return np.zeros(0, bool), np.zeros(0, bool), False
    df = np.maximum(freedom, 0.5)
    own, strict = (_sides(means, stdtrit(df, 1 - p) * errors, epsilon) for p in (share, share / len(means)))
    first_costly = int(strict[1].argmax()) if strict[1].any() else len(means)
    if strict[0][first_costly:].any():
        return *own, True
    free = own[0] | np.logical_or.accumulate(strict[0][::-1])[::-1]
    costly = own[1] | np.logical_or.accumulate(strict[1])
    return free, costly, False


def _sides(means: Floats, reach: Floats, epsilon: float) -> tuple[Flags, Flags]:
    costly = means + reach < -epsilon - ROUNDING
    free = np.where(reach > 0, means - reach > -epsilon, ~costly)
    return free.astype(bool), costly
