"""Scores: one number per weight, larger is kept. A score gives unsigned integers that sort like it, piece by piece."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from essential_sparsity.pruning.histogram import MagnitudeHistogram, common_form, magnitude_bits
from essential_sparsity.seeds import splitmix64


class Score(Protocol):
    """What a ranking asks of a score."""

    reads_weights: ClassVar[bool]
    """False where the score depends on names and places alone."""

    needs_statistics: ClassVar[bool]
    """True where `bind` must be given statistics of the model's activations."""

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> "Score":
        """Give the score of weights of these shapes; `statistics` [in_features] by name, `input_axis` runs over them.

        Raises ValueError naming a weight whose statistics are missing or do not fit.
        """
        ...

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Check the weights and give the number format in which all of them are scored."""
        ...

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Score flat[start:stop]: uint32 or uint16, whose codes (without the top bit) sort like the scores."""
        ...

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray | None:
        """Count the codes' bins in a faster way than by `bits`, or give None: int64 [2^15]."""
        ...

    def value(self, code: int, form: str) -> float:
        """Give the score that a code stands for."""
        ...

    def describe(self) -> str:
        """Name the score and its settings in one line."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """Score |w|: the smallest weights go first (the paper's one-shot magnitude pruning)."""

    reads_weights: ClassVar[bool] = True
    needs_statistics: ClassVar[bool] = False

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> Score:
        """Give itself: no statistics are needed."""
        return self

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Give the weights' dtype, or fp32 for a mixed model; other dtypes raise ValueError."""
        return common_form(weights)

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Read the weights' own bits."""
        return magnitude_bits(flat, start, stop, form)

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray | None:
        """Count magnitudes; raises ValueError naming a weight with NaN or infinite entries."""
        return MagnitudeHistogram.count(weights, form=form).counts

    def value(self, code: int, form: str) -> float:
        """Give the magnitude with these bits."""
        if form == "float32":
            return float(np.array(code, dtype=np.uint32).view(np.float32))
        dtype = torch.float16 if form == "float16" else torch.bfloat16
        return float(torch.tensor(code, dtype=torch.int16).view(dtype))

    def describe(self) -> str:
        """Name the score."""
        return "magnitude"


@dataclass(frozen=True)
class Random:
    """Score by chance: a function of (seed, canonical name, flat index) alone, on every device and rank the same.

    splitmix64 (Steele, Lea and Flood 2014) of the index, keyed by a hash of seed and name; 31 bits per weight, so ties
    are possible and handled like any others.
    """

    seed: int = 0
    reads_weights: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> Score:
        """Give itself: no statistics are needed."""
        return self

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Random scores have 31 bits, whatever the weights' dtype; one that cannot be pruned raises ValueError."""
        common_form(weights)
        return "uint31"

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Draw the scores of places start … stop; two places share one 64-bit draw."""
        counters = np.arange(start // 2, (stop + 1) // 2, dtype=np.uint64)
        draws = splitmix64(counters, self._key(name))
        return (draws.astype("<u8", copy=False).view("<u4")[start % 2 :][: stop - start] >> 1).astype(
            np.uint32, copy=False
        )

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray | None:
        """Count by `bits`."""
        return None

    def value(self, code: int, form: str) -> float:
        """Give the score in [0, 1)."""
        return code / 2**31

    def describe(self) -> str:
        """Name the score and its seed."""
        return f"random(seed={self.seed})"

    def _key(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{name}".encode()).digest()[:8], "little")


INPUTS = ("pruned", "dense")


@dataclass(frozen=True)
class ActivationNorm:
    """Score |w| ‖x‖₂ by the norm of a weight's input over all calibration tokens: Wanda (arXiv 2306.11695, eq. 1).

    `inputs="pruned"` measures block after block on what the pruned blocks before it give, as published; "dense"
    measures the model as it is, once, so that masks of rising sparsity are nested under every allocation.
    """

    inputs: str = "pruned"
    reads_weights: ClassVar[bool] = True
    needs_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the setting."""
        if self.inputs not in INPUTS:
            raise ValueError(f"score.inputs={self.inputs!r} is neither of {', '.join(INPUTS)}: give one of them")

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> Score:
        """Give the score of weights of these shapes under the inputs' norms; raises ValueError naming a misfit."""
        norms = {}
        for name, shape in shapes.items():
            if name not in statistics:
                raise ValueError(f"weight {name!r} has no input norms: gather them from the model that is pruned")
            norms[name] = statistics[name].detach().float().cpu().numpy()
            if norms[name].shape != (shape[input_axis],) or not np.isfinite(norms[name]).all():
                raise ValueError(
                    f"weight {name!r} of {shape[input_axis]} inputs has input norms of shape {norms[name].shape} or "
                    "not finite: gather them from the model that is pruned"
                )
        return _WeightedMagnitude(self.inputs, norms, shapes, input_axis)

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Scores are fp32, whatever the weights' dtype; raises ValueError naming a weight that has none."""
        MagnitudeHistogram.count(weights)
        return "float32"

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Raise ValueError: there are no scores without norms."""
        raise ValueError(f"weight {name!r} has no input norms: bind the score to statistics first")

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray | None:
        """Count by `bits`."""
        return None

    def value(self, code: int, form: str) -> float:
        """Give the score with these bits."""
        return Magnitude().value(code, "float32")

    def describe(self) -> str:
        """Name the score and which inputs it measures."""
        return f"activation_norm(inputs={self.inputs})"


@dataclass(frozen=True, eq=False)
class _WeightedMagnitude(ActivationNorm):
    """An ActivationNorm and the norms that it weighs magnitudes by."""

    norms: Mapping[str, np.ndarray] = field(default_factory=dict)  # fp32 [D] by weight
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_axis: int = 1

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Multiply in fp32."""
        norms, width = self.norms[name], self.shapes[name][1]
        row, first = divmod(start, width)
        last = -(-stop // width)
        if self.input_axis == 1:
            factors = np.tile(norms, last - row)
        else:
            factors = np.repeat(norms[row:last], width)
        weights = flat[start:stop].float().cpu().numpy()
        return (weights * factors[first : first + stop - start]).view(np.uint32)
