"""A whole DINO step, from stored pixels to the moved teacher, against the published recipe with PIL; Lightning's part.

Ours is what `fit` runs: drawn parameters, views on the device, fused AdamW, bf16 and torch.compile on a card. The peer
is tests/bench/dino_recipe.py. On a card ViT-S/16, batches of 64, 2 × 224 and 8 × 96 px of stored 256 × 256, 65,536
prototypes; on a CPU a ViT of 6 blocks of width 128 and patch 4, batches of 32, 2 × 32 and 8 × 16 px, 4,096 prototypes.
The supervised step is compared with the loop of timm's training benchmark (compiled, bf16, one batch again and again).
"""

import functools
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from essential_sparsity.backbones.vision import VisionBackbone
from essential_sparsity.callbacks.augmentation import Augment
from essential_sparsity.callbacks.step_seed import StepSeed
from essential_sparsity.data.batches import BatchLoader, BatchOrder
from essential_sparsity.data.classification import Selection
from essential_sparsity.data.decoded_images import DecodedImages
from essential_sparsity.data.views import MultiCrop
from essential_sparsity.seeds import derive
from essential_sparsity.tasks.averaging import move_average_
from essential_sparsity.tasks.distillation import move_centre_
from essential_sparsity.tasks.image_classification import ImageClassification
from essential_sparsity.tasks.optimization import cosine, cosine_between, make_optimizer
from essential_sparsity.tasks.self_distillation import SelfDistillation
from tests.bench import dino_recipe
from tests.bench.figure import Figure
from tests.bench.measure import in_turn

WARM = 5
"""Steps before the clock: compilation, kernels, workers."""


@dataclass(frozen=True)
class Size:
    """What is trained, on what, and how long."""

    device: str
    stored: int
    size: int
    local: int
    batch: int
    steps: int
    out_dim: int
    hidden_dim: int
    arguments: dict[str, Any]

    @property
    def backbone(self) -> VisionBackbone:
        """Give an untrained ViT."""
        return VisionBackbone(
            "vit_small_patch16_224", pretrained=False, image_size=self.size, mean=dino_recipe.MEAN,
            std=dino_recipe.STD, arguments=self.arguments,
        )  # fmt: skip

    @property
    def words(self) -> str:
        """Say what is trained."""
        return f"batch {self.batch}, 2 × {self.size} and 8 × {self.local} px, {self.device}"


CARD = Size("cuda", 256, 224, 96, 64, 40, 65536, 2048, {})
SMALL = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
CPU = Size("cpu", 32, 32, 16, 32, 10, 4096, 512, SMALL)
QUICK = Size("cpu", 16, 16, 8, 4, 2, 64, 32, {**SMALL, "embed_dim": 32, "depth": 2})


def run(quick: bool = False) -> Iterator[Figure]:
    """Compare whole steps on the CPU and on a card, then the loop around them, then the supervised step."""
    small, rounds = (QUICK, 1) if quick else (CPU, 3)
    yield from _against_the_recipe(small, rounds, goal="")
    yield from _against_a_bare_loop(small, rounds)
    if not torch.cuda.is_available():
        for what in ("a DINO step; the published recipe's", "Lightning's loop; a bare one", "a supervised step"):
            yield Figure(f"{what}, on a card", skipped="no CUDA card: skipped")
        return
    card = CARD if not quick else Size("cuda", 64, 64, 32, 8, 3, 256, 64, {**SMALL, "patch_size": 16})
    yield from _against_the_recipe(card, rounds, goal="≥ 4")
    yield from _against_a_bare_loop(card, rounds)
    yield from _against_timm(card, rounds)


# --- ours -------------------------------------------------------------------------------------------------------------


class Clock(Callback):
    """Time the steps behind the first few."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start, once all before is done."""
        if batch_idx == WARM:
            _wait(pl_module.device)
            self.started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        _wait(pl_module.device)
        self.seconds = time.perf_counter() - self.started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def pixels_of(size: Size) -> np.ndarray:
    """Give random uint8 images for all steps."""
    num = size.batch * (WARM + size.steps)
    return np.random.RandomState(0).randint(0, 256, (num, size.stored, size.stored, 3), np.uint8)


def loader_of(size: Size, pixels: np.ndarray, augmentation: Any) -> BatchLoader:
    """Give the batches that `fit` would train on."""
    num = len(pixels)
    examples = DecodedImages(
        pixels, np.zeros(num, np.uint64), np.zeros(num, np.int64), size.backbone.preprocessing(),
        augmentation=augmentation,
    )  # fmt: skip
    rows = Selection(examples, np.arange(num), seed=0)
    return BatchLoader(rows.batch, BatchOrder(num, size.batch, seed=0))


def task_of(size: Size, *, compiled: bool) -> SelfDistillation:
    """Give DINO over a new ViT, the same every time."""
    model = size.backbone.build(num_labels=10, seed=0, head="features")
    torch.manual_seed(0)
    return SelfDistillation(
        model, optimizer=functools.partial(torch.optim.AdamW, lr=5e-4, fused=True), schedule=cosine,
        out_dim=size.out_dim, hidden_dim=size.hidden_dim, teacher_warmup_epochs=0, compile=compiled,
        freeze_last_layer_epochs=0,
    )  # fmt: skip


def trainer_of(size: Size, clock: Clock, *others: Callback) -> Trainer:
    """Give the trainer that `fit` makes, in essence."""
    return Trainer(
        accelerator="gpu" if size.device == "cuda" else "cpu", devices=1, max_epochs=1, logger=False,
        precision="bf16-mixed" if size.device == "cuda" else "32-true", callbacks=[StepSeed(0), *others, clock],
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, limit_val_batches=0,
        num_sanity_val_steps=0, log_every_n_steps=50,
    )  # fmt: skip


class Ours:
    """Our training, step by step seconds; the last module is kept."""

    def __init__(self, size: Size, pixels: np.ndarray) -> None:
        self.size, self.pixels = size, pixels
        self.augmentation = MultiCrop(local_size=size.local).bind(size.backbone.preprocessing())
        self.module: Any = None

    def seconds(self) -> float:
        """Train anew and give the seconds of a step."""
        self.module, clock = task_of(self.size, compiled=self.size.device == "cuda"), Clock()
        trainer = trainer_of(self.size, clock, Augment(self.augmentation))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning on loaders without workers and without validation
            trainer.fit(self.module, loader_of(self.size, self.pixels, self.augmentation))
        self.module.to(self.size.device)
        return clock.seconds / self.size.steps

    def bare(self) -> float:
        """Train anew without Lightning, and give the seconds of a step."""
        size, device = self.size, torch.device(self.size.device)
        module = self.module = task_of(size, compiled=size.device == "cuda").to(device)
        trained = torch.nn.ModuleList([module.model, module.projection])
        made = _optimizer(trained, WARM + size.steps)
        started = 0.0
        for index, stored in enumerate(loader_of(size, self.pixels, self.augmentation)):
            if index == WARM:
                _wait(device)
                started = time.perf_counter()
            batch = {name: value.to(device, non_blocking=True) for name, value in stored.items()}
            torch.manual_seed(derive(0, "step", 0, 0, index))
            with torch.no_grad():
                batch.update(self.augmentation(batch))
            _bare_step(module, made, batch, index, WARM + size.steps)
        _wait(device)
        return (time.perf_counter() - started) / size.steps


def _optimizer(trained: torch.nn.Module, num_steps: int) -> Any:
    make = functools.partial(torch.optim.AdamW, lr=5e-4, fused=True, weight_decay=0.4)
    optimizer = make_optimizer(trained, make)
    return optimizer, cosine(optimizer, num_steps)


def _bare_step(module: SelfDistillation, made: Any, batch: dict[str, Tensor], index: int, num_steps: int) -> None:
    """Take one step as the trainer does, by hand."""
    optimizer, schedule = made
    half = module.centre.device.type == "cuda"
    with torch.autocast(module.centre.device.type, torch.bfloat16, enabled=half):
        loss, logits, targets, features = module._losses(batch)
        move_centre_(module.centre, logits, momentum=module.centre_momentum)
        module._add(features, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["weight_decay"] = cosine_between(0.04, 0.4, step=index, num_steps=num_steps)
    optimizer.step()
    schedule.step()
    for average, trained in module.averages():
        move_average_(average, trained, cosine_between(0.996, 1.0, step=index, num_steps=num_steps))


# --- the figures ------------------------------------------------------------------------------------------------------


def _against_the_recipe(size: Size, rounds: int, *, goal: str) -> Iterator[Figure]:
    pixels = pixels_of(size)
    ours, num_workers = Ours(size, pixels), min(10, len(os.sched_getaffinity(0)))
    crops = dino_recipe.PilCrops(pixels, size=size.size, local_size=size.local, num_local=8)
    loader = dino_recipe.loader(crops, batch_size=size.batch, num_workers=num_workers)

    def peer() -> float:
        backbone = size.backbone.build(num_labels=10, seed=0, head="features")
        recipe = dino_recipe.Recipe(
            backbone, out_dim=size.out_dim, hidden_dim=size.hidden_dim, num_steps=WARM + size.steps, device=size.device
        )
        batches = iter(loader)
        recipe.epoch(batches, WARM)
        started = time.perf_counter()
        done = recipe.epoch(batches, size.steps)
        _wait(recipe.device)
        return (time.perf_counter() - started) / done

    mine, theirs, pair = in_turn(ours.seconds, peer, rounds)
    yield Figure(
        f"a DINO step; the published recipe's with PIL, {size.words}", mine, theirs, paired_ratio=1 / pair, goal=goal,
        note=f"{num_workers} workers decode nothing, they crop; medians of {rounds} in turn",
    )  # fmt: skip


def _against_a_bare_loop(size: Size, rounds: int) -> Iterator[Figure]:
    ours = Ours(size, pixels_of(size))
    ours.seconds()
    weights = [weight.detach().cpu() for weight in ours.module.teacher.parameters()]
    ours.bare()
    pairs = zip(weights, ours.module.teacher.parameters(), strict=True)
    difference = max(float((weight - other.detach().cpu()).abs().max()) for weight, other in pairs)
    mine, theirs, pair = in_turn(ours.seconds, ours.bare, max(rounds, 2))
    yield Figure(
        f"a DINO step under Lightning; in a bare loop, {size.words}", mine, theirs, ratio_is="of peer",
        paired_ratio=pair, goal="≤ 1.03",
    )  # fmt: skip
    yield Figure("largest difference of the teachers' weights", difference, unit="", goal="≤ 1e-5", check=True)


def _against_timm(size: Size, rounds: int) -> Iterator[Figure]:
    """Compare a supervised step over stored batches with the loop of timm's benchmark.py --bench train."""
    device = torch.device(size.device)
    images = torch.randn(size.batch * 4, 3, size.size, size.size, device=device)
    batch = {"images": images, "labels": torch.zeros(len(images), dtype=torch.long, device=device)}
    batch["row"] = batch["labels"]
    make = functools.partial(torch.optim.AdamW, lr=1e-4, fused=True)

    def ours() -> float:
        model, clock = size.backbone.build(num_labels=1000, seed=0), Clock()
        task = ImageClassification(model, num_labels=1000, optimizer=make, compile=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer_of(size, clock).fit(task, [batch] * (WARM + size.steps))
        return clock.seconds / size.steps

    def peer() -> float:
        model: Any = torch.compile(size.backbone.build(num_labels=1000, seed=0).to(device))
        optimizer, taken = make(model.parameters()), []
        for index in range(WARM + size.steps):
            if index == WARM:
                _wait(device)
                taken.append(time.perf_counter())
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = functional.cross_entropy(model(batch["images"]), batch["labels"])
            loss.backward()
            optimizer.step()
        _wait(device)
        return (time.perf_counter() - median(taken)) / size.steps

    mine, theirs, pair = in_turn(ours, peer, rounds)
    yield Figure(
        f"a supervised ViT-S/16 step; timm's training benchmark, compiled, bf16, batch {len(images)}", mine, theirs,
        paired_ratio=1 / pair, goal="≥ 1",
    )  # fmt: skip
