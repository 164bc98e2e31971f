"""Where a falling line leaves the band: antitonic regression and first crossings, for many lines at once.

Shapes: B lines, L levels (dense first).
"""

import numpy as np

from essential_sparsity.analysis.metrics import Floats

ROUNDING = 1e-9  # a loss of exactly ε lies within the band, whatever floats make of it


def antitonic(differences: Floats) -> Floats:
    """Least-squares falling fit of every line [B, L] that starts at zero (dense against dense, known exactly).

    The max-min formula of isotonic regression, then cut at zero: no level may look better than the one before.
    """
    lines = np.asarray(differences, np.float64)[:, 1:]
    num_lines, num_levels = lines.shape
    if not num_levels:
        return np.zeros((num_lines, 1))
    sums = np.concatenate([np.zeros((num_lines, 1)), np.cumsum(lines, axis=1)], axis=1)
    fitted = np.full_like(lines, np.inf)
    for start in range(num_levels):  # fitted[i] = min over start ≤ i of the max over end ≥ i of mean(start … end)
        means = (sums[:, start + 1 :] - sums[:, start : start + 1]) / np.arange(1, num_levels - start + 1)
        largest = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        fitted[:, start:] = np.minimum(fitted[:, start:], largest)
    return np.concatenate([np.zeros((num_lines, 1)), np.minimum(fitted, 0.0)], axis=1)


def first_crossing(levels: Floats, fitted: Floats, epsilon: float) -> Floats:
    """Sparsity where each line [B, L], joined by straight pieces, first falls below −ε; +inf where it never does."""
    outside = fitted < -epsilon - ROUNDING
    crosses = outside.any(1)
    after = np.maximum(outside.argmax(1), 1)
    lines = np.arange(len(fitted))
    high, low = fitted[lines, after - 1], fitted[lines, after]
    share = np.divide(high + epsilon, high - low, out=np.ones_like(high), where=crosses)
    crossing = levels[after - 1] + np.clip(share, 0, 1) * (levels[after] - levels[after - 1])
    return np.where(crosses, crossing, np.inf)


def all_crossings(levels: Floats, line: Floats, epsilon: float) -> list[float]:
    """Every sparsity where one line [L], joined by straight pieces, leaves the band or comes back."""
    above = line + epsilon
    outside = line < -epsilon - ROUNDING
    found = []
    for i in np.flatnonzero(outside[1:] != outside[:-1]):
        share = np.clip(above[i] / (above[i] - above[i + 1]), 0, 1)
        found.append(float(levels[i] + share * (levels[i + 1] - levels[i])))
    return found


def level_below(levels: Floats, sparsity: float) -> float:
    """Largest grid level at or below a sparsity."""
    return float(levels[levels <= sparsity + ROUNDING].max(initial=0.0))


def level_above(levels: Floats, sparsity: float) -> float:
    """Smallest grid level at or above a sparsity; +inf beyond the grid."""
    return float(levels[levels >= sparsity - ROUNDING].min(initial=np.inf))
