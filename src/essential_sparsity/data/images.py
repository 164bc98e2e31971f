"""Labelled images decoded once to memory-mapped bytes; resized and normalised batch by batch to the backbone's wish."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as functional

from essential_sparsity.data.batches import Batch, random_permutation
from essential_sparsity.data.classification import ClassificationData
from essential_sparsity.data.colour import LUMA
from essential_sparsity.inputs import (
    cache_folder,
    cached_folder,
    digest_of,
    file_digest,
    hub_revision,
    load_arrays,
    row_hashes,
    suggest,
)
from essential_sparsity.seeds import derive

# N rows, C channels (1 or 3), H × W pixels
FORMAT = 1
"""Raised when the cached files' meaning changes."""


@dataclass(frozen=True)
class DecodedImages:
    """Decoded rows and what the backbone wants of them."""

    pixels: np.ndarray  # uint8 [N, H, W, C]
    content: np.ndarray  # uint64 [N]
    labels: np.ndarray  # int64 [N]
    preprocessing: Any
    noise: float = 0.0  # standard deviation, in units of the full range of brightness
    augmentation: Any = None  # of training rows: data/views.py

    @property
    def lengths(self) -> None:
        """Images are all alike: nothing to bucket."""
        return None

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Normalise these rows to `images` [rows, C, size, size]; with a seed, Gaussian noise is added first.

        With a seed and an augmentation, `pixels` (uint8, as stored) and `view_parameters` are given in their place.
        """
        batch = {"labels": torch.from_numpy(self.labels[rows]), "row": torch.from_numpy(np.asarray(rows, np.int64))}
        pixels = torch.from_numpy(self.pixels[rows])
        if seed is not None and self.augmentation is not None:
            shape = (pixels.shape[1], pixels.shape[2])
            drawn = self.augmentation.draw(rows, epoch=epoch, seed=seed, shape=shape)
            return {"pixels": pixels, "view_parameters": drawn, **batch}
        images = pixels.permute(0, 3, 1, 2).float().div_(255.0)
        if seed is not None and self.noise > 0:
            images += self.noise * torch.from_numpy(_noise(rows, tuple(images.shape[1:]), seed=seed, epoch=epoch))
        return {"images": normalise(images, self.preprocessing), **batch}


def _noise(rows: np.ndarray, shape: tuple[int, ...], *, seed: int, epoch: int) -> np.ndarray:
    """Draw standard normal noise [rows, *shape] as a pure function of (seed, epoch, row)."""
    streams = (np.random.RandomState(derive(seed, "noise", epoch, int(row)) % 2**32) for row in rows)
    return np.stack([stream.standard_normal(shape) for stream in streams]).astype(np.float32)


def normalise(images: torch.Tensor, preprocessing: Any) -> torch.Tensor:
    """Bring images [N, C, H, W] in [0, 1] to the backbone's channels, size, mean and standard deviation."""
    images = match_channels(images, preprocessing.num_channels)
    if images.shape[-2:] != (preprocessing.size, preprocessing.size):
        images = functional.interpolate(
            images, size=(preprocessing.size,) * 2, mode=preprocessing.interpolation, antialias=True
        )
    return standardise(images, preprocessing)


def match_channels(images: torch.Tensor, wanted: int) -> torch.Tensor:
    """Give images [N, C, H, W] as many channels as a backbone wants: grey repeated, or the brightness of colours."""
    if images.shape[1] == 1 and wanted == 3:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 3 and wanted == 1:
        return (images * _per_channel(LUMA, images.device)).sum(1, keepdim=True)
    return images


def standardise(images: torch.Tensor, preprocessing: Any) -> torch.Tensor:
    """Bring images [N, C, H, W] to the backbone's mean and standard deviation per channel."""
    mean, std = (_per_channel(tuple(values), images.device) for values in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Give one number per channel as [1, C, 1, 1]; sent to a device once, for that waits for it."""
    with torch.inference_mode(False):  # one that is kept must do for training, too
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def decoded(
    images: Callable[[], Iterable[np.ndarray]],
    labels: np.ndarray,
    *,
    key: Sequence[str | int],
    preprocessing: Any,
    cache: str | Path | None,
) -> DecodedImages:
    """Find the decoded images under their key in the cache, or decode them (`images()` gives uint8 [H, W, C] each)."""
    if not hasattr(preprocessing, "mean"):
        raise ValueError("these data are images, but the backbone reads text: choose a vision one, e.g. vit_base")
    folder = cached_folder(
        cache_folder(cache) / "images" / digest_of(FORMAT, *key)[:32],
        lambda target: _write(target, images(), len(labels)),
    )
    arrays = load_arrays(folder, ["pixels", "content"])
    return DecodedImages(arrays["pixels"], arrays["content"], labels, preprocessing)


def _write(folder: Path, images: Iterable[np.ndarray], num: int) -> None:
    """Write pixels.npy row by row, without holding them in memory, and content.npy."""
    pixels = None
    for row, image in enumerate(images):
        if pixels is None:
            pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (num, *image.shape))
        if image.shape != pixels.shape[1:]:
            raise ValueError(f"image {row} has shape {image.shape}, the first one {pixels.shape[1:]}: make them alike")
        pixels[row] = image
    if pixels is None:
        raise ValueError("there is no image to read: give files with at least one")
    pixels.flush()
    np.save(folder / "content.npy", row_hashes(image.tobytes() for image in pixels))


def decode(data: bytes, num_channels: int) -> np.ndarray:
    """Decode an encoded image to uint8 [H, W, C], grey or colour as asked."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("L" if num_channels == 1 else "RGB"))
    return pixels[:, :, None] if num_channels == 1 else pixels


# --- the public sets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageSet:
    """Where a public set keeps what: hub id, columns, number of classes, channels, evaluation split."""

    hub_id: str
    image: str = "image"
    label: str = "label"
    num_labels: int = 10
    num_channels: int = 3
    evaluation: str = "test"


SETS = {
    "cifar10": ImageSet("uoft-cs/cifar10", image="img"),
    "cifar100": ImageSet("uoft-cs/cifar100", image="img", label="fine_label", num_labels=100),
    "fashion_mnist": ImageSet("zalando-datasets/fashion_mnist", num_channels=1),
    "tiny_imagenet": ImageSet("zh-plus/tiny-imagenet", num_labels=200, evaluation="valid"),
}
PARTS = ("all", "first", "second")


class ImageData(ClassificationData):
    """Images with a choice of half: `part` "first" or "second" of the training rows, split by a fixed seed.

    The first `part_share` of one permutation is the first part, the rest the second: pre-train on one, fine-tune on the
    other. Evaluation rows are the same for every part.
    """

    PART_SEED = 0

    def __init__(
        self,
        *,
        part: str = "all",
        part_share: float = 0.5,
        noise: float = 0.0,
        augmentation: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if part not in PARTS:
            raise ValueError(f"data.part={part!r} is no part{suggest(str(part), PARTS)}")
        if not 0 < part_share < 1:
            raise ValueError(f"data.part_share={part_share} lies outside (0, 1): give the first part's share of rows")
        if not noise >= 0:
            raise ValueError(
                f"data.noise={noise} is no standard deviation: give 0 or more, in units of full brightness"
            )
        if augmentation is not None and not hasattr(augmentation, "bind"):
            raise ValueError(f"data.augmentation={augmentation!r} makes no views: use +data/augmentation=multi_crop")
        if augmentation is not None and noise:
            raise ValueError(f"data.noise={noise} has no meaning beside an augmentation: give 0")
        self.part, self.part_share, self.noise, self.augmentation = part, part_share, noise, augmentation

    def part_rows(self, num: int) -> np.ndarray:
        """Give the training rows of the chosen part."""
        order, first = random_permutation(num, self.PART_SEED), round(self.part_share * num)
        return {"all": np.arange(num), "first": np.sort(order[:first]), "second": np.sort(order[first:])}[self.part]

    def select_images(self, train: DecodedImages, evaluation: dict[str, DecodedImages]) -> None:
        """Fix the rows: training rows of the part, noisy or augmented while training, evaluation rows as they are."""
        if self.augmentation is not None:
            self.augmentation = self.augmentation.bind(train.preprocessing)
        train = replace(train, noise=self.noise, augmentation=self.augmentation)
        self.select(train, evaluation, candidates=self.part_rows(len(train.labels)))


class Images(ImageData):
    """A public image set by name (cifar10, cifar100, fashion_mnist, tiny_imagenet), all of one size.

    `root` is a folder that holds `<name>/train.parquet` and the evaluation split's file; without it the hub is read.
    """

    def __init__(self, name: str, *, root: str | Path | None = None, **options: Any) -> None:
        super().__init__(**options)
        if name not in SETS:
            raise ValueError(f"data.name={name!r} is no image set{suggest(name, SETS)}")
        self.name, self.root, self.spec = name, None if root is None else Path(root), SETS[name]
        self.num_labels = self.spec.num_labels

    @property
    def splits(self) -> tuple[str, str]:
        """The training split and the evaluation split."""
        return "train", self.spec.evaluation

    def _file(self, split: str) -> Path:
        assert self.root is not None
        file = self.root / self.name / f"{split}.parquet"
        if not file.is_file():
            there = [item.name for item in self.root.iterdir()] if self.root.is_dir() else []
            raise FileNotFoundError(f"image file {str(file)!r} does not exist{suggest(self.name, there)}")
        return file

    def check(self) -> None:
        """Check that files, columns and labels are there and in range; rows of the hub are checked by `prepare`."""
        if self.root is None:
            return
        for split in self.splits:
            file = self._file(split)
            names = pq.read_schema(file).names
            for column in (self.spec.image, self.spec.label):
                if column not in names:
                    raise ValueError(f"{file} has no column {column!r}{suggest(column, names)}")
            self._labels(pq.read_table(file, columns=[self.spec.label]), str(file))

    def _labels(self, table: pa.Table, source: str) -> np.ndarray:
        labels = table[self.spec.label]
        values = labels.to_numpy() if not labels.null_count else np.array([-1])
        outside = values[(values < 0) | (values >= self.num_labels)]
        if len(outside):
            raise ValueError(
                f"{source} has label {outside[0]} outside 0 … {self.num_labels - 1} of {self.name}: mend it"
            )
        return values.astype(np.int64)

    def _read(self, split: str) -> tuple[pa.Table, str]:
        """Give a split's table and a hash of its content."""
        columns = [self.spec.image, self.spec.label]
        if self.root is not None:
            return pq.read_table(self._file(split), columns=columns), file_digest(self._file(split))
        from datasets import Image, load_dataset

        try:
            rows = load_dataset(self.spec.hub_id, split=split)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = "use local files, paths.data=<folder>"
            raise ValueError(f"hub data {self.spec.hub_id!r} cannot be read ({reason}): {remedy}") from error
        rows = rows.cast_column(self.spec.image, Image(decode=False)).with_format("arrow")
        return cast(pa.Table, rows[:]).select(columns), f"{self.spec.hub_id} {rows._fingerprint}"

    def prepare(self, preprocessing: Any) -> None:
        """Decode each split once; what the cache has is mapped into memory."""
        train, evaluation = (self._decoded(split, preprocessing) for split in self.splits)
        self.select_images(train, {self.spec.evaluation: evaluation})

    def _decoded(self, split: str, preprocessing: Any) -> DecodedImages:
        table, digest = self._read(split)
        column = table[self.spec.image]
        return decoded(
            lambda: (decode(item["bytes"].as_py(), self.spec.num_channels) for item in column),
            self._labels(table, f"{self.name} {split}"),
            key=(digest, self.spec.num_channels),
            preprocessing=preprocessing,
            cache=self.cache,
        )

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of each local file, or the hub's revision."""
        if self.root is None:
            return {self.spec.hub_id: hub_revision(self.spec.hub_id, kind="dataset")}
        return {f"{self.name}/{split}.parquet": file_digest(self._file(split)) for split in self.splits}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Count rows from the files' metadata, or from the hub's description of the data set."""
        if self.root is not None:
            train, evaluation = (pq.read_metadata(self._file(split)).num_rows for split in self.splits)
        else:
            from datasets import load_dataset_builder

            splits = load_dataset_builder(self.spec.hub_id).info.splits or {}
            train, evaluation = (splits[split].num_examples for split in self.splits)
        return len(self.part_rows(train)), {self.spec.evaluation: evaluation}
