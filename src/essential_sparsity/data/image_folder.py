"""Your own labelled images: one folder per class, `train/<class>/*.png`, `validation/<class>/*.jpg`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from essential_sparsity.data.images import DecodedImages, ImageData, decoded
from essential_sparsity.inputs import digest_of, suggest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FEWEST_CLASSES = 2


class ImageFolder(ImageData):
    """Images of one's own in class subfolders of `train` and `validation`; classes in alphabetical order.

    Images are cut to their middle square and resized once to the backbone's size. Without `validation`,
    `num_holdout_rows` training images are evaluated on instead.
    """

    def __init__(self, *, train: str | Path, validation: str | Path | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.train, self.validation = Path(train), None if validation is None else Path(validation)
        if self.validation is None and not self._num_holdout:
            raise ValueError("data.validation is not given: name a folder, or give data.num_holdout_rows")
        self.classes: tuple[str, ...] = ()

    def check(self) -> None:
        """Check that the folders hold images, and that the evaluated classes are trained ones."""
        self.classes = _classes(self.train)
        self.num_labels = len(self.classes)
        if self.num_labels < FEWEST_CLASSES:
            raise ValueError(f"{self.train} has {self.num_labels} class folders with images: two are the least")
        if self.validation is not None:
            for name in _classes(self.validation):
                if name not in self.classes:
                    raise ValueError(
                        f"{self.validation / name} is no class of {self.train}{suggest(name, self.classes)}"
                    )

    def _files(self, folder: Path) -> list[tuple[Path, int]]:
        """Give every image with its class id, in a fixed order."""
        return [(file, index) for index, name in enumerate(self.classes) for file in _images(folder / name)]

    def prepare(self, preprocessing: Any) -> None:
        """Decode, cut and resize each image once."""
        if not self.classes:
            self.check()
        evaluation = {} if self.validation is None else {"validation": self._decoded(self.validation, preprocessing)}
        self.select_images(self._decoded(self.train, preprocessing), evaluation)

    def _decoded(self, folder: Path, preprocessing: Any) -> DecodedImages:
        if not hasattr(preprocessing, "size"):
            raise ValueError("these data are images, but the backbone reads text: choose a vision one, e.g. vit_base")
        files = self._files(folder)

        def images() -> Iterator[np.ndarray]:
            for file, _ in files:
                yield middle_square(file, preprocessing.size, preprocessing.num_channels)

        return decoded(
            images,
            np.array([label for _, label in files], np.int64),
            key=(_digest(folder, files, modified=True), preprocessing.size, preprocessing.num_channels),
            preprocessing=preprocessing,
            cache=self.cache,
        )

    def inputs(self) -> dict[str, str]:
        """Give a hash of each folder's file names and sizes (not of every pixel: folders may hold hundreds of GB)."""
        if not self.classes:
            self.check()
        folders = {"train": self.train, "validation": self.validation}
        found = {f"{role}: {folder.name}": folder for role, folder in folders.items() if folder is not None}
        return {name: _digest(folder, self._files(folder)) for name, folder in found.items()}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Count the files."""
        if not self.classes:
            self.check()
        counts = {} if self.validation is None else {"validation": len(self._files(self.validation))}
        return len(self.part_rows(len(self._files(self.train)))), counts


def middle_square(file: Path, size: int, num_channels: int) -> np.ndarray:
    """Read an image, cut its middle square and resize it: uint8 [size, size, C]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            square = ImageOps.fit(
                image.convert("L" if num_channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC
            )
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"image {str(file)!r} cannot be read ({str(error).splitlines()[0]}): remove or mend it"
        ) from error
    return np.asarray(square).reshape(size, size, num_channels)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        siblings = [item.name for item in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise FileNotFoundError(f"image folder {str(folder)!r} does not exist{suggest(folder.name, siblings)}")
    return tuple(sorted(item.name for item in folder.iterdir() if item.is_dir() and _images(item)))


def _images(folder: Path) -> list[Path]:
    """Give a class's images in order of their names, from subfolders too; a class without a folder has none."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES) if folder.is_dir() else []


def _digest(folder: Path, files: list[tuple[Path, int]], *, modified: bool = False) -> str:
    """Hash names, classes and sizes, and the times of change where the cache asks for them."""
    parts: list[str] = []
    for file, label in files:
        status = file.stat()
        time = status.st_mtime_ns if modified else ""
        parts.append(f"{file.relative_to(folder)}\0{label}\0{status.st_size}\0{time}")
    return digest_of(*parts)
