"""Where the smallest weights of a model lie: each matrix as a grid of tiles, and the share of each tile that goes."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from essential_sparsity.pruning import Masks, Pruner, prunable_names
from essential_sparsity.pruning.architecture import Architecture, architecture_of, fused_parts, layer_of

TILES = 48
"""Tiles along each side of a matrix, at most."""


def measure_places(
    weights: Mapping[str, Tensor], smallest: object, *, architecture: Architecture | None = None
) -> list[dict[str, Any]]:
    """Find the `smallest` share of all prunable weights, one threshold for the model, and say where they lie.

    `weights` may be lazy. One mapping per layer and kind, fused matrices split: layer, kind, num, num_pruned, height,
    width and `tiles`, the shares of its tiles, row by row. Raises ValueError for a share outside [0, 1).
    """
    architecture = architecture or architecture_of(weights)
    names = prunable_names(weights, architecture)
    chosen = {canonical: weights[name].detach() for canonical, name in names.items()}
    return list(_rows(Pruner()(chosen, sparsity=smallest, architecture=architecture), architecture))


def _rows(masks: Masks, architecture: Architecture) -> Iterator[dict[str, Any]]:
    for name in masks:
        for kind, keep in fused_parts(name, masks[name], architecture).items():
            gone = (~keep).float()
            side = min(TILES, gone.shape[0]), min(TILES, gone.shape[1])
            tiles = adaptive_avg_pool2d(gone[None, None], side)[0, 0]
            yield {
                "layer": layer_of(name), "kind": kind, "num": gone.numel(), "num_pruned": int((~keep).sum()),
                "height": side[0], "width": side[1], "tiles": tiles.reshape(-1).tolist(),
            }  # fmt: skip
