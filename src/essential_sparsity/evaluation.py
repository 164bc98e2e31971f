"""A zero-shot curve over nested masks: one model load, one ranking, one run folder per level."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule

from essential_sparsity.accounts import layer_rows, result, run_info
from essential_sparsity.callbacks.pruning import forward_of
from essential_sparsity.predictions import details, device_of, inputs_device, predict_rows
from essential_sparsity.preparation import (
    as_they_are,
    calibration_batches,
    check_pruner,
    head_of,
    inputs_if_there,
    inputs_of,
    origin_note,
    refuse_off_loaded,
    with_parent,
)
from essential_sparsity.pruning import Masks, exact_sparsity, prunable_weights
from essential_sparsity.pruning.architecture import Architecture
from essential_sparsity.pruning.lottery import Lottery
from essential_sparsity.runs import Run, run_at, run_id
from essential_sparsity.seeds import derive

WEIGHTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Number formats of weights by precision; all others compute from fp32 weights."""


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
    there = inputs_if_there(backbone, data, task, pruner)
    for run, own in runs:
        run.mend()
        if run.finished:
            run.check_config(own["config"])
            run.check_inputs(there)
    todo = [level for level, (run, _) in zip(levels, runs, strict=True) if not run.finished]
    if todo:
        data.check()
        if isinstance(pruner, Lottery):
            raise ValueError(
                "a ticket is found by training: use essential-sparsity lottery, then evaluate pruner=saved"
            )
        check_pruner(pruner, levels, data)
        backbone.check()
        curve = _Curve(backbone, data, task, pruner, seed, precision, device, todo)
        for level, (run, own) in zip(levels, runs, strict=True):
            with run.lock():
                if not run.finished:
                    curve.evaluate(level, run, own)
    return [run.metrics for run, _ in runs]


class _Curve:
    """What all levels share: the data, the model in evaluation, its weights as they were."""

    def __init__(
        self,
        backbone: Any,
        data: Any,
        task: Callable[..., LightningModule],
        pruner: Any,
        seed: int,
        precision: str | None,
        device: str,
        levels: Sequence[Any],
    ) -> None:
        self.data, self.pruner, self.inputs = data, pruner, inputs_of(backbone, data, task, pruner)
        preprocessing = backbone.preprocessing()
        data.prepare(preprocessing)
        data.seed(derive(seed, "order"))
        batches = calibration_batches(pruner, levels, preprocessing, data)
        dtype = backbone.stored_dtype() if precision is None else WEIGHTS.get(precision, torch.float32)
        build = {"seed": derive(seed, "head"), "require_head": True, "dtype": dtype, **head_of(task)}
        model = backbone.build(num_labels=data.num_labels, **build)
        self.architecture = backbone.architecture(model)
        self.module = task(model, num_labels=data.num_labels)
        if hasattr(model, "hf_device_map"):
            refuse_off_loaded(model, [pruner.resolve(level) for level in levels])
        else:
            self.module.to(device_of(device), dtype=dtype)
        bind: Any = getattr(self.module, "bind", None)
        if bind is not None:
            bind(preprocessing)
        self.precision = precision or "32-true"
        self.weights = prunable_weights(model, self.architecture)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        again = len(levels) > 1  # else the weights that are there serve, and no copy is held
        folder = getattr(backbone, "folder", None) if again else None
        self.choose = _chooser(pruner, self.module, self.architecture, batches, again=again, folder=folder)

    def evaluate(self, level: Any, run: Run, record: Mapping[str, Any]) -> None:
        """Prune to a level, predict every row and write the run folder."""
        started = time.monotonic()
        run.start(run_info(record, inputs=self.inputs, parent=record.get("parent")))
        masks, notes = self.choose(level)
        masks, wanted = with_parent(masks, self.inputs), self.pruner.resolve(level)
        predictions = predict_rows(self.module, self.data, precision=self.precision)
        metrics = result(predictions, metric=self.data.metric, masks=masks, requested=wanted, record=record)
        metrics["metrics"] |= details(predictions, self.data, self.module)
        run.write_predictions(predictions)
        run.write_layers(layer_rows(self.weights, masks, self.architecture))
        masks.save(run.path / "masks.safetensors")
        metrics |= {
            "seconds": round(time.monotonic() - started, 3),
            "num_parameters": self.num_parameters,
            "pruning": {**notes, **origin_note(self.pruner, self.inputs)},
            "device": str(inputs_device(self.module)),
        }
        run.finish(metrics)


def ascending(sparsities: Iterable[Any]) -> list[Fraction | None]:
    """Sort levels, each once; dense first, and last what the pattern implies (None)."""
    return sorted({exact_sparsity(value) for value in sparsities}, key=lambda level: (level is None, level or 0))


def _chooser(
    pruner: Any,
    module: LightningModule,
    architecture: Architecture,
    batches: list[Any] | None,
    *,
    again: bool,
    folder: Path | None,
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
    detached = {name: weight.detach() for name, weight in weights.items()}
    original = as_they_are(detached, architecture, folder) if again else detached

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


def _curve_config(*arguments: Any) -> dict[str, Any]:
    names = ("backbone", "data", "task", "pruner", "seed", "precision")
    values = [value if isinstance(value, int) else repr(value) for value in arguments]
    return dict(zip(names, values, strict=True))
