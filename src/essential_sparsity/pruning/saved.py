"""Saved masks as a pruner: what one run chose, applied to any model with the same prunable weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from essential_sparsity.inputs import file_digest
from essential_sparsity.pruning.architecture import Architecture, prunable_weights
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.pruner import Batch, Pruned, Pruner
from essential_sparsity.pruning.sparsity import exact_sparsity

FILE = "masks.safetensors"
"""What a run folder and a pruned checkpoint call their masks."""


@dataclass(frozen=True)
class SavedMasks:
    """Take stored masks, from a masks file or from a folder (of a run, of a pruned checkpoint) that holds one."""

    masks: Path | str
    calibration: None = field(default=None, init=False)

    @property
    def file(self) -> Path:
        """The masks file."""
        path = Path(self.masks).expanduser()
        return path / FILE if path.is_dir() else path

    def check(self) -> None:
        """Raise FileNotFoundError where there is no file, ValueError where it holds no masks."""
        if not self.file.is_file():
            what = f"{self.masks} holds no {FILE}" if Path(self.masks).is_dir() else f"{self.masks} does not exist"
            raise FileNotFoundError(f"pruner.masks={what}: give a masks file, or the folder of a finished run")
        _ = self.loaded

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of the file."""
        self.check()
        return {f"masks/{self.file.name}": file_digest(self.file)}

    @cached_property
    def loaded(self) -> Masks:
        """The masks, read once."""
        return Masks.load(self.file)

    def origin(self) -> str | None:
        """Give the hash of the checkpoint or masks that these come from; None where the file does not tell."""
        self.check()
        return self.loaded.parent

    def resolve(self, sparsity: object) -> Fraction:
        """Give the masks' own sparsity (as it was asked for, else as measured) for None, and 0 for dense.

        Raises ValueError for any other number.
        """
        wanted = exact_sparsity(sparsity)
        self.check()
        measured = Fraction(self.loaded.num_pruned, self.loaded.num_prunable)
        own = measured if self.loaded.requested is None else self.loaded.requested
        if wanted and wanted not in (own, measured, exact_sparsity(float(measured))):
            raise ValueError(
                f"sparsity={sparsity} contradicts pruner.masks={self.masks}, whose sparsity is {float(own):g}: "
                "give sparsity=null (or 0.0 for dense)"
            )
        return own if wanted is None else wanted

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern that chose the masks."""
        self.check()
        return {"score": self.loaded.score, "allocation": self.loaded.allocation, "pattern": self.loaded.pattern}

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        *,
        sparsity: object = None,
        statistics: Mapping[str, Tensor] | None = None,
        architecture: Architecture | None = None,
    ) -> Masks:
        """Give the masks for these weights; raises ValueError, naming one, where names or shapes differ."""
        wanted = self.resolve(sparsity)
        self.loaded.check(weights)
        if wanted or sparsity is None:
            return self.loaded
        return replace(Pruner()(weights, sparsity=0), **self.describe())

    def prune(
        self,
        model: nn.Module,
        *,
        sparsity: object = None,
        architecture: Architecture | None = None,
        batches: Sequence[Batch] | None = None,
        forward: Callable[[Batch], Any] | None = None,
    ) -> Pruned:
        """Give the masks for a model, with their own hash and their parent's, where it is known, as notes."""
        masks = self(prunable_weights(model, architecture), sparsity=sparsity)
        notes = {"masks": self.loaded.digest(), "masks_parent": self.loaded.parent}
        return Pruned(masks, notes={key: value for key, value in notes.items() if value is not None})
