"""Save what an unfinished run needs to go on, every so many minutes or steps, in one file that is replaced whole."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from essential_sparsity import preemption

AGREED_EVERY = 10
"""Optimizer steps after which several ranks look at the clock together, which waits for the device."""


class CheckpointEvery(Callback):
    """Write `folder/last.ckpt` every `minutes`, or every `steps` optimizer steps; and when the machine is taken."""

    def __init__(self, folder: Path, *, minutes: float | None = 10.0, steps: int | None = None) -> None:
        self.folder, self.minutes, self.steps = folder, minutes, steps
        self.saved_at, self.saved_step = time.monotonic(), 0

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self.folder / "last.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, only between optimizer steps, and never at an epoch's last batch.

        Resumed from there, Lightning 2.6 miscounts the next epoch's batches in the checkpoints that follow; the next
        epoch's first step saves instead. (An epoch of a single step is never saved: such runs start afresh.)
        """
        between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        safe = between and batch_idx + 1 < trainer.num_training_batches
        if safe and (self._due(trainer) or preemption.checkpoint_asked()):
            with preemption.saving():
                trainer.save_checkpoint(self.path)
            self.saved_at, self.saved_step = time.monotonic(), trainer.global_step

    def _due(self, trainer: Trainer) -> bool:
        if self.steps is not None:
            return trainer.global_step >= self.saved_step + self.steps
        due = self.minutes is not None and time.monotonic() - self.saved_at >= 60 * self.minutes
        if trainer.world_size == 1 or self.minutes is None:
            return due
        if trainer.global_step % AGREED_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(due, all=False)  # clocks differ: ranks save together
