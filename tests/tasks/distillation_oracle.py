"""DINO written out: loops over pairs of views, torch's own weight norm, schedules as arrays, a teacher moved by hand.

From the paper (arXiv 2104.14294, algorithm 1 and section 3) and its published code (main_dino.py, vision_transformer.py
of facebookresearch/dino), independent of ours: nothing is imported from essential_sparsity.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class DinoHead(nn.Module):
    """The published projection head without batch norm."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, bottleneck_dim: int, num_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(in_dim, hidden_dim), nn.GELU()]
        for _ in range(num_layers - 2):
            layers += [nn.Linear(hidden_dim, hidden_dim), nn.GELU()]
        layers.append(nn.Linear(hidden_dim, bottleneck_dim))
        self.mlp = nn.Sequential(*layers)
        self.last_layer = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False), dim=0)
        magnitude: Any = self.last_layer.parametrizations
        magnitude.weight.original0.data.fill_(1)
        magnitude.weight.original0.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(nn.functional.normalize(self.mlp(x), dim=-1, p=2))


def cosine_scheduler(start: float, end: float, num_steps: int) -> np.ndarray:
    """Give the published code's schedule without warm-up."""
    steps = np.arange(num_steps)
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * steps / len(steps)))


def temperature_scheduler(start: float, end: float, warmup_epochs: int, num_epochs: int) -> np.ndarray:
    """Give the teacher's temperature of every epoch."""
    return np.concatenate((np.linspace(start, end, warmup_epochs), np.ones(num_epochs - warmup_epochs) * end))


def loss_of(student: list[Tensor], teacher: list[Tensor], centre: Tensor, sharp: float, soft: float) -> Tensor:
    """Give the mean over all pairs of different views of −Σ P_t log P_s, row by row."""
    total, num_pairs = student[0].new_zeros(()), 0
    for index, seen in enumerate(teacher):
        target = torch.softmax((seen - centre) / sharp, dim=-1).detach()
        for other, guess in enumerate(student):
            if other == index:
                continue
            rows = [-(q * torch.log_softmax(s / soft, dim=-1)).sum() for q, s in zip(target, guess)]
            total = total + torch.stack(rows).mean()
            num_pairs += 1
    return total / num_pairs


class LiteralDino:
    """Trains copies of a backbone and a head, step by step."""

    def __init__(
        self, backbone: nn.Module, head: DinoHead, *, lr: float, steps: int, epoch_steps: int, out_dim: int
    ) -> None:
        self.student, self.student_head = copy.deepcopy(backbone), copy.deepcopy(head)
        self.teacher, self.teacher_head = copy.deepcopy(backbone), copy.deepcopy(head)
        self.epoch_steps, self.step = epoch_steps, 0
        self.centre = torch.zeros(1, out_dim, dtype=torch.float64)
        self.rates = cosine_scheduler(lr, 0.0, steps)
        self.decays = cosine_scheduler(0.04, 0.4, steps)
        self.momenta = cosine_scheduler(0.9, 1.0, steps)
        self.temperatures = temperature_scheduler(0.04, 0.07, 3, math.ceil(steps / epoch_steps))
        decayed, others = [], []
        for name, weight in [*self.student.named_parameters(), *self.student_head.named_parameters()]:
            if weight.requires_grad:
                (others if name.endswith(".bias") or weight.ndim == 1 else decayed).append(weight)
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], fused=False)

    def train_on(self, global_views: Tensor, local_views: Tensor) -> float:
        """Take one step on views [G, N, …] and [L, N, …]; gives the loss."""
        epoch = self.step // self.epoch_steps
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.rates[self.step]
            if index == 0:
                group["weight_decay"] = self.decays[self.step]
        teacher = [self.teacher_head(self.teacher(view)) for view in global_views]
        student = [self.student_head(self.student(view)) for view in [*global_views, *local_views]]
        loss = loss_of(student, teacher, self.centre, self.temperatures[epoch], 0.1)
        rows = torch.cat(teacher).detach()
        self.centre = self.centre * 0.9 + rows.mean(0, keepdim=True) * 0.1
        self.optimizer.zero_grad()
        loss.backward()
        if epoch < 1:
            for weight in self.student_head.last_layer.parameters():
                weight.grad = None
        self.optimizer.step()
        pairs = [*zip(self.teacher.parameters(), self.student.parameters())]
        pairs += zip(self.teacher_head.parameters(), self.student_head.parameters())
        with torch.no_grad():
            for mine, theirs in pairs:
                mine.copy_(mine * self.momenta[self.step] + theirs * (1 - self.momenta[self.step]))
        self.step += 1
        return float(loss.detach())
