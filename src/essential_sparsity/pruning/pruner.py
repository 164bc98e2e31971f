"""Pruner = score × allocation × pattern: rank the weights once, cut at any sparsity."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor, nn

from essential_sparsity.pruning.allocations import Allocation, Global, exact_sparsity
from essential_sparsity.pruning.architecture import Architecture, natural_order, prunable_weights
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.patterns import Pattern, Unstructured
from essential_sparsity.pruning.scores import Magnitude, Score
from essential_sparsity.pruning.thresholds import Competitors


@dataclass(frozen=True)
class Pruner:
    """Which weights go: `Pruner()` is one-shot magnitude pruning, Magnitude × Global × Unstructured."""

    score: Score = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Global)
    pattern: Pattern = field(default_factory=Unstructured)

    def __call__(self, weights: Mapping[str, Tensor], *, sparsity: object = None) -> Masks:
        """Choose the masks for one sparsity: `rank(weights).masks(sparsity)`."""
        wanted = self.resolve(sparsity)
        return self.rank(weights).masks(wanted)

    def rank(self, weights: Mapping[str, Tensor]) -> "Ranking":
        """Count the scores of weights by canonical name, once; raises ValueError naming one that cannot be ranked."""
        return Ranking(self, weights)

    def resolve(self, sparsity: object) -> Fraction:
        """Give the exact sparsity that is meant, or raise ValueError where it is none or contradicts the pattern."""
        return self.pattern.resolve(exact_sparsity(sparsity))

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        parts = {"score": self.score, "allocation": self.allocation, "pattern": self.pattern}
        return {part: value.describe() for part, value in parts.items()}


class Ranking:
    """Weights ranked once: masks of rising sparsity are nested, and each costs one pass over the weights."""

    def __init__(self, pruner: Pruner, weights: Mapping[str, Tensor]) -> None:
        if not weights:
            raise ValueError("weights={} names no weight to rank: give prunable_weights(model)")
        self.pruner = pruner
        self._weights = weights
        self._shapes = {name: tuple(weights[name].shape) for name in sorted(weights, key=natural_order)}
        score = pruner.score
        self._form = score.form(weights)
        sizes = {name: weights[name].numel() for name in self._shapes}
        groups = pruner.allocation.groups(list(self._shapes))
        self._groups = [Competitors(weights, {n: sizes[n] for n in group}, score, self._form) for group in groups]
        self._versions = self._read_versions()

    def masks(self, sparsity: object) -> Masks:
        """Cut at one sparsity: num_pruned = floor(s N + 1/2), exact to the weight (per tensor for Uniform)."""
        return self.masks_at([sparsity])[0]

    def masks_at(self, sparsities: Iterable[object]) -> list[Masks]:
        """Cut at many sparsities in one pass over the weights; the same masks as one by one."""
        levels = self._resolve(sparsities)
        bits: list[dict] = [{} for _ in levels]
        num_ties = [0] * len(levels)
        for competitors, counts in zip(self._groups, self._nums_pruned(levels)):
            for found, collected in zip(self.pruner.pattern.keep(competitors, counts), bits):
                collected.update(found)
            for index, cut in enumerate(competitors.cut(counts)):
                num_ties[index] += cut.num_ties if cut.splits_ties else 0
        return [
            Masks({n: b[n] for n in self._shapes}, self._shapes, **self.pruner.describe(), requested=s, num_ties=t)
            for b, s, t in zip(bits, levels, num_ties)
        ]

    def thresholds(self, sparsities: Iterable[object]) -> list[dict[str, float]]:
        """Give, per sparsity, the smallest kept score by weight (one for all under Global) without building masks."""
        levels = self._resolve(sparsities)
        found: list[dict[str, float]] = [{} for _ in levels]
        for competitors, counts in zip(self._groups, self._nums_pruned(levels)):
            for values, cut in zip(found, competitors.cut(counts)):
                value = self.pruner.score.value(cut.code, self._form) if cut.code <= 0x7FFFFFFF else math.inf
                values.update(dict.fromkeys(competitors.sizes, value))
        return [{name: values[name] for name in self._shapes} for values in found]

    def num_ties(self, sparsity: object) -> int:
        """Count the weights that share the score of a cut which keeps only some of them."""
        counts = self._nums_pruned(self._resolve([sparsity]))
        cuts = [competitors.cut(k)[0] for competitors, k in zip(self._groups, counts)]
        return sum(cut.num_ties for cut in cuts if cut.splits_ties)

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

    def _nums_pruned(self, levels: list[Fraction]) -> list[list[int]]:
        """Give how many weights each group loses at each level: [group][level]."""
        sizes = [competitors.total for competitors in self._groups]
        by_level = [self.pruner.allocation.num_pruned(level, sizes) for level in levels]
        return [[counts[group] for counts in by_level] for group in range(len(sizes))]

    def _resolve(self, sparsities: Iterable[object]) -> list[Fraction]:
        """Give the exact sparsities, and count again where the ranked weights were zeroed in the meantime."""
        levels = [self.pruner.resolve(sparsity) for sparsity in sparsities]
        versions = self._read_versions()
        if self.pruner.score.reads_weights and versions != self._versions:
            for competitors in self._groups:
                competitors.recount()
            self._versions = versions
        return levels

    def _read_versions(self) -> list[object]:
        """Read how often each weight was changed in place; inference tensors do not tell, so they never look equal."""
        tensors = (self._weights[name] for name in self._shapes)
        return [object() if tensor.is_inference() else tensor._version for tensor in tensors]
