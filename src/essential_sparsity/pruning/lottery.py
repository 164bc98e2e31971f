"""Lottery tickets: masks found by iterative magnitude pruning with rewinding (the paper's LTP; arXiv 1803.03635).

A round trains under its mask, then the smallest *trained* weights among the survivors go, and the others are rewound.
The chain of rounds is a chain of parents: training.py finishes it and binds the last round to a pruner by `after`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from essential_sparsity.pruning.allocations import exact_sparsity
from essential_sparsity.pruning.architecture import Architecture, prunable_weights
from essential_sparsity.pruning.explicit import Explicit
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.pruner import Pruned, Pruner
from essential_sparsity.pruning.scores import Random
from essential_sparsity.seeds import derive

OMP = Pruner()
"""One-shot magnitude pruning: one threshold over all prunable weights."""


@dataclass(frozen=True, eq=False)
class Round:
    """What a finished round leaves: its trained weights by canonical name (a lazy mapping will do), and its masks."""

    trained: Mapping[str, Tensor]
    masks: Masks


@dataclass(frozen=True)
class Lottery:
    """Find a ticket in rounds, each of which removes `step` of all prunable weights, and train it from its start.

    `rewind` is the step of the first round's training whose weights each round, and the ticket, start from; 0: the
    pre-trained weights, as in the paper. `search_seed` is the rounds' seed: another one than the ticket is trained
    with; None stands for 1000 + that seed, so that every replicate finds a ticket of its own.
    """

    step: object = 0.1
    rewind: int = 0
    search_seed: int | None = None
    before: Round | None = field(default=None, repr=False, compare=False)
    calibration: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check step and rewind."""
        if not exact_sparsity(self.step):
            raise ValueError(f"pruner.step={self.step!r} removes nothing in a round: give a share such as 0.1")
        if isinstance(self.rewind, bool) or not isinstance(self.rewind, int) or self.rewind < 0:
            raise ValueError(
                f"pruner.rewind={self.rewind!r} is no step: give a whole number, 0 for pre-trained weights"
            )

    def resolve(self, sparsity: object) -> Fraction:
        """Give the exact sparsity; None means dense."""
        return exact_sparsity(sparsity) or Fraction(0)

    def rounds(self, sparsity: object) -> list[Fraction]:
        """Give the sparsities of the rounds that come before a ticket of this sparsity: 0, step, 2 step, …."""
        wanted, step = self.resolve(sparsity), exact_sparsity(self.step)
        assert step
        return [step * index for index in range(-(-wanted // step))]

    def seed_of_rounds(self, seed: int) -> int:
        """Give the seed of the search for a ticket that is trained with `seed`."""
        return 1000 + seed if self.search_seed is None else self.search_seed

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        start = f"rewound to step {self.rewind}" if self.rewind else "rewound"
        return OMP.describe() | {"score": f"magnitude after training in rounds of {self.step}, {start}"}

    def after(self, before: Round) -> "Lottery":
        """Bind the round before, which the masks are ranked by."""
        return replace(self, before=before)

    def prune(
        self,
        model: nn.Module,
        *,
        sparsity: object = None,
        architecture: Architecture | None = None,
        batches: Sequence[Mapping[str, Tensor]] | None = None,
        forward: Callable[[Any], Any] | None = None,
    ) -> Pruned:
        """Keep the largest trained weights within the mask of the round before; the model's own weights play no part.

        Raises ValueError where there is no round before, and where its masks do not fit the model.
        """
        weights = prunable_weights(model, architecture)
        wanted = self.resolve(sparsity)
        if not wanted:
            return Pruned(OMP(weights, sparsity=0))
        if self.before is None:
            raise ValueError(
                f"a ticket of sparsity {float(wanted):g} needs the round before it: give fit(parent=…), or run "
                "essential-sparsity lottery"
            )
        self.before.masks.check(weights)
        masks = OMP(survivors_above(self.before), sparsity=wanted)
        if not masks.is_nested_in(self.before.masks):
            raise ValueError(
                f"the round before has sparsity {self.before.masks.sparsity:g}, this one {float(wanted):g}: "
                "rounds must rise"
            )
        return Pruned(replace(masks, **self.describe()))


@dataclass(frozen=True)
class ReassignedLottery(Lottery):
    """A ticket's number of weights per tensor, at places drawn by chance: a ticket without its places."""

    seed: int = 0

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        return super().describe() | {"score": f"random(seed={self.seed})", "allocation": "a ticket's, per tensor"}

    def prune(self, model: nn.Module, **options: Any) -> Pruned:
        """Find the ticket and draw as many weights of each tensor as it keeps."""
        found = super().prune(model, **options).masks
        if not found.num_pruned:
            return Pruned(found)
        shares = {name: Fraction(found.num(name) - found.num_kept(name), found.num(name)) for name in found}
        weights = prunable_weights(model, options.get("architecture"))
        score = Random(derive(self.seed, "reassigned"))  # other places than those of a random control of this seed
        masks = Pruner(score, Explicit(shares))(weights)
        return Pruned(replace(masks, **self.describe(), requested=found.requested))


@dataclass(frozen=True)
class TransferredLottery(Lottery):
    """A ticket that was found on other data or another task, which `found_on` names, than it is trained on."""

    found_on: str = ""

    def __post_init__(self) -> None:
        """Check that the rounds can start where the run does, whose head is another one; raises ValueError."""
        super().__post_init__()
        if self.rewind:
            raise ValueError(
                f"pruner.rewind={self.rewind}: a ticket from elsewhere starts from the pre-trained weights, leave it 0"
            )

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        found = super().describe()
        return found | {"score": f"{found['score']}, on {self.found_on}"}


@dataclass(frozen=True)
class MatchedCompute:
    """One-shot magnitude masks trained as long as a ticket's rounds and its own training are together."""

    step: object = 0.1
    calibration: None = field(default=None, init=False, repr=False)

    def num_trainings(self, sparsity: object) -> int:
        """Give how many trainings a ticket of this sparsity costs: one per round, and its own."""
        return len(Lottery(self.step).rounds(sparsity)) + 1

    def resolve(self, sparsity: object) -> Fraction | None:
        """Give the exact sparsity."""
        return OMP.resolve(sparsity)

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        return OMP.describe()

    def prune(self, model: nn.Module, **options: Any) -> Pruned:
        """Choose the masks of one-shot magnitude pruning."""
        return OMP.prune(model, **options)


@torch.no_grad()
def survivors_above(before: Round) -> dict[str, Tensor]:
    """Give trained weights in which a survivor that is exactly zero still ranks above all pruned ones."""
    ranked = {}
    for name, keep in ((name, before.masks[name]) for name in before.masks):
        weight = before.trained[name].detach().float()
        keep = keep.to(weight.device)
        smallest = torch.full_like(weight, 1e-45)  # the smallest subnormal
        ranked[name] = torch.where(keep, torch.where(weight == 0, smallest, weight), torch.zeros_like(weight))
    return ranked
