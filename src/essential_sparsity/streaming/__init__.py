"""Checkpoints larger than memory: counted, cut and pruned in windows, from files to files."""

from essential_sparsity.streaming.progress import Pass
from essential_sparsity.streaming.prune import PrunedCheckpoint, prune_checkpoint

__all__ = ["Pass", "PrunedCheckpoint", "prune_checkpoint"]
