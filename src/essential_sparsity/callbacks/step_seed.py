"""Dropout as a pure function of (seed, rank, step): what makes a resumed run draw what the undisturbed one drew."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from essential_sparsity.seeds import derive


class StepSeed(Callback):
    """Seed torch before every training batch from (seed, rank, batches seen)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of all devices."""
        torch.manual_seed(derive(self.seed, "step", trainer.global_rank, trainer.current_epoch, batch_idx))
