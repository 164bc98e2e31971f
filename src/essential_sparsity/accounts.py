"""What a run says of itself: the contents of metrics.json, layers.csv and run.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from essential_sparsity import provenance
from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.predictions import Predictions
from essential_sparsity.pruning import Masks
from essential_sparsity.pruning.architecture import Architecture, layer_of
from essential_sparsity.runs import run_id


def result(
    predictions: Predictions, *, metric: str, masks: Masks, requested: Any, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the content of metrics.json but for seconds: primary metric, every split's, measured sparsity."""
    measure, rows = METRICS[metric], {split: pd.DataFrame(columns) for split, columns in predictions.items()}
    primary, config = next(iter(rows)), record["config"]
    names = (metric, *measure.beside)
    every = {f"{split}/{name}": METRICS[name].value(table) for split, table in rows.items() for name in names}
    every |= {
        f"{split}/loss": float(columns["loss"].mean()) for split, columns in predictions.items() if "loss" in columns
    }
    return {
        "metric": metric,
        "value": every[f"{primary}/{metric}"],
        "higher_is_better": measure.higher_is_better,
        "chance": measure.chance(rows[primary]),
        "split": primary,
        "num_rows": len(rows[primary]),
        "sparsity": masks.sparsity,
        "sparsity_requested": None if requested is None else float(requested),
        "num_prunable": masks.num_prunable,
        "num_pruned": masks.num_pruned,
        "num_ties": masks.num_ties,
        "seed": config.get("seed"),
        "pretraining_seed": config.get("pretraining_seed"),
        "metrics": every,
    }


def layer_rows(weights: Mapping[str, Tensor], masks: Masks, architecture: Architecture) -> list[dict[str, Any]]:
    """Give the rows of layers.csv: per prunable weight num, num_pruned, mean and RMS magnitude of what is there now."""
    rows = []
    for name, weight in weights.items():
        magnitudes = weight.detach().float().abs()
        rows.append(
            {
                "name": name,
                "layer": layer_of(name),
                "kind": architecture.kind(name),
                "num": weight.numel(),
                "num_pruned": weight.numel() - int(masks[name].sum()),
                "mean_magnitude": float(magnitudes.mean()),
                "rms_magnitude": float(magnitudes.square().mean().sqrt()),
            }
        )
    return rows


def run_info(
    record: Mapping[str, Any], *, inputs: Mapping[str, str] | None, parent: str | None, keep: Sequence[str] = ()
) -> dict[str, Any]:
    """Give the content of run.json: what was asked for (`record`), to `keep` too, hashes of its inputs, provenance."""
    config = record["config"]
    return {
        **record,
        "id": run_id(config),
        "name": config.get("name"),
        "seed": config.get("seed"),
        "inputs": inputs,
        "keep": list(keep),
        "parent": parent,
        "versions": provenance.versions(),
        "git": provenance.git_revision(),
        "machine": provenance.machine(),
        "num_threads": torch.get_num_threads(),
        "created": provenance.now(),
    }
