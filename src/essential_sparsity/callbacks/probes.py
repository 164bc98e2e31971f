"""FeatureProbes: what frozen features are worth through a training, by nearest neighbours and a linear classifier."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from essential_sparsity.callbacks.whole_batch import num_rows
from essential_sparsity.data.batches import BatchLoader, BatchOrder, random_permutation
from essential_sparsity.probing import feature_spread, knn_votes, linear_predictions, unit_rows
from essential_sparsity.runs import Run

SUBSET_SEED = 0
"""Of the training rows that are probed with: the same in every run."""


def plain_loader(data: Any, *, num_rows: int | None = None) -> BatchLoader:
    """Give batches of the training rows as they are, in one order; `num_rows` of them, chosen by a fixed seed."""
    rows = data.training_rows()
    if num_rows is not None and num_rows < len(rows):
        chosen = random_permutation(len(rows), SUBSET_SEED)[:num_rows]
        chosen.sort()
        rows = replace(rows, rows=rows.rows[chosen])
    order = BatchOrder(len(rows), data.evaluation_batch_size, seed=None)
    return BatchLoader(rows.batch, order, num_workers=data.num_workers)


class FeatureProbes(Callback):
    """Probe a module's `features` before the first step, every `every_epochs` epochs and at the end, into probes.csv.

    Features of `num_rows` training rows, not augmented, are what the primary evaluation split's rows are predicted
    from: by the votes of `k` nearest neighbours, and (`linear`) by a logistic regression. Probing changes no number of
    the training. `stop_at` ends the training at the first probe of an epoch whose k-NN accuracy reaches it, for runs
    that are matched on that. `bind(data)` gives the rows; the folder defaults to the trainer's `default_root_dir`.
    """

    def __init__(
        self,
        every_epochs: int = 1,
        *,
        k: int = 20,
        linear: bool = True,
        stop_at: float | None = None,
        num_rows: int | None = 10_000,
        folder: Path | str | None = None,
    ) -> None:
        for name, value in (("every_epochs", every_epochs), ("k", k), ("num_rows", num_rows)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"callbacks.probes.{name}={value!r} is no whole number of at least 1: give one")
        if stop_at is not None and not 0 < stop_at <= 1:
            raise ValueError(f"callbacks.probes.stop_at={stop_at} lies outside (0, 1]: give an accuracy, or null")
        self.every_epochs, self.k, self.linear, self.stop_at = every_epochs, k, linear, stop_at
        self.num_rows, self.folder = num_rows, None if folder is None else Path(folder)
        self.rows: list[dict[str, Any]] = []
        self._num_images: Tensor | int = 0
        self._data: Any = None
        self._seconds, self._started = 0.0, time.monotonic()

    def bind(self, data: Any) -> None:
        """Take the data (a ClassificationData, prepared before training starts) whose rows are probed with."""
        self._data = data

    @property
    def num_images(self) -> int:
        """Images that training has seen."""
        return int(self._num_images)

    # --- when ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be probed, before the first step."""
        if not callable(getattr(pl_module, "features", None)):
            raise ValueError(
                f"{type(pl_module).__name__} gives no features to probe: use a vision task, or no callbacks.probes"
            )
        if self._data is None:
            raise ValueError("FeatureProbes has no rows to probe with: call bind(data) first")
        if self._data.num_labels < 2:
            raise ValueError(
                f"probes need classes, these data have num_labels={self._data.num_labels}: leave callbacks.probes out"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the start, or go on behind the restored probes."""
        self.folder = Path(trainer.default_root_dir) if self.folder is None else self.folder
        self._started = time.monotonic()
        if not self.rows:
            self._probe(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's images."""
        self._num_images = self._num_images + num_rows(outputs, batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe where an epoch is due, and stop where enough is known."""
        if (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._probe(trainer, pl_module)
            reached = self.stop_at is not None and self.rows[-1]["knn"] >= self.stop_at
            if trainer.strategy.reduce_boolean_decision(reached, all=False):
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the end, unless that was done."""
        if self.rows[-1]["step"] != trainer.global_step:
            self._probe(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Give the probes so far, in plain values."""
        seconds = self._seconds + time.monotonic() - self._started
        return {"rows": [dict(row) for row in self.rows], "num_images": self.num_images, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; what was probed behind it is probed again."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._num_images, self._seconds = state_dict["num_images"], state_dict["seconds"]

    # --- a probe ---

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and write the whole table anew."""
        found = self.measure(trainer, pl_module)
        self.rows.append(
            {
                "epoch": self.num_images / self._data.num_train_rows,
                "step": trainer.global_step,
                "num_images": self.num_images,
                **found,
                "seconds": round(self._seconds + time.monotonic() - self._started, 3),
            }
        )
        if trainer.is_global_zero:
            assert self.folder is not None
            Run(self.folder).write_probes(self.rows)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Give knn and linear (accuracies; NaN where not asked for) and feature_std, as `probing.feature_spread`."""
        evaluation = next(iter(self._data.evaluation_dataloaders().values()))
        with _evaluating(pl_module), torch.no_grad(), trainer.precision_plugin.val_step_context():
            known, labels = _features(pl_module, plain_loader(self._data, num_rows=self.num_rows))
            asked, truth = _features(pl_module, evaluation)
        num_labels = self._data.num_labels
        votes = knn_votes(unit_rows(asked), unit_rows(known), labels, num_labels=num_labels, k=self.k)
        linear = math.nan
        if self.linear:
            predicted = linear_predictions(known, labels, asked, num_labels=num_labels)
            linear = float((predicted == truth).float().mean())
        knn = float((votes.argmax(1) == truth).float().mean())
        return {"knn": knn, "linear": linear, "feature_std": float(feature_spread(asked))}


def _features(module: Any, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Give features [N, D] in fp32 and labels [N] of all rows, on the module's device."""
    parts, dtype = [], next(module.parameters()).dtype
    for batch in loader:
        images = batch["images"].to(module.device, dtype, non_blocking=True)
        parts.append((module.features({"images": images}).float(), batch["labels"].to(module.device)))
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put all parts of a module in eval mode, and each back into its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
