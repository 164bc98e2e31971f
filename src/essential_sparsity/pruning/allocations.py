"""Allocations: how the zeros of a sparsity are shared over tensors, counted exactly."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from essential_sparsity.pruning.architecture import Architecture
from essential_sparsity.pruning.rows import Runs
from essential_sparsity.pruning.sparsity import exact_sparsity, num_pruned

__all__ = ["Allocation", "ErdosRenyi", "Global", "PerRow", "Shape", "Uniform", "exact_sparsity", "num_pruned"]

Shape = tuple[int, ...]


class Allocation(ABC):
    """What a ranking asks of an allocation: which weights compete, and how many of each group go."""

    implies: ClassVar[bool] = False
    """True where the allocation itself says how many weights go: then no sparsity is given, and none is known."""

    def splits(self, names: Sequence[str], architecture: Architecture | None) -> frozenset[str]:
        """Name the fused weights whose kinds compete apart from one another."""
        return frozenset()

    def groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Split the weights' names, in the fixed order, into groups that are ranked together: each weight alone."""
        return [(name,) for name in names]

    def runs(self, shapes: Mapping[str, Shape], architecture: Architecture | None) -> dict[str, Runs] | None:
        """See the weights as rows that compete by themselves; None where groups are cut as a whole."""
        return None

    @abstractmethod
    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Give how many weights each group loses, by the shapes of all weights in the fixed order."""

    @abstractmethod
    def describe(self) -> str:
        """Name the allocation and its settings in one line."""


def given(sparsity: Fraction | None) -> Fraction:
    """Give a resolved sparsity where only Explicit leaves None."""
    return Fraction(0) if sparsity is None else sparsity


@dataclass(frozen=True)
class Global(Allocation):
    """All weights compete: one threshold for the model, num_pruned exact in total (the paper's allocation)."""

    def groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Put all weights in one group."""
        return [tuple(names)]

    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Prune the share of the whole."""
        return [num_pruned(given(sparsity), sum(map(math.prod, shapes.values())))]

    def describe(self) -> str:
        """Name the allocation."""
        return "global"


@dataclass(frozen=True)
class Uniform(Allocation):
    """Each tensor loses the same share of its own weights: one threshold per tensor, each count exact."""

    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Prune the same share of each tensor."""
        return [num_pruned(given(sparsity), math.prod(shape)) for shape in shapes.values()]

    def describe(self) -> str:
        """Name the allocation."""
        return "uniform"


@dataclass(frozen=True)
class PerRow(Allocation):
    """Each output loses the same share of its own inputs (Wanda's comparison group, arXiv 2306.11695), count exact."""

    def runs(self, shapes: Mapping[str, Shape], architecture: Architecture | None) -> dict[str, Runs]:
        """See each weight as one row of inputs per output."""
        axis = architecture.input_axis if architecture else 1
        return {name: Runs.along(shape, axis) for name, shape in shapes.items()}

    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Prune the same share of each row."""
        return [runs.num_pruned(given(sparsity)) for runs in self.runs(shapes, architecture).values()]

    def describe(self) -> str:
        """Name the allocation."""
        return "per row"


@dataclass(frozen=True)
class ErdosRenyi(Allocation):
    """Tensors keep shares proportional to (inputs + outputs) / (inputs · outputs), none above dense (ER; ERK).

    SET (Mocanu et al. 2018) for matrices; `kernel` takes the sum of all dimensions over their product, as RigL does
    for convolutions (arXiv 1911.11134, section 3), and is the same for matrices. What tensors that are capped at dense
    cannot take is shared among the others by the same rule: the kept shares are exact fractions that add up to
    (1 − s) N, and each tensor's count is rounded.
    """

    kernel: bool = False

    def densities(self, sparsity: Fraction, shapes: Mapping[str, Shape]) -> dict[str, Fraction]:
        """Give each tensor's share of kept weights, min(1, ε · raw), where ε makes them add up."""
        raw = {name: self._raw(name, shape) for name, shape in shapes.items()}
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        open_names = sorted(raw, key=lambda name: raw[name])  # the largest share last
        kept = (1 - sparsity) * sum(sizes.values())
        weighted = sum((raw[name] * sizes[name] for name in open_names), Fraction(0))
        while open_names and kept * raw[open_names[-1]] >= weighted:
            dense = open_names.pop()
            kept -= sizes[dense]
            weighted -= raw[dense] * sizes[dense]
        found = dict.fromkeys(shapes, Fraction(1))
        return found | {name: kept / weighted * raw[name] for name in open_names}

    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Round each tensor's share of zeros."""
        densities = self.densities(given(sparsity), shapes)
        return [num_pruned(1 - densities[name], math.prod(shape)) for name, shape in shapes.items()]

    def describe(self) -> str:
        """Name the allocation."""
        return "erdos-renyi-kernel" if self.kernel else "erdos-renyi"

    def _raw(self, name: str, shape: Shape) -> Fraction:
        if len(shape) < 2:
            raise ValueError(f"weight {name!r} of shape {shape} is no matrix: Erdős-Rényi shares need two dimensions")
        counted = shape if self.kernel else shape[:2]
        return Fraction(sum(counted), math.prod(counted))
