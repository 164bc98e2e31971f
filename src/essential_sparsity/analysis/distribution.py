"""WeightDistribution: normalised weights per layer and kind, and how many of them are near zero (Figure 7).

The paper does not say which scaler its figure used, so all three are offered. Standard: (w − mean) / σ. Min-max:
(w − min) / (max − min), where weight 0 lies at −min / (max − min) and the scale hangs on two outliers. RMS: w / RMS,
where 0 stays 0. All are taken within one matrix, as the near-zero threshold is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from essential_sparsity.analysis.metrics import Floats
from essential_sparsity.runs import DISTRIBUTION_BINS, DISTRIBUTION_WIDTH

SCALINGS = ("rms", "standard", "min-max")
GAUSSIAN_NEAR_ZERO = 0.0398776
"""Share of a Gaussian's weights below 0.05 RMS."""


@dataclass(frozen=True, eq=False)
class WeightDistribution:
    """The table of distribution.parquet: one line per layer and kind, and its histogram [lines, bins]."""

    name: str
    lines: pd.DataFrame  # layer, kind, num, mean, std, rms, least, largest, num_zeros, num_near
    counts: np.ndarray

    @classmethod
    def from_table(cls, table: pa.Table, *, name: str) -> "WeightDistribution":
        """Make one of what runs.py read."""
        lines = table.drop_columns(["counts"]).to_pandas()
        return cls(name, lines, np.array(table["counts"].to_pylist(), np.int64))

    @property
    def layers(self) -> list[int]:
        """Layers, ascending."""
        return sorted(self.lines["layer"].unique().tolist())

    @property
    def kinds(self) -> list[str]:
        """Kinds of matrix, in the model's order."""
        return list(dict.fromkeys(self.lines["kind"]))

    def density(self, scaling: str, *, layer: int, kind: str, merge: int = 1) -> tuple[Floats, Floats]:
        """Bin edges in scaled units, [B + 1], and density in them, [B]; `merge` joins so many bins to one.

        Weights beyond 8 RMS are counted in the denominator and drawn nowhere. Raises ValueError for an unknown scaling
        or a matrix that the model does not have.
        """
        place = np.flatnonzero((self.lines["layer"] == layer) & (self.lines["kind"] == kind))
        if not len(place):
            raise ValueError(f"{self.name} has no {kind!r} in layer {layer}: choose of {', '.join(self.kinds)}")
        line, counts = self.lines.iloc[place[0]], self.counts[place[0]][1:-1]
        limit = DISTRIBUTION_BINS // 2 * DISTRIBUTION_WIDTH
        edges = np.linspace(-limit, limit, DISTRIBUTION_BINS + 1)[::merge]
        shift, width = self._affine(scaling, line)
        scaled = (edges * line["rms"] - shift) / width
        return scaled, counts.reshape(-1, merge).sum(1) / line["num"] / np.diff(scaled)

    def zero(self, scaling: str, *, layer: int, kind: str) -> float:
        """Where weight 0 lies in scaled units: 0 by RMS, near 0 by standard, somewhere in (0, 1) by min-max."""
        line = self.lines[(self.lines["layer"] == layer) & (self.lines["kind"] == kind)].iloc[0]
        shift, width = self._affine(scaling, line)
        return -shift / width

    @staticmethod
    def _affine(scaling: str, line: pd.Series) -> tuple[float, float]:
        if scaling not in SCALINGS:
            raise ValueError(f"scaling={scaling!r} is none: choose one of {', '.join(SCALINGS)}")
        shift, width = {
            "rms": (0.0, line["rms"]),
            "standard": (line["mean"], line["std"]),
            "min-max": (line["least"], line["largest"] - line["least"]),
        }[scaling]
        return float(shift), float(width) or 1.0

    def shares(self, *by: str) -> pd.Series:
        """Share of weights below 0.05 RMS of their matrix, by layer, kind or both."""
        summed: dict[Any, Any] = {}
        for column in ("num_near", "num"):
            summed[column] = self.lines.groupby(list(by), sort=False)[column].sum()
        return pd.Series(summed["num_near"] / summed["num"])

    @property
    def share(self) -> float:
        """Share of all weights below 0.05 RMS of their matrix."""
        near, num = (self.lines[column].to_numpy(float).sum() for column in ("num_near", "num"))
        return float(near / num)


def distribution_table(found: Sequence[WeightDistribution]) -> pd.DataFrame:
    """The table of distribution.csv: per model, layer and kind the moments, the shares, where zero lies by min-max."""
    tables = []
    for each in found:
        table = each.lines.copy()
        table.insert(0, "model", each.name)
        table["near_zero"] = table["num_near"] / table["num"]
        table["exact_zero"] = table["num_zeros"] / table["num"]
        table["zero_by_min_max"] = -table["least"] / (table["largest"] - table["least"])
        tables.append(table.drop(columns=["num_near", "num_zeros"]))
    return pd.concat(tables, ignore_index=True)
