"""A score of one's own: any function of a weight matrix, written as one method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from essential_sparsity.pruning.scores import Magnitude, Score


class Formula(ABC):
    """Score weights by a formula: a subclass with one method, `scores`, which gives numbers from 0 on; larger is kept.

    Scores are computed once, when weights are ranked, and held in fp32 beside them until the masks are cut.
    """

    reads_weights: ClassVar[bool] = True
    needs_statistics: ClassVar[bool] = False

    @abstractmethod
    def scores(self, name: str, weight: Tensor) -> Tensor:
        """Score one weight by its canonical name: fp32 [out, in] (as its file has it) to a tensor of that shape."""

    def describe(self) -> str:
        """Name the score and its settings in one line."""
        return repr(self)

    def __repr__(self) -> str:
        """Name the class and its attributes."""
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    @torch.no_grad()
    def of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Score all weights; raises ValueError naming one whose scores have another shape, lie below 0 or are NaN."""
        Magnitude().form(weights)
        return {name: self._checked(name, weight.detach()) for name, weight in weights.items()}

    def _checked(self, name: str, weight: Tensor) -> Tensor:
        found = self.scores(name, weight.float())
        what = f"score {self.describe()} of weight {name!r}"
        if tuple(found.shape) != tuple(weight.shape):
            raise ValueError(f"{what} has shape {tuple(found.shape)}, not {tuple(weight.shape)}: give one per weight")
        found = found.detach().float()
        if bad := int((~(found >= 0) | found.isinf()).sum()):
            raise ValueError(f"{what} has {bad} values that are negative, NaN or infinite: give numbers from 0 on")
        return found.clone() if found.data_ptr() == weight.data_ptr() else found

    # --- what a ranking asks: the scores stand in the weights' place, so that they are magnitudes ---

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> Score:
        """Give the score of what `of` gives: its magnitude."""
        return Magnitude()

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Raise ValueError: a formula sees whole matrices, not the pieces of a file."""
        raise self._unread()

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Raise ValueError, as `form`."""
        raise self._unread()

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray | None:
        """Count by `bits`."""
        return None

    def value(self, code: int, form: str) -> float:
        """Give the score with these bits."""
        return Magnitude().value(code, form)

    def _unread(self) -> ValueError:
        return ValueError(
            f"score {self.describe()} is a formula of whole matrices, which are not read here: "
            "prune the loaded model, by essential-sparsity train or evaluate"
        )
