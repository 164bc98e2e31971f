"""What PruningCallback's hooks cost at a step of BERT-base: 32 rows of 128 tokens, fp32, AdamW.

The hooks are also timed alone, on the same weights and gradients, by an optimizer whose step does nothing: one percent
of a step of seconds is less than two steps differ by.
"""

from collections.abc import Iterator
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.pruning import prunable_weights
from essential_sparsity.tasks.optimization import make_optimizer
from essential_sparsity.tasks.sequence_classification import SequenceClassification
from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import in_turn, seconds
from tests.bench.pruning import OMP


class Still(torch.optim.Optimizer):
    """An optimizer whose step does nothing but call the hooks registered on it."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        """Change nothing."""


def run(quick: bool = False) -> Iterator[Figure]:
    """Time steps without and with the hooks in turn, and the hooks alone."""
    module, batch = _module(quick), _batch(quick)
    weights = list(prunable_weights(module).values())
    optimizer = make_optimizer(module.model, lambda groups: torch.optim.AdamW(groups, lr=2e-5, fused=True))
    pruning, trainer = PruningCallback(OMP, sparsity="0.5"), _trainer(optimizer)
    pruning.setup(trainer, module, "fit")

    def step(hooked: bool) -> float:
        if hooked:
            pruning.on_fit_start(trainer, module)
            pruning.on_train_start(trainer, module)
        taken = seconds(lambda: _step(module, batch, optimizer, pruning if hooked else None, trainer))
        pruning.teardown(trainer, module, "fit")
        return taken

    step(False)  # makes the optimizer's state
    with_hooks, without, pair = in_turn(lambda: step(True), lambda: step(False), 2 if quick else 3)
    alone = _hooks_alone(pruning, module, 3 if quick else 20)
    n = sum(weight.numel() for weight in weights)
    limit = 2 * (8 * n + n) / machine.rates(quick).copy  # gradients, then weights: read, write, and a mask of bytes
    yield Figure(
        "hooks alone; a step of BERT-base, 32 × 128, fp32", alone, without, ratio_is="of peer", goal="≤ 0.01",
        limit=limit, limit_is="to read and write weights and gradients",
    )  # fmt: skip
    flops = 6 * sum(p.numel() for p in weights) * batch["input_ids"].numel()
    yield Figure(
        "a step with the hooks; without", with_hooks, without, ratio_is="of peer", paired_ratio=pair,
        limit=flops / machine.rates(quick).fp32, limit_is="for its matrix products",
    )  # fmt: skip


def _module(quick: bool) -> SequenceClassification:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig()
    if quick:
        config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    model = BertForSequenceClassification(config).train()
    return SequenceClassification(model, num_labels=2, optimizer=torch.optim.AdamW)


def _batch(quick: bool) -> dict[str, Tensor]:
    rows, tokens = (4, 16) if quick else (32, 128)
    ids = torch.randint(1000, 30000, (rows, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 2}


def _trainer(optimizer: torch.optim.Optimizer) -> Any:
    """Stand in for what the callback asks of a trainer: a real one would time Lightning's loop as well."""
    return SimpleNamespace(world_size=1, global_step=0, ckpt_path=None, optimizers=[optimizer])


def _step(
    module: SequenceClassification,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    pruning: PruningCallback | None,
    trainer: Any,
) -> None:
    optimizer.zero_grad()
    module.row_losses(module.scores(batch), batch["labels"]).mean().backward()
    if pruning is not None:
        pruning.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()


def _hooks_alone(pruning: PruningCallback, module: SequenceClassification, repeats: int) -> float:
    """Time both hooks on weights and gradients that are there."""
    still = Still(list(prunable_weights(module).values()))
    trainer = _trainer(still)
    pruning.on_fit_start(trainer, module)
    pruning.on_train_start(trainer, module)

    def hooks() -> None:
        pruning.on_before_optimizer_step(trainer, module, still)
        still.step()

    hooks()
    taken = median(seconds(hooks) for _ in range(repeats))
    pruning.teardown(trainer, module, "fit")
    return taken
