"""What masked and causal language modelling share: the mean loss of the predicted tokens, and rows of likelihoods.

Legend: R rows, L tokens of a row, M predicted tokens of the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.tasks.optimization import Schedule, configured, required

Batch = dict[str, Tensor]


class TokenPrediction(lightning.LightningModule, ABC):
    """Cross-entropy over chosen tokens; a batch holds `input_ids` [R, L], `positions` [M], `labels` [M], `row` [R].

    `positions` index the flattened ids: where each label is predicted. Subclasses give the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._make_optimizer, self._make_schedule = optimizer, schedule

    @abstractmethod
    def token_losses(self, batch: Batch) -> Tensor:
        """Give each predicted token's loss [M] in fp32."""

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Give the mean loss of the predicted tokens, and log it as train/loss (no synchronisation with the device)."""
        loss = self.token_losses(batch).mean()
        self.log("train/loss", loss.detach(), batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Log the loss of a validation batch; the reported metric comes from `predict_step`."""
        self.log("validation/loss", self.token_losses(batch).mean(), batch_size=len(batch["labels"]))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Give the columns row, log_likelihood (of all its predicted tokens), num_tokens, loss (their mean)."""
        losses, row = self.token_losses(batch), batch["positions"] // batch["input_ids"].shape[1]
        totals = losses.new_zeros(len(batch["row"])).index_add_(0, row, losses)
        counts = row.bincount(minlength=len(batch["row"]))
        return {"row": batch["row"], "log_likelihood": -totals, "num_tokens": counts, "loss": totals / counts}

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the groups with and without decay, and its schedule by step."""
        make = required(self._make_optimizer)
        return configured(self.model, make, self._make_schedule, self.trainer.estimated_stepping_batches)
