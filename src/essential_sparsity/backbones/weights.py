"""What backbones do with weights: draw a new head from a seed alone, refuse NaN, suggest a folder for a wrong one."""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from essential_sparsity.inputs import suggest


def inside(name: str, modules: Collection[str]) -> bool:
    """Whether a weight belongs to one of the named modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def draw_modules(model: nn.Module, modules: Collection[str], seed: int, *, deviation: float = 0.02) -> None:
    """Draw these modules' weights afresh: N(0, deviation²) for matrices, 0 for biases, 1 for norms; by `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not inside(name, modules):
                continue
            if weight.ndim > 1:
                weight.copy_(torch.empty(weight.shape).normal_(0.0, deviation, generator=generator))
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)


def refuse_non_finite(model: nn.Module, source: str, *, skip: Collection[str] = ()) -> None:
    """Raise ValueError naming the first weight that holds NaN or infinity; `skip` names modules that are new."""
    for name, weight in model.named_parameters():
        if inside(name, skip) or torch.isfinite(weight.detach().sum()):
            continue
        num = int((~torch.isfinite(weight.detach())).sum())
        if num:
            raise ValueError(f"weight {name!r} of {source} holds {num} NaN or infinite values: give a sound checkpoint")


def stored_dtype(folder: Path) -> torch.dtype:
    """Give the number format that a local checkpoint holds most of its weights in."""
    from essential_sparsity.checkpoints import Checkpoint

    stored = Checkpoint.open(folder)
    sizes: dict[torch.dtype, int] = {}
    for name in stored:
        sizes[stored.dtype(name)] = sizes.get(stored.dtype(name), 0) + math.prod(stored.shape(name))
    return max(sizes, key=lambda dtype: (dtype.is_floating_point, sizes[dtype]))


def beside(folder: Path) -> str:
    """Suggest a sibling of a missing folder, for the end of an error line."""
    siblings = [item.name for item in folder.parent.iterdir() if item.is_dir()] if folder.parent.is_dir() else []
    return suggest(folder.name, siblings) or ": give the folder of a saved model"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; a broken one is a ValueError that names it."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): give the whole folder of a saved model") from error
