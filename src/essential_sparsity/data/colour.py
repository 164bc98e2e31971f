"""Colour of views: brightness, contrast, saturation, hue and grey of a view are one 3 × 3 matrix and one offset.

Legend: N views, C channels (1 or 3), K = 4 adjustments.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""

COLOUR_COLUMNS = ("brightness", "contrast", "saturation", "hue", "order", "grey", "solarised")
"""Three factors, a hue shift in turns, the index of the order of the four, 1 where grey, 1 where solarised."""

NUM_COLOUR_DRAWS = 8
CONTRAST = 1
ORDERS = tuple(itertools.permutations(range(4)))
"""Orders of brightness, contrast, saturation and hue; torchvision draws one of the 24 for each view."""

TURN = ((0, -1, 1), (1, 0, -1), (-1, 1, 0))
"""The quarter turn about the grey axis, times the square root of 3: red goes towards yellow, as hue rises."""


def draw_colours(
    draws: np.ndarray, *, strengths: tuple[float, float, float, float], jitter: float, grey: float, solarise: np.ndarray
) -> np.ndarray:
    """Draw the columns of colour [..., 7] from uniform draws [..., 8], as torchvision's ColorJitter does.

    `strengths` of brightness, contrast, saturation (factors uniform in max(0, 1 - b) … 1 + b) and hue (in turns,
    uniform in -h … h); all four or none of them with probability `jitter`; `grey` and `solarise` are probabilities.
    """
    applied = draws[..., 0] < jitter
    factors = []
    for index, strength in enumerate(strengths):
        low, high = (-strength, strength) if index == len(strengths) - 1 else (max(0.0, 1 - strength), 1 + strength)
        neutral = 0.0 if index == len(strengths) - 1 else 1.0
        factors.append(np.where(applied, low + (high - low) * draws[..., 1 + index], neutral))
    order = np.floor(draws[..., 5] * len(ORDERS))
    return np.stack([*factors, order, draws[..., 6] < grey, draws[..., 7] < solarise], -1)


def colour_matrices(colours: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Give matrix [..., C, C] and offset [..., C] of colours [..., 7] for views of mean colour [..., C].

    Brightness scales, contrast moves away from the view's mean brightness, saturation from the pixel's own, hue turns
    about the grey axis, in each view's order; grey comes last. Two things differ from torchvision, so that all of it is
    linear: values are cut to [0, 1] once, at the end (`recolour`), and HSV's hexagon of hues is a circle. That is exact
    at thirds of a turn, off by 0.016 of full brightness at 0.1 turns on CIFAR-10 (mean; the shift itself changes
    0.026), where the YIQ rotation that others use is off by 0.028. Grey stays grey: for C = 1 only brightness and
    contrast act.
    """
    num_channels = mean.shape[-1]
    mean = mean.expand(*mean.shape[:-1], 3)
    luma, identity = mean.new_tensor(LUMA), torch.eye(3, device=mean.device, dtype=mean.dtype)
    steps = _adjustments(colours, luma, identity)
    orders = torch.tensor(ORDERS, device=mean.device)[colours[..., 4].long()]
    matrix, offset = identity.expand(*mean.shape, 3), torch.zeros_like(mean)
    for order in orders.unbind(-1):
        step = torch.take_along_dim(steps, order[..., None, None, None], -3).squeeze(-3)
        brightness = (((matrix @ mean[..., None]).squeeze(-1) + offset) * luma).sum(-1)
        away = torch.where(order == CONTRAST, (1 - colours[..., CONTRAST]) * brightness, 0.0)
        matrix, offset = step @ matrix, (step @ offset[..., None]).squeeze(-1) + away[..., None]
    grey = colours[..., 5, None]
    matrix = torch.lerp(matrix, (luma @ matrix)[..., None, :].expand_as(matrix), grey[..., None])
    offset = torch.lerp(offset, (offset * luma).sum(-1, keepdim=True).expand_as(offset), grey)
    return (matrix, offset) if num_channels == 3 else (matrix.sum(-1, keepdim=True)[..., :1, :], offset[..., :1])


def _adjustments(colours: Tensor, luma: Tensor, identity: Tensor) -> Tensor:
    """Give the matrices [..., K, 3, 3] of brightness, contrast, saturation and hue."""
    brightness, contrast, saturation, hue = colours[..., :4, None, None].unbind(-3)
    cosine, sine = torch.cos(2 * math.pi * hue), torch.sin(2 * math.pi * hue)
    return torch.stack([
        brightness * identity,
        contrast * identity,
        saturation * identity + (1 - saturation) * luma.expand(3, 3),
        cosine * identity + (1 - cosine) / 3 + sine / math.sqrt(3) * luma.new_tensor(TURN),
    ], -3)  # fmt: skip


def recolour(views: Tensor, matrix: Tensor, offset: Tensor, solarised: Tensor) -> Tensor:
    """Recolour views [N, C, S, S] by [N, C, C] and [N, C], cut to [0, 1], invert the bright of the solarised."""
    changed = torch.baddbmm(offset[..., None], matrix, views.flatten(2)).clamp_(0, 1).view_as(views)
    if solarised.is_cuda or bool(solarised.any()):
        changed = torch.where(solarised[:, None, None, None] > 0, torch.minimum(changed, 1 - changed), changed)
    return changed
