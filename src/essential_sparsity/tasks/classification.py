"""What sequence and image classification share: the loss, the logged numbers, the rows of predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.tasks.optimization import Schedule, configured, required

Batch = dict[str, Tensor]


class Classification(lightning.LightningModule, ABC):
    """Cross-entropy over `num_labels` classes, or squared error where `num_labels` is 1; subclasses give the scores.

    `optimizer` takes parameter groups, `schedule` an optimizer and the number of steps; both are plain callables, and
    evaluation needs neither.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_labels: int,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={label_smoothing} lies outside [0, 1): give a share")
        self.model, self.num_labels, self.label_smoothing = model, num_labels, label_smoothing
        self._make_optimizer, self._make_schedule = optimizer, schedule

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Give the model's outputs [rows, num_labels]."""

    def row_losses(self, scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Give each row's loss [rows] in fp32."""
        if self.num_labels == 1:
            return (scores.float().squeeze(-1) - labels.float()).square()
        return functional.cross_entropy(scores.float(), labels, reduction="none", label_smoothing=label_smoothing)

    def loss(self, batch: Batch) -> Tensor:
        """Give the mean training loss of the batch."""
        return self.row_losses(self.scores(batch), batch["labels"], self.label_smoothing).mean()

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Give the batch's loss, and log it as train/loss (no synchronisation with the device)."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Log loss and share of right rows of a validation batch; the reported metrics come from `predict_step`."""
        columns = self.predict_step(batch, batch_idx)
        rows = len(columns["row"])
        self.log("validation/loss", columns["loss"].mean(), batch_size=rows)
        if self.num_labels > 1:
            right = (columns["prediction"] == columns["label"]).float().mean()
            self.log("validation/accuracy", right, batch_size=rows)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Give the columns row, label, prediction (class id or value), loss of the batch's rows, each 1-D.

        Classes have `confidence`, too: the predicted one's probability.
        """
        scores = self.scores(batch)
        losses = self.row_losses(scores, batch["labels"])
        columns = {"row": batch["row"], "label": batch["labels"]}
        if self.num_labels == 1:
            return columns | {"prediction": scores.float().squeeze(-1), "loss": losses}
        prediction = scores.argmax(-1)
        confidence = scores.float().softmax(-1).gather(-1, prediction[:, None]).squeeze(-1)
        return columns | {"prediction": prediction, "loss": losses, "confidence": confidence}

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the groups with and without decay, and its schedule by step."""
        make = required(self._make_optimizer)
        return configured(self.model, make, self._make_schedule, self.trainer.estimated_stepping_batches)
