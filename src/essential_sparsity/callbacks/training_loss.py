"""The training loss at the end of a run, and the stop at a loss that is no number any more."""

import math
from collections import deque
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from essential_sparsity.callbacks.whole_batch import mean_loss

WINDOW = 100
"""Batches that the final training loss is the mean of, at most; never more than the last epoch's."""


class TrainingLoss(Callback):
    """Keep the losses of the last batches (100, or an epoch's where that has fewer); `value` is their mean.

    Errors: FloatingPointError naming the step when a loss is NaN or infinite (looked at every 100 batches and at the
    end, so that no step waits for the device).
    """

    def __init__(self) -> None:
        self.losses: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self.seen = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep this batch's loss on its device."""
        if self.losses.maxlen != (window := min(WINDOW, int(trainer.num_training_batches))):
            self.losses = deque(self.losses, maxlen=window)
        loss = mean_loss(outputs, trainer.accumulate_grad_batches)
        assert loss is not None
        self.losses.append(loss)
        self.seen += 1
        if self.seen % WINDOW == 0:
            self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last losses."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise at the first loss that is not finite."""
        for age, loss in enumerate(reversed(self._values())):
            if not math.isfinite(loss):
                step = self.seen - age
                raise FloatingPointError(
                    f"the training loss is {loss} at batch {step} (optimizer step {trainer.global_step}): "
                    "lower optimizer.lr, clip gradients (trainer.gradient_clip_val=1.0), or use precision=32-true"
                )

    def _values(self) -> list[float]:
        return [float(loss) for loss in self.losses]

    @property
    def value(self) -> float | None:
        """The mean loss of the last batches; None before the first."""
        values = self._values()
        return sum(values) / len(values) if values else None

    def state_dict(self) -> dict[str, Any]:
        """Give the window, for an exact resume."""
        return {"losses": self._values(), "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the window of a checkpoint."""
        self.losses = deque((torch.tensor(loss) for loss in state_dict["losses"]), maxlen=WINDOW)
        self.seen = state_dict["seen"]
