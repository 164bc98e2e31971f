"""Windows so small that every tensor takes many."""

import pytest

from essential_sparsity.streaming import shards, stored


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Make tensors longer than what is read, masked and written at a time."""
    monkeypatch.setattr(stored, "WINDOW", 256)
    monkeypatch.setattr(shards, "WINDOW", 256)
    monkeypatch.setattr(shards, "PIECE", 48)
    monkeypatch.setattr("essential_sparsity.pruning.histogram.CHUNK", 40)
