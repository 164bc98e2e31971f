"""The training loss at the end of a run, and the stop at the very step at which it is no number any more."""

import math
from collections import deque
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from essential_sparsity.callbacks.checkpoint_every import REMEDY, CheckpointEvery
from essential_sparsity.callbacks.whole_batch import mean_loss

WINDOW = 100
"""Batches that the final training loss is the mean of, at most; never more than the last epoch's."""

UNDER_WAY = 2
"""Batches that a CUDA device may still be at when an earlier one's loss is waited for: it never stands idle."""


class TrainingLoss(Callback):
    """Keep the losses of the last batches (100, or an epoch's where that has fewer); `value` is their mean.

    Errors: FloatingPointError naming the step and the last good checkpoint when a loss is NaN or infinite: at that very
    step on a CPU, at most `UNDER_WAY` later on a CUDA device, and always before a checkpoint is written.
    """

    def __init__(self) -> None:
        self.losses: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self.seen = 0
        self._unread: deque[_Unread] = deque()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep this batch's loss on its device; read those that are there by now."""
        if self.losses.maxlen != (window := min(WINDOW, int(trainer.num_training_batches))):
            self.losses = deque(self.losses, maxlen=window)
        loss = mean_loss(outputs, trainer.accumulate_grad_batches)
        assert loss is not None
        self.losses.append(loss)
        self.seen += 1
        self._unread.append(_Unread(loss, self.seen, trainer.global_step))
        self._read(trainer, keep=under_way(loss))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read all losses so far: behind one that is no number there is nothing to go on from."""
        self._read(trainer, keep=0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last losses."""
        self._read(trainer, keep=0)

    def _read(self, trainer: Trainer, *, keep: int) -> None:
        """Read the losses but for the last `keep`; raise at the first that is not finite."""
        while len(self._unread) > keep:
            unread = self._unread.popleft()
            if math.isfinite(value := unread.value()):
                continue
            error = FloatingPointError(
                f"the training loss is {value} at batch {unread.batch} (optimizer step {unread.step}), "
                f"{CheckpointEvery.last_of(trainer)}: {REMEDY}"
            )
            vars(error)["step"] = unread.step  # for failure.json
            raise error

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


def under_way(loss: torch.Tensor) -> int:
    """Give how many of the last losses are not waited for: none where reading one takes no time."""
    return UNDER_WAY if loss.is_cuda else 0


class _Unread:
    """A loss on its way from its device to host memory, and the batch and optimizer step that it is of."""

    def __init__(self, loss: torch.Tensor, batch: int, step: int) -> None:
        self.batch, self.step = batch, step
        self._copy = loss.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if loss.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def value(self) -> float:
        """Wait for the copy, and for nothing that was asked of the device after it."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._copy)
