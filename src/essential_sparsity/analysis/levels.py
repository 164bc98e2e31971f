"""What stands beside the estimate: the table of levels, and how far two dense runs lie apart (A/A)."""

from typing import Any

import numpy as np

from essential_sparsity.analysis.curves import SparsityCurve
from essential_sparsity.analysis.metrics import Floats
from essential_sparsity.analysis.resampling import PairedDifferences


def level_table(curve: SparsityCurve, pairs: PairedDifferences, fitted: Floats, confidence: float) -> list[dict]:
    """One line per level of the complete grid: values, paired difference, two-sided interval."""
    low, high = pairs.bounds(1 - (1 - confidence) / 2)
    lower = pairs.bounds(confidence)[0]
    lines = []
    for i, level in enumerate(pairs.levels):
        of_level = curve.points[(curve.points["sparsity"] == level) & curve.points["seed"].isin(pairs.seeds)]
        shares = (of_level["num_pruned"] / of_level["num_parameters"]) if "num_parameters" in of_level else None
        lines.append(
            {
                "sparsity": float(level),
                "value": float(pairs.values[i].mean()),
                "median": float(np.median(pairs.values[i])),
                "difference": float(pairs.mean[i]),
                "fitted": float(fitted[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "loss_bound": float(-lower[i]) if i else 0.0,
                "share_of_all_parameters": _nanmean(shares),
                "flipped": _nanmean(of_level.get("flipped")),
                "train_loss": _nanmean(of_level.get("train_loss")),
                "smallest_density": _nanmean(of_level.get("smallest_density")),
                "calibration_error": _nanmean(of_level.get("calibration_error")),
                "recipe": _recipe(of_level),
            }
        )
    return lines


def dense_values(curve: SparsityCurve) -> Floats:
    """The metric of every dense run, those without a pruned partner too."""
    return curve.points.loc[curve.points["sparsity"] == 0.0, "value"].to_numpy(np.float64)


def dense_mean(curve: SparsityCurve) -> float | None:
    """Mean of all dense runs, None where there is none."""
    values = dense_values(curve)
    return float(values.mean()) if len(values) else None


def noise_band(curve: SparsityCurve, confidence: float) -> float | None:
    """A/A: what the difference of two dense runs of different seeds stays within (the largest one under 20 pairs)."""
    dense = dense_values(curve)
    pairs = [abs(a - b) for i, a in enumerate(dense) for b in dense[:i]]
    return float(np.quantile(pairs, confidence, method="higher")) if pairs else None


def finite(value: float | None) -> float | None:
    """The number, or None where it is infinite, NaN or not there."""
    return float(value) if value is not None and np.isfinite(value) else None


def _recipe(of_level: Any) -> str | None:
    """The recipe that was chosen for a level, where recipes were."""
    found = [str(each) for each in of_level.get("recipe", ()) if isinstance(each, str)]
    return found[0] if found else None


def _nanmean(values: Any) -> float | None:
    if values is None or not len(values):
        return None
    numbers = np.asarray(values, dtype=np.float64)
    return float(np.nanmean(numbers)) if np.isfinite(numbers).any() else None
