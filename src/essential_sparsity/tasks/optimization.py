"""Parameter groups, learning-rate schedules and budgets, as plain functions of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters in two groups: with decay, and biases, norms and other vectors without."""
    in_norms = {id(weight) for part in module.modules() if isinstance(part, NORMS) for weight in part.parameters()}
    decayed, others = [], []
    for weight in module.parameters():  # tied weights come once
        if weight.requires_grad:
            (others if weight.ndim < 2 or id(weight) in in_norms else decayed).append(weight)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, optimizer: Callable[..., Optimizer]) -> Optimizer:
    """Call `optimizer` (a partial of a torch class) on the module's groups; its `weight_decay` is the first group's."""
    decay = float((getattr(optimizer, "keywords", None) or {}).get("weight_decay", 0.0))
    return optimizer(parameter_groups(module, decay))


def num_warmup_steps(num_steps: int, warmup: float) -> int:
    """Give the steps of a warm-up that is a share of all steps."""
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup={warmup} lies outside [0, 1): give a share of all steps")
    return math.floor(warmup * num_steps + 0.5)


def _scheduled(optimizer: Optimizer, num_steps: int, warmup: float, shape: Callable[[float], float]) -> LambdaLR:
    """Rise linearly over the warm-up, then follow `shape` of the share of the rest that is done (0 → 1)."""
    rising = num_warmup_steps(num_steps, warmup)

    def factor(step: int) -> float:
        if step < rising:
            return step / rising
        return shape(min(1.0, (step - rising) / max(1, num_steps - rising)))

    return LambdaLR(optimizer, factor)


def _half_cosine(done: float) -> float:
    """Fall from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def linear(optimizer: Optimizer, num_steps: int, *, warmup: float = 0.0) -> LambdaLR:
    """Decay linearly to 0 at the last step (the paper's schedule, with no warm-up)."""
    return _scheduled(optimizer, num_steps, warmup, lambda done: 1.0 - done)


def constant(optimizer: Optimizer, num_steps: int, *, warmup: float = 0.0) -> LambdaLR:
    """Keep the learning rate, after the warm-up."""
    return _scheduled(optimizer, num_steps, warmup, lambda done: 1.0)


def cosine(optimizer: Optimizer, num_steps: int, *, warmup: float = 0.0, final: float = 0.0) -> LambdaLR:
    """Decay along half a cosine to the share `final` of the learning rate."""
    return _scheduled(optimizer, num_steps, warmup, lambda done: final + (1 - final) * _half_cosine(done))


def one_cycle(optimizer: Optimizer, num_steps: int, *, warmup: float = 0.3, initial: float = 0.04) -> LambdaLR:
    """Rise from the share `initial` to the full rate along half a cosine, then fall along half a cosine to 0."""
    rising = num_warmup_steps(num_steps, warmup)

    def factor(step: int) -> float:
        if step < rising:
            return initial + (1 - initial) * (1 - _half_cosine(step / rising))
        return _half_cosine(min(1.0, (step - rising) / max(1, num_steps - rising)))

    return LambdaLR(optimizer, factor)


def cosine_between(start: float, end: float, *, step: int, num_steps: int) -> float:
    """Move from `start` at step 0 to `end` at `num_steps` along half a cosine, and stay there."""
    return end + (start - end) * _half_cosine(min(1.0, step / max(1, num_steps)))


Schedule = Callable[[Optimizer, int], LambdaLR]


def required(optimizer: Callable[..., Optimizer] | None) -> Callable[..., Optimizer]:
    """Give back what makes the optimizer; ValueError where there is nothing, as in a task that was for evaluation."""
    if optimizer is None:
        raise ValueError("task has no optimizer, which training needs: give one, e.g. a partial of torch.optim.AdamW")
    return optimizer


def configured(
    module: nn.Module, optimizer: Callable[..., Optimizer], schedule: Schedule | None, num_steps: int | float
) -> Any:
    """Give what Lightning's `configure_optimizers` returns: the optimizer, and its schedule by step."""
    made = make_optimizer(module, optimizer)
    if schedule is None:
        return made
    if not math.isfinite(num_steps):
        raise ValueError("a schedule needs a last step, but training has none: give trainer.max_epochs or max_steps")
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule(made, int(num_steps)), "interval": "step"}}


def token_steps(max_tokens: Any, num_tokens: Any, num_batches: int, settings: Mapping[str, Any]) -> int:
    """Turn a budget in tokens into optimizer steps, by the mean tokens of a batch; `num_tokens` as data count them.

    Raises ValueError for data without tokens and for a budget below 1.
    """
    if num_tokens is None:
        raise ValueError("trainer.max_tokens needs rows of text, these have no tokens: give trainer.max_steps")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(f"trainer.max_tokens={max_tokens!r} is no whole number of at least 1: give one")
    per_epoch = num_tokens[0] * settings.get("accumulate_grad_batches", 1)
    return -(-max_tokens * num_batches // per_epoch)  # rounded up
