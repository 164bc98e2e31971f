"""Two curves on the same rows and seeds: how much further one goes than the other, and where they are equal."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from essential_sparsity.analysis.crossing import antitonic, first_crossing, level_above, level_below
from essential_sparsity.analysis.curves import SparsityCurve, complete_part
from essential_sparsity.analysis.levels import finite
from essential_sparsity.analysis.metrics import Floats
from essential_sparsity.analysis.resampling import PairedDifferences, paired_differences, resample_rows, resample_seeds


@dataclass(frozen=True)
class Excess:
    """Difference of two essential sparsities; `None` is open: one of them never turned."""

    label: str
    control: str
    essential_sparsity_excess: float | None
    ci_low: float | None
    ci_high: float | None
    num_seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for essential_sparsity.json."""
        return asdict(self)


def essential_sparsity_excess(
    curve: SparsityCurve,
    control: SparsityCurve,
    *,
    epsilon: float | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Excess:
    """How much more of the weights can go than in the control (OMP − random), with a joint bootstrap interval.

    Rows are drawn once for both; the seeds used are those that both have, with the same draws. In every resample both
    crossings move outward to their own grid levels. Raises ValueError where rows differ or no seed is shared.
    """
    epsilon = curve.measure.epsilon if epsilon is None else epsilon
    seeds = _shared_seeds(curve, control)
    ours, theirs = (
        paired_differences(side, num_resamples=num_resamples, seed=seed, seeds=seeds) for side in (curve, control)
    )
    estimates = [_crossings(pairs, pairs.mean[None], epsilon)[0] for pairs in (ours, theirs)]
    low_ours, high_ours = _outward(ours, epsilon)
    low_theirs, high_theirs = _outward(theirs, epsilon)
    lowest = np.where(np.isinf(high_theirs), -np.inf, low_ours - high_theirs)
    highest = np.where(np.isinf(high_ours), np.inf, high_ours - low_theirs)
    tail = int((1 - confidence) / 2 * num_resamples)
    both = all(np.isfinite(estimates))
    return Excess(
        curve.label,
        control.label,
        float(estimates[0] - estimates[1]) if both else None,
        finite(np.sort(lowest)[tail]),
        finite(np.sort(highest)[-1 - tail]),
        len(ours.seeds),
    )


def equivalence(
    curve: SparsityCurve,
    other: SparsityCurve,
    *,
    epsilon: float | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Level by level: difference of two curves and whether two one-sided tests call it within ±ε.

    One line per level that both have with the same seeds: sparsity, difference (ours − theirs), low, high (each
    one-sided), equivalent, verdict, num_seeds. The verdict is `equal` where both bounds lie within ±ε, else
    `different` where the two-sided interval leaves out 0, else `not shown`; one seed alone shows neither, for what is
    said of pruners is said over seeds. Dense runs are not asked for. Raises ValueError where rows differ or no seed is
    shared.
    """
    epsilon = curve.measure.epsilon if epsilon is None else epsilon
    _check_rows(curve, other)
    shared, seeds = _shared_cells(curve, other)
    runs = [side.statistics[level, s] for side in (curve, other) for level in shared for s in seeds]
    values, resampled = resample_rows(curve.measure, runs, num_resamples=num_resamples, seed=seed)
    mine, yours = values.reshape(2, len(shared), len(seeds))
    drawn = resampled.reshape(-1, 2, len(shared), len(seeds))
    apart = drawn[:, 0] - drawn[:, 1]
    draws = resample_seeds(apart, seed=seed)
    means = np.full(len(shared), curve.measure.is_row_mean)
    between = PairedDifferences(np.array(shared), tuple(seeds), mine, mine - yours, apart, draws, curve.num_rows, means)
    low, high = between.bounds(confidence)
    lowest, highest = between.bounds((1 + confidence) / 2)
    several = len(seeds) > 1
    equal = (low > -epsilon) & (high < epsilon) & several
    different = ((lowest > 0) | (highest < 0)) & several
    verdicts = np.where(equal, EQUAL, np.where(different, DIFFERENT, NOT_SHOWN))
    return [
        {
            "sparsity": float(level),
            "difference": float(between.mean[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "equivalent": bool(equal[i]),
            "verdict": str(verdicts[i]),
            "num_seeds": len(seeds),
        }
        for i, level in enumerate(shared)
    ]


EQUAL, DIFFERENT, NOT_SHOWN = "equal", "different", "not shown"


def _shared_cells(curve: SparsityCurve, other: SparsityCurve) -> tuple[list[float], list[int]]:
    """Levels and seeds of the largest grid that both curves have whole, dense or not."""
    cells = curve.statistics.keys() & other.statistics.keys()
    levels, seeds = complete_part(cells | {(0.0, seed) for _, seed in cells})
    levels = [level for level in levels if all((level, seed) in cells for seed in seeds)]
    if not levels:
        raise ValueError(f"{curve.label} and {other.label} share no run's level and seed: run both with the same seeds")
    return levels, seeds


def _shared_seeds(curve: SparsityCurve, other: SparsityCurve) -> list[int]:
    """Seeds that are complete in both curves."""
    _check_rows(curve, other)
    shared = sorted(set(curve.complete()[1]) & set(other.complete()[1]))
    if not shared:
        raise ValueError(f"{curve.label} and {other.label} share no complete seed: run both with the same seeds")
    return shared


def _check_rows(curve: SparsityCurve, other: SparsityCurve) -> None:
    """Raise ValueError where two curves were not evaluated alike."""
    if curve.metric != other.metric or not np.array_equal(curve.row_ids, other.row_ids):
        raise ValueError(
            f"{curve.label} and {other.label} differ in metric or evaluation rows: they cannot be compared"
        )


def _crossings(pairs: PairedDifferences, lines: Floats, epsilon: float) -> Floats:
    return first_crossing(pairs.levels, antitonic(lines), epsilon)


def _outward(pairs: PairedDifferences, epsilon: float) -> tuple[Floats, Floats]:
    """Every resample's crossing, moved down and up to the grid: [B], [B]."""
    crossings = _crossings(pairs, pairs.draws, epsilon)
    top = float(pairs.levels[-1])
    low = np.array([level_below(pairs.levels, min(at, top)) for at in crossings])
    return low, np.array([level_above(pairs.levels, at) for at in crossings])
