"""Small real runs for tests of `fit`, also from subprocesses: a ViT and DINO on digits, a BERT on Python's manual."""

import functools
from pathlib import Path
from typing import Any

import torch

from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.backbones.vision import VisionBackbone
from essential_sparsity.data.digits import Digits
from essential_sparsity.data.embedded_text import EmbeddedText
from essential_sparsity.data.views import MultiCrop
from essential_sparsity.tasks.image_classification import ImageClassification
from essential_sparsity.tasks.optimization import linear
from essential_sparsity.tasks.self_distillation import SelfDistillation
from essential_sparsity.tasks.sequence_classification import SequenceClassification

VIT = {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"}


def arguments(kind: str, folder: Path | str) -> dict[str, Any]:
    """Give the arguments of a run of two epochs of 11 (images) or 10 (language) steps, checkpoints every 3 steps."""
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
    trainer = {"max_epochs": 2, "accelerator": "cpu", "checkpoint_steps": 3, "gradient_clip_val": 1.0}
    shared = {"run": Path(folder), "sparsity": 0.5, "seed": 0, "trainer": trainer}
    if kind == "language":
        return shared | {
            "backbone": TinyLanguageBackbone(),
            "data": EmbeddedText(num_train_rows=320, num_evaluation_rows=64, max_length=32),
            "task": functools.partial(SequenceClassification, optimizer=optimizer, schedule=linear),
        }
    backbone = VisionBackbone(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=8,
        num_channels=1,
        mean=[0.5],
        std=[0.5],
        dropout=0.1,
        arguments=VIT,
    )
    if kind == "vision":
        data = Digits(num_train_rows=352, batch_size=32, noise=0.1)
        task = functools.partial(ImageClassification, optimizer=optimizer, schedule=linear)
    else:
        data = Digits(num_train_rows=352, batch_size=32, augmentation=MultiCrop(num_local=2, local_size=4))
        sizes = {"out_dim": 32, "hidden_dim": 32, "bottleneck_dim": 8}
        task = functools.partial(SelfDistillation, optimizer=optimizer, schedule=linear, **sizes)
    return shared | {"backbone": backbone, "data": data, "task": task}
