"""Patterns: where zeros may lie: anywhere, or N:M."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from essential_sparsity.inputs import suggest
from essential_sparsity.pruning.architecture import Architecture
from essential_sparsity.pruning.rows import Runs

AXES = ("input", "output")
REMAINDERS = ("error", "pad", "skip")


class Pattern(ABC):
    """What a ranking asks of a pattern."""

    def resolve(self, sparsity: Fraction | None) -> Fraction:
        """Give the sparsity that is meant, dense for None; raises ValueError where it contradicts the pattern."""
        return Fraction(0) if sparsity is None else sparsity

    def runs(self, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture | None) -> dict[str, Runs] | None:
        """See the weights as runs of which each keeps some; None where the allocation says how many go."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """Name the pattern and its settings in one line."""

    @classmethod
    def read(cls, value: object) -> "Pattern":
        """Read a pattern: one itself, "2:4", or {keep: 2, of: 4}; raises ValueError for an integer, which YAML made."""
        if isinstance(value, Pattern):
            return value
        if isinstance(value, str):
            return NM.parse(value)
        if isinstance(value, Mapping) and {"keep", "of"} <= set(value):
            return NM(**value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 60:
            keep, of = divmod(value, 60)
            raise ValueError(
                f"pattern={value} is a number, as YAML reads {keep}:{of} in base 60: write pattern='\"{keep}:{of}\"', "
                f"or {{keep: {keep}, of: {of}}}"
            )
        raise ValueError(f'pattern={value!r} is no pattern: give "2:4" or {{keep: 2, of: 4}}')


@dataclass(frozen=True)
class NM(Pattern):
    """Of each run of `of` weights along an axis the `keep` largest stay: any N:M, 2:4 the one that GPUs have.

    `axis` is "input" (runs of one output's inputs, whatever the layout) or "output". `remainder` says what happens to
    a row's last weights where `of` does not divide it: "error", "pad" (they count as a run filled up with zeros, which
    go first) or "skip" (they stay dense). The allocation plays no part.
    """

    keep: int = 2
    of: int = 4
    axis: str = "input"
    remainder: str = "error"

    def __post_init__(self) -> None:
        """Check all settings; raises ValueError."""
        for name, value in (("keep", self.keep), ("of", self.of)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"pattern {self.keep}:{self.of} has {name}={value!r}: give a whole number, as in 2:4")
        if not 1 <= self.keep <= self.of:
            raise ValueError(
                f"pattern {self.keep}:{self.of} keeps {self.keep} of each {self.of} weights: "
                "give keep:of with 1 ≤ keep ≤ of, as in 2:4"
            )
        for name, value, choices in (("axis", self.axis, AXES), ("remainder", self.remainder, REMAINDERS)):
            if value not in choices:
                raise ValueError(f"pattern.{name}={value!r} is unknown{suggest(value, choices)}")

    @classmethod
    def parse(cls, text: str) -> "NM":
        """Read "2:4": of each 4 weights 2 stay; raises ValueError for anything else."""
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if found is None:
            raise ValueError(f'pattern={text!r} is no pattern: give keep:of, such as "2:4"')
        return cls(int(found[1]), int(found[2]))

    def resolve(self, sparsity: Fraction | None) -> Fraction:
        """Give the implied (of − keep) / of for None, and 0 (dense) as it is; any other value raises ValueError."""
        implied = Fraction(self.of - self.keep, self.of)
        if sparsity and sparsity != implied:
            raise ValueError(
                f"sparsity={float(sparsity):g} contradicts pattern {self.keep}:{self.of}, which implies "
                f"{float(implied):g}: give sparsity=null (or 0.0 for dense)"
            )
        return implied if sparsity is None else sparsity

    def runs(self, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture | None) -> dict[str, Runs]:
        """Cut each weight into runs; raises ValueError naming one that `of` does not divide, unless pad or skip."""
        return {name: self._runs(name, shape, architecture) for name, shape in shapes.items()}

    def _runs(self, name: str, shape: tuple[int, ...], architecture: Architecture | None) -> Runs:
        inputs = architecture.input_axis if architecture else 1
        parts, along = 1, inputs
        if self.axis == "output":
            along = 1 - inputs
            parts = len(architecture.fused.get(architecture.kind(name) or "", ("all",))) if architecture else 1
        whole = Runs.along(shape, along, parts=parts)
        if whole.length % self.of and self.remainder == "error":
            raise ValueError(
                f"weight {name!r} has {whole.length} {self.axis}s in a row, which pattern {self.keep}:{self.of} does "
                f"not divide: give pruner.pattern={{keep: {self.keep}, of: {self.of}, remainder: pad}}, or skip"
            )
        return replace(whole, of=self.of, keep=self.keep, pad=self.remainder != "skip")

    def describe(self) -> str:
        """Name the pattern and what differs from its defaults."""
        further = [f"{self.axis} axis"] if self.axis != "input" else []
        further += [f"remainder {self.remainder}"] if self.remainder != "error" else []
        return ", ".join([f"{self.keep}:{self.of}", *further])


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Zeros may lie anywhere."""

    def describe(self) -> str:
        """Name the pattern."""
        return "unstructured"
