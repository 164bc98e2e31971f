"""What the weights of each layer and kind look like: moments, zeros, a histogram in units of the RMS; one at a time."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from essential_sparsity.pruning import prunable_names
from essential_sparsity.pruning.architecture import Architecture, architecture_of, fused_parts, layer_of
from essential_sparsity.runs import DISTRIBUTION_BINS, DISTRIBUTION_WIDTH

NEAR_ZERO = 0.05
"""Near zero: below this multiple of the matrix's own RMS, as everywhere (METHODS: a Gaussian has 3.99 % there)."""


def measure_distribution(
    weights: Mapping[str, Tensor], *, architecture: Architecture | None = None
) -> list[dict[str, Any]]:
    """Measure every prunable matrix of a model or checkpoint, fused ones split into query, key and value.

    `weights` may be lazy: one matrix is held at a time. One mapping per layer and kind, in the fixed order: layer,
    kind, num, mean, std, rms, least, largest, num_zeros, num_near and `counts` of the bins of weight / RMS (runs.py).
    Raises ValueError naming a matrix that holds NaN or infinity.
    """
    architecture = architecture or architecture_of(weights)
    return list(_rows(weights, prunable_names(weights, architecture), architecture))


def _rows(
    weights: Mapping[str, Tensor], names: Mapping[str, str], architecture: Architecture
) -> Iterator[dict[str, Any]]:
    for canonical, name in names.items():
        parts = fused_parts(canonical, weights[name].detach(), architecture)
        for kind, part in parts.items():
            yield {"layer": layer_of(canonical), "kind": kind, **_measured(part, canonical)}


def _measured(part: Tensor, name: str) -> dict[str, Any]:
    values = part.reshape(-1).float()
    mean = values.mean(dtype=torch.float64).item()
    rms = values.double().square().mean().sqrt().item()
    if not rms < float("inf"):
        raise ValueError(f"weight {name!r} holds NaN or infinity: its distribution says nothing; take a sound file")
    scaled = values / (rms or 1.0)
    half = DISTRIBUTION_BINS // 2
    bins = (scaled / DISTRIBUTION_WIDTH).floor().clamp(-half - 1, half).long() + half + 1
    return {
        "num": values.numel(),
        "mean": mean,
        "std": max(rms**2 - mean**2, 0.0) ** 0.5,
        "rms": rms,
        "least": values.min().item(),
        "largest": values.max().item(),
        "num_zeros": int((values == 0).sum()),
        "num_near": int((values.abs() < NEAR_ZERO * rms).sum()) if rms else values.numel(),
        "counts": torch.bincount(bins, minlength=DISTRIBUTION_BINS + 2).tolist(),
    }
