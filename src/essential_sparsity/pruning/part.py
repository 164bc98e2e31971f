"""One part of a model pruned alone: a layer, a kind of matrix, or what a pattern names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from essential_sparsity.pruning.allocations import Allocation, Shape
from essential_sparsity.pruning.architecture import Architecture
from essential_sparsity.pruning.explicit import Explicit


@dataclass(frozen=True)
class Part(Allocation):
    """The weights that `of` names lose `share` of each matrix; the rest of the model stays dense.

    `of` is `layer:3`, a kind (`kind:query`, also inside a fused matrix) or a name with wildcards. Sparsity follows:
    `share` times the part's own share of the prunable weights.
    """

    of: str
    share: object
    implies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the share; raises ValueError."""
        _ = self.explicit

    @property
    def explicit(self) -> Explicit:
        """The same as explicit shares."""
        return Explicit({self.of: self.share})

    def splits(self, names: Sequence[str], architecture: Architecture | None) -> frozenset[str]:
        """Name the fused weights of which `of` names a part."""
        return self.explicit.splits(names, architecture)

    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Prune the part's share; raises ValueError where `of` names no prunable weight."""
        return self.explicit.nums_pruned(sparsity, shapes, architecture)

    def describe(self) -> str:
        """Name the part and its share."""
        return f"{self.of} alone, {self.share} of each matrix"
