"""Several devices: how many ranks a run has, what they refuse, and the strategies by which they compute one run.

A rank is a process on one device. A step's batch is the run's, whatever the number of ranks: each takes its part of the
rows, and losses are weighted by what they are the mean of, so that a step agrees with that of one device up to the
order of sums (dropout is drawn anew on each rank). DDP holds the whole model on each rank, FSDP2 a shard of it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy

from essential_sparsity.callbacks.probes import FeatureProbes
from essential_sparsity.callbacks.whole_batch import told
from essential_sparsity.inputs import suggest
from essential_sparsity.predictions import device_of
from essential_sparsity.pruning import Architecture
from essential_sparsity.sharding import ShardedBlocks

STRATEGIES = ("ddp", "fsdp2")

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up: a large checkpoint may be written meanwhile."""


# --- how many, and what cannot be -------------------------------------------------------------------------------------


def num_ranks(settings: Mapping[str, Any]) -> int:
    """Give how many ranks `trainer` settings ask for: one per device; ValueError for what names no devices."""
    devices = settings.get("devices", 1)
    if isinstance(devices, (list, tuple)):
        number = len(devices)
    elif devices in ("auto", "-1", -1):
        is_cuda = device_of(settings.get("accelerator") or "auto").type == "cuda"
        number = torch.cuda.device_count() if is_cuda else 1
    else:
        number = int(devices) if str(devices).isdecimal() else 0
    if number < 1:
        raise ValueError(f"trainer.devices={devices!r} names no devices: give 1 or more, a list of cards, or auto")
    return number


def check_devices(settings: Mapping[str, Any], data: Any, pruner: Any, callbacks: Iterable[Any] = ()) -> None:
    """Raise ValueError, before any model is loaded, where several devices cannot compute what is asked."""
    number, name = num_ranks(settings), settings.get("strategy")
    if name not in (None, "auto", *STRATEGIES):
        if str(name).startswith("fsdp"):
            raise ValueError(f"trainer.strategy={name} is FSDP1, which renames weights: give fsdp2")
        raise ValueError(f"trainer.strategy={name} is unknown{suggest(str(name), STRATEGIES)}")
    if settings.get("num_nodes", 1) != 1:
        raise ValueError(
            f"trainer.num_nodes={settings['num_nodes']}: a run stays on one machine; sweep points over machines"
        )
    if number == 1:
        return
    device = device_of(settings.get("accelerator") or "auto").type
    if device not in ("cpu", "cuda") or (device == "cuda" and torch.cuda.device_count() < number):
        there = torch.cuda.device_count() if device == "cuda" else 1
        raise ValueError(f"trainer.devices={settings['devices']}, but there are {there} of {device}: give {there}")
    if data.batch_size % number:
        near = [size for size in (data.batch_size // number * number, -(-data.batch_size // number) * number) if size]
        raise ValueError(
            f"data.batch_size={data.batch_size} is shared by {number} devices, which do not divide it: "
            f"give {' or '.join(map(str, near))}"
        )
    if name == "fsdp2":
        _check_sharded(settings, pruner, callbacks)


def _check_sharded(settings: Mapping[str, Any], pruner: Any, callbacks: Iterable[Any]) -> None:
    remedy = "give trainer.strategy=ddp"
    if getattr(getattr(pruner, "score", None), "needs_statistics", False) or getattr(pruner, "calibration", None):
        raise ValueError(f"a calibrated pruner reads whole blocks, which trainer.strategy=fsdp2 shards: {remedy}")
    if settings.get("precision") in ("16-mixed", "64-true"):
        raise ValueError(f"trainer.precision={settings['precision']} has no fsdp2: give bf16-mixed, or {remedy}")
    if any(isinstance(callback, FeatureProbes) for callback in callbacks):
        raise ValueError(f"callbacks.probes ask a whole model in mid-training: leave them out, or {remedy}")


# --- one of several ranks ---------------------------------------------------------------------------------------------


@contextmanager
def meeting(place: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Meet the other ranks of a run: its number and theirs are in RANK and WORLD_SIZE, `place` is a file of their own.

    No port is opened for it, so that runs side by side or one after another never share any.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend, device = "gloo", device_of(settings.get("accelerator") or "auto")
    if device.type == "cuda":
        devices = settings["devices"]
        backend, device = "nccl", torch.device("cuda", devices[rank] if isinstance(devices, (list, tuple)) else rank)
        torch.cuda.set_device(device)
    store = torch.distributed.FileStore(str(place), world)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    yield
    part_ways()


def part_ways() -> None:
    """Leave the other ranks once all have come here; what follows is this process's own. Twice is once."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Say whether this process is rank 0 or alone: who writes the run folder."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def for_trainer(settings: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Give Trainer's settings for this process, with its strategy where it is one of several ranks."""
    made = {key: value for key, value in settings.items() if key != "strategy"}
    made["plugins"] = [*(made.get("plugins") or ()), LightningEnvironment()]  # not SLURM's: signals are the app's
    if not torch.distributed.is_initialized():
        return made
    is_sharded = settings.get("strategy") == "fsdp2"
    made["strategy"] = WholeBatchFSDP(architecture) if is_sharded else WholeBatchDDP(find_unused_parameters=True)
    return made


# --- strategies -------------------------------------------------------------------------------------------------------


class _WholeBatch(ParallelStrategy):
    """Weights each rank's loss so that the mean of gradients over ranks is that of the whole batch."""

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        """Give the weighted loss, and what the batch is over all ranks."""
        output: Any = super().training_step(*arguments, **options)
        return told(output["loss"] if isinstance(output, Mapping) else output, arguments[0])


class WholeBatchDDP(_WholeBatch, DDPStrategy):
    """The whole model on each rank; weights that a task leaves unused are looked for, as tasks have such."""


class WholeBatchFSDP(_WholeBatch, ShardedBlocks):
    """A shard of each block, and of the rest, on each rank."""
