"""Run folders of a sweep that never ran: a known curve, written through the real writer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.runs import Run, folder_name, run_id

KINDS = ("query", "key", "value", "attention_output", "intermediate", "output")
SIZES = (4096, 4096, 4096, 4096, 16384, 16384)
NUM_LAYERS = 4
NUM_PARAMETERS = 1_000_000

Truth = Callable[[float], float]


def falls_late(sparsity: float) -> float:
    """Accuracy 0.85, free up to a half, then a cliff."""
    return 0.85 - 0.5 * max(0.0, sparsity - 0.5)


def falls_early(sparsity: float) -> float:
    """What random masks do: a steady slide from the first zero."""
    return 0.85 - 0.35 * sparsity


def config_of(*, sparsity: Any, seed: int, pruner: str = "omp", **changes: Any) -> dict[str, Any]:
    """A resolved configuration as an app would record it; `changes` are dotted keys with `__` for the dot."""
    config: dict[str, Any] = {
        "name": "synthetic",
        "sparsity": sparsity,
        "seed": seed,
        "pretraining_seed": 0,
        "backbone": {"_target_": "LanguageBackbone", "hub_id": "bert-base-uncased", "pretrained": True},
        "data": {"_target_": "Glue", "subset": "sst2", "batch_size": 32},
        "task": {"_target_": "SequenceClassification"},
        "pruner": {"score": {"_target_": "Random" if pruner == "random" else "Magnitude"}},
        "trainer": {"max_epochs": 3},
        "optimizer": {"lr": 2e-5},
        "parent": None,
        "report": {"epsilon": None, "rho": 0.05},
    }
    if pruner == "random":
        config["pruner"]["score"]["seed"] = seed
    for name, value in changes.items():
        *path, last = name.split("__")
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    return config


def open_run(
    folder: Path,
    *,
    sparsity: Any,
    seed: int,
    pruner: str = "omp",
    arm: str = "",
    backbone_choice: str = "bert_base",
    **changes: Any,
) -> Run:
    """Start a run folder: run.json and nothing more, as an interrupted run leaves it."""
    config = config_of(sparsity=sparsity, seed=seed, pruner=pruner, **changes)
    overrides = [f"pruner={pruner}", f"sparsity={sparsity}", f"seed={seed}"]
    choices = {"backbone": backbone_choice, "data": "glue", "task": "sequence_classification", "pruner": pruner}
    run = Run(folder / folder_name(overrides, run_id(config)))
    run.start(
        {
            "config": config,
            "id": run_id(config),
            "name": "synthetic",
            "seed": seed,
            "overrides": overrides,
            "command": "essential-sparsity train experiment=synthetic",
            "choices": choices | ({"arm": arm} if arm else {}),
            "versions": {"essential_sparsity": "0.1.0", "torch": "2.15.0"},
            "git": "0123abc",
            "inputs": {"model.safetensors": "ab" * 32},
            "num_threads": 2,
            "created": "2026-01-01T00:00:00Z",
        }
    )
    return run


def predictions_of(accuracy: float, *, seed: int, level: float, num_rows: int, order: int = 0) -> dict[str, Any]:
    """Class predictions of about this accuracy; rows differ in difficulty, the same for every run of a split."""
    rows = np.random.default_rng((7, order))
    label, hard = rows.integers(0, 2, num_rows), rows.normal(size=num_rows)
    of_seed = np.random.default_rng((11, order, seed)).normal(size=num_rows)
    of_run = np.random.default_rng((13, order, seed, round(level * 1000))).normal(size=num_rows)
    latent = ndtr(np.sqrt(0.85) * hard + np.sqrt(0.13) * of_seed + np.sqrt(0.02) * of_run)
    prediction = np.where(latent < accuracy, label, 1 - label)
    return {"row": np.arange(num_rows), "label": label, "prediction": prediction, "loss": latent.astype(np.float32)}


def finish_run(run: Run, splits: Mapping[str, Mapping[str, Any]], *, sparsity: float, metric: str = "accuracy") -> None:
    """Write predictions, layers and metrics as training does."""
    run.write_predictions({split: dict(columns) for split, columns in splits.items()})
    layers = [
        {
            "name": f"encoder.layer.{layer}.{kind}.weight",
            "layer": layer,
            "kind": kind,
            "num": size,
            "num_pruned": round(size * min(0.99, max(0.0, sparsity * (1 + 0.15 * (layer - 1.5) / 1.5)))),
            "mean_magnitude": 0.04,
            "rms_magnitude": 0.05,
        }
        for layer in range(NUM_LAYERS)
        for kind, size in zip(KINDS, SIZES)
    ]
    run.write_layers(layers)
    prunable, pruned = (sum(row[name] for row in layers) for name in ("num", "num_pruned"))
    values = {f"{split}/{metric}": METRICS[metric].value(pd.DataFrame(rows)) for split, rows in splits.items()}
    first = next(iter(splits))
    rows = pd.DataFrame(splits[first])
    run.finish(
        {
            "metric": metric,
            "value": values[f"{first}/{metric}"],
            "higher_is_better": True,
            "chance": METRICS[metric].chance(rows),
            "split": first,
            "num_rows": len(rows),
            "sparsity": pruned / prunable,
            "sparsity_requested": sparsity,
            "num_prunable": prunable,
            "num_pruned": pruned,
            "num_ties": 0,
            "num_parameters": NUM_PARAMETERS,
            "seconds": 12.5,
            "metrics": {**values, "train/loss": 0.2 + 0.4 * sparsity},
        }
    )


def write_sweep(
    folder: Path,
    *,
    levels: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8),
    seeds: Sequence[int] = (0, 1, 2),
    truth: Truth = falls_late,
    pruner: str = "omp",
    num_rows: int = 1500,
    splits: Sequence[str] = ("validation",),
    **changes: Any,
) -> None:
    """Write finished runs of levels × seeds along a true curve."""
    for level in levels:
        for seed in seeds:
            run = open_run(folder, sparsity=level, seed=seed, pruner=pruner, **changes)
            luck = np.random.default_rng((17, seed, round(level * 1000))).normal(scale=0.001)
            tables = {
                name: predictions_of(truth(level) + luck, seed=seed, level=level, num_rows=num_rows, order=order)
                for order, name in enumerate(splits)
            }
            finish_run(run, tables, sparsity=level)
