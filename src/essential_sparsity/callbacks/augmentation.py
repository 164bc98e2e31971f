"""Views of training batches, made on the device just before the step that uses them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor


class Augment(Callback):
    """Add an augmentation's views to every training batch; evaluation batches stay as they are.

    The augmentation (data/views.py) takes a batch that holds `pixels` and `view_parameters` and gives `images`, or
    `global_views` and `local_views`. It draws nothing itself, so it changes no random state.
    """

    def __init__(self, augmentation: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> None:
        self.augmentation = augmentation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the views to the batch, on its own device."""
        with torch.no_grad():
            batch.update(self.augmentation(batch))
