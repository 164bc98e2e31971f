"""The slow, obvious pruning that the fast one is held against: all scores in one list, sorted."""

from collections.abc import Mapping
from fractions import Fraction
from math import floor

import torch
from torch import Tensor

from essential_sparsity.pruning.architecture import natural_order


def sorted_masks(scores: Mapping[str, Tensor], sparsity: str) -> dict[str, Tensor]:
    """Prune the floor(s N + 1/2) smallest of all scores; among equal ones the later in fixed order goes first."""
    names = sorted(scores, key=natural_order)
    entries = [(float(value), -place) for place, value in enumerate(v for n in names for v in scores[n].reshape(-1))]
    count = floor(Fraction(sparsity) * len(entries) + Fraction(1, 2))
    keep = torch.ones(len(entries), dtype=torch.bool)
    for _, place in sorted(entries)[:count]:
        keep[-place] = False
    pieces = keep.split([scores[name].numel() for name in names])
    return {name: piece.view(scores[name].shape) for name, piece in zip(names, pieces)}
