"""Random crops of a batch, each resampled by two small matrices: exact antialiasing, mirror and blur in one product.

Legend: N images, V views of each, C channels, H × W pixels of an image, S × S pixels of a view, T taps of the filter.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CROP_COLUMNS = ("top", "left", "height", "width", "mirrored", "sigma")
"""What cuts a view out of its image: a box in pixels of the image, 1 where mirrored, blur in pixels of the view."""

NUM_TRIES = 10
NUM_CROP_DRAWS = 2 * NUM_TRIES + 5
"""Area and aspect of each try, then row, column, mirror, blurred or not, strength of the blur."""

RATIO = (3 / 4, 4 / 3)
"""Bounds of width over height."""

SIGMA = (0.1, 2.0)
"""Bounds of the blur's standard deviation in pixels of a view of 224 × 224 (DINO's code)."""

SIGMA_SIZE = 224


# --- boxes ------------------------------------------------------------------------------------------------------------


def draw_boxes(draws: np.ndarray, *, shape: tuple[int, int], scale: np.ndarray) -> np.ndarray:
    """Draw boxes [N, V, 4] (top, left, height, width) from uniform draws [N, V, ≥ 2 · 10 + 2], as torchvision does.

    RandomResizedCrop: a share of the area uniform in `scale` [V, 2], an aspect log-uniform in 3/4 … 4/3, rounded to
    whole pixels; the first of ten tries that fits into `shape` (H, W), else the middle, cut to the nearest aspect.
    """
    num_rows, num_columns = shape
    low, high = scale[:, :1], scale[:, 1:]
    area = num_rows * num_columns * (low + (high - low) * draws[..., :NUM_TRIES])
    bounds = np.log(RATIO)
    aspect = np.exp(bounds[0] + (bounds[1] - bounds[0]) * draws[..., NUM_TRIES : 2 * NUM_TRIES])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= num_columns) & (heights > 0) & (heights <= num_rows)
    first = fits.argmax(-1)[..., None]
    height, width = (np.take_along_axis(sides, first, -1)[..., 0] for sides in (heights, widths))
    top = np.floor(draws[..., 2 * NUM_TRIES] * (num_rows - height + 1))
    left = np.floor(draws[..., 2 * NUM_TRIES + 1] * (num_columns - width + 1))
    found = np.stack([top, left, height, width], -1)
    return np.where(fits.any(-1)[..., None], found, _middle(num_rows, num_columns))


def _middle(num_rows: int, num_columns: int) -> np.ndarray:
    """Give torchvision's fall-back: the whole image where its aspect is within bounds, else its middle."""
    height, width = num_rows, num_columns
    if num_columns / num_rows < RATIO[0]:
        height = round(num_columns / RATIO[0])
    elif num_columns / num_rows > RATIO[1]:
        width = round(num_rows * RATIO[1])
    return np.array([(num_rows - height) // 2, (num_columns - width) // 2, height, width], float)


def draw_shifts(draws: np.ndarray, *, shape: tuple[int, int], padding: int) -> np.ndarray:
    """Draw boxes [N, V, 4] of the image's own size, shifted by up to `padding` pixels each way, over the border."""
    size = np.broadcast_to(np.array(shape, float), (*draws.shape[:-1], 2))
    place = draws[..., 2 * NUM_TRIES : 2 * NUM_TRIES + 2]
    return np.concatenate([np.floor(place * (2 * padding + 1)) - padding, size], -1)


def draw_mirror_and_blur(draws: np.ndarray, *, mirror: float, blur: np.ndarray, size: int) -> np.ndarray:
    """Draw (mirrored, sigma) [N, V, 2]: sigma uniform in 0.1 … 2 px at 224 px, scaled by `size`; 0 for no blur."""
    flag, blurred, strength = (draws[..., 2 * NUM_TRIES + 2 + index] for index in range(3))
    sigma = (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * strength) * (size / SIGMA_SIZE)
    return np.stack([flag < mirror, np.where(blurred < blur, sigma, 0.0)], -1)


# --- resampling -------------------------------------------------------------------------------------------------------


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """Give Keys's kernel with a = -0.5, which PIL and antialiased torch use (Keys 1981)."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}
"""Each filter and how far it reaches, in pixels of the coarser grid."""


def resampling(
    start: Tensor, length: Tensor, *, size: int, source: int, interpolation: str, mirrored: Tensor | None = None
) -> Tensor:
    """Give the matrices [..., S, source] that resample pixels start … start + length of a line to S.

    The filter widens by length / S where that is above 1 (antialiasing) and is cut at the box's ends, weights summing
    to 1, as in PIL and torchvision. Pixels of a box beyond the line are black. `mirrored` (1 or 0) turns the view.
    """
    kernel, reach = FILTERS[interpolation]
    start, length = start[..., None], length[..., None]
    place = torch.arange(size, device=start.device, dtype=start.dtype)
    if mirrored is not None:
        place = torch.where(mirrored[..., None] > 0, size - 1 - place, place)
    step = length / size
    stretch = step.clamp(min=1)
    centre = start + (place + 0.5) * step
    num_taps = math.floor(2 * reach * max(1.0, source / size)) + 2
    taps = torch.floor(centre - reach * stretch)[..., None] + torch.arange(num_taps, device=start.device)
    weights = kernel((taps + 0.5 - centre[..., None]) / stretch[..., None])
    weights = weights * ((taps >= start[..., None]) & (taps < (start + length)[..., None]))
    weights = weights / weights.sum(-1, keepdim=True)
    columns = (taps + 1).clamp_(0, source + 1).long()  # the first and last column take what lies beyond the line
    matrix = torch.zeros((*centre.shape, source + 2), device=start.device, dtype=weights.dtype)
    return matrix.scatter_(-1, columns, weights)[..., 1:-1]


NOTHING = 1e-12
"""Weights below are 0 in fp32's eyes; as they are, a kernel's far ends are subnormal, which slows products 30 ×."""


def blurring(sigma: Tensor, size: int) -> Tensor:
    """Give the matrices [..., S, S] that blur a line by a Gaussian; at its ends the kernel is cut to what is there."""
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = (place[:, None] - place).square()
    weights = torch.softmax(-0.5 * distance / sigma.clamp(min=1e-3).square()[..., None, None], -1)
    return weights.masked_fill_(weights < NOTHING, 0)


def line_matrices(crops: Tensor, *, size: int, shape: tuple[int, int], interpolation: str) -> tuple[Tensor, Tensor]:
    """Give what crops [N, V, 6] do to rows and columns: matrices [N, V, S, H] and [N, V, S, W]."""
    top, left, height, width, mirrored, sigma = crops.unbind(-1)
    rows = resampling(top, height, size=size, source=shape[0], interpolation=interpolation)
    columns = resampling(left, width, size=size, source=shape[1], interpolation=interpolation, mirrored=mirrored)
    if sigma.is_cuda or bool((sigma > 0).any()):
        blurred = slice(None) if sigma.is_cuda else sigma > 0  # a choice of rows would wait for the device
        blur = blurring(sigma[blurred], size)
        rows[blurred], columns[blurred] = blur @ rows[blurred], blur @ columns[blurred]
    return rows, columns


def windows(crops: Tensor, shape: tuple[int, int]) -> list[list[tuple[slice, slice]]]:
    """Give the part of the image that each crop [N, V, 6] reads: rows and columns outside have no weight."""
    boxes: Sequence[Sequence[Sequence[float]]] = crops[..., :4].tolist()

    def inside(start: float, length: float, end: int) -> slice:
        return slice(max(0, math.floor(start)), min(end, math.ceil(start + length)))

    return [
        [(inside(top, height, shape[0]), inside(left, width, shape[1])) for top, left, height, width in views]
        for views in boxes
    ]


def cut(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample images [N, C, H, W] by matrices [N, S, H] and [N, S, W]: views [N, C, S, S] in [0, 1]."""
    halfway = rows[:, None] @ images
    views = halfway.flatten(1, 2) @ columns.mT
    return views.view(*halfway.shape[:-1], columns.shape[-2]).clamp_(0, 1)
