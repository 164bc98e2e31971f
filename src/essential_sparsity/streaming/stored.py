"""A checkpoint read in ranges: tensors that stay in their files, of which one window per thread is in memory.

Nothing is mapped, so that no page of the file counts as this process's memory; the page cache is the kernel's.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from essential_sparsity.checkpoints import Checkpoint, read_header
from essential_sparsity.pruning import Architecture, architecture_of, prunable_names

WINDOW = 2**22
"""Bytes read at a time: long enough for a disk to stream, short enough to matter nowhere."""

_COUNTABLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: byte range in its file, dtype and shape."""

    file: Path
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(eq=False)
class StoredWeight:
    """A weight in its file, with what a ranking asks of a tensor; `reshape(-1)` opens it for one thread to read.

    `heard` is told the bytes of every read.
    """

    descriptor: int
    place: Place
    heard: Callable[[int], object] = lambda num_bytes: None
    is_meta: bool = field(default=False, init=False)
    is_cuda: bool = field(default=False, init=False)
    _version: int = field(default=0, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.place.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.place.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.place.dtype

    @property
    def device(self) -> torch.device:
        """Host memory, where ranges are read to."""
        return torch.device("cpu")

    def numel(self) -> int:
        """Number of weights."""
        return prod(self.place.shape)

    def is_inference(self) -> bool:
        """Say that changes would be told: a file is not changed while it is read."""
        return False

    def detach(self) -> "StoredWeight":
        """Give itself: there is no graph."""
        return self

    def reshape(self, *shape: int) -> "FlatWeight":
        """Open the weight for reading, flat and row-major; `shape` must be -1."""
        if shape != (-1,):
            raise ValueError(f"reshape{shape} of a stored weight: only reshape(-1) reads without loading it whole")
        return FlatWeight(self)


class FlatWeight:
    """A stored weight, flat: `flat[start:stop]` is a tensor that holds until the next range is read.

    Reads go by windows in the direction in which they come, and the window after is announced to the kernel.
    """

    def __init__(self, weight: StoredWeight) -> None:
        self._weight = weight
        self._size = weight.dtype.itemsize
        self._length = max(1, WINDOW // self._size)
        self._buffer = np.empty(0, dtype=np.uint8)
        self._start = self._stop = 0

    def __len__(self) -> int:
        """Number of weights."""
        return self._weight.numel()

    def __getitem__(self, piece: slice) -> Tensor:
        """Read weights start … stop: [stop - start], of the weight's dtype; writing to it changes no file."""
        start, stop, step = piece.indices(len(self))
        if step != 1:
            raise ValueError(f"step={step}: a stored weight is read without gaps")
        if start >= stop:
            return torch.empty(0, dtype=self._weight.dtype)
        if start < self._start or stop > self._stop:
            self._read(start, stop)
        held = torch.from_numpy(self._buffer[: (self._stop - self._start) * self._size]).view(self._weight.dtype)
        return held[start - self._start : stop - self._start]

    def _read(self, start: int, stop: int) -> None:
        """Fill the window with this range and what comes after it, or before it where reading goes backward."""
        length = max(self._length, stop - start)
        backward = start < self._start
        first = max(0, stop - length) if backward else start
        last = stop if backward else min(start + length, len(self))
        num_bytes = (last - first) * self._size
        if len(self._buffer) < num_bytes:
            self._buffer = np.empty(num_bytes, dtype=np.uint8)
        place, descriptor = self._weight.place, self._weight.descriptor
        read_into(descriptor, self._buffer[:num_bytes], place.start + first * self._size, place.file)
        self._start, self._stop = first, last
        ahead = place.start + (first - self._length if backward else last) * self._size
        announce(descriptor, max(place.start, ahead), WINDOW)
        self._weight.heard(num_bytes)


def read_into(descriptor: int, buffer: np.ndarray, offset: int, file: Path) -> None:
    """Fill a buffer (uint8) from an offset of an open file; raises ValueError where the file ends before."""
    done, view = 0, buffer.data
    while done < len(buffer):
        found = os.preadv(descriptor, [view[done:]], offset + done)
        if found == 0:
            raise ValueError(f"{file} ends at byte {offset + done:,} while it is read: it was changed; start again")
        done += found


def write_from(descriptor: int, buffer: np.ndarray, offset: int) -> None:
    """Write a buffer (uint8) to an offset of an open file."""
    done, view = 0, buffer.data
    while done < len(buffer):
        done += os.pwrite(descriptor, view[done:], offset + done)


def announce(descriptor: int, offset: int, num_bytes: int) -> None:
    """Tell the kernel which range comes next, where it listens."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, eq=False)
class StoredCheckpoint:
    """A checkpoint's weight files with the place of every tensor, and its prunable weights by canonical name."""

    checkpoint: Checkpoint
    places: Mapping[str, Place]
    names: Mapping[str, str]
    architecture: Architecture

    @classmethod
    def find(cls, path: Path | str, *, architecture: Architecture | None = None) -> "StoredCheckpoint":
        """Read the headers of a folder or a safetensors file: transformers or timm layout, single or sharded.

        Raises ValueError for a pickle, and naming a prunable weight whose dtype is not fp32, bf16 or fp16.
        """
        checkpoint = Checkpoint.open(path)
        if checkpoint.files[0].suffix != ".safetensors":
            raise ValueError(
                f"{checkpoint.files[0]} is a pickle, which cannot be read in ranges: save it as safetensors first"
            )
        places: dict[str, Place] = {}
        for file in checkpoint.files:
            places |= places_in(checkpoint, file)
        architecture = architecture or architecture_of(places)
        names = prunable_names(places, architecture)
        for name in names.values():
            _check(name, places[name])
        return cls(checkpoint, places, names, architecture)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the prunable weights by canonical name, in the fixed order."""
        return {canonical: self.places[name].shape for canonical, name in self.names.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.stop - place.start for place in self.places.values())

    @property
    def num_parameters(self) -> int:
        """Number of all parameters, prunable or not."""
        return sum(prod(place.shape) for place in self.places.values())

    def architecture_digest(self) -> str:
        """Hash which weights are prunable, their names and shapes, and how their matrices lie."""
        weights = [[canonical, name, list(self.places[name].shape)] for canonical, name in self.names.items()]
        fused = {name: list(kinds) for name, kinds in self.architecture.fused.items()}
        told = json.dumps([weights, self.architecture.input_axis, sorted(fused.items())])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def prunable_in(self, file: Path) -> dict[str, Place]:
        """Map canonical names of the prunable weights in one file to their places, in the file's order."""
        found = {canonical: self.places[name] for canonical, name in self.names.items()}
        inside = [(canonical, place) for canonical, place in found.items() if place.file == file]
        return dict(sorted(inside, key=lambda item: item[1].start))

    @contextmanager
    def weights(self, heard: Callable[[int], object]) -> Iterator[dict[str, StoredWeight]]:
        """Open the files and give the prunable weights by canonical name, in the fixed order."""
        descriptors: dict[Path, int] = {}
        try:
            for file in self.checkpoint.files:
                descriptors[file] = os.open(file, os.O_RDONLY)
            places = {canonical: self.places[name] for canonical, name in self.names.items()}
            yield {name: StoredWeight(descriptors[place.file], place, heard) for name, place in places.items()}
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)


def data_start(file: Path) -> int:
    """Give the byte at which a safetensors file's tensors begin."""
    with file.open("rb") as stream:
        return 8 + struct.unpack("<Q", stream.read(8))[0]


def places_in(checkpoint: Checkpoint, file: Path) -> dict[str, Place]:
    """Give the place of every tensor in one of a checkpoint's files."""
    begin = data_start(file)
    found = {}
    for name, entry in read_header(file).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            found[name] = Place(file, begin + start, begin + stop, checkpoint.dtype(name), checkpoint.shape(name))
    return found


def _check(name: str, place: Place) -> None:
    """Refuse what cannot be pruned by bytes, before anything is read or written."""
    dtype = str(place.dtype).removeprefix("torch.")
    if place.dtype not in _COUNTABLE:
        quantised = not place.dtype.is_floating_point or place.dtype.itemsize == 1
        remedy = "prune the checkpoint it was quantised from" if quantised else "convert it"
        raise ValueError(f"weight {name!r} is {dtype}: pruned are float32, bfloat16 or float16; {remedy}")
    if len(place.shape) < 2:
        raise ValueError(f"weight {name!r} of shape {place.shape} is no matrix: narrow the prunable patterns")
