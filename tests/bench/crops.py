"""DINO's multi-crop views per second: ours, made in batches on as many threads as there are, against PIL's, one by one.

The peer is DINO's own pipeline (torchvision's transforms of PIL images, bicubic) in a DataLoader with one worker per
thread, as its code runs it. Both start from uint8 images in a memory-mapped file and end at normalised fp32 tensors.
32 px is CIFAR-10 where ES_DATA has it (random pixels elsewhere), two global views of 32 and eight local ones of 12 px;
224 px is random pixels of 256 × 256, two of 224 and eight of 96 px.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from essential_sparsity.backbones.vision import ImagePreprocessing
from essential_sparsity.data.decoded_images import DecodedImages
from essential_sparsity.data.images import Images
from essential_sparsity.data.views import MultiCrop
from tests.bench.figure import Figure
from tests.bench.measure import in_turn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_VIEWS = 10
BATCH = 64


def run(quick: bool = False) -> Iterator[Figure]:
    """Compare views per second at both sizes."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as folder:
        for stored, size, local, num, goal in ((32, 32, 12, 2560, "≥ 4"), (256, 224, 96, 256, "≥ 1.5")):
            num = 8 if quick else num
            pixels = _pixels(Path(folder), stored, num)
            ours, loader = Ours(pixels, size, local), peer_loader(pixels, size, local)
            ours.seconds()  # memory is warm
            _peer_seconds(loader)  # and workers are started
            mine, theirs, pair = in_turn(ours.seconds, lambda loader=loader: _peer_seconds(loader), rounds)
            threads = torch.get_num_threads()
            yield Figure(
                f"10 views of {num} images, {stored} → 2 × {size}, 8 × {local} px, {threads} threads",
                mine, theirs, paired_ratio=1 / pair, goal=goal,
                note=f"views per second: {_rate(num, mine)} ours, {_rate(num, theirs)} by PIL",
            )  # fmt: skip


def _rate(num: int, seconds: float) -> str:
    return f"{num * NUM_VIEWS / seconds:,.0f}"


def _pixels(folder: Path, size: int, num: int) -> np.ndarray:
    """Give images uint8 [num, size, size, 3] of a memory-mapped file."""
    root = os.environ.get("ES_DATA")
    if size == 32 and root and (Path(root) / "cifar10").is_dir():
        data = Images("cifar10", root=root, num_train_rows=num)
        data.prepare(ImagePreprocessing(32, 3, MEAN, STD, "bicubic"))
        rows = data.training_rows()
        pixels = cast(DecodedImages, rows.examples).pixels[rows.rows]
    else:
        pixels = np.random.RandomState(0).randint(0, 256, (num, size, size, 3), np.uint8)
    np.save(folder / f"{size}.npy", pixels)
    return np.load(folder / f"{size}.npy", mmap_mode="r")


class Ours:
    """Batches as a training run gets them, then the views of each."""

    def __init__(self, pixels: np.ndarray, size: int, local: int) -> None:
        preprocessing = ImagePreprocessing(size, 3, MEAN, STD, "bicubic")
        self.augmentation = MultiCrop(local_size=local).bind(preprocessing)
        num = len(pixels)
        self.examples = DecodedImages(
            pixels, np.zeros(num, np.uint64), np.zeros(num, np.int64), preprocessing, augmentation=self.augmentation
        )

    def seconds(self) -> float:
        """Time one pass over all images, in the order of a shuffled epoch."""
        started = time.perf_counter()
        order = np.random.RandomState(0).permutation(len(self.examples.labels))
        for start in range(0, len(order), BATCH):
            batch = self.examples.batch(order[start : start + BATCH], epoch=0, seed=0)
            batch.update(self.augmentation(batch))
        return time.perf_counter() - started


# --- the peer: facebookresearch/dino, main_dino.py and utils.py -------------------------------------------------------


class PILViews:
    """DataAugmentationDINO, written from its code: each image alone, by torchvision's transforms of PIL images."""

    def __init__(self, size: int, local: int) -> None:
        from PIL import Image
        from torchvision import transforms

        jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        flip_and_colour = [
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
        ]
        end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]

        def crop(pixels: int, scale: tuple[float, float]) -> Any:
            bicubic = transforms.InterpolationMode.BICUBIC
            assert bicubic.value == Image.Resampling.BICUBIC.name.lower()
            return transforms.RandomResizedCrop(pixels, scale=scale, interpolation=bicubic)

        def pipeline(*steps: Any) -> Any:
            return transforms.Compose([steps[0], *flip_and_colour, *steps[1:], *end])

        self.first = pipeline(crop(size, (0.4, 1.0)), GaussianBlur(1.0))
        self.second = pipeline(crop(size, (0.4, 1.0)), GaussianBlur(0.1), Solarise(0.2))
        self.local = pipeline(crop(local, (0.05, 0.4)), GaussianBlur(0.5))

    def __call__(self, image: Any) -> list[Tensor]:
        return [self.first(image), self.second(image), *(self.local(image) for _ in range(NUM_VIEWS - 2))]


class GaussianBlur:
    """Blur with a probability, by a radius of 0.1 … 2 pixels."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, image: Any) -> Any:
        from PIL import ImageFilter

        if random.random() > self.share:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Solarise:
    """Invert bright pixels with a probability."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, image: Any) -> Any:
        from PIL import ImageOps

        return ImageOps.solarize(image) if random.random() < self.share else image


class PILImages(Dataset[list[Tensor]]):
    """Views of each image of an array."""

    def __init__(self, pixels: np.ndarray, size: int, local: int) -> None:
        self.pixels, self.views = pixels, PILViews(size, local)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> list[Tensor]:
        from PIL import Image

        return self.views(Image.fromarray(self.pixels[index]))


def peer_loader(pixels: np.ndarray, size: int, local: int) -> DataLoader[list[Tensor]]:
    """Give the peer's loader: shuffled, one worker per thread, kept from epoch to epoch."""
    images = PILImages(pixels, size, local)
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        images, BATCH, shuffle=True, num_workers=torch.get_num_threads(), persistent_workers=True, generator=generator
    )


def _peer_seconds(loader: DataLoader[list[Tensor]]) -> float:
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started
