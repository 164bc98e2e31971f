"""DINO: self-distillation without labels (Caron et al. 2021, arXiv 2104.14294), by any timm ViT.

Legend: G global views, L local views, N rows, C channels, S and s their sizes, D features, K prototypes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.inputs import suggest
from essential_sparsity.probing import feature_spread, knn_votes, unit_rows
from essential_sparsity.tasks.averaging import (
    Averaged,
    checked_decay,
    checked_momentum,
    frozen_copy,
    set_drop_path,
)
from essential_sparsity.tasks.distillation import (
    CollapseError,
    ProjectionHead,
    collapse_of,
    distillation_loss,
    move_centre_,
    output_entropies,
    teacher_targets,
    teacher_temperature,
)
from essential_sparsity.tasks.features import pooled_features
from essential_sparsity.tasks.optimization import Schedule

Batch = dict[str, Tensor]
EXPORTS = ("teacher", "student")

JUDGED_FROM = 50
"""Optimizer steps from which on a training is judged: a shorter one has not had the time to leave its start."""

RECENT = 0.1
"""Weight of a batch in the moving average of the evidence."""

LEAST_SHARE = 1e-3
"""Share of the votes at which a row's loss is cut off: a label without a single vote has no logarithm."""


class SelfDistillation(Averaged):
    """Train a student to predict, from every view of an image, what a teacher says of the global ones.

    A batch holds `global_views` [G, N, C, S, S] and, unless there are none, `local_views` [L, N, C, s, s]. The teacher
    is the student's moving average; its output is centred and sharpened. A row is predicted by the votes of its nearest
    neighbours among the rows that `remember` was given, so that predictions need no classifier. `export` says whose
    weights are evaluated, measured and saved. New weights (the projection) are drawn from torch's global stream.

    Errors: ValueError for batches without pairs of views or with a single row; CollapseError at the end of a training
    of at least 50 steps that has found the trivial solution.
    """

    head = "features"
    """What the backbone is to be built with."""

    def __init__(
        self,
        model: Any,
        *,
        num_labels: int = 0,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_head_layers: int = 3,
        norm_last_layer: bool = True,
        freeze_last_layer_epochs: int = 1,
        student_temperature: float = 0.1,
        teacher_temperature: Sequence[float] = (0.04, 0.07),
        teacher_warmup_epochs: int = 30,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
        weight_decay: Sequence[float] | None = (0.04, 0.4),
        drop_path: float = 0.1,
        export: str = "teacher",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if export not in EXPORTS:
            raise ValueError(f"task.export={export!r} is unknown{suggest(str(export), EXPORTS)}")
        _check_sizes(out_dim=out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, num_layers=num_head_layers)
        self.temperatures = (student_temperature, *_checked_temperatures(student_temperature, teacher_temperature))
        self.teacher_warmup_epochs, self.freeze_last_layer_epochs = teacher_warmup_epochs, freeze_last_layer_epochs
        self.momentum, self.weight_decay = checked_momentum("momentum", momentum), checked_decay(weight_decay)
        self.centre_momentum = checked_momentum("centre_momentum", centre_momentum)
        self.num_labels, self.export = num_labels, export
        self.model = model
        self.projection = ProjectionHead(
            model.num_features, out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim,
            num_layers=num_head_layers, norm_last_layer=norm_last_layer,
        )  # fmt: skip
        self.teacher, self.teacher_projection = frozen_copy(model), frozen_copy(self.projection)
        set_drop_path(model, drop_path)
        self.centre: Tensor
        self.evidence: Tensor  # moving sums of spread, entropy, entropy of the mean, and of their weights
        self.register_buffer("centre", torch.zeros(out_dim))
        self.register_buffer("evidence", torch.zeros(4))
        self._known: tuple[Tensor, Tensor] | None = None
        self._make_optimizer, self._make_schedule = optimizer, schedule
        if compile:
            self.model.compile()
            self.teacher.compile()

    # --- what others may ask ---

    @property
    def exported(self) -> nn.Module:
        """The timm model whose weights are evaluated, measured and saved."""
        return self.teacher if self.export == "teacher" else self.model

    def shadows(self) -> list[nn.Module]:
        """Name the copies of the model: the teacher."""
        return [self.teacher]

    def averages(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Pair the teacher's parts with the student's."""
        return (self.teacher, self.model), (self.teacher_projection, self.projection)

    def features(self, batch: Batch) -> Tensor:
        """Give the pooled features [N, D] of `images` [N, C, S, S] by what is exported."""
        return pooled_features(self.exported, batch["images"])

    def collapsed(self) -> str | None:
        """Say how the training of late has collapsed, or None; waits for the device."""
        spread, entropy, entropy_of_mean, weight = self.evidence.tolist()
        return collapse_of(spread / weight, entropy / weight, entropy_of_mean / weight) if weight else None

    # --- training ---

    def loss(self, batch: Batch) -> Tensor:
        """Give the batch's loss; nothing moves."""
        return self._losses(batch)[0]

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Give the batch's loss and log it, move the centre, and note what would tell a collapse."""
        loss, logits, targets, features = self._losses(batch)
        move_centre_(self.centre, logits, momentum=self.centre_momentum, rows=batch["row"])
        self._add(features, targets)
        self._tell()
        self.log("train/loss", loss.detach(), batch_size=targets.shape[1])
        return loss

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the loss and the teacher's logits and distributions [G, N, K] and features [G·N, D]."""
        views = self._views(batch)
        num_global, num_rows = views[0].shape[:2]
        if self.teacher.training:  # Lightning would warn of modules that it finds in eval mode before it starts
            self.teacher.eval()
        with torch.no_grad():
            features = self.teacher(views[0].flatten(0, 1))
            logits = self.teacher_projection(features).unflatten(0, (num_global, num_rows))
            start, end = self.temperatures[1:]
            warmth = teacher_temperature(start, end, epoch=self._epoch, warmup_epochs=self.teacher_warmup_epochs)
            targets = teacher_targets(logits, self.centre, temperature=warmth)
        seen = torch.cat([self.model(part.flatten(0, 1)) for part in views])  # one call per size, as published
        ours = self.projection(seen).unflatten(0, (-1, num_rows))
        return distillation_loss(ours, targets, temperature=self.temperatures[0]), logits, targets, features

    def _views(self, batch: Batch) -> list[Tensor]:
        """Give the batch's global views and, where it has any, its local ones."""
        if "global_views" not in batch:
            raise ValueError("self-distillation needs several crops of an image: give +data/augmentation=multi_crop")
        views = [batch[name] for name in ("global_views", "local_views") if name in batch]
        if sum(map(len, views)) < 2:
            raise ValueError(
                "self-distillation needs at least two views: give data.augmentation.num_local of 1 or more"
            )
        if views[0].shape[1] < 2 and not torch.distributed.is_initialized():  # a rank's part may be a single row
            raise ValueError("a batch of one row has no centre: give a data.batch_size that leaves no single row")
        for part in views:
            _check_view_size(self.model, int(part.shape[-1]))
        return views

    @property
    def _epoch(self) -> int:
        return self.current_epoch

    @torch.no_grad()
    def _add(self, features: Tensor, targets: Tensor) -> None:
        """Add a batch to the evidence, on its device."""
        told = torch.cat([feature_spread(features).view(1), output_entropies(targets), features.new_ones(1)])
        self.evidence.lerp_(told.to(self.evidence.dtype), RECENT)

    def _tell(self) -> None:
        """Log the evidence now and then."""
        if self.trainer.global_step % JUDGED_FROM == 0 and self.trainer.logger is not None:
            names = ("train/feature_spread", "train/teacher_entropy", "train/entropy_of_mean")
            self.log_dict(dict(zip(names, (self.evidence / self.evidence[-1])[:3], strict=True)))

    def on_train_start(self) -> None:
        """Refuse batches of one row, which have no centre."""
        order = getattr(self.trainer.train_dataloader, "sampler", None)
        rows, size = getattr(order, "num_rows", None), getattr(order, "batch_size", None)
        if rows and size and (size < 2 or rows % size == 1):
            raise ValueError(
                f"data.batch_size={size} makes a batch of one row out of {rows}, which has no centre: "
                f"give {'2 or more' if size < 2 else 'another one, or data.num_train_rows'}"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Cancel the last layer's gradients in the first epochs: before clipping, and with them their decay."""
        if self._epoch < self.freeze_last_layer_epochs:
            for weight in self.projection.last.parameters():
                weight.grad = None

    def on_train_end(self) -> None:
        """Tell a collapse: its result is none."""
        if self.trainer.global_step >= JUDGED_FROM and (how := self.collapsed()):
            raise CollapseError(
                f"self-distillation has collapsed: {how}; lower optimizer.lr, or mend task.teacher_temperature, "
                "task.centre_momentum or data.augmentation"
            )

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the student's groups with and without decay, and its schedule by step."""
        return self.configured_for(
            nn.ModuleList([self.model, self.projection]), self._make_optimizer, self._make_schedule
        )

    # --- evaluation by neighbours ---

    @torch.no_grad()
    def remember(self, loader: Iterable[Batch]) -> None:
        """Keep features and labels of rows as they are; what `predict_step` looks for neighbours in."""
        was_training = {part: part.training for part in self.modules()}
        self.eval()
        parts = []
        for batch in loader:
            images = batch["images"].to(self.device, next(self.parameters()).dtype)
            parts.append((unit_rows(self.features({"images": images})), batch["labels"].to(self.device)))
        for part, mode in was_training.items():
            part.training = mode
        features, labels = zip(*parts, strict=True)
        self._known = torch.cat(features), torch.cat(labels)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Give the columns row, label, prediction (class of most votes), loss (−log of the label's share), each 1-D."""
        if self._known is None:
            raise ValueError("there are no neighbours to ask: call remember(loader of training rows) first")
        votes = knn_votes(unit_rows(self.features(batch)), *self._known, num_labels=self.num_labels)
        share = votes.gather(1, batch["labels"][:, None]).squeeze(1).clamp_min(LEAST_SHARE)
        return {"row": batch["row"], "label": batch["labels"], "prediction": votes.argmax(1), "loss": -share.log()}

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Log how far features spread; callbacks.probes tells what they are worth."""
        self.log("validation/feature_spread", feature_spread(self.features(batch)), batch_size=len(batch["row"]))


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        least = 1 if name == "num_layers" else 2
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"task's {name}={size!r} of the projection is no whole number from {least} on: give one")


def _checked_temperatures(student: float, teacher: Sequence[float]) -> tuple[float, float]:
    """Give the teacher's (start, end); ValueError unless all three temperatures are above 0."""
    if (
        isinstance(teacher, (int, float, str))
        or len(teacher) != 2
        or not all(value > 0 for value in (student, *teacher))
    ):
        raise ValueError(
            f"task.student_temperature={student}, task.teacher_temperature={teacher}: give a number and a pair "
            "[start, end], all above 0"
        )
    return float(teacher[0]), float(teacher[1])


def _check_view_size(model: Any, size: int) -> None:
    """Refuse views that the model cannot read, in place of timm's assertion."""
    patches = getattr(model, "patch_embed", None)
    trained, patch = getattr(patches, "img_size", None), getattr(patches, "patch_size", (1, 1))
    if patch and size % patch[0]:
        whole = -(-size // patch[0]) * patch[0]
        raise ValueError(
            f"views of {size} px are no whole patches of {patch[0]} px: give data.augmentation.local_size={whole}"
        )
    if trained and size != trained[0] and not getattr(model, "dynamic_img_size", True):
        raise ValueError(
            f"views of {size} px meet a model of {trained[0]} px alone: give backbone.arguments.dynamic_img_size=true"
        )
