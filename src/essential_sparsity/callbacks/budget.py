"""What a training has cost: images seen and floating-point operations, so that nobody confuses objective and budget."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from essential_sparsity.callbacks.whole_batch import num_rows

VIEWS = ("global_views", "local_views")
"""Entries of a batch whose rows are the second dimension: [views, rows, …]."""

NUM_COUNTED = 2
"""Rows that are counted with: operations grow with rows exactly, but two are the fewest with a centre."""


def training_flops(module: Any, batch: Mapping[str, Tensor]) -> float:
    """Count the floating-point operations per row of the module's loss, forward and backward, a teacher's included.

    Matrix products and attention count, two operations per multiplication and addition; what is element by element
    does not. `batch` holds rows of a training batch as `module.loss` takes them. Weights, gradients and random state
    stay.
    """
    num = min(NUM_COUNTED, len(batch["row"]))
    few = {name: value[:, :num] if name in VIEWS else value[:num] for name, value in batch.items()}
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    devices = [device] if (device := weights[0].device).type == "cuda" else []
    eager = torch.compiler.set_stance("force_eager")  # a compiled graph hides its products from the counter
    math = sdpa_kernel(SDPBackend.MATH)  # attention as matrix products: fused kernels on a CPU have no count
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(devices=devices), eager, math, counter, torch.enable_grad():
        torch.autograd.grad(module.loss(few), weights, allow_unused=True)
    return counter.get_total_flops() / num


class Budget(Callback):
    """Count the images that training has seen, and at the first batch the operations that each costs.

    `num_images` and `train_flops` (of the whole training so far; None before the first batch, for a module without
    `loss` and for one in shards) are what a run tells of its budget. Add it behind what makes views.
    """

    def __init__(self) -> None:
        self._num_images: Tensor | int = 0
        self.flops_per_image: float | None = None

    @property
    def num_images(self) -> int:
        """Images that training has seen."""
        return int(self._num_images)

    @property
    def train_flops(self) -> float | None:
        """Floating-point operations of the training so far."""
        return None if self.flops_per_image is None else self.flops_per_image * self.num_images

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the operations of a row, once."""
        is_sharded = isinstance(next(pl_module.parameters()), DTensor)  # whose operations are not all of the model's
        if self.flops_per_image is None and callable(getattr(pl_module, "loss", None)) and not is_sharded:
            with trainer.precision_plugin.train_step_context():
                self.flops_per_image = training_flops(pl_module, batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's images."""
        self._num_images = self._num_images + num_rows(outputs, batch)

    def state_dict(self) -> dict[str, Any]:
        """Give the counts."""
        return {"num_images": self.num_images, "flops_per_image": self.flops_per_image}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counts of a checkpoint."""
        self._num_images, self.flops_per_image = state_dict["num_images"], state_dict["flops_per_image"]
