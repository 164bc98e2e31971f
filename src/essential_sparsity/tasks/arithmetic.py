"""Arithmetic reasoning: an encoder reads a word problem, a decoder writes its expression, the value decides."""

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.data.expressions import OPERATORS, agrees, value_of, with_values
from essential_sparsity.tasks.expression_decoder import ExpressionDecoder, expression_losses
from essential_sparsity.tasks.optimization import Schedule, configured, required

Batch = dict[str, Tensor]
DECODER = "expression_decoder"
"""What the decoder is called in the model, and thus in its files."""


class ArithmeticReasoning(lightning.LightningModule):
    """Write the prefix expression of a word problem, and be right where its value is (`data/problems.py` has batches).

    The decoder is a head: new, drawn from torch's global stream, saved with the model, never pruned. It learns at
    `decoder_lr` while the encoder learns at the optimizer's rate. `num_labels` counts operators and constants.
    Expressions are written greedily, at most `max_tokens` long; what is no whole expression, or has no value, is wrong
    and counted (column `parsed`). Without an optimizer, for evaluation, the decoder must be in the model's files.
    """

    head = "features"
    """What the backbone is to be built with."""

    def __init__(
        self,
        model: Any,
        *,
        num_labels: int,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        decoder_lr: float = 1e-3,
        width: int = 384,
        dropout: float = 0.3,
        max_tokens: int = 31,
    ) -> None:
        super().__init__()
        _check(num_labels=num_labels, width=width, max_tokens=max_tokens)
        if not 0 <= dropout < 1:
            raise ValueError(f"task.dropout={dropout} lies outside [0, 1): give a probability")
        if not decoder_lr > 0:
            raise ValueError(f"task.decoder_lr={decoder_lr} is not above 0: give a learning rate")
        self.model, self.max_tokens, self.decoder_lr = model, max_tokens, decoder_lr
        decoder = ExpressionDecoder(model.config.hidden_size, num_labels, width=width, dropout=dropout)
        if optimizer is None:
            load_decoder(decoder, str(model.name_or_path))
        self.model.add_module(DECODER, decoder)
        self._make_optimizer, self._make_schedule = optimizer, schedule

    @property
    def decoder(self) -> ExpressionDecoder:
        """The part that writes expressions."""
        return getattr(self.model, DECODER)

    def encoded(self, batch: Batch) -> Tensor:
        """Give the encoder's output [R, L, H]."""
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state

    def scores(self, batch: Batch) -> Tensor:
        """Give the logits [R, T, A] of each right token after the right ones before it."""
        return self.decoder.teach(self.encoded(batch), batch["attention_mask"], batch["slots"], batch["expression"])

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Give the batch's loss, and log it as train/loss (no synchronisation with the device)."""
        loss = expression_losses(self.scores(batch), batch["expression"]).mean()
        self.log("train/loss", loss.detach(), batch_size=len(batch["row"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Log loss and share of right values of a validation batch; the reported metric comes from `predict_step`."""
        columns = self.predict_step(batch, batch_idx)
        rows = len(columns["row"])
        self.log("validation/loss", columns["loss"].mean(), batch_size=rows)
        self.log("validation/value_accuracy", columns["right"].float().mean(), batch_size=rows)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Give the columns row, right (0 or 1), parsed, exact (the row's own expression), guessed, loss, each 1-D."""
        encoded, mask, slots = self.encoded(batch), batch["attention_mask"], batch["slots"]
        losses = expression_losses(self.decoder.teach(encoded, mask, slots, batch["expression"]), batch["expression"])
        written, whole = self.decoder.write(encoded, mask, slots, self.max_tokens)
        values = values_of(written, whole, batch["operands"])
        right = [agrees(value, answer) for value, answer in zip(values, floats(batch["answer"]), strict=True)]
        return {
            "row": batch["row"],
            "right": torch.from_numpy(np.array(right, np.int64)),
            "parsed": torch.from_numpy(np.isfinite(values).astype(np.int64)),
            "exact": same_tokens(written, batch["expression"]).long(),
            "guessed": batch["guessed"],
            "loss": losses,
        }

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the groups with and without decay, the decoder's with their own rate."""
        make = required(self._make_optimizer)
        decay = (getattr(make, "keywords", None) or {}).get("weight_decay", 0.0)
        own = {id(weight) for weight in self.decoder.parameters()}
        rated = functools.partial(two_rates, make, own=own, lr=self.decoder_lr, weight_decay=decay)
        return configured(self.model, rated, self._make_schedule, self.trainer.estimated_stepping_batches)


def two_rates(
    make: Callable[..., Optimizer],
    groups: list[dict[str, Any]],
    *,
    own: Collection[int],
    lr: float,
    weight_decay: float,
) -> Optimizer:
    """Make an optimizer whose groups are split: weights of these ids learn at `lr`; each group keeps its decay."""
    split = []
    for group in groups:
        for rate, chosen in (({}, False), ({"lr": lr}, True)):
            weights = [weight for weight in group["params"] if (id(weight) in own) is chosen]
            split += [{**group, **rate, "params": weights}] if weights else []
    return make(split)


# --- values -----------------------------------------------------------------------------------------------------------


def floats(bits: Tensor) -> np.ndarray:
    """Give the float64 numbers whose bits a batch holds as int64."""
    return bits.cpu().numpy().view(np.float64)


def values_of(written: Tensor, whole: Tensor, operands: Tensor) -> np.ndarray:
    """Give the value of each written expression [R], float64; NaN for what is not whole or has none."""
    rows = zip(written.tolist(), whole.tolist(), floats(operands), strict=True)
    values = [
        value_of(with_values([id for id in ids if id >= 0], of)) if is_whole else np.nan for ids, is_whole, of in rows
    ]
    return np.array(values, np.float64)


def same_tokens(written: Tensor, expression: Tensor) -> Tensor:
    """Say which written expressions are the given ones, token by token: bool [R]."""
    longest = max(written.shape[1], expression.shape[1])
    padded = [nn.functional.pad(part, (0, longest - part.shape[1]), value=-100) for part in (written, expression)]
    ours, theirs = (part.masked_fill(part < 0, -100) for part in padded)
    return (ours == theirs).all(1)


# --- a stored decoder -------------------------------------------------------------------------------------------------


def load_decoder(decoder: ExpressionDecoder, folder: str) -> None:
    """Fill a decoder from a model's files; ValueError where they hold none, or one of another shape."""
    from essential_sparsity.checkpoints import Checkpoint

    remedy = "train it first, essential-sparsity train data=… save_model=true, and give backbone.path=<run>/model"
    stored = Checkpoint.open(Path(folder)) if folder and Path(folder).is_dir() else {}
    prefix = f"{DECODER}."
    found = {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}
    own = decoder.state_dict()
    if not found:
        raise ValueError(f"{folder or 'the model'} holds no expression decoder: {remedy}")
    if differing := [name for name in own if name not in found or found[name].shape != own[name].shape]:
        name, there = differing[0], tuple(found[differing[0]].shape) if differing[0] in found else "nothing"
        raise ValueError(
            f"{folder} has {there} for {prefix}{name}, these data and task.width ask for {tuple(own[name].shape)}: "
            "evaluate with the data and width of its training"
        )
    decoder.load_state_dict(found)


def _check(**sizes: Any) -> None:
    for name, size in sizes.items():
        least = len(OPERATORS) if name == "num_labels" else 1
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"task's {name}={size!r} is no whole number of at least {least}: give one")
