"""The parts of DINO (Caron et al. 2021, arXiv 2104.14294): projection, loss, centre, and what tells a collapse.

Legend: G global views, V all views (the global ones first), N rows, D features, B bottleneck, K prototypes.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

CONSTANT_SPREAD = 0.01
"""Spread of features (0 constant, 1 in all directions alike) under which they tell no image from another."""

DOMINATED = 0.02
"""Entropy of the mean output, as a share of log K, under which one dimension dominates."""

UNIFORM, ALIKE = 1e-3, 1e-5
"""Shares of log K: how near an entropy is to it, and the mean entropy to that of the mean, where outputs are uniform.

Early in a sound training outputs are nearly uniform, too, but differ from image to image (by 1e-4 and more).
"""


class CollapseError(ValueError):
    """Self-distillation has found the trivial solution: its result is no result."""


# --- projection -------------------------------------------------------------------------------------------------------


class ProjectionHead(nn.Module):
    """Project features [rows, D] to logits [rows, K]: an MLP, unit length, a weight-normalised last layer.

    As the published DINOHead: GELU, no batch norm, weights from N(0, 0.02²) cut at ±2, the last layer's as torch draws
    a linear layer's. With `norm_last_layer` its rows keep length 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = WeightNormalised(bottleneck_dim, out_dim, fixed=norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Give the logits [rows, K]."""
        return self.last(functional.normalize(self.mlp(features), dim=-1))


class WeightNormalised(nn.Module):
    """A linear layer without bias whose rows are a direction times a length (Salimans and Kingma 2016), at first 1."""

    def __init__(self, in_dim: int, out_dim: int, *, fixed: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.kaiming_uniform_(self.direction, a=math.sqrt(5))
        self.length = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not fixed)

    def forward(self, x: Tensor) -> Tensor:
        """Give x [rows, in] times the normalised weights: [rows, out]."""
        return functional.linear(x, self.length * functional.normalize(self.direction, dim=1))


# --- loss -------------------------------------------------------------------------------------------------------------


def teacher_targets(logits: Tensor, centre: Tensor, *, temperature: float) -> Tensor:
    """Centre and sharpen the teacher's logits [G, N, K]: distributions of the same shape, in fp32 or wider."""
    return ((_wide(logits) - centre) / temperature).softmax(-1)


def distillation_loss(logits: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Give the mean cross-entropy of the student's V views against the teacher's G, equal views left out.

    `logits` [V, N, K] are the student's, global views first; `targets` [G, N, K] the teacher's distributions. As the
    dot product is linear, the sum over pairs needs one pass per view and no pair's [N, K] table: Σ_g −q_g·log p_v =
    G·log Σ exp s_v − (Σ_g q_g)·s_v.
    """
    num_global, num_rows = targets.shape[:2]
    scaled = _wide(logits) / temperature
    others = targets.sum(0)
    dots = (scaled[:num_global] * (others - targets)).sum() + (scaled[num_global:].sum(0) * others).sum()
    normalisers = scaled.logsumexp(-1).sum(1)
    counts = normalisers.new_full((len(logits),), float(num_global))
    counts[:num_global] -= 1
    num_pairs = num_global * (len(logits) - 1)
    return ((normalisers * counts).sum() - dots) / (num_pairs * num_rows)


@torch.no_grad()
def move_centre_(centre: Tensor, logits: Tensor, *, momentum: float, rows: Tensor | None = None) -> None:
    """Move the centre [K] towards the mean of the teacher's logits [G, N, K]: momentum · centre + the rest · mean.

    Under torch.distributed the mean is over all ranks' rows; `rows` [N] says which of this rank's count (negative: one
    that it only borrowed).
    """
    centre.lerp_(_mean_row(logits, rows).to(centre.dtype), 1 - momentum)


def _mean_row(logits: Tensor, rows: Tensor | None) -> Tensor:
    if not torch.distributed.is_initialized():
        return logits.mean((0, 1))
    counts = torch.ones_like(logits[0, :, 0]) if rows is None else (rows >= 0).to(logits.dtype)
    total = torch.cat([(logits * counts[:, None]).sum((0, 1)), counts.sum().view(1) * len(logits)])
    torch.distributed.all_reduce(total)
    return total[:-1] / total[-1]


def teacher_temperature(start: float, end: float, *, epoch: int, warmup_epochs: int) -> float:
    """Give the epoch's temperature: `start` in the first, in equal steps to `end` in the last of the warm-up's."""
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / max(1, warmup_epochs - 1)


def _wide(logits: Tensor) -> Tensor:
    """Give half-precision logits in fp32."""
    return logits if logits.dtype == torch.float64 else logits.float()


# --- collapse ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def output_entropies(targets: Tensor) -> Tensor:
    """Give two shares of log K [2] of the teacher's outputs [G, N, K]: mean entropy, entropy of the mean.

    Both are 1 where outputs are uniform, both 0 where one dimension takes all: the collapses without sharpening and
    without centring (the paper's section 5.3). Sound outputs differ from image to image: the second is above the first.
    """
    mean_entropy = torch.special.entr(targets).sum(-1).mean()
    entropy_of_mean = torch.special.entr(targets.mean((0, 1))).sum()
    return torch.stack([mean_entropy, entropy_of_mean]) / math.log(targets.shape[-1])


def collapse_of(spread: float, entropy: float, entropy_of_mean: float) -> str | None:
    """Say how a self-distillation has collapsed, from its features' spread and its output's entropies; or None."""
    if spread < CONSTANT_SPREAD:
        return f"features are constant (their spread is {spread:.2g}, that of random directions 1)"
    if entropy_of_mean < DOMINATED:
        return f"one dimension dominates the teacher's output (entropy {entropy_of_mean:.2g} of log K)"
    if entropy > 1 - UNIFORM and entropy_of_mean - entropy < ALIKE:
        return f"the teacher's output is uniform for every image (entropy {entropy:.5f} of log K)"
    return None
