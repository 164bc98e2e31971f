"""Pruner = score × allocation × pattern: rank the weights once, cut at any sparsity."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from torch import Tensor, nn

from essential_sparsity.pruning.allocations import Allocation, Global, exact_sparsity
from essential_sparsity.pruning.architecture import Architecture, architecture_of, natural_order, prunable_weights
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.patterns import Pattern, Unstructured
from essential_sparsity.pruning.scores import Magnitude, Score
from essential_sparsity.pruning.thresholds import Competitors

Batch = dict[str, Tensor]


class Calibration(Protocol):
    """Where a calibrated pruner's batches come from: a source of the data layer."""

    def check(self) -> None:
        """Raise ValueError where the source is missing or too small, before a model is loaded."""
        ...

    def inputs(self) -> dict[str, str]:
        """Give the hashes of what is read."""
        ...

    def batches(self, preprocessing: Any, data: Any) -> list[Batch]:
        """Give the batches, in a fixed order."""
        ...

    def describe(self) -> str:
        """Name source, rows, length and seed in one line."""
        ...


@dataclass(frozen=True, eq=False)
class Pruned:
    """What choosing gives: masks, corrected weights by canonical name with zeros in place (None: as they were), notes.

    `notes` are for metrics.json, such as `{"num_damped": 0, "num_calibration_rows": 128}`.
    """

    masks: Masks
    weights: Mapping[str, Tensor] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruner:
    """Which weights go: `Pruner()` is one-shot magnitude pruning, Magnitude × Global × Unstructured."""

    score: Score = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Global)
    pattern: Pattern = field(default_factory=Unstructured)
    calibration: Calibration | None = None

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        *,
        sparsity: object = None,
        statistics: Mapping[str, Tensor] | None = None,
        architecture: Architecture | None = None,
    ) -> Masks:
        """Choose the masks for one sparsity: `rank(weights).masks(sparsity)`."""
        wanted = self.resolve(sparsity)
        return self.rank(weights, statistics=statistics, architecture=architecture).masks(wanted)

    def rank(
        self,
        weights: Mapping[str, Tensor],
        *,
        statistics: Mapping[str, Tensor] | None = None,
        architecture: Architecture | None = None,
    ) -> "Ranking":
        """Count the scores of weights by canonical name, once; raises ValueError naming one that cannot be ranked.

        `statistics` are a calibrated score's: one value per input of each weight, by canonical name. `architecture`
        tells layouts (fused, transposed); without it the canonical names do, and matrices of no known family are
        [out, in].
        """
        return Ranking(self, weights, statistics=statistics, architecture=architecture)

    def prune(
        self,
        model: nn.Module,
        *,
        sparsity: object = None,
        architecture: Architecture | None = None,
        batches: Sequence[Batch] | None = None,
        forward: Callable[[Batch], Any] | None = None,
    ) -> Pruned:
        """Choose the masks of a model (or of a module that wraps it), without changing it.

        A calibrated score walks the model over `batches` by `forward` (default: `model(**batch)`); no other looks at
        them. Raises ValueError where it gets none.
        """
        wanted = self.resolve(sparsity)
        if not self.score.needs_statistics:
            weights = prunable_weights(model, architecture)
            return Pruned(self(weights, sparsity=wanted, architecture=architecture))
        if not batches:
            raise ValueError(f"pruner {self.score.describe()} has no calibration rows: {CALIBRATE}")
        from essential_sparsity.pruning.calibration import prune_calibrated

        return prune_calibrated(
            self, model, sparsity=wanted, architecture=architecture, batches=batches, forward=forward
        )

    def resolve(self, sparsity: object) -> Fraction | None:
        """Give the exact sparsity that is meant, or raise ValueError where it is none or contradicts the pattern.

        None: what is implied cannot be told without the weights.
        """
        return self.pattern.resolve(exact_sparsity(sparsity))

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        parts = {"score": self.score, "allocation": self.allocation, "pattern": self.pattern}
        return {part: value.describe() for part, value in parts.items()}


CALIBRATE = "give a source of calibration text or rows (pruner.calibration=…), or batches to prune()"


def layout_of(names: Iterable[str], architecture: Architecture | None) -> Architecture | None:
    """Give the architecture, recognised by canonical names where it is not given; None where no family has them."""
    if architecture is not None:
        return architecture
    try:
        return architecture_of(names)
    except ValueError:
        return None


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
        self._weights = weights
        self._shapes = {name: tuple(weights[name].shape) for name in sorted(weights, key=natural_order)}
        layout = layout_of(self._shapes, architecture)
        score = pruner.score.bind(statistics or {}, self._shapes, layout.input_axis if layout else 1)
        self._score = score
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
                value = self._score.value(cut.code, self._form) if cut.code <= 0x7FFFFFFF else math.inf
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
        levels = [self.pruner.resolve(sparsity) or Fraction(0) for sparsity in sparsities]
        versions = self._read_versions()
        if self._score.reads_weights and versions != self._versions:
            for competitors in self._groups:
                competitors.recount()
            self._versions = versions
        return levels

    def _read_versions(self) -> list[object]:
        """Read how often each weight was changed in place; inference tensors do not tell, so they never look equal."""
        tensors = (self._weights[name] for name in self._shapes)
        return [object() if tensor.is_inference() else tensor._version for tensor in tensors]
