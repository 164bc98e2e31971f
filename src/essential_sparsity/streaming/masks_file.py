"""A masks file written as the bits come, in any order: the format of `Masks.save`, which `Masks.load` reads."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from essential_sparsity.pruning.masks import FORMAT
from essential_sparsity.streaming.stored import WINDOW, read_into, write_from

_ROOM = 512
"""Bytes left in the header for what is known only at the end: sparsity, ties, parent."""

_TWO_OF_FOUR = np.array([max((byte & 15).bit_count(), (byte >> 4).bit_count()) <= 2 for byte in range(256)])


class MasksFile:
    """A safetensors file of packed bits, one uint8 tensor per weight, whose header is filled at the end.

    `metadata` is what is known beforehand: score, allocation, pattern and the sparsity asked for.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> None:
        self.path, self.shapes = path, dict(shapes)
        self._metadata = dict(metadata)
        self._lengths = {name: -(-math.prod(shape) // 8) for name, shape in shapes.items()}
        self._begin = 8 + -(-(len(self._header({}).encode()) + _ROOM) // 8) * 8
        ends = self._begin + np.cumsum([0, *self._lengths.values()])
        self._offsets = dict(zip(self._lengths, ends.tolist()))
        self.size = int(ends[-1])

    def open(self) -> int:
        """Open the file at its full size, with the bits that a killed process left; the caller closes it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(descriptor, self.size)
        return descriptor

    def write(self, descriptor: int, name: str, start: int, bits: np.ndarray) -> None:
        """Write packed bits of one weight from weight `start` (a multiple of 8) on."""
        write_from(descriptor, bits, self._offsets[name] + start // 8)

    def count(self, descriptor: int) -> tuple[dict[str, int], bool]:
        """Read all bits back: (weights kept by name, whether each four neighbours of a row keep two at most)."""
        kept, structured = {}, all(shape[-1] % 4 == 0 for shape in self.shapes.values())
        for name, length in self._lengths.items():
            kept[name] = 0
            for start in range(0, length, WINDOW):
                bits = np.empty(min(WINDOW, length - start), dtype=np.uint8)
                read_into(descriptor, bits, self._offsets[name] + start, self.path)
                kept[name] += int(np.bitwise_count(bits).sum(dtype=np.int64))
                structured = structured and bool(_TWO_OF_FOUR[bits].all())
        return kept, structured

    def finish(self, descriptor: int, *, num_pruned: int, num_ties: int, parent: str | None) -> None:
        """Write the header: from here on the file is whole."""
        sparsity = num_pruned / sum(math.prod(shape) for shape in self.shapes.values())
        known = {"num_ties": str(num_ties), "sparsity": repr(sparsity)} | ({"parent": parent} if parent else {})
        length = self._begin - 8
        text = self._header(known).encode().ljust(length)
        assert len(text) == length, "the room left in the header of masks is too small"
        write_from(descriptor, np.frombuffer(length.to_bytes(8, "little") + text, dtype=np.uint8), 0)
        os.fsync(descriptor)

    def _header(self, known: Mapping[str, str]) -> str:
        shapes = json.dumps({name: list(shape) for name, shape in self.shapes.items()})
        entries: dict[str, object] = {"__metadata__": {"format": FORMAT, "shapes": shapes, **self._metadata, **known}}
        begin = 0
        for name, length in self._lengths.items():
            entries[name] = {"dtype": "U8", "shape": [length], "data_offsets": [begin, begin + length]}
            begin += length
        return json.dumps(entries, separators=(",", ":"))
