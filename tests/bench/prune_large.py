"""A checkpoint larger than memory's comfort: 6.7 billion bf16 weights in OPT-6.7B's shapes, pruned globally to 0.5.

The checkpoint (13 GB) and its pruned copy lie in outputs/bench while this runs and are deleted afterwards. Each pass
stands beside the machine's own rate, the slower of memory's and the disk's, the latter measured on the same files:
reading with O_DIRECT, and a plain copy with fsync.
"""

import json
import math
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import Masks, Pruner, prunable_names
from essential_sparsity.streaming import prune_checkpoint
from essential_sparsity.streaming.choice import CountedByWeight, cut
from essential_sparsity.streaming.stored import StoredCheckpoint
from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import fresh

LEVELS = ("0.3", "0.6", "0.9")
LAYERS_PER_SHARD = 4
FOLDER = Path("outputs/bench")


def sizes(quick: bool) -> tuple[int, int, int]:
    """Give layers, width and vocabulary: OPT-6.7B's, or a thousandth of it."""
    return (4, 256, 2_000) if quick else (32, 4096, 50_272)


def run(quick: bool = False) -> Iterator[Figure]:
    """Write the checkpoint, measure the disk, prune in a fresh process, check every zero, delete all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    layers, width, vocabulary = sizes(quick)
    needed = 2.3 * 2 * (layers * 12 * width**2 + vocabulary * width)
    if shutil.disk_usage(FOLDER).free < needed:
        yield Figure("prune: 6.7 billion weights", skipped=f"{needed / 1e9:.0f} GB of disk are not free: skipped")
        return
    room = Path(tempfile.mkdtemp(dir=FOLDER, prefix="prune-large-"))
    try:
        dense, out = room / "dense", room / "pruned"
        write_checkpoint(dense, quick)
        yield from figures(dense, out, quick)
    finally:
        shutil.rmtree(room)


def figures(dense: Path, out: Path, quick: bool) -> Iterator[Figure]:
    """Measure one prune."""
    read, copied = disk_rates(dense)
    memory = machine.rates(quick)
    yield Figure("disk: sequential read, O_DIRECT", limit=read / 1e9, unit="GB/s")
    yield Figure("disk: copy of a shard, cold, fsync at the end", limit=copied / 1e9, unit="GB/s")
    forget(dense)
    found, seconds = fresh(prune_here, dense=str(dense), out=str(out))
    yield Figure(
        f"prune: num_pruned exact ({found['num_prunable']:,} weights)",
        found["num_pruned"] - math.floor(Fraction(found["num_prunable"], 2) + Fraction(1, 2)),
        unit="", goal="= 0", check=True, limit_is=f"{found['num_ties']:,} weights tie at the cut",
    )  # fmt: skip
    wrong, _ = fresh(differing_bytes, dense=str(dense), out=str(out))
    yield Figure("prune: weights that are neither kept as they were nor zero", wrong, unit="", goal="= 0", check=True)
    yield Figure("prune: peak resident memory of the process", found["peak"] / 2**30, unit="GiB", goal="≤ 4")
    for done in found["passes"]:
        slower, of_what = limit_of(done["name"], read, copied, memory)
        rate, limit_is = done["bytes"] / done["seconds"], f"of {of_what} ({slower / 1e9:.2f} GB/s)"
        yield Figure(f"prune: pass '{done['name']}', {done['bytes'] / 1e9:.1f} GB", rate / 1e9, unit="GB/s")
        yield Figure(f"prune: pass '{done['name']}'", rate / slower, unit="share", goal="≥ 0.6", limit_is=limit_is)
    yield Figure("prune: whole process, imports and fsync included", seconds)
    extra, _ = fresh(extra_levels, dense=str(dense))
    yield Figure("prune: one more sparsity's cut, from what was counted", extra, note=f"mean of {', '.join(LEVELS)}")


def limit_of(name: str, read: float, copied: float, memory: machine.Rates) -> tuple[float, str]:
    """Give the rate that a pass cannot exceed, and whose it is: bytes are read, or read and written."""
    if name == "write":
        return min((copied, "the disk's copy"), (memory.copy / 2, "memory's copy"))
    return min((read, "the disk's read"), (memory.read, "memory's read"))


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, quick: bool) -> None:
    """Write shards of four layers: normal weights, no two tensors alike, none zero."""
    layers, width, vocabulary = sizes(quick)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(4 * width**2 + 2**20, generator=generator).mul_(0.02).bfloat16()
    pool[pool == 0] = 0.01
    weight_map: dict[str, str] = {}
    num_shards = math.ceil(layers / LAYERS_PER_SHARD)
    for number in range(num_shards):
        shapes = shard_shapes(range(number * LAYERS_PER_SHARD, (number + 1) * LAYERS_PER_SHARD), width)
        if number == 0:
            shapes["model.decoder.embed_tokens.weight"] = (vocabulary, width)
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        save_file({name: _drawn(pool, shape, generator) for name, shape in shapes.items()}, folder / file)
        weight_map |= dict.fromkeys(shapes, file)
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def shard_shapes(layers: range, width: int) -> dict[str, tuple[int, ...]]:
    """Name the tensors of some of OPT's layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        block = f"model.decoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{block}.self_attn.{part}.weight"] = (width, width)
            shapes[f"{block}.self_attn.{part}.bias"] = (width,)
        shapes[f"{block}.fc1.weight"], shapes[f"{block}.fc1.bias"] = (4 * width, width), (4 * width,)
        shapes[f"{block}.fc2.weight"], shapes[f"{block}.fc2.bias"] = (width, 4 * width), (width,)
    return shapes


def _drawn(pool: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Take a stretch of the pool from a random place on, at a random scale."""
    n = math.prod(shape)
    start = int(torch.randint(2**20, (1,), generator=generator))
    scale = 0.5 + float(torch.rand(1, generator=generator))
    repeated = pool[start : start + n] if start + n <= len(pool) else pool.repeat(-(-n // len(pool)))[:n]
    return (repeated * scale).view(shape)


# --- the disk ---------------------------------------------------------------------------------------------------------


def disk_rates(folder: Path) -> tuple[float, float]:
    """Measure bytes per second of reading a shard past the page cache, and of copying one and waiting for the disk."""
    shard = sorted(folder.glob("*.safetensors"))[-1]
    size = shard.stat().st_size
    read = max(size / _seconds_to_read(shard) for _ in range(2))
    forget(folder)
    target = folder.parent / "copy"
    started = time.perf_counter()
    shutil.copyfile(shard, target)
    with target.open("rb") as written:
        os.fsync(written.fileno())
    copied = size / (time.perf_counter() - started)
    target.unlink()
    return read, copied


def _seconds_to_read(file: Path, length: int = 2**24) -> float:
    """Read a whole file in turn, with O_DIRECT where the file system has it, else with its pages dropped before."""
    forget(file.parent)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(file, os.O_RDONLY)
    buffer = mmap.mmap(-1, length)  # aligned to pages, as O_DIRECT wants
    started, offset = time.perf_counter(), 0
    try:
        while (found := os.preadv(descriptor, [buffer], offset)) == length:
            offset += found
    finally:
        os.close(descriptor)
    return time.perf_counter() - started


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# --- in fresh processes -----------------------------------------------------------------------------------------------


def prune_here(dense: str, out: str) -> dict[str, Any]:
    """Prune to 0.5 in this process: counts, passes, and the kernel's high-water mark of its resident memory."""
    pruned = prune_checkpoint(dense, out, pruner=Pruner(), sparsity="0.5")
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    counts = {key: getattr(pruned, key) for key in ("num_prunable", "num_pruned", "num_ties")}
    return {**counts, "passes": list(pruned.passes), "peak": peak}


def differing_bytes(dense: str, out: str) -> int:
    """Count weights of the result that are not what the masks make of the dense ones."""
    before, after, masks = Checkpoint.open(dense), Checkpoint.open(out), Masks.load(Path(out, "masks.safetensors"))
    own = {name: canonical for canonical, name in prunable_names(before).items()}
    wrong = 0
    for name in before:
        expected = before[name].view(torch.int16)
        if name in own:
            expected = expected * masks[own[name]]
        wrong += int((after[name].view(torch.int16) != expected).sum())
    return wrong


def extra_levels(dense: str) -> float:
    """Give the mean seconds that one more sparsity takes once weights are counted."""
    stored = StoredCheckpoint.find(dense)
    with stored.weights(lambda num_bytes: None) as weights:
        counted = CountedByWeight.of(Pruner().score, weights)
        started = time.perf_counter()
        for level in LEVELS:
            cut(Pruner(), counted, weights, Fraction(level), stored.architecture)
        return (time.perf_counter() - started) / len(LEVELS)
