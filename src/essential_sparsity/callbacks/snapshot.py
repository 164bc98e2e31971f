"""Keep the weights of one step, as plain model files: where lottery tickets are rewound to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from essential_sparsity.runs import atomic_folder


class Snapshot(Callback):
    """Write the model after `step` optimizer steps to `folder`, whole or not at all, by `backbone.save`.

    `model(trainer)` gives it; all ranks ask, since it may be in shards, and rank 0 writes. Raises ValueError before a
    training that is shorter.
    """

    def __init__(self, step: int, folder: Path, backbone: Any, model: Callable[[Trainer], Any]) -> None:
        if step < 1:
            raise ValueError(f"step={step} has no weights to keep: give a step of at least 1")
        self.step, self.folder, self.backbone, self.model = step, folder, backbone, model

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a step that is never reached, before the first one."""
        if self.step > trainer.estimated_stepping_batches:
            raise ValueError(
                f"weights of step {self.step} are to be kept, but training has {trainer.estimated_stepping_batches} "
                "steps: rewind to an earlier step"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when the step is reached."""
        if trainer.global_step != self.step:
            return
        model = self.model(trainer)
        if trainer.is_global_zero and not self.folder.is_dir():
            with atomic_folder(self.folder) as temporary:
                self.backbone.save(model, temporary)
