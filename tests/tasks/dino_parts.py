"""A small DINO on digits for tests: backbone, batches of views, a quiet trainer."""

import copy
import functools
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from essential_sparsity.backbones.vision import VisionBackbone
from essential_sparsity.data.digits import _digits
from essential_sparsity.tasks.self_distillation import SelfDistillation

SMALL = {"out_dim": 48, "hidden_dim": 32, "bottleneck_dim": 16, "teacher_warmup_epochs": 3, "momentum": 0.9}
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3)


def backbone(**changed: Any) -> VisionBackbone:
    """Give a ViT of two blocks for 8 × 8 images."""
    shape = {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"}
    given: dict[str, Any] = {"pretrained": False, "image_size": 8, "num_channels": 1, "mean": [0.5], "std": [0.5]}
    return VisionBackbone("vit_tiny_patch16_224", **given, arguments=shape | changed)


def distillation(**options: Any) -> SelfDistillation:
    """Give a small task over a new ViT, the same every time."""
    model = backbone().build(num_labels=10, seed=0, head="features")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SelfDistillation(model, **{"num_labels": 10, "optimizer": ADAMW, **SMALL, **options})


def batches(num: int, *, rows: int = 12, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[dict[str, Tensor]]:
    """Give batches of digits with two noisy global views [2, rows, 1, 8, 8] and three local ones of 4 × 4."""
    pixels, labels = _digits()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    generator, made = torch.Generator().manual_seed(seed), []
    for _ in range(num):
        chosen = torch.randint(len(images), (rows,), generator=generator)
        seen = images[chosen]
        noise = torch.randn(2, *seen.shape, generator=generator).to(dtype)
        corners = ((0, 0), (2, 2), (4, 4))
        local = torch.stack([seen[:, :, top : top + 4, left : left + 4] for top, left in corners])
        made.append({
            "global_views": seen + 0.2 * noise, "local_views": local, "images": seen,
            "labels": torch.from_numpy(labels)[chosen], "row": chosen,
        })  # fmt: skip
    return made


def train(
    module: lightning.LightningModule, loader: Any, *, callbacks: Any = (), ckpt_path: Any = None, **settings: Any
) -> lightning.Trainer:
    """Train quietly on the CPU; a list of batches is an epoch."""
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        log_every_n_steps=1, callbacks=list(callbacks), **{"max_epochs": 1, **settings},
    )  # fmt: skip
    if isinstance(loader, list):
        loader = DataLoader(Copies(loader), batch_size=None)
    trainer.fit(module, loader, DataLoader(Copies([]), batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Copies(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Batches of which each is handed out as a copy."""

    def __init__(self, made: list[dict[str, Tensor]]) -> None:
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return copy.copy(self.made[index])
