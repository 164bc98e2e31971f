"""Ranks weights in shards over forked gloo ranks and says where masks differ: started by test_shards.py."""

import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from essential_sparsity.pruning import NM, ErdosRenyi, Global, Magnitude, PerRow, Pruner, Random, Uniform
from essential_sparsity.pruning.architecture import FAMILIES
from essential_sparsity.pruning.masks import keep_bits, zero_pruned_
from essential_sparsity.pruning.shards import held_part, held_rows

SHAPES = ((7, 24), (1, 16), (13, 8), (3, 40), (64, 16), (5, 8))
"""Rows that 2 and 4 ranks do not divide, and fewer rows than ranks."""

LEVELS = (0.0, 0.5, 0.83)

PRUNERS = {
    "magnitude": Pruner(),
    "random": Pruner(Random(3)),
    "uniform": Pruner(Magnitude(), Uniform()),
    "erdos_renyi": Pruner(Magnitude(), ErdosRenyi()),
    "per_row": Pruner(Magnitude(), PerRow()),
    "random per_row": Pruner(Random(3), PerRow()),
    "2:4": Pruner(Magnitude(), Global(), NM(2, 4)),
}


def weights(dtype: torch.dtype, values: int) -> dict[str, Tensor]:
    """Make weights of so few magnitudes that ties run over shards, weights and ranks; 0: all differ."""
    generator = torch.Generator().manual_seed(values)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if values:
        made = [torch.randint(-values, values + 1, shape, generator=generator) / 8 for shape in SHAPES]
    return {f"blocks.{index}.weight": weight.to(dtype) for index, weight in enumerate(made)}


def sharded(whole: dict[str, Tensor], mesh: Any, copied: str | None = None) -> dict[str, DTensor]:
    return {
        name: distribute_tensor(weight, mesh, [Replicate() if name == copied else Shard(0)])
        for name, weight in whole.items()
    }


CASES = ((torch.float32, 0), (torch.float32, 1), (torch.float32, 4), (torch.bfloat16, 1), (torch.bfloat16, 4))
"""Number formats and how many magnitudes there are."""


def differing(mesh: Any) -> list[str]:
    """Name the cases in which masks of shards are not those of the whole; 4 ranks look at the first two pruners."""
    found = []
    for dtype, values in CASES:
        whole = weights(dtype, values)
        parts = sharded(whole, mesh, copied="blocks.2.weight" if values == 4 else None)
        for name, pruner in list(PRUNERS.items())[: 2 if mesh.size() == 4 else None]:
            if values != 1 or name in ("magnitude", "per_row"):
                levels = [None] if name == "2:4" else LEVELS
                pairs = zip(pruner.rank(whole).masks_at(levels), pruner.rank(parts).masks_at(levels), strict=True)
                for level, (expected, masks) in zip(levels, pairs, strict=True):
                    if masks.digest() != expected.digest() or masks.num_ties != expected.num_ties:
                        found.append(f"{name} {dtype} {values} {level}")
    return found


def applied(mesh: Any) -> dict[str, Any]:
    """Zero shards in place, a curve in one copy, and say whether they are the whole's zeros."""
    whole = weights(torch.float32, 4)
    parts = sharded(whole, mesh)
    ranking = Pruner().rank(parts)
    ranking.apply_(parts, 0.3)
    masks, expected = ranking.apply_(parts, 0.6), Pruner()(whole, sparsity=0.6)
    assert masks.digest() == expected.digest()
    again = weights(torch.float32, 4)
    expected.apply_(again)
    gradient = distribute_tensor(torch.ones(7, 24), mesh, [Shard(0)])
    keep = held_rows(masks["blocks.0.weight"], gradient)
    zero_pruned_(held_part(gradient), keep_bits(keep))
    full = {name: part.full_tensor() for name, part in parts.items()}
    return {
        "weights": all(torch.equal(full[name], again[name]) for name in again),
        "gradient": torch.equal(gradient.full_tensor().bool(), masks["blocks.0.weight"]),
        "threshold": ranking.thresholds([0.6]) == Pruner().rank(whole).thresholds([0.6]),
    }


def refused(mesh: Any) -> list[str]:
    """Give the errors of what shards cannot be ranked by."""
    messages, whole = [], weights(torch.float32, 0)
    conv1d = next(family for family in FAMILIES if family.input_axis == 0)
    mixed = sharded(whole, mesh) | {"blocks.5.weight": whole["blocks.5.weight"]}
    columns = {"blocks.0.weight": distribute_tensor(whole["blocks.0.weight"], mesh, [Shard(1)])}
    tries: list[tuple[Pruner, Mapping[str, Tensor], Any]] = [
        (PRUNERS["per_row"], sharded(whole, mesh), conv1d),
        (PRUNERS["magnitude"], mixed, None),
        (PRUNERS["magnitude"], columns, None),
    ]
    for pruner, parts, architecture in tries:
        try:
            pruner.rank(parts, architecture=architecture)
        except ValueError as error:
            messages.append(str(error))
    return messages


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / f"place{world}"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    told = {"differing": differing(mesh), **applied(mesh), "refused": refused(mesh)}
    (folder / f"{world}.{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for world in (2, 4):
        torch.multiprocessing.start_processes(work, (world, Path(sys.argv[1])), nprocs=world, start_method="fork")
