"""Augment: a training step sees the views of its own batch, evaluation sees images, and no random state changes."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch

from essential_sparsity.backbones.vision import ImagePreprocessing
from essential_sparsity.callbacks.augmentation import Augment
from essential_sparsity.data.digits import Digits
from essential_sparsity.data.views import MatchedView, MultiCrop


class Watching(lightning.LightningModule):
    """Keeps what its steps are given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[dict[str, torch.Tensor]] = []
        self.validated: list[set[str]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(dict(batch))
        return self.weight * next(batch[name] for name in ("images", "global_views") if name in batch).mean()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.validated.append(set(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("augmentation", [MatchedView(), MultiCrop(num_local=2, local_size=4)], ids=repr)
def test_a_training_step_sees_the_views_of_its_batch(augmentation: Any, tmp_path: Path) -> None:
    data = Digits(augmentation=augmentation, batch_size=64)
    data.prepare(ImagePreprocessing(8, 1, (0.3,), (0.4,), "bicubic"))
    module = Watching()
    trainer = lightning.Trainer(
        max_steps=3, callbacks=[Augment(data.augmentation)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        val_check_interval=3, default_root_dir=tmp_path,
    )  # fmt: skip
    loaders = data.evaluation_dataloaders()["test"]
    trainer.fit(module, train_dataloaders=data.train_dataloader(), val_dataloaders=loaders)
    assert len(module.seen) == 3
    for batch in module.seen:
        for name, views in data.augmentation(batch).items():
            assert torch.equal(batch[name], views) and not views.requires_grad
    assert module.validated == [{"images", "labels", "row"}] * len(loaders)
