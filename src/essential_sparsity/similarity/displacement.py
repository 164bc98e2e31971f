"""The displacement null: how similar masks stay when each tensor moves as far as training moved it, at random."""

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import Pruner
from essential_sparsity.pruning.architecture import prunable_names
from essential_sparsity.seeds import derive
from essential_sparsity.similarity.named import NamedMasks, parts_in_words

LevelPair = tuple[Fraction, Fraction]


def level_pairs(found: Sequence[NamedMasks]) -> set[LevelPair]:
    """Give the sparsities of every pair."""
    return {(one.level, other.level) for one, other in combinations(found, 2)}


def displacement_null(
    pretrained: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    *,
    levels: Collection[LevelPair],
    pruner: Pruner | None = None,
    num_draws: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How similar masks stay if training did nothing but move each tensor as far, in a random direction.

    θ_p plus Gaussian noise of each tensor's own ‖θ_trained − θ_p‖, pruned alike (METHODS: 0.96 alone proves nothing).
    One line per pair of levels and weight, and in total: sparsity, other_sparsity, weight, displacement
    (‖θ_trained − θ_p‖ / ‖θ_p‖), null_cosine (mean over draws), null_low and null_high: where one more draw would lie
    (Student's prediction interval), null_pruner. Raises ValueError where the two checkpoints differ in names or shapes.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws={num_draws} gives no interval: take 10")
    pruner = pruner or Pruner()
    if not isinstance(pruner, Pruner):
        raise ValueError(f"pruner={type(pruner).__name__} cannot rank displaced weights: take omp, uniform or nm")
    moved = distances(pretrained, trained)
    order = sorted(set(levels))
    singles = sorted({level for pair in order for level in pair})
    here = dict(zip(singles, pruner.rank(pretrained).masks_at(singles), strict=True))
    drawn: dict[LevelPair, list[list[float]]] = {pair: [] for pair in order}
    for draw in range(num_draws):
        noisy = displaced(pretrained, moved, seed=derive(seed, "displacement", draw))
        there = dict(zip(singles, pruner.rank(noisy).masks_at(singles), strict=True))
        for one, other in order:
            rows = zip(here[one].similarity(there[other]), here[other].similarity(there[one]), strict=True)
            drawn[one, other].append([(float(a["cosine"]) + float(b["cosine"])) / 2 for a, b in rows])
    sizes = {name: float(torch.linalg.vector_norm(weight.double())) for name, weight in pretrained.items()}
    names = [*here[singles[0]], "total"]
    total = math.hypot(*moved.values()) / math.hypot(*sizes.values())
    relative = [*(moved[name] / sizes[name] if sizes[name] else math.nan for name in names[:-1]), total]
    tables = []
    for (one, other), cosines in drawn.items():
        mean, low, high = _prediction_interval(np.array(cosines), confidence)
        columns = {"weight": names, "displacement": relative, "null_cosine": mean, "null_low": low, "null_high": high}
        columns["null_pruner"] = parts_in_words(**pruner.describe())
        tables.append(pd.DataFrame({"sparsity": float(one), "other_sparsity": float(other), **columns}))
    return pd.concat(tables, ignore_index=True)


def distances(pretrained: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each tensor moved, ‖θ_trained − θ_p‖.

    Exact zeros of the trained weights are taken for pruned: they moved as far as the others of their tensor.
    """
    apart = [name for name in {**pretrained, **trained} if _shape(pretrained, name) != _shape(trained, name)]
    if apart:
        named = ", ".join(map(repr, apart[:3]))
        raise ValueError(f"pretrained and trained differ in names or shapes of {named}: give one model's checkpoints")
    found = {}
    for name, weight in pretrained.items():
        kept = trained[name] != 0
        squares = (trained[name].double() - weight.double())[kept].square()
        found[name] = math.sqrt(float(squares.mean()) * weight.numel()) if len(squares) else 0.0
    return found


def displaced(weights: Mapping[str, Tensor], moved: Mapping[str, float], *, seed: int) -> dict[str, Tensor]:
    """Give weights plus Gaussian noise of exactly these norms, a function of (seed, name) alone."""
    found = {}
    for name, weight in weights.items():
        generator = torch.Generator().manual_seed(derive(seed, name))
        noise = torch.randn(weight.shape, generator=generator)
        norm = float(torch.linalg.vector_norm(noise, dtype=torch.float64))
        found[name] = noise.mul_(moved[name] / norm).add_(weight)
    return found


def open_weights(path: Path | str) -> Checkpoint:
    """Open a checkpoint, or the one in a run folder's model/; raises ValueError where a run kept none."""
    path = Path(path).expanduser()
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise ValueError(f"{path} holds no model/: train it again with save_model=true")
        path = path / "model"
    return Checkpoint.open(path)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the prunable weights of what `open_weights` opens, in fp32 by canonical name."""
    stored = open_weights(path)
    return {canonical: stored[name].float() for canonical, name in prunable_names(stored).items()}


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _prediction_interval(cosines: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over draws, and the interval in which one more draw lies: [weights] each, from [draws, weights]."""
    num = len(cosines)
    mean = cosines.mean(0)
    reach = stdtrit(num - 1, (1 + confidence) / 2) * cosines.std(0, ddof=1) * math.sqrt(1 + 1 / num)
    return mean, np.maximum(mean - reach, 0), np.minimum(mean + reach, 1)
