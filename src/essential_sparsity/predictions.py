"""Predictions of a model for every evaluation row, on any device and in any precision."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from essential_sparsity.callbacks.probes import plain_loader

Predictions = dict[str, dict[str, np.ndarray]]
"""split → column (row, label, prediction, loss, …) → array [rows]."""


def predict_rows(module: LightningModule, data: Any, *, precision: str = "32-true") -> Predictions:
    """Predict the evaluation rows of prepared data, once a module that asks for training rows has seen them."""
    remember = getattr(module, "remember", None)
    if remember is not None:
        remember(plain_loader(data))
    return predict(module, data.evaluation_dataloaders(), precision=precision)


@torch.inference_mode()
def predict(
    module: LightningModule, loaders: Mapping[str, Iterable[Any]], *, precision: str = "32-true"
) -> Predictions:
    """Predict every row of every split in eval mode, on the device that the module is on; rows come back sorted.

    A loader that has a `complete` scores the columns that the task gives: words, for example, which no tensor holds.
    """
    was_training = module.training
    module.eval()
    try:
        with _autocast(inputs_device(module), precision):
            return {split: _predict_split(module, loader) for split, loader in loaders.items()}
    finally:
        module.train(was_training)


def details(predictions: Predictions, *parts: Any) -> dict[str, float]:
    """Give what data and task say beside the metric (by subject, what was left out), by their `details`."""
    found: dict[str, float] = {}
    for part in parts:
        if hasattr(part, "details"):
            found |= part.details(predictions)
    return found


def _predict_split(module: LightningModule, loader: Iterable[Any]) -> dict[str, np.ndarray]:
    parts: dict[str, list[Tensor]] = {}
    device = inputs_device(module)
    for index, batch in enumerate(loader):
        batch = {key: _as_input(value.to(device, non_blocking=True), module) for key, value in batch.items()}
        for name, column in module.predict_step(batch, index).items():
            parts.setdefault(name, []).append(column)
    columns = {name: torch.cat(values).cpu() for name, values in parts.items()}
    order = torch.argsort(columns["row"])
    predicted = {name: _numpy(column[order]) for name, column in columns.items()}
    complete = getattr(loader, "complete", None)
    return predicted if complete is None else complete(predicted)


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


def inputs_device(module: LightningModule) -> torch.device:
    """Give the device that inputs go to: the first weight's, for a model may be spread over several."""
    first = next(module.parameters(), None)
    return module.device if first is None or first.is_meta else first.device


def device_of(name: str) -> torch.device:
    """Give the device of an accelerator's name; "auto" is a CUDA card where there is one."""
    if name in ("auto", "gpu", "cuda"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
