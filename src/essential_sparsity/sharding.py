"""FSDP2 under Lightning: each block, and what is outside the blocks, in shards over ranks; checkpoints as one device's.

`fully_shard` cuts each weight along its first dimension and leaves its name. A checkpoint holds whole tensors, put
together one by one on rank 0: it is the file that a training on one device would write.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from essential_sparsity.pruning.architecture import Architecture, block_names
from essential_sparsity.pruning.shards import held_part, held_rows


def shard_(module: nn.Module, architecture: Architecture, mesh: Any) -> None:
    """Shard a module in place: its blocks one by one, gathered when each computes, then all the rest at once."""
    for name in block_names([name for name, _ in module.named_parameters()], architecture):
        fully_shard(module.get_submodule(name), mesh=mesh)
    fully_shard(module, mesh=mesh)


class ShardedBlocks(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, sharding any module before callbacks see it: no `configure_model` is asked."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._architecture = architecture

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are restored as on one device: before the optimizers are made."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizers are restored by `load_optimizer_state_dict`."""
        return True

    # --- setting up ---

    def setup_environment(self) -> None:
        """Meet the other ranks, then shard the module: what it is pruned by are the shards."""
        self._data_parallel_size = self.num_processes
        super().setup_environment()
        assert self.lightning_module is not None
        shard_(self.lightning_module, self._architecture, self.device_mesh["data_parallel"])

    def setup(self, trainer: "lightning.Trainer") -> None:
        """Move what is left to the device and make the optimizers."""
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    # --- steps: the module's own forward gathers what is outside the blocks ---

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        """Give the module's training step."""
        with self.precision_plugin.train_step_context():
            return self._by_forward("training_step", *arguments, **options)

    def validation_step(self, *arguments: Any, **options: Any) -> Any:
        """Give the module's validation step, of the same batch on all ranks."""
        with self.precision_plugin.val_step_context():
            return self._by_forward("validation_step", *arguments, **options)

    def _by_forward(self, method: str, *arguments: Any, **options: Any) -> Any:
        assert self.model is not None and self.lightning_module is not None
        return self._forward_redirection(self.model, self.lightning_module, method, *arguments, **options)

    # --- checkpoints ---

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Give all weights as whole tensors on the host of rank 0; the other ranks take part and get nothing."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's rows of the whole tensors in a checkpoint."""
        assert self.lightning_module is not None
        own, stored = self.lightning_module.state_dict(), checkpoint["state_dict"]
        if own.keys() != stored.keys():
            raise ValueError(f"the checkpoint has other weights ({', '.join(sorted(own.keys() ^ stored.keys())[:3])})")
        with torch.no_grad():
            for name, value in own.items():
                held_part(value).copy_(held_rows(stored[name], value))

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        """Give an optimizer's state as whole tensors on the host of rank 0, as one device's would be."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return {**state, "state": {index: self._whole(state["state"][index]) for index in sorted(state["state"])}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's rows of the optimizers' whole states."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                index: {key: _as_shard(value, weights[index]) for key, value in values.items()}
                for index, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint as one device does."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=weights_only)

    def _whole(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Put shards together, one tensor at a time."""
        found = {}
        for name, value in values.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_global_zero:
                found[name] = whole.cpu() if isinstance(whole, Tensor) else whole
        return found


def _as_shard(value: Any, weight: Tensor) -> Any:
    """Give a state in the shape of its weight as that lies over ranks; anything else as it is."""
    if not isinstance(value, Tensor) or not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    rows = held_rows(value, weight).to(weight.device)
    return DTensor.from_local(rows, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride())
