"""Augmentations as views: drawn on the CPU by (seed, epoch, row), made on the batch's device from uint8 images.

A training batch holds `pixels` (uint8 [N, H, W, C], as stored) and `view_parameters` (float32 [N, V, P]). An
augmentation draws the parameters and makes the views of them; callbacks/augmentation.py does so before a training step.

Legend: N images, V views of each, P parameters each, C channels, S × S pixels of a view, G global and L local views.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from essential_sparsity.data import colour, crops
from essential_sparsity.data.decoded_images import match_channels, standardise
from essential_sparsity.seeds import derive, splitmix64

NUM_CROP_COLUMNS = len(crops.CROP_COLUMNS)
NUM_DRAWS = crops.NUM_CROP_DRAWS + colour.NUM_COLOUR_DRAWS + 1
"""Uniform numbers per view; the last one chooses the kind of view."""

LOCAL_SHARE = 96 / 224
"""Size of local views, as a share of the global ones' (DINO)."""

CHUNK_PIXELS = 2**18
"""On a CPU, images of so many pixels are cut at a time: what is at hand stays in its caches."""

WINDOW_PIXELS = 96 * 96
"""On a CPU, larger images are multiplied window by window: a crop reads only a part of them."""


def uniform_draws(rows: np.ndarray, *, num_views: int, epoch: int, seed: int) -> np.ndarray:
    """Draw uniform numbers [N, V, draws] in [0, 1) as a pure function of (seed, epoch, row, view)."""
    per_row = num_views * NUM_DRAWS
    counters = np.asarray(rows).astype(np.uint64)[:, None] * np.uint64(per_row) + np.arange(per_row, dtype=np.uint64)
    bits = splitmix64(counters, derive(seed, "views", epoch))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(len(rows), num_views, NUM_DRAWS)


# --- what all augmentations share -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """Views of a batch of images; bound to what the backbone wants before it is used."""

    preprocessing: Any = field(default=None, repr=False, compare=False)

    def bind(self, preprocessing: Any) -> Self:
        """Give the augmentation for a backbone's size, channels, mean, standard deviation and interpolation."""
        if preprocessing.interpolation not in crops.FILTERS:
            raise ValueError(
                f"interpolation={preprocessing.interpolation!r} is no filter: choose {', '.join(crops.FILTERS)}"
            )
        return replace(self, preprocessing=preprocessing)

    @property
    def size(self) -> int:
        """Size of a whole view: the backbone's."""
        if self.preprocessing is None:
            raise ValueError(f"{type(self).__name__} knows no backbone yet: call bind(backbone.preprocessing()) first")
        return self.preprocessing.size

    @property
    def training_passes(self) -> float:
        """Cost of training on an image's views, over that of training on the whole image once."""
        return 1.0

    @abstractmethod
    def draw(self, rows: np.ndarray, *, epoch: int, seed: int, shape: tuple[int, int]) -> Tensor:
        """Draw the parameters [N, V, P] of the views of rows whose images are H × W, by (seed, epoch, row) alone."""
        ...

    @abstractmethod
    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the views of a batch of `pixels` and `view_parameters`, normalised; the same on any device."""
        ...

    def _check_shares(self, *names: str) -> None:
        for name in names:
            values = getattr(self, name)
            for value in values if isinstance(values, (tuple, list)) else (values,):
                if not 0 <= value <= 1:
                    raise ValueError(f"augmentation.{name}={values} lies outside [0, 1]: give a probability")

    def _check_scales(self, *names: str) -> None:
        for name in names:
            scale = getattr(self, name)
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(f"augmentation.{name}={scale} is no range in (0, 1]: give two shares, e.g. [0.4, 1]")

    def _cut(self, batch: Mapping[str, Tensor], part: slice, size: int) -> Tensor:
        """Make the views of a part of the parameters: [V, N, C, S, S], normalised."""
        parameters, pixels = batch["view_parameters"][:, part], batch["pixels"]
        num, height, width, _ = pixels.shape
        views = torch.empty(
            (parameters.shape[1], num, self.preprocessing.num_channels, size, size), device=pixels.device
        )

        def make(chunk: slice) -> None:
            make_views(pixels[chunk], parameters[chunk].float(), self.preprocessing, out=views[:, chunk])

        if pixels.is_cuda:
            make(slice(num))
        else:
            in_chunks(make, num, max(1, CHUNK_PIXELS // (height * width)))
        return views.to(parameters.dtype)  # that of the trainer's precision, where it converts its inputs


def in_chunks(work: Callable[[slice], None], num: int, largest: int) -> None:
    """Work on 0 … num in chunks, as many at a time as torch has threads, each in one thread alone.

    A chunk's many small steps are too short to share among threads; whole chunks are not.
    """
    num_threads = torch.get_num_threads()
    step = max(1, min(largest, -(-num // num_threads)))
    chunks = [slice(start, min(num, start + step)) for start in range(0, num, step)]
    if num_threads == 1 or len(chunks) == 1:
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, chunks))
    torch.set_num_threads(num_threads)  # the pool's threads set their own number, and that of threads yet to come


def make_views(pixels: Tensor, parameters: Tensor, preprocessing: Any, *, out: Tensor) -> None:
    """Fill views [V, N, C, S, S] from uint8 pixels [N, H, W, C'] by parameters [N, V, P]: cut, recolour, normalise."""
    images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
    cropped, recoloured = parameters[..., :NUM_CROP_COLUMNS], parameters[..., NUM_CROP_COLUMNS:]
    shape = (images.shape[-2], images.shape[-1])
    interpolation = preprocessing.interpolation
    rows, columns = crops.line_matrices(cropped, size=out.shape[-1], shape=shape, interpolation=interpolation)
    by_window = not images.is_cuda and math.prod(shape) > WINDOW_PIXELS
    windows = crops.windows(cropped, shape) if by_window else None
    if recoloured.shape[-1]:
        matrix, offset = colour.colour_matrices(recoloured, _mean_colours(images, rows, columns))
    else:
        matrix = offset = None
    for index, views in enumerate(out.unbind()):
        cut = _cut_one(images, rows[:, index], columns[:, index], [row[index] for row in windows] if windows else None)
        if matrix is not None and offset is not None:
            cut = colour.recolour(cut, matrix[:, index], offset[:, index], recoloured[:, index, -1])
        views.copy_(standardise(match_channels(cut, preprocessing.num_channels), preprocessing))


def _cut_one(images: Tensor, rows: Tensor, columns: Tensor, windows: Sequence[tuple[slice, slice]] | None) -> Tensor:
    """Cut one view of each image [N, C, S, S]: of the whole batch at once, or of each image's window in turn."""
    if windows is None:
        return crops.cut(images, rows, columns)
    return torch.cat([
        crops.cut(images[row, None, :, down, across], rows[row, None, :, down], columns[row, None, :, across])
        for row, (down, across) in enumerate(windows)
    ])  # fmt: skip


def _mean_colours(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Give the mean colour [N, V, C] of each view without making it: the means of its two matrices do."""
    halfway = rows.mean(-2)[:, None] @ images  # [N, C, V, W]
    return (halfway * columns.mean(-2)[:, None]).sum(-1).mT


# --- the augmentations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StandardView(Augmentation):
    """The usual supervised recipe, one view: a random resized crop and a mirror.

    With `padding`, the image is shifted by up to that many of its pixels in place of a crop, as usual for 32 × 32.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    padding: int | None = None
    mirror: float = 0.5

    def __post_init__(self) -> None:
        self._check_shares("mirror")
        self._check_scales("scale")
        if self.padding is not None and not (isinstance(self.padding, int) and self.padding >= 0):
            raise ValueError(f"augmentation.padding={self.padding!r} is no number of pixels: give 0 or more, or null")

    def draw(self, rows: np.ndarray, *, epoch: int, seed: int, shape: tuple[int, int]) -> Tensor:
        """Draw one crop for each row: [N, 1, 6]."""
        draws = uniform_draws(rows, num_views=1, epoch=epoch, seed=seed)
        if self.padding is None:
            boxes = crops.draw_boxes(draws, shape=shape, scale=np.array([self.scale]))
        else:
            boxes = crops.draw_shifts(draws, shape=shape, padding=self.padding)
        others = crops.draw_mirror_and_blur(draws, mirror=self.mirror, blur=np.zeros(1), size=self.size)
        return torch.from_numpy(np.concatenate([boxes, others], -1).astype(np.float32))

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `images` [N, C, S, S]."""
        return {"images": self._cut(batch, slice(None), self.size)[0]}


@dataclass(frozen=True, kw_only=True)
class DinoViews(Augmentation):
    """What DINO draws for each view (arXiv 2104.14294, section 3.2; its code's DataAugmentationDINO).

    In this order: crop, mirror, jitter of colour (brightness, contrast, saturation, hue in any order), grey, blur,
    solarise. `blur` holds the probabilities for the first global view, the other global views, the local views;
    `solarise` is for the other global views alone. Strengths and probabilities default to DINO's.
    """

    global_scale: tuple[float, float] = (0.4, 1.0)
    mirror: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarise: float = 0.2

    def __post_init__(self) -> None:
        self._check_shares("mirror", "jitter", "grey", "blur", "solarise")
        self._check_scales("global_scale")
        if len(self.blur) != 3:
            raise ValueError(f"augmentation.blur={self.blur} has no three probabilities: first global, others, local")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augmentation.{name}={getattr(self, name)} lies outside [0, {most}]: give a strength")

    def _parameters(
        self, draws: np.ndarray, *, shape: tuple[int, int], scale: np.ndarray, blur: np.ndarray, solarise: np.ndarray
    ) -> Tensor:
        """Give parameters [N, V, 13] of draws; scale [V, 2], blur and solarise [V] or [N, V]."""
        tints = draws[..., crops.NUM_CROP_DRAWS : -1]
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        columns = [
            crops.draw_boxes(draws, shape=shape, scale=scale),
            crops.draw_mirror_and_blur(draws, mirror=self.mirror, blur=blur, size=self.size),
            colour.draw_colours(tints, strengths=strengths, jitter=self.jitter, grey=self.grey, solarise=solarise),
        ]
        return torch.from_numpy(np.concatenate(columns, -1).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class MultiCrop(DinoViews):
    """DINO's views of each image: `num_global` large crops of the backbone's size and `num_local` small ones.

    Local views have `local_size` pixels a side (None: 96 / 224 of the backbone's size); a ViT wants a multiple of its
    patch size.
    """

    num_global: int = 2
    num_local: int = 8
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_scales("local_scale")
        for name, least in (("num_global", 1), ("num_local", 0), ("local_size", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"augmentation.{name}={value!r} is no whole number of at least {least}: give one")

    @property
    def local(self) -> int:
        """Size of the local views."""
        return self.local_size or max(1, round(self.size * LOCAL_SHARE))

    @property
    def training_passes(self) -> float:
        """Cost of a student on all views and of a teacher's forward pass on the global ones, by their pixels."""
        return self.num_global * 4 / 3 + self.num_local * (self.local / self.size) ** 2

    def draw(self, rows: np.ndarray, *, epoch: int, seed: int, shape: tuple[int, int]) -> Tensor:
        """Draw all views of each row, global ones first: [N, G + L, 13]."""
        others, num_local = self.num_global - 1, self.num_local
        return self._parameters(
            uniform_draws(rows, num_views=self.num_global + num_local, epoch=epoch, seed=seed),
            shape=shape,
            scale=np.array([self.global_scale] * self.num_global + [self.local_scale] * num_local),
            blur=np.repeat(self.blur, [1, others, num_local]),
            solarise=np.repeat([0.0, self.solarise, 0.0], [1, others, num_local]),
        )

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `global_views` [G, N, C, S, S] and, where there are any, `local_views` [L, N, C, s, s]."""
        views = {"global_views": self._cut(batch, slice(0, self.num_global), self.size)}
        if self.num_local:
            views["local_views"] = self._cut(batch, slice(self.num_global, None), self.local)
        return views


@dataclass(frozen=True, kw_only=True)
class MatchedView(DinoViews):
    """DINO's augmentation as one view, for the supervised twin: the first or another global view, by a coin."""

    def draw(self, rows: np.ndarray, *, epoch: int, seed: int, shape: tuple[int, int]) -> Tensor:
        """Draw one view for each row: [N, 1, 13]."""
        draws = uniform_draws(rows, num_views=1, epoch=epoch, seed=seed)
        is_first = draws[..., -1] < 0.5
        return self._parameters(
            draws,
            shape=shape,
            scale=np.array([self.global_scale]),
            blur=np.where(is_first, self.blur[0], self.blur[1]),
            solarise=np.where(is_first, 0.0, self.solarise),
        )

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `images` [N, C, S, S]."""
        return {"images": self._cut(batch, slice(None), self.size)[0]}
