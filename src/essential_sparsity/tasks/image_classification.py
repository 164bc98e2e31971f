"""Classification of images by a timm model; also the supervised twin of a self-distillation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.inputs import suggest
from essential_sparsity.tasks.averaging import (
    Averaged,
    checked_decay,
    checked_momentum,
    frozen_copy,
    set_drop_path,
)
from essential_sparsity.tasks.classification import Batch, Classification
from essential_sparsity.tasks.features import pooled_features
from essential_sparsity.tasks.optimization import Schedule

EXPORTS = ("model", "average")


class ImageClassification(Averaged, Classification):
    """Classify images [rows, channels, height, width], already normalised to what the backbone was trained with.

    What DINO has around its loss is here, too, for a supervised twin: a moving average of the weights (`ema_momentum`,
    which rises to 1 along a cosine), a schedule of the weight decay, [start, end], and drop path. `export` says whose
    weights are evaluated, measured and saved: "model" (the trained ones) or "average". `compile` compiles the
    model (names stay).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_labels: int,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        label_smoothing: float = 0.0,
        ema_momentum: float | None = None,
        weight_decay: Sequence[float] | None = None,
        drop_path: float = 0.0,
        export: str = "model",
        compile: bool = False,
    ) -> None:
        super().__init__(
            model, num_labels=num_labels, optimizer=optimizer, schedule=schedule, label_smoothing=label_smoothing
        )
        if export not in EXPORTS:
            raise ValueError(f"task.export={export!r} is unknown{suggest(str(export), EXPORTS)}")
        if export == "average" and ema_momentum is None:
            raise ValueError("task.export=average needs a moving average: give task.ema_momentum, e.g. 0.996")
        self.export, self.weight_decay = export, checked_decay(weight_decay)
        self.momentum = None if ema_momentum is None else checked_momentum("ema_momentum", ema_momentum)
        self.average = None if ema_momentum is None else frozen_copy(model)
        set_drop_path(model, drop_path)
        if compile:
            model.compile()

    @property
    def exported(self) -> nn.Module:
        """The timm model whose weights are evaluated, measured and saved."""
        return self.average if self.export == "average" and self.average is not None else self.model

    def shadows(self) -> list[nn.Module]:
        """Name the copies of the model: its moving average."""
        return [] if self.average is None else [self.average]

    def averages(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Pair the average with the model."""
        return [] if self.average is None else [(self.average, self.model)]

    def scores(self, batch: Batch) -> Tensor:
        """Give logits [rows, num_labels]: in training the model's, in evaluation those of what is exported."""
        return (self.model if self.training else self.exported)(batch["images"])

    def features(self, batch: Batch) -> Tensor:
        """Give the pooled features [rows, D] before the classifier of what is exported."""
        return pooled_features(self.exported, batch["images"])

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the groups with and without decay, and its schedule by step."""
        return self.configured_for(self.model, self._make_optimizer, self._make_schedule)
