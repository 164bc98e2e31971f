"""From tables of runs to claims: metrics, sparsity curves, essential sparsity with its interval; never torch."""

from essential_sparsity.analysis.change_point import ChangePoint, detect_abrupt_sparsification
from essential_sparsity.analysis.comparison import Excess, equivalence, essential_sparsity_excess
from essential_sparsity.analysis.curves import SparsityCurve, curves_from_runs
from essential_sparsity.analysis.essential import EssentialSparsity, locate_essential_sparsity
from essential_sparsity.analysis.metrics import METRICS, Metric, metric_named
from essential_sparsity.analysis.power import resolvable_epsilon
from essential_sparsity.analysis.trace import SparsityTrace

__all__ = [
    "METRICS",
    "ChangePoint",
    "EssentialSparsity",
    "Excess",
    "Metric",
    "SparsityCurve",
    "SparsityTrace",
    "curves_from_runs",
    "detect_abrupt_sparsification",
    "equivalence",
    "essential_sparsity_excess",
    "locate_essential_sparsity",
    "metric_named",
    "resolvable_epsilon",
]
