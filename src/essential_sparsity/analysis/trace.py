"""SparsityTrace: how many weights are near zero at every step, whatever near means: asked after the training.

Shapes: S steps, W weights; a group is one weight at one step, G = S · W groups in the order of steps, then weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from essential_sparsity.analysis.metrics import Floats
from essential_sparsity.traces import read_trace

RELATIVE = 0.05
"""Near zero: below this multiple of the RMS (or of σ at initialisation); a Gaussian has 3.99 % of its weights there."""

BINS = 2**14
EDGES = (np.arange(0x3FC1, dtype=np.uint32) << 17).view(np.float32).astype(np.float64)
"""Smallest magnitude of every finite trace bin, and infinity."""

MIDDLES = (EDGES[:-1] + np.append(EDGES[1:-1], EDGES[-2])) / 2

GROUPINGS = ("total", "layer", "kind", "weight")
PROGRESS = ("loss", "lr", "lr_sum", "decay_factor", "tokens", "seconds")


@dataclass(frozen=True, eq=False)
class SparsityTrace:
    """Magnitude histograms and moments of every prunable weight against the training step.

    `moments` has one line per group; `bins` and `counts` hold the groups' occupied bins one after another, and group g
    has those from `starts[g]` to `starts[g + 1]`.
    """

    moments: pd.DataFrame
    bins: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    name: str = ""

    @classmethod
    def read(cls, run: Path | str) -> "SparsityTrace":
        """Read the trace of a run folder, finished or not, or of a checkpoint series.

        Raises FileNotFoundError where nothing was recorded, ValueError where a record lacks a weight.
        """
        histograms, moments = read_trace(run)
        return cls.from_tables(histograms, moments, name=Path(run).name)

    @classmethod
    def from_tables(cls, histograms: pa.Table, moments: pa.Table, *, name: str = "") -> "SparsityTrace":
        """Make a trace of the tables of trace.parquet and moments.parquet."""
        lines = moments.to_pandas()
        lines[["weight", "kind"]] = lines[["weight", "kind"]].astype(str)
        names = list(dict.fromkeys(lines["weight"]))
        steps = np.unique(lines["step"])
        lines["place"] = lines["weight"].map({weight: place for place, weight in enumerate(names)})
        lines = lines.sort_values(["step", "place"], ignore_index=True).drop(columns="place")
        if (lacking := lines.groupby("step").size()).nunique() > 1 or len(lines) != len(steps) * len(names):
            raise ValueError(
                f"the record of step {lacking.idxmin()} has {lacking.min()} weights, others {lacking.max()}: "
                "record one model only"
            )
        weight = histograms.unify_dictionaries()["weight"].combine_chunks()
        own = pd.Index(names).get_indexer(pd.Index(weight.dictionary.to_pylist()))[weight.indices.to_numpy()]
        group = np.searchsorted(steps, histograms["step"].to_numpy()) * len(names) + own
        bins, counts = (histograms[column].to_numpy() for column in ("bin", "count"))
        order = np.lexsort((bins, group))
        starts = np.searchsorted(group[order], np.arange(len(lines) + 1))
        return cls(lines, bins[order].astype(np.int64), counts[order].astype(np.int64), starts, name)

    @classmethod
    def from_histograms(
        cls, histograms: Mapping[int, Mapping[str, Any]], *, name: str = "", **progress: Mapping[int, float]
    ) -> "SparsityTrace":
        """Make a trace of step → weight → MagnitudeHistogram (of fp32 or bf16), for a look at any few checkpoints.

        `progress` may give lr_sum, decay_factor, tokens, … by step. Moments come from the middles of the bins (0.4 %),
        Σw is unknown. Layers and kinds are not known: group by total or weight.
        """
        lines, table = [], []
        for step, weights in sorted(histograms.items()):
            for weight, histogram in weights.items():
                if histogram.kind != "bfloat16":
                    raise ValueError(f"weight {weight!r} was counted as {histogram.kind}: count it in float32")
                counts = np.asarray(histogram.counts).reshape(BINS, 2).sum(axis=1)
                occupied = np.flatnonzero(counts)
                table += [(step, weight, b, counts[b]) for b in occupied]
                told = {key: values.get(step, np.nan) for key, values in progress.items()}
                lines.append({"step": step, "weight": weight, "layer": -1, "kind": "", "num": int(counts.sum()),
                              "num_zeros": int(counts[0]), "sum": np.nan,
                              "sum_squares": float(counts[occupied] @ MIDDLES[occupied] ** 2),
                              "sum_fourths": float(counts[occupied] @ MIDDLES[occupied] ** 4),
                              "largest": float(EDGES[occupied[-1] + 1]) if len(occupied) else 0.0,
                              **dict.fromkeys(PROGRESS, np.nan), "decay_factor": 1.0, **told})  # fmt: skip
        steps, weights, bins, counts = zip(*table, strict=True)
        names = pa.array(weights).dictionary_encode()
        columns = {"step": pa.array(steps), "weight": names, "bin": pa.array(bins), "count": pa.array(counts)}
        return cls.from_tables(pa.table(columns), pa.Table.from_pylist(lines), name=name)

    # --- what was recorded ---

    @property
    def steps(self) -> np.ndarray:
        """Recorded steps, ascending [S]."""
        return self.moments["step"].to_numpy()[:: len(self.weights)]

    @cached_property
    def weights(self) -> list[str]:
        """Names of the weights, in the fixed order."""
        return list(dict.fromkeys(self.moments["weight"]))

    @cached_property
    def progress(self) -> pd.DataFrame:
        """Per step: loss, lr, lr_sum, decay_factor (means over the weights, by their size), tokens, seconds."""
        num = self._grid("num")
        means = {name: (self._grid(name) * num).sum(1) / num.sum(1) for name in PROGRESS}
        return pd.DataFrame(means, index=pd.Index(self.steps, name="step"))

    # --- near zero ---

    def thresholds(self, zero: str | float = "relative", *, multiple: float = RELATIVE) -> Floats:
        """Magnitude below which a weight counts as zero, [S, W].

        relative: `multiple` × RMS of the tensor at that step; absolute: `multiple` × its RMS at the first record (σ at
        initialisation); exact: nothing but 0.0; a number: itself.
        """
        rms = np.sqrt(self._grid("sum_squares") / self._grid("num"))
        if isinstance(zero, str):
            if zero not in (kinds := ("relative", "absolute", "exact")):
                raise ValueError(f"zero={zero!r} is no definition of zero: choose {', '.join(kinds)} or a number")
            if not 0 <= multiple < np.inf:
                raise ValueError(f"multiple={multiple} lies outside [0, inf): give a multiple of the RMS such as 0.05")
            return {"relative": multiple * rms, "absolute": np.broadcast_to(multiple * rms[:1], rms.shape),
                    "exact": np.zeros_like(rms)}[zero]  # fmt: skip
        if not 0 <= zero < np.inf:
            raise ValueError(f"zero={zero} lies outside [0, inf): give a magnitude")
        return np.full(rms.shape, float(zero))

    def counts_below(self, zero: str | float = "relative", *, multiple: float = RELATIVE) -> dict[str, Floats]:
        """How many weights count as zero, each [S, W]: `at_least` and `at_most`, and `count` interpolated between.

        All three are equal where the threshold is a bin's edge; exact zeros are counted as such.
        """
        if zero == "exact":
            return dict.fromkeys(("at_least", "count", "at_most"), self._grid("num_zeros"))
        return self._below(self.thresholds(zero, multiple=multiple), np.arange(len(self.moments)))

    def table(self, zero: str | float = "relative", *, multiple: float = RELATIVE, by: str = "total") -> pd.DataFrame:
        """One line per step and group of weights: step, group, num, at_least, count, at_most, share."""
        found = self.counts_below(zero, multiple=multiple)
        parts = [self._added(values, by).stack() for values in (self._grid("num"), *found.values())]
        lines = pd.concat(parts, axis=1, keys=["num", *found]).rename_axis(["step", "group"]).reset_index()
        return lines.assign(share=lines["count"] / lines["num"])

    def share(self, zero: str | float = "relative", *, multiple: float = RELATIVE, by: str = "total") -> pd.DataFrame:
        """Share of weights that count as zero: a line per step, a column per total, layer, kind or weight (`by`)."""
        count = self.counts_below(zero, multiple=multiple)["count"]
        return self._added(count, by) / self._added(self._grid("num"), by)

    def decay_only(
        self, zero: str | float = "absolute", *, multiple: float = RELATIVE, by: str = "total"
    ) -> pd.DataFrame:
        """The counterfactual of `share`: what decoupled weight decay alone would have made of the first record.

        Its weights are scaled by what the decay factor has become since: the relative share stays as it was. NaN where
        no decay factor was recorded.
        """
        factor = self._grid("decay_factor") / self._grid("decay_factor")[:1]
        limits = self.thresholds(zero, multiple=multiple)
        limits = limits[:1] + 0 * factor if zero == "relative" else limits / factor
        first = np.tile(np.arange(len(self.weights)), len(self.steps))
        count = self._below(limits, first)["count"]
        if zero == "exact":
            count = np.broadcast_to(self._grid("num_zeros")[:1], count.shape)
        return self._added(count, by) / self._added(self._grid("num"), by)

    # --- scale-free shape ---

    def kurtosis(self, by: str = "total") -> pd.DataFrame:
        """Fourth moment about 0 over the squared second, n Σw⁴ / (Σw²)²: 3 for a Gaussian, more with heavier tails."""
        num, squares, fourths = (self._added(self._grid(c), by) for c in ("num", "sum_squares", "sum_fourths"))
        return num * fourths / squares**2

    def gini(self, by: str = "total") -> pd.DataFrame:
        """Gini coefficient of |w|: 0 all equal, 1 all but one zero, √2 − 1 for a Gaussian; bins by their middles."""
        labels = self._labels(by)
        columns = {}
        for label in dict.fromkeys(labels):
            dense = self._dense(labels == label)
            mass = dense * np.append(MIDDLES, np.zeros(BINS - len(MIDDLES)))
            rank = np.cumsum(dense, axis=1) - dense / 2
            total = dense.sum(1) * mass.sum(1)
            columns[label] = 2 * (rank * mass).sum(1) / np.where(total > 0, total, np.nan) - 1
        return pd.DataFrame(columns, index=pd.Index(self.steps, name="step"))

    # --- details ---

    def _grid(self, column: str) -> Floats:
        """A column of the moments as [S, W]."""
        return self.moments[column].to_numpy(np.float64).reshape(-1, len(self.weights))

    def _labels(self, by: str) -> np.ndarray:
        """Which group each weight belongs to, [W]."""
        if by not in GROUPINGS:
            raise ValueError(f"by={by!r} is no way to group weights: choose one of {', '.join(GROUPINGS)}")
        if by == "total":
            return np.full(len(self.weights), "total", object)
        return self.moments[by].to_numpy()[: len(self.weights)]

    def _added(self, values: Floats, by: str) -> pd.DataFrame:
        """Add values [S, W] up over the weights of each group."""
        labels = self._labels(by)
        names = list(dict.fromkeys(labels))
        summed = np.stack([values[:, labels == name].sum(axis=1) for name in names], axis=1)
        return pd.DataFrame(summed, index=pd.Index(self.steps, name="step"), columns=pd.Index(names, name=by))

    @cached_property
    def _running(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def _keys(self) -> np.ndarray:
        """Group and bin of every count as one ascending number."""
        return np.repeat(np.arange(len(self.moments)), np.diff(self.starts)) * BINS + self.bins

    def _below(self, limits: Floats, groups: np.ndarray) -> dict[str, Floats]:
        """Count the weights of each group, [G], below its limit in `limits` [S, W]."""
        flat = np.clip(np.nan_to_num(limits.reshape(-1)), 0, EDGES[-2])
        place = np.searchsorted(EDGES, flat, side="right") - 1
        before, within = (self._running[np.searchsorted(self._keys, groups * BINS + place + extra)] for extra in (0, 1))
        before, within = before - self._running[self.starts[groups]], within - before
        part = (flat - EDGES[place]) / (EDGES[place + 1] - EDGES[place])
        counts = {"at_least": before, "count": before + part * within, "at_most": before + (part > 0) * within}
        shaped = {name: np.asarray(values, np.float64).reshape(limits.shape) for name, values in counts.items()}
        return {name: np.where(np.isnan(limits), np.nan, values) for name, values in shaped.items()}

    def _dense(self, chosen: np.ndarray) -> Floats:
        """Histograms of the chosen weights together, [S, BINS]."""
        group = np.repeat(np.arange(len(self.moments)), np.diff(self.starts))
        step, weight = np.divmod(group, len(self.weights))
        used = chosen[weight]
        size = len(self.steps) * BINS
        flat = np.bincount(step[used] * BINS + self.bins[used], weights=self.counts[used], minlength=size)
        return flat.astype(np.float64).reshape(-1, BINS)
