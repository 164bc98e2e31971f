"""The published DINO recipe as its code runs it (facebookresearch/dino main_dino.py), on one device: the peer.

Images are PIL's, transformed one by one in worker processes; the loop is eager, under autocast with a gradient scaler
on a card; loss and gradient norms are read at every step.
"""

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.tasks.distillation_oracle import DinoHead

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Crops = list[Tensor]


class GaussianBlur:
    """Blur a PIL image with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Solarization:
    """Solarise a PIL image with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.probability else image


class PilCrops(Dataset[Crops]):
    """Two global and `num_local` local crops of each image, as DataAugmentationDINO makes them."""

    def __init__(self, pixels: np.ndarray, *, size: int, local_size: int, num_local: int) -> None:
        self.pixels, self.num_local = pixels, num_local
        jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        colour = [
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
        ]
        normal = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]

        def pipeline(to: int, scale: tuple[float, float], *others: Any) -> Any:
            crop = transforms.RandomResizedCrop(to, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC)
            return transforms.Compose([crop, *colour, *others, *normal])

        self.first = pipeline(size, (0.4, 1.0), GaussianBlur(1.0))
        self.second = pipeline(size, (0.4, 1.0), GaussianBlur(0.1), Solarization(0.2))
        self.local = pipeline(local_size, (0.05, 0.4), GaussianBlur(0.5))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Crops:
        image = Image.fromarray(np.asarray(self.pixels[index]))
        return [self.first(image), self.second(image), *(self.local(image) for _ in range(self.num_local))]


def loader(images: PilCrops, *, batch_size: int, num_workers: int) -> DataLoader[Crops]:
    """Give the published code's loader."""
    return DataLoader(
        images, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers,
        pin_memory=torch.cuda.is_available(), persistent_workers=True,
    )  # fmt: skip


class Recipe:
    """Student, teacher, loss and loop of the published code; `epoch` gives the number of steps it took."""

    def __init__(self, backbone: Any, *, out_dim: int, hidden_dim: int, num_steps: int, device: str) -> None:
        head = DinoHead(backbone.num_features, out_dim, hidden_dim, 256, 3)
        self.device, self.step = torch.device(device), 0
        self.student = nn.ModuleList([copy.deepcopy(backbone), head]).to(self.device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.centre = torch.zeros(1, out_dim, device=self.device)
        steps = np.arange(num_steps)
        self.momenta = 1 + 0.5 * (0.996 - 1) * (1 + np.cos(np.pi * steps / num_steps))
        self.decays = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * steps / num_steps))
        regular = [w for w in self.student.parameters() if w.requires_grad and w.ndim > 1]
        others = [w for w in self.student.parameters() if w.requires_grad and w.ndim == 1]
        self.optimizer = torch.optim.AdamW([{"params": regular}, {"params": others, "weight_decay": 0.0}], lr=5e-4)
        self.half = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)

    def epoch(self, batches: Iterator[Crops] | Any, num_steps: int) -> int:
        """Take at most so many steps over the loader's batches."""
        done = 0
        for crops in batches:
            self.train_on([crop.to(self.device, non_blocking=True) for crop in crops])
            done += 1
            if done == num_steps:
                break
        return done

    def train_on(self, crops: Crops) -> None:
        """Take one step."""
        self.optimizer.param_groups[0]["weight_decay"] = self.decays[self.step]
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            teacher = self._through(self.teacher, crops[:2])
            student = self._through(self.student, crops)
            loss = self._loss(student, teacher, len(crops))
        loss.item()  # the published loop leaves training where it is infinite
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        momentum = self.momenta[self.step]
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.data.mul_(momentum).add_((1 - momentum) * theirs.detach().data)
        if self.half:
            torch.cuda.synchronize()
        self.step += 1

    def _through(self, network: nn.ModuleList, crops: Crops) -> Tensor:
        """Run crops of one size at a time through the backbone, all features through the head (MultiCropWrapper)."""
        sizes = torch.unique_consecutive(torch.tensor([crop.shape[-1] for crop in crops]), return_counts=True)[1]
        features, start = [], 0
        for end in sizes.cumsum(0).tolist():
            features.append(network[0](torch.cat(crops[start:end])))
            start = end
        return network[1](torch.cat(features))

    def _loss(self, student: Tensor, teacher: Tensor, num_crops: int) -> Tensor:
        guesses = (student / 0.1).chunk(num_crops)
        targets = functional.softmax((teacher - self.centre) / 0.04, dim=-1).detach().chunk(2)
        losses = [
            torch.sum(-target * functional.log_softmax(guess, dim=-1), dim=-1).mean()
            for index, target in enumerate(targets)
            for other, guess in enumerate(guesses)
            if other != index
        ]
        mean = teacher.sum(0, keepdim=True) / len(teacher)
        self.centre = self.centre * 0.9 + mean * 0.1
        return torch.stack(losses).sum() / len(losses)

    def _clip(self) -> None:
        for weight in self.student.parameters():
            if weight.grad is not None:
                norm = weight.grad.data.norm(2)
                norm.item()
                weight.grad.data.mul_(torch.clamp(3.0 / (norm + 1e-6), max=1.0))
