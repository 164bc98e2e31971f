"""Keep the weights of one step, as plain model files: where lottery tickets are rewound to."""

import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Snapshot(Callback):
    """Write the model after `step` optimizer steps to `folder`, whole or not at all, by `backbone.save`.

    Raises ValueError at the end of a training that was shorter.
    """

    def __init__(self, step: int, folder: Path, backbone: Any, model: Any) -> None:
        if step < 1:
            raise ValueError(f"step={step} has no weights to keep: give a step of at least 1")
        self.step, self.folder, self.backbone, self.model = step, folder, backbone, model

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when the step is reached."""
        if trainer.global_step != self.step or self.folder.is_dir() or not trainer.is_global_zero:
            return
        temporary = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        self.backbone.save(self.model, temporary)
        temporary.rename(self.folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a step that was never reached."""
        if not self.folder.is_dir():
            raise ValueError(
                f"weights of step {self.step} were to be kept, but training has {trainer.global_step} steps: "
                "rewind to an earlier step"
            )
