"""Which weights go, and how many: score × allocation × pattern, exact to the weight: the paper's method section."""

from essential_sparsity.pruning.after_training import AfterTraining
from essential_sparsity.pruning.allocations import ErdosRenyi, Global, PerRow, Uniform, exact_sparsity
from essential_sparsity.pruning.architecture import (
    Architecture,
    architecture_of,
    canonical_name,
    excluded_weights,
    fused_parts,
    kind_of,
    layer_of,
    prunable_names,
    prunable_weights,
)
from essential_sparsity.pruning.explicit import Explicit
from essential_sparsity.pruning.formula import Formula
from essential_sparsity.pruning.histogram import MagnitudeHistogram
from essential_sparsity.pruning.lottery import Lottery, MatchedCompute, ReassignedLottery, TransferredLottery
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.part import Part
from essential_sparsity.pruning.patterns import NM, Unstructured
from essential_sparsity.pruning.pruner import Calibration, Pruned, Pruner, Ranking
from essential_sparsity.pruning.saved import SavedMasks
from essential_sparsity.pruning.scores import ActivationNorm, Magnitude, Random
from essential_sparsity.pruning.sparsegpt import SparseGPT

__all__ = [
    "NM",
    "ActivationNorm",
    "AfterTraining",
    "Architecture",
    "Calibration",
    "ErdosRenyi",
    "Explicit",
    "Formula",
    "Global",
    "Lottery",
    "Magnitude",
    "MagnitudeHistogram",
    "Masks",
    "MatchedCompute",
    "Part",
    "PerRow",
    "Pruned",
    "Pruner",
    "Random",
    "Ranking",
    "ReassignedLottery",
    "SavedMasks",
    "SparseGPT",
    "TransferredLottery",
    "Uniform",
    "Unstructured",
    "architecture_of",
    "canonical_name",
    "exact_sparsity",
    "excluded_weights",
    "fused_parts",
    "kind_of",
    "layer_of",
    "prunable_names",
    "prunable_weights",
]
