"""Similarity of masks, every pair: against chance, against other seeds and tasks, against weights that merely moved."""

from essential_sparsity.similarity.displacement import displacement_null, level_pairs, open_weights, read_weights
from essential_sparsity.similarity.named import NamedMasks, read_masks
from essential_sparsity.similarity.table import similarity_table

__all__ = [
    "NamedMasks",
    "displacement_null",
    "level_pairs",
    "open_weights",
    "read_masks",
    "read_weights",
    "similarity_table",
]
