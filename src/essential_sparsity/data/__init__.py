"""Data sets: rows to train on, named evaluation splits, batches whose order is a pure function of (seed, epoch)."""
