"""What surrounds an optimizer step: a weight decay that moves, a moving average of the weights, dropped blocks."""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from essential_sparsity.pruning.shards import held_part
from essential_sparsity.tasks.optimization import Schedule, configured, cosine_between, required


class Averaged(lightning.LightningModule):
    """A task whose weight decay follows a cosine, and which averages weights after each optimizer step.

    `momentum` rises along half a cosine to 1; `weight_decay` is [start, end], or None for the optimizer's own. Both are
    pure functions of the step. Accumulated batches count as one step.
    """

    momentum: float | None = None
    weight_decay: tuple[float, float] | None = None
    _num_steps = 0
    _decayed: tuple[int, ...] = ()

    def averages(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Name the pairs of modules (average, trained)."""
        return ()

    def configured_for(
        self, trained: nn.Module, optimizer: Callable[..., Optimizer] | None, schedule: Schedule | None
    ) -> Any:
        """Give what `configure_optimizers` returns, for the weights of `trained`, and remember the number of steps."""
        make = required(optimizer)
        steps = self.trainer.estimated_stepping_batches
        if (self.momentum is not None or self.weight_decay is not None) and not math.isfinite(steps):
            raise ValueError(
                "a schedule of momentum or weight decay needs a last step: give trainer.max_epochs or max_steps"
            )
        self._num_steps = int(steps) if math.isfinite(steps) else 0
        if self.weight_decay is not None:
            make = functools.partial(make, weight_decay=max(self.weight_decay))
        made = configured(trained, make, schedule, steps)
        groups = (made["optimizer"] if isinstance(made, dict) else made).param_groups
        self._decayed = tuple(index for index, group in enumerate(groups) if group["weight_decay"] > 0)
        return made

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Set the step's weight decay, step, and move the averages."""
        step = self.trainer.global_step
        if self.weight_decay is not None:
            decay = cosine_between(*self.weight_decay, step=step, num_steps=self._num_steps)
            for index in self._decayed:
                optimizer.param_groups[index]["weight_decay"] = decay
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.momentum is not None:
            momentum = cosine_between(self.momentum, 1.0, step=step, num_steps=self._num_steps)
            for average, trained in self.averages():
                move_average_(average, trained, momentum)


@torch.no_grad()
def move_average_(average: nn.Module, trained: nn.Module, momentum: float) -> None:
    """Move every weight of `average`: momentum · average + (1 − momentum) · trained."""
    ours, theirs = ([held_part(weight) for weight in part.parameters()] for part in (average, trained))
    get_ema_multi_avg_fn(momentum)(ours, theirs, None)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy a model with its weights, without gradients."""
    return copy.deepcopy(model).requires_grad_(False)


def checked_momentum(name: str, value: float) -> float:
    """Give a momentum back; ValueError where it lies outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"task.{name}={value} lies outside [0, 1]: give a momentum such as 0.996")
    return float(value)


def checked_decay(value: Sequence[float] | None) -> tuple[float, float] | None:
    """Give a schedule of weight decay as (start, end); ValueError for anything but two numbers of at least 0."""
    if value is None:
        return None
    if isinstance(value, (int, float, str)) or len(value) != 2 or not all(part >= 0 for part in value):
        raise ValueError(f"task.weight_decay={value} is no pair of numbers from 0 on: give [start, end], or null")
    return float(value[0]), float(value[1])


# --- stochastic depth -------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Leave a residual branch out for a share of the rows, and scale it up for the others (Huang et al. 2016)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Give x [rows, …], zero for the rows that are left out; unchanged in eval mode."""
        if not self.training or not self.share:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.share)
        return x * kept.div_(1 - self.share)


def set_drop_path(model: nn.Module, share: float) -> None:
    """Drop the residual branches of a timm ViT's blocks, more in deeper ones: 0 in the first, `share` in the last.

    Errors: ValueError for a share outside [0, 1) and for a model without such blocks.
    """
    if not 0 <= share < 1:
        raise ValueError(f"task.drop_path={share} lies outside [0, 1): give a share")
    if not share:
        return
    blocks = list(getattr(model, "blocks", ()))
    places = [name for name in ("drop_path1", "drop_path2") if blocks and hasattr(blocks[0], name)]
    if not places:
        raise ValueError(f"{type(model).__name__} has no blocks with drop paths: give a timm ViT, or task.drop_path=0")
    for index, block in enumerate(blocks):
        for name in places:
            setattr(block, name, DropPath(share * index / max(1, len(blocks) - 1)))
