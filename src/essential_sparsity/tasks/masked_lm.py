"""Masked language modelling: loss and logits at the masked positions only, which are 15 % of all.

Legend: R rows, L tokens of a row, M masked tokens of the batch, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.tasks.optimization import Schedule, configured

Batch = dict[str, Tensor]
HEAD_NAMES = ("cls", "lm_head")
"""Modules that turn hidden states into logits: BERT's family, RoBERTa's family."""


class MaskedLanguageModel(lightning.LightningModule):
    """Predict masked tokens (Devlin et al. 2019): a batch holds `input_ids` [R, L], `positions` [M], `labels` [M].

    `positions` index the flattened ids. `num_labels` has no meaning here. `compile` compiles the encoder (names stay).
    """

    head = "masked_lm"
    """What the backbone is to be built with."""

    def __init__(
        self,
        model: nn.Module,
        *,
        num_labels: int = 0,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._output = next((getattr(model, name) for name in HEAD_NAMES if hasattr(model, name)), None)
        if self._output is None:
            raise ValueError(f"{type(model).__name__} has no output embedding known here: use a BERT or RoBERTa")
        if compile:
            self._encoder.compile()
        self._make_optimizer, self._make_schedule = optimizer, schedule

    @property
    def _encoder(self) -> nn.Module:
        return getattr(self.model, str(self.model.base_model_prefix))

    def scores(self, batch: Batch) -> Tensor:
        """Give the logits of the masked tokens [M, V]."""
        hidden = self._encoder(input_ids=batch["input_ids"]).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, batch["positions"])  # [R, L, H] → [M, H]
        assert self._output is not None
        return self._output(chosen)

    def token_losses(self, batch: Batch) -> Tensor:
        """Give each masked token's loss [M] in fp32."""
        return functional.cross_entropy(self.scores(batch).float(), batch["labels"], reduction="none")

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Give the mean loss of the masked tokens, and log it as train/loss (no synchronisation with the device)."""
        loss = self.token_losses(batch).mean()
        self.log("train/loss", loss.detach(), batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Log the loss of a validation batch; the reported metric comes from `predict_step`."""
        self.log("validation/loss", self.token_losses(batch).mean(), batch_size=len(batch["labels"]))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Give the columns row, log_likelihood (of all its masked tokens), num_tokens, loss (their mean), each 1-D."""
        losses, row = self.token_losses(batch), batch["positions"] // batch["input_ids"].shape[1]
        totals = losses.new_zeros(len(batch["row"])).index_add_(0, row, losses)
        counts = row.bincount(minlength=len(batch["row"]))
        return {"row": batch["row"], "log_likelihood": -totals, "num_tokens": counts, "loss": totals / counts}

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the groups with and without decay, and its schedule by step."""
        if self._make_optimizer is None:
            raise ValueError(
                "task has no optimizer, which training needs: give one, e.g. a partial of torch.optim.AdamW"
            )
        steps = self.trainer.estimated_stepping_batches
        return configured(self.model, self._make_optimizer, self._make_schedule, steps)
