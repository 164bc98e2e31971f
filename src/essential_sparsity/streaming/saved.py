"""Saved masks, read weight by weight from their file: what `SavedMasks` is for a model in memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from essential_sparsity.checkpoints import Checkpoint, file_digest
from essential_sparsity.pruning import SavedMasks, exact_sparsity
from essential_sparsity.pruning.masks import checked_shapes
from essential_sparsity.streaming.choice import Keeper
from essential_sparsity.streaming.stored import Place, places_in


@dataclass(frozen=True, eq=False)
class StoredMasks:
    """A masks file by its header: what chose the masks, and where each weight's bits lie."""

    file: Path
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    places: Mapping[str, Place]

    @classmethod
    def of(cls, pruner: SavedMasks) -> "StoredMasks":
        """Read the header; raises FileNotFoundError or ValueError where there is none."""
        if not pruner.file.is_file():
            pruner.check()
        checkpoint = Checkpoint.open(pruner.file)
        shapes = checked_shapes(checkpoint)
        return cls(pruner.file, checkpoint.metadata, shapes, places_in(checkpoint, pruner.file))

    @property
    def parent(self) -> str | None:
        """The hash of what the masks were chosen on, where the file tells."""
        return self.metadata.get("parent")

    @property
    def num_ties(self) -> int:
        """The ties that the masks' file tells of."""
        return int(self.metadata["num_ties"])

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern that chose the masks."""
        return {part: self.metadata[part] for part in ("score", "allocation", "pattern")}

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of the file."""
        return {"masks": file_digest(self.file)}

    def resolve(self, sparsity: object) -> Fraction | None:
        """Give the masks' own sparsity for None, and 0 for dense; raises ValueError for any other number."""
        wanted, measured = exact_sparsity(sparsity), exact_sparsity(self.metadata["sparsity"])
        requested = self.metadata.get("requested")
        own = measured if requested is None else Fraction(requested)
        if wanted and wanted not in (own, measured):
            raise ValueError(
                f"sparsity={sparsity} contradicts pruner.masks={self.file}, whose sparsity is "
                f"{float(self.metadata['sparsity']):g}: give sparsity=null (or 0.0 for dense)"
            )
        return own if wanted is None else wanted

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError, naming weights, where the masks do not fit weights of these shapes."""
        missing = [name for name in shapes if name not in self.shapes]
        surplus = [name for name in self.shapes if name not in shapes]
        if missing or surplus:
            named = ", ".join(repr(name) for name in (missing or surplus)[:3])
            problem = f"{len(missing)} weights have no mask" if missing else f"{len(surplus)} masks have no weight"
            raise ValueError(f"{problem} ({named}): these masks belong to another model")
        for name, shape in shapes.items():
            if shape != self.shapes[name]:
                raise ValueError(
                    f"mask {name!r} has shape {self.shapes[name]}, the weight {shape}: "
                    "these masks belong to another model"
                )

    def keeper(self, name: str) -> Keeper:
        """Read one weight's bits, and give them in pieces."""
        place = self.places[name]
        bits = np.fromfile(self.file, dtype=np.uint8, count=place.stop - place.start, offset=place.start)
        if len(bits) != -(-math.prod(self.shapes[name]) // 8):
            raise ValueError(f"mask {name!r} in {self.file} has {len(bits):,} bytes: it does not fit its shape")
        return lambda flat, start, stop: bits[start // 8 : -(-stop // 8)]

    def as_dict(self) -> dict[str, Any]:
        """Nothing was counted."""
        return {}


@dataclass(frozen=True, eq=False)
class AllKept:
    """Keep every weight: saved masks at sparsity 0."""

    num_ties: int = 0

    def keeper(self, name: str) -> Keeper:
        """Set all bits, and none beyond the last weight."""
        return lambda flat, start, stop: np.packbits(np.ones(stop - start, dtype=bool), bitorder="little")

    def as_dict(self) -> dict[str, Any]:
        """Nothing was counted."""
        return {}
