"""Lightning callbacks: thin shells that say when; the work is done elsewhere."""

from essential_sparsity.callbacks.probes import FeatureProbes
from essential_sparsity.callbacks.pruning import PruningCallback
from essential_sparsity.callbacks.sparsity_recorder import SparsityRecorder

__all__ = ["FeatureProbes", "PruningCallback", "SparsityRecorder"]
