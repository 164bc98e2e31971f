"""Predictions of a model, what they are worth, and a zero-shot curve over nested masks with one model load."""

import contextlib
import dataclasses
import hashlib
import logging
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
from essential_sparsity.callbacks.pruning import forward_of
from essential_sparsity.pruning import Masks, exact_sparsity, prunable_weights
from essential_sparsity.pruning.architecture import Architecture, layer_of
from essential_sparsity.pruning.lottery import Lottery
from essential_sparsity.runs import Run, run_at, run_id
from essential_sparsity.seeds import derive

log = logging.getLogger(__name__)

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


def head_of(task: Any) -> dict[str, str]:
    """Give what a backbone's `build` must be told where a task needs another head than a classification's."""
    while hasattr(task, "func"):  # a partial of a partial: Hydra's own type does not flatten
        task = task.func
    head = getattr(task, "head", None)
    return {} if head is None else {"head": head}


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


def inputs_of(backbone: Any, data: Any, pruner: Any) -> dict[str, str]:
    """Give a hash (or hub revision) for each input of a run: weights, tokenizer, data, stored masks, calibration."""
    found = {**backbone.inputs(), **data.inputs()}
    parts: list[Any] = [pruner, getattr(pruner, "calibration", None)]
    for part in parts:
        found |= part.inputs() if hasattr(part, "inputs") else {}
    return found


def inputs_if_there(backbone: Any, data: Any, pruner: Any) -> dict[str, str] | None:
    """Give the hashes of a run's inputs, or None where they are not at hand (moved away, or a hub that is offline)."""
    path = getattr(backbone, "path", None)
    if path is not None and not Path(path).exists():
        return None
    try:
        return inputs_of(backbone, data, pruner)
    except (OSError, ValueError):
        return None


# --- what pruners need and say ----------------------------------------------------------------------------------------


def check_pruner(pruner: Any, sparsities: Iterable[Any], data: Any) -> None:
    """Check sparsities, and a pruner's files (stored masks, calibration text), before any model is loaded.

    Raises ValueError for a sparsity that contradicts the pruner, and for calibration text that holds evaluation rows.
    """
    calibration = getattr(pruner, "calibration", None)
    parts: list[Any] = [pruner, calibration]
    for part in parts:
        if hasattr(part, "check"):
            part.check()
    for sparsity in sparsities:
        pruner.resolve(sparsity)
    read = calibration.inputs() if calibration is not None else {}
    evaluated = {digest: name for name, digest in data.inputs().items() if "train" not in name and len(digest) == 64}
    for name, digest in read.items():
        if digest in evaluated:
            raise ValueError(
                f"calibration reads {name}, which is {evaluated[digest]}: calibrate on text without evaluation rows"
            )


def calibration_batches(
    pruner: Any, sparsities: Iterable[Any], preprocessing: Any, data: Any
) -> list[dict[str, Tensor]] | None:
    """Give the batches that a calibrated pruner reads, or None for the others and where all is dense."""
    calibration = getattr(pruner, "calibration", None)
    if calibration is None or all(pruner.resolve(sparsity) == 0 for sparsity in sparsities):
        return None
    return calibration.batches(preprocessing, data)


def weights_digest(inputs: Mapping[str, str]) -> str | None:
    """Give the hash of a run's starting weights from its inputs' hashes, as `Checkpoint.digest` does; None: no file."""
    weights = {name: value for name, value in inputs.items() if name.endswith(".safetensors")}
    own = {name: value for name, value in weights.items() if not name.startswith("masks/")}  # stored masks aside
    files = {name.rsplit("/", 1)[-1]: value for name, value in own.items()}
    files.pop("masks.safetensors", None)  # what `prune` leaves beside the weights
    if len(files) < 2:
        return next(iter(files.values()), None)
    lines = "".join(f"{name}:{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def with_parent(masks: Masks, inputs: Mapping[str, str]) -> Masks:
    """Give masks that name the weights they were chosen on, unless they name what they come from already."""
    return masks if masks.parent is not None else dataclasses.replace(masks, parent=weights_digest(inputs))


def origin_note(pruner: Any, inputs: Mapping[str, str]) -> dict[str, str]:
    """Say where stored masks were chosen on other weights than those that they are applied to; else nothing."""
    origin, ours = pruner.origin() if hasattr(pruner, "origin") else None, weights_digest(inputs)
    if origin is None or ours is None or origin == ours:
        return {}
    log.warning("the masks were chosen on weights %s, this model has %s", origin[:8], ours[:8])
    return {"masks_chosen_on": origin, "applied_to": ours}


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
    pruner: Any,
    seed: int = 0,
    precision: str | None = None,
    device: str = "auto",
    record: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a model at rising sparsity without training, one run folder per level; give the levels' metrics.

    The model is loaded once and its weights ranked once; masks of rising sparsity are nested, so each level only
    removes more. Levels that are finished are not computed again. The model's head must be in its file, and computes
    in its file's number format unless `precision` names another.
    Errors: as `training.fit`.
    """
    levels = ascending(sparsities)
    record = record or {"config": _curve_config(backbone, data, task, pruner, seed, precision)}
    runs = [level_run(Path(folder), record, level) for level in levels]
    there = inputs_if_there(backbone, data, pruner)
    for run, own in runs:
        if run.finished:
            run.check_config(own["config"])
            run.check_inputs(there)
    if all(run.finished for run, _ in runs):
        return [run.metrics for run, _ in runs]
    data.check()
    if isinstance(pruner, Lottery):
        raise ValueError("a ticket is found by training: use essential-sparsity lottery, then evaluate pruner=saved")
    check_pruner(pruner, levels, data)
    backbone.check()
    inputs = inputs_of(backbone, data, pruner)
    preprocessing = backbone.preprocessing()
    data.prepare(preprocessing)
    data.seed(derive(seed, "order"))
    batches = calibration_batches(pruner, levels, preprocessing, data)
    build = {"seed": derive(seed, "head"), "require_head": True, **head_of(task)}
    model = backbone.build(num_labels=data.num_labels, **build)
    module, architecture = task(model, num_labels=data.num_labels), backbone.architecture(model)
    module.to(device_of(device), dtype=backbone.stored_dtype() if precision is None else None)
    precision = precision or "32-true"
    weights = prunable_weights(model, architecture)
    todo = [level for level, (run, _) in zip(levels, runs, strict=True) if not run.finished]
    choose, loaders = _chooser(pruner, module, architecture, batches, len(todo)), data.evaluation_dataloaders()
    for level, (run, own) in zip(levels, runs, strict=True):
        with run.lock():
            if run.finished:
                continue
            started = time.monotonic()
            run.start(run_info(own, inputs=inputs, parent=own.get("parent")))
            masks, notes = choose(level)
            masks = with_parent(masks, inputs)
            predictions = predict(module, loaders, precision=precision)
            wanted = pruner.resolve(level)
            metrics = result(predictions, metric=data.metric, masks=masks, requested=wanted, record=own)
            run.write_predictions(predictions)
            run.write_layers(layer_rows(weights, masks, architecture))
            masks.save(run.path / "masks.safetensors")
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            metrics |= {
                "seconds": round(time.monotonic() - started, 3),
                "num_parameters": num_parameters,
                "pruning": {**notes, **origin_note(pruner, inputs)},
            }
            run.finish(metrics | {"device": str(module.device)})
    return [run.metrics for run, _ in runs]


def ascending(sparsities: Iterable[Any]) -> list[Fraction | None]:
    """Sort levels, each once; dense first, and last what the pattern implies (None)."""
    return sorted({exact_sparsity(value) for value in sparsities}, key=lambda level: (level is None, level or 0))


def _chooser(
    pruner: Any, module: LightningModule, architecture: Architecture, batches: list[Any] | None, num_levels: int
) -> Callable[[Any], tuple[Masks, Mapping[str, Any]]]:
    """Give a function that prunes the model to a sparsity, rising from call to call.

    Where scores are the weights' own they are ranked once, and nested masks only remove more. Any other pruner chooses
    anew at every level, on the weights as they were before the first.
    """
    weights = prunable_weights(module, architecture)
    if hasattr(pruner, "rank") and not pruner.score.needs_statistics:
        ranking = pruner.rank(weights, architecture=architecture)

        def cut(level: Any) -> tuple[Masks, Mapping[str, Any]]:
            return ranking.apply_(weights, level), {}

        return cut
    again = num_levels > 1  # else the weights that are there serve, and no copy is held
    original = {name: weight.detach().clone() if again else weight.detach() for name, weight in weights.items()}

    @torch.no_grad()
    def choose(level: Any) -> tuple[Masks, Mapping[str, Any]]:
        for name, weight in weights.items():
            weight.copy_(original[name])
        forward = forward_of(module)
        pruned = pruner.prune(module, sparsity=level, architecture=architecture, batches=batches, forward=forward)
        for name, weight in weights.items():
            weight.copy_((pruned.weights or original)[name])
        pruned.masks.apply_(weights)
        return pruned.masks, pruned.notes

    return choose


def device_of(name: str) -> torch.device:
    """Give the device of an accelerator's name; "auto" is a CUDA card where there is one."""
    if name in ("auto", "gpu", "cuda"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _curve_config(*arguments: Any) -> dict[str, Any]:
    names = ("backbone", "data", "task", "pruner", "seed", "precision")
    values = [value if isinstance(value, int) else repr(value) for value in arguments]
    return dict(zip(names, values, strict=True))
