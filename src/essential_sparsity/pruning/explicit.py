"""Explicit allocations: a sparsity for each weight, by name, by kind or in a list."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from essential_sparsity.inputs import suggest
from essential_sparsity.pruning.allocations import Allocation, Shape
from essential_sparsity.pruning.architecture import Architecture, fused_parts, kind_of, layer_of
from essential_sparsity.pruning.sparsity import exact_sparsity, num_pruned

_KIND, _LAYER = "kind:", "layer:"


@dataclass(frozen=True)
class Explicit(Allocation):
    """Each weight loses its own share: by patterns, of which the last that matches counts, or one number per weight.

    Keys of `sparsities` are canonical names with wildcards (`encoder.layer.3.*`), layers (`layer:3`) or kinds
    (`kind:query`, `kind:mlp_*`); a kind that is held in a fused matrix (the query of a qkv) is cut out of it and
    competes by itself. A list has one number per weight in the fixed order. What no pattern matches loses `otherwise`.
    Shares lie in [0, 1].
    """

    sparsities: Mapping[str, object] | Sequence[object]
    otherwise: object = 0
    implies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check all shares; raises ValueError."""
        values = self.sparsities.values() if isinstance(self.sparsities, Mapping) else self.sparsities
        if isinstance(self.sparsities, (str, bytes)) or not self.sparsities:
            raise ValueError(
                f"sparsities={self.sparsities!r} names no weight: give {{'kind:mlp_in': 0.5}} or the like, or a list"
            )
        for value in (*values, self.otherwise):
            _share(value)

    def splits(self, names: Sequence[str], architecture: Architecture | None) -> frozenset[str]:
        """Name the fused weights of which a pattern names a part."""
        if architecture is None or not isinstance(self.sparsities, Mapping):
            return frozenset()
        kinds = [pattern.removeprefix(_KIND) for pattern in self.sparsities if pattern.startswith(_KIND)]
        return frozenset(
            name
            for name in names
            for part in _parts_of(name, architecture)
            if any(fnmatchcase(part, kind) for kind in kinds)
        )

    def nums_pruned(
        self, sparsity: Fraction | None, shapes: Mapping[str, Shape], architecture: Architecture | None
    ) -> list[int]:
        """Prune each weight's own share."""
        shares = self.shares(list(shapes), architecture)
        return [0 if sparsity == 0 else num_pruned(shares[name], math.prod(shape)) for name, shape in shapes.items()]

    def shares(self, names: Sequence[str], architecture: Architecture | None) -> dict[str, Fraction]:
        """Give the share of zeros of each weight or part; raises ValueError where patterns or list do not fit."""
        if not isinstance(self.sparsities, Mapping):
            if len(self.sparsities) != len(names):
                raise ValueError(
                    f"sparsities lists {len(self.sparsities)} numbers for {len(names)} prunable weights: "
                    "give one per weight, in the natural order of their names"
                )
            return {name: _share(value) for name, value in zip(names, self.sparsities)}
        shares = dict.fromkeys(names, _share(self.otherwise))
        for pattern, value in self.sparsities.items():
            matched = [name for name in names if _matches(name, pattern, architecture)]
            if not matched:
                raise ValueError(
                    f"pattern {pattern!r} matches no prunable weight{_suggest(pattern, names, architecture)}"
                )
            shares |= dict.fromkeys(matched, _share(value))
        return shares

    def describe(self) -> str:
        """Name the allocation and its shares."""
        if not isinstance(self.sparsities, Mapping):
            return f"explicit({', '.join(map(str, self.sparsities))})"
        shares = ", ".join(f"{pattern}: {value}" for pattern, value in self.sparsities.items())
        return f"explicit({shares}; otherwise {self.otherwise})"


def _share(value: object) -> Fraction:
    """Read a share of zeros in [0, 1]; unlike a model, a single weight may go as a whole."""
    if value is None:
        raise ValueError("sparsities holds null: give each weight a share of zeros, such as 0.5")
    if not isinstance(value, (bool, str)) and value == 1:
        return Fraction(1)
    share = exact_sparsity(value)
    assert share is not None
    return share


def _matches(key: str, pattern: str, architecture: Architecture | None) -> bool:
    name, part = split_key(key)
    if pattern.startswith(_KIND):
        kinds = (part, _kind(name, architecture))
        return any(kind is not None and fnmatchcase(kind, pattern.removeprefix(_KIND)) for kind in kinds)
    if pattern.startswith(_LAYER):
        return str(layer_of(name)) == pattern.removeprefix(_LAYER)
    return name == pattern or fnmatchcase(name, pattern)


def _kind(name: str, architecture: Architecture | None) -> str:
    return (architecture.kind(name) if architecture else None) or kind_of(name)


def _suggest(pattern: str, keys: Sequence[str], architecture: Architecture | None) -> str:
    names = [split_key(key)[0] for key in keys]
    if pattern.startswith(_LAYER):
        last = max((layer_of(name) for name in names), default=0)
        return f": the layers are {_LAYER}0 … {_LAYER}{last}"
    if not pattern.startswith(_KIND):
        return suggest(pattern, names[:12]) if len(names) <= 12 or "*" not in pattern else f" (such as {names[0]!r})"
    kinds = {_kind(name, architecture) for name in names}
    if architecture is not None:
        kinds |= {part for name in names for part in _parts_of(name, architecture)}
    return suggest(pattern, {f"{_KIND}{kind}" for kind in kinds})


# --- parts of fused matrices ------------------------------------------------------------------------------------------


def _parts_of(name: str, architecture: Architecture) -> tuple[str, ...]:
    """Give the kinds that a fused matrix holds; none for any other."""
    return architecture.fused.get(architecture.kind(name) or "", ())


def part_key(name: str, part: str) -> str:
    """Give the key under which a part of a fused matrix is ranked."""
    return f"{name}[{part}]"


def split_key(key: str) -> tuple[str, str | None]:
    """Give weight and part of a key; None for a whole weight."""
    name, bracket, part = key.partition("[")
    return (name, part.removesuffix("]")) if bracket else (name, None)


class Parts(Mapping[str, Tensor]):
    """Weights of which some are split into parts by kind: views, under keys such as `blocks.0.attn.qkv.weight[key]`."""

    def __init__(
        self, weights: Mapping[str, Tensor], names: Sequence[str], split: frozenset[str], architecture: Architecture
    ) -> None:
        self._weights = weights
        self._architecture = architecture
        self._keys = {name: [name] for name in names}
        self._keys |= {name: [part_key(name, part) for part in _parts_of(name, architecture)] for name in split}
        self._names = {key: name for name in names for key in self._keys[name]}

    def __getitem__(self, key: str) -> Tensor:
        """Give a weight, or a view of one part."""
        name, part = split_key(key)
        if part is None:
            return self._weights[name]
        return fused_parts(name, self._weights[name], self._architecture)[part]

    def __iter__(self) -> Iterator[str]:
        """Go through the keys: parts in the place of their weight."""
        return iter(self._names)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._names)

    def shared(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each part the statistics of its weight: all parts read the same inputs."""
        return {key: statistics[name] for key, name in self._names.items() if name in statistics}

    def join(self, bits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Put the bit-packed masks of parts together again."""
        return {name: bits[name] if keys == [name] else self._join(name, bits) for name, keys in self._keys.items()}

    def _join(self, name: str, bits: Mapping[str, np.ndarray]) -> np.ndarray:
        masks = []
        for key in self._keys[name]:
            shape = self[key].shape
            keep = np.unpackbits(bits[key], count=math.prod(shape), bitorder="little")
            masks.append(torch.from_numpy(keep).view(shape))
        whole = torch.cat(masks, dim=1 - self._architecture.input_axis)
        return np.packbits(whole.reshape(-1).numpy(), bitorder="little")
