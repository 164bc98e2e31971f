"""Lightning callbacks: thin shells that say when; the work is done in pruning."""

from essential_sparsity.callbacks.pruning import PruningCallback
from essential_sparsity.callbacks.sparsity_recorder import SparsityRecorder

__all__ = ["PruningCallback", "SparsityRecorder"]
