"""Which ε a number of rows and seeds can prove, before and after they are spent."""

from typing import Any

import numpy as np
from scipy.special import ndtri

from essential_sparsity.analysis.crossing import level_below
from essential_sparsity.analysis.resampling import PairedDifferences, unseen_share

POWER = 0.8


def needed(pairs: PairedDifferences, *, at: float | None, epsilon: float, confidence: float) -> dict[str, Any]:
    """ε that can be proven with these rows and seeds, and what ε would need, at the variances seen before the crossing.

    Mean over the levels up to there: the spread over a few seeds at one level says little.
    """
    levels = pairs.levels
    before = level_below(levels, levels[-1] if at is None else at)
    index = max(1, int(np.searchsorted(levels, before)))
    reach = _reach(confidence)
    rows = float(pairs.row_variance()[1 : index + 1].mean())
    seeds = float(pairs.seed_variance()[1 : index + 1].mean())
    means = bool(pairs.is_row_mean.any())  # whose bounds reach so far even where no row differs
    least = unseen_share(pairs.num_rows, confidence) if means else 0.0
    fewest = np.log(1 - confidence) / np.log1p(-min(epsilon, 0.999)) if means else 0.0
    return {
        "resolvable_epsilon": max(least, reach * float(np.sqrt(rows + seeds / len(pairs.seeds)))),
        "rows_needed": int(np.ceil(max(fewest, reach**2 * rows * pairs.num_rows / epsilon**2))),
        "seeds_needed": max(1, int(np.ceil(reach**2 * seeds / epsilon**2))) if len(pairs.seeds) > 1 else None,
    }


def resolvable_epsilon(
    num_rows: int, num_seeds: int = 1, *, disagreement: float = 0.1, shared: float = 0.5, confidence: float = 0.95
) -> float:
    """Smallest ε that an evaluation set can prove with power 0.8, before anything is spent.

    `disagreement` is the share of rows on which dense and pruned differ in correctness; `shared` the part of their
    variance that all seeds have in common (the same hard rows). 6,183 rows resolve 0.01 with one seed at 0.1.
    """
    if num_rows < 1 or num_seeds < 1:
        raise ValueError(f"num_rows={num_rows}, num_seeds={num_seeds}: both must be at least 1")
    return _reach(confidence) * float(np.sqrt(disagreement * (shared + (1 - shared) / num_seeds) / num_rows))


def _reach(confidence: float) -> float:
    """Distance in standard errors at which a one-sided bound clears ε with power 0.8."""
    return float(ndtri(confidence) + ndtri(POWER))
