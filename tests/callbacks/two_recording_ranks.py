"""Record on two forked ranks (ddp), or measure sharded weights on two ranks: started by test_sparsity_recorder.py."""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.data import DataLoader, TensorDataset
from toy_training import TOY, Network, Toy, adamw, batches, trainer

from essential_sparsity.callbacks import SparsityRecorder
from essential_sparsity.pruning.moments import measure


def record(folder: Path) -> None:
    """Train the toy on two ranks with a recorder."""
    x, y = (torch.cat(parts) for parts in zip(*batches(20)))
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    made = trainer(8, [SparsityRecorder(5, architecture=TOY, folder=folder)], strategy=strategy, devices=2)
    made.fit(Toy(Network(), adamw), DataLoader(TensorDataset(x, y), batch_size=16))


def measure_shards(rank: int, folder: Path, port: int) -> None:
    """Compare shards (uneven ones, and copies) with the whole."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)
    weights = {"uneven": torch.randn(7, 5, generator=generator), "copied": torch.randn(4, 4, generator=generator)}
    placements = {"uneven": [Shard(0)], "copied": [Replicate()]}
    found = measure({name: distribute_tensor(weight, mesh, placements[name]) for name, weight in weights.items()})
    whole = measure(weights)
    if rank == 0:
        told = {
            "counts": np.array_equal(found.counts, whole.counts),
            "sums": np.allclose(found.sums, whole.sums, rtol=1e-5),
            "largest": np.array_equal(found.largest, whole.largest),
        }
        (folder / "sharded.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    case, target = sys.argv[1], Path(sys.argv[2])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if case == "ddp":
        record(target)
    else:
        from lightning_fabric.plugins.environments.lightning import find_free_network_port

        arguments = (target, find_free_network_port())
        torch.multiprocessing.start_processes(measure_shards, arguments, nprocs=2, start_method="fork")
