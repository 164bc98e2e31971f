"""Ranking: weights scored once, cut at any sparsity, by thresholds or run by run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from essential_sparsity.pruning.architecture import Architecture, architecture_of, natural_order, prunable_weights
from essential_sparsity.pruning.cutting import keep_above_cuts
from essential_sparsity.pruning.explicit import Parts
from essential_sparsity.pruning.formula import Formula
from essential_sparsity.pruning.histogram import BINS
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.rows import RunCutter
from essential_sparsity.pruning.shards import Shards, SharedCompetitors
from essential_sparsity.pruning.thresholds import Competitors, Cut

if TYPE_CHECKING:
    from essential_sparsity.pruning.pruner import Pruner

CALIBRATE = "give a source of calibration text or rows (pruner.calibration=…), or batches to prune()"

Level = Fraction | None
"""An exact sparsity; None where explicit shares take its place."""


class Ranking:
    """Weights ranked once: masks of rising sparsity are nested, and each costs one pass over the weights."""

    def __init__(
        self,
        pruner: Pruner,
        weights: Mapping[str, Tensor],
        *,
        statistics: Mapping[str, Tensor] | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        if not weights:
            raise ValueError("weights={} names no weight to rank: give prunable_weights(model)")
        if pruner.score.needs_statistics and not statistics:
            raise ValueError(f"score {pruner.score.describe()} has no statistics: {CALIBRATE}")
        self.pruner = pruner
        self._shapes = {name: tuple(weights[name].shape) for name in sorted(weights, key=natural_order)}
        layout = layout_of(self._shapes, architecture)
        split = pruner.allocation.splits(list(self._shapes), layout)
        self._shards = Shards.of(weights)
        if self._shards is not None:
            if split or pruner.score.needs_statistics or isinstance(pruner.score, Formula):
                raise self._shards.refuse(" × ".join(pruner.describe().values()))
            weights = self._shards.local
        weights = pruner.score.of(weights) if isinstance(pruner.score, Formula) else weights
        self._weights = weights
        self._parts = Parts(weights, list(self._shapes), split, layout) if layout and split else None
        ranked = self._parts or weights
        shapes = {key: tuple(ranked[key].shape) for key in self._parts} if self._parts else self._shapes
        known = self._parts.shared(statistics or {}) if self._parts else statistics or {}
        score = pruner.score.bind(known, shapes, layout.input_axis if layout else 1)
        self._score = score if self._shards is None else self._shards.score(score)
        self._form = self._score.form(weights)
        self._layout, self._ranked_shapes = layout, shapes
        self._groups: list[Competitors] = []
        self._runs: RunCutter | None = None
        self._rank(ranked)
        self._versions = self._read_versions()

    def _rank(self, weights: Mapping[str, Tensor]) -> None:
        """Count groups, or look at runs; an N:M pattern has one mask, which is cut at once."""
        shapes, pruner = self._ranked_shapes if self._shards is None else self._shards.local_shapes, self.pruner
        implied = pruner.pattern.runs(shapes, self._layout)
        runs = implied or pruner.allocation.runs(shapes, self._layout)
        if runs is None:
            self._groups = [self._competitors(weights, group) for group in pruner.allocation.groups(list(shapes))]
        else:
            if self._shards is not None and any(run.inner > 1 for run in runs.values()):
                raise self._shards.refuse(" × ".join(pruner.describe().values()))
            self._runs = RunCutter(weights, runs, self._score, self._form)
            self._runs.start(pruner.pattern.resolve(None) if implied else None)

    def _competitors(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> Competitors:
        """Count weights that are ranked together, over all ranks that hold a part of them."""
        if self._shards is not None:
            return SharedCompetitors(self._shards, names, self._score, self._form)
        sizes = {name: math.prod(self._ranked_shapes[name]) for name in names}
        return Competitors(weights, sizes, self._score, self._form)

    def masks(self, sparsity: object) -> Masks:
        """Cut at one sparsity: num_pruned = floor(s N + 1/2), exact to the weight (in each tensor, or row, alike)."""
        return self.masks_at([sparsity])[0]

    def masks_at(self, sparsities: Iterable[object]) -> list[Masks]:
        """Cut at many sparsities in one pass over the weights; the same masks as one by one."""
        levels = self._resolve(sparsities)
        found = self._cut_runs(levels) if self._runs else self._cut_groups(levels)
        names = self.pruner.describe()
        if self._shards is not None:
            found = [(self._shards.whole(bits), ties) for bits, ties in found]
        return [
            Masks({n: bits[n] for n in self._shapes}, self._shapes, **names, requested=level, num_ties=ties)
            for level, (bits, ties) in zip(levels, found)
        ]

    def thresholds(self, sparsities: Iterable[object]) -> list[dict[str, float]]:
        """Give, per sparsity, the smallest kept score by weight, or part (one for all under Global)."""
        levels = self._resolve(sparsities)
        if self._runs:
            if self._shards is not None:
                raise self._shards.refuse("a threshold by rows")
            return [self._runs.smallest_kept(bits) for bits, _ in self._cut_runs(levels)]
        found: list[dict[str, float]] = [{} for _ in levels]
        for competitors, counts in zip(self._groups, self._nums_pruned(levels)):
            for values, cut in zip(found, competitors.cut(counts)):
                beyond = 2**31 if competitors.is_wide else BINS  # the code of a cut that keeps nothing
                value = self._score.value(cut.code, self._form) if cut.code < beyond else math.inf
                values.update(dict.fromkeys(competitors.sizes, value))
        return [{name: values[name] for name in self._ranked_shapes} for values in found]

    def cuts(self, sparsity: object) -> Iterator[tuple[Competitors, Cut]]:
        """Give each group of weights that are ranked together with its cut; raises ValueError where runs are cut."""
        if self._runs:
            names = self.pruner.describe()
            raise ValueError(f"{names['allocation']} × {names['pattern']} cuts run by run: there is no one threshold")
        for competitors, counts in zip(self._groups, self._nums_pruned(self._resolve([sparsity]))):
            yield competitors, competitors.cut(counts)[0]

    def num_ties(self, sparsity: object) -> int:
        """Count the weights that share the score of a cut which keeps only some of them."""
        if self._runs:
            return self._cut_runs(self._resolve([sparsity]))[0][1]
        return sum(cut.num_ties for _, cut in self.cuts(sparsity) if cut.splits_ties)

    def apply_(
        self, model: nn.Module | Mapping[str, Tensor], sparsity: object, *, architecture: Architecture | None = None
    ) -> Masks:
        """Zero a model's pruned weights in place and give the masks; rising sparsities walk a curve in one copy.

        The model may hold the very weights that were ranked: zeros stay the smallest, so later masks are the same.
        """
        masks = self.masks(sparsity)
        named = prunable_weights(model, architecture) if isinstance(model, nn.Module) else model
        masks.apply_(named)
        return masks

    def _cut_groups(self, levels: list[Level]) -> list[tuple[dict[str, np.ndarray], int]]:
        """Cut each group at its thresholds: bit-packed masks by weight, and split ties, per level."""
        bits: list[dict[str, np.ndarray]] = [{} for _ in levels]
        ties = [0] * len(levels)
        for competitors, counts in zip(self._groups, self._nums_pruned(levels)):
            for found, collected in zip(keep_above_cuts(competitors, counts), bits):
                collected.update(found)
            for index, cut in enumerate(competitors.cut(counts)):
                ties[index] += cut.num_ties if cut.splits_ties else 0
        return [(self._parts.join(found) if self._parts else found, tied) for found, tied in zip(bits, ties)]

    def _cut_runs(self, levels: list[Level]) -> list[tuple[dict[str, np.ndarray], int]]:
        assert self._runs is not None
        found = self._runs.cut([level or Fraction(0) for level in levels])
        if self._shards is None:
            return found
        ties = self._shards.added(np.array([tied for _, tied in found]))
        return [(bits, int(tied)) for (bits, _), tied in zip(found, ties)]

    def _nums_pruned(self, levels: list[Level]) -> list[list[int]]:
        """Give how many weights each group loses at each level: [group][level]."""
        count = self.pruner.allocation.nums_pruned
        by_level = [count(level, self._ranked_shapes, self._layout) for level in levels]
        return [[counts[group] for counts in by_level] for group in range(len(self._groups))]

    def _resolve(self, sparsities: Iterable[object]) -> list[Level]:
        """Give the exact sparsities, and count again where the ranked weights were zeroed in the meantime."""
        levels = [self.pruner.resolve(sparsity) for sparsity in sparsities]
        versions = self._read_versions()
        if self._score.reads_weights and versions != self._versions:
            for competitors in (self._runs,) if self._runs else self._groups:
                competitors.recount()
            self._versions = versions
        return levels

    def _read_versions(self) -> list[object]:
        """Read how often each weight was changed in place; inference tensors do not tell, so they never look equal."""
        tensors = (self._weights[name] for name in self._shapes)
        return [object() if tensor.is_inference() else tensor._version for tensor in tensors]


def layout_of(names: Iterable[str], architecture: Architecture | None) -> Architecture | None:
    """Give the architecture, recognised by canonical names where it is not given; None where no family has them."""
    if architecture is not None:
        return architecture
    try:
        return architecture_of(names)
    except ValueError:
        return None
