"""Lightning callbacks: thin shells that say when; the work is done in pruning."""

from essential_sparsity.callbacks.pruning import PruningCallback

__all__ = ["PruningCallback"]
