"""Pruner = score × allocation × pattern: rank the weights once, cut at any sparsity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from torch import Tensor, nn

from essential_sparsity.pruning.allocations import Allocation, Global, PerRow, Uniform, exact_sparsity
from essential_sparsity.pruning.architecture import Architecture, prunable_weights
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.patterns import Pattern, Unstructured
from essential_sparsity.pruning.ranking import CALIBRATE, Ranking
from essential_sparsity.pruning.scores import ActivationNorm, Magnitude, Score

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
    """Which weights go: `Pruner()` is one-shot magnitude pruning, Magnitude × Global × Unstructured.

    A pattern may be given as "2:4" or {keep: 2, of: 4}. An N:M pattern says itself how many weights of each run go, so
    that the allocation plays no part.
    """

    score: Score = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Global)
    pattern: Pattern = field(default_factory=Unstructured)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Read the pattern; raises ValueError for one that is none, and for parts that contradict one another."""
        object.__setattr__(self, "pattern", Pattern.read(self.pattern))
        if self.allocation.implies and not isinstance(self.pattern, Unstructured):
            raise ValueError(
                f"pattern {self.pattern.describe()} leaves nothing for {self.allocation.describe()} to say: "
                "give pruner/allocation=global or pruner/pattern=unstructured"
            )
        walks = isinstance(self.score, ActivationNorm) and self.score.inputs == "pruned"
        local = isinstance(self.allocation, (PerRow, Uniform)) or not isinstance(self.pattern, Unstructured)
        if walks and not local:
            raise ValueError(
                f"allocation {self.allocation.describe()} compares weights of all blocks, but score.inputs=pruned goes "
                "block by block: give pruner.score.inputs=dense, or pruner/allocation=per_row"
            )

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
    ) -> Ranking:
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
        if not batches and wanted != 0:
            raise ValueError(f"pruner {self.score.describe()} has no calibration rows: {CALIBRATE}")
        from essential_sparsity.pruning.wanda import prune_by_norms

        return prune_by_norms(self, model, sparsity=wanted, architecture=architecture, batches=batches, forward=forward)

    def resolve(self, sparsity: object) -> Fraction | None:
        """Give the exact sparsity that is meant, or raise ValueError where it is none or contradicts the pattern.

        None: explicit sparsities imply one, which cannot be told without the weights.
        """
        wanted = exact_sparsity(sparsity)
        if not self.allocation.implies:
            return self.pattern.resolve(wanted)
        if wanted:
            raise ValueError(
                f"sparsity={sparsity} contradicts a pruner with explicit sparsities: "
                "give sparsity=null, or 0.0 for dense"
            )
        return wanted

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        alone = isinstance(self.pattern, Unstructured)
        return {
            "score": self.score.describe(),
            "allocation": self.allocation.describe() if alone else "by the pattern alone",
            "pattern": self.pattern.describe(),
        }
