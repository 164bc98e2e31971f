"""Pruning after training: one-shot magnitude masks of weights that the task has trained, for fine-tune-then-prune."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from torch import nn

from essential_sparsity.pruning.lottery import OMP
from essential_sparsity.pruning.pruner import Pruned
from essential_sparsity.pruning.sparsity import exact_sparsity


@dataclass(frozen=True)
class AfterTraining:
    """Remove the smallest *fine-tuned* weights at once, then train on for `further` of the training before.

    The parent is the dense run of the same seed, so that a pruned run starts where its pair ended, head included.
    """

    further: object = 0
    calibration: None = field(default=None, init=False, repr=False)
    step: ClassVar[float] = 0.1
    rewind: ClassVar[int] = 0
    keeps_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the share of further training; raises ValueError."""
        if isinstance(self.further, bool) or not isinstance(self.further, (int, float)) or not 0 <= self.further <= 10:
            raise ValueError(
                f"pruner.further={self.further!r} is no share of the training before: give 0 for none, 0.3, 1, …"
            )

    def rounds(self, sparsity: object) -> Sequence[Fraction]:
        """Give the sparsities of the runs that come before: one dense run; none where nothing is pruned."""
        return [Fraction(0)] if self.resolve(sparsity) else []

    def seed_of_rounds(self, seed: int) -> int:
        """Give the seed of the dense run before: the run's own."""
        return seed

    def num_trainings(self, sparsity: object) -> float:
        """Give how long a run trains, in trainings of a dense one."""
        return float(str(self.further)) if self.resolve(sparsity) else 1.0

    def resolve(self, sparsity: object) -> Fraction:
        """Give the exact sparsity; None means dense."""
        return exact_sparsity(sparsity) or Fraction(0)

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        return OMP.describe() | {"score": "magnitude after training"}

    def prune(self, model: nn.Module, **options: Any) -> Pruned:
        """Choose the masks of one-shot magnitude pruning on the weights that the model starts from."""
        return OMP.prune(model, **options)
