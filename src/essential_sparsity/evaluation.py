"""Predictions of a model, what they are worth, and a zero-shot curve over nested masks with one model load."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from essential_sparsity import provenance
from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.pruning import Masks, Pruner, exact_sparsity, prunable_weights
from essential_sparsity.pruning.architecture import Architecture, layer_of
from essential_sparsity.runs import Run, run_at, run_id
from essential_sparsity.seeds import derive

Predictions = dict[str, dict[str, np.ndarray]]
"""split → column (row, label, prediction, loss, …) → array [rows]."""


# --- predictions ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    module: LightningModule, loaders: Mapping[str, Iterable[Any]], *, precision: str = "32-true"
) -> Predictions:
    """Predict every row of every split in eval mode, on the device that the module is on; rows come back sorted."""
    was_training = module.training
    module.eval()
    try:
        with _autocast(module.device, precision):
            return {split: _predict_split(module, loader) for split, loader in loaders.items()}
    finally:
        module.train(was_training)


def _predict_split(module: LightningModule, loader: Iterable[Any]) -> dict[str, np.ndarray]:
    parts: dict[str, list[Tensor]] = {}
    for index, batch in enumerate(loader):
        batch = {key: _as_input(value.to(module.device, non_blocking=True), module) for key, value in batch.items()}
        for name, column in module.predict_step(batch, index).items():
            parts.setdefault(name, []).append(column)
    columns = {name: torch.cat(values).cpu() for name, values in parts.items()}
    order = torch.argsort(columns["row"])
    return {name: _numpy(column[order]) for name, column in columns.items()}


def _as_input(value: Tensor, module: LightningModule) -> Tensor:
    """Give images the model's own number format where its weights are half-precision (`bf16-true`)."""
    is_image = value.is_floating_point() and value.ndim > 1
    return value.to(next(module.parameters()).dtype) if is_image else value


def _numpy(column: Tensor) -> np.ndarray:
    return (column.float() if column.is_floating_point() else column).numpy()


@contextlib.contextmanager
def _autocast(device: torch.device, precision: str) -> Iterator[None]:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision in kinds:
        with torch.autocast(device.type, kinds[precision]):
            yield
    else:
        yield


# --- what a run says of itself ----------------------------------------------------------------------------------------


def result(
    predictions: Predictions, *, metric: str, masks: Masks, requested: Any, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the content of metrics.json but for seconds: primary metric, every split's, measured sparsity."""
    measure, rows = METRICS[metric], {split: pd.DataFrame(columns) for split, columns in predictions.items()}
    primary, config = next(iter(rows)), record["config"]
    every = {f"{split}/{metric}": measure.value(table) for split, table in rows.items()}
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


def run_info(record: Mapping[str, Any], *, inputs: Mapping[str, str] | None, parent: str | None) -> dict[str, Any]:
    """Give the content of run.json: what was asked for (`record`), the hashes of its inputs, and provenance."""
    config = record["config"]
    return {
        **record,
        "id": run_id(config),
        "name": config.get("name"),
        "seed": config.get("seed"),
        "inputs": inputs,
        "parent": parent,
        "versions": provenance.versions(),
        "git": provenance.git_revision(),
        "machine": provenance.machine(),
        "num_threads": torch.get_num_threads(),
        "created": provenance.now(),
    }


# --- a curve without training -----------------------------------------------------------------------------------------


def inputs_if_there(backbone: Any, data: Any) -> dict[str, str] | None:
    """Give the hashes of a run's inputs, or None where they are not at hand (moved away, or a hub that is offline)."""
    try:
        return {**backbone.inputs(), **data.inputs()}
    except (OSError, ValueError):
        return None


def level_run(folder: Path, record: Mapping[str, Any], sparsity: Fraction | None) -> tuple[Run, dict[str, Any]]:
    """Give the run of one level of a curve, and the record that run.json has of it."""
    level = None if sparsity is None else float(sparsity)
    config = {key: value for key, value in record["config"].items() if key != "sparsities"} | {"sparsity": level}
    overrides = [*record.get("overrides", ()), f"sparsity={level}"]
    run = run_at(folder, overrides, run_id(config))
    return run, {**record, "config": config, "overrides": overrides}


def evaluate_curve(
    backbone: Any,
    data: Any,
    task: Callable[..., LightningModule],
    *,
    sparsities: Sequence[Any],
    folder: Path | str,
    pruner: Pruner,
    seed: int = 0,
    precision: str = "32-true",
    device: str = "auto",
    record: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a model at rising sparsity without training, one run folder per level; give the levels' metrics.

    The model is loaded once and its weights ranked once; masks of rising sparsity are nested, so each level only
    removes more. Levels that are finished are not computed again. The model's head must be in its file.
    Errors: as `training.fit`.
    """
    levels = sorted({exact_sparsity(value) for value in sparsities}, key=lambda level: level or Fraction(0))
    record = record or {"config": _curve_config(backbone, data, task, pruner, seed, precision)}
    runs = [level_run(Path(folder), record, level) for level in levels]
    there = inputs_if_there(backbone, data)
    for run, own in runs:
        if run.finished:
            run.check_config(own["config"])
            run.check_inputs(there)
    if all(run.finished for run, _ in runs):
        return [run.metrics for run, _ in runs]
    data.check()
    backbone.check()
    inputs = {**backbone.inputs(), **data.inputs()}
    data.prepare(backbone.preprocessing())
    data.seed(derive(seed, "order"))
    model = backbone.build(num_labels=data.num_labels, seed=derive(seed, "head"), require_head=True)
    module, architecture = task(model, num_labels=data.num_labels), backbone.architecture(model)
    module.to(_device(device))
    weights = prunable_weights(model, architecture)
    ranking, loaders = pruner.rank(weights), data.evaluation_dataloaders()
    for level, (run, own) in zip(levels, runs, strict=True):
        with run.lock():
            if run.finished:
                continue
            started = time.monotonic()
            run.start(run_info(own, inputs=inputs, parent=own.get("parent")))
            masks = ranking.masks(level)
            masks.apply_(weights)
            predictions = predict(module, loaders, precision=precision)
            metrics = result(predictions, metric=data.metric, masks=masks, requested=level, record=own)
            run.write_predictions(predictions)
            run.write_layers(layer_rows(weights, masks, architecture))
            masks.save(run.path / "masks.safetensors")
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            metrics |= {"seconds": round(time.monotonic() - started, 3), "num_parameters": num_parameters}
            run.finish(metrics | {"device": str(module.device)})
    return [run.metrics for run, _ in runs]


def _device(name: str) -> torch.device:
    if name in ("auto", "gpu", "cuda"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _curve_config(*arguments: Any) -> dict[str, Any]:
    names = ("backbone", "data", "task", "pruner", "seed", "precision")
    values = [value if isinstance(value, int) else repr(value) for value in arguments]
    return dict(zip(names, values, strict=True))
